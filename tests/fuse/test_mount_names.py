"""Names and attributes of a volume, through a mount."""

import ctypes
import errno
import os
import stat
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.fuse.posix_cases import raises
from tests.fuse.volume_mounts import VolumeMount, mounted, settled
from tests.nodes import Node, running, until
from tests.volume_nodes import create, names, place, read, write
from tests.volume_nodes import stat as told

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Generator[Node]:
    node = Node(tmp_path_factory.mktemp("node") / "home", "studio")
    with running(node):
        yield node


@pytest.fixture(scope="module")
def mount(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Generator[VolumeMount]:
    create(node, "film")
    with mounted(node, tmp_path_factory.mktemp("mounts") / "film", "film") as mount:
        yield mount


@pytest.fixture
def here(mount: VolumeMount, request: pytest.FixtureRequest) -> Path:
    """An empty directory in the mount, of the test's name."""
    path = mount.path / str(request.node.name)  # pyright: ignore[reportUnknownMemberType]
    path.mkdir()
    return settled(path)


def save(node: Node, path: Path, data: bytes, scratch: Path) -> None:
    """Save a file into the volume, not through the mount; return when that shows it."""
    write(node, f"film:/{path.parent.name}/{path.name}", data, scratch)
    wait_for(lambda: path.exists() and path.stat().st_size == len(data))


def test_a_file_is_seen_and_read(node: Node, here: Path, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    save(node, here / "a.mov", data, tmp_path)
    save(node, here / "small", b"hello", tmp_path)
    save(node, here / "empty", b"", tmp_path)
    assert sorted(os.listdir(here)) == ["a.mov", "empty", "small"]
    assert (here / "a.mov").read_bytes() == data
    assert (here / "small").read_bytes() == b"hello"
    assert (here / "empty").read_bytes() == b""
    status = (here / "a.mov").stat()
    assert (status.st_size, status.st_uid, stat.S_ISREG(status.st_mode)) == (len(data), os.getuid(), True)
    with (here / "a.mov").open("rb") as file:
        file.seek(1_000_000)
        assert file.read(10) == data[1_000_000:1_000_010]


def test_what_is_saved_elsewhere_is_seen_at_once(node: Node, here: Path, tmp_path: Path) -> None:
    """On the same node there is nothing to wait for but the mount's own daemon."""
    file = here / "a"
    assert not file.exists()  # that it is absent is known to the kernel now
    save(node, file, b"one", tmp_path)
    assert file.read_bytes() == b"one"
    with file.open("rb") as before:
        save(node, file, b"three", tmp_path)
        assert file.read_bytes() == b"three"
        assert before.read() == b"one"  # who had it open goes on with what it was
    with node.client() as client:
        client.file_remove([place(f"film:/{here.name}/a")])
    wait_for(lambda: not file.exists())
    assert os.listdir(here) == []


def test_directories_are_made_moved_and_removed(node: Node, here: Path) -> None:
    (here / "reel").mkdir(mode=0o750)
    assert names(node, f"film:/{settled(here).name}") == ["reel"]
    assert stat.S_IMODE((here / "reel").stat().st_mode) == 0o750
    with raises(errno.EEXIST):
        (here / "reel").mkdir()
    (here / "reel" / "below").mkdir()
    with raises(errno.ENOTEMPTY):
        (here / "reel").rmdir()
    (here / "reel").rename(here / "take")
    assert (here / "take" / "below").is_dir()
    assert not (here / "reel").exists()
    with raises(errno.EINVAL):
        (here / "take").rename(here / "take" / "below" / "again")
    (here / "take" / "below").rmdir()
    (here / "take").rmdir()
    assert names(node, f"film:/{settled(here).name}") == []
    assert os.listdir(here) == []


def test_files_are_moved_linked_and_removed(node: Node, here: Path, tmp_path: Path) -> None:
    save(node, here / "a", b"one", tmp_path)
    save(node, here / "b", b"two", tmp_path)
    number = (here / "a").stat().st_ino
    (here / "d").mkdir()
    (here / "a").rename(here / "d" / "c")
    assert (here / "d" / "c").stat().st_ino == number
    os.link(here / "d" / "c", here / "again")
    assert (here / "again").stat().st_ino == number
    assert (here / "again").stat().st_nlink == 2
    (here / "d" / "c").unlink()
    assert (here / "again").stat().st_nlink == 1
    assert (here / "again").read_bytes() == b"one"
    with raises(errno.ENOENT):
        os.stat(here / "d" / "c")
    (here / "again").rename(here / "b")  # a new version of b
    assert (here / "b").read_bytes() == b"one"
    assert (here / "b").stat().st_ino == number
    assert names(node, f"film:/{settled(here).name}") == ["b", "d"]
    assert read(node, f"film:/{settled(here).name}/b") == b"one"


def test_two_names_change_places(node: Node, here: Path, tmp_path: Path) -> None:
    save(node, here / "a", b"one", tmp_path)
    (here / "d").mkdir()
    save(node, here / "b", b"two", tmp_path)
    numbers = (here / "a").stat().st_ino, (here / "b").stat().st_ino
    exchange(here / "a", here / "b")
    assert ((here / "a").read_bytes(), (here / "b").read_bytes()) == (b"two", b"one")
    assert ((here / "b").stat().st_ino, (here / "a").stat().st_ino) == numbers
    exchange(here / "a", here / "d")
    assert (here / "a").is_dir()
    assert (here / "d").read_bytes() == b"two"
    with raises(errno.EEXIST):
        renameat2(here / "b", here / "d", 1)


def test_symlinks(node: Node, here: Path) -> None:
    (here / "link").symlink_to("../far/away")
    assert os.readlink(here / "link") == "../far/away"
    assert (here / "link").lstat().st_size == len("../far/away")
    assert names(node, f"film:/{settled(here).name}") == ["link"]
    (here / "link").unlink()
    assert os.listdir(here) == []


def test_modes_and_times(node: Node, here: Path, tmp_path: Path) -> None:
    save(node, here / "a", b"one", tmp_path)
    changed = (here / "a").stat().st_ctime_ns
    (here / "a").chmod(0o640)
    os.utime(here / "a", ns=(1_000_000_007, 2_000_000_009))
    status = (here / "a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_atime_ns, status.st_mtime_ns) == (
        0o640,
        1_000_000_007,
        2_000_000_009,
    )
    assert status.st_ctime_ns > changed
    assert told(node, f"film:/{settled(here).name}/a").mtime_ns == 2_000_000_009
    os.utime(here, ns=(5, 6))
    assert here.stat().st_mtime_ns == 6
    (here / "d").mkdir()
    assert here.stat().st_mtime_ns > 6


def test_nobody_else_gets_a_file(here: Path) -> None:
    (here / "d").mkdir()
    os.chown(here / "d", os.getuid(), os.getgid())
    with raises(errno.EPERM):
        os.chown(here / "d", os.getuid() + 1, -1)
    with raises(errno.EPERM):
        os.chown(here / "d", -1, os.getgid() + 1)


def test_extended_attributes(node: Node, here: Path, tmp_path: Path) -> None:
    save(node, here / "a", b"one", tmp_path)
    for path in (here / "a", here):
        os.setxattr(path, "user.colour", b"red")
        os.setxattr(path, "user.large", b"x" * 40_000)
        assert sorted(os.listxattr(path)) == ["user.colour", "user.large"]
        assert os.getxattr(path, "user.colour") == b"red"
        assert os.getxattr(path, "user.large") == b"x" * 40_000
        with raises(errno.EEXIST):
            os.setxattr(path, "user.colour", b"blue", os.XATTR_CREATE)
        with raises(errno.ENODATA):
            os.setxattr(path, "user.none", b"blue", os.XATTR_REPLACE)
        os.removexattr(path, "user.colour")
        with raises(errno.ENODATA):
            os.getxattr(path, "user.colour")
        with raises(errno.ENODATA):
            os.removexattr(path, "user.colour")
        assert os.listxattr(path) == ["user.large"]
    with raises(errno.EOPNOTSUPP):
        os.setxattr(here / "a", "trusted.colour", b"red")
    assert [
        each.name for each in told(node, f"film:/{settled(here).name}/a").xattrs
    ] == []  # the large one is an object


def test_long_names_and_deep_paths(here: Path) -> None:
    (here / ("n" * 255)).mkdir()
    assert os.listdir(here) == ["n" * 255]
    for call in (os.mkdir, os.stat, os.rmdir):
        with raises(errno.ENAMETOOLONG):
            call(here / ("n" * 256))
    deep = here
    for number in range(100):
        deep /= f"{number}"
        deep.mkdir()
    assert deep.is_dir()
    (here / b"\xff\xfe".decode("utf-8", "surrogateescape")).mkdir()
    assert b"\xff\xfe" in os.listdir(bytes(here))


def test_case_does_not_count_but_is_kept(here: Path) -> None:
    (here / "Reel").mkdir()
    assert (here / "reel").is_dir()
    with raises(errno.EEXIST):
        (here / "REEL").mkdir()
    (here / "Reel").rename(here / "other")  # from one case to the other the kernel does nothing: it is the same
    (here / "other").rename(here / "reel")
    assert os.listdir(here) == ["reel"]
    (here / "REEL").rmdir()
    assert not (here / "reel").exists()
    assert not (here / "REEL").exists()


def test_where_case_counts(node: Node, tmp_path: Path) -> None:
    create(node, "strict", options={"case": "sensitive"})
    with mounted(node, tmp_path / "strict", "strict") as mount:
        (mount.path / "a").mkdir()
        (mount.path / "A").mkdir()
        assert sorted(os.listdir(mount.path)) == ["A", "a"]


def test_room(node: Node, mount: VolumeMount, tmp_path: Path) -> None:
    status = os.statvfs(mount.path)
    assert status.f_namemax == 255
    disk = os.statvfs(node.home)
    assert status.f_blocks * status.f_frsize == disk.f_blocks * disk.f_frsize
    assert 0 < status.f_bavail * status.f_frsize <= disk.f_bavail * disk.f_frsize + (64 << 20)
    create(node, "narrow", options={"quota": "1M"})
    write(node, "narrow:/a", b"x" * 250_000, tmp_path)
    with mounted(node, tmp_path / "narrow", "narrow") as narrow:
        status = os.statvfs(narrow.path)
        assert status.f_blocks * status.f_frsize <= 1_048_576
        assert 700_000 < status.f_bavail * status.f_frsize <= 800_000


def test_all_volumes_each_as_a_directory(node: Node, mount: VolumeMount, tmp_path: Path) -> None:
    create(node, "one")
    with mounted(node, tmp_path / "all") as every:
        assert {"film", "models", "one"} <= set(os.listdir(every.path))
        (every.path / "one" / "d").mkdir()
        settled(every.path / "one")
        assert names(node, "one:/") == ["d"]
        with raises(errno.EXDEV):
            (every.path / "one" / "d").rename(every.path / "film" / "d")
        with raises(errno.EPERM):
            (every.path / "new").mkdir()
        with raises(errno.EROFS):
            (every.path / "models" / "d").mkdir()
        assert not (every.path / "two").exists()
        create(node, "two")
        wait_for(lambda: (every.path / "two").is_dir())
        with node.client() as client:
            client.volume_remove("two", yes=True)
        wait_for(lambda: "two" not in os.listdir(every.path))


def test_owners_are_numbers_when_asked_for(node: Node, tmp_path: Path) -> None:
    create(node, "shared")
    with mounted(node, tmp_path / "shared", "shared", "--numeric-owners") as shared:
        (shared.path / "d").mkdir()
        os.chown(shared.path / "d", 4242, 4343)
        status = (shared.path / "d").stat()
        assert (status.st_uid, status.st_gid) == (4242, 4343)
        settled(shared.path)
        assert told(node, "shared:/d").uid == 4242
    with mounted(node, tmp_path / "again", "shared") as mine:
        assert (mine.path / "d").stat().st_uid == os.getuid()


def exchange(one: Path, other: Path) -> None:
    renameat2(one, other, 2)


def renameat2(one: Path, other: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def wait_for(holds: Callable[[], bool]) -> None:
    until("the mount shows it", holds)


def test_find_and_ls_agree(here: Path) -> None:
    for number in range(50):
        (here / f"d{number:02}").mkdir()
    listed = subprocess.run(["ls", "-la", here], capture_output=True, text=True, check=True).stdout
    assert listed.count("\n") == 53
    found = subprocess.run(["find", here, "-type", "d"], capture_output=True, text=True, check=True).stdout
    assert found.count("\n") == 51
