"""Files and directories of this machine as a volume sees them: found, with all their attributes, and written.

What cannot be held by a volume (pipes, sockets, devices) or cannot be read is told to `trouble`, one line each,
and the rest goes on. Extended attributes are those of the user: on Linux they have `user.` before their names, on
macOS nothing, and in a volume nothing.
"""

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tbshare.content.tree import DEPTH_MAX, check_name
from tbshare.errors import FormatInvalid, InputRefused
from tbshare.store import disk
from tbshare.store.source import shown

XATTR_PREFIX = "user." if sys.platform == "linux" else ""
TEMPORARY = b".tbshare-new-"  # begins the name of a file that is being written; left behind by a kill only

Kind = Literal["file", "directory", "link", "bundle"]
Trouble = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """One file, directory or link. `path` is from the root that was asked for, which has its own name first."""

    path: tuple[bytes, ...]
    real: bytes
    kind: Kind
    status: os.stat_result
    target: bytes = b""  # of a link

    @property
    def size(self) -> int:
        """Bytes of a file; 0 for the others."""
        return self.status.st_size if self.kind == "file" else 0

    @property
    def birthtime_ns(self) -> int | None:
        """When it was made, where the system says so."""
        seconds = getattr(self.status, "st_birthtime", None)
        return None if seconds is None else int(seconds * 1e9)


def walk(
    root: bytes, *, is_bundle: Callable[[bytes], bool], trouble: Trouble, name: bytes | None = None
) -> Iterator[Found]:
    """Yield what is at and below `root`, directories before what is in them, in the order of names.

    What is inside a bundle is not yielded: `inside` does that. With `name` the root has that name instead of its
    own. InputRefused when the root itself is not there.
    """
    first = found(root, (os.path.basename(root.rstrip(b"/")) if name is None else name,), is_bundle)
    stack = [first]
    while stack:
        each = stack.pop()
        yield each
        if each.kind == "directory":
            stack += reversed(_listed(each, is_bundle, trouble))


def inside(directory: Found, trouble: Trouble) -> list[Found]:
    """Return what is directly in a bundle, or in a directory of one."""
    return _listed(directory, lambda _: False, trouble)


def _listed(directory: Found, is_bundle: Callable[[bytes], bool], trouble: Trouble) -> list[Found]:
    if len(directory.path) > DEPTH_MAX:
        trouble(f"{shown(directory.path)}: deeper than {DEPTH_MAX} directories")
        return []
    try:
        names = sorted(os.listdir(directory.real))
    except OSError as error:
        trouble(f"{shown(directory.path)}: {reason(error)}")
        return []
    result: list[Found] = []
    for each in names:
        if each.startswith(TEMPORARY):
            continue
        try:
            result.append(found(os.path.join(directory.real, each), (*directory.path, each), is_bundle))
        except InputRefused as error:
            trouble(str(error))
    return result


def found(real: bytes, path: tuple[bytes, ...], is_bundle: Callable[[bytes], bool]) -> Found:
    """Return what stands at a path of this machine. InputRefused when it is nothing a volume can hold."""
    try:
        check_name(path[-1])
        status = os.lstat(real)
        target = os.readlink(real) if stat.S_ISLNK(status.st_mode) else b""
    except FormatInvalid as error:
        raise InputRefused(f"{shown(path)}: {error}", cure="rename it") from error
    except OSError as error:
        raise InputRefused(f"{shown(path)}: {reason(error)}", cure="check the path") from error
    if stat.S_ISLNK(status.st_mode):
        return Found(path, real, "link", status, target)
    if stat.S_ISDIR(status.st_mode):
        return Found(path, real, "bundle" if is_bundle(path[-1]) else "directory", status)
    if stat.S_ISREG(status.st_mode):
        return Found(path, real, "file", status)
    raise InputRefused(f"{shown(path)}: neither a file, a directory nor a link", cure="leave it out")


def count(root: bytes) -> tuple[int, int]:
    """Return the number of files below a path and their bytes, as far as they can be seen."""
    files = size = 0
    with contextlib.suppress(OSError):
        status = os.lstat(root)
        if not stat.S_ISDIR(status.st_mode):
            return 1, status.st_size if stat.S_ISREG(status.st_mode) else 0
    for folder, _, names in os.walk(root):
        for each in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(folder, each))
                files += 1
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return files, size


def reason(error: OSError) -> str:
    """Return what an OSError says, as the second half of a line."""
    return (error.strerror or str(error)).lower()


# extended attributes ---------------------------------------------------------------------------------------------


def read_xattrs(real: bytes) -> dict[bytes, bytes]:
    """Return the user's extended attributes of a file, directory or link; none where there is no such thing."""
    if sys.platform != "linux":
        return {}
    found: dict[bytes, bytes] = {}
    with contextlib.suppress(OSError):  # a file system without them, or a link, which has none
        for each in os.listxattr(real, follow_symlinks=False):
            if each.startswith(XATTR_PREFIX):
                found[os.fsencode(each.removeprefix(XATTR_PREFIX))] = os.getxattr(
                    real, each, follow_symlinks=False
                )
    return found


def write_xattrs(real: bytes, xattrs: Mapping[bytes, bytes]) -> None:
    """Set extended attributes; what the file system cannot hold is left out."""
    if sys.platform != "linux":
        return
    for each, value in xattrs.items():
        with contextlib.suppress(OSError):
            os.setxattr(real, XATTR_PREFIX.encode() + each, value, follow_symlinks=False)


# writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is set on a file that is written."""

    mode: int
    mtime_ns: int
    xattrs: Mapping[bytes, bytes]


def write_file(real: bytes, pieces: Iterator[bytes], attributes: Attributes, *, size: int) -> None:
    """Write a file beside its place and rename it there when it is whole and synced. DiskFull."""
    temporary = _temporary(real)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(real, error) from error
    try:
        disk.reserve(descriptor, size)
        offset = 0
        for piece in pieces:
            disk.write_all(descriptor, piece, offset)
            offset += len(piece)
        os.ftruncate(descriptor, offset)
        write_xattrs(temporary, attributes.xattrs)
        os.fchmod(descriptor, attributes.mode & 0o777)
        os.utime(temporary, ns=(attributes.mtime_ns, attributes.mtime_ns))
        disk.sync_file(descriptor)
        os.replace(temporary, real)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise _refused(real, error) from error
        raise
    finally:
        os.close(descriptor)


def write_link(real: bytes, target: bytes, mtime_ns: int) -> None:
    """Make a symbolic link, in place of what has the name."""
    temporary = _temporary(real)
    try:
        os.symlink(target, temporary)
        os.utime(temporary, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        os.replace(temporary, real)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise _refused(real, error) from error


def make_directory(real: bytes) -> None:
    """Make a directory unless there is one."""
    try:
        os.mkdir(real, 0o700)
    except FileExistsError:
        if not os.path.isdir(real):
            raise InputRefused(f"{os.fsdecode(real)} is not a directory", cure="choose another target") from None
    except OSError as error:
        raise _refused(real, error) from error


def describe_directory(real: bytes, attributes: Attributes) -> None:
    """Set the attributes of a directory, when everything is in it."""
    try:
        write_xattrs(real, attributes.xattrs)
        os.chmod(real, attributes.mode & 0o777)
        os.utime(real, ns=(attributes.mtime_ns, attributes.mtime_ns))
    except OSError as error:
        raise _refused(real, error) from error


def _temporary(real: bytes) -> bytes:
    folder, name = os.path.split(real)
    return os.path.join(folder, TEMPORARY + str(os.getpid()).encode() + b"-" + name[:200])


def _refused(real: bytes, error: OSError) -> Exception:
    ours = disk.translated(error)
    if ours is not error:
        return ours
    return InputRefused(f"{os.fsdecode(real)}: {reason(error)}", cure="check the path and its permissions")
