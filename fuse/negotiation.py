"""INIT: what the kernel offers, what we take, and what follows from it. Pure.

The flags are those of fuse_init_in and fuse_init_out in include/uapi/linux/fuse.h. Not taken, with reasons:
WRITEBACK_CACHE (excludes passthrough: the kernel then refuses every backing file), SPLICE_* (slower than a copy
here), POSIX_ACL, SECURITY_CTX and CREATE_SUPP_GROUP (nothing we could keep), NO_OPEN_SUPPORT and
NO_OPENDIR_SUPPORT (we need the handles), DONT_MASK (the kernel applies the umask).
"""

from enum import IntFlag
from struct import Struct
from typing import Final

import msgspec

from tbshare.fuse.operations import Capabilities
from tbshare.fuse.protocol import INIT_IN, Malformed, unpack

MAJOR: Final = 7
MINOR_MIN: Final = 31
MINOR_MAX: Final = 45
PAGE_BYTES: Final = 4096
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages map_alignment
# flags2 max_stack_depth request_timeout unused
INIT_OUT: Final = Struct("<IIIIHHIIHHIIH22x")
MAX_PAGES: Final = 256  # 1 MiB a request: measured to be the best, and the default of fs.fuse.max_pages_limit
MAX_BACKGROUND: Final = 64
CONGESTION_THRESHOLD: Final = 48
READAHEAD_BYTES: Final = 1 << 20


class InitFlag(IntFlag):
    """FUSE_* flags of INIT that we know; those from 1 << 32 on travel in flags2."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37


TAKEN: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.INIT_EXT
    | InitFlag.HAS_EXPIRE_ONLY
    | InitFlag.DIRECT_IO_ALLOW_MMAP
)


class Wishes(msgspec.Struct, frozen=True):
    """What this mount would like, where the kernel has it."""

    passthrough: bool = True  # takes CAP_SYS_ADMIN as well
    locks: bool = True
    cache_links: bool = True  # symbolic links never change under one inode
    stack_depth: int = 1  # file systems below a backing file; 2 if it lies on overlayfs


class Offer(msgspec.Struct, frozen=True):
    """fuse_init_in."""

    major: int
    minor: int
    readahead_bytes_max: int
    flags: InitFlag


class Agreed(msgspec.Struct, frozen=True):
    """What both sides do from now on, and the bytes that say so."""

    minor: int
    flags: InitFlag
    write_bytes_max: int
    capabilities: Capabilities
    reply: bytes


def offer(body: memoryview) -> Offer:
    """Read fuse_init_in, of any minor version."""
    major, minor, readahead, flags = unpack(INIT_IN, body)
    if flags & InitFlag.INIT_EXT and len(body) >= INIT_IN.size + 4:
        flags |= int.from_bytes(body[INIT_IN.size : INIT_IN.size + 4], "little") << 32
    return Offer(major, minor, readahead, InitFlag(flags & sum(InitFlag)))


def negotiate(offered: Offer, wishes: Wishes) -> Agreed:
    """Decide. Raises Malformed for a kernel that is too old (or of another major version, which there is not)."""
    if offered.major != MAJOR or offered.minor < MINOR_MIN:
        raise Malformed(
            f"FUSE {offered.major}.{offered.minor} is spoken; {MAJOR}.{MINOR_MIN} is needed (Linux 5.4)"
        )
    wanted = TAKEN
    if wishes.locks:
        wanted |= InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
    if wishes.cache_links:
        wanted |= InitFlag.CACHE_SYMLINKS
    if wishes.passthrough:
        wanted |= InitFlag.PASSTHROUGH
    flags = offered.flags & wanted
    passes = InitFlag.PASSTHROUGH in flags
    pages = MAX_PAGES if InitFlag.MAX_PAGES in flags else 32
    minor = min(offered.minor, MINOR_MAX)
    write_bytes_max = pages * PAGE_BYTES
    reply = INIT_OUT.pack(
        MAJOR,
        minor,
        max(offered.readahead_bytes_max, READAHEAD_BYTES),
        flags & 0xFFFF_FFFF,
        MAX_BACKGROUND,
        CONGESTION_THRESHOLD,
        write_bytes_max,
        1,
        pages,
        0,
        flags >> 32,
        wishes.stack_depth if passes else 0,
        0,
    )
    capabilities = Capabilities(
        name="own loop",
        passthrough=passes,
        fallocate=True,
        lseek=True,
        copy_file_range=True,
        locks=InitFlag.POSIX_LOCKS in flags and InitFlag.FLOCK_LOCKS in flags,
        plain_readdir=True,
        invalidate_range=True,
        expire_entry=InitFlag.HAS_EXPIRE_ONLY in flags,
        store=True,
        inode_apart=True,
        kill_privileges=InitFlag.HANDLE_KILLPRIV_V2 in flags,
        no_flush=minor >= 35,
        birthtime=minor >= 39,
        interrupt=True,
        max_write_bytes=write_bytes_max,
    )
    return Agreed(minor, flags, write_bytes_max, capabilities, reply)
