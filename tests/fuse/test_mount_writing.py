"""Writing through a mount: what programs do, what is saved of it, and what is left when something dies."""

import errno
import mmap
import os
import subprocess
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.disks import sharing_disk
from tests.fuse.shadow_file import ShadowFile
from tests.fuse.volume_mounts import VolumeMount, mounted, settled
from tests.nodes import MIB, Node, running, until
from tests.staged import heads, left, versions
from tests.volume_nodes import create, names, read, write
from tests.volume_nodes import stat as told

pytestmark = pytest.mark.mount
FSX_STEPS = 20_000
FSX_SEEDS = 4


@pytest.fixture(scope="module", params=["plain", "sharing"])
def mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[VolumeMount]:
    """A mount of a volume whose node's disk can share blocks, or cannot."""
    folder = tmp_path_factory.mktemp("writing")
    with ExitStack() as stack:
        disk = folder if request.param == "plain" else stack.enter_context(sharing_disk(folder, 3000))
        node = Node(disk / "home", "studio")
        stack.enter_context(running(node))
        create(node, "film")
        yield stack.enter_context(mounted(node, folder / "mount", "film"))


@pytest.fixture
def here(mount: VolumeMount, request: pytest.FixtureRequest) -> Path:
    """An empty directory in the mount."""
    path = mount.path / str(request.node.originalname)  # pyright: ignore[reportUnknownMemberType]
    path.mkdir(exist_ok=True)
    return settled(path)


def place(path: Path) -> str:
    return f"film:/{path.parent.name}/{path.name}"


def saved(mount: VolumeMount, path: Path, data: bytes) -> None:
    """Wait until what was closed is a version, and look at it past the mount."""

    def is_saved() -> bool:
        return (
            path.name in names(mount.node, f"film:/{path.parent.name}") and read(mount.node, place(path)) == data
        )

    until(f"{path.name} is saved", is_saved)


def all_saved(mount: VolumeMount) -> None:
    until("everything is saved", lambda: left(mount.node) == [])


# what programs do ------------------------------------------------------------------------------------------------


def test_a_new_file_is_one_version_when_it_is_closed(mount: VolumeMount, here: Path) -> None:
    data = os.urandom(3 * MIB)
    with (here / "a").open("wb") as file:
        for start in range(0, len(data), 100_000):
            file.write(data[start : start + 100_000])
        file.flush()
        assert (here / "a").stat().st_size == len(data)
        assert (here / "a").read_bytes() == data  # who reads sees what is written
        assert names(mount.node, f"film:/{here.name}") == []
    saved(mount, here / "a", data)
    assert (here / "a").read_bytes() == data
    assert versions(mount.node, place(here / "a")) == 1


def test_append_overwrite_truncate(mount: VolumeMount, here: Path) -> None:
    path, data = here / "a", bytearray(os.urandom(6 * MIB))
    path.write_bytes(data)
    with path.open("ab") as file:
        file.write(b"more")
    data += b"more"
    with path.open("r+b") as file:
        file.seek(4 * MIB - 3)
        file.write(b"middle")
    data[4 * MIB - 3 : 4 * MIB + 3] = b"middle"
    saved(mount, path, bytes(data))
    os.truncate(path, 5 * MIB)
    del data[5 * MIB :]
    saved(mount, path, bytes(data))
    with path.open("wb") as file:
        file.write(b"new")
    saved(mount, path, b"new")
    assert heads(mount.node, place(path)) == 1


def test_opening_for_writing_without_writing_saves_nothing(mount: VolumeMount, here: Path) -> None:
    path = here / "a"
    path.write_bytes(b"x")
    os.utime(path, ns=(10**18, 10**18))
    saved(mount, path, b"x")
    before = path.stat()
    with path.open("r+b"):
        pass
    all_saved(mount)
    assert versions(mount.node, place(path)) == 1
    assert path.stat().st_mtime_ns == before.st_mtime_ns == 10**18


def test_a_reader_sees_what_a_writer_writes(mount: VolumeMount, here: Path) -> None:
    for size in (10, 2 * MIB):
        path, data = here / f"log-{size}", os.urandom(size)
        path.write_bytes(data)
        saved(mount, path, data)
        with path.open("rb", buffering=0) as reader:
            assert len(reader.read(size)) == size
            with path.open("ab", buffering=0) as writer:
                writer.write(b"line 1\n")
                assert reader.read(100) == b"line 1\n"
            with path.open("ab", buffering=0) as writer:
                writer.write(b"line 2\n")
            assert reader.read(100) == b"line 2\n"
        saved(mount, path, data + b"line 1\nline 2\n")


def test_writing_by_a_map(mount: VolumeMount, here: Path) -> None:
    path, data = here / "a", bytearray(os.urandom(5 * MIB))
    path.write_bytes(data)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[100:105] = b"first"
        mapped[-4:] = b"last"
        mapped.flush()
        with path.open("rb") as other:
            assert other.read(105)[100:] == b"first"
    data[100:105], data[-4:] = b"first", b"last"
    saved(mount, path, bytes(data))


def test_holes(mount: VolumeMount, here: Path) -> None:
    path = here / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(500 * MIB)
        file.write(b"island")
        file.flush()
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 500 * MIB
        assert os.lseek(file.fileno(), 500 * MIB, os.SEEK_HOLE) > 500 * MIB
        assert os.fstat(file.fileno()).st_blocks < 1000
    all_saved(mount)
    assert told(mount.node, place(path)).size_bytes == 1 << 30
    with path.open("rb") as file:
        file.seek(500 * MIB - 1)
        assert file.read(8) == b"\0island\0"


def test_a_temporary_file_that_is_removed_while_open(mount: VolumeMount, here: Path) -> None:
    with (here / "t").open("w+b") as file:
        file.write(b"x" * 100_000)
        file.flush()
        (here / "t").unlink()
        file.seek(0)
        assert file.read() == b"x" * 100_000
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.listdir(here) == []
    all_saved(mount)
    assert names(mount.node, f"film:/{here.name}") == []


def test_renamed_and_replaced_while_open(mount: VolumeMount, here: Path) -> None:
    with (here / "a").open("wb") as file:
        file.write(b"one ")
        file.flush()
        (here / "a").rename(here / "b")
        file.write(b"two")
    saved(mount, here / "b", b"one two")
    assert os.listdir(here) == ["b"]
    with (here / "b.tmp").open("wb") as file:  # as editors save
        file.write(b"edited")
        file.flush()
        os.fsync(file.fileno())
    (here / "b.tmp").rename(here / "b")
    saved(mount, here / "b", b"edited")
    assert versions(mount.node, place(here / "b")) == 2
    with (here / "b").open("r+b") as old, (here / "c").open("wb") as new:
        new.write(b"takes its place")
        (here / "c").rename(here / "b")
        new.write(b"!")
        old.write(b"nobody sees this")
    saved(mount, here / "b", b"takes its place!")
    assert heads(mount.node, place(here / "b")) == 1
    assert os.listdir(here) == ["b"]


def test_a_directory_is_renamed_right_after_its_files_were_written(mount: VolumeMount, here: Path) -> None:
    (here / "d").mkdir()
    for number in range(30):
        (here / "d" / str(number)).write_bytes(b"%d" % number)
    (here / "d").rename(here / "e")
    all_saved(mount)
    assert names(mount.node, f"film:/{here.name}") == ["e"]
    for number in range(30):
        assert (here / "e" / str(number)).read_bytes() == b"%d" % number
        assert read(mount.node, f"film:/{here.name}/e/{number}") == b"%d" % number


def test_removed_right_after_it_was_written(mount: VolumeMount, here: Path) -> None:
    for number in range(20):
        path = here / str(number)
        path.write_bytes(b"x")
        path.unlink()
    all_saved(mount)
    assert os.listdir(here) == names(mount.node, f"film:/{here.name}") == []


def test_attributes_of_a_file_that_is_open(mount: VolumeMount, here: Path) -> None:
    path = here / "a"
    with path.open("wb") as file:
        file.write(b"x")
        file.flush()
        os.fchmod(file.fileno(), 0o4755)
        os.utime(file.fileno(), ns=(10**18, 10**18 + 7))
        os.setxattr(file.fileno(), "user.k", b"v")
        os.setxattr(file.fileno(), "user.large", b"v" * 20_000)
    saved(mount, path, b"x")
    assert path.stat().st_mtime_ns == 10**18 + 7
    assert path.stat().st_mode & 0o7777 == 0o4755
    assert os.getxattr(path, "user.k") == b"v"
    until("the large one is kept", lambda: len(os.getxattr(path, "user.large")) == 20_000)
    assert told(mount.node, place(path)).mtime_ns == 10**18 + 7


def test_copies_within_the_mount(mount: VolumeMount, here: Path) -> None:
    data = os.urandom(9 * MIB)
    (here / "a").write_bytes(data)
    with (here / "a").open("rb") as source, (here / "b").open("wb") as target:
        done = 0
        while done < len(data):
            done += os.copy_file_range(source.fileno(), target.fileno(), len(data) - done)
    saved(mount, here / "b", data)
    subprocess.run(["cp", "--sparse=always", str(here / "b"), str(here / "c")], check=True)
    saved(mount, here / "c", data)


def test_what_another_program_saves_is_seen(mount: VolumeMount, here: Path, tmp_path: Path) -> None:
    path = here / "a"
    path.write_bytes(b"mine")
    saved(mount, path, b"mine")
    write(mount.node, place(path), b"theirs, and longer", tmp_path)
    until("it is seen", lambda: path.read_bytes() == b"theirs, and longer")
    with path.open("r+b") as file:
        file.write(b"again")
    saved(mount, path, b"agains, and longer")
    assert heads(mount.node, place(path)) == 1


def test_errors(mount: VolumeMount, here: Path) -> None:
    (here / "a").write_bytes(b"x")
    with (here / "a").open("rb") as file:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.write(file.fileno(), b"x")
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            os.ftruncate(file.fileno(), 0)
    with (here / "a").open("wb") as file, pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.read(file.fileno(), 1)


# programs --------------------------------------------------------------------------------------------------------


def run(*command: str | Path, timeout: float = 100) -> bytes:
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    return done.stdout


def test_dd_with_fsync(mount: VolumeMount, here: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(os.urandom(20 * MIB))
    run("dd", f"if={tmp_path / 'data'}", f"of={here / 'a'}", "bs=64k", "conv=fsync")
    run("cmp", tmp_path / "data", here / "a")
    saved(mount, here / "a", (tmp_path / "data").read_bytes())


def test_git(mount: VolumeMount, here: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    run("git", "init", "-q", source)
    for number in range(40):
        (source / f"f{number}").write_bytes(Random(number).randbytes(number * 300))
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    run("git", "-C", source, "add", ".")
    run("git", "-C", source, *identity, "commit", "-qm", "one")
    run("git", "clone", "-q", "--no-hardlinks", source, here / "clone")
    assert run("git", "-C", here / "clone", "status", "--short") == b""
    (here / "clone" / "f3").write_bytes(b"changed")
    run("git", "-C", here / "clone", *identity, "commit", "-qam", "two")
    run("git", "-C", here / "clone", "gc", "-q")
    run("git", "-C", here / "clone", "checkout", "-q", "HEAD~1")
    run("git", "-C", here / "clone", "fsck", "--strict")
    assert (here / "clone" / "f3").read_bytes() == (source / "f3").read_bytes()


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite(mount: VolumeMount, here: Path, journal: str) -> None:
    import contextlib
    import sqlite3

    path = here / f"{journal}.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA journal_mode={journal}")
        database.execute("CREATE TABLE t (x INTEGER, y BLOB)")
        for number in range(100):
            with database:
                database.execute("INSERT INTO t VALUES (?, ?)", (number, os.urandom(2000)))
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT sum(x) FROM t").fetchone() == (4950,)


@pytest.mark.parametrize("engine", ["psync", "mmap"])
def test_fio_verifies(mount: VolumeMount, here: Path, engine: str) -> None:
    try:
        subprocess.run(["fio", "--version"], check=True, capture_output=True)
    except OSError:
        pytest.skip("fio is not installed")
    words = ["--name=v", "--size=16m", "--rw=randwrite", "--bs=4k", "--verify=crc32c", "--do_verify=1"]
    run("fio", *words, f"--filename={here / engine}", f"--ioengine={engine}", "--verify_fatal=1", "--fsync=256")


@pytest.mark.parametrize("seed", range(FSX_SEEDS))
def test_a_file_and_a_bytearray(mount: VolumeMount, here: Path, seed: int) -> None:
    """What programs can do to a file, in random order, closing it now and then."""
    shadow = ShadowFile(here / str(seed), seed)
    try:
        shadow.run(FSX_STEPS // FSX_SEEDS)
    finally:
        shadow.close()
    saved(mount, shadow.path, bytes(shadow.data))


# lives and dies --------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Generator[Callable[[], VolumeMount]]:
    """Return what mounts a volume of a node of its own; the node is there between mounts."""
    node = Node(tmp_path / "home", "studio")
    with running(node), ExitStack() as stack:
        create(node, "film")
        yield lambda: stack.enter_context(mounted(node, tmp_path / "mount", "film"))


def test_what_was_synced_before_the_mount_was_killed(alone: Callable[[], VolumeMount]) -> None:
    mount = alone()
    data = os.urandom(3 * MIB)
    file = os.open(mount.path / "new", os.O_WRONLY | os.O_CREAT)
    os.write(file, data)
    os.fsync(file)
    (mount.path / "d").mkdir()
    (mount.path / "new").rename(mount.path / "d" / "moved")
    os.fsync(file)
    mount.kill()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.close(file)
    until("it is a version", lambda: left(mount.node) == [])
    assert read(mount.node, "film:/d/moved") == data
    again = alone()
    assert (again.path / "d" / "moved").read_bytes() == data


def test_the_daemon_is_killed_while_files_are_written(alone: Callable[[], VolumeMount]) -> None:
    mount = alone()
    with (mount.path / "open").open("wb", buffering=0) as file:
        file.write(b"before ")
        os.fsync(file.fileno())
        mount.node.kill()
        file.write(b"after")
        assert (mount.path / "open").read_bytes() == b"before after"
    mount.node.start()
    until("it is saved", lambda: left(mount.node) == [])
    assert read(mount.node, "film:/open") == b"before after"
    assert versions(mount.node, "film:/open") == 1
    (mount.path / "later").write_bytes(b"x")
    assert (mount.path / "later").read_bytes() == b"x"


def test_unmounted_with_what_was_just_written(alone: Callable[[], VolumeMount]) -> None:
    mount = alone()
    for number in range(20):
        (mount.path / str(number)).write_bytes(b"%d" % number)
    mount.process.terminate()
    mount.process.wait(20)
    assert left(mount.node) == []
    assert [read(mount.node, f"film:/{number}") for number in range(20)] == [b"%d" % n for n in range(20)]
