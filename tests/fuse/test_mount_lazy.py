"""A mount of files whose bytes are on another node: what is read comes, and can be read whatever happens then."""

import errno
import mmap
import os
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fuse.volume_mounts import mounted
from tests.nodes import Node, random_model, running, until
from tests.volume_nodes import create, stat, write

pytestmark = pytest.mark.mount
ON_DEMAND = '[store]\naccept = "on-demand"\n'
MIB = 1 << 20
SIZE = 24 * MIB + 777


@pytest.fixture
def nodes(tmp_path: Path) -> Generator[tuple[Node, Node]]:
    ada, grace = Node(tmp_path / "ada", "ada"), Node(tmp_path / "grace", "grace", ON_DEMAND)
    with running(ada, grace):
        yield ada, grace


def partial_bytes(node: Node) -> int:
    """Return the disk space of what is not whole on a node."""
    return sum(path.stat().st_blocks * 512 for path in (node.home / "partial").iterdir())


def test_only_what_is_read_comes(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    ada, grace = nodes
    create(ada, "film")
    data = os.urandom(SIZE)
    write(ada, "film:/a.mov", data, tmp_path / "s")
    with mounted(grace, tmp_path / "mount", "film") as mount:
        path = mount.path / "a.mov"
        until("the file is shown", path.exists)
        assert path.stat().st_size == SIZE
        with path.open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 100, 13 * MIB) == data[13 * MIB : 13 * MIB + 100]
            assert os.pread(file.fileno(), 2000, SIZE - 777) == data[-777:]
        assert 0 < partial_bytes(grace) <= 4 * MIB
        assert stat(grace, "film:/a.mov").here == "partial"
        with path.open("rb") as again, mmap.mmap(again.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert mapped[20 * MIB : 20 * MIB + 5] == data[20 * MIB : 20 * MIB + 5]
            assert path.read_bytes() == data
            until("it is whole", lambda: stat(grace, "film:/a.mov").here == "whole")
            assert mapped[:] == data
        assert path.read_bytes() == data


def test_a_model_that_has_come_is_passed_through(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    ada, grace = nodes
    model = random_model(tmp_path / "model", 3, 9 * MIB)
    ada.push(model, name="tiny", to=["ada"])
    (name,) = [path.name for path in model.iterdir() if path.stat().st_size == 9 * MIB]
    data = (model / name).read_bytes()
    with mounted(grace, tmp_path / "mount", "models") as mount:
        path = mount.path / "tiny" / name
        until("it is shown", path.exists)
        number = path.stat().st_ino
        with path.open("rb", buffering=0) as before:
            assert os.pread(before.fileno(), 10, 5 * MIB) == data[5 * MIB : 5 * MIB + 10]
            assert path.read_bytes() == data
            until("it is whole here", lambda: any((grace.home / "objects").glob("??/*")))
            assert path.read_bytes() == data
            assert path.stat().st_ino == number
            assert os.pread(before.fileno(), 10, 0) == data[:10]
            grace.kill()
            assert path.read_bytes() == data  # nobody is asked
            assert os.pread(before.fileno(), 10, 9 * MIB - 5) == data[-5:]


def test_bytes_that_nobody_has_are_an_error_after_a_while(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    ada, grace = nodes
    create(ada, "film")
    far, near = os.urandom(SIZE), os.urandom(MIB)
    write(ada, "film:/far", far, tmp_path / "s")
    write(grace, "film:/near", near, tmp_path / "s")
    with mounted(grace, tmp_path / "mount", "film", "--wait=1.5") as mount:
        until("the file is shown", (mount.path / "far").exists)
        with (mount.path / "far").open("rb") as file:
            assert file.read(10) == far[:10]
        ada.stop()
        failed = list[OSError]()

        def read() -> None:
            try:
                with (mount.path / "far").open("rb", buffering=0) as file:
                    os.pread(file.fileno(), 10, 20 * MIB)
            except OSError as error:
                failed.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        assert sorted(os.listdir(mount.path)) == ["far", "near"]
        assert (mount.path / "far").stat().st_size == SIZE
        assert (mount.path / "near").read_bytes() == near
        reader.join()
        assert [error.errno for error in failed] == [errno.EIO]
        with (mount.path / "far").open("rb") as file:
            assert file.read(10) == far[:10]  # what has come is here
        ada.start()
        until("it can be read again", lambda: _read_or(mount.path / "far") == far)


def _read_or(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_the_daemon_is_killed_while_it_fetches(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    ada, grace = nodes
    create(ada, "film")
    data = os.urandom(SIZE)
    write(ada, "film:/a", data, tmp_path / "s")
    with mounted(grace, tmp_path / "mount", "film") as mount:
        until("the file is shown", (mount.path / "a").exists)
        with (mount.path / "a").open("rb") as file:
            assert file.read(2 * MIB) == data[: 2 * MIB]
            grace.kill()
            parts: list[bytes] = []
            reader = threading.Thread(target=lambda: parts.append(file.read()))
            reader.start()
            grace.start()
            reader.join()
            assert parts == [data[2 * MIB :]]


def test_what_was_opened_is_fetched_to_its_end_if_that_is_wanted(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    ada, grace = nodes
    create(ada, "film")
    data = os.urandom(SIZE)
    for name in ("a", "b"):
        write(ada, f"film:/{name}", data + name.encode(), tmp_path / "s")
    with mounted(grace, tmp_path / "mount", "film", "--complete") as mount:
        until("the files are shown", lambda: sorted(os.listdir(mount.path)) == ["a", "b"])
        with (mount.path / "a").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 10, 9 * MIB) == data[9 * MIB : 9 * MIB + 10]
        until("it is whole", lambda: stat(grace, "film:/a").here == "whole")
        assert stat(grace, "film:/b").here == "no"
