"""The few things the store asks of a file system: durable names, clones, reserved space, true sizes."""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from tbshare.errors import DiskFull, StoreUnusable, TbshareError

# One write of 4 MiB to a new file took twice the CPU of sixteen of this size here (`bench/lane.py`).
WRITE_BYTES = 256 * 1024
COPY_BYTES = 4 * 1024 * 1024
MACOS = sys.platform == "darwin"
_F_FULLFSYNC = 51
_F_PREALLOCATE = 42
_F_SETLEASE, _F_GETLEASE = 1024, 1025
_FICLONE = 0x40049409
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_FLAG_SYNC = 0x1
_FIEMAP_EXTENT_LAST, _FIEMAP_EXTENT_SHARED = 0x1, 0x2000
_FIEMAP_EXTENT_UNWRITTEN = 0x800
_FIEMAP_UNSURE = 0x2 | 0x4 | 0x8 | 0x80 | 0x200  # unknown, delayed, encoded, encrypted, inline
_NO_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.ETXTBSY, errno.EPERM}
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "fuse.sshfs", "9p"}


def sync_file(descriptor: int) -> None:
    """Make a file's bytes durable. OSError: the bytes must be written again, the call never repeated."""
    if MACOS:
        fcntl.fcntl(descriptor, _F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if MACOS:
            fcntl.fcntl(descriptor, _F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a synced file its final name, durably. Whoever sees the name sees all of the bytes."""
    os.rename(temporary, final)
    sync_directory(final.parent)


def write_durably(final: Path, data: bytes, *, temporary: Path, mode: int = 0o600) -> None:
    """Create or replace a small file: after this returns, power loss leaves the new bytes, before it the old."""
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        write_all(descriptor, data, 0)
        sync_file(descriptor)
    finally:
        os.close(descriptor)
    publish(temporary, final)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Create a file, its bytes synced; its name is durable when its directory is synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(descriptor, data, 0)
        os.fchmod(descriptor, mode)
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create a directory if it is not there, and those above it, durably, private to the user."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def write_all(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of the bytes at an offset, in pieces of WRITE_BYTES. DiskFull when there is no room."""
    view = memoryview(data).cast("B")
    try:
        while len(view):
            written = os.pwrite(descriptor, view[:WRITE_BYTES], offset)
            view, offset = view[written:], offset + written
    except OSError as error:
        raise translated(error) from error


def read_into(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill the view from an offset; return how many bytes there were, fewer only at the end of the file."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def translated(error: OSError) -> Exception:
    """Return DiskFull for the errors that mean so, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("the disk is full", cure="tbshare du; tbshare gc --now")
    return error


def as_ours(error: BaseException) -> TbshareError:
    """Return the error to tell of something that a disk did."""
    failure = translated(error) if isinstance(error, OSError) else error
    if isinstance(failure, TbshareError):
        return failure
    text = failure.strerror if isinstance(failure, OSError) else ""
    return TbshareError(f"the disk of this node: {text or failure}", cure="tbshare status")


def reserve(descriptor: int, size: int) -> None:
    """Give a file its length and its disk space at once. DiskFull when there is none."""
    if size == 0:
        return
    try:
        if MACOS:
            # fstore_t: allocate all, from the physical end of the file
            request = struct.pack("IiqqQ", 4, 3, 0, size, 0)
            fcntl.fcntl(descriptor, _F_PREALLOCATE, request)
            os.ftruncate(descriptor, size)
        else:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
            os.ftruncate(descriptor, size)
            return
        raise translated(error) from error


def clone_file(source: int, destination: Path) -> int | None:
    """Make `destination` share all blocks of an open file; return its descriptor, or None where that cannot be."""
    if MACOS:
        return _clone_macos(source, destination)
    descriptor = os.open(destination, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.ioctl(descriptor, _FICLONE, source)
    except OSError as error:
        os.close(descriptor)
        os.unlink(destination)
        if error.errno in _NO_CLONE:
            return None
        raise translated(error) from error
    return descriptor


def can_clone(temporary: Path) -> bool:
    """Return whether files of the disk that this name is on can share blocks; tried out."""
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    other = temporary.with_name(temporary.name + "-clone")
    try:
        clone = clone_file(descriptor, other)
        if clone is not None:
            os.close(clone)
            other.unlink()
        return clone is not None
    finally:
        os.close(descriptor)
        temporary.unlink()


def _clone_macos(source: int, destination: Path) -> int | None:
    """Not run on macOS: fclonefileat(2)."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.fclonefileat(source, -2, os.fsencode(destination), 0) != 0:
        number = ctypes.get_errno()
        if number in _NO_CLONE or number == errno.ENOTSUP:
            return None
        raise translated(OSError(number, os.strerror(number)))
    return os.open(destination, os.O_RDWR)


def shared_bytes(descriptor: int) -> int:
    """Return how many bytes of a file share their disk blocks with another file; 0 where that cannot be told."""
    return sum(length for _, _, length, flags in _extents(descriptor) or [] if flags & _FIEMAP_EXTENT_SHARED)


def same_blocks(one: int, other: int) -> bool:
    """Return whether two open files consist of the same disk blocks, all of them, so of the same bytes.

    What was written to either is flushed first, and a write to shared blocks always goes to new ones: True says
    that both have held these bytes since the one was cloned from the other. False also where it cannot be told.
    """
    first, second = _extents(one), _extents(other)
    if not first or first != second:
        return False
    return all(flags & _FIEMAP_EXTENT_SHARED and not flags & _FIEMAP_UNSURE for *_, flags in first)


def differing_ranges(one: int, other: int, size: int) -> list[tuple[int, int]] | None:
    """Return the ranges (start, end) below `size` in which two open files may hold different bytes.

    Everywhere else both have the same disk blocks, or both a hole, flushed first. None where it cannot be told.
    """
    first, second = _extents(one), _extents(other)
    if first is None or second is None:
        return None
    edges = {0, size}
    for start, _, length, _ in (*first, *second):
        edges |= {min(start, size), min(start + length, size)}
    ordered, ranges = sorted(edges), list[tuple[int, int]]()
    here, there = _Places(first), _Places(second)
    for start, end in pairwise(ordered):
        if here.at(start) != there.at(start) or not (here.sure and there.sure):
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
    return ranges


class _Places:
    """Where on the disk the bytes of a file lie; asked for ascending offsets."""

    def __init__(self, extents: list[tuple[int, int, int, int]]) -> None:
        self._extents, self._next = extents, 0
        self.sure = True

    def at(self, offset: int) -> tuple[int, int] | None:
        """Return the place of a byte, and whether anything was written there; None in a hole."""
        self.sure = True
        while self._next < len(self._extents):
            start, physical, length, flags = self._extents[self._next]
            if offset < start:
                return None
            if offset < start + length:
                self.sure = not flags & _FIEMAP_UNSURE
                return physical + offset - start, flags & _FIEMAP_EXTENT_UNWRITTEN
            self._next += 1
        return None


def data_ranges(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Return the ranges (start, end) of a file that are not holes; all of it where that cannot be told."""
    ranges, position = list[tuple[int, int]](), 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            position = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # a hole up to the end
            return [(0, size)]
        if start < position:
            ranges.append((start, position))
    return ranges


def copy_range(source: int, target: int, source_offset: int, target_offset: int, length: int) -> None:
    """Copy bytes from one open file to another, in the kernel where it can. DiskFull."""
    while length > 0:
        try:
            done = os.copy_file_range(source, target, length, source_offset, target_offset)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise translated(error) from error
            data = os.pread(source, min(length, COPY_BYTES), source_offset)
            write_all(target, data, target_offset)
            done = len(data)
        if done == 0:
            return
        source_offset, target_offset, length = source_offset + done, target_offset + done, length - done


def hold_still(descriptor: int) -> bool:
    """Return whether nobody has the file open for writing, and ask to be told: see `held_still`.

    The descriptor is read-only. Where leases are unknown nobody can say, and the answer is no.
    """
    return _lease(descriptor, fcntl.F_RDLCK)


def held_still(descriptor: int) -> bool:
    """Return whether nobody has opened the file for writing since `hold_still`."""
    return sys.platform == "linux" and fcntl.fcntl(descriptor, _F_GETLEASE) == fcntl.F_RDLCK


def is_open(path: Path) -> bool:
    """Return whether anybody has the file open; True where it cannot be told."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return not _lease(descriptor, fcntl.F_WRLCK)
    finally:
        os.close(descriptor)


def _lease(descriptor: int, kind: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        fcntl.fcntl(descriptor, _F_SETLEASE, kind)
    except OSError:
        return False
    return True


def _extents(descriptor: int) -> list[tuple[int, int, int, int]] | None:
    """Return (offset in the file, on the disk, length, flags) of each extent, flushed; None if unknown."""
    if MACOS:
        return None
    found: list[tuple[int, int, int, int]] = []
    position, batch = 0, 512
    while True:
        request = bytearray(32 + 56 * batch)
        struct.pack_into("QQIIII", request, 0, position, (1 << 64) - 1 - position, _FIEMAP_FLAG_SYNC, 0, batch, 0)
        try:
            fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, request)
        except OSError:
            return None
        count = struct.unpack_from("I", request, 20)[0]
        for number in range(count):
            logical, physical, length, _, _, flags = struct.unpack_from("QQQQQI", request, 32 + 56 * number)
            found.append((logical, physical, length, flags))
            position = logical + length
        if count == 0 or found[-1][3] & _FIEMAP_EXTENT_LAST:
            return found


def free_bytes(path: Path) -> tuple[int, int]:
    """Return the free bytes this user may take, and the size of the file system."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def refuse_network_home(path: Path) -> None:
    """StoreUnusable when the path lies on NFS or SMB: their locks and syncs do not hold what we promise."""
    kind = file_system_kind(path)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreUnusable(
            f"{path} is on a network file system ({kind}), which cannot keep a store safe",
            cure="choose a local disk: tbshare up --home DIR, or [store] path in config.toml",
        )


def file_system_kind(path: Path) -> str:
    """Return the type of the file system that holds the path (`ext4`, `nfs4`, ...); empty when unknown."""
    target = os.path.realpath(path)
    best, kind = "", ""
    for mount_point, name in _mounts():
        inside = target == mount_point or target.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best):
            best, kind = mount_point, name
    return kind


def _mounts() -> list[tuple[str, str]]:
    if MACOS:
        output = subprocess.run(["/sbin/mount"], capture_output=True, text=True, check=False).stdout
        rows = [line.split(" on ", 1)[-1].rpartition(" (") for line in output.splitlines()]
        return [(point, options.split(",")[0].rstrip(")")) for point, _, options in rows]
    with contextlib.suppress(OSError), open("/proc/self/mounts") as table:
        fields = [line.split() for line in table]
        return [(row[1].encode().decode("unicode_escape"), row[2]) for row in fields]
    return []
