"""One mount, from beginning to end: the links to the daemon, the front, and what the daemon says meanwhile."""

import logging
import os
import time
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from tbshare.content.ref import folded
from tbshare.errors import MountFailed, TbshareError, VolumeUnknown
from tbshare.fuse import front, mounting
from tbshare.fuse.attributes import Owners, Shown
from tbshare.fuse.changes import Changes
from tbshare.fuse.link import Link
from tbshare.fuse.listings import Listings
from tbshare.fuse.names import Names, new_number
from tbshare.fuse.nodes import NO_VOLUME, ROOT_ID, Node, Notice, Tree
from tbshare.fuse.operations import FuseError, Session, missing
from tbshare.fuse.reading import Reading, ReadingOptions
from tbshare.fuse.volume_operations import VolumeOperations
from tbshare.fuse.writing import Writing
from tbshare.fuse.xattrs import Xattrs
from tbshare.wire import mount as wire
from tbshare.wire.report import AnyEvent, Done, MountLine

ROOM_SECONDS: Final = 1.0  # for which what statfs says is not asked for again
FINISH_SECONDS: Final = 60.0  # for what was written, at the end
ALL_VOLUMES_MODE: Final = 0o555
VOLUME_MODE: Final = 0o755

_log = logging.getLogger(__name__)


class Settings(msgspec.Struct, frozen=True):
    """What is mounted, where and how. `volume` empty: all of them, each as a directory."""

    home: str
    directory: str
    volume: str = ""
    front: str = ""
    allow_other: bool = False
    numeric_owners: bool = False
    allow_code: bool = False
    wait_seconds: float = 30.0  # for bytes of other nodes
    try_again: bool = False  # then EAGAIN, and not EIO
    complete: bool = False  # what was opened is fetched to its end


class Serving:
    """One mount that lives."""

    def __init__(self, settings: Settings, nursery: trio.Nursery) -> None:
        self.settings = settings
        self.link = Link(settings.home)
        self.waiting_link = Link(settings.home)  # for reads that wait for other nodes
        self.tree = Tree(new_number)
        self.listings = Listings(self.tree, self.link, allow_code=settings.allow_code)
        self.listings.nursery = nursery
        self.changes = Changes(self.link, nursery, self.listings.forget_volume)
        self.listings.settled = self.changes.settled
        shown = Shown(Owners(os.getuid(), os.getgid(), settings.numeric_owners))
        self.names = Names(self.tree, self.listings, shown, self.changes, time.time_ns)
        options = ReadingOptions(settings.wait_seconds, settings.try_again, settings.complete)
        reader = Reading(self.link, self.waiting_link, self.names, nursery, options)
        self.operations = VolumeOperations(
            self.names, Xattrs(reader.read_object), reader, self._room, time.time_ns
        )
        self.operations.writer = Writing(self.link, self.names, self.changes, reader, nursery)
        self._nursery = nursery
        self._root: Node | None = None
        self._told = wire.MountVolumeList()
        self._told_at = -ROOM_SECONDS

    async def prepare(self) -> None:
        """Learn of the volumes, and make the root; VolumeUnknown."""
        told = await self.link.call("mount_volumes", wire.MountVolumesParams(begins=True), wire.MountVolumeList)
        wanted = folded(self.settings.volume)
        chosen = [each for each in told.volumes if not wanted or folded(each.name) == wanted]
        if not chosen and wanted:
            names = ", ".join(sorted(each.name for each in told.volumes))
            raise VolumeUnknown(
                f"no volume {self.settings.volume}; the volumes are: {names}", cure="tbshare volume ls"
            )
        volume = chosen[0].id if wanted else NO_VOLUME
        item = _directory(b"", VOLUME_MODE if wanted else ALL_VOLUMES_MODE)
        self._root = self.tree.make_root(volume, item)
        if not wanted:
            self._root.listing, self._root.fresh = {}, True
        await self._take(told)

    async def _take(self, told: wire.MountVolumeList) -> None:
        """Show the volumes as they are now."""
        root = self._root
        assert root is not None
        self._told, self._told_at = told, trio.current_time()
        volumes = {each.id: each for each in told.volumes if root.volume in (NO_VOLUME, each.id)}
        self.names.volumes = volumes
        for number, volume in volumes.items():
            self.tree.sensitive[number] = volume.sensitive
        if root.volume != NO_VOLUME:
            return
        names = {each.name.encode(): each for each in volumes.values()}
        for name, node in list(root.children.items()):
            if name not in names or names[name].id != node.volume:
                self.tree.removed(root, name, time.time_ns())
                self.listings.tell([Notice("gone", root.inode, name, node.inode)])
        for name, volume in names.items():
            if name not in root.children:
                self.tree.volume_root(root, volume.id, _directory(name, VOLUME_MODE))
                root.absent.discard(name)
                self.listings.tell([Notice("entry", root.inode, name)])

    async def _room(self) -> wire.MountVolumeList:
        """Return sizes as they are, or were a moment ago."""
        if trio.current_time() - self._told_at >= ROOM_SECONDS:
            try:
                told = await self.link.call("mount_volumes", wire.MountVolumesParams(), wire.MountVolumeList)
            except TbshareError as error:
                raise FuseError(5) from error
            await self._take(told)
        return self._told

    def line(self, session: Session, name: str) -> MountLine:
        """Return what `status` says of this mount."""
        settings = self.settings
        volumes = [settings.volume] if settings.volume else []
        return MountLine(settings.directory, os.getpid(), name, missing(session.capabilities), volumes)

    # what the daemon says --------------------------------------------------------------------------------------

    async def follow(self, session: Session, name: str) -> None:
        """Stay attached to the daemon, and hear what is to be forgotten; for ever."""
        line = self.line(session, name)
        params = wire.MountAttachParams(line.directory, line.pid, line.front, line.lacking, line.volumes)
        while True:
            try:
                await self.link.call_lasting("mount_attach", params, Done, on_event=self._heard)
            except TbshareError as error:
                _log.warning("the daemon does not tell what changes: %s", error)
            await trio.sleep(ROOM_SECONDS)

    def _heard(self, event: AnyEvent) -> None:
        match event:
            case wire.MountForget():
                self.listings.forget(event, time.time_ns())
            case wire.MountVolumesChanged():
                if self.changes.attached != event.attached:  # of what was before nobody told us
                    self.changes.attached = event.attached
                    for volume in self.names.volumes:
                        self.listings.forget_volume(volume)
                self._nursery.start_soon(self._volumes_again)
            case _:
                pass

    async def _volumes_again(self) -> None:
        try:
            await self._take(
                await self.link.call("mount_volumes", wire.MountVolumesParams(), wire.MountVolumeList)
            )
        except TbshareError as error:
            _log.warning("the volumes cannot be asked for: %s", error)


def _directory(name: bytes, mode: int) -> wire.MountItem:
    return wire.MountItem(name, ROOT_ID, ROOT_ID, "directory", mode=mode)


async def serve(settings: Settings, ready: Callable[[MountLine], None], ending: trio.Event) -> None:
    """Mount, serve until somebody unmounts or `ending` is set, save what was written. MountFailed and others."""
    choice = front.choose(settings.front)
    await trio.to_thread.run_sync(mounting.recover, settings.directory)
    there = await trio.to_thread.run_sync(mounting.mounted_at, settings.directory)
    if there is not None:
        raise MountFailed(
            f"{settings.directory} is mounted already: {there.source}",
            cure=f"tbshare unmount {settings.directory}",
        )
    async with trio.open_nursery() as nursery:
        serving = Serving(settings, nursery)
        for link in (serving.link, serving.waiting_link):
            nursery.start_soon(link.run)
        await serving.prepare()
        operations = serving.operations
        nursery.start_soon(operations.reader.run)
        if operations.writer is not None:
            nursery.start_soon(operations.writer.run)
        options = mounting.MountOptions(
            name=f"tbshare:{settings.volume or 'all'}", allow_other=settings.allow_other
        )
        async with trio.open_nursery() as fronts:
            nursery.start_soon(_cancel_when, ending, fronts.cancel_scope)
            session = await fronts.start(choice.front.run, operations, settings.directory, options)
            nursery.start_soon(serving.follow, session, choice.front.name)
            ready(serving.line(session, choice.front.name))
        if operations.writer is not None:
            with trio.move_on_after(FINISH_SECONDS):
                await operations.writer.finish()
        with trio.move_on_after(FINISH_SECONDS):
            await serving.changes.all_settled()
        nursery.cancel_scope.cancel()


async def _cancel_when(ending: trio.Event, scope: trio.CancelScope) -> None:
    await ending.wait()
    scope.cancel()
