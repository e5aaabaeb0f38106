"""Every error raised on purpose, each with its exit status and the command that cures it.

An error carries a sentence for the user (`str(error)`), an exit status (the table in `ExitStatus`) and, where
there is one, a `cure`: the command or the step that helps. The daemon sends these three over the control
socket and the client raises the same class again, so that a failure reads the same wherever it happened.
"""

import errno
from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit status of the command line."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PENDING = 3  # some targets are pending or failed; the others are done
    INTERRUPTED = 130


class TbshareError(Exception):
    """Base of all errors raised on purpose.

    `cure` is a command or a short instruction; empty means that `tbshare status` is all there is to say.
    """

    exit_status = ExitStatus.FAILED

    def __init__(self, message: str, *, cure: str = "") -> None:
        super().__init__(message)
        self.cure = cure


class UsageError(TbshareError):
    """The command line, an option or a configuration value is wrong."""

    exit_status = ExitStatus.USAGE


class InputRefused(TbshareError):
    """A file or directory given to us cannot be taken in: it says which and why."""


class SourceChanged(InputRefused):
    """A file changed while it was read."""


class VolumeUnknown(UsageError):
    """No such volume; the message names the nearest."""


class RefUnknown(TbshareError):
    """No such ref; the message names where it was looked for and the nearest names."""


class ObjectMissing(TbshareError):
    """The bytes of an object, tree or manifest are not on this node."""


class ObjectInUse(TbshareError):
    """Something still needs the object: a pin, a lease, or it is the last copy."""


class BlockCorrupt(TbshareError):
    """Bytes on disk, or from a peer, do not have the id they should have."""


class FormatInvalid(TbshareError):
    """Bytes that should be one of our formats (manifest, tree, op, message) are not."""


class HeaderInvalid(FormatInvalid):
    """A safetensors or GGUF header does not hold together."""


class StoreUnusable(TbshareError):
    """The store cannot be opened: in use, of a newer format, on a network file system, or not mounted."""


class LogDamaged(StoreUnusable):
    """Bytes of log.db are not what was written."""


class DiskFull(TbshareError):
    """There is no room for the bytes."""


class ConfigInvalid(UsageError):
    """config.toml has an unknown key or a value of the wrong kind."""


class MountFailed(TbshareError):
    """A directory cannot be mounted on or unmounted; the message says why."""


class DaemonUnreachable(TbshareError):
    """No daemon answers on the control socket."""


class PeerError(TbshareError):
    """The peer broke the protocol; the session with it ends."""


class PeerUnreachable(TbshareError):
    """No link to the peer is up."""


class PairingFailed(TbshareError):
    """Pairing did not succeed: wrong code, too late, too many tries, or refused."""


class NotPermitted(TbshareError):
    """The asker's role does not allow it."""


class TargetsPending(TbshareError):
    """Some targets are not durable yet; the others are."""

    exit_status = ExitStatus.PENDING


class Interrupted(TbshareError):
    """The user, or `tbshare stop`, ended it."""

    exit_status = ExitStatus.INTERRUPTED


class FileError(TbshareError):
    """An operation on a path of a volume that cannot be done; `errno` is what a mount answers."""

    errno = errno.EIO


class PathMissing(FileError):
    """Nothing has this name."""

    errno = errno.ENOENT


class PathExists(FileError):
    """Something has this name already."""

    errno = errno.EEXIST


class PathNotDirectory(FileError):
    """A part of the path is not a directory."""

    errno = errno.ENOTDIR


class PathIsDirectory(FileError):
    """The path names a directory where a file is needed."""

    errno = errno.EISDIR


class DirectoryNotEmpty(FileError):
    """A directory that has something in it is not removed."""

    errno = errno.ENOTEMPTY


class PathInvalid(FileError):
    """A name or path that no volume can hold, or that leaves the volume."""

    errno = errno.EINVAL


class MoveImpossible(FileError):
    """A directory cannot go below itself."""

    errno = errno.EINVAL


class CrossesVolumes(FileError):
    """A rename or a link from one volume to another."""

    errno = errno.EXDEV


class QuotaExceeded(FileError):
    """The volume's quota is used up; nothing was written."""

    errno = errno.EDQUOT


class XattrsTooLarge(FileError):
    """More extended attributes than an item can hold; large values belong into objects of their own."""

    errno = errno.E2BIG


class TooManyAtOnce(FileError):
    """More than can become visible in one moment."""

    errno = errno.E2BIG


class NameTooLong(FileError):
    """A name of more than 255 bytes, or 255 UTF-16 units, or a path of too many parts."""

    errno = errno.ENAMETOOLONG


class Locked(FileError):
    """Another node, which can be reached, holds the lease; or a removal met an open file."""

    errno = errno.EBUSY


class StageMissing(FileError):
    """A working file of a mount is not there: it was saved, or its mount was taken for gone."""

    errno = errno.ESTALE


class VolumeReadOnly(FileError):
    """The volume takes no writes here: role, mode, damage, or a newer version of tbshare."""

    errno = errno.EROFS


class ModelRefused(TbshareError):
    """A model is incomplete or does not hold together; MLX never sees it."""


_NUMBERS: dict[type[TbshareError], int] = {
    VolumeUnknown: errno.ENOENT,
    NotPermitted: errno.EPERM,
    DiskFull: errno.ENOSPC,
    ObjectInUse: errno.EBUSY,
    UsageError: errno.EINVAL,
    RefUnknown: errno.ENOENT,
    InputRefused: errno.EINVAL,
    Interrupted: errno.EINTR,
}


def errno_of(error: TbshareError) -> int:
    """Return what a mount answers for an error; EIO for what is not the asker's to know."""
    if isinstance(error, FileError):
        return error.errno
    return next((number for kind, number in _NUMBERS.items() if isinstance(error, kind)), errno.EIO)


def innermost(error: BaseException) -> BaseException:
    """Return the first error inside exception groups, which is what the user should hear of."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return error  # pyright: ignore[reportUnknownVariableType]
