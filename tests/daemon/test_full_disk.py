"""A disk that fills, on either side: the others go on, the push says which node failed; with room it resumes."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tbshare.errors import DiskFull, StoreUnusable, VolumeReadOnly
from tests.nodes import MIB, Node, random_model, running, until
from tests.volume_nodes import copy, create, names, read, write

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root"),
]
DISK_BYTES = 48 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small disk: {done.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path, leave: int) -> Path:
    """Take the room of a disk but for so many bytes."""
    status = os.statvfs(path)
    filler = path / "filler"
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leave)
    return filler


@pytest.mark.parametrize("whole_home", [False, True], ids=["store", "home"])
def test_a_receiver_without_room(
    make_node: Callable[..., Node], tmp_path: Path, small_disk: Path, whole_home: bool
) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    if whole_home:
        edith = Node(small_disk / "e", "edith")
    else:
        edith = make_node("edith", f'[store]\npath = "{small_disk}"\n')
    model = random_model(tmp_path / "m", 1, 12 * MIB, 9 * MIB, 100_000)
    with running(ada, grace, edith):
        filler = fill(small_disk, 18 * MIB)
        report = ada.push(model, name="large")
        assert {line.name: line.state for line in report.nodes} == {"grace": "durable", "edith": "declined"}
        assert report.failed == ["edith"]
        (line,) = [line for line in report.nodes if line.name == "edith"]
        assert "room" in line.reason or "full" in line.reason
        assert grace.has("large@1")
        assert not edith.has("large@1")
        assert [line for line in edith.status().attention if "large@1" in line.text]
        filler.unlink()
        again = ada.push(model, name="large")
        assert again.already
        assert (again.failed, again.pending) == ([], [])
        assert edith.has("large@1")
        with edith.client() as client:
            assert client.verify("large").corrupt == 0
        assert edith.status().attention == []


def test_a_disk_that_fills_while_blocks_arrive(
    make_node: Callable[..., Node], tmp_path: Path, small_disk: Path
) -> None:
    """Something else takes the room after it was looked for: small objects and records have it not reserved."""
    ada, edith = make_node("ada"), Node(small_disk / "e", "edith", '[store]\nkeep_free = "0MB"\n')
    model = tmp_path / "m"
    random_model(model, 2, *[60_000] * 60)
    with running(ada, edith):
        filler = fill(small_disk, MIB)
        report = ada.push(model, name="small-files")
        assert report.failed + report.pending == ["edith"]
        assert edith.process is not None
        assert edith.process.poll() is None, "it goes on"
        filler.unlink()
        until("it has resumed", lambda: ada.push(model, name="small-files").failed == [])
        until("it has it", lambda: edith.has("small-files@1"))
        with edith.client() as client:
            assert client.verify("small-files").corrupt == 0


def test_a_source_without_room(make_node: Callable[..., Node], tmp_path: Path, small_disk: Path) -> None:
    ada, grace = Node(small_disk / "a", "ada"), make_node("grace")
    with running(ada, grace):
        ada.push(random_model(tmp_path / "one", 3, 9 * MIB), name="one")
        with pytest.raises(DiskFull) as caught:
            ada.push(random_model(tmp_path / "two", 4, 40 * MIB), name="two")
        assert caught.value.cure
        assert ada.line("two@1") is None
        assert ada.status().processes == 0
        with ada.client() as client:
            assert client.verify().corrupt == 0
        assert ada.push(random_model(tmp_path / "three", 5, 9 * MIB), name="three").failed == []
        assert grace.has("three@1")


@pytest.mark.parametrize("leave", [8192, 40_000, 400_000])
def test_a_disk_that_fills_while_files_are_saved(
    make_node: Callable[..., Node], tmp_path: Path, small_disk: Path, leave: int
) -> None:
    """Whatever did not find room, the log or bytes: each file that is shown is whole, and there is no other."""
    ada = Node(small_disk / "a", "ada", '[store]\nkeep_free = "0MB"\n')
    random_model(tmp_path / "new", 6, *[30_000] * 40)
    random_model(tmp_path / "large", 7, 30 * MIB)
    with running(ada):
        create(ada, "film")
        write(ada, "film:/kept", b"kept", tmp_path / "s")
        filler = fill(small_disk, leave)
        for folder in ("new", "large"):
            with pytest.raises((DiskFull, StoreUnusable, VolumeReadOnly)):
                copy(ada, tmp_path / folder, "film:/", recursive=True)
        with pytest.raises((DiskFull, StoreUnusable, VolumeReadOnly)):
            write(ada, "film:/kept", b"k" * 500_000, tmp_path / "s")
        assert read(ada, "film:/kept") == b"kept"
        filler.unlink()
        ada.stop()
        ada.start()
        for folder in {"new", "large"} & set(names(ada, "film:/")):
            for name in names(ada, f"film:/{folder}"):
                assert read(ada, f"film:/{folder}/{name}") == (tmp_path / folder / name).read_bytes()
        with ada.client() as client:
            client.gc(now=True)
        for folder in ("new", "large"):
            copy(ada, tmp_path / folder, "film:/", recursive=True)
            assert sorted(names(ada, f"film:/{folder}")) == sorted(os.listdir(tmp_path / folder))
            for name in os.listdir(tmp_path / folder):
                assert read(ada, f"film:/{folder}/{name}") == (tmp_path / folder / name).read_bytes()
        with ada.client() as client:
            assert client.verify().corrupt == 0
