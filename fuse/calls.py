"""From a message of the kernel to a method of `Operations`, and from its answer to bytes.

There is one method for each opcode. It takes a `Request` and returns two things: what the Operations answered (a
value, or an awaitable of it), and how to write that value. Nothing here waits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from tbshare.fuse import protocol, replies
from tbshare.fuse.backing import Backings
from tbshare.fuse.operations import Answer, Attributes, Buffer, Entry, Opened, Operations, RenameFlags
from tbshare.fuse.protocol import Opcode, Request, unpack

Reply: TypeAlias = Buffer | Sequence[Buffer]
# `Any`: what one method answers is what its own writer takes; the pair is made in one place, below.
Called: TypeAlias = tuple[Answer[Any], Callable[[Any], Reply]]


def _nothing(_: object) -> bytes:
    return b""


def _as_it_is(reply: Reply) -> Reply:
    return reply


class Calls:
    """The opcodes one mount answers: `table` maps each to its method."""

    def __init__(self, operations: Operations, backings: Backings) -> None:
        self._operations = operations
        self._backings = backings
        self.table: dict[int, Callable[[Request], Called]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.STATX: self._statx,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FLUSH: self._flush,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdir,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.STATFS: self._statfs,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.ACCESS: self._access,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.COPY_FILE_RANGE: self._copy_file_range,
            Opcode.GETLK: self._getlk,
            Opcode.SETLK: self._setlk,
            Opcode.SETLKW: self._setlk,
        }

    # --- names and attributes ---------------------------------------------------------------------------------

    def _lookup(self, request: Request) -> Called:
        name = protocol.name(request.body)
        return self._operations.lookup(request.inode, name, request.context()), replies.entry_out

    def _getattr(self, request: Request) -> Called:
        handle = protocol.optional_handle(protocol.GETATTR_IN, request.body, protocol.GETATTR_FH)
        return self._operations.getattr(request.inode, handle, request.context()), replies.attributes_out

    def _statx(self, request: Request) -> Called:
        handle = protocol.optional_handle(protocol.STATX_IN, request.body, protocol.GETATTR_FH)
        return self._operations.getattr(request.inode, handle, request.context()), replies.statx_out

    def _setattr(self, request: Request) -> Called:
        changes, handle = protocol.setattr_in(request.body)
        answer: Answer[Attributes] = self._operations.setattr(request.inode, changes, handle, request.context())
        return answer, replies.attributes_out

    def _readlink(self, request: Request) -> Called:
        return self._operations.readlink(request.inode, request.context()), _as_it_is

    def _symlink(self, request: Request) -> Called:
        name, target = protocol.names(request.body, 2)
        return self._operations.symlink(request.inode, name, target, request.context()), replies.entry_out

    def _mknod(self, request: Request) -> Called:
        mode, rdev, _, _ = unpack(protocol.MKNOD_IN, request.body)
        name = protocol.name(request.body, protocol.MKNOD_IN.size)
        return self._operations.mknod(request.inode, name, mode, rdev, request.context()), replies.entry_out

    def _mkdir(self, request: Request) -> Called:
        mode, _ = unpack(protocol.MKDIR_IN, request.body)
        name = protocol.name(request.body, protocol.MKDIR_IN.size)
        return self._operations.mkdir(request.inode, name, mode, request.context()), replies.entry_out

    def _unlink(self, request: Request) -> Called:
        return self._operations.unlink(request.inode, protocol.name(request.body), request.context()), _nothing

    def _rmdir(self, request: Request) -> Called:
        return self._operations.rmdir(request.inode, protocol.name(request.body), request.context()), _nothing

    def _rename(self, request: Request) -> Called:
        (new_parent,) = unpack(protocol.RENAME_IN, request.body)
        return self._renamed(request, new_parent, 0, protocol.RENAME_IN.size)

    def _rename2(self, request: Request) -> Called:
        new_parent, flags, _ = unpack(protocol.RENAME2_IN, request.body)
        return self._renamed(request, new_parent, flags, protocol.RENAME2_IN.size)

    def _renamed(self, request: Request, new_parent: int, flags: int, start: int) -> Called:
        name, new_name = protocol.names(request.body, 2, start)
        context = request.context()
        answer = self._operations.rename(request.inode, name, new_parent, new_name, RenameFlags(flags), context)
        return answer, _nothing

    def _link(self, request: Request) -> Called:
        (inode,) = unpack(protocol.LINK_IN, request.body)
        name = protocol.name(request.body, protocol.LINK_IN.size)
        return self._operations.link(inode, request.inode, name, request.context()), replies.entry_out

    # --- open files -------------------------------------------------------------------------------------------

    def _open(self, request: Request) -> Called:
        flags, open_flags = unpack(protocol.OPEN_IN, request.body)
        kill = bool(open_flags & protocol.OPEN_KILL_SUIDGID)
        answer = self._operations.open(request.inode, flags, kill, request.context())
        return answer, partial(self._opened, request.inode)

    def _opened(self, inode: int, opened: Opened) -> bytes:
        return replies.open_out(opened, self._backings.opened(inode, opened))

    def _create(self, request: Request) -> Called:
        flags, mode, _, _ = unpack(protocol.CREATE_IN, request.body)
        name = protocol.name(request.body, protocol.CREATE_IN.size)
        return self._operations.create(request.inode, name, flags, mode, request.context()), self._created

    def _created(self, made: tuple[Entry, Opened]) -> bytes:
        entry, opened = made
        return replies.entry_out(entry) + self._opened(entry.inode, opened)

    def _read(self, request: Request) -> Called:
        handle, offset, size, _, _, _, _ = unpack(protocol.READ_IN, request.body)
        return self._operations.read(handle, offset, size), _as_it_is

    def _write(self, request: Request) -> Called:
        return self._operations.write(*protocol.write_in(request.body)), replies.write_out

    def _flush(self, request: Request) -> Called:
        handle, _, _, owner = unpack(protocol.FLUSH_IN, request.body)
        return self._operations.flush(handle, owner), _nothing

    def _release(self, request: Request) -> Called:
        handle, _, flags, owner = unpack(protocol.RELEASE_IN, request.body)
        self._backings.released(request.inode, handle)
        flock_owner = owner if flags & protocol.RELEASE_FLOCK_UNLOCK else None
        return self._operations.release(handle, flock_owner), _nothing

    def _fsync(self, request: Request) -> Called:
        handle, flags, _ = unpack(protocol.FSYNC_IN, request.body)
        return self._operations.fsync(handle, bool(flags & protocol.FSYNC_FDATASYNC)), _nothing

    def _fallocate(self, request: Request) -> Called:
        handle, offset, length, mode, _ = unpack(protocol.FALLOCATE_IN, request.body)
        return self._operations.fallocate(handle, mode, offset, length), _nothing

    def _lseek(self, request: Request) -> Called:
        handle, offset, whence, _ = unpack(protocol.LSEEK_IN, request.body)
        return self._operations.lseek(handle, offset, whence), replies.lseek_out

    def _copy_file_range(self, request: Request) -> Called:
        fields = unpack(protocol.COPY_FILE_RANGE_IN, request.body)
        handle_in, offset_in, _, handle_out, offset_out, length, _ = fields
        answer = self._operations.copy_file_range(handle_in, offset_in, handle_out, offset_out, length)
        return answer, replies.write_out

    def _getlk(self, request: Request) -> Called:
        handle, owner, lock, _ = protocol.lock_in(request.body)
        return self._operations.getlk(handle, owner, lock), replies.lock_out

    def _setlk(self, request: Request) -> Called:
        handle, owner, lock, whole = protocol.lock_in(request.body)
        wait = request.opcode == Opcode.SETLKW
        if whole:
            return self._operations.flock(handle, owner, lock.kind, wait), _nothing
        return self._operations.setlk(handle, owner, lock, wait), _nothing

    # --- directories ------------------------------------------------------------------------------------------

    def _opendir(self, request: Request) -> Called:
        answer = self._operations.opendir(request.inode, request.context())
        return answer, partial(replies.open_out, backing=None)

    def _readdir(self, request: Request) -> Called:
        handle, offset, size, _, _, _, _ = unpack(protocol.READ_IN, request.body)
        listing = replies.Listing(size, request.opcode == Opcode.READDIRPLUS)
        return self._operations.readdir(handle, offset, listing), lambda _: listing.encoded()

    def _releasedir(self, request: Request) -> Called:
        return self._operations.releasedir(unpack(protocol.RELEASE_IN, request.body)[0]), _nothing

    def _fsyncdir(self, request: Request) -> Called:
        handle, flags, _ = unpack(protocol.FSYNC_IN, request.body)
        return self._operations.fsyncdir(handle, bool(flags & protocol.FSYNC_FDATASYNC)), _nothing

    # --- the rest ---------------------------------------------------------------------------------------------

    def _statfs(self, request: Request) -> Called:
        return self._operations.statfs(request.inode), replies.statfs_out

    def _setxattr(self, request: Request) -> Called:
        name, value, flags = protocol.setxattr_in(request.body)
        return self._operations.setxattr(request.inode, name, value, flags, request.context()), _nothing

    def _getxattr(self, request: Request) -> Called:
        room, _ = unpack(protocol.GETXATTR_IN, request.body)
        name = protocol.name(request.body, protocol.GETXATTR_IN.size)
        answer = self._operations.getxattr(request.inode, name, request.context())
        return answer, partial(replies.attribute_value_out, room_bytes=room)

    def _listxattr(self, request: Request) -> Called:
        room, _ = unpack(protocol.GETXATTR_IN, request.body)
        answer = self._operations.listxattr(request.inode, request.context())
        return answer, partial(replies.attribute_names_out, room_bytes=room)

    def _removexattr(self, request: Request) -> Called:
        return self._operations.removexattr(
            request.inode, protocol.name(request.body), request.context()
        ), _nothing

    def _access(self, request: Request) -> Called:
        mode, _ = unpack(protocol.ACCESS_IN, request.body)
        return self._operations.access(request.inode, mode, request.context()), _nothing
