import gc
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

mx: Any = pytest.importorskip("mlx.core")

from tbshare.content.weights import ELEMENT_BITS, Header, Tensor  # noqa: E402
from tbshare.errors import ModelRefused  # noqa: E402
from tbshare.inference import check, weights  # noqa: E402
from tbshare.inference.extension import MapModule  # noqa: E402
from tbshare.inference.pages import PAGE_BYTES, whole_pages  # noqa: E402
from tests.inference.conftest import Tensors, WriteSafetensors  # noqa: E402

NOT_OF_MX_LOAD = {"F8_E5M2"}  # MLX 0.32.4 knows the other two 8-bit floats only


def every_dtype() -> Tensors:
    """A matrix of every dtype MLX has, widest first, so that all of them are aligned."""
    names = sorted(weights.DTYPES, key=lambda name: (-ELEMENT_BITS[name], name))
    return {
        name: (name, [5, 8], (bytes([0, 1]) * 20 if name == "BOOL" else os.urandom(5 * ELEMENT_BITS[name])))
        for name in names
    }


def same_bytes(left: Any, right: Any) -> bool:
    """Whether two arrays agree in dtype, shape and every bit (NaNs included)."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    flat = [array.reshape(-1).view(mx.uint8) for array in (left, right)]
    return bool(mx.array_equal(*flat).item())


def test_dtypes_agree_with_what_check_lets_through() -> None:
    assert set(weights.DTYPES) == check.DTYPES
    assert all(weights.DTYPES[name].size * 8 == ELEMENT_BITS[name] for name in weights.DTYPES)


def test_mapped_equals_mx_load_bit_for_bit_in_every_dtype(
    tmp_path: Path, module: MapModule, write_safetensors: WriteSafetensors
) -> None:
    tensors = every_dtype()
    path = write_safetensors(tmp_path / "all.safetensors", tensors)
    loaded = weights.load(path, module)
    assert loaded.copied_bytes == loaded.loaded_bytes == 0
    assert loaded.mapped_bytes == sum(len(content) for _, _, content in tensors.values())
    for name, (_, shape, content) in tensors.items():
        array = loaded.tensors[name]
        assert isinstance(array, mx.array)
        raw = mx.array(list(content), dtype=mx.uint8).view(weights.DTYPES[name]).reshape(shape)
        assert same_bytes(array, raw), name
    comparable = {name: part for name, part in tensors.items() if name not in NOT_OF_MX_LOAD}
    path = write_safetensors(tmp_path / "comparable.safetensors", comparable)
    read = mx.load(str(path))
    mapped = weights.load(path, module).tensors
    assert read.keys() == mapped.keys()
    assert all(same_bytes(read[name], mapped[name]) for name in read)


def test_scalars_and_empty_tensors(tmp_path: Path, module: MapModule, write_safetensors: WriteSafetensors) -> None:
    path = write_safetensors(
        tmp_path / "odd.safetensors", {"one": ("F32", [], b"\0\0\x80?"), "none": ("F32", [0, 3], b"")}
    )
    loaded = weights.load(path, module)
    assert loaded.tensors["one"].shape == ()
    assert loaded.tensors["one"].item() == 1.0
    assert loaded.tensors["none"].shape == (0, 3)


def test_misaligned_tensor_is_copied_alone_and_counted(
    tmp_path: Path, module: MapModule, write_safetensors: WriteSafetensors
) -> None:
    tensors: Tensors = {
        "first": ("F32", [4], os.urandom(16)),
        "odd": ("U8", [3], os.urandom(3)),
        "displaced": ("F32", [5], os.urandom(20)),
        "bytes": ("U8", [9], os.urandom(9)),
    }
    path = write_safetensors(tmp_path / "model.safetensors", tensors)
    loaded = weights.load(path, module)
    assert loaded.copied == {"displaced"}
    assert loaded.copied_bytes == 20
    assert loaded.mapped_bytes == 28
    assert "1 of 4 tensors" in loaded.note
    read = mx.load(str(path))
    assert all(same_bytes(read[name], loaded.tensors[name]) for name in read)


def test_without_the_module_it_reads_and_says_so(tmp_path: Path, write_safetensors: WriteSafetensors) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", {"a": ("F32", [4], os.urandom(16))})
    loaded = weights.load(path, None, "there is no compiler")
    assert loaded.loaded_bytes == 16
    assert loaded.note == "the weights are read, not mapped: there is no compiler"
    assert same_bytes(loaded.tensors["a"], mx.load(str(path))["a"])


@pytest.mark.parametrize("skew", [0, 1])
def test_slices_of_one_array_over_the_file_share_it_and_are_equal(
    tmp_path: Path, module: MapModule, write_safetensors: WriteSafetensors, skew: int
) -> None:
    """The way of Metal, with the module giving the one array: every aligned tensor lies in the mapping."""
    tensors: Tensors = {
        "long": ("BF16", [3, 20_000], os.urandom(120_000)),
        "matrix": ("F32", [11, 77], os.urandom(3388)),
        "scalar": ("F32", [], os.urandom(4)),
        "none": ("F16", [0], b""),
        "bytes": ("U8", [7], os.urandom(7)),
    }
    path = write_safetensors(tmp_path / "model.safetensors", tensors, skew=skew)
    size = path.stat().st_size
    padded = tmp_path / "padded"
    padded.write_bytes(path.read_bytes().ljust(whole_pages(size) * PAGE_BYTES))
    with path.open("rb") as file:
        header = weights.read_header(file, size)
        view = weights.map_pages(file.fileno(), size)
    with padded.open("rb") as file:
        region = module.Region(file.fileno())
    rows = region.array(0, (whole_pages(size), PAGE_BYTES), mx.uint8)
    loaded = weights.sliced(rows, view, header)
    assert loaded.copied == (set() if skew == 0 else {"long", "matrix", "scalar"})
    read = mx.load(str(path))
    mx.eval(loaded.tensors)
    assert all(same_bytes(read[name], loaded.tensors[name]) for name in read)
    shared = {name for name in ("long", "matrix", "scalar", "bytes") if region.holds(loaded.tensors[name])}
    assert shared == {"long", "matrix", "scalar", "bytes"} - loaded.copied


def test_tensor_above_two_gigabytes_is_sliced_without_a_copy(tmp_path: Path, module: MapModule) -> None:
    path = tmp_path / "sparse"
    rows_count = (3 << 30) // PAGE_BYTES + 1
    with path.open("wb") as file:
        file.truncate(rows_count * PAGE_BYTES)
        file.seek(8 + (3 << 30) - 1)
        file.write(b"\x2a")
    with path.open("rb") as file:
        region = module.Region(file.fileno())
    tensor = Tensor("huge", "U8", (3, 1 << 30), 8, 8 + (3 << 30))
    rows = region.array(0, (rows_count, PAGE_BYTES), mx.uint8)
    loaded = weights.sliced(rows, memoryview(b""), Header("safetensors", 8, (tensor,)))
    huge: Any = loaded.tensors["huge"]
    mx.eval(huge)
    assert region.holds(huge)
    assert huge[2, (1 << 30) - 1].item() == 0x2A


def test_pages_mapped_to_the_end_of_the_last_one_hold_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = os.urandom(PAGE_BYTES + 100)
    path.write_bytes(content)
    with path.open("rb") as file:
        view = weights.map_pages(file.fileno(), len(content))
    assert len(view) == 2 * PAGE_BYTES
    assert view.readonly
    assert bytes(view[: len(content)]) == content


def test_views_keep_the_mapping_and_the_last_one_ends_it(
    tmp_path: Path, module: MapModule, write_safetensors: WriteSafetensors
) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", {"a": ("U8", [4096], bytes(range(256)) * 16)})
    mappings, arrays = module.live()
    loaded = weights.load(path, module)
    path.unlink()
    assert module.live() == (mappings + 1, arrays + 1)
    view: Any = loaded.tensors["a"][256:258]
    mx.eval(view)
    del loaded
    gc.collect()
    assert module.live() == (mappings + 1, arrays + 1)
    assert view.tolist() == [0, 1]
    del view
    gc.collect()
    assert module.live() == (mappings, arrays)


def test_no_operation_writes_into_the_mapping(
    tmp_path: Path, module: MapModule, write_safetensors: WriteSafetensors
) -> None:
    """MLX reuses the memory of an operand nobody else holds; ours is read-only, so that would be a crash."""
    content = os.urandom(4 * 65536)
    path = write_safetensors(tmp_path / "model.safetensors", {"a": ("I32", [65536], content)})
    before = hashlib.sha256(path.read_bytes()).digest()

    def alone() -> Any:
        return weights.load(path, module).tensors["a"]

    results = [mx.negative(alone()), alone() + 1, mx.sort(alone()), alone().astype(mx.float32), mx.abs(alone())]
    array = alone()
    array += 1
    array[0] = 7
    mx.eval(results, array)
    assert array[0].item() == 7
    assert same_bytes(-results[0], alone())
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_region_refuses_what_is_not_in_the_file(tmp_path: Path, module: MapModule) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with path.open("rb") as file:
        region = module.Region(file.fileno())
    assert region.size == 100
    assert region.array(96, [1], mx.float32).item() == 0.0
    with pytest.raises(ValueError, match="not a multiple"):
        region.array(2, [1], mx.float32)
    for offset, shape in ((97, [4]), (101, [1]), (2**63, [1]), (0, [2**31 - 1] * 3)):
        for make in (region.array, region.copy):
            with pytest.raises(IndexError):
                make(offset, shape, mx.uint8)
    for shape in ([-1], [2**31], [0]):
        with pytest.raises(ValueError, match=r"dimension|elements"):
            region.array(0, shape, mx.uint8)
    with pytest.raises(IndexError):
        region.populate(0, 101)
    with pytest.raises(IndexError):
        region.will_need(101, 0)


def test_region_reads_ahead(tmp_path: Path, module: MapModule) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * 4096 + 7))
    with path.open("rb") as file:
        region = module.Region(file.fileno())
    region.will_need(5000, 100)
    region.populate(4097, 8000)
    region.populate(0, region.size)


def test_region_refuses_what_is_no_file_with_bytes(tmp_path: Path, module: MapModule) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with (tmp_path / "empty").open("rb") as file, pytest.raises(ValueError, match="regular file"):
        module.Region(file.fileno())
    reader, writer = os.pipe()
    try:
        with pytest.raises(ValueError, match="regular file"):
            module.Region(reader)
    finally:
        os.close(reader)
        os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        module.Region(reader)


def test_a_file_cut_under_the_mapping_ends_in_a_line_not_a_crash(tmp_path: Path, module: MapModule) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(65536))
    program = """
import os, signal, sys
import mlx.core as mx
from tbshare.inference.extension import find
module = find().module
file = open(sys.argv[1], "r+b")
array = module.Region(file.fileno()).array(0, [65536], mx.uint8)
module.on_fatal_signal(int(signal.SIGBUS), 1, "the file shrank\\n")
file.truncate(0)
mx.eval(array + 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "the file shrank\n", "")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x10" + bytes(7) + b"{", b"\x02" + bytes(7) + b"[]"])
def test_damaged_header_is_refused(tmp_path: Path, module: MapModule, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelRefused, match=r"model\.safetensors: "):
        weights.load(path, module)


def test_dtype_without_an_array_is_refused(
    tmp_path: Path, module: MapModule, write_safetensors: WriteSafetensors
) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", {"packed": ("F4", [4], bytes(2))})
    with pytest.raises(ModelRefused, match="'packed' is F4"):
        weights.load(path, module)


def test_file_that_is_not_there_is_refused(tmp_path: Path, module: MapModule) -> None:
    with pytest.raises(ModelRefused, match="cannot be read: No such file"):
        weights.load(tmp_path / "model.safetensors", module)
