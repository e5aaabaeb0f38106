"""What the kernel says on /dev/fuse, and how it is read. Pure: bytes in, values out.

The names are those of include/uapi/linux/fuse.h, protocol 7.31 to 7.45; each layout below is the struct of that
name. All numbers have the machine's byte order, which is little-endian wherever this runs. `parse` takes one
message apart into a `Request`; the functions under "bodies" read what follows its header. What does not fit raises
`Malformed`, and nothing else. `replies` writes the answers, `negotiation` decides what INIT agrees on.
"""

from enum import IntEnum
from struct import Struct
from struct import error as StructError  # noqa: N812 - the name says what it is an error of
from typing import Final

import msgspec

from tbshare.fuse.operations import Lock, RequestContext, SetAttributes

IN_HEADER: Final = Struct(
    "<IIQQIIIHH"
)  # fuse_in_header: len opcode unique nodeid uid gid pid total_extlen padding
INIT_IN: Final = Struct("<IIII")  # fuse_init_in: major minor max_readahead flags; then flags2 since 7.36
GETATTR_IN: Final = Struct("<IIQ")  # getattr_flags dummy fh
SETATTR_IN: Final = Struct(
    "<IIQQQqqqIIIIIIII"
)  # valid padding fh size lock_owner atime mtime ctime *nsec mode - uid gid -
MKNOD_IN: Final = Struct("<IIII")  # mode rdev umask padding
MKDIR_IN: Final = Struct("<II")  # mode umask
RENAME_IN: Final = Struct("<Q")  # newdir
RENAME2_IN: Final = Struct("<QII")  # newdir flags padding
LINK_IN: Final = Struct("<Q")  # oldnodeid
OPEN_IN: Final = Struct("<II")  # flags open_flags
CREATE_IN: Final = Struct("<IIII")  # flags mode umask open_flags
RELEASE_IN: Final = Struct("<QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN: Final = Struct("<QIIQ")  # fh unused padding lock_owner
READ_IN: Final = Struct("<QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN: Final = Struct("<QQIIQII")  # fh offset size write_flags lock_owner flags padding
FSYNC_IN: Final = Struct("<QII")  # fh fsync_flags padding
SETXATTR_IN: Final = Struct("<II")  # FUSE_COMPAT_SETXATTR_IN_SIZE: size flags
GETXATTR_IN: Final = Struct("<II")  # size padding
LK_IN: Final = Struct("<QQQQIIII")  # fh owner, fuse_file_lock: start end type pid; lk_flags padding
ACCESS_IN: Final = Struct("<II")  # mask padding
FALLOCATE_IN: Final = Struct("<QQQII")  # fh offset length mode padding
LSEEK_IN: Final = Struct("<QQII")  # fh offset whence padding
COPY_FILE_RANGE_IN: Final = Struct("<QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
STATX_IN: Final = Struct("<IIQII")  # getattr_flags reserved fh sx_flags sx_mask
INTERRUPT_IN: Final = Struct("<Q")  # unique
FORGET_IN: Final = Struct("<Q")  # nlookup
BATCH_FORGET_IN: Final = Struct("<II")  # count dummy
FORGET_ONE: Final = Struct("<QQ")  # nodeid nlookup

REQUEST_BYTES_MIN: Final = IN_HEADER.size
# FUSE_MIN_READ_BUFFER, and the room that read(2) on /dev/fuse asks for beside max_write.
BUFFER_BYTES_MIN: Final = 8192
HEADER_ROOM_BYTES: Final = 4096

GETATTR_FH: Final = 1 << 0
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11
OPEN_KILL_SUIDGID: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
RELEASE_FLOCK_UNLOCK: Final = 1 << 1
FSYNC_FDATASYNC: Final = 1 << 0
LK_FLOCK: Final = 1 << 0


class Opcode(IntEnum):
    """enum fuse_opcode; those not here are answered ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    STATX = 52


UNANSWERED: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})


class Malformed(Exception):  # noqa: N818 - named for what happened, as in tbshare.errors
    """A message that no kernel of protocol 7 sends."""


class Request(msgspec.Struct, gc=False):
    """One message: its header, and the body, which is valid until the request is answered."""

    opcode: int
    unique: int
    inode: int
    uid: int
    gid: int
    pid: int
    body: memoryview

    def context(self) -> RequestContext:
        """Return who asks."""
        return RequestContext(self.uid, self.gid, self.pid)


def parse(message: memoryview) -> Request:
    """Take one message apart."""
    try:
        length, opcode, unique, inode, uid, gid, pid, extensions, _ = IN_HEADER.unpack_from(message)
    except StructError as error:
        raise Malformed(f"a message of {len(message)} bytes") from error
    end = length - 8 * extensions
    if length != len(message) or end < REQUEST_BYTES_MIN:
        raise Malformed(
            f"a message of {len(message)} bytes says it has {length}, {8 * extensions} of them extensions"
        )
    return Request(opcode, unique, inode, uid, gid, pid, message[REQUEST_BYTES_MIN:end])


# --- bodies ---------------------------------------------------------------------------------------------------


def unpack(layout: Struct, body: memoryview) -> tuple[int, ...]:
    """Read a struct at the start of a body."""
    try:
        return layout.unpack_from(body)
    except StructError as error:
        raise Malformed(f"{len(body)} bytes where {layout.size} are needed") from error


def names(body: memoryview, count: int, start: int = 0) -> list[bytes]:
    """Read `count` names, each ended by a zero byte, and nothing behind them."""
    parts = bytes(body[start:]).split(b"\0")
    if len(parts) != count + 1 or parts[-1]:
        raise Malformed(f"{len(parts) - 1} names where {count} are needed")
    return parts[:-1]


def name(body: memoryview, start: int = 0) -> bytes:
    """Read the one name that fills the body from `start` on."""
    text = bytes(body[start:])
    if not text or text.find(b"\0") != len(text) - 1:
        raise Malformed("a name without its end")
    return text[:-1]


def optional_handle(layout: Struct, body: memoryview, flag: int) -> int | None:
    """Read the handle of GETATTR and STATX, if there is one."""
    fields = unpack(layout, body)
    return fields[2] if fields[0] & flag else None


def setattr_in(body: memoryview) -> tuple[SetAttributes, int | None]:
    """Read fuse_setattr_in: the changes and the handle."""
    (valid, _, handle, size, _, atime, mtime, ctime, atime_rest, mtime_rest, ctime_rest, mode, _, uid, gid, _) = (
        unpack(SETATTR_IN, body)
    )

    def given(flag: int, value: int) -> int | None:
        return value if valid & flag else None

    changes = SetAttributes(
        mode=given(FATTR_MODE, mode),
        uid=given(FATTR_UID, uid),
        gid=given(FATTR_GID, gid),
        size=given(FATTR_SIZE, size),
        atime_ns=given(FATTR_ATIME, atime * 1_000_000_000 + atime_rest),
        mtime_ns=given(FATTR_MTIME, mtime * 1_000_000_000 + mtime_rest),
        ctime_ns=given(FATTR_CTIME, ctime * 1_000_000_000 + ctime_rest),
        atime_now=bool(valid & FATTR_ATIME_NOW),
        mtime_now=bool(valid & FATTR_MTIME_NOW),
        kill_privileges=bool(valid & FATTR_KILL_SUIDGID),
    )
    return changes, given(FATTR_FH, handle)


def write_in(body: memoryview) -> tuple[int, int, memoryview, bool]:
    """Read fuse_write_in: handle, offset, the bytes, and whether set-user-ID is to be cleared."""
    handle, offset, size, flags, _, _, _ = unpack(WRITE_IN, body)
    data = body[WRITE_IN.size :]
    if len(data) != size:
        raise Malformed(f"a write of {size} bytes with {len(data)}")
    return handle, offset, data, bool(flags & WRITE_KILL_SUIDGID)


def setxattr_in(body: memoryview) -> tuple[bytes, bytes, int]:
    """Read fuse_setxattr_in: name, value, flags."""
    size, flags = unpack(SETXATTR_IN, body)
    text, end, value = bytes(body[SETXATTR_IN.size :]).partition(b"\0")
    if not end or len(value) != size:
        raise Malformed(f"an attribute of {size} bytes with {len(value)}")
    return text, value, flags


def lock_in(body: memoryview) -> tuple[int, int, Lock, bool]:
    """Read fuse_lk_in: handle, owner, the lock, and whether it is one of flock(2)."""
    handle, owner, start, end, kind, pid, flags, _ = unpack(LK_IN, body)
    return handle, owner, Lock(kind, start, end, pid), bool(flags & LK_FLOCK)


def forgets(request: Request) -> list[tuple[int, int]]:
    """Read FORGET and BATCH_FORGET: (inode, lookups) pairs."""
    if request.opcode == Opcode.FORGET:
        return [(request.inode, unpack(FORGET_IN, request.body)[0])]
    count, _ = unpack(BATCH_FORGET_IN, request.body)
    pairs = request.body[BATCH_FORGET_IN.size :]
    if len(pairs) != count * FORGET_ONE.size:
        raise Malformed(f"{count} inodes to forget in {len(pairs)} bytes")
    return [(inode, lookups) for inode, lookups in FORGET_ONE.iter_unpack(pairs)]
