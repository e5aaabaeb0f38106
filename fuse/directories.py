"""Open directories: what they showed when they were read from their start, and how that is told."""

import errno
import stat
from typing import Final

from tbshare.fuse.attributes import Shown
from tbshare.fuse.listings import Listings
from tbshare.fuse.nodes import NO_VOLUME, Node, Tree
from tbshare.fuse.operations import Answer, DirectoryReply, FuseError, Opened
from tbshare.wire.mount import MountItem

_TYPES: Final = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "bundle": stat.S_IFDIR, "link": stat.S_IFLNK}


class _Directory:
    """An open directory, and what it showed when it was read from its start."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.entries: list[tuple[bytes, MountItem]] = []


class Directories:
    """The open directories of a mount."""

    def __init__(self, tree: Tree, listings: Listings, shown: Shown) -> None:
        self._tree, self._listings, self._shown = tree, listings, shown
        self._open: dict[int, _Directory] = {}

    def open(self, node: Node, number: int) -> Answer[Opened]:
        """Open a directory; what it shows is of this moment or later."""
        if not node.is_directory:
            raise FuseError(errno.ENOTDIR)
        if node.fresh and node.listing is not None:
            return self._opened(node, number)
        return self._open_later(node, number)

    async def _open_later(self, node: Node, number: int) -> Opened:
        await self._listings.fresh(node)
        return self._opened(node, number)

    def _opened(self, node: Node, number: int) -> Opened:
        self._open[number] = _Directory(node)
        return Opened(number)

    def volume(self, number: int) -> int:
        """Return the volume of an open directory."""
        directory = self._open.get(number)
        if directory is None:
            raise FuseError(errno.EBADF)
        return directory.node.volume

    def close(self, number: int) -> None:
        """Close a directory."""
        self._open.pop(number, None)

    def read(self, number: int, offset: int, reply: DirectoryReply) -> Answer[None]:
        """Add entries to a listing."""
        directory = self._open.get(number)
        if directory is None:
            raise FuseError(errno.EBADF)
        if offset == 0 and not directory.node.fresh and directory.node.names:
            return self._read_later(directory, reply)
        self._read(directory, offset, reply)
        return None

    async def _read_later(self, directory: _Directory, reply: DirectoryReply) -> None:
        await self._listings.fresh(directory.node)
        self._read(directory, 0, reply)

    def _read(self, directory: _Directory, offset: int, reply: DirectoryReply) -> None:
        node = directory.node
        if offset == 0:
            directory.entries = _entries(node)
        above = node.parent or node
        dots = ((b".", node.ino), (b"..", above.ino))
        for place in range(offset, 2):
            if not reply.add(dots[place][0], place + 1, dots[place][1], stat.S_IFDIR):
                return
        first = max(offset, 2)
        if reply.plus:
            self._add_entries(directory, first, reply)
            return
        children, add = node.children, reply.add
        for place, (name, item) in enumerate(directory.entries[first - 2 :], first):
            child = children.get(name)
            ino = child.ino if child is not None else item.id
            if not add(name, place + 1, ino, _TYPES[item.kind]):
                return

    def _add_entries(self, directory: _Directory, first: int, reply: DirectoryReply) -> None:
        node = directory.node
        listing = node.listing if node.listing is not None else {}
        for place, (name, _) in enumerate(directory.entries[first - 2 :], first):
            child = node.children.get(name)
            if child is None:
                item = listing.get(name)
                if item is None:  # removed since the listing began
                    continue
                child = self._tree.child(node, name, item)
            if not reply.add_entry(name, place + 1, self._shown.entry(child, node, name)):
                self._tree.drop_unused(child)
                return
            child.lookups += 1


def _entries(node: Node) -> list[tuple[bytes, MountItem]]:
    if node.volume == NO_VOLUME:
        return [(name, child.item) for name, child in sorted(node.children.items())]
    return list(node.listing.items()) if node.listing is not None else []
