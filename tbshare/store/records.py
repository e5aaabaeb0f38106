"""Manifests, trees and other small records: kept in packs, found by the index. From any thread."""

import contextlib
from collections.abc import Iterable
from threading import Lock

from tbshare.content import manifest
from tbshare.content.block import ObjectId, TreeId
from tbshare.content.manifest import Manifest
from tbshare.content.tree import Entry, Tree
from tbshare.content.tree import Kind as EntryKind
from tbshare.content.tree import decode as decode_tree
from tbshare.errors import BlockCorrupt, ObjectMissing
from tbshare.store import disk
from tbshare.store.index import Index
from tbshare.store.pack import Kind, Packs

MANIFESTS_MAX = 512  # decoded, in memory


class Records:
    """What a store keeps by id that is no object's bytes; `Store` opens its index and its packs."""

    index: Index
    packs: Packs

    def __init__(self) -> None:
        self._records = Lock()  # a record is in a pack and in the index, or in neither
        self._known = Lock()
        self._manifests: dict[ObjectId, Manifest] = {}

    def add_record(self, kind: Kind, record_id: bytes, payload: bytes) -> None:
        """Keep a record whose id has been checked; durable after `sync_records`. A rotten one is replaced."""
        place = self.index.record(kind, record_id)
        if place is not None:
            with contextlib.suppress(BlockCorrupt, FileNotFoundError):
                self.packs.read(kind, record_id, place)
                return
        with self._records:
            self.index.add_record(kind, record_id, self.packs.append(kind, record_id, payload))

    def add_records(self, kind: Kind, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep records that are not here, given as (id, payload): many at once; durable after `sync_records`."""
        with self._records, self.index.transaction():
            for record_id, payload in records:
                self.index.add_record(kind, record_id, self.packs.append(kind, record_id, payload))

    def close_pack(self) -> None:
        """Let nothing more be appended to the packs there are, and every record in them be in the index."""
        with self._records:
            self.packs.begin_new()

    def sync_records(self) -> None:
        """Make every record added so far durable. OSError or DiskFull: those since the last call are gone."""
        try:
            self.packs.sync()
        except OSError as error:
            with self.index.transaction():
                for kind, record_id, place in self.packs.take_lost():
                    if self.index.record(kind, record_id) != place:
                        continue  # a second copy was lost; the index knows the first
                    self.index.remove_record(kind, record_id)
                    if kind == Kind.CONTENT:
                        self.index.remove_object(ObjectId(record_id))
            raise disk.translated(error) from error

    def record(self, kind: Kind, record_id: bytes) -> bytes | None:
        """Return a record's bytes, checked, or None when it is not here."""
        place = self.index.record(kind, record_id)
        if place is None:
            return None
        try:
            return self.packs.read(kind, record_id, place)
        except FileNotFoundError:  # compacted since we asked
            place = self.index.record(kind, record_id)
            return None if place is None else self.packs.read(kind, record_id, place)

    def manifest(self, object_id: ObjectId) -> Manifest | None:
        """Return an object's manifest, or None when it is not here."""
        with self._known:
            known = self._manifests.get(object_id)
        if known is None:
            data = self.record(Kind.MANIFEST, object_id)
            if data is None:
                return None
            known = manifest.decode(data)
            if known.id != object_id:
                raise BlockCorrupt("a manifest on disk has another id", cure="tbshare verify --repair")
            with self._known:
                if len(self._manifests) > MANIFESTS_MAX:
                    self._manifests.clear()
                self._manifests[object_id] = known
        return known

    def tree(self, tree_id: TreeId) -> Tree | None:
        """Return a tree, or None when it is not here."""
        data = self.record(Kind.TREE, tree_id)
        if data is None:
            return None
        found = decode_tree(data)
        if found.id != tree_id:
            raise BlockCorrupt("a directory listing on disk has another id", cure="tbshare verify --repair")
        return found

    def objects_below(self, tree_id: TreeId) -> list[ObjectId]:
        """Return the objects of a tree, each once, in the order of a walk. ObjectMissing."""
        walked = self.walk(tree_id)
        return list(dict.fromkeys(ObjectId(each) for _, entry in walked for each, _ in entry.objects()))

    def files_below(self, tree_id: TreeId) -> list[tuple[tuple[bytes, ...], ObjectId, Entry]]:
        """Return path, object and entry of each file of a tree, in the order of a walk."""
        return [(path, ObjectId(entry.target), entry) for path, entry in self.walk(tree_id) if entry.kind == 0]

    def walk(self, tree_id: TreeId, *, skip_missing: bool = False) -> list[tuple[tuple[bytes, ...], Entry]]:
        """Return path and entry of everything below a tree, directories before what is in them.

        ObjectMissing when a listing is not here, unless `skip_missing`.
        """
        result: list[tuple[tuple[bytes, ...], Entry]] = []
        stack: list[tuple[tuple[bytes, ...], TreeId]] = [((), tree_id)]
        while stack:
            path, current = stack.pop()
            listing = self.tree(current)
            if listing is None and skip_missing:
                continue
            if listing is None:
                raise ObjectMissing(f"the directory listing {current.hex()[:12]} is not on this node")
            for entry in listing.entries:
                inner = (*path, entry.name)
                result.append((inner, entry))
                if entry.kind == EntryKind.TREE:
                    stack.append((inner, TreeId(entry.target)))
        return result
