"""What a simulated node stores: the real index over a faked disk, and which bytes it fetches from whom.

A block's bytes are a few that stand for 4 MiB, and its id is their hash, so that wrong bytes never pass for right
ones. Blocks that arrive are synced a little later, and only then recorded in the index; a power cut before that
keeps, tears or loses each of them. What to ask of whom is decided by the real `plan`.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tbshare.content import bits
from tbshare.content import manifest as manifests
from tbshare.content import tree as trees
from tbshare.content.block import BLOCK_BYTES, BlockId, ObjectId, named_hash
from tbshare.content.manifest import Manifest
from tbshare.content.tree import Tree
from tbshare.errors import FormatInvalid, ObjectMissing
from tbshare.store.index import Index

BLOCK_CONTEXT = "tbshare simulation block"


def block_of(token: bytes) -> BlockId:
    """Return the id of the block that these bytes stand for."""
    return BlockId(named_hash(BLOCK_CONTEXT, [token]))


@dataclass
class Objects:
    """What lies on one disk beside the databases."""

    records: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])  # manifests and trees, synced
    blocks: dict[tuple[bytes, int], bytes] = field(default_factory=dict[tuple[bytes, int], bytes])
    unsynced: set[tuple[bytes, int]] = field(default_factory=set[tuple[bytes, int]])
    wal_bytes: dict[str, int] = field(default_factory=dict[str, int])  # of index.db, known to be synced

    def copy(self) -> "Objects":
        """Return what a copy of the disk holds."""
        return Objects(dict(self.records), dict(self.blocks), set(self.unsynced), dict(self.wal_bytes))

    def after_power_cut(self, random: Random) -> "Objects":
        """Return what a power cut could leave: of what was not synced, anything."""
        left = self.copy()
        for place in sorted(self.unsynced):
            chance = random.random()
            if chance < 0.4:
                del left.blocks[place]
            elif chance < 0.7:
                left.blocks[place] = left.blocks[place][: random.randrange(8)] + b"torn"
        left.unsynced = set()
        return left


class Store:
    """The store of one node while it runs; the trees of bundles are in it, too."""

    def __init__(self, home: Path, objects: Objects) -> None:
        self.objects = objects
        self._path = home / "index.db"
        self.index = Index(self._path)
        self._manifests: dict[bytes, Manifest] = {}
        self._recover()

    def _recover(self) -> None:
        """Find again what a lost index said: objects all of whose blocks are here and right."""
        for record_id, record in self.objects.records.items():
            try:
                manifest = manifests.decode(record)
            except FormatInvalid:
                continue  # a tree
            self._manifests[record_id] = manifest
            row = self.index.object(record_id)
            if row is None or not row.whole:
                present = row.present if row is not None else 0
                numbers = range(manifest.block_count)
                right = bits.of(number for number in numbers if self._right(manifest, number))
                assert not present & ~right, "the index says a block is here that is not, or is wrong"
                self.objects.unsynced -= {(record_id, number) for number in numbers}
                self._record(manifest, right)

    def _right(self, manifest: Manifest, number: int) -> bool:
        token = self.objects.blocks.get((manifest.id, number))
        return token is not None and block_of(token) == manifest.block(number)

    def _record(self, manifest: Manifest, present: int) -> None:
        whole = present == bits.full(manifest.block_count)
        with self.index.transaction(durable=True):
            self.index.put_object(manifest, whole=whole, place="exact")
            if not whole:
                self.index.set_present(manifest.id, present)
        self._note_synced()

    def _note_synced(self) -> None:
        wal = self._path.with_name("index.db-wal")
        self.objects.wal_bytes["index.db"] = wal.stat().st_size if wal.exists() else 0

    # ---- trees of bundles -----------------------------------------------------------------------------

    def get(self, tree: bytes) -> Tree:
        """Return the tree of this id."""
        record = self.objects.records.get(tree)
        if record is None:
            raise ObjectMissing("that tree is not on this node")
        return trees.decode(record)

    def put(self, tree: Tree) -> bytes:
        """Keep a tree."""
        self.objects.records[tree.id] = tree.encoded
        return tree.id

    # ---- objects --------------------------------------------------------------------------------------

    def write(self, tokens: list[bytes], last_bytes: int) -> Manifest:
        """Keep an object, durably."""
        size = (len(tokens) - 1) * BLOCK_BYTES + last_bytes
        manifest = manifests.of_blocks(size, None, [block_of(token) for token in tokens])
        self.objects.records[manifest.id] = manifest.encoded
        self._manifests[manifest.id] = manifest
        for number, token in enumerate(tokens):
            self.objects.blocks[manifest.id, number] = token
            self.objects.unsynced.discard((manifest.id, number))
        self._record(manifest, bits.full(manifest.block_count))
        return manifest

    def add_record(self, record_id: bytes, record: bytes) -> bool:
        """Keep a manifest or a tree that came from a peer and is what it is said to be; False when it is known."""
        if record_id in self.objects.records:
            return False
        try:
            manifest = manifests.decode(record)
        except FormatInvalid:
            tree = trees.decode(record)
            assert tree.id == record_id
            self.objects.records[record_id] = record
            return True
        assert manifest.id == record_id
        self.objects.records[record_id] = record
        self._manifests[record_id] = manifest
        self._record(manifest, 0)
        return True

    def manifest(self, object_id: bytes) -> Manifest | None:
        """Return a manifest that is here."""
        return self._manifests.get(object_id)

    def add_block(self, object_id: bytes, number: int, token: bytes) -> bool:
        """Write a block that arrived; False when it is not the right one."""
        manifest = self._manifests[object_id]
        if block_of(token) != manifest.block(number):
            return False
        if (object_id, number) not in self.objects.blocks or not self._right(manifest, number):
            self.objects.blocks[object_id, number] = token
            self.objects.unsynced.add((object_id, number))
        return True

    def sync(self, object_id: bytes) -> None:
        """Sync what has been written of an object, then record it."""
        manifest = self._manifests[object_id]
        numbers = range(manifest.block_count)
        self.objects.unsynced -= {(object_id, number) for number in numbers}
        self._record(manifest, bits.of(number for number in numbers if (object_id, number) in self.objects.blocks))

    def holds(self, object_id: bytes) -> int:
        """Return which blocks of an object are here and recorded."""
        manifest, row = self._manifests.get(object_id), self.index.object(object_id)
        if manifest is None or row is None:
            return 0
        return bits.full(manifest.block_count) if row.whole else row.present

    def whole(self, record_id: bytes) -> bool:
        """Say whether an object, or a tree with all below it, is here."""
        return not any(True for _ in self.missing([record_id]))

    def missing(self, wanted: Iterable[bytes]) -> Iterable[bytes]:
        """Return which objects and trees at and below these are not here, or not wholly."""
        for record_id in wanted:
            manifest = self._manifests.get(record_id)
            if manifest is not None:
                row = self.index.object(record_id)
                if row is None or not row.whole:
                    yield record_id
            elif record_id in self.objects.records:
                below = [e.target for e in self.get(record_id).entries if e.kind is not trees.Kind.LINK]
                yield from self.missing(below)
            else:
                yield record_id

    def read(self, object_id: bytes) -> list[bytes]:
        """Return the blocks of an object as a user reads them; ObjectMissing when it is not whole."""
        manifest = self._manifests.get(object_id)
        row = self.index.object(object_id)
        if manifest is None or row is None or not row.whole:
            raise ObjectMissing("that object is not on this node")
        return [self.objects.blocks.get((object_id, number), b"") for number in range(manifest.block_count)]

    def collect(self, live: Set[bytes]) -> None:
        """Delete what is not among these objects and trees; the index forgets first."""
        dead = [record_id for record_id in self.objects.records if record_id not in live]
        with self.index.transaction(durable=True):
            for record_id in dead:
                self.index.remove_object(ObjectId(record_id))
        self._note_synced()
        for record_id in dead:
            del self.objects.records[record_id]
            self._manifests.pop(record_id, None)
        for place in [place for place in self.objects.blocks if place[0] not in live]:
            del self.objects.blocks[place]
            self.objects.unsynced.discard(place)

    def below(self, trees_of: Iterable[bytes]) -> set[bytes]:
        """Return these trees and all that is below them, as far as it is known here."""
        found: set[bytes] = set()
        waiting = list(trees_of)
        while waiting:
            record_id = waiting.pop()
            if record_id not in found:
                found.add(record_id)
                if record_id in self.objects.records and record_id not in self._manifests:
                    waiting += [e.target for e in self.get(record_id).entries if e.kind is not trees.Kind.LINK]
        return found

    def close(self) -> None:
        """Close the index."""
        self.index.close()
