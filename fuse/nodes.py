"""What the kernel knows of volumes, and what the mount knows of them: inodes, names, listings. Pure.

A `Node` is an inode. A directory's node keeps its listing, as the daemon told it, until that is said to be out of
date; then the new listing is compared with what the kernel was told, and only what differs becomes a `Notice`.
"""

import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from tbshare.fuse.operations import ROOT_INODE
from tbshare.volumes.shown import clash_key
from tbshare.wire.mount import Describe, MountItem, Path

_KINDS: Final = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "bundle": stat.S_IFDIR,
    "link": stat.S_IFLNK,
}
NO_VOLUME: Final = -1  # of the directory that shows all volumes
ROOT_ID: Final = 0  # of a volume's root, as the daemon knows it
ROOT_NUMBER: Final = 2  # st_ino of a volume's root, when the volume's id is none


class Notice(NamedTuple):
    """Something to tell the kernel. `kind`: entry | gone | expired | attributes | data."""

    kind: str
    inode: int
    name: bytes = b""
    child: int = 0


class Node:
    """One inode, for as long as the kernel knows it, or something is staged for it."""

    __slots__ = (
        "absent", "atime_ns", "by_key", "changed_ns", "children", "described_ns", "fresh", "generation", "ino",
        "inode", "item", "listing", "lookups", "names", "opens", "pending", "reader", "stage", "unsaid", "volume",
    )  # fmt: skip

    def __init__(self, inode: int, ino: int, volume: int, item: MountItem) -> None:
        self.inode = inode
        self.ino = ino  # what users see; stays, whatever becomes of the item's id
        self.volume = volume
        self.item = item  # replaced, never changed
        self.names: dict[tuple[Node, bytes], None] = {}
        self.lookups = 0
        self.opens = 0  # file handles that live
        self.stage: object | None = None
        self.reader: object | None = None
        self.pending = False
        self.unsaid: Describe | None = None  # of a pending file: attributes that its first version brings along
        self.changed_ns = 0  # when names in it changed, which no item says
        self.described_ns = 0  # when its attributes changed, which no item says
        self.atime_ns = 0
        # of directories
        self.listing: dict[bytes, MountItem] | None = None
        self.by_key: dict[bytes, bytes] | None = None
        self.fresh = False
        self.generation = 0  # counts what makes a listing that is on its way out of date
        self.absent: set[bytes] = set()  # names that the kernel was told there are not
        self.children: dict[bytes, Node] = {}

    @property
    def is_directory(self) -> bool:
        """Whether it is listed."""
        return self.item.kind in ("directory", "bundle")

    @property
    def type(self) -> int:
        """The kind of file, as in st_mode."""
        return _KINDS[self.item.kind]

    @property
    def parent(self) -> "Node | None":
        """The directory it is in, or one of them; None when it has no name."""
        return next(iter(self.names), (None, b""))[0]


class Tree:
    """All nodes of a mount."""

    def __init__(self, new_number: Callable[[], int]) -> None:
        """`new_number` returns a number of 63 bits that nothing else has."""
        self.by_inode: dict[int, Node] = {}
        self.sensitive: dict[int, bool] = {NO_VOLUME: False}  # by volume
        self._by_key: dict[tuple[int, int], Node] = {}
        self._next = ROOT_INODE
        self._new_number = new_number

    # ---- nodes ----------------------------------------------------------------------------------------

    def make_root(self, volume: int, item: MountItem) -> Node:
        """Make the root of the mount."""
        root = self._new(volume, item, ROOT_INODE if volume == NO_VOLUME else 0)
        root.lookups = 1  # never forgotten
        self._by_key[volume, item.id] = root
        return root

    def _new(self, volume: int, item: MountItem, ino: int = 0) -> Node:
        inode, self._next = self._next, self._next + 1
        node = Node(inode, ino or item.id or volume or ROOT_NUMBER, volume, item)
        self.by_inode[inode] = node
        return node

    def volume_root(self, root: Node, volume: int, item: MountItem) -> Node:
        """Return the root of one of the volumes that `root` shows, under the item's name."""
        node = self._by_key.get((volume, item.id))
        if node is None:
            node = self._new(volume, item)
            self._by_key[volume, item.id] = node
        self._name(node, root, item.name)
        return node

    def child(self, parent: Node, name: bytes, item: MountItem) -> Node:
        """Return the node of what a directory shows under a name; made when nobody asked for it before."""
        node = parent.children.get(name)
        if node is not None:
            return node
        known = self._by_key.get((parent.volume, item.id))
        if known is not None and _stays(known, item):
            known.item, node = item, known
        else:  # of a file that has other bytes by now, and nobody said so of this inode, the kernel may have pages
            node = self._new(parent.volume, item, known.ino if known is not None else 0)
            self._by_key[parent.volume, item.id] = node
        self._name(node, parent, name)
        return node

    def by_id(self, volume: int, number: int) -> Node | None:
        """Return the node of a file or directory, if the kernel knows it."""
        return self._by_key.get((volume, number))

    def forget(self, inode: int, lookups: int) -> Node | None:
        """Take lookups back; return the node if that was the last of it."""
        node = self.by_inode.get(inode)
        if node is None or inode == ROOT_INODE:
            return None
        node.lookups -= lookups
        return node if self.drop_unused(node) else None

    def drop_unused(self, node: Node) -> bool:
        """Drop a node that the kernel does not know and for which nothing is staged; say whether it is gone."""
        if node.lookups > 0 or node.opens or node.stage is not None or node.pending:
            return False
        for child in list(node.children.values()):
            self.drop_unused(child)
        if node.children or node.inode == ROOT_INODE:
            return False
        if self.by_inode.pop(node.inode, None) is None:
            return True
        key = node.volume, node.item.id
        if self._by_key.get(key) is node:
            del self._by_key[key]
        for parent, name in list(node.names):
            self._unname(node, parent, name)
            if parent.inode != ROOT_INODE:
                self.drop_unused(parent)
        return True

    def _name(self, node: Node, parent: Node, name: bytes) -> None:
        if node.is_directory:
            for above, known in list(node.names):
                if (above, known) != (parent, name):
                    self._unname(node, above, known)
        node.names[parent, name] = None
        parent.children[name] = node

    def _unname(self, node: Node, parent: Node, name: bytes) -> None:
        node.names.pop((parent, name), None)
        if parent.children.get(name) is node:
            del parent.children[name]

    def path(self, node: Node) -> Path | None:
        """Return the path in the volume; None when no name is left."""
        names: list[bytes] = []
        while True:
            parent, name = next(iter(node.names), (None, b""))
            if parent is None:
                return tuple(reversed(names)) if node.inode == ROOT_INODE else None
            if parent.volume != node.volume:
                return tuple(reversed(names))
            names.append(name)
            node = parent

    def below(self, directory: Node) -> Iterator[Node]:
        """Yield the nodes below a directory."""
        for node in list(directory.children.values()):
            yield node
            if node.is_directory:
                yield from self.below(node)

    # ---- listings -------------------------------------------------------------------------------------

    def find(self, directory: Node, name: bytes) -> MountItem | None:
        """Return what a listing shows under a name; where case does not count, also if it differs in that."""
        assert directory.listing is not None
        item = directory.listing.get(name)
        if item is not None or self.sensitive.get(directory.volume, True):
            return item
        if directory.by_key is None:
            directory.by_key = {_key(known): known for known in directory.listing}
        known = directory.by_key.get(_key(name))
        return directory.listing.get(known) if known is not None else None

    def loaded(self, directory: Node, items: Iterable[MountItem]) -> list[Notice]:
        """Take the listing of a directory; return what the kernel must hear of the difference."""
        listing = {item.name: item for item in items}
        notices: list[Notice] = []
        for name, node in list(directory.children.items()):
            if node.pending:
                listing[name] = node.item
                continue
            item = listing.get(name)
            if item is None:
                self._unname(node, directory, name)
                notices.append(Notice("gone", directory.inode, name, node.inode))
            elif item.id != node.item.id or node.is_directory != (item.kind in ("directory", "bundle")):
                self._unname(node, directory, name)
                notices.append(Notice("entry", directory.inode, name))
            else:
                notices += self.updated(node, item)
        directory.listing, directory.by_key, directory.fresh = listing, None, True
        for name in list(directory.absent):
            if self.find(directory, name) is not None:
                directory.absent.discard(name)
                notices.append(Notice("entry", directory.inode, name))
        return notices

    def updated(self, node: Node, item: MountItem) -> list[Notice]:
        """Let a node be what an item says; return what the kernel must hear."""
        before, node.item = node.item, item
        if before == item:
            return []
        same = (before.version, before.content, before.size) == (item.version, item.content, item.size)
        if not same and item.kind == "bundle":
            return [*self.outdate_below(node), Notice("attributes", node.inode)]
        if same or item.kind != "file" or node.stage is not None:
            return [Notice("attributes", node.inode)]
        if not node.opens:
            return [Notice("data", node.inode)]
        node.item = before  # who has it open goes on with the bytes it had: those that come get another inode
        return self.renew(node, item)

    def outdate(self, directory: Node) -> bool:
        """Note that a listing is out of date; say whether the kernel knows something of it."""
        directory.generation += 1
        directory.fresh = False
        if directory.children or directory.absent:
            return True
        directory.listing = directory.by_key = None
        return False

    def outdate_below(self, directory: Node) -> list[Notice]:
        """Note that all below is out of date; have the kernel ask again for what it knows of it."""
        notices: list[Notice] = []
        for each in [directory, *self.below(directory)]:
            if each.is_directory and self.outdate(each):
                notices += [Notice("expired", each.inode, name) for name in each.children]
                notices += [Notice("entry", each.inode, name) for name in each.absent]
                each.absent.clear()
            notices.append(Notice("attributes", each.inode))
        return notices

    # ---- what this mount changes ----------------------------------------------------------------------

    def put(self, parent: Node, name: bytes, item: MountItem, now_ns: int) -> Node:
        """Show something new in a directory."""
        self._listed(parent, name, item)
        parent.changed_ns = now_ns
        node = self._by_key.get((parent.volume, item.id))
        if node is not None and not node.is_directory:
            node.item = item
            self._name(node, parent, name)
            return node
        return self.child(parent, name, item)

    def add_pending(self, parent: Node, name: bytes, item: MountItem, now_ns: int) -> Node:
        """Show a file that has no version yet; its id is made up."""
        item = msgspec.structs.replace(item, name=name, id=self._new_number())
        self._listed(parent, name, item)
        parent.changed_ns = now_ns
        node = self._new(parent.volume, item)
        self._by_key[parent.volume, item.id] = node
        node.pending = True
        self._name(node, parent, name)
        return node

    def saved(self, node: Node, item: MountItem) -> None:
        """Let a node be the version that was just saved."""
        self.become(node, item)
        node.pending, node.unsaid = False, None
        for parent, name in node.names:
            self._listed(parent, name, item)
        self.drop_unused(node)

    def become(self, node: Node, item: MountItem) -> None:
        """Let a node stand for an item, of whatever id."""
        key = node.volume, node.item.id
        if self._by_key.get(key) is node:
            del self._by_key[key]
        node.item = item
        self._by_key[node.volume, item.id] = node  # of two that changed places, the second takes its own back

    def changed(self, node: Node, item: MountItem) -> None:
        """Let a node, and the listings it is in, have these attributes."""
        node.item = item
        for parent, name in node.names:
            self._listed(parent, name, item)

    def identified(self, node: Node, told: MountItem) -> None:
        """Take the ids of something that was shown before they were known."""
        item = msgspec.structs.replace(node.item, id=told.id, file=told.file, version=told.version)
        self.become(node, item)
        self.changed(node, item)
        self.drop_unused(node)

    def removed(self, parent: Node, name: bytes, now_ns: int) -> Node | None:
        """Show a name no more; return the node that had it."""
        self._unlisted(parent, name)
        parent.changed_ns = now_ns
        node = parent.children.get(name)
        if node is not None:
            self._unname(node, parent, name)
            if not node.is_directory and node.names:
                self.changed(node, msgspec.structs.replace(node.item, links=max(1, node.item.links - 1)))
        return node

    def moved(
        self, source: tuple[Node, bytes], target: tuple[Node, bytes], item: MountItem, now_ns: int
    ) -> Node | None:
        """Show what was under one name under another, which is free; return its node, if the kernel knows it."""
        node = source[0].children.get(source[1])
        self.removed(*source, now_ns)
        self._listed(*target, item)
        target[0].changed_ns = now_ns
        if node is not None:
            self._name(node, *target)
            self.become(node, item)
        return node

    def exchanged(
        self,
        first: tuple[Node, bytes],
        second: tuple[Node, bytes],
        at_first: MountItem,
        at_second: MountItem,
        now_ns: int,
    ) -> None:
        """Show under each of two names what was under the other; the items are what is there now."""
        nodes = first[0].children.get(first[1]), second[0].children.get(second[1])
        for node, (parent, name) in zip(nodes, (first, second), strict=True):
            if node is not None:
                self._unname(node, parent, name)
        for node, (parent, name), item in zip(nodes, (second, first), (at_second, at_first), strict=True):
            self._listed(parent, name, item)
            parent.changed_ns = now_ns
            if node is not None:
                node.described_ns = now_ns
                self._name(node, parent, name)
                self.become(node, item)

    def renew(self, node: Node, item: MountItem | None = None) -> list[Notice]:
        """Have the next lookup find a new node with the same number; this one lives on for those who have it.

        `item` is what the new one is, if that is another than the old one's.
        """
        key = node.volume, node.item.id
        if self._by_key.get(key) is node:
            del self._by_key[key]
        notices: list[Notice] = []
        for parent, name in list(node.names):
            notices.append(Notice("expired", parent.inode, name))
            fresh = parent.children.get(name)
            self._unname(node, parent, name)
            if fresh is node:
                heir = self.child(parent, name, item or node.item)
                heir.ino = node.ino
        return notices

    def _listed(self, parent: Node, name: bytes, item: MountItem) -> None:
        parent.generation += 1
        parent.absent.discard(name)
        if item.name != name:
            item = msgspec.structs.replace(item, name=name)
        if parent.listing is not None:
            parent.listing[name] = item
            if parent.by_key is not None:
                parent.by_key[_key(name)] = name

    def _unlisted(self, parent: Node, name: bytes) -> None:
        parent.generation += 1
        if parent.listing is not None:
            parent.listing.pop(name, None)
            if parent.by_key is not None:
                parent.by_key.pop(_key(name), None)


def _key(name: bytes) -> bytes:
    return name.lower() if name.isascii() else clash_key(name)


def _stays(node: Node, item: MountItem) -> bool:
    """Say whether a node may become what an item says without a word to the kernel."""
    if node.is_directory or item.kind in ("directory", "bundle"):
        return node.is_directory and item.kind in ("directory", "bundle")
    return node.stage is not None or (node.item.content, node.item.size) == (item.content, item.size)
