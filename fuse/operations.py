"""What a file system answers, and in which values: the interface between the mount's core and its fronts.

`Operations` is shaped like pyfuse3's: one method for each thing the kernel asks. A front (our own /dev/fuse loop,
pyfuse3, later NFS) calls it and translates. Four rules hold for every method:

1. **Answer now, or say how.** A method returns its answer, or an awaitable of it. What is known is returned from a
   plain `def`: no task is made for it. What must wait is returned as a coroutine (`return self._fetch(...)`), or
   the whole method is `async def`; the front runs that in a task of its own, and other requests go on.
2. **One thread.** Every method runs in the thread of the trio loop. Between two `await`s nothing else runs. A
   plain `def` must not block: what may wait for a disk or a socket is awaited.
3. **An interrupted request is a cancelled task**; the front then answers EINTR: one that waits for a lock, and
   those of somebody who is being killed. What must happen is shielded.
4. **Errors are `FuseError` or `OSError`**, both with their errno. All else is our bug: EIO and a line in the log.

Words: an **inode** is what the kernel holds of a file while it knows it (FUSE's nodeid, counted by lookups and
given back by `forget`); `Attributes.ino` is the number that users see. They are equal unless the front can tell
them apart and the core has a reason to (a file that became complete gets a new inode and keeps its number).
"""

import errno
from collections.abc import Awaitable, Sequence
from enum import IntFlag
from typing import Protocol, TypeAlias, TypeVar

import msgspec

ROOT_INODE = 1  # FUSE_ROOT_ID

T = TypeVar("T")
Answer: TypeAlias = T | Awaitable[T]
Buffer: TypeAlias = bytes | bytearray | memoryview


class FuseError(Exception):
    """The answer to a request is this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


class RequestContext(msgspec.Struct, frozen=True, gc=False):
    """Who asks. `pid` is 0 when the asker lives in another pid namespace."""

    uid: int
    gid: int
    pid: int


class Attributes(msgspec.Struct, frozen=True, gc=False):
    """What stat(2) shows. `mode` has the kind of file; `timeout_seconds`: how long the kernel may keep this."""

    ino: int
    mode: int
    size: int = 0
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    blocks: int = 0  # of 512 bytes
    rdev: int = 0
    block_size: int = 4096
    timeout_seconds: float = 0.0
    birthtime_ns: int = 0  # shown by statx(2) on fronts that can; 0: unknown


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A name found. Each one handed to the kernel counts as one lookup of `inode`, until `forget`.

    `inode` 0 says that there is no such name, and that the kernel may remember that for `timeout_seconds`.
    """

    inode: int
    attributes: Attributes
    generation: int = 0
    timeout_seconds: float = 0.0


_NOTHING = Attributes(ino=0, mode=0)


def absent(timeout_seconds: float) -> Entry:
    """Return the answer of `lookup` for a name that is not there and that the kernel may remember as such."""
    return Entry(0, _NOTHING, 0, timeout_seconds)


class Opened(msgspec.Struct, frozen=True, gc=False):
    """What `open`, `create` and `opendir` answer; the flags are FUSE's FOPEN_*.

    `backing`: a descriptor of the one local file that has this inode's bytes, all of them, at the same offsets. A
    front with passthrough lets the kernel read, write and map that file instead of asking. One backing for an
    inode at a time: the first open's counts until the last handle is released, also for opens that name none;
    while cached handles are open it is left out and `read` and `write` are asked (see `Session.io_mode`). If any
    opener may write, it must be open for reading and writing. Not for files with set-user-ID or set-group-ID: the
    kernel would not clear them when it writes. The front keeps no descriptor: close it when you like.
    """

    handle: int
    backing: int | None = None
    keep_cache: bool = True  # files: what the kernel has of it is still right
    direct_io: bool = False
    no_flush: bool = False  # spares the request at each close(2); not for handles that may hold POSIX locks
    cache_directory: bool = False  # directories: the kernel may keep the listing
    parallel_direct_writes: bool = False


class SetAttributes(msgspec.Struct, frozen=True, gc=False):
    """What is to be changed; None is left as it is. `atime_now`, `mtime_now`: the time is the server's."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False
    kill_privileges: bool = False  # a truncation or chown that must clear set-user-ID and set-group-ID


class FileSystemStatus(msgspec.Struct, frozen=True):
    """What statfs(2) shows; sizes in units of `fragment_size`."""

    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    block_size: int = 4096
    fragment_size: int = 4096
    name_bytes_max: int = 255


class Lock(msgspec.Struct, frozen=True):
    """A POSIX byte-range lock: `kind` is fcntl.F_RDLCK, F_WRLCK or F_UNLCK; `end` is included.

    An `end` of 2**63 - 1 is the end of the file, wherever that is.
    """

    kind: int
    start: int
    end: int
    pid: int = 0


class RenameFlags(IntFlag):
    """Flags of renameat2(2)."""

    NOREPLACE = 1
    EXCHANGE = 2
    WHITEOUT = 4


class Capabilities(msgspec.Struct, frozen=True):
    """What a front can do beyond reading and writing; what is False is told in `status` (see `missing`)."""

    name: str
    passthrough: bool = False
    fallocate: bool = False
    lseek: bool = False
    copy_file_range: bool = False
    locks: bool = False  # flock and POSIX locks reach the Operations; else they hold on this node only
    plain_readdir: bool = False  # a listing without attributes is a request of its own
    invalidate_range: bool = False
    expire_entry: bool = False
    store: bool = False
    inode_apart: bool = False  # Entry.inode may differ from Attributes.ino
    kill_privileges: bool = False  # no request before each write to ask for security.capability
    no_flush: bool = False
    birthtime: bool = False
    interrupt: bool = False
    max_write_bytes: int = 128 << 10


LACKS = {
    "passthrough": "complete files are read through the mount's process, not at the speed of the local file",
    "fallocate": "fallocate fails: space cannot be reserved or punched through the mount",
    "lseek": "holes of sparse files are not seen by cp and tar",
    "copy_file_range": "a copy within the mount reads and writes all bytes",
    "locks": "flock and POSIX locks hold on this node only",
    "plain_readdir": "every listing reads all attributes",
    "invalidate_range": "a change made elsewhere drops the whole file from the page cache",
    "expire_entry": "a file that became complete is looked up again only when it is not in use",
    "kill_privileges": "each small write costs a second request",
    "interrupt": "a waiting request cannot be interrupted",
    "birthtime": "the time of birth is not shown",
}


def missing(capabilities: Capabilities) -> list[str]:
    """Return a sentence for each thing that a front cannot do and a user may notice."""
    return [sentence for name, sentence in LACKS.items() if not getattr(capabilities, name)]


class DirectoryReply(Protocol):
    """What one `readdir` fills. `offset` is that of the *next* entry: where a later `readdir` goes on; never 0."""

    @property
    def plus(self) -> bool:
        """Whether entries with attributes are asked for (`add_entry`); else `add`."""
        ...

    def add(self, name: bytes, offset: int, ino: int, mode: int) -> bool:
        """Add a name with its kind (of `mode`); False: there is no room, stop. Also for `.` and `..`, always."""
        ...

    def add_entry(self, name: bytes, offset: int, entry: Entry) -> bool:
        """Add a name with its attributes; True counts as a lookup of its inode. False: no room, not counted."""
        ...


class Session(Protocol):
    """A live mount, as the Operations see it. Notices are queued, sent in order by a thread, and never block."""

    @property
    def capabilities(self) -> Capabilities:
        """What this front can do, as agreed with this kernel."""
        ...

    def invalidate_inode(self, inode: int, offset: int = 0, length: int = 0) -> None:
        """Drop attributes and the pages of a range (length 0: to the end; offset -1: attributes only)."""
        ...

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Forget a name, or that it is absent; also says so to those who watch the directory."""
        ...

    def expire_entry(self, parent: int, name: bytes) -> None:
        """Have a name looked up again at its next use; descriptors and working directories stay as they are."""
        ...

    def delete_entry(self, parent: int, child: int, name: bytes) -> None:
        """Say that a name was removed elsewhere: as invalidate_entry, and inotify sees a deletion."""
        ...

    def store(self, inode: int, offset: int, data: bytes) -> None:
        """Put bytes into the kernel's page cache."""
        ...

    async def settled(self) -> None:
        """Wait until the kernel has taken every notice queued so far."""
        ...

    def io_mode(self, inode: int) -> str:
        """Return "passthrough" or "cached" if handles of the inode are open in that mode, else ""."""
        ...


class Operations:
    """A file system. What is not overridden answers ENOSYS, which the kernel takes for: never ask again.

    For flush, fsync and fsyncdir that means success, so a core that can write overrides them.
    """

    def started(self, session: Session) -> None:
        """Take the live session; called once, before the first request."""

    def lookup(self, parent: int, name: bytes, context: RequestContext) -> Answer[Entry]:
        """Find a name: its entry, `absent(...)`, or ENOENT."""
        raise FuseError(errno.ENOSYS)

    def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        """Take back (inode, lookups) pairs; an inode with none left is not asked for again. Never waits."""

    def getattr(self, inode: int, handle: int | None, context: RequestContext) -> Answer[Attributes]:
        """Return the attributes; of the open file `handle` if there is one (it may have no name any more)."""
        raise FuseError(errno.ENOSYS)

    def setattr(
        self, inode: int, changes: SetAttributes, handle: int | None, context: RequestContext
    ) -> Answer[Attributes]:
        """Change attributes, all or nothing, and return them as they are then. `size` truncates or extends."""
        raise FuseError(errno.ENOSYS)

    def readlink(self, inode: int, context: RequestContext) -> Answer[bytes]:
        """Return the target of a symbolic link."""
        raise FuseError(errno.ENOSYS)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, context: RequestContext) -> Answer[Entry]:
        """Make a file that is not a directory or a link; the umask is applied already, here and below."""
        raise FuseError(errno.ENOSYS)

    def mkdir(self, parent: int, name: bytes, mode: int, context: RequestContext) -> Answer[Entry]:
        """Make a directory."""
        raise FuseError(errno.ENOSYS)

    def unlink(self, parent: int, name: bytes, context: RequestContext) -> Answer[None]:
        """Remove a name of a file. Handles, and the inode until it is forgotten, live on."""
        raise FuseError(errno.ENOSYS)

    def rmdir(self, parent: int, name: bytes, context: RequestContext) -> Answer[None]:
        """Remove an empty directory."""
        raise FuseError(errno.ENOSYS)

    def symlink(self, parent: int, name: bytes, target: bytes, context: RequestContext) -> Answer[Entry]:
        """Make a symbolic link."""
        raise FuseError(errno.ENOSYS)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: RenameFlags,
        context: RequestContext,
    ) -> Answer[None]:
        """Move a name, in one step."""
        raise FuseError(errno.ENOSYS)

    def link(self, inode: int, new_parent: int, new_name: bytes, context: RequestContext) -> Answer[Entry]:
        """Give a file one more name."""
        raise FuseError(errno.ENOSYS)

    def open(self, inode: int, flags: int, kill_privileges: bool, context: RequestContext) -> Answer[Opened]:
        """Give a handle of a file; one `release` follows.

        `flags` are those of open(2), O_TRUNC among them. `kill_privileges`: with O_TRUNC, clear set-user-ID and
        set-group-ID.
        """
        raise FuseError(errno.ENOSYS)

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, context: RequestContext
    ) -> Answer[tuple[Entry, Opened]]:
        """Make a file if it is not there, and open it."""
        raise FuseError(errno.ENOSYS)

    def read(self, handle: int, offset: int, size_bytes: int) -> Answer[Buffer | Sequence[Buffer]]:
        """Return the bytes; fewer only at the end of the file. They are sent before the next request is taken."""
        raise FuseError(errno.ENOSYS)

    def write(self, handle: int, offset: int, data: memoryview, kill_privileges: bool) -> Answer[int]:
        """Write, and return how much. `data` is valid until the answer: copy what is kept longer."""
        raise FuseError(errno.ENOSYS)

    def flush(self, handle: int, owner: int) -> Answer[None]:
        """One close(2) of possibly several; an error is what close(2) returns. POSIX locks of `owner` end."""
        raise FuseError(errno.ENOSYS)

    def release(self, handle: int, flock_owner: int | None) -> Answer[None]:
        """Close the handle: no descriptor or map uses it any more. Its flock ends.

        Nobody waits for the answer, so unmounting does not cut it off: the front ends when it is done.
        """
        raise FuseError(errno.ENOSYS)

    def fsync(self, handle: int, data_only: bool) -> Answer[None]:
        """Make what was written survive anything."""
        raise FuseError(errno.ENOSYS)

    def opendir(self, inode: int, context: RequestContext) -> Answer[Opened]:
        """Open a directory; what `readdir` shows is of this moment or later."""
        raise FuseError(errno.ENOSYS)

    def readdir(self, handle: int, offset: int, reply: DirectoryReply) -> Answer[None]:
        """Add the entries from `offset` on (0: the start) until `reply` is full. `.` and `..` come first."""
        raise FuseError(errno.ENOSYS)

    def releasedir(self, handle: int) -> Answer[None]:
        """Close the handle of a directory."""
        raise FuseError(errno.ENOSYS)

    def fsyncdir(self, handle: int, data_only: bool) -> Answer[None]:
        """Make the names of a directory survive anything."""
        raise FuseError(errno.ENOSYS)

    def statfs(self, inode: int) -> Answer[FileSystemStatus]:
        """Return sizes and what is free."""
        raise FuseError(errno.ENOSYS)

    def setxattr(self, inode: int, name: bytes, value: bytes, flags: int, context: RequestContext) -> Answer[None]:
        """Set an extended attribute; `flags`: os.XATTR_CREATE, os.XATTR_REPLACE."""
        raise FuseError(errno.ENOSYS)

    def getxattr(self, inode: int, name: bytes, context: RequestContext) -> Answer[bytes]:
        """Return an extended attribute, or ENODATA."""
        raise FuseError(errno.ENOSYS)

    def listxattr(self, inode: int, context: RequestContext) -> Answer[Sequence[bytes]]:
        """Return the names of extended attributes."""
        raise FuseError(errno.ENOSYS)

    def removexattr(self, inode: int, name: bytes, context: RequestContext) -> Answer[None]:
        """Remove an extended attribute, or ENODATA."""
        raise FuseError(errno.ENOSYS)

    def access(self, inode: int, mode: int, context: RequestContext) -> Answer[None]:
        """Say whether the asker may do this; never asked under default_permissions."""
        raise FuseError(errno.ENOSYS)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> Answer[None]:
        """Reserve, punch, zero or collapse a range; EOPNOTSUPP for a mode that is not known."""
        raise FuseError(errno.ENOSYS)

    def lseek(self, handle: int, offset: int, whence: int) -> Answer[int]:
        """Find data or a hole: `whence` is os.SEEK_DATA or os.SEEK_HOLE; ENXIO behind the end."""
        raise FuseError(errno.ENOSYS)

    def copy_file_range(
        self, handle_in: int, offset_in: int, handle_out: int, offset_out: int, length: int
    ) -> Answer[int]:
        """Copy within the file system, and return how much (0 only at the end of the source)."""
        raise FuseError(errno.ENOSYS)

    def getlk(self, handle: int, owner: int, lock: Lock) -> Answer[Lock]:
        """Return a lock that is in the way of `lock`, or one of kind F_UNLCK."""
        raise FuseError(errno.ENOSYS)

    def setlk(self, handle: int, owner: int, lock: Lock, wait: bool) -> Answer[None]:
        """Take or give back a POSIX lock. EAGAIN if it is held and `wait` is not set; cancelling ends a wait."""
        raise FuseError(errno.ENOSYS)

    def flock(self, handle: int, owner: int, kind: int, wait: bool) -> Answer[None]:
        """Take (F_RDLCK, F_WRLCK) or give back (F_UNLCK) a lock of the whole file; else as `setlk`."""
        raise FuseError(errno.ENOSYS)
