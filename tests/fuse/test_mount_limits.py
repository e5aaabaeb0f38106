"""Where a mount has to say no, and how: quotas, full disks, other owners, long names; and how much it can show."""

import errno
import os
import subprocess
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.disks import sharing_disk
from tests.fuse.system_calls import as_nobody, raises
from tests.fuse.volume_mounts import VolumeMount, mounted, settled
from tests.nodes import MIB, Node, running, until
from tests.staged import left
from tests.volume_nodes import create, names, read

pytestmark = pytest.mark.mount
MANY = 2000
DEPTH = 128
QUOTA_BYTES = 3_000_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Generator[Node]:
    node = Node(tmp_path_factory.mktemp("node") / "home", "studio")
    with running(node):
        create(node, "film")
        create(node, "tight", options={"quota": str(QUOTA_BYTES)})
        yield node


@pytest.fixture(scope="module")
def mount(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Generator[VolumeMount]:
    with mounted(node, tmp_path_factory.mktemp("film"), "film") as mount:
        yield mount


def all_saved(node: Node) -> None:
    until("everything is saved", lambda: left(node) == [])


def test_a_quota(node: Node, tmp_path: Path) -> None:
    with mounted(node, tmp_path / "tight", "tight") as mount:
        room = os.statvfs(mount.path)
        assert room.f_blocks * room.f_frsize <= QUOTA_BYTES
        (mount.path / "a").write_bytes(b"a" * 2_000_000)
        for name in ("b", "a"):  # a new file, and one that grows; close(2) says it, nobody calls fsync
            with raises(errno.EDQUOT), (mount.path / name).open("ab") as file:
                file.write(b"b" * 2_000_000)
        with (mount.path / "c").open("wb", buffering=0) as file:
            file.write(b"b" * 2_000_000)
            with raises(errno.EDQUOT):
                os.fsync(file.fileno())
            file.truncate(1000)  # what fits can be saved
        assert names(node, "tight:/")[0] == "a"
        assert read(node, "tight:/a") == b"a" * 2_000_000  # nothing half-written
        (mount.path / "b").unlink()
        os.truncate(mount.path / "a", 1_500_000)
        (mount.path / "d").write_bytes(b"d" * 500_000)
        all_saved(node)
        assert names(node, "tight:/") == ["a", "c", "d"] == sorted(os.listdir(mount.path))
        assert read(node, "tight:/a") == b"a" * 1_500_000


def test_a_full_disk(tmp_path: Path) -> None:
    with ExitStack() as stack:
        disk = stack.enter_context(sharing_disk(tmp_path, 320))
        node = Node(disk / "home", "studio", '[store]\nkeep_free = "10MB"\n')
        stack.enter_context(running(node))
        create(node, "film")
        path = stack.enter_context(mounted(node, tmp_path / "mount", "film")).path
        (path / "kept").write_bytes(b"k" * MIB)
        settled(path)
        with raises(errno.ENOSPC), (path / "large").open("wb", buffering=0) as file:
            while True:
                file.write(os.urandom(4 * MIB))
        assert (path / "kept").read_bytes() == b"k" * MIB
        with raises(errno.ENOSPC):  # a new file is refused when it is made, or when it is written
            (path / "more").write_bytes(os.urandom(40 * MIB))
        assert "kept" in os.listdir(path)
        assert read(node, "film:/kept") == b"k" * MIB
        until("it is told", lambda: os.statvfs(path).f_bavail * os.statvfs(path).f_frsize < 40 * MIB)


def test_who_owns_what(node: Node, mount: VolumeMount) -> None:
    path = mount.path / "owned"
    path.write_bytes(b"x")
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    os.chown(path, os.getuid(), os.getgid())  # what it is already
    for owner in ((1000, -1), (-1, 1000), (65534, 65534)):
        with raises(errno.EPERM):
            os.chown(path, *owner)
    assert as_nobody("import os; os.listdir('.')", path) != ""  # others do not get in at all
    all_saved(node)


def test_numeric_owners_and_other_users(node: Node, tmp_path: Path) -> None:
    with mounted(node, tmp_path / "all", "film", "--allow-other", "--numeric-owners") as mount:
        path = mount.path / "theirs"
        path.write_bytes(b"x")
        os.chown(path, 65534, 65534)
        path.chmod(0o600)
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)
        closed = mount.path / "closed"
        closed.write_bytes(b"x")
        closed.chmod(0o600)
        mount.path.chmod(0o777)
        assert as_nobody("open('theirs', 'ab').write(b'y'); open('new', 'w').write('z')", path) == ""
        assert "PermissionError" in as_nobody("open('closed')", path)
        assert "PermissionError" in as_nobody("import os; os.chown('theirs', 0, 0)", path)
        assert (mount.path / "new").stat().st_uid == 65534
        assert path.read_bytes() == b"xy"
        settled(mount.path)
        all_saved(node)
    with mounted(node, tmp_path / "all", "film", "--numeric-owners") as mount:
        assert (mount.path / "theirs").stat().st_uid == 65534  # it is kept
        assert (mount.path / "new").stat().st_uid == 65534
        (mount.path / "theirs").unlink()


def test_names_and_depth(node: Node, mount: VolumeMount) -> None:
    top = mount.path / "names"
    top.mkdir()
    longest = [b"a" * 255, "é".encode() * 127, "日".encode() * 85]
    odd = [b"\xff\xfe", b"new\nline", b"-rf", b" a ", b"a:b", b"a\\b", b"x (from y)", b"CON", b"*?"]
    for name in (*longest, *odd):
        path = os.path.join(os.fsencode(top), name)
        with open(path, "wb") as file:
            file.write(name)
        os.rename(path, os.path.join(os.fsencode(top), b"t"))
        os.rename(os.path.join(os.fsencode(top), b"t"), path)
    assert sorted(os.listdir(os.fsencode(top))) == sorted([*longest, *odd])
    with raises(errno.ENAMETOOLONG):
        (top / ("a" * 256)).touch()
    deepest = mount.path.joinpath(*(f"d{depth}" for depth in range(DEPTH - 1)))
    deepest.mkdir(parents=True)
    (deepest / "file").write_text("deep")
    with raises(errno.ENAMETOOLONG):
        (deepest / "d" / "d").mkdir(parents=True)
    (mount.path / "d0").rename(mount.path / "e0")
    assert Path(str(deepest).replace("/d0/", "/e0/"), "file").read_text() == "deep"
    settled(top)
    all_saved(node)
    for name in (*longest, *odd):
        with open(os.path.join(os.fsencode(top), name), "rb") as file:
            assert file.read() == name
    subprocess.run(["rm", "-r", mount.path / "e0", top], check=True)


def test_many_files(node: Node, mount: VolumeMount) -> None:
    top = mount.path / "many"
    top.mkdir()
    for number in range(MANY):
        (top / str(number)).write_bytes(b"%d" % number)
    listed = subprocess.run(["ls", "-l", top], capture_output=True, check=True).stdout
    assert len(listed.splitlines()) == MANY + 1
    settled(top)
    all_saved(node)
    assert len(names(node, "film:/many")) == MANY
    told = subprocess.run(["df", "--output=size,used,avail", mount.path], capture_output=True, check=True).stdout
    size, used, available = [int(word) for word in told.split()[-3:]]
    assert size >= available > 0
    assert used >= 0


def test_a_volume_that_is_only_read(tmp_path: Path) -> None:
    here, far = Node(tmp_path / "here", "here"), Node(tmp_path / "far", "far")
    with running(here, far):
        create(here, "mine", mode="owner")
        until("it is known there", lambda: _knows(far))
        with mounted(far, tmp_path / "mine", "mine") as mount:
            path = mount.path
            for change in (lambda: (path / "a").write_bytes(b"x"), (path / "d").mkdir, lambda: path.chmod(0)):
                with raises(errno.EROFS):
                    change()


def _knows(node: Node) -> bool:
    with node.client() as client:
        return any(line.name == "mine" for line in client.volume_list().volumes)
