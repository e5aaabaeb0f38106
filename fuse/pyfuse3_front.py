"""The front on pyfuse3 (the extra `[fuse]`): libfuse speaks with the kernel, the same `Operations` answer.

What its interface lacks is in `CAPABILITIES`. One session for a process, and `Entry.inode` is the number users
see.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import ParamSpec, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, SetattrFields, StatvfsData

from tbshare.errors import MountFailed
from tbshare.fuse import mounting
from tbshare.fuse.failures import number_of
from tbshare.fuse.mounting import Mounted, MountOptions
from tbshare.fuse.notices import Notices
from tbshare.fuse.operations import (
    ROOT_INODE,
    Answer,
    Attributes,
    Buffer,
    Capabilities,
    Entry,
    Opened,
    Operations,
    RenameFlags,
    RequestContext,
    Session,
    SetAttributes,
)

CAPABILITIES = Capabilities(name="pyfuse3", store=True, max_write_bytes=1 << 20)

P = ParamSpec("P")
T = TypeVar("T")


class Pyfuse3Front:
    """Serves one mount by pyfuse3."""

    name = "pyfuse3"

    async def run(
        self,
        operations: Operations,
        directory: str,
        options: MountOptions,
        *,
        task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Mount, serve until somebody unmounts, and clean up; cancelled, unmount lazily."""
        mounting.check(directory)
        adapter = _Adapter(operations)
        try:
            pyfuse3.init(adapter, directory, _words(options))
        except RuntimeError as error:  # libfuse has said why on stderr
            raise MountFailed(f"{directory} cannot be mounted on by libfuse") from error
        mounted = await trio.to_thread.run_sync(Mounted, directory, options)
        serving = trio.CancelScope(shield=True)
        ended = trio.Event()

        async def serve() -> None:
            try:
                with serving:
                    await pyfuse3.main()
            finally:
                ended.set()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(adapter.session.notices.run)
                nursery.start_soon(serve)
                await trio.to_thread.run_sync(mounting.raise_read_ahead, directory)
                operations.started(adapter.session)
                task_status.started(adapter.session)
                try:
                    await ended.wait()
                except trio.Cancelled:
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(mounted.leave)
                    serving.cancel()
                    raise
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_close, mounted)


def _words(options: MountOptions) -> set[str]:
    words = {f"fsname={options.name}", f"subtype={options.subtype}", "nosuid", "nodev"}
    words.update(name for name in ("allow_other", "default_permissions") if getattr(options, name))
    if options.read_only:
        words.add("ro")
    return words


def _close(mounted: Mounted) -> None:
    mounted.leave()  # when serving failed
    pyfuse3.close(unmount=False)
    mounted.close()


class _Session(Session):
    """The live mount; pyfuse3 knows only one."""

    def __init__(self) -> None:
        self.notices = Notices()

    @property
    def capabilities(self) -> Capabilities:
        """What pyfuse3 can do."""
        return CAPABILITIES

    def invalidate_inode(self, inode: int, offset: int = 0, length: int = 0) -> None:
        """Drop attributes, and all pages if any."""
        self.notices.add(partial(pyfuse3.invalidate_inode, inode, attr_only=offset < 0))

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Forget a name."""
        self.notices.add(partial(pyfuse3.invalidate_entry, parent, name))

    def expire_entry(self, parent: int, name: bytes) -> None:
        """Forget a name; there is nothing milder."""
        self.invalidate_entry(parent, name)

    def delete_entry(self, parent: int, child: int, name: bytes) -> None:
        """Say that a name was removed."""
        self.notices.add(partial(pyfuse3.invalidate_entry, parent, name, child))

    def store(self, inode: int, offset: int, data: bytes) -> None:
        """Put bytes into the page cache."""
        self.notices.add(partial(pyfuse3.notify_store, inode, offset, data))

    async def settled(self) -> None:
        """Wait until all notices were taken."""
        await self.notices.settled()

    def io_mode(self, inode: int) -> str:
        """Return "cached": there is no other mode, and who has it open is not counted."""
        return "cached"


class _Reply:
    """One listing: always with attributes; `.` and `..` are the kernel's own."""

    plus = True

    def __init__(self, token: ReaddirToken) -> None:
        self._token = token

    def add(self, name: bytes, offset: int, ino: int, mode: int) -> bool:
        """Leave out `.` and `..`; all others have attributes here."""
        assert name in (b".", b".."), "a name without attributes where they are asked for"
        return True

    def add_entry(self, name: bytes, offset: int, entry: Entry) -> bool:
        """Add a name."""
        return pyfuse3.readdir_reply(self._token, name, _entry(entry), offset)


def _entry(entry: Entry) -> EntryAttributes:
    made = _attributes(entry.attributes)
    made.st_ino = entry.inode
    made.generation = entry.generation
    made.entry_timeout = entry.timeout_seconds
    return made


def _attributes(given: Attributes) -> EntryAttributes:
    made = EntryAttributes()
    made.st_ino = given.ino
    made.attr_timeout = given.timeout_seconds
    made.st_mode = given.mode
    made.st_nlink = given.nlink
    made.st_uid = given.uid
    made.st_gid = given.gid
    made.st_rdev = given.rdev
    made.st_size = given.size
    made.st_blksize = given.block_size
    made.st_blocks = given.blocks
    made.st_atime_ns = given.atime_ns
    made.st_mtime_ns = given.mtime_ns
    made.st_ctime_ns = given.ctime_ns
    return made


def _context(given: pyfuse3.RequestContext) -> RequestContext:
    return RequestContext(given.uid, given.gid, given.pid)


def _opened(given: Opened) -> FileInfo:
    return FileInfo(fh=given.handle, direct_io=given.direct_io, keep_cache=given.keep_cache)


async def _do(method: Callable[P, Answer[T]], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a method, and wait if need be; whatever it raises becomes an errno: pyfuse3 ends at all else."""
    try:
        answer = method(*arguments, **named)
        waits = hasattr(answer, "__await__")
        return await cast(Awaitable[T], answer) if waits else cast(T, answer)
    except Exception as error:
        raise FUSEError(number_of(error, getattr(method, "__name__", "a request"))) from error


class _Adapter(pyfuse3.Operations):
    """What pyfuse3 calls.

    libfuse takes HANDLE_KILLPRIV: set-user-ID is ours to clear at each write, truncation and chown, unasked.
    """

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._core = operations
        self.session = _Session()

    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        return _entry(await _do(self._core.lookup, parent_inode, name, _context(ctx)))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        try:
            self._core.forget(inode_list)
        except Exception as error:  # noqa: BLE001 - there is no answer that could say it
            number_of(error, "forget")

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        return _attributes(await _do(self._core.getattr, inode, None, _context(ctx)))

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> EntryAttributes:
        changes = SetAttributes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            kill_privileges=fields.update_size or fields.update_uid or fields.update_gid,
        )
        return _attributes(await _do(self._core.setattr, inode, changes, fh, _context(ctx)))

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await _do(self._core.readlink, inode, _context(ctx))

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        return _entry(await _do(self._core.mknod, parent_inode, name, mode, rdev, _context(ctx)))

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        return _entry(await _do(self._core.mkdir, parent_inode, name, mode, _context(ctx)))

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await _do(self._core.unlink, parent_inode, name, _context(ctx))

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await _do(self._core.rmdir, parent_inode, name, _context(ctx))

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        return _entry(await _do(self._core.symlink, parent_inode, name, target, _context(ctx)))

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        context = _context(ctx)
        await _do(
            self._core.rename, parent_inode_old, name_old, parent_inode_new, name_new, RenameFlags(flags), context
        )

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        return _entry(await _do(self._core.link, inode, new_parent_inode, new_name, _context(ctx)))

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> FileInfo:
        return _opened(await _do(self._core.open, inode, flags, True, _context(ctx)))

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        entry, opened = await _do(self._core.create, parent_inode, name, flags, mode, _context(ctx))
        return _opened(opened), _entry(entry)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        data: Buffer | Sequence[Buffer] = await _do(self._core.read, fh, off, size)
        # Any buffer will do, whatever the annotation says: a view of a map is sent without a copy.
        return cast(bytes, data) if isinstance(data, bytes | bytearray | memoryview) else b"".join(data)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await _do(self._core.write, fh, off, memoryview(buf), True)

    async def flush(self, fh: int) -> None:
        await _do(self._core.flush, fh, 0)

    async def release(self, fh: int) -> None:
        await _do(self._core.release, fh, None)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await _do(self._core.fsync, fh, datasync)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return (await _do(self._core.opendir, inode, _context(ctx))).handle

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        await _do(self._core.readdir, fh, start_id, _Reply(token))

    async def releasedir(self, fh: int) -> None:
        await _do(self._core.releasedir, fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await _do(self._core.fsyncdir, fh, datasync)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> StatvfsData:
        given = await _do(self._core.statfs, ROOT_INODE)
        made = StatvfsData()
        made.f_bsize, made.f_frsize, made.f_namemax = given.block_size, given.fragment_size, given.name_bytes_max
        made.f_blocks, made.f_bfree, made.f_bavail = given.blocks, given.blocks_free, given.blocks_available
        made.f_files, made.f_ffree, made.f_favail = given.files, given.files_free, given.files_free
        return made

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        await _do(self._core.setxattr, inode, name, value, 0, _context(ctx))

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return await _do(self._core.getxattr, inode, name, _context(ctx))

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await _do(self._core.listxattr, inode, _context(ctx))

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await _do(self._core.removexattr, inode, name, _context(ctx))

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        await _do(self._core.access, inode, mode, _context(ctx))
        return True
