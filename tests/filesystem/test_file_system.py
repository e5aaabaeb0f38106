"""What the file system promises beyond fsspec's own suite: versions, transactions, maps, memory, errors."""

import errno
import importlib
import importlib.metadata
import itertools
import os
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import fsspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tbshare.filesystem import TbshareFileSystem, file_system, writing
from tbshare.wire.files import Commit, FileCopyParams
from tbshare.wire.local import PushParams
from tbshare.wire.volume import VolumeSetParams
from tests.nodes import MIB, Node
from tests.volume_nodes import create, place


def versions(node: Node, path: str) -> list[str]:
    volume, _, inside = path.partition("/")
    with node.client() as client:
        return [line.version for line in client.history(place(f"{volume}:/{inside}")).lines]


def test_the_entry_point_is_the_file_system() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (text,) = project["project"]["entry-points"]["fsspec.specs"].values()
    entry = importlib.metadata.EntryPoint("tbshare", text, "fsspec.specs")
    assert entry.load() is TbshareFileSystem


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 9 * MIB + 5])
def test_bytes_come_back(fs: Any, film: str, size: int) -> None:
    data = Random(size).randbytes(size)
    path = f"{film}/deep/er/a.bin"
    fs.pipe_file(path, data)
    assert fs.cat_file(path) == data
    assert fs.cat_file(path, 5, -7) == data[5:-7]
    assert fs.cat_file(path, -10) == data[-10:]
    assert fs.cat_ranges([path] * 3, [0, 3, -4], [2, 70_000, None]) == [data[:2], data[3:70_000], data[-4:]]
    with fs.open(path) as file:
        assert file.size == size
        assert file.read(7) == data[:7]
        file.seek(-3, 2) if size > 3 else file.seek(0)
        assert file.read() == (data[-3:] if size > 3 else data)
        assert file.read() == b""
        assert bytes(file.memoryview()) == data
    assert fs.info(path)["size"] == size


def test_info_names_version_object_and_blocks(fs: Any, film: str) -> None:
    path = f"{film}/a"
    fs.pipe_file(path, bytes(9 * MIB))
    first = fs.info(path, blocks=True)
    assert [(offset, length) for offset, length, _ in first["blocks"]] == [
        (0, 4 * MIB),
        (4 * MIB, 4 * MIB),
        (8 * MIB, MIB),
    ]
    assert first["blocks"][0][2] == first["blocks"][1][2]
    fs.pipe_file(path, b"new")
    second = fs.info(path)
    assert (first["version"], first["object"]) != (second["version"], second["object"])
    assert fs.ukey(path) == second["version"]
    assert fs.checksum(path) == int(second["version"], 16)
    assert abs(fs.modified(path) - datetime.now(UTC)).total_seconds() < 3600
    assert fs.created(path) <= fs.modified(path)


def test_an_open_file_is_the_version_it_was(fs: Any, film: str, ada: Node) -> None:
    path, old = f"{film}/a", Random(3).randbytes(3 * MIB)
    fs.pipe_file(path, old)
    with fs.open(path) as file:
        start = file.read(10)
        view = file.memoryview()
        fs.pipe_file(path, b"new")
        fs.rm(path)
        with ada.client() as client:
            client.gc(now=True)
        assert start + file.read() == old
    assert bytes(view) == old


def test_nothing_half_written_is_a_version(fs: Any, film: str, ada: Node) -> None:
    path = f"{film}/a"

    def write_half() -> None:
        with fs.open(path, "wb") as file:
            file.write(b"half")
            assert not fs.exists(path)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert not fs.exists(path)
    fs.pipe_file(path, b"whole")
    assert len(versions(ada, path)) == 1


def test_appending_and_patching_keep_what_was_there(fs: Any, film: str, ada: Node) -> None:
    path, data = f"{film}/log", Random(4).randbytes(5 * MIB)
    with fs.open(path, "ab") as file:
        file.write(data)
    with fs.open(path, "ab") as file:
        assert file.tell() == len(data)
        file.write(b"more")
    with fs.open(path, "r+b") as file:
        file.seek(MIB)
        file.write(b"patch")
    assert fs.cat_file(path) == data[:MIB] + b"patch" + data[MIB + 5 :] + b"more"
    assert len(versions(ada, path)) == 3
    with pytest.raises(FileNotFoundError):
        fs.open(f"{film}/none", "r+b")


def test_who_appends_beside_another_save_loses_neither(fs: Any, film: str) -> None:
    path = f"{film}/log"
    fs.pipe_file(path, b"one,")
    with fs.open(path, "ab") as file:
        fs.pipe_file(path, b"two,")
        file.write(b"three")
    assert sorted(fs.cat(fs.ls(film, detail=False)).values()) == [b"one,three", b"two,"]


def test_text_and_compression(fs: Any, film: str) -> None:
    with fs.open(f"{film}/t.txt", "w", encoding="utf-8") as file:
        file.write("ä\nb\nc")
    with fs.open(f"{film}/t.txt", "r", encoding="utf-8") as file:
        assert list(file) == ["ä\n", "b\n", "c"]
    with fs.open(f"{film}/t.gz", "wb", compression="gzip") as file:
        file.write(b"x" * 100_000)
    assert fs.info(f"{film}/t.gz")["size"] < 1000
    with fs.open(f"{film}/t.gz", compression="infer") as file:
        assert file.read() == b"x" * 100_000


# changing --------------------------------------------------------------------------------------------------------


def test_copies_inside_the_store_take_no_room(fs: Any, film: str, ada: Node) -> None:
    fs.pipe_file(f"{film}/a", Random(5).randbytes(9 * MIB))
    before = sum(path.stat().st_size for path in ada.object_files())
    create(ada, f"{film}-two")
    fs.cp_file(f"{film}/a", f"{film}/b/c")
    fs.cp_file(f"{film}/a", f"{film}-two/a")
    assert fs.cat_file(f"{film}/b/c") == fs.cat_file(f"{film}-two/a") == fs.cat_file(f"{film}/a")
    assert sum(path.stat().st_size for path in ada.object_files()) == before


def test_moving_is_one_step(fs: Any, film: str, ada: Node) -> None:
    fs.pipe({f"{film}/d/a": b"a", f"{film}/d/b": b"b"})
    version = fs.ukey(f"{film}/d/a")
    fs.mv(f"{film}/d", f"{film}/e/f", recursive=True)
    assert fs.find(film) == [f"{film}/e/f/a", f"{film}/e/f/b"]
    assert fs.ukey(f"{film}/e/f/a") == version, "a rename makes no version"
    fs.mv(f"{film}/e/f/a", f"{film}/g/")
    assert fs.find(film) == [f"{film}/e/f/b", f"{film}/g/a"]
    create(ada, f"{film}-two")
    fs.mv(f"{film}/g", f"{film}-two/g", recursive=True)
    assert fs.find(film) + fs.find(f"{film}-two") == [f"{film}/e/f/b", f"{film}-two/g/a"]


def test_directories(fs: Any, film: str) -> None:
    fs.mkdir(f"{film}/a/b")
    with pytest.raises(FileExistsError):
        fs.mkdir(f"{film}/a/b")
    with pytest.raises(FileNotFoundError):
        fs.mkdir(f"{film}/x/y", create_parents=False)
    fs.makedirs(f"{film}/a/b", exist_ok=True)
    with pytest.raises(FileExistsError):
        fs.makedirs(f"{film}/a/b")
    with pytest.raises(OSError, match="1 name") as caught:
        fs.rmdir(f"{film}/a")
    assert caught.value.errno == errno.ENOTEMPTY
    fs.rmdir(f"{film}/a/b")
    fs.touch(f"{film}/a/file")
    with pytest.raises(NotADirectoryError):
        fs.rmdir(f"{film}/a/file")
    with pytest.raises(OSError, match="rm -r"):
        fs.rm(f"{film}/a")
    fs.rm([f"{film}/a"], recursive=True)
    assert fs.ls(film) == []
    assert {"name": film, "size": 0, "type": "directory"} in fs.ls("")


def test_names_that_are_no_text_and_links(fs: Any, film: str, ada: Node, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / os.fsdecode(b"caf\xe9")).write_bytes(b"latin")
    (source / "d" / "real").write_bytes(b"real")
    (source / "link").symlink_to("d/real")
    (source / "d" / "up").symlink_to("../d")
    (source / "out").symlink_to("../../../etc")
    with ada.client() as client:
        client.file_copy(FileCopyParams([place(source)], place(f"{film}:/s"), recursive=True))
    odd = next(name for name in fs.ls(f"{film}/s", detail=False) if "caf" in name)
    assert fs.cat_file(odd) == b"latin"
    found = {entry["name"].rpartition("/")[2]: entry for entry in fs.ls(f"{film}/s")}
    assert (found["link"]["type"], found["link"]["size"], found["link"]["islink"]) == ("file", 4, True)
    assert found["out"]["type"] == "other"
    assert fs.isdir(f"{film}/s/d/up")
    assert fs.cat_file(f"{film}/s/link") == b"real"


# published -------------------------------------------------------------------------------------------------------


def test_what_was_pushed_is_read_by_its_ref(fs: Any, ada: Node, tmp_path: Path) -> None:
    model, data = tmp_path / "llama", Random(6).randbytes(5 * MIB)
    (model / "sub").mkdir(parents=True)
    (model / "w.bin").write_bytes(data)
    (model / "sub" / "config.json").write_text("{}")
    with ada.client() as client:
        client.push(PushParams(path=str(model), name="lab/llama"))
        (model / "w.bin").write_bytes(data[::-1])
        client.push(PushParams(path=str(model), name="lab/llama"))
    assert fs.cat_file("models/lab/llama@1/w.bin") == data
    assert fs.cat_file("tbshare://models/lab/llama/w.bin") == data[::-1]
    assert fs.find("models/lab/llama") == ["models/lab/llama/sub/config.json", "models/lab/llama/w.bin"]
    assert fs.ls("models/lab", detail=False) == ["models/lab/llama", "models/lab/llama@1"]
    assert "models/lab" in fs.glob("models/l*")
    with fs.open("models/lab/llama/w.bin") as file:
        with ada.client() as client:
            (model / "w.bin").write_bytes(b"three")
            client.push(PushParams(path=str(model), name="lab/llama"))
        assert file.read() == data[::-1]
    for path in ("models/lab/lama/x", "models/lab/llama/none", "models/lab/llama@9/w.bin", "models/none"):
        with pytest.raises(FileNotFoundError):
            fs.info(path)
    with pytest.raises(PermissionError, match="published") as caught:
        fs.pipe_file("models/lab/llama/x", b"x")
    assert caught.value.errno == errno.EROFS
    with pytest.raises(PermissionError):
        fs.rm("models/lab/llama", recursive=True)


def test_weights_whose_header_was_shifted_are_the_file_that_was_pushed(fs: Any, ada: Node, tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    save_file: Any = importlib.import_module("safetensors.numpy").save_file
    tensors = {"a": numpy.arange(600_000, dtype=numpy.float32), "odd": numpy.arange(7, dtype=numpy.uint8)}
    (tmp_path / "m").mkdir()
    save_file(tensors, tmp_path / "m" / "w.safetensors")
    data = (tmp_path / "m" / "w.safetensors").read_bytes()
    with ada.client() as client:
        client.push(PushParams(path=str(tmp_path / "m"), name="shifted"))
    path = "models/shifted/w.safetensors"
    assert fs.cat_file(path) == data
    with fs.open(path) as file:
        assert bytes(file.memoryview()) == data
        assert file.read(300) + file.read() == data
        file.seek(len(data) - 9)
        assert bytes(file.read_buffer()) == data[-9:]


# errors ----------------------------------------------------------------------------------------------------------


def test_bad_input_is_the_error_that_python_has_for_it(fs: Any, film: str, ada: Node) -> None:
    with pytest.raises(FileNotFoundError, match=r"no volume 'nowhere'.*tbshare volume ls"):
        fs.open("nowhere/a")
    with pytest.raises(FileNotFoundError, match="no volume 'nowhere'"):
        fs.pipe_file("nowhere/a", b"")
    with pytest.raises(FileNotFoundError):
        fs.open(f"{film}/none")
    with pytest.raises(OSError, match=r"'\.\.'") as caught:
        fs.open(f"{film}/../../etc/passwd")
    assert caught.value.errno == errno.EINVAL
    fs.pipe_file(f"{film}/a", b"a")
    with pytest.raises(NotADirectoryError):
        fs.open(f"{film}/a/b")
    with pytest.raises(IsADirectoryError):
        fs.open(film, "wb")
    fs.mkdir(f"{film}/d")
    for mode in ("rb", "wb", "ab"):
        with pytest.raises(IsADirectoryError):
            fs.open(f"{film}/d", mode)
    with pytest.raises(ValueError, match="rb"):
        fs.open(f"{film}/a", "qb")
    with ada.client() as client:
        client.snapshot_create(film, "monday")
    fs.pipe_file(f"{film}/a", b"b")
    assert fs.cat_file(f"{film}@monday/a") == b"a"
    with pytest.raises(PermissionError, match="snapshot"):
        fs.pipe_file(f"{film}@monday/a", b"c")
    with pytest.raises(FileExistsError):
        fs.open(f"{film}/a", "xb")
    assert fs.cat_ranges([f"{film}/a", f"{film}/none"], 0, 1)[0] == b"b"
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([f"{film}/none"], 0, 1, on_error="raise")


def test_a_quota_is_told_before_anything_is_saved(fs: Any, film: str, ada: Node) -> None:
    with ada.client() as client:
        client.volume_set(VolumeSetParams(film, options={"quota": "1M"}))
    before = ada.object_files()
    with pytest.raises(OSError, match=r"quota|bytes in use") as caught:
        fs.pipe_file(f"{film}/a", bytes(2 * MIB))
    assert caught.value.errno == errno.EDQUOT
    assert "tbshare volume set" in str(caught.value)
    assert ada.object_files() == before
    assert fs.ls(film) == []
    fs.pipe_file(f"{film}/a", bytes(MIB // 2))


def test_a_staged_file_must_be_ours_and_closed(fs: Any, film: str, ada: Node, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"x" * 100_000)
    with ada.client() as client:
        where = place(f"{film}:/a")
        staging = client.file_stage(where).directory
        for staged in (bytes(tmp_path / "mine"), os.path.join(staging, b"writer-x", b"none"), b"/dev/null", b""):
            with pytest.raises(Exception, match=r"gone|no file below"):
                client.file_commit([Commit(where, staged)])
        directory = writing.WriterDirectory.below(staging)
        name = directory.new_file()
        with open(name, "wb") as file:
            file.write(b"y" * 100_000)
            file.flush()
            with pytest.raises(Exception, match="open for writing"):
                client.file_commit([Commit(where, name)])
        client.file_commit([Commit(where, name)])
        assert not os.path.exists(name)
    assert (tmp_path / "mine").read_bytes() == b"x" * 100_000
    assert fs.cat_file(f"{film}/a") == b"y" * 100_000


@example(ranges=[(0, 2), (5, 6), (10, 11)], gap=3)
@given(ranges=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8), gap=st.integers(0, 9))
def test_merged_ranges_hold_all_that_was_asked_for(ranges: list[tuple[int, int]], gap: int) -> None:
    wanted = sorted((start, end, number) for number, (start, end) in enumerate(ranges))
    merged = file_system.merge(wanted, gap)
    inside = [part for _, _, parts in merged for part in parts]
    assert inside == [each for each in wanted if each[0] < each[1]]
    for start, end, parts in merged:
        assert all(start <= first < last <= end for first, last, _ in parts)
        assert (start, end) == (min(part[0] for part in parts), max(part[1] for part in parts))
        reached = start
        for first, last, _ in parts:
            assert first <= reached + gap
            reached = max(reached, last)
    for (_, end, _), (start, _, _) in itertools.pairwise(merged):
        assert start > end + gap


def test_a_url_means_the_daemon_of_the_home(fs: Any, film: str, at_home: Path) -> None:
    fs.pipe_file(f"{film}/a", b"bytes")
    untyped: Any = fsspec
    with untyped.open(f"tbshare://{film}/a") as file:
        assert file.read() == b"bytes"
    mapper = untyped.get_mapper(f"tbshare://{film}")
    assert dict(mapper) == {"a": b"bytes"}
    assert at_home.is_dir()
