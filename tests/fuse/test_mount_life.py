"""A mount beside what happens to it: other nodes that save, a daemon that ends and comes back, a kill."""

import errno
import os
import signal
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fuse.posix_cases import raises
from tests.fuse.volume_mounts import VolumeMount, mounted, settled
from tests.nodes import Node, random_model, running, until
from tests.volume_nodes import create, names, place, read, write

pytestmark = pytest.mark.mount


@pytest.fixture
def node(tmp_path: Path) -> Generator[Node]:
    node = Node(tmp_path / "home", "studio")
    with running(node):
        create(node, "film")
        yield node


@pytest.fixture
def mount(node: Node, tmp_path: Path) -> Generator[VolumeMount]:
    with mounted(node, tmp_path / "film", "film") as mount:
        yield mount


def test_a_save_of_another_node_is_seen(tmp_path: Path) -> None:
    here, far = Node(tmp_path / "here", "here"), Node(tmp_path / "far", "far")
    with running(here, far):
        create(here, "film")
        write(here, "film:/a", b"one", tmp_path / "s")
        with mounted(far, tmp_path / "mount", "film") as mount:
            until("the file is there", lambda: (mount.path / "a").exists())
            until("its bytes are there", lambda: _read_or(mount.path / "a") == b"one")
            assert not (mount.path / "b").exists()
            write(here, "film:/b", b"two", tmp_path / "s")
            until("the new one is seen", lambda: (mount.path / "b").exists())
            write(here, "film:/a", b"three", tmp_path / "s")
            until("the new version is seen", lambda: (mount.path / "a").stat().st_size == 5)
            until("and read", lambda: _read_or(mount.path / "a") == b"three")
            with here.client() as client:
                client.file_remove([place("film:/a")])
            until("the removal is seen", lambda: not (mount.path / "a").exists())
            (mount.path / "d").mkdir()
            until("what the mount makes is seen there", lambda: names(here, "film:/") == ["b", "d"])


def _read_or(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # its bytes are still on their way
        return b""


def test_the_daemon_ends_and_comes_back(node: Node, mount: VolumeMount, tmp_path: Path) -> None:
    data = os.urandom(2_000_000)
    write(node, "film:/a", data, tmp_path / "s")
    until("the file is there", lambda: (mount.path / "a").exists())
    with (mount.path / "a").open("rb") as file:
        assert file.read(1000) == data[:1000]
        (mount.path / "before").mkdir()
        node.kill()
        assert file.read() == data[1000:]  # local bytes need nobody
        assert sorted(os.listdir(mount.path)) == ["a", "before"]  # nor does what is known
        assert (mount.path / "a").stat().st_size == len(data)
        made = threading.Event()

        def make() -> None:
            (mount.path / "after").mkdir()
            made.set()

        thread = threading.Thread(target=make)
        thread.start()
        node.start()
        assert made.wait(20)
        thread.join()
    settled(mount.path)  # what was on its way when the daemon was killed came to the next one
    assert names(node, "film:/") == ["a", "after", "before"]
    write(node, "film:/b", b"two", tmp_path / "s")  # changes are told again
    until("the new one is seen", lambda: (mount.path / "b").exists())


def test_a_wait_for_the_daemon_can_be_interrupted(node: Node, mount: VolumeMount, tmp_path: Path) -> None:
    (mount.path / "a").mkdir()
    node.kill()
    child = os.fork()
    if not child:
        os.rmdir(mount.path / "a")
        os._exit(0)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    node.start()
    settled(mount.path)
    assert len(names(node, "film:/")) == len(os.listdir(mount.path))  # whether it was removed or not


def test_what_was_answered_and_fails_after_all_is_told(node: Node, mount: VolumeMount, tmp_path: Path) -> None:
    """A directory is removed while the daemon is away; before that is told, something comes into it."""
    (mount.path / "d").mkdir()
    settled(mount.path)
    node.kill()
    (mount.path / "d").rmdir()
    mount.process.send_signal(signal.SIGSTOP)
    node.start()
    with node.client() as client:
        client.file_mkdir(place("film:/d/inside"))
    mount.process.send_signal(signal.SIGCONT)
    with raises(errno.ENOTEMPTY):
        settled(mount.path)
    assert (mount.path / "d" / "inside").is_dir()  # and the mount shows what is so
    settled(mount.path)


def test_a_killed_mount_leaves_nothing_broken(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "again"
    with mounted(node, path, "film") as first:
        (path / "d").mkdir()
        settled(path)
        first.kill()
        until("it is unmounted", lambda: not os.path.ismount(path))
    with mounted(node, path, "film"):
        assert os.listdir(path) == ["d"]


def test_published_models(node: Node, tmp_path: Path) -> None:
    one = random_model(tmp_path / "one", 1, 300_000)
    (one / "modeling.py").write_text("print()")
    node.push(one, name="org/small")
    with mounted(node, tmp_path / "models", "models") as mount:
        directory = mount.path / "org" / "small"
        assert sorted(os.listdir(directory)) == ["config.json", "part-0.weights"]
        assert (directory / "part-0.weights").read_bytes() == (one / "part-0.weights").read_bytes()
        assert not (directory / "modeling.py").exists()
        with raises(errno.EROFS):
            (directory / "new").mkdir()
        with raises(errno.EROFS):
            (directory / "config.json").unlink()
        with raises(errno.EROFS):
            (directory / "config.json").open("r+")
        two = random_model(tmp_path / "two", 2, 200_000)
        node.push(two, name="org/small")
        until("the new rev is seen", lambda: (directory / "part-0.weights").stat().st_size == 200_000)
        old = mount.path / "org" / "small@1" / "part-0.weights"
        assert old.read_bytes() == (one / "part-0.weights").read_bytes()
        assert sorted(os.listdir(mount.path / "org")) == ["small", "small@1"]
    with mounted(node, tmp_path / "models", "models", "--allow-code") as mount:
        assert (mount.path / "org" / "small@1" / "modeling.py").exists()


def test_a_role_that_only_reads(node: Node, tmp_path: Path) -> None:
    with mounted(node, tmp_path / "film", "film") as mount:
        (mount.path / "d").mkdir()
        with node.client() as client:
            client.volume_remove("film", yes=True)
        until("nothing is written any more", lambda: _refused(mount.path / "e"))


def _refused(path: Path) -> bool:
    try:
        path.mkdir()
    except OSError:
        return True
    path.rmdir()
    return False


def test_reading_back(node: Node, mount: VolumeMount, tmp_path: Path) -> None:
    write(node, "film:/a", b"x", tmp_path / "s")
    until("seen", lambda: (mount.path / "a").exists())
    assert read(node, "film:/a") == (mount.path / "a").read_bytes()
