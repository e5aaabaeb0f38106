"""Files that are written to: staged at the first open, written in a file of this machine, cut into versions.

Every opener of a file that is staged, reader or writer, uses the one working file. When the last of them has
closed it, it is cut for good (`mount_cut`): in order, and who opens it meanwhile waits for that. Nothing is lost
when that fails: the working file stays, and it is tried again.
"""

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
import trio

from tbshare.errors import TbshareError, errno_of
from tbshare.fuse.changes import Changes
from tbshare.fuse.cuts import Spares
from tbshare.fuse.following import following
from tbshare.fuse.handles import FileHandle, Reader, answered
from tbshare.fuse.link import Link
from tbshare.fuse.names import Names
from tbshare.fuse.nodes import Node, Notice
from tbshare.fuse.operations import Answer, FuseError, Opened, RequestContext
from tbshare.fuse.saving import Saving
from tbshare.fuse.stage_handle import StageHandle
from tbshare.fuse.stages import Stage
from tbshare.wire import mount as wire
from tbshare.wire.parts import Params, Result
from tbshare.wire.report import Done

LOOK_SECONDS: Final = 1.0  # between two looks at what is idle, and at what could not be saved
PASSED_BYTES_MIN: Final = 1 << 20  # a smaller file is read faster than a working file of it is made
_log = logging.getLogger(__name__)
_R = TypeVar("_R", bound=Result)


class WritingOptions(msgspec.Struct, frozen=True):
    """`idle_seconds`: cut what was not written to for so long, 0: only when it is closed. `copies`: for fsync."""

    idle_seconds: float = 0.0
    copies: int = 1
    copies_seconds: float = 30.0


class Writing:
    """The writer of a mount. All in the trio thread."""

    def __init__(
        self,
        link: Link,
        names: Names,
        changes: Changes,
        reader: Reader,
        nursery: trio.Nursery,
        options: WritingOptions = WritingOptions(),  # noqa: B008  (immutable)
    ) -> None:
        self.reader = reader
        self._link, self._names, self._tree, self._changes = link, names, names.tree, changes
        self._nursery, self._options = nursery, options
        self._saving = Saving(link, names, changes, nursery)
        self._beginning: dict[Node, _Beginning] = {}
        self._spares = Spares(link, nursery, os.getpid())
        self._telling: set[trio.Event] = set()  # names that are gone or changed, and the daemon does not know yet
        self._clones = True  # until the daemon says otherwise

    # opening ---------------------------------------------------------------------------------------------------

    def wants(self, node: Node) -> bool:
        """Return whether a file that is opened for reading is to be opened here: see `handles.Writer`."""
        item = node.item
        large = item.kind == "file" and item.size >= PASSED_BYTES_MIN and not item.inside
        volume = self._names.volumes.get(node.volume)
        writable = volume is not None and not volume.read_only
        return large and writable and self._clones and self._link.connected

    def open(
        self, node: Node, flags: int, number: int, kill_privileges: bool
    ) -> Answer[tuple[FileHandle, Opened]]:
        """Open for writing; or a node that is staged, for anything."""
        stage = self._saving.stages.get(node)
        if stage is not None and not stage.closing and not flags & os.O_TRUNC:
            return self._opened(node, stage, flags, number)
        return self._open(node, flags, number, kill_privileges)

    async def _open(self, node: Node, flags: int, number: int, kill_privileges: bool) -> tuple[FileHandle, Opened]:
        truncates = bool(flags & os.O_TRUNC)
        if flags & os.O_ACCMODE == os.O_RDONLY and not truncates and not self.wants(node):
            closing = self._saving.stages.get(node)
            if closing is not None:
                async with closing.lock:
                    pass
            if node not in self._saving.stages:
                return await answered(following(node, flags, number, self.reader))
        stage = await self._staged(node, empty=truncates)
        if truncates:
            stage.truncate(0)
            if kill_privileges:
                self.kill_privileges(node, stage)
        return self._opened(node, stage, flags, number)

    def _opened(self, node: Node, stage: Stage, flags: int, number: int) -> tuple[FileHandle, Opened]:
        backing = stage.descriptor if stage.cloned else None
        return StageHandle(self, node, stage, flags), Opened(number, backing)

    def _tell(self, kind: str, node: Node) -> None:
        self._names.listings.tell([Notice(kind, node.inode)])

    async def create(
        self, parent: Node, name: bytes, mode: int, flags: int, number: int, context: RequestContext
    ) -> tuple[Node, FileHandle, Opened]:
        """Make a file under a name that is free, in a volume that may be written, and open it."""
        above = self._tree.path(parent)
        if above is None:
            raise FuseError(errno.ENOENT)
        await self._saving.cuts.room()
        staged = self._spares.take(parent.volume) or await self._stage_one(parent.volume, (*above, name), mode)
        now_ns = time.time_ns()
        uid, gid = self._names.owner_of_new(parent, context)
        item = wire.MountItem(
            name, 0, 0, "file", mode=mode, uid=uid, gid=gid, mtime_ns=now_ns, ctime_ns=now_ns, birthtime_ns=now_ns
        )
        node = self._tree.add_pending(parent, name, item, now_ns)
        stage = self._begun(node, staged, is_new=True)
        return node, *self._opened(node, stage, flags, number)

    async def _stage_one(self, volume: int, path: wire.Path, mode: int) -> wire.MountStaged:
        """Make the working file of a new file."""
        params = wire.MountStageParams(volume, path, os.getpid(), mode=mode)
        with trio.CancelScope(shield=True):
            await self._changes.settled(volume)
            return await self._ask("mount_stage", params, wire.MountStaged)
        raise AssertionError("nobody cancels what is shielded")

    async def _staged(self, node: Node, *, empty: bool = False) -> Stage:
        """Return the working file of a node; made if there is none."""
        while True:
            stage = self._saving.stages.get(node)
            if stage is not None and not stage.closing:
                return stage
            if stage is not None:
                async with stage.lock:
                    continue
            beginning = self._beginning.get(node)
            if beginning is None:
                beginning = self._beginning[node] = _Beginning()
                self._nursery.start_soon(self._begin, node, beginning, empty)
            beginning.waiting += 1
            try:
                await beginning.ended.wait()
            finally:
                beginning.waiting -= 1
            if beginning.error is not None:
                raise beginning.error

    async def _begin(self, node: Node, beginning: "_Beginning", empty: bool) -> None:
        """Make a working file, also if whoever asked for it is interrupted: another may be waiting."""
        item, path = node.item, self._tree.path(node)
        node.opens += 1
        try:
            if path is None and not item.file:
                raise FuseError(errno.ENOENT)
            params = wire.MountStageParams(
                node.volume,
                path or (),
                os.getpid(),
                item.file,
                item.version,
                item.content,
                item.mode,
                empty,
                item.mtime_ns,
            )
            await self._changes.settled(params.volume)
            staged = await self._ask("mount_stage", params, wire.MountStaged)
            stage = self._begun(node, staged, is_new=False)
            if not beginning.waiting:
                self._nursery.start_soon(self._saving.end, node, stage)
        except (FuseError, OSError) as error:
            beginning.error = error
        finally:
            node.opens -= 1
            del self._beginning[node]
            beginning.ended.set()
            self._tree.drop_unused(node)

    def _begun(self, node: Node, staged: wire.MountStaged, *, is_new: bool) -> Stage:
        path = self._tree.path(node) or ()
        stage = Stage(staged, path, node.item.file, node.item.version, is_new=is_new)
        self._clones = stage.cloned
        node.stage = self._saving.stages[node] = stage
        if not is_new:
            self._tell("attributes", node)  # what the kernel knows of it may not be kept any longer
        return stage

    # changing --------------------------------------------------------------------------------------------------

    async def truncate(
        self, node: Node, size_bytes: int, handle: FileHandle | None, kill_privileges: bool
    ) -> None:
        """Make a file shorter or longer."""
        if isinstance(handle, StageHandle) and not handle.writes:
            raise FuseError(errno.EINVAL)
        stage = await self._staged(node, empty=size_bytes == 0)
        stage.handles += 1
        try:
            await trio.to_thread.run_sync(stage.truncate, size_bytes)
            if kill_privileges:
                self.kill_privileges(node, stage)
        finally:
            stage.handles -= 1
        if not stage.handles:
            with trio.CancelScope(shield=True):
                await self._saving.end(node, stage, told=True)

    def kill_privileges(self, node: Node, stage: Stage) -> None:
        """Clear set-user-ID, and set-group-ID where it has that meaning: somebody else than the owner writes."""
        mode = node.item.mode & ~stat.S_ISUID
        mode &= ~stat.S_ISGID if mode & stat.S_IXGRP else ~0
        if mode != node.item.mode:
            stage.killed_mode = mode
            stage.touched()
            self._tree.changed(node, msgspec.structs.replace(node.item, mode=mode))
            self._tell("attributes", node)

    def attributes(self, node: Node) -> tuple[int, int, int]:
        """Return size, blocks and mtime_ns of what is staged for a node."""
        return self._saving.stages[node].attributes()

    def describe(self, node: Node, mode: int | None, mtime_ns: int | None) -> bool:
        """Take attributes of what is staged; False: the volume is to be told, too."""
        stage = self._saving.stages.get(node)
        if stage is None:
            return False
        if mode is not None:
            stage.killed_mode = None
        if mtime_ns is not None:
            stage.set_mtime(mtime_ns)
        return True

    # closing and syncing ---------------------------------------------------------------------------------------

    def flush(self, node: Node, stage: Stage) -> Answer[None]:
        """Tell close(2) that there is no room for what was written; only where there may be too little."""
        volume = self._names.volumes.get(node.volume)
        if volume is None or not volume.quota_bytes or not stage.changed():
            return None
        return self._flush(node, stage)

    async def _flush(self, node: Node, stage: Stage) -> None:
        await self._saving.counted()
        await self.sync(node, stage)

    async def sync(self, node: Node, stage: Stage) -> None:
        """Make what was written survive anything."""
        await trio.to_thread.run_sync(os.fdatasync, stage.descriptor)
        async with stage.lock:
            if self._saving.stages.get(node) is not stage:
                return  # it is a version already
            path = self._saving.path(node, stage)
            if stage.promised == path and self._options.copies <= 1:
                return
            options = self._options
            mode = node.item.mode if stage.is_new else None
            params = wire.MountSyncParams(stage.id, path, options.copies, options.copies_seconds, mode=mode)
            await self.told(node.volume)
            await self._ask("mount_sync", params, Done)
            stage.promised = path

    async def told(self, volume: int) -> None:
        """Wait until the daemon knows all names as they are now: nothing synced comes back under an old one."""
        for event in list(self._telling):
            await event.wait()
        await self._changes.settled(volume)

    def released(self, node: Node, stage: Stage) -> Answer[None]:
        """Take note that a handle is gone."""
        if self._saving.stages.get(node) is not stage:
            return None
        if stage.handles and (stage.writers or not stage.changed()):
            return None
        return self._released(node, stage)

    async def _released(self, node: Node, stage: Stage) -> None:
        with trio.CancelScope(shield=True):
            await self._saving.end(node, stage)

    # names -----------------------------------------------------------------------------------------------------

    def moved(self, node: Node) -> None:
        """Take note that a node that is staged, or a directory with some below, has another path."""
        for each in [node, *self._tree.below(node)] if node.is_directory else [node]:
            stage = self._saving.stages.get(each)
            if stage is None:
                continue
            if each.item.file != stage.file:  # it became a version of what it took the place of
                stage.file, stage.version = each.item.file, each.item.version
                stage.touched()
            if stage.promised is not None or stage.told:
                self._tell_aside(self._name_again, each, stage)

    def _tell_aside(self, work: Callable[[Node, Stage], Awaitable[None]], node: Node, stage: Stage) -> None:
        """Tell the daemon of a name, while whoever changed it goes on; `told` waits for it."""
        event = trio.Event()

        async def tell() -> None:
            try:
                await work(node, stage)
            finally:
                self._telling.discard(event)
                event.set()

        self._telling.add(event)
        self._nursery.start_soon(tell)

    async def _name_again(self, node: Node, stage: Stage) -> None:
        """Tell the daemon where a working file that it would recover belongs now; if it has a name at all."""
        async with stage.lock:
            if self._saving.stages.get(node) is not stage:
                return
            path = self._saving.path(node, stage)
            mode = node.item.mode if stage.is_new else None
            promised = stage.promised is not None
            params = wire.MountSyncParams(stage.id, path, promised=promised, mode=mode)
            try:
                await self._changes.settled(node.volume)
                await self._ask("mount_sync", params, Done)
            except FuseError as error:
                why = os.strerror(error.errno)
                _log.warning("%s: its new name is not noted yet: %s", self._saving.shown(node), why)
                return
            stage.promised = path if promised else None

    def removed(self, node: Node) -> None:
        """Take note that a node has no name any more."""
        stage = self._saving.stages.get(node)
        if stage is None:
            return
        stage.removed = True
        if not stage.handles:
            self._tell_aside(self._saving.end, node, stage)
        elif stage.is_new and (stage.promised is not None or stage.told):
            self._tell_aside(self._name_again, node, stage)

    def forgotten(self, node: Node) -> None:
        """Take note that the kernel knows a node no more."""

    async def quiet(self, node: Node) -> None:
        """Wait until no version is being cut of a node, or of what is below a directory."""
        await self._saving.quiet(node)

    async def settle(self, node: Node) -> None:
        """Make what is staged a version now."""
        await self._saving.settle(node)

    # tasks -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Cut what is idle, and try again what could not be saved; for ever."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            for node, stage in list(self._saving.stages.items()):
                await self._name(node, stage)
                idle = self._options.idle_seconds and stage.idle_seconds() >= self._options.idle_seconds
                if stage.failures or not stage.handles or (idle and stage.changed()):
                    await self._saving.end(node, stage)

    async def _name(self, node: Node, stage: Stage) -> None:
        """Tell the daemon where a new file is, so that it knows if this process is killed."""
        if stage.told or not stage.is_new or stage.lock.locked() or stage.removed:
            return
        params = wire.MountSyncParams(
            stage.id, self._saving.path(node, stage), promised=False, mode=node.item.mode
        )
        with contextlib.suppress(FuseError):
            await self._ask("mount_sync", params, Done)
            stage.told = True

    async def finish(self) -> None:
        """Save everything: the mount ends."""
        async with trio.open_nursery() as nursery:
            for node, stage in list(self._saving.stages.items()):
                nursery.start_soon(self._saving.end, node, stage)
        for spare in self._spares.rest():
            with contextlib.suppress(FuseError):
                await self._saving.unstage(spare.id)

    async def _ask(self, method: str, params: Params, kind: type[_R]) -> _R:
        try:
            return await self._link.call(method, params, kind)
        except TbshareError as error:
            raise FuseError(errno_of(error)) from error


class _Beginning:
    """A working file that is being made."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.waiting = 0
        self.error: FuseError | OSError | None = None
