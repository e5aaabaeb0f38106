"""Keeps listings as the daemon has them: asks when one is needed, and again when one is said to be out of date."""

import errno
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import trio

from tbshare.errors import TbshareError, errno_of
from tbshare.fuse.link import Link
from tbshare.fuse.nodes import NO_VOLUME, ROOT_ID, Node, Notice, Tree
from tbshare.fuse.operations import FuseError, Session
from tbshare.wire import mount as wire
from tbshare.wire.report import AnyEvent

TRIES: Final = 1000  # of a listing that goes out of date while it comes
AGAIN_SECONDS: Final = 0.005
EAGER_MAX: Final = 64  # directories that are asked for at once when they change; more are asked for when used
_log = logging.getLogger(__name__)


class Listings:
    """The listings of a mount."""

    def __init__(self, tree: Tree, link: Link, *, allow_code: bool) -> None:
        self.tree, self.link = tree, link
        self.settled: Callable[[int], Awaitable[None]] | None = None  # waits for changes on their way
        self.session: Session | None = None
        self.nursery: trio.Nursery | None = None
        self._allow_code = allow_code
        self._loading: dict[Node, trio.Event] = {}

    async def fresh(self, directory: Node) -> None:
        """Have the listing of a directory here, as of now or later; FuseError."""
        for _ in range(TRIES):
            if directory.fresh and directory.listing is not None:
                return
            loading = self._loading.get(directory)
            if loading is not None:
                await loading.wait()
                continue
            loading = self._loading[directory] = trio.Event()
            try:
                await self._load(directory)
            finally:
                del self._loading[directory]
                loading.set()
        if not directory.fresh or directory.listing is None:
            raise FuseError(errno.EAGAIN)

    async def _load(self, directory: Node) -> None:
        """Ask for a listing; it is not taken when it was out of date before it came."""
        if directory.volume == NO_VOLUME:
            return
        generation = directory.generation  # what changes from here on is not sure to be in it
        if self.settled is not None:
            await self.settled(directory.volume)
        path = self.tree.path(directory)
        if path is None:
            raise FuseError(errno.ENOENT)
        parts: list[wire.MountItem] = []

        def more(event: AnyEvent) -> None:
            if isinstance(event, wire.MountItems):
                parts.extend(event.items)

        params = wire.MountListParams(directory.volume, path, self._allow_code)
        try:
            listing = await self.link.call(
                "mount_list", params, wire.MountListing, on_event=more, resent=parts.clear
            )
        except TbshareError as error:
            raise FuseError(errno_of(error)) from error
        if directory.generation != generation or self.tree.path(directory) != path:
            return
        if path and listing.item.id != directory.item.id:  # it is just changing places with another
            await trio.sleep(AGAIN_SECONDS)
            return
        self._take(directory, [*parts, *listing.items], listing.item)

    def _take(self, directory: Node, items: Sequence[wire.MountItem], own: wire.MountItem) -> None:
        """Let a directory have what was listed, and tell the kernel what differs."""
        before = directory.listing
        notices = self.tree.loaded(directory, items)
        if before is not None and before.keys() != (directory.listing or {}).keys():
            directory.changed_ns = time.time_ns()
        if directory.parent is None or directory.parent.volume != directory.volume:  # no other listing has it
            notices += self.tree.updated(directory, msgspec.structs.replace(own, id=ROOT_ID))
        self.tell(notices)

    async def item(self, volume: int, path: wire.Path) -> wire.MountItem:
        """Ask what is at a path; FuseError."""
        params = wire.MountListParams(volume, path, self._allow_code)
        try:
            return (await self.link.call("mount_lookup", params, wire.MountListing)).item
        except TbshareError as error:
            raise FuseError(errno_of(error)) from error

    def tell(self, notices: Sequence[Notice]) -> None:
        """Tell the kernel what is no longer so."""
        session = self.session
        if session is None:
            return
        for kind, inode, name, child in notices:
            match kind:
                case "entry":
                    session.invalidate_entry(inode, name)
                case "gone":
                    session.delete_entry(inode, child, name)
                case "expired":
                    session.expire_entry(inode, name)
                case "attributes":
                    session.invalidate_inode(inode, -1)
                case _:
                    session.invalidate_inode(inode)

    # what the daemon says --------------------------------------------------------------------------------------

    def forget(self, event: wire.MountForget, now_ns: int) -> None:
        """Take note that something changed that this mount did not change."""
        tree = self.tree
        if not event.directories and not event.ids:
            self.forget_volume(event.volume)
            return
        stale: list[Node] = []
        for node in self._known(event.volume, event.directories):
            if tree.outdate(node):
                stale.append(node)  # whether its names are others is seen when it is listed
            else:
                node.changed_ns = now_ns
            self.tell([Notice("attributes", node.inode)])
        for node in self._known(event.volume, event.ids):
            node.described_ns = now_ns
            if node.item.kind == "bundle":
                self.tell(tree.outdate_below(node))
        if len(stale) > EAGER_MAX or self.nursery is None:
            for node in stale:
                self.tell(tree.outdate_below(node))
            return
        for node in stale:
            self.nursery.start_soon(self._again, node)

    def _known(self, volume: int, numbers: Sequence[int]) -> list[Node]:
        found = [self.tree.by_id(volume, number) for number in numbers]
        return [node for node in found if node is not None]

    def forget_volume(self, volume: int) -> None:
        """Take note that anything in a volume may be another than it was."""
        root = self.tree.by_id(volume, ROOT_ID)
        if root is not None:
            self.tell(self.tree.outdate_below(root))

    async def _again(self, directory: Node) -> None:
        """Ask for a listing that somebody may look at without asking us."""
        try:
            await self.fresh(directory)
        except FuseError:
            self.tell(self.tree.outdate_below(directory))
