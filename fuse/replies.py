"""What is said to the kernel on /dev/fuse: answers, listings and notices. Pure: values in, bytes out.

Layouts and names are those of include/uapi/linux/fuse.h, as in `protocol`.
"""

import errno
from collections.abc import Sequence
from struct import Struct
from typing import Final

from tbshare.fuse.operations import Attributes, Entry, FileSystemStatus, FuseError, Lock, Opened

OUT_HEADER: Final = Struct("<IiQ")  # fuse_out_header: len error unique
# fuse_attr: ino size blocks atime mtime ctime *nsec mode nlink uid gid rdev blksize flags
_ATTRIBUTES: Final = "QQQqqqIIIIIIIIII"
ATTR_OUT: Final = Struct("<QII" + _ATTRIBUTES)  # attr_valid attr_valid_nsec dummy, fuse_attr
# nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec, fuse_attr
ENTRY_OUT: Final = Struct("<QQQQII" + _ATTRIBUTES)
OPEN_OUT: Final = Struct("<QIi")  # fh open_flags backing_id
WRITE_OUT: Final = Struct("<II")  # size padding
STATFS_OUT: Final = Struct(
    "<QQQQQIIII24x"
)  # fuse_kstatfs: blocks bfree bavail files ffree bsize namelen frsize padding
GETXATTR_OUT: Final = Struct("<II")  # size padding
LK_OUT: Final = Struct("<QQII")  # start end type pid
LSEEK_OUT: Final = Struct("<Q")
DIRENT: Final = Struct("<QQII")  # ino off namelen type
# fuse_statx_out: attr_valid attr_valid_nsec flags spare[2]; fuse_statx: mask blksize attributes nlink uid gid mode
# spare ino size blocks attributes_mask, four times sec nsec reserved (a, birth, c, m), rdev and dev as major minor
STATX_OUT: Final = Struct("<QII16xIIQIIIHHQQQQ" + "qIi" * 4 + "IIII112x")
INVAL_INODE_OUT: Final = Struct("<Qqq")  # ino off len
INVAL_ENTRY_OUT: Final = Struct("<QII")  # parent namelen flags
DELETE_OUT: Final = Struct("<QQII")  # parent child namelen padding
STORE_OUT: Final = Struct("<QQII")  # nodeid offset size padding

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6
FOPEN_PASSTHROUGH: Final = 1 << 7
EXPIRE_ONLY: Final = 1 << 0  # FUSE_EXPIRE_ONLY
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_STORE: Final = 4
NOTIFY_DELETE: Final = 6
STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800

_SECOND_NS: Final = 1_000_000_000
_U32: Final = 0xFFFF_FFFF
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_PADDING: Final = tuple(b"\0" * (-length % 8) for length in range(8))


def header(unique: int, payload_bytes: int) -> bytes:
    """Return the header of an answer with a payload of so many bytes."""
    return OUT_HEADER.pack(OUT_HEADER.size + payload_bytes, 0, unique)


def failure(unique: int, number: int) -> bytes:
    """Return the answer that is an errno (0: done, and nothing more to say)."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def attributes_fields(given: Attributes) -> tuple[int, ...]:
    """Return the fields of fuse_attr."""
    atime, atime_rest = divmod(given.atime_ns, _SECOND_NS)
    mtime, mtime_rest = divmod(given.mtime_ns, _SECOND_NS)
    ctime, ctime_rest = divmod(given.ctime_ns, _SECOND_NS)
    return (
        given.ino,
        given.size,
        given.blocks,
        atime,
        mtime,
        ctime,
        atime_rest,
        mtime_rest,
        ctime_rest,
        given.mode,
        given.nlink,
        given.uid,
        given.gid,
        given.rdev & _U32,
        given.block_size,
        0,
    )


def duration(seconds: float) -> tuple[int, int]:
    """Split a time into seconds and nanoseconds."""
    whole = int(seconds)
    return whole, int((seconds - whole) * _SECOND_NS)


def attributes_out(given: Attributes) -> bytes:
    """Encode fuse_attr_out."""
    return ATTR_OUT.pack(*duration(given.timeout_seconds), 0, *attributes_fields(given))


def entry_out(entry: Entry) -> bytes:
    """Encode fuse_entry_out."""
    valid, valid_rest = duration(entry.timeout_seconds)
    given = entry.attributes
    known, known_rest = duration(given.timeout_seconds)
    fields = attributes_fields(given)
    return ENTRY_OUT.pack(entry.inode, entry.generation, valid, known, valid_rest, known_rest, *fields)


def statx_out(given: Attributes) -> bytes:
    """Encode fuse_statx_out."""
    times: list[int] = []
    for moment in (given.atime_ns, given.birthtime_ns, given.ctime_ns, given.mtime_ns):
        times += (*divmod(moment, _SECOND_NS), 0)
    mask = STATX_BASIC_STATS | (STATX_BTIME if given.birthtime_ns else 0)
    # glibc's encoding of a device in 32 bits: 12 bits of major above 8 bits of minor, its other 12 on top.
    major, minor = given.rdev >> 8 & 0xFFF, given.rdev & 0xFF | given.rdev >> 12 & 0xFFF00
    return STATX_OUT.pack(
        *duration(given.timeout_seconds),
        0,
        mask,
        given.block_size,
        0,
        given.nlink,
        given.uid,
        given.gid,
        given.mode,
        0,
        given.ino,
        given.size,
        given.blocks,
        0,
        *times,
        major,
        minor,
        0,
        0,
    )


def open_out(opened: Opened, backing: int | None) -> bytes:
    """Encode fuse_open_out; `backing` is the id the kernel gave for the backing file, or None."""
    flags = FOPEN_NOFLUSH if opened.no_flush else 0
    if backing is not None:
        return OPEN_OUT.pack(opened.handle, flags | FOPEN_PASSTHROUGH, backing)
    if opened.direct_io:
        flags |= FOPEN_DIRECT_IO
    if opened.keep_cache:
        flags |= FOPEN_KEEP_CACHE
    if opened.cache_directory:
        flags |= FOPEN_CACHE_DIR
    if opened.parallel_direct_writes:
        flags |= FOPEN_PARALLEL_DIRECT_WRITES
    return OPEN_OUT.pack(opened.handle, flags, 0)


def write_out(size_bytes: int) -> bytes:
    """Encode fuse_write_out."""
    return WRITE_OUT.pack(size_bytes, 0)


def statfs_out(status: FileSystemStatus) -> bytes:
    """Encode fuse_statfs_out."""
    return STATFS_OUT.pack(
        status.blocks,
        status.blocks_free,
        status.blocks_available,
        status.files,
        status.files_free,
        status.block_size,
        status.name_bytes_max,
        status.fragment_size,
        0,
    )


def attribute_value_out(value: bytes, room_bytes: int) -> bytes:
    """Answer GETXATTR and LISTXATTR: the size when no room is given, else the bytes, or ERANGE."""
    if not room_bytes:
        return GETXATTR_OUT.pack(len(value), 0)
    if len(value) > room_bytes:
        raise FuseError(errno.ERANGE)
    return value


def attribute_names_out(names: Sequence[bytes], room_bytes: int) -> bytes:
    """Answer LISTXATTR."""
    return attribute_value_out(b"".join(name + b"\0" for name in names), room_bytes)


def lock_out(lock: Lock) -> bytes:
    """Encode fuse_lk_out."""
    return LK_OUT.pack(lock.start, lock.end, lock.kind, lock.pid)


def lseek_out(offset: int) -> bytes:
    """Encode fuse_lseek_out."""
    return LSEEK_OUT.pack(offset)


class Listing:
    """The answer to one READDIR or READDIRPLUS: fuse_dirent or fuse_direntplus, each ended on 8 bytes."""

    def __init__(self, size_bytes: int, plus: bool) -> None:
        self.plus = plus
        self.parts: list[bytes] = []
        self._room_bytes = size_bytes

    def add(self, name: bytes, offset: int, ino: int, mode: int) -> bool:
        """Add a name; as DirectoryReply.add."""
        record = DIRENT.pack(ino, offset, len(name), mode >> 12 & 0xF) + name + _PADDING[len(name) & 7]
        return self._append(bytes(ENTRY_OUT.size) + record if self.plus else record)

    def add_entry(self, name: bytes, offset: int, entry: Entry) -> bool:
        """Add a name with its attributes; as DirectoryReply.add_entry."""
        given = entry.attributes
        record = DIRENT.pack(given.ino, offset, len(name), given.mode >> 12 & 0xF) + name + _PADDING[len(name) & 7]
        return self._append(entry_out(entry) + record)

    def _append(self, record: bytes) -> bool:
        self._room_bytes -= len(record)
        if self._room_bytes < 0:
            self._room_bytes = 0
            return False
        self.parts.append(record)
        return True

    def encoded(self) -> bytes:
        """Return all that was added."""
        return b"".join(self.parts)


# --- notices --------------------------------------------------------------------------------------------------


def _notice(code: int, body: bytes) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body


def invalidate_inode(inode: int, offset: int, length: int) -> bytes:
    """FUSE_NOTIFY_INVAL_INODE: attributes, and pages unless the offset is negative."""
    return _notice(NOTIFY_INVAL_INODE, INVAL_INODE_OUT.pack(inode, offset, length))


def invalidate_entry(parent: int, name: bytes, *, expire_only: bool = False) -> bytes:
    """FUSE_NOTIFY_INVAL_ENTRY."""
    fields = INVAL_ENTRY_OUT.pack(parent, len(name), EXPIRE_ONLY if expire_only else 0)
    return _notice(NOTIFY_INVAL_ENTRY, fields + name + b"\0")


def delete_entry(parent: int, child: int, name: bytes) -> bytes:
    """FUSE_NOTIFY_DELETE."""
    return _notice(NOTIFY_DELETE, DELETE_OUT.pack(parent, child, len(name), 0) + name + b"\0")


def store(inode: int, offset: int, data: bytes) -> bytes:
    """FUSE_NOTIFY_STORE."""
    return _notice(NOTIFY_STORE, STORE_OUT.pack(inode, offset, len(data), 0) + data)
