"""Operations over a plain directory: what the fronts are tested with, and the bench's yardstick for our own loop.

    python -m bench.plain_directory SOURCE DIRECTORY [--cached]

Every method answers at once, also where it waits for the disk: that is what the loop alone costs. Inodes hold an
O_PATH descriptor, so that names may change under them.
"""

import ctypes
import fcntl
import mmap
import os
import stat
import sys
import time
from collections.abc import Sequence
from functools import partial

import trio

from tbshare.fuse import front
from tbshare.fuse.locks import END_MAX, Locks
from tbshare.fuse.mounting import MountOptions
from tbshare.fuse.operations import (
    ROOT_INODE,
    Answer,
    Attributes,
    Buffer,
    DirectoryReply,
    Entry,
    FileSystemStatus,
    FuseError,
    Lock,
    Opened,
    Operations,
    RenameFlags,
    RequestContext,
    Session,
    SetAttributes,
)

MAPPED_BYTES_MIN = 256 << 10  # smaller files are read: a map costs more
_AT_EMPTY_PATH = 0x1000
_AT_SYMLINK_NOFOLLOW = 0x100
_UTIME_OMIT = (1 << 30) - 2
_OPEN_FLAGS_LEFT_OUT = os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL | os.O_NOCTTY
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        raise FuseError(ctypes.get_errno())


class Node:
    """A file the kernel knows: an O_PATH descriptor and the lookups not yet given back."""

    __slots__ = ("descriptor", "inode", "key", "lookups")

    def __init__(self, inode: int, descriptor: int, key: tuple[int, int]) -> None:
        self.inode = inode
        self.descriptor = descriptor
        self.key = key
        self.lookups = 0

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.descriptor}"


class Handle:
    """An open file or directory."""

    __slots__ = ("descriptor", "inode", "listing", "view")

    def __init__(self, descriptor: int, inode: int) -> None:
        self.descriptor = descriptor
        self.inode = inode
        self.view: memoryview | None = None
        self.listing: list[tuple[bytes, int, int]] = []


class PlainDirectory(Operations):
    """A directory shown somewhere else."""

    def __init__(self, directory: str, *, passthrough: bool = True, timeout_seconds: float = 3600.0) -> None:
        self._passthrough = passthrough
        self._timeout_seconds = timeout_seconds
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        status = os.fstat(descriptor)
        root = Node(ROOT_INODE, descriptor, (status.st_dev, status.st_ino))
        self.nodes = {ROOT_INODE: root}
        self._by_key = {root.key: root}
        self.handles: dict[int, Handle] = {}
        self._handle_next = 1
        self._spare_next = 1 << 62
        self._posix_locks, self._flocks = Locks(), Locks()
        self.session: Session | None = None

    def close(self) -> None:
        """Close all descriptors."""
        for handle in self.handles.values():
            os.close(handle.descriptor)
        for node in self.nodes.values():
            os.close(node.descriptor)

    def started(self, session: Session) -> None:
        self.session = session

    # --- inodes -----------------------------------------------------------------------------------------------

    def attributes(self, status: os.stat_result, inode: int) -> Attributes:
        return Attributes(
            ino=status.st_ino,
            mode=status.st_mode,
            size=status.st_size,
            nlink=status.st_nlink,
            uid=status.st_uid,
            gid=status.st_gid,
            atime_ns=status.st_atime_ns,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            blocks=status.st_blocks,
            rdev=status.st_rdev,
            timeout_seconds=self._timeout_of(inode),
        )

    def _timeout_of(self, inode: int) -> float:
        # The kernel writes a backing file without a word to us: size and time are looked up each time.
        written = self.session is not None and self.session.io_mode(inode) == "passthrough"
        return 0.0 if written else self._timeout_seconds

    def entry(self, parent: Node, name: bytes) -> Entry:
        """Find a name and count the lookup."""
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent.descriptor)
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino)
        node = self._by_key.get(key)
        if node is None:
            inode = status.st_ino
            if inode in self.nodes:
                inode, self._spare_next = self._spare_next, self._spare_next + 1
            node = self.nodes[inode] = self._by_key[key] = Node(inode, descriptor, key)
        else:
            os.close(descriptor)
        node.lookups += 1
        return Entry(node.inode, self.attributes(status, node.inode), 0, self._timeout_seconds)

    def lookup(self, parent: int, name: bytes, context: RequestContext) -> Entry:
        return self.entry(self.nodes[parent], name)

    def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        for inode, lookups in forgotten:
            node = self.nodes[inode]
            node.lookups -= lookups
            if node.lookups <= 0 and inode != ROOT_INODE:
                del self.nodes[inode]
                if self._by_key.get(node.key) is node:
                    del self._by_key[node.key]
                os.close(node.descriptor)

    def getattr(self, inode: int, handle: int | None, context: RequestContext) -> Attributes:
        return self.attributes(os.fstat(self.nodes[inode].descriptor), inode)

    def setattr(
        self, inode: int, changes: SetAttributes, handle: int | None, context: RequestContext
    ) -> Attributes:
        node = self.nodes[inode]
        if changes.uid is not None or changes.gid is not None:
            uid = 0xFFFF_FFFF if changes.uid is None else changes.uid
            gid = 0xFFFF_FFFF if changes.gid is None else changes.gid
            _checked(_libc.fchownat(node.descriptor, b"", uid, gid, _AT_EMPTY_PATH))
        if changes.mode is not None:
            os.chmod(node.path, stat.S_IMODE(changes.mode))
        if changes.size is not None:
            if handle is None:
                os.truncate(node.path, changes.size)
            else:
                os.ftruncate(self.handles[handle].descriptor, changes.size)
        self._set_times(node, changes)
        if changes.kill_privileges and (
            changes.size is not None or changes.uid is not None or changes.gid is not None
        ):
            self._kill_privileges(node)
        return self.attributes(os.fstat(node.descriptor), inode)

    def _set_times(self, node: Node, changes: SetAttributes) -> None:
        given = (changes.atime_ns, changes.mtime_ns, changes.atime_now, changes.mtime_now)
        if given == (None, None, False, False):
            return
        now = time.time_ns()
        pairs: list[int] = []
        for moment, at_once in ((changes.atime_ns, changes.atime_now), (changes.mtime_ns, changes.mtime_now)):
            chosen = now if at_once else moment
            pairs += (0, _UTIME_OMIT) if chosen is None else divmod(chosen, 10**9)
        _checked(_libc.utimensat(node.descriptor, b"", (ctypes.c_int64 * 4)(*pairs), _AT_EMPTY_PATH))

    def _kill_privileges(self, node: Node) -> None:
        mode = os.fstat(node.descriptor).st_mode
        killed = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            killed &= ~stat.S_ISGID
        if stat.S_ISREG(mode) and killed != mode:
            os.chmod(node.path, stat.S_IMODE(killed))

    # --- names ------------------------------------------------------------------------------------------------

    def _given_to(self, context: RequestContext, parent: Node, name: bytes) -> None:
        """Give a new name to who asked; a directory with set-group-ID gives its group."""
        if context.uid == os.geteuid() and context.gid == os.getegid():
            return
        above = os.fstat(parent.descriptor)
        gid = above.st_gid if above.st_mode & stat.S_ISGID else context.gid
        os.chown(name, context.uid, gid, dir_fd=parent.descriptor, follow_symlinks=False)

    def readlink(self, inode: int, context: RequestContext) -> bytes:
        return os.readlink(b"", dir_fd=self.nodes[inode].descriptor)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, context: RequestContext) -> Entry:
        above = self.nodes[parent]
        os.mknod(name, mode, rdev, dir_fd=above.descriptor)
        self._given_to(context, above, name)
        return self.entry(above, name)

    def mkdir(self, parent: int, name: bytes, mode: int, context: RequestContext) -> Entry:
        above = self.nodes[parent]
        os.mkdir(name, mode, dir_fd=above.descriptor)
        self._given_to(context, above, name)
        return self.entry(above, name)

    def symlink(self, parent: int, name: bytes, target: bytes, context: RequestContext) -> Entry:
        above = self.nodes[parent]
        os.symlink(target, name, dir_fd=above.descriptor)
        self._given_to(context, above, name)
        return self.entry(above, name)

    def unlink(self, parent: int, name: bytes, context: RequestContext) -> None:
        os.unlink(name, dir_fd=self.nodes[parent].descriptor)

    def rmdir(self, parent: int, name: bytes, context: RequestContext) -> None:
        os.rmdir(name, dir_fd=self.nodes[parent].descriptor)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: RenameFlags,
        context: RequestContext,
    ) -> None:
        old, new = self.nodes[parent].descriptor, self.nodes[new_parent].descriptor
        _checked(_libc.renameat2(old, name, new, new_name, int(flags)))

    def link(self, inode: int, new_parent: int, new_name: bytes, context: RequestContext) -> Entry:
        node, above = self.nodes[inode], self.nodes[new_parent]
        if os.geteuid():  # AT_EMPTY_PATH takes CAP_DAC_READ_SEARCH
            os.link(node.path, new_name, dst_dir_fd=above.descriptor, follow_symlinks=True)
        else:
            _checked(_libc.linkat(node.descriptor, b"", above.descriptor, new_name, _AT_EMPTY_PATH))
        return self.entry(above, new_name)

    # --- open files -------------------------------------------------------------------------------------------

    def _handle(self, descriptor: int, inode: int, flags: int) -> Opened:
        number, self._handle_next = self._handle_next, self._handle_next + 1
        self.handles[number] = Handle(descriptor, inode)
        # The kernel does not clear set-user-ID when it writes by itself.
        privileged = os.fstat(descriptor).st_mode & (stat.S_ISUID | stat.S_ISGID)
        backing = descriptor if self._passthrough and not privileged else None
        return Opened(number, backing=backing, no_flush=not flags & os.O_ACCMODE)

    def _reopened(self, node: Node, flags: int) -> int:
        """Open a node; for reading and writing if possible, because a backing file serves every later opener."""
        flags &= ~_OPEN_FLAGS_LEFT_OUT & ~os.O_APPEND  # the kernel gives the offset itself
        if self._passthrough and flags & os.O_ACCMODE != os.O_RDWR:
            try:
                return os.open(node.path, flags & ~os.O_ACCMODE | os.O_RDWR)
            except OSError:
                pass
        return os.open(node.path, flags)

    def open(self, inode: int, flags: int, kill_privileges: bool, context: RequestContext) -> Opened:
        node = self.nodes[inode]
        descriptor = self._reopened(node, flags)
        if kill_privileges and flags & os.O_TRUNC:
            self._kill_privileges(node)
        return self._handle(descriptor, inode, flags)

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, context: RequestContext
    ) -> tuple[Entry, Opened]:
        above = self.nodes[parent]
        made = flags & ~os.O_NOFOLLOW & ~os.O_ACCMODE & ~os.O_APPEND | os.O_CREAT | os.O_RDWR
        descriptor = os.open(name, made, mode, dir_fd=above.descriptor)
        self._given_to(context, above, name)
        entry = self.entry(above, name)
        return entry, self._handle(descriptor, entry.inode, flags)

    def read(self, handle: int, offset: int, size_bytes: int) -> Answer[Buffer]:
        opened = self.handles[handle]
        size = os.fstat(opened.descriptor).st_size
        if size < MAPPED_BYTES_MIN:
            return os.pread(opened.descriptor, size_bytes, offset)
        if opened.view is None or len(opened.view) < size:
            opened.view = memoryview(mmap.mmap(opened.descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ))
        return opened.view[offset : min(offset + size_bytes, size)]

    def write(self, handle: int, offset: int, data: memoryview, kill_privileges: bool) -> Answer[int]:
        opened = self.handles[handle]
        written = os.pwrite(opened.descriptor, data, offset)
        if kill_privileges:
            self._kill_privileges(self.nodes[opened.inode])
        return written

    def flush(self, handle: int, owner: int) -> None:
        self._posix_locks.released(self.handles[handle].inode, owner)

    def release(self, handle: int, flock_owner: int | None) -> None:
        opened = self.handles.pop(handle)
        if flock_owner is not None:
            self._flocks.released(opened.inode, flock_owner)
        os.close(opened.descriptor)

    def fsync(self, handle: int, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self.handles[handle].descriptor)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        descriptor = self.handles[handle].descriptor
        _checked(_libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        return os.lseek(self.handles[handle].descriptor, offset, whence)

    def copy_file_range(
        self, handle_in: int, offset_in: int, handle_out: int, offset_out: int, length: int
    ) -> int:
        source, target = self.handles[handle_in].descriptor, self.handles[handle_out].descriptor
        return os.copy_file_range(source, target, min(length, 1 << 30), offset_in, offset_out)

    def getlk(self, handle: int, owner: int, lock: Lock) -> Lock:
        found = self._posix_locks.conflict(self.handles[handle].inode, owner, lock)
        return found or Lock(fcntl.F_UNLCK, lock.start, lock.end)

    def setlk(self, handle: int, owner: int, lock: Lock, wait: bool) -> Answer[None]:
        inode = self.handles[handle].inode
        if wait:
            return self._posix_locks.wait(inode, owner, lock)
        self._posix_locks.set(inode, owner, lock)
        return None

    def flock(self, handle: int, owner: int, kind: int, wait: bool) -> Answer[None]:
        inode, lock = self.handles[handle].inode, Lock(kind, 0, END_MAX)
        if wait:
            return self._flocks.wait(inode, owner, lock)
        self._flocks.set(inode, owner, lock)
        return None

    # --- directories and the rest -----------------------------------------------------------------------------

    def opendir(self, inode: int, context: RequestContext) -> Opened:
        descriptor = os.open(self.nodes[inode].path, os.O_RDONLY | os.O_DIRECTORY)
        number, self._handle_next = self._handle_next, self._handle_next + 1
        self.handles[number] = Handle(descriptor, inode)
        return Opened(number, keep_cache=False)

    def readdir(self, handle: int, offset: int, reply: DirectoryReply) -> None:
        opened = self.handles[handle]
        if not offset:
            opened.listing = [(b".", 1, stat.S_IFDIR), (b"..", 1, stat.S_IFDIR)]
            with os.scandir(opened.descriptor) as found:
                opened.listing += [(os.fsencode(item.name), item.inode(), _kind(item)) for item in found]
        node, plus = self.nodes[opened.inode], reply.plus
        for number, (name, ino, mode) in enumerate(opened.listing[offset:], offset + 1):
            if plus and name not in (b".", b".."):
                try:
                    entry = self.entry(node, name)
                except FileNotFoundError:
                    continue
                if not reply.add_entry(name, number, entry):
                    self.forget([(entry.inode, 1)])
                    return
            elif not reply.add(name, number, ino, mode):
                return

    def releasedir(self, handle: int) -> None:
        os.close(self.handles.pop(handle).descriptor)

    def fsyncdir(self, handle: int, data_only: bool) -> None:
        os.fsync(self.handles[handle].descriptor)

    def statfs(self, inode: int) -> FileSystemStatus:
        status = os.fstatvfs(self.nodes[ROOT_INODE].descriptor)
        return FileSystemStatus(
            blocks=status.f_blocks,
            blocks_free=status.f_bfree,
            blocks_available=status.f_bavail,
            files=status.f_files,
            files_free=status.f_ffree,
            block_size=status.f_bsize,
            fragment_size=status.f_frsize,
            name_bytes_max=status.f_namemax,
        )

    def setxattr(self, inode: int, name: bytes, value: bytes, flags: int, context: RequestContext) -> None:
        os.setxattr(self.nodes[inode].path, name, value, flags)

    def getxattr(self, inode: int, name: bytes, context: RequestContext) -> bytes:
        return os.getxattr(self.nodes[inode].path, name)

    def listxattr(self, inode: int, context: RequestContext) -> Sequence[bytes]:
        return [os.fsencode(name) for name in os.listxattr(self.nodes[inode].path)]

    def removexattr(self, inode: int, name: bytes, context: RequestContext) -> None:
        os.removexattr(self.nodes[inode].path, name)


def _kind(item: "os.DirEntry[str]") -> int:
    if item.is_symlink():
        return stat.S_IFLNK
    if item.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if item.is_file(follow_symlinks=False) else 0


async def serve(source: str, directory: str, *, passthrough: bool) -> None:
    """Mount and serve until unmounted; say on stdout when it is there."""
    operations = PlainDirectory(source, passthrough=passthrough)
    async with trio.open_nursery() as nursery:
        await nursery.start(front.choose().front.run, operations, directory, MountOptions())
        print("ready", flush=True)
    operations.close()


if __name__ == "__main__":
    os.umask(0)
    trio.run(partial(serve, sys.argv[1], sys.argv[2], passthrough="--cached" not in sys.argv))
