"""Fetching manifests and trees by id, over control. What comes is believed only when its id fits."""

from collections.abc import Iterable

import trio

from tbshare.content import manifest, tree
from tbshare.content.block import ObjectId, TreeId
from tbshare.content.manifest import Manifest
from tbshare.content.tree import Kind as EntryKind
from tbshare.content.tree import Tree
from tbshare.errors import FormatInvalid, ObjectMissing, PeerError
from tbshare.peers.mesh import Mesh, Peer
from tbshare.store.pack import Kind
from tbshare.store.store import Store
from tbshare.wire import limits
from tbshare.wire.message import AnyMessage, Records, RecordsWanted

ANSWER_SECONDS = 10.0  # without any part of an answer
_BATCH = 64


class _Question:
    """One RecordsWanted under way."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.parts: dict[bytes, bytearray] = {}
        self.totals: dict[bytes, int] = {}
        self.progress = trio.Event()
        self.done = False

    def take(self, message: Records, asked: set[bytes]) -> None:
        """Add what came; PeerError when it was not asked for or does not fit together."""
        for part in message.parts:
            have = self.parts.setdefault(part.id, bytearray())
            total = self.totals.setdefault(part.id, part.total)
            if part.id not in asked or part.total != total or part.offset != len(have) or not part.data:
                raise PeerError("a record came in parts that do not fit together")
            if total > limits.RECORD_BYTES_MAX or len(have) + len(part.data) > total:
                raise PeerError("a record is larger than it may be")
            have += part.data
        self.done = self.done or message.done
        self.progress.set()


class RecordFetcher:
    """Gets records from peers into the store."""

    def __init__(self, store: Store, mesh: Mesh) -> None:
        self.store = store
        self.mesh = mesh
        self._questions: dict[int, tuple[_Question, set[bytes]]] = {}
        self._number = 0
        mesh.on(Records, self._on_records)
        mesh.on_left(self._on_left)

    async def _on_records(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Records)
        known = self._questions.get(message.request)
        if known is not None and known[0].peer is peer:
            known[0].take(message, known[1])

    async def _on_left(self, peer: Peer) -> None:
        for question, _ in self._questions.values():
            if question.peer is peer:
                question.done = True
                question.progress.set()

    async def tree(self, tree_id: TreeId) -> None:
        """Bring a tree, all trees below it and the manifests of its objects into the store.

        ObjectMissing when no connected peer has them all; FormatInvalid when they are not what a tree may be.
        """
        trees: list[bytes] = [tree_id]
        seen: set[bytes] = set(trees)
        objects: dict[bytes, int] = {}
        while trees:
            found = await self._ensure(trees, Kind.TREE)
            trees = []
            for listing in found:
                for entry in listing.entries:
                    if entry.kind == EntryKind.TREE and entry.target not in seen:
                        seen.add(entry.target)
                        trees.append(entry.target)
                    elif entry.kind == EntryKind.FILE:
                        objects[entry.target] = entry.size
            if len(seen) > tree.ENTRIES_MAX or len(objects) > tree.ENTRIES_MAX:
                raise FormatInvalid(f"a tree of more than {tree.ENTRIES_MAX} files")
        await self._ensure(list(objects), Kind.MANIFEST, objects)
        await trio.to_thread.run_sync(self.store.sync_records)

    async def _ensure(self, ids: list[bytes], kind: Kind, sizes: dict[bytes, int] | None = None) -> list[Tree]:
        """Have these records in the store; return the trees among them."""
        trees: list[Tree] = []
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            missing = await trio.to_thread.run_sync(self._missing, batch, kind)
            for peer in self._candidates():
                if not missing:
                    break
                for record_id, data in (await self._ask(peer, missing)).items():
                    if await trio.to_thread.run_sync(self._keep, kind, record_id, data, sizes):
                        missing.discard(record_id)
            if missing:
                raise ObjectMissing(
                    f"{len(missing)} records of it are on no node that is connected", cure="tbshare node ls"
                )
            if kind == Kind.TREE:
                for tree_id in batch:
                    listing = await trio.to_thread.run_sync(self.store.tree, TreeId(tree_id))
                    assert listing is not None
                    trees.append(listing)
        return trees

    def _missing(self, ids: Iterable[bytes], kind: Kind) -> set[bytes]:
        return {record_id for record_id in ids if self.store.record(kind, record_id) is None}

    def _keep(self, kind: Kind, record_id: bytes, data: bytes, sizes: dict[bytes, int] | None) -> bool:
        """Check a record and keep it; False when it is not the one of this id."""
        if kind == Kind.TREE:
            if tree.decode(data).id != record_id:
                return False
        else:
            found = manifest.decode(data)
            if found.id != record_id:
                return False
            if sizes is not None and sizes[record_id] != found.size:
                raise FormatInvalid("a directory listing gives a file another size than its manifest")
        self.store.add_record(kind, record_id, data)
        return True

    def manifests(self, objects: Iterable[ObjectId]) -> list[Manifest]:
        """Return the manifests of objects, all of which are here."""
        result: list[Manifest] = []
        for object_id in objects:
            found = self.store.manifest(object_id)
            assert found is not None
            result.append(found)
        return result

    def _candidates(self) -> list[Peer]:
        return sorted(self.mesh.peers.values(), key=lambda peer: -len(peer.keeps))

    async def _ask(self, peer: Peer, ids: set[bytes]) -> dict[bytes, bytes]:
        self._number += 1
        number, question = self._number, _Question(peer)
        self._questions[number] = (question, set(ids))
        try:
            await peer.send(RecordsWanted(number, list(ids)))
            while not question.done:
                with trio.move_on_after(ANSWER_SECONDS) as scope:
                    await question.progress.wait()
                    question.progress = trio.Event()
                if scope.cancelled_caught:
                    break
        finally:
            del self._questions[number]
        return {
            record_id: bytes(data)
            for record_id, data in question.parts.items()
            if len(data) == question.totals[record_id]
        }
