"""The file system of a mount: volumes of the daemon, as `Operations`.

Names are in `names`, listings in `listings`, bytes with `reader` and `writer`. What is known is answered at once.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tbshare.fuse.attributes import Shown, times_of
from tbshare.fuse.directories import Directories
from tbshare.fuse.following import following
from tbshare.fuse.handles import FileHandle, Reader, Writer, answered
from tbshare.fuse.locks import END_MAX, Locks
from tbshare.fuse.names import Names
from tbshare.fuse.nodes import Node
from tbshare.fuse.operations import (
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
from tbshare.fuse.xattrs import Xattrs
from tbshare.wire import mount as wire

BLOCK_BYTES: Final = 4096
FILES_MAX: Final = 1 << 40  # what df -i shows: there is no number of files that is too many
KILLED: Final = stat.S_ISUID | stat.S_ISGID


class VolumeOperations(Operations):
    """Everything the kernel asks of a mount."""

    def __init__(
        self,
        names: Names,
        xattrs: Xattrs,
        reader: Reader,
        room: Callable[[], Answer[wire.MountVolumeList]],
        now_ns: Callable[[], int],
    ) -> None:
        self.names, self.tree, self.listings = names, names.tree, names.listings
        self.shown: Shown = names.shown
        self.reader = reader
        self.xattrs = xattrs
        self._room = room
        self._now_ns = now_ns
        self._handles: dict[int, FileHandle] = {}
        self._directories = Directories(self.tree, self.listings, self.shown)
        self._next = 1
        self._posix_locks, self._flocks = Locks(), Locks()

    @property
    def writer(self) -> Writer | None:
        """Who opens files for writing; None: nobody does here."""
        return self.names.writer

    @writer.setter
    def writer(self, writer: Writer) -> None:
        self.names.writer = writer
        self.shown.staged_size = writer.attributes

    def started(self, session: Session) -> None:
        """Take the live session."""
        self.listings.session = session

    # names -----------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes, context: RequestContext) -> Answer[Entry]:
        """Find a name."""
        return self.names.lookup(self.names.node(parent), name)

    def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        """Take lookups back."""
        for inode, lookups in forgotten:
            node = self.tree.forget(inode, lookups)
            if node is not None:
                self.reader.forgotten(node)
                if self.writer is not None:
                    self.writer.forgotten(node)

    def readlink(self, inode: int, context: RequestContext) -> Answer[bytes]:
        """Return where a link points."""
        node = self.names.node(inode)
        if node.item.kind != "link":
            raise FuseError(errno.EINVAL)
        return node.item.content

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, context: RequestContext) -> Answer[Entry]:
        """Make an empty file; a volume holds no pipes, sockets or devices."""
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise FuseError(errno.EPERM)
        return self._mknod(self.names.node(parent), name, mode, context)

    async def _mknod(self, parent: Node, name: bytes, mode: int, context: RequestContext) -> Entry:
        node, number, _ = await self._create(parent, name, os.O_WRONLY, mode, context)
        handle = self._handles.pop(number)
        await answered(handle.flush(0))
        node.lookups += 1
        await self._let_go(handle)
        return self.shown.entry(node, parent, name)

    def mkdir(self, parent: int, name: bytes, mode: int, context: RequestContext) -> Answer[Entry]:
        """Make a directory."""
        return self.names.mkdir(self.names.node(parent), name, mode, context)

    def unlink(self, parent: int, name: bytes, context: RequestContext) -> Answer[None]:
        """Remove a name of a file."""
        return self.names.unlink(self.names.node(parent), name)

    def rmdir(self, parent: int, name: bytes, context: RequestContext) -> Answer[None]:
        """Remove an empty directory."""
        return self.names.rmdir(self.names.node(parent), name)

    def symlink(self, parent: int, name: bytes, target: bytes, context: RequestContext) -> Answer[Entry]:
        """Make a symbolic link."""
        return self.names.symlink(self.names.node(parent), name, target, context)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: RenameFlags,
        context: RequestContext,
    ) -> Answer[None]:
        """Move a name."""
        return self.names.rename(self.names.node(parent), name, self.names.node(new_parent), new_name, flags)

    def link(self, inode: int, new_parent: int, new_name: bytes, context: RequestContext) -> Answer[Entry]:
        """Give a file one more name."""
        return self.names.link(self.names.node(inode), self.names.node(new_parent), new_name)

    # attributes ------------------------------------------------------------------------------------------------

    def getattr(self, inode: int, handle: int | None, context: RequestContext) -> Answer[Attributes]:
        """Return the attributes."""
        node = self.names.node(inode)
        parent = node.parent
        if parent is not None and not parent.fresh and parent.volume == node.volume:
            return self._getattr_later(node, parent)
        return self.shown.attributes(node)

    async def _getattr_later(self, node: Node, parent: Node) -> Attributes:
        await self.listings.fresh(parent)
        return self.shown.attributes(node)

    async def setattr(
        self, inode: int, changes: SetAttributes, handle: int | None, context: RequestContext
    ) -> Attributes:
        """Change attributes."""
        node = self.names.node(inode)
        self.names.writable(node)
        change = self._described(node, changes)
        if changes.size is not None:
            if node.is_directory:
                raise FuseError(errno.EISDIR)
            if self.writer is None:
                raise FuseError(errno.EROFS)
            open_file = self._handles.get(handle) if handle is not None else None
            await answered(self.writer.truncate(node, changes.size, open_file, changes.kill_privileges))
        await self._describe(node, change)
        atime_ns, _ = times_of(changes, self._now_ns())
        if atime_ns is not None:
            node.atime_ns = atime_ns
        return self.shown.attributes(node)

    def _described(self, node: Node, changes: SetAttributes) -> wire.Describe:
        """Return what a volume is to note; EPERM for an owner it does not keep."""
        mode = changes.mode & 0o7777 if changes.mode is not None else None
        uid, gid = changes.uid, changes.gid
        if not self.shown.owners.numeric:
            known = self.shown.owners.of(node)
            if (uid is not None and uid != known[0]) or (gid is not None and gid != known[1]):
                raise FuseError(errno.EPERM)
            uid = gid = None
        killed = changes.kill_privileges and node.type == stat.S_IFREG and node.item.mode & KILLED
        if killed and mode is None:
            mode = node.item.mode & ~stat.S_ISUID
            mode &= ~stat.S_ISGID if mode & stat.S_IXGRP else ~0
        return wire.Describe((), mode, uid, gid, times_of(changes, self._now_ns())[1])

    async def _describe(self, node: Node, change: wire.Describe) -> None:
        """Have attributes noted: by whoever has the file staged, and by the volume."""
        given = {name: value for name, value in _fields(change).items() if value is not None and value != {}}
        if not given:
            return
        node.described_ns = self._now_ns()
        await self.names.quiet(node)  # what is being saved knows nothing of this
        if "mtime_ns" in given and node.is_directory:
            node.changed_ns = 0
        if node.stage is not None or node.pending:
            taken = self.writer is not None and self.writer.describe(node, change.mode, change.mtime_ns)
            if node.pending:
                self._describe_pending(node, change)
                return
            if taken and set(given) <= {"mtime_ns"}:
                return
        path = self.tree.path(node)
        if path is None:
            shown = {name: value for name, value in given.items() if name != "xattrs"}
            node.item = msgspec.structs.replace(
                node.item, **shown, xattrs=_joined(node.item.xattrs, change.xattrs)
            )
            return
        change, known = msgspec.structs.replace(change, path=path), [node.item.file, *_above(node)]
        if not change.xattrs and node.item.kind in ("file", "directory") and not node.item.inside:
            self.tree.changed(node, msgspec.structs.replace(node.item, **given))
            await self.names.changes.tell(node.volume, change, known, _nothing)
            return
        item = await self.names.changes.ask(node.volume, change, known)
        assert item is not None
        self.tree.changed(node, msgspec.structs.replace(item, name=node.item.name))

    def _describe_pending(self, node: Node, change: wire.Describe) -> None:
        """Keep attributes of a file that has no version yet, until it has."""
        before = node.unsaid or wire.Describe(())
        given = {name: value for name, value in _fields(change).items() if value is not None and name != "xattrs"}
        node.unsaid = msgspec.structs.replace(before, **given, xattrs={**before.xattrs, **change.xattrs})
        xattrs = _joined(node.item.xattrs, change.xattrs)
        self.tree.changed(node, msgspec.structs.replace(node.item, **given, xattrs=xattrs))

    def statfs(self, inode: int) -> Answer[FileSystemStatus]:
        """Return what is free: of the volume's quota, and of the disk."""
        return self._statfs(self.names.node(inode))

    async def _statfs(self, node: Node) -> FileSystemStatus:
        told = await answered(self._room())
        volume = next((each for each in told.volumes if each.id == node.volume), None)
        whole, free = told.disk_bytes, told.free_bytes
        if volume is not None and volume.quota_bytes:
            left = max(0, volume.quota_bytes - volume.size_bytes)
            whole, free = volume.quota_bytes, min(left, free)
        if volume is not None and volume.mode == "models":
            free = 0
        files = sum(each.files for each in told.volumes if volume is None or each is volume)
        blocks = free // BLOCK_BYTES
        return FileSystemStatus(whole // BLOCK_BYTES, blocks, blocks, files + FILES_MAX, FILES_MAX)

    def access(self, inode: int, mode: int, context: RequestContext) -> None:
        """Say whether there is such a thing; the kernel has compared the modes."""
        node = self.names.node(inode)
        if mode & os.W_OK:
            self.names.writable(node)

    # extended attributes ---------------------------------------------------------------------------------------

    def getxattr(self, inode: int, name: bytes, context: RequestContext) -> Answer[bytes]:
        """Return an extended attribute."""
        return self.xattrs.value(self.names.node(inode), name)

    def listxattr(self, inode: int, context: RequestContext) -> Answer[Sequence[bytes]]:
        """Return the names of extended attributes."""
        return self.xattrs.names(self.names.node(inode))

    def setxattr(self, inode: int, name: bytes, value: bytes, flags: int, context: RequestContext) -> Answer[None]:
        """Set an extended attribute."""
        node = self.names.node(inode)
        self.names.writable(node)
        return self._describe(node, wire.Describe((), xattrs=self.xattrs.setting(node, name, value, flags)))

    def removexattr(self, inode: int, name: bytes, context: RequestContext) -> Answer[None]:
        """Remove an extended attribute."""
        node = self.names.node(inode)
        self.names.writable(node)
        return self._describe(node, wire.Describe((), xattrs=self.xattrs.removing(node, name)))

    # files -----------------------------------------------------------------------------------------------------

    def open(self, inode: int, flags: int, kill_privileges: bool, context: RequestContext) -> Answer[Opened]:
        """Open a file."""
        node = self.names.node(inode)
        if node.is_directory:
            raise FuseError(errno.EISDIR)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        number = self._number()
        if writes:
            self.names.writable(node)
        if not writes and node.stage is None:
            if self.writer is None or not self.writer.wants(node):
                return self._opened(node, number, self._read(node, flags, number))
            return self._opened(node, number, self._open_large(node, flags, number))
        if self.writer is None:
            raise FuseError(errno.EROFS)
        return self._opened(node, number, self.writer.open(node, flags, number, kill_privileges))

    def _read(self, node: Node, flags: int, number: int) -> Answer[tuple[FileHandle, Opened]]:
        volume = self.names.volumes.get(node.volume)
        if self.writer is not None and volume is not None and not volume.read_only:
            return following(node, flags, number, self.reader)
        return self.reader.open(node, flags, number)

    async def _open_large(self, node: Node, flags: int, number: int) -> tuple[FileHandle, Opened]:
        """Open what the writer wants to, unless its bytes would have to come here first."""
        whole = await answered(self.reader.is_whole(node))
        if self.writer is None or (not whole and node.stage is None):
            return await answered(self._read(node, flags, number))
        return await answered(self.writer.open(node, flags, number, False))

    def _opened(self, node: Node, number: int, answer: Answer[tuple[FileHandle, Opened]]) -> Answer[Opened]:
        if isinstance(answer, tuple):
            return self._keep(node, number, *answer)
        return self._opened_later(node, number, answer)

    async def _opened_later(self, node: Node, number: int, answer: Answer[tuple[FileHandle, Opened]]) -> Opened:
        node.opens += 1  # it must not go while it is being opened
        try:
            opened = self._keep(node, number, *await answered(answer))
        finally:
            node.opens -= 1
        return opened

    def _keep(self, node: Node, number: int, handle: FileHandle, opened: Opened) -> Opened:
        self._handles[number] = handle
        node.opens += 1
        return opened

    def _number(self) -> int:
        self._next += 1
        return self._next

    async def create(
        self, parent: int, name: bytes, flags: int, mode: int, context: RequestContext
    ) -> tuple[Entry, Opened]:
        """Make a file if it is not there, and open it."""
        above = self.names.node(parent)
        await self.names.fresh(above)
        node = self.names.shown_in(above, name)
        if node is not None:
            if flags & os.O_EXCL:
                raise FuseError(errno.EEXIST)
            opened = await answered(self.open(node.inode, flags, False, context))
        else:
            node, _, opened = await self._create(above, name, flags, mode, context)
        node.lookups += 1
        return self.shown.entry(node, above, name), opened

    async def _create(
        self, parent: Node, name: bytes, flags: int, mode: int, context: RequestContext
    ) -> tuple[Node, int, Opened]:
        await self.names.free(parent, name)
        if self.writer is None:
            raise FuseError(errno.EROFS)
        number = self._number()
        node, handle, opened = await answered(
            self.writer.create(parent, name, mode & 0o7777, flags, number, context)
        )
        return node, number, self._keep(node, number, handle, opened)

    def read(self, handle: int, offset: int, size_bytes: int) -> Answer[Buffer | Sequence[Buffer]]:
        """Return bytes of a file."""
        return self._handle(handle).read(offset, size_bytes)

    def write(self, handle: int, offset: int, data: memoryview, kill_privileges: bool) -> Answer[int]:
        """Write to a file."""
        return self._handle(handle).write(offset, data, kill_privileges)

    def flush(self, handle: int, owner: int) -> Answer[None]:
        """One close(2); POSIX locks of the owner end."""
        found = self._handle(handle)
        self._posix_locks.released(found.node.inode, owner)
        return found.flush(owner)

    def release(self, handle: int, flock_owner: int | None) -> Answer[None]:
        """Let go of a handle."""
        found = self._handle(handle)
        del self._handles[handle]
        if flock_owner is not None:
            self._flocks.released(found.node.inode, flock_owner)
        return self._let_go(found)

    async def _let_go(self, handle: FileHandle) -> None:
        try:
            await answered(handle.release())
        finally:
            handle.node.opens -= 1
            self.tree.drop_unused(handle.node)

    def fsync(self, handle: int, data_only: bool) -> Answer[None]:
        """Make what was written survive anything."""
        return self._handle(handle).fsync(data_only)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> Answer[None]:
        """Reserve, punch or zero."""
        return self._handle(handle).fallocate(mode, offset, length)

    def lseek(self, handle: int, offset: int, whence: int) -> Answer[int]:
        """Find data or a hole."""
        return self._handle(handle).lseek(offset, whence)

    def copy_file_range(
        self, handle_in: int, offset_in: int, handle_out: int, offset_out: int, length: int
    ) -> Answer[int]:
        """Copy within the file system."""
        return self._handle(handle_out).copy_from(self._handle(handle_in), offset_in, offset_out, length)

    # Locks hold among the processes of this mount. Between nodes who writes has the file's lease.

    def getlk(self, handle: int, owner: int, lock: Lock) -> Lock:
        """Return a lock that is in the way, or one of kind F_UNLCK."""
        found = self._posix_locks.conflict(self._handle(handle).node.inode, owner, lock)
        return found or Lock(fcntl.F_UNLCK, lock.start, lock.end)

    def setlk(self, handle: int, owner: int, lock: Lock, wait: bool) -> Answer[None]:
        """Take or give back a POSIX lock."""
        return _locked(self._posix_locks, self._handle(handle).node.inode, owner, lock, wait)

    def flock(self, handle: int, owner: int, kind: int, wait: bool) -> Answer[None]:
        """Take or give back a lock of a whole file."""
        lock = Lock(kind, 0, END_MAX)
        return _locked(self._flocks, self._handle(handle).node.inode, owner, lock, wait)

    def _handle(self, number: int) -> FileHandle:
        found = self._handles.get(number)
        if found is None:
            raise FuseError(errno.EBADF)
        return found

    # directories -----------------------------------------------------------------------------------------------

    def opendir(self, inode: int, context: RequestContext) -> Answer[Opened]:
        """Open a directory."""
        return self._directories.open(self.names.node(inode), self._number())

    def readdir(self, handle: int, offset: int, reply: DirectoryReply) -> Answer[None]:
        """Add entries to a listing."""
        return self._directories.read(handle, offset, reply)

    def releasedir(self, handle: int) -> None:
        """Close a directory."""
        self._directories.close(handle)

    async def fsyncdir(self, handle: int, data_only: bool) -> None:
        """Wait until all changes of names so far are durable; say when one did not come about."""
        volume = self._directories.volume(handle)
        await (self.names.changes.settled(volume) if self.writer is None else self.writer.told(volume))
        number = self.names.changes.failure(volume)
        if number:
            raise FuseError(number)


def _locked(locks: Locks, inode: int, owner: int, lock: Lock, wait: bool) -> Answer[None]:
    if wait and locks.conflict(inode, owner, lock) is not None:
        return locks.wait(inode, owner, lock)
    locks.set(inode, owner, lock)
    return None


def _fields(change: wire.Describe) -> dict[str, object]:
    names = ("mode", "uid", "gid", "mtime_ns", "birthtime_ns", "xattrs")
    return {name: getattr(change, name) for name in names}


def _joined(known: dict[bytes, bytes], changes: dict[bytes, bytes | None]) -> dict[bytes, bytes]:
    both: dict[bytes, bytes | None] = {**known, **changes}
    return {name: value for name, value in both.items() if value is not None}


def _above(node: Node) -> list[int]:
    """Return the ids of the directories a node is in."""
    return [parent.item.file for parent, _ in node.names]


def _nothing(_: wire.MountItem | None) -> None:
    """Nothing is to be mended any more."""
