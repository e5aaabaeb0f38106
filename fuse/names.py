"""Names of a mount: found, made, moved, removed. What the daemon does is mended here, and not asked for again."""

import errno
import os
from collections.abc import Callable
from typing import Final

import msgspec

from tbshare.content.tree import DEPTH_MAX, LINK_BYTES_MAX, NAME_BYTES_MAX
from tbshare.fuse.attributes import KNOWN_SECONDS, Shown
from tbshare.fuse.changes import Changes
from tbshare.fuse.handles import Writer
from tbshare.fuse.listings import Listings
from tbshare.fuse.nodes import NO_VOLUME, Node, Tree
from tbshare.fuse.operations import Answer, Entry, FuseError, RenameFlags, RequestContext, absent
from tbshare.volumes.bundle import is_bundle_name
from tbshare.wire import mount as wire

SET_GROUP_ID: Final = 0o2000


class Names:
    """The names of all volumes of a mount."""

    def __init__(
        self,
        tree: Tree,
        listings: Listings,
        shown: Shown,
        changes: Changes,
        now_ns: Callable[[], int],
    ) -> None:
        self.tree, self.listings, self.shown, self.changes = tree, listings, shown, changes
        self.writer: Writer | None = None
        self.volumes: dict[int, wire.MountVolume] = {}
        self._now_ns = now_ns

    # finding ---------------------------------------------------------------------------------------------------

    def node(self, inode: int) -> Node:
        """Return a node the kernel knows."""
        node = self.tree.by_inode.get(inode)
        if node is None:
            raise FuseError(errno.ESTALE)
        return node

    def lookup(self, parent: Node, name: bytes) -> Answer[Entry]:
        """Find a name, with one more lookup of its node."""
        if parent.fresh and parent.listing is not None:
            return self._found(parent, name)
        if len(name) > NAME_BYTES_MAX:
            raise FuseError(errno.ENAMETOOLONG)
        return self._lookup_later(parent, name)

    async def _lookup_later(self, parent: Node, name: bytes) -> Entry:
        await self.fresh(parent)
        return self._found(parent, name)

    def _found(self, parent: Node, name: bytes) -> Entry:
        node = self.shown_in(parent, name)
        if node is None:
            if len(name) > NAME_BYTES_MAX:
                raise FuseError(errno.ENAMETOOLONG)
            parent.absent.add(name)
            return absent(KNOWN_SECONDS)
        node.lookups += 1
        return self.shown.entry(node, parent, name)

    def shown_in(self, parent: Node, name: bytes) -> Node | None:
        """Return what a directory with a fresh listing shows under a name."""
        node = parent.children.get(name)
        if node is not None or parent.volume == NO_VOLUME:
            return node
        item = self.tree.find(parent, name)
        return None if item is None else self.tree.child(parent, item.name, item)

    async def fresh(self, directory: Node) -> None:
        """Have a directory's listing here; ENOTDIR."""
        if not directory.is_directory:
            raise FuseError(errno.ENOTDIR)
        await self.listings.fresh(directory)

    async def there(self, parent: Node, name: bytes) -> Node:
        """Return what has a name; ENOENT."""
        await self.fresh(parent)
        node = self.shown_in(parent, name)
        if node is None:
            raise FuseError(errno.ENAMETOOLONG if len(name) > NAME_BYTES_MAX else errno.ENOENT)
        return node

    async def free(self, parent: Node, name: bytes) -> None:
        """Check that a name may be made in a directory; EEXIST, ENAMETOOLONG, EROFS, ENOENT for one removed."""
        self.writable(parent)
        if len(name) > NAME_BYTES_MAX:
            raise FuseError(errno.ENAMETOOLONG)
        await self.fresh(parent)
        if self.shown_in(parent, name) is not None:
            raise FuseError(errno.EEXIST)
        if len(self._path(parent)) >= DEPTH_MAX:
            raise FuseError(errno.ENAMETOOLONG)

    def writable(self, node: Node) -> None:
        """EROFS where nothing is written; EPERM where volumes are."""
        if node.volume == NO_VOLUME:
            raise FuseError(errno.EPERM)
        volume = self.volumes.get(node.volume)
        if volume is None or volume.read_only:
            raise FuseError(errno.EROFS)

    def _path(self, node: Node) -> wire.Path:
        path = self.tree.path(node)
        if path is None:
            raise FuseError(errno.ENOENT)
        return path

    def _at(self, parent: Node, name: bytes) -> wire.Path:
        return (*self._path(parent), name)

    # making ----------------------------------------------------------------------------------------------------

    def owner_of_new(self, parent: Node, context: RequestContext) -> tuple[int | None, int | None]:
        """Return user and group to note of something new: none, unless owners are numbers here."""
        if not self.shown.owners.numeric:
            return None, None
        inherits = parent.item.mode & SET_GROUP_ID
        return context.uid, self.shown.owners.of(parent)[1] if inherits else context.gid

    async def mkdir(self, parent: Node, name: bytes, mode: int, context: RequestContext) -> Entry:
        """Make a directory."""
        await self.free(parent, name)
        uid, gid = self.owner_of_new(parent, context)
        mode = mode & 0o7777 | (parent.item.mode & SET_GROUP_ID if self.shown.owners.numeric else 0)
        change = wire.Mkdir(self._at(parent, name), mode, uid, gid)
        if not _is_plain(parent) or is_bundle_name(name):
            return await self._made(parent, name, change)
        return await self._foreseen(parent, change, self._new_item(name, "directory", mode, uid, gid))

    async def symlink(self, parent: Node, name: bytes, target: bytes, context: RequestContext) -> Entry:
        """Make a symbolic link."""
        await self.free(parent, name)
        uid, gid = self.owner_of_new(parent, context)
        change = wire.Symlink(self._at(parent, name), target, uid, gid)
        if not _is_plain(parent) or len(target) > LINK_BYTES_MAX:
            return await self._made(parent, name, change)
        item = msgspec.structs.replace(self._new_item(name, "link", 0o777, uid, gid), content=target)
        return await self._foreseen(parent, change, item)

    def _new_item(self, name: bytes, kind: str, mode: int, uid: int | None, gid: int | None) -> wire.MountItem:
        """Return what something new will be, but for its ids."""
        now_ns = self._now_ns()
        return wire.MountItem(
            name,
            new_number(),
            0,
            kind,
            mode=mode,
            uid=uid,
            gid=gid,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
            birthtime_ns=now_ns,
        )

    async def _foreseen(self, parent: Node, change: wire.Mkdir | wire.Symlink, item: wire.MountItem) -> Entry:
        """Show something new before it is done; the ids come later."""
        node = self.tree.put(parent, item.name, item, self._now_ns())
        if node.is_directory:
            node.listing, node.fresh = {}, True
        entry = self._entry(parent, item.name)

        def done(told: wire.MountItem | None) -> None:
            if told is not None:
                self.tree.identified(node, told)

        await self.changes.tell(parent.volume, change, [parent.item.file], done)
        return entry

    async def link(self, node: Node, parent: Node, name: bytes) -> Entry:
        """Give a file one more name."""
        if node.is_directory:
            raise FuseError(errno.EPERM)
        if node.volume != parent.volume:
            raise FuseError(errno.EXDEV)
        await self.free(parent, name)
        await self.quiet(node)
        await self._settled(node)
        source = self._path(node)
        item = await self.changes.ask(
            parent.volume, wire.Link(source, self._at(parent, name)), [parent.item.file, node.item.file]
        )
        assert item is not None
        self.tree.changed(node, msgspec.structs.replace(item, name=node.item.name))
        self.tree.put(parent, name, item, self._now_ns())
        node.described_ns = self._now_ns()
        return self._entry(parent, name)

    async def _made(self, parent: Node, name: bytes, change: wire.MountChange) -> Entry:
        item = await self.changes.ask(parent.volume, change, [parent.item.file])
        assert item is not None
        node = self.tree.put(parent, name, item, self._now_ns())
        if node.is_directory and item.kind == "directory":
            node.listing, node.fresh = {}, True
        return self._entry(parent, name)

    def _entry(self, parent: Node, name: bytes) -> Entry:
        node = parent.children[name]
        node.lookups += 1
        return self.shown.entry(node, parent, name)

    # removing --------------------------------------------------------------------------------------------------

    async def unlink(self, parent: Node, name: bytes) -> None:
        """Remove a name of a file."""
        node = await self.there(parent, name)
        self.writable(parent)
        if node.is_directory:
            raise FuseError(errno.EISDIR)
        name = self._own_name(node, parent, name)
        await self.quiet(node)
        if not node.pending:
            await self._gone(node, parent, wire.Unlink(self._at(parent, name)))
        self._removed(parent, name)

    def _own_name(self, node: Node, parent: Node, name: bytes) -> bytes:
        """Return a name as the listing writes it."""
        return (
            name if (parent, name) in node.names else next(each for above, each in node.names if above is parent)
        )

    def _removed(self, parent: Node, name: bytes) -> None:
        now_ns = self._now_ns()
        node = self.tree.removed(parent, name, now_ns)
        if node is None:
            return
        node.described_ns = now_ns
        for above, _ in node.names:  # of a file whose version was replaced under another name
            self.tree.outdate(above)
        if not node.names:
            if self.writer is not None:
                self.writer.removed(node)
            self.tree.drop_unused(node)

    async def rmdir(self, parent: Node, name: bytes) -> None:
        """Remove an empty directory."""
        node = await self.there(parent, name)
        if node.volume != parent.volume:
            raise FuseError(errno.EBUSY)  # a volume: tbshare volume rm
        self.writable(parent)
        if not node.is_directory:
            raise FuseError(errno.ENOTDIR)
        name = self._own_name(node, parent, name)
        await self.fresh(node)
        if node.listing:
            raise FuseError(errno.ENOTEMPTY)
        await self._gone(node, parent, wire.Rmdir(self._at(parent, name)))
        self._removed(parent, name)

    async def _gone(self, node: Node, parent: Node, change: wire.Unlink | wire.Rmdir) -> None:
        """Have a name removed: at once where that can be foreseen."""
        known = [parent.item.file, node.item.file]
        if _is_plain(parent) and node.item.kind != "bundle" and not node.item.fork:
            await self.changes.tell(parent.volume, change, known, _nothing)
        else:
            await self.changes.ask(parent.volume, change, known)

    # moving ----------------------------------------------------------------------------------------------------

    async def rename(
        self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, flags: RenameFlags
    ) -> None:
        """Move a name; a file over a file is a new version of that one."""
        if flags & ~(RenameFlags.NOREPLACE | RenameFlags.EXCHANGE):
            raise FuseError(errno.EINVAL)
        node = await self.there(parent, name)
        if parent.volume != new_parent.volume or node.volume != parent.volume:
            raise FuseError(errno.EXDEV)
        self.writable(parent)
        if len(new_name) > NAME_BYTES_MAX:
            raise FuseError(errno.ENAMETOOLONG)
        await self.fresh(new_parent)
        name = self._own_name(node, parent, name)
        target = self.shown_in(new_parent, new_name)
        if target is node and (new_parent, new_name) in node.names:
            return  # the same file, or two of its names: nothing happens
        if target is node and parent is new_parent:
            target = None  # another way to write its name
        if target is not None:
            new_name = self._own_name(target, new_parent, new_name)
        await self.quiet(node, target)
        if flags & RenameFlags.EXCHANGE:
            await self._exchange((parent, name, node), (new_parent, new_name, target))
            return
        if target is not None:
            await self._check_over(node, target, noreplace=bool(flags & RenameFlags.NOREPLACE))
        await self._move((parent, name, node), (new_parent, new_name, target))

    async def _check_over(self, node: Node, target: Node, *, noreplace: bool) -> None:
        """Check that something may take the place of something else."""
        if noreplace:
            raise FuseError(errno.EEXIST)
        if target.is_directory != node.is_directory:
            raise FuseError(errno.EISDIR if target.is_directory else errno.ENOTDIR)
        if target.is_directory and node.is_directory:
            await self.fresh(target)
            if target.listing:
                raise FuseError(errno.ENOTEMPTY)

    async def _move(self, source: tuple[Node, bytes, Node], target: tuple[Node, bytes, Node | None]) -> None:
        parent, name, node = source
        new_parent, new_name, over = target
        if over is not None and over.pending:
            self._removed(new_parent, new_name)
            over = None
        if node.pending and over is None:
            item = msgspec.structs.replace(node.item, name=new_name)
        else:
            await self._settled(node)
            known = [parent.item.file, new_parent.item.file, node.item.file]
            known += [over.item.file] if over is not None else []
            change = wire.Rename(self._at(parent, name), self._at(new_parent, new_name))
            if over is None and _may_be_foreseen(node, parent, new_parent, new_name):
                item = msgspec.structs.replace(node.item, name=new_name)
                await self.changes.tell(parent.volume, change, known, _nothing)
            else:
                told = await self.changes.ask(parent.volume, change, known)
                assert told is not None
                item = told
        if over is not None:
            self._removed(new_parent, new_name)
        self._moved((parent, name), (new_parent, new_name), item)

    def _moved(self, source: tuple[Node, bytes], target: tuple[Node, bytes], item: wire.MountItem) -> None:
        node = self.tree.moved(source, target, item, self._now_ns())
        if node is None:
            return
        node.described_ns = self._now_ns()
        if self.writer is not None:
            self.writer.moved(node)

    async def _exchange(self, source: tuple[Node, bytes, Node], target: tuple[Node, bytes, Node | None]) -> None:
        """Let two names change places."""
        parent, name, node = source
        new_parent, new_name, other = target
        if other is None:
            raise FuseError(errno.ENOENT)
        await self._settled(node)
        await self._settled(other)
        known = [each.item.file for each in (parent, new_parent, node, other)]
        change = wire.Rename(self._at(parent, name), self._at(new_parent, new_name), exchange=True)
        await self.changes.ask(parent.volume, change, known)
        here, there = [
            await self.listings.item(parent.volume, self._at(*place)) for place in ((parent, name), target[:2])
        ]
        self.tree.exchanged((parent, name), (new_parent, new_name), here, there, self._now_ns())
        if self.writer is not None:
            self.writer.moved(node)
            self.writer.moved(other)

    async def quiet(self, *nodes: Node | None) -> None:
        """Wait until what is being saved of nodes is saved: it would come back under a name that is gone."""
        for node in nodes:
            if node is not None and self.writer is not None:
                await self.writer.quiet(node)

    async def _settled(self, node: Node) -> None:
        await self.quiet(node)
        if node.pending and self.writer is not None:
            await self.writer.settle(node)


def _is_plain(directory: Node) -> bool:
    """Say whether this is a directory, not a bundle and in none: what is done in it is what it looks like."""
    return directory.item.kind == "directory" and not directory.item.inside


def _may_be_foreseen(node: Node, parent: Node, new_parent: Node, new_name: bytes) -> bool:
    """Say whether moving something to a free name does that and nothing else."""
    if node.item.fork or node.item.kind == "bundle" or not (_is_plain(parent) and _is_plain(new_parent)):
        return False
    return node.item.kind != "directory" or not is_bundle_name(new_name)


def _nothing(_: wire.MountItem | None) -> None:
    """Nothing is to be mended any more."""


def new_number() -> int:
    """Return a number that nothing else has, for something that has no id yet."""
    return int.from_bytes(os.urandom(8), "big") >> 1
