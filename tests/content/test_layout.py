"""Layouts: how many tensors of real files, of both writers, end up aligned for their dtype."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content import layout, safetensors
from tbshare.content.layout import EXACT, PAGE_BYTES, Layout, aligned_count, choose, shift_to_page
from tbshare.content.weights import Header, Tensor, element_bytes

DTYPES = ["F32", "BF16", "U8", "I64", "F4", "C64"]


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Return a header of packed tensors of any dtypes behind a header of any length."""
    position = data_start = draw(st.integers(8, 40_000))
    tensors: list[Tensor] = []
    for number in range(draw(st.integers(0, 8))):
        dtype = draw(st.sampled_from(DTYPES))
        length = draw(st.integers(0, 50)) * element_bytes(dtype)
        tensors.append(Tensor(str(number), dtype, (), position, position + length))
        position += length
    return Header("safetensors", data_start, tuple(tensors))


@given(headers())
def test_the_layout_is_never_worse_and_starts_on_a_page(header: Header) -> None:
    chosen = choose(header)
    assert aligned_count(header, chosen.shift) >= aligned_count(header)
    assert chosen.shift == 0 or (header.data_start + chosen.shift) % PAGE_BYTES == 0
    assert chosen.shift == 0 or aligned_count(header, chosen.shift) > aligned_count(header)
    assert chosen.name == ("shifted" if chosen.shift else "exact")


@given(headers())
def test_one_dtype_is_aligned_whole(header: Header) -> None:
    """Packed tensors of one dtype behind an aligned start are all aligned."""
    same = [tensor for tensor in header.tensors if tensor.dtype == "F32"]
    position = header.data_start
    packed: list[Tensor] = []
    for tensor in same:
        packed.append(Tensor(tensor.name, "F32", (), position, position + tensor.end - tensor.start))
        position = packed[-1].end
    only = Header("safetensors", header.data_start, tuple(packed))
    assert aligned_count(only, shift_to_page(only)) == len(packed)
    assert aligned_count(only, choose(only).shift) == len(packed)


def test_nothing_else_is_shifted() -> None:
    tensors = (Tensor("a", "F32", (1,), 33, 37),)
    assert choose(None) == EXACT
    assert choose(Header("gguf", 33, tensors)) == EXACT
    assert choose(Header("safetensors", 33, tensors)) == Layout(PAGE_BYTES - 33)


def header_of(path: Path) -> Header:
    data = path.read_bytes()
    return safetensors.parse(data, len(data))


def counts(header: Header) -> tuple[int, int, int]:
    """Return how many tensors there are, are aligned as the file is, and in the chosen layout."""
    return len(header.tensors), aligned_count(header), aligned_count(header, layout.choose(header).shift)


def shapes(seed: int) -> dict[str, tuple[int, ...]]:
    return {f"layers.{number}.{'x' * (seed % 9)}": (2 + number, 3 + seed % 5) for number in range(9)}


def test_files_of_the_safetensors_library(tmp_path: Path) -> None:
    """It pads its header to 8 and orders by dtype, the widest first: everything is aligned as it is."""
    numpy: Any = pytest.importorskip("numpy")
    writer: Any = pytest.importorskip("safetensors.numpy")
    for seed in range(24):
        types = ["float32"] if seed % 2 else ["uint8", "float64", "float16", "float32"]
        tensors = {
            name: numpy.ones(shape, dtype=types[number % len(types)])
            for number, (name, shape) in enumerate(shapes(seed).items())
        }
        writer.save_file(tensors, tmp_path / "a.safetensors")
        header = header_of(tmp_path / "a.safetensors")
        total, exact, chosen = counts(header)
        assert choose(header) == EXACT
        assert exact == chosen == total == len(tensors)


@pytest.mark.model
def test_files_of_mlx(tmp_path: Path) -> None:
    """It does not pad, and orders by name: of one dtype all are aligned once shifted, of several most."""
    mx: Any = pytest.importorskip("mlx.core")
    found = {"one": [0, 0, 0], "several": [0, 0, 0]}
    for seed in range(24):
        for kind, types in (("one", [mx.float32]), ("several", [mx.uint8, mx.float32, mx.float16])):
            tensors = {
                name: mx.ones(shape, dtype=types[number % len(types)])
                for number, (name, shape) in enumerate(shapes(seed).items())
            }
            mx.save_safetensors(str(tmp_path / "a.safetensors"), tensors)
            found[kind] = [
                sum(pair) for pair in zip(found[kind], counts(header_of(tmp_path / "a.safetensors")), strict=True)
            ]
    total, exact, shifted = found["one"]
    assert exact < total / 2
    assert shifted == total
    total, exact, shifted = found["several"]
    assert exact < shifted < total
