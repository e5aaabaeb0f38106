"""What our own loop does with a real kernel: passthrough, interrupts, bugs, and how a mount ends."""

import errno
import fcntl
import mmap
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tbshare.errors import MountFailed
from tbshare.fuse import mounting
from tests.fuse.mounts import Mount, another, mounted, said
from tests.fuse.system_calls import raises
from tests.nodes import until

pytestmark = [
    pytest.mark.mount,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mount(2) takes root"),
]


@pytest.fixture
def mount(tmp_path: Path) -> Generator[Mount]:
    with mounted(tmp_path) as mount:
        yield mount


@pytest.fixture
def passing(mount: Mount) -> Mount:
    """A mount whose kernel lets files pass through."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert release is not None
    if tuple(map(int, release.groups())) < (6, 9):
        pytest.skip("passthrough came with Linux 6.9")
    below = subprocess.run(["stat", "-f", "-c", "%T", mount.source], capture_output=True, text=True, check=True)
    if "overlay" in below.stdout:
        pytest.skip("files on overlayfs do not pass through")
    return mount


def mode(path: Path) -> str:
    return os.getxattr(path, "user.io-mode").decode()


# --- passthrough ----------------------------------------------------------------------------------------------


def test_complete_files_are_read_written_and_mapped_by_the_kernel(passing: Mount) -> None:
    data = os.urandom(3 << 20)
    (passing.path / "a").write_bytes(data)
    assert (passing.path / "a").read_bytes() == data
    with (passing.path / "a").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[1 << 20 : 2 << 20] == data[1 << 20 : 2 << 20]
        mapped[5:10] = b"hello"
    assert (passing.source / "a").read_bytes() == data[:5] + b"hello" + data[10:]
    assert (passing.counts.get("read", 0), passing.counts.get("write", 0)) == (0, 0)


def test_files_without_a_backing_are_asked_for(passing: Mount) -> None:
    (passing.source / "a.cached").write_bytes(b"a" * 10_000)
    with (passing.path / "a.cached").open("rb") as file:
        assert file.read() == b"a" * 10_000
        assert mode(passing.path / "a.cached") == "cached"
    assert passing.counts["read"] > 0


def test_a_reader_and_a_writer_have_one_backing(passing: Mount) -> None:
    path = passing.path / "log"
    with path.open("wb") as writer, path.open("rb") as reader:
        with path.open("ab"):
            assert mode(path) == "passthrough"
        for number in range(10):
            writer.write(b"line %d\n" % number)
            writer.flush()
            assert reader.read() == b"line %d\n" % number
        assert mode(path) == "passthrough"
    assert passing.counts.get("read", 0) == 0


def test_an_inode_has_one_mode_until_the_last_handle_is_gone(passing: Mount) -> None:
    """A cached handle is open: the next open, which could pass through, does not fail with EIO but is cached."""
    plain, other = passing.source / "a.cached", passing.source / "b"
    plain.write_bytes(b"x" * 9000)
    os.link(plain, other)  # one inode, two names: the second name is opened with a backing
    with (passing.path / "a.cached").open("rb") as cached:
        assert cached.read(10) == b"x" * 10
        with (passing.path / "b").open("rb") as second:
            assert mode(passing.path / "b") == "cached"
            assert second.read() == b"x" * 9000
        mapped = mmap.mmap(cached.fileno(), 0, access=mmap.ACCESS_READ)
    with (passing.path / "b").open("rb") as third:  # the map alone holds the mode
        assert mode(passing.path / "b") == "cached"
        assert third.read() == mapped[:]
    mapped.close()
    until("all is released", lambda: not mode(passing.path / "b"))  # nobody waits for RELEASE
    with (passing.path / "b").open("rb") as last:
        assert mode(passing.path / "b") == "passthrough"
        assert last.read() == b"x" * 9000


@pytest.mark.soak  # once in some twenty runs the open still goes to the old inode
def test_a_file_that_became_complete_is_a_new_inode_of_the_same_number(passing: Mount) -> None:
    path = passing.path / "model.cached"
    (passing.source / "model.cached").write_bytes(b"m" * 100_000)
    before = path.open("rb")
    mapped = mmap.mmap(before.fileno(), 0, access=mmap.ACCESS_READ)
    number = os.fstat(before.fileno()).st_ino
    assert before.read(10) == b"m" * 10
    os.setxattr(path, "user.complete", b"")

    def passes_through() -> bool:
        with path.open("rb"):
            return mode(path) == "passthrough"

    until("an open passes through", passes_through)  # the notice is on its way
    with path.open("rb") as after:
        assert os.fstat(after.fileno()).st_ino == number
        assert after.read() == b"m" * 100_000
    assert before.read(10) == b"m" * 10  # the old descriptor and the old map live on
    assert mapped[90_000:] == b"m" * 10_000
    before.close()
    mapped.close()
    assert "Input/output" not in passing.log


def test_sizes_and_times_of_a_file_written_by_the_kernel_are_right(passing: Mount) -> None:
    path = passing.path / "a"
    with path.open("wb") as file:
        os.utime(path, ns=(1, 1))
        for number in range(1, 5):
            file.write(b"x" * 1000)
            file.flush()
            assert path.stat().st_size == number * 1000
        assert path.stat().st_mtime_ns > 1


# --- requests that wait, fail, or end early -------------------------------------------------------------------

READS = "import sys; print('reads', flush=True); open(sys.argv[1], 'rb').read()"


@pytest.fixture
def slow(tmp_path: Path) -> Generator[Mount]:
    """A mount without passthrough, with a file whose bytes never come."""
    with mounted(tmp_path, words=["no_passthrough"]) as mount:
        (mount.source / "stuck").write_bytes(b"x" * 100_000)
        yield mount


def test_what_waits_holds_up_nothing_else_and_its_asker_can_be_killed(slow: Mount) -> None:
    with another(READS, slow.path / "stuck") as reader:
        assert said(reader) == "reads"
        until("the read has come", lambda: slow.counts.get("read", 0) > 0)
        (slow.path / "other").write_bytes(b"other")
        assert (slow.path / "other").read_bytes() == b"other"
        assert "stuck" in os.listdir(slow.path)
        assert (slow.path / "stuck").stat().st_size == 100_000
        reader.kill()
        assert reader.wait() == -signal.SIGKILL


def test_a_bug_is_eio_and_the_mount_lives(slow: Mount) -> None:
    (slow.source / "broken").write_bytes(b"x")
    with raises(errno.EIO):
        (slow.path / "broken").read_bytes()
    (slow.path / "other").write_bytes(b"other")
    assert (slow.path / "other").read_bytes() == b"other"
    assert "ZeroDivisionError" in slow.log


def test_answers_that_come_later(slow: Mount) -> None:
    data = os.urandom(2_000_000)
    (slow.path / "later").write_bytes(data)
    assert (slow.path / "later").read_bytes() == data
    assert slow.counts["read"] > 0


def test_many_writers_at_a_time_keep_their_bytes(slow: Mount) -> None:
    script = "import os,sys; open(sys.argv[1], 'wb', buffering=0).write(sys.argv[2].encode() * 500_000)"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, slow.path / f"later {letter}", letter])
        for letter in "abcdefgh"
    ]
    assert [writer.wait() for writer in writers] == [0] * 8
    for letter in "abcdefgh":
        assert (slow.source / f"later {letter}").read_bytes() == letter.encode() * 500_000


def test_a_lock_that_is_waited_for_can_be_given_up(slow: Mount) -> None:
    script = (
        "import fcntl,sys; f = open(sys.argv[1], 'w'); print('waits', flush=True); fcntl.flock(f, fcntl.LOCK_EX)"
    )
    with (slow.path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with another(script, slow.path / "lock") as other:
            assert said(other) == "waits"
            other.send_signal(signal.SIGTERM)
            assert other.wait() == -signal.SIGTERM
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- how a mount ends -----------------------------------------------------------------------------------------


def test_unmounting_ends_the_process(mount: Mount) -> None:
    mounting.unmount(str(mount.path))
    assert mount.wait() == 0
    assert os.listdir(mount.path) == []
    assert mounting.mounted_at(str(mount.path)) is None


def test_a_killed_mount_leaves_no_broken_mount_point(mount: Mount) -> None:
    (mount.path / "a").write_bytes(b"a")
    with (mount.path / "a").open("rb"):
        mount.process.kill()
        mount.wait()
        until("it is unmounted", lambda: mounting.mounted_at(str(mount.path)) is None)
    assert os.listdir(mount.path) == []
    assert (mount.source / "a").read_bytes() == b"a"


def test_a_broken_mount_point_is_found_and_mended(tmp_path: Path) -> None:
    with mounted(tmp_path, words=["no_guard"]) as mount:
        directory = str(mount.path)
        assert not mounting.is_broken(directory)
        mount.process.kill()
        mount.wait()
        assert mounting.is_broken(directory)
        assert mounting.recover(directory)
        assert not mounting.is_broken(directory)
        assert not mounting.recover(directory)


def test_who_keeps_a_mount_busy_is_named(mount: Mount) -> None:
    (mount.path / "open.txt").write_bytes(b"x")
    script = "import sys; f = open(sys.argv[1]); print('open', flush=True); input()"
    with another(script, mount.path / "open.txt") as user:
        assert said(user) == "open"
        assert [(found.pid, found.path) for found in mounting.users_of(str(mount.path))] == [
            (user.pid, str(mount.path / "open.txt"))
        ]
        with pytest.raises(MountFailed, match=rf"is in use by python\S* \(process {user.pid}: .*open.txt\)"):
            mounting.unmount(str(mount.path))
        mounting.unmount(str(mount.path), lazily=True)
        assert mounting.mounted_at(str(mount.path)) is None
    assert mount.wait() == 0


def test_a_map_and_a_working_directory_keep_it_busy(mount: Mount) -> None:
    (mount.path / "a").write_bytes(b"x" * 5000)
    script = (
        "import mmap,os,sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, access=1); f.close()\n"
        "print('mapped', flush=True); input()"
    )
    below = "import os,sys; os.chdir(sys.argv[1]); print('below', flush=True); input()"
    with another(script, mount.path / "a") as mapping, another(below, mount.path) as standing:
        assert (said(mapping), said(standing)) == ("mapped", "below")
        assert {user.pid for user in mounting.users_of(str(mount.path))} == {mapping.pid, standing.pid}


def test_where_nothing_can_be_mounted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name, reason in (("none", "not there"), ("file", "not a directory")):
        with pytest.raises(MountFailed, match=reason):
            mounting.mount(str(tmp_path / name), mounting.MountOptions())
    with pytest.raises(MountFailed, match="cannot be unmounted"):
        mounting.unmount(str(tmp_path))
