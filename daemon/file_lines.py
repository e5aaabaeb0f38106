"""Items and versions of a volume as lines for the control socket. May touch the disk: called in threads."""

from collections.abc import Mapping, Sequence

import msgspec
import trio

from tbshare.content.block import ObjectId, TreeId
from tbshare.daemon.copies import Pair, durability
from tbshare.daemon.service import Service
from tbshare.errors import ObjectMissing
from tbshare.volumes import item as volume_item
from tbshare.volumes.fold import State
from tbshare.volumes.volume import Handle
from tbshare.wire.files import XATTRS_INLINE_BYTES_MAX, Item, VersionLine, Xattr
from tbshare.wire.where import id_text


def node_names(state: State) -> dict[bytes, str]:
    """Return the names of all nodes there are or were."""
    return {node: member.name for node, member in [*state.removed_members.items(), *state.members.items()]}


class FileLines:
    """Makes the lines of one volume, as one state of the cluster names its nodes."""

    def __init__(self, service: Service, state: State, handle: Handle) -> None:
        self._service, self._handle = service, handle
        self._names = node_names(state)
        self._state = state

    def name(self, node: bytes) -> str:
        """Return a node's name, or the start of its id."""
        return self._names.get(node, node[:4].hex())

    def item(self, item: volume_item.Item, *, xattrs: bool, whole: bool = False) -> Item:
        """Return an item as it is told; `whole` has all attributes, else only few and small ones."""
        values: list[Xattr] = []
        size = 0
        if item.xattrs or item.large_xattrs:  # few files have any, and a directory may have many files
            size = sum(len(name) + len(value) for name, value in item.xattrs.items())
            size += sum(large.size for large in item.large_xattrs.values())
            if xattrs and (whole or size <= XATTRS_INLINE_BYTES_MAX):
                values = [Xattr(name, value) for name, value in sorted(item.xattrs.items())]
        return Item(
            name=item.name,
            kind=item.kind,
            id=id_text(item.id),
            version=id_text(item.version),
            content=item.content.hex() if item.kind in ("file", "bundle") else "",
            target=item.content if item.kind == "link" else b"",
            size_bytes=item.size,
            mode=item.mode,
            uid=item.uid,
            gid=item.gid,
            mtime_ns=item.mtime_ns,
            ctime_ns=item.ctime_ns,
            birthtime_ns=item.birthtime_ns,
            links=item.links,
            xattrs=values,
            xattrs_bytes=size,
            author=self.name(item.author) if item.author else "",
            fork=item.fork,
            heads=item.heads,
        )

    async def detailed(self, items: Sequence[volume_item.Item], lines: Sequence[Item]) -> list[Item]:
        """Return lines with what costs more to find out: where the bytes are, and who has a lock."""
        copies = await self.copies([(item.file, item.version) for item in items if not item.inside])
        locked = self._service.locks.holders(self._handle.id)
        return await trio.to_thread.run_sync(self._detailed, items, lines, copies, locked)

    def _detailed(
        self,
        items: Sequence[volume_item.Item],
        lines: Sequence[Item],
        copies: Mapping[Pair, str],
        locked: Mapping[int, bytes],
    ) -> list[Item]:
        pinned = self._service.spread.pinned_files(self._handle.id)
        return [
            msgspec.structs.replace(
                line,
                here=self.here(item.kind, item.content) if item.version else "",
                copies=copies.get((item.file, item.version), ""),
                locked_by=self.name(locked[item.file]) if item.file in locked else "",
                pinned=item.file in pinned,
            )
            for item, line in zip(items, lines, strict=True)
        ]

    async def copies(self, pairs: Sequence[Pair]) -> dict[Pair, str]:
        """Return for each version the word for how many nodes hold it."""
        known = [pair for pair in pairs if pair[1]]
        holders = await self._service.spread.copies(self._handle.id, known) if known else {}
        me = self._service.identity.node
        return {pair: durability(nodes, self._state.members, me) for pair, nodes in holders.items()}

    def here(self, kind: str, content: bytes) -> str:
        """Return how much of a version's bytes is on this node: whole, partial or no."""
        store = self._service.store
        if kind == "link":
            return "whole"
        if kind == "file":
            if store.is_whole(ObjectId(content)):
                return "whole"
            return "partial" if store.held(ObjectId(content)) else "no"
        try:
            objects = store.objects_below(TreeId(content))
        except ObjectMissing:
            return "no"
        whole = sum(store.is_whole(each) for each in objects)
        return "whole" if whole == len(objects) else "partial" if whole else "no"

    def version(self, line: volume_item.Line, copies: Mapping[tuple[int, int], str]) -> VersionLine:
        """Return one line of a history."""
        return VersionLine(
            version=id_text(line.version),
            when_ns=line.time_ns,
            author=self.name(line.author),
            kind=line.kind,
            size_bytes=line.size,
            mtime_ns=line.mtime_ns,
            content=line.content.hex() if line.kind != "link" else "",
            parents=[id_text(parent) for parent in line.parents],
            head=line.head,
            shown=line.shown,
            here="expired" if line.expired else self.here(line.kind, line.content),
            copies=copies.get((line.file, line.version), ""),
            path=b"/".join(line.path),
        )

    async def versions(self, lines: Sequence[volume_item.Line]) -> list[VersionLine]:
        """Return the lines of a history."""
        copies = await self.copies([(line.file, line.version) for line in lines])
        return await trio.to_thread.run_sync(lambda: [self.version(line, copies) for line in lines])

    def item_version(self, item: volume_item.Item, copies: Mapping[tuple[int, int], str]) -> VersionLine:
        """Return what stands under a name as a version."""
        return VersionLine(
            version=id_text(item.version),
            when_ns=item.ctime_ns,
            author=self.name(item.author) if item.author else "",
            kind=item.kind,
            size_bytes=item.size,
            mtime_ns=item.mtime_ns,
            content=item.content.hex() if item.kind in ("file", "bundle") else "",
            head=True,
            shown=item.name,
            here=self.here(item.kind, item.content) if item.version else "",
            copies=copies.get((item.file, item.version), ""),
        )
