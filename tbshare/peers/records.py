"""Fetching manifests and trees by id, over control. What comes is believed only when its id fits."""

from collections.abc import Callable, Iterable
from functools import partial

import trio

from tbshare.content import manifest, tree
from tbshare.content.block import ObjectId, TreeId, named_hash
from tbshare.content.manifest import Manifest
from tbshare.content.ref import MODELS
from tbshare.content.tree import Kind as EntryKind
from tbshare.content.tree import Tree
from tbshare.errors import FormatInvalid, InputRefused, ObjectMissing, PeerError, TbshareError
from tbshare.peers.mesh import Mesh, Peer
from tbshare.store.pack import Kind
from tbshare.store.source import check_model_name, shown
from tbshare.store.store import Store
from tbshare.wire import limits
from tbshare.wire.message import AnyMessage, Records, RecordsWanted

ANSWER_SECONDS = 10.0  # without a record, or ANSWER_BYTES of one
ANSWER_BYTES = 256 * 1024
_BATCH = limits.RECORDS_PER_REQUEST

Check = Callable[[bytes, bytes], bool]  # (id, record) -> whether it is the one of this id
Keep = Callable[[list[tuple[bytes, bytes]]], set[bytes]]  # [(id, record)] -> ids of those that were kept


class _Question:
    """One RecordsWanted under way. Holds one unfinished record at most: providers send one after another."""

    def __init__(self, peer: Peer, asked: set[bytes], keep: Keep) -> None:
        self.peer, self.asked, self.keep = peer, asked, keep
        self.kept: set[bytes] = set()
        self.bytes = 0
        self.error: TbshareError | OSError | None = None
        self.done = trio.Event()
        self._id, self._total, self._data = b"", 0, bytearray()

    async def take(self, message: Records) -> None:
        """Add what came and keep what is whole; PeerError when it was not asked for or does not fit together."""
        whole: list[tuple[bytes, bytes]] = []
        for part in message.parts:
            if not self._data:
                self._id, self._total = part.id, part.total
                self.asked.remove(part.id) if part.id in self.asked else self._misfit()
            end = part.offset + len(part.data)
            fits = part.id == self._id and part.total == self._total and part.offset == len(self._data)
            if not fits or not part.data or end > self._total or self._total > limits.RECORD_BYTES_MAX:
                self._misfit()
            self._data += part.data
            self.bytes += len(part.data)
            if end == self._total:
                whole.append((self._id, bytes(self._data)))
                self._data = bytearray()
        if whole:
            await self._keep(whole)
        if message.done:
            self.done.set()

    async def _keep(self, records: list[tuple[bytes, bytes]]) -> None:
        try:
            self.kept |= await trio.to_thread.run_sync(self.keep, records)
        except (TbshareError, OSError) as error:  # ours, not the peer's session's: whoever asked raises it
            self.error = self.error or error
            self.done.set()

    @staticmethod
    def _misfit() -> None:
        raise PeerError("a record came that was not asked for, or in parts that do not fit together")


class RecordFetcher:
    """Gets records from peers into the store."""

    def __init__(self, store: Store, mesh: Mesh) -> None:
        self.store = store
        self.mesh = mesh
        self._questions: dict[int, _Question] = {}
        self._number = 0
        mesh.on(Records, self._on_records)
        mesh.on_left(self._on_left)

    async def _on_records(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Records)
        question = self._questions.get(message.request)
        if question is not None and question.peer is peer:
            await question.take(message)

    async def _on_left(self, peer: Peer) -> None:
        for question in self._questions.values():
            if question.peer is peer:
                question.done.set()

    async def tree(self, tree_id: TreeId, volume: str, root: Tree | None = None) -> None:
        """Bring a tree, all trees below it and the manifests of its objects into the store.

        With `root` it is one that only this node knows, under which its peers give what it named to them.
        ObjectMissing when no connected peer has them all. FormatInvalid when they are not what a tree may be; the
        listings that came for it are forgotten then, so that nobody walks through them.
        """
        came: set[bytes] = set()
        try:
            objects = await self._listings(tree_id, volume, root, came)
        except FormatInvalid:
            await trio.to_thread.run_sync(self._forget, came)
            raise
        check = partial(self._is_manifest, objects)
        await self._ensure(tree_id, list(objects), check, Kind.MANIFEST)
        await trio.to_thread.run_sync(self.store.sync_records)

    async def manifest(self, root: TreeId, object_id: ObjectId, size: int | None) -> None:
        """Bring one manifest into the store, not yet synced. ObjectMissing, FormatInvalid.

        It is of an object of what peers know by `root`; `size` is what is said elsewhere of it, if anything is.
        """

        def check(record_id: bytes, data: bytes) -> bool:
            said = manifest.decode(data).size if size is None else size
            return self._is_manifest({object_id: said}, record_id, data)

        await self._ensure(root, [object_id], check, Kind.MANIFEST)

    async def _listings(
        self, tree_id: TreeId, volume: str, root: Tree | None, came: set[bytes]
    ) -> dict[bytes, int]:
        """Fetch and check listings level by level; return the objects and their sizes, `came` what was fetched.

        Each place where a directory stands counts: a listing that names one other twice, and so on down, would
        be a walk without end.
        """
        level: list[_Place] = [((), tree_id, None)]
        objects: dict[bytes, int] = {}
        count = 0
        while level:
            ids = list(dict.fromkeys(place[1] for place in level))
            if root is not None and ids == [tree_id]:
                listings: dict[bytes, Tree] = {tree_id: root}
            else:
                came |= await self._ensure(tree_id, ids, self._is_listing, Kind.TREE)
                listings = await trio.to_thread.run_sync(self._read, ids)
            below: list[_Place] = []
            for path, listing_id, size in level:
                listing = listings[listing_id]
                count += 1 + len(listing.entries)
                if count > tree.ENTRIES_MAX or len(path) > tree.DEPTH_MAX:
                    raise FormatInvalid(f"more than {tree.ENTRIES_MAX} names, or directories {len(path)} deep")
                if size is not None and size != listing.size:
                    raise FormatInvalid(f"the size of {shown(path)} is not that of what is in it")
                below += _checked(path, listing, volume, objects)
            level = below
        return objects

    def _read(self, ids: list[bytes]) -> dict[bytes, Tree]:
        listings = {listing_id: self.store.tree(TreeId(listing_id)) for listing_id in ids}
        return {listing_id: listing for listing_id, listing in listings.items() if listing is not None}

    def _forget(self, ids: set[bytes]) -> None:
        for record_id in ids:
            self.store.index.remove_record(Kind.TREE, record_id)

    async def _ensure(self, root: TreeId, ids: list[bytes], check: Check, kind: Kind) -> set[bytes]:
        """Have these records in the store; return those that were fetched for it."""
        came: set[bytes] = set()
        keep = partial(self._keep, kind, check)
        for start in range(0, len(ids), _BATCH):
            missing = await trio.to_thread.run_sync(self._missing, ids[start : start + _BATCH], kind)
            for peer in self._candidates():
                if not missing:
                    break
                kept = await self._ask(peer, root, missing, keep)
                missing -= kept
                came |= kept
            if missing:
                raise ObjectMissing(
                    f"{len(missing)} records of it are on no node that is connected", cure="tbshare node ls"
                )
        return came

    def _missing(self, ids: Iterable[bytes], kind: Kind) -> set[bytes]:
        return {record_id for record_id in ids if self.store.record(kind, record_id) is None}

    def _keep(self, kind: Kind, check: Check, records: list[tuple[bytes, bytes]]) -> set[bytes]:
        """Keep those that are what was asked for. FormatInvalid when one is, and is none of its kind."""
        right = {record_id: data for record_id, data in records if check(record_id, data)}
        self.store.add_records(kind, right.items())
        return set(right)

    @staticmethod
    def _is_listing(record_id: bytes, data: bytes) -> bool:
        if named_hash(tree.TREE_CONTEXT, [data]) != record_id:
            return False
        tree.decode(data)
        return True

    @staticmethod
    def _is_manifest(sizes: dict[bytes, int], record_id: bytes, data: bytes) -> bool:
        """Return whether it is the manifest of this id; `sizes` are what the listings say."""
        if named_hash(manifest.OBJECT_CONTEXT, [data]) != record_id:
            return False
        if manifest.decode(data).size != sizes[record_id]:
            raise FormatInvalid("a directory listing gives a file another size than its manifest")
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

    async def has_heard(self, peer: Peer) -> bool:
        """Wait until a peer has handled what it was sent so far, and its words before that are here."""
        return (await self._answer(peer, b"", set(), lambda _: set())).done.is_set() and (
            self.mesh.peers.get(peer.node) is peer
        )

    async def _ask(self, peer: Peer, root: bytes, ids: set[bytes], keep: Keep) -> set[bytes]:
        """Ask a peer for records; return those that it gave and that were kept."""
        question = await self._answer(peer, root, ids, keep)
        if question.error is not None:
            raise question.error
        return question.kept

    async def _answer(self, peer: Peer, root: bytes, ids: set[bytes], keep: Keep) -> _Question:
        self._number += 1
        number, question = self._number, _Question(peer, set(ids), keep)
        self._questions[number] = question
        try:
            await peer.send(RecordsWanted(number, list(ids), root))
            before = (-1, -1)
            while not question.done.is_set():
                now = (len(question.kept), question.bytes // ANSWER_BYTES)
                if now == before:
                    break  # nothing, or a trickle: another peer may be quicker
                before = now
                with trio.move_on_after(ANSWER_SECONDS):
                    await question.done.wait()
        finally:
            del self._questions[number]
        return question


_Place = tuple[tuple[bytes, ...], bytes, int | None]  # path, listing, and the size its entry gives


def _checked(path: tuple[bytes, ...], listing: Tree, volume: str, objects: dict[bytes, int]) -> list[_Place]:
    """Check a listing that stands at `path`, add its objects, and return the directories in it."""
    below: list[_Place] = []
    for entry in listing.entries:
        inner = (*path, entry.name)
        if volume == MODELS:
            try:
                check_model_name(inner)
            except InputRefused as error:
                raise FormatInvalid(str(error)) from error
            if entry.kind == EntryKind.LINK and tree.leaves_tree(inner, entry.target):
                raise FormatInvalid(f"{shown(inner)} is a link that leaves what was pushed")
        if entry.kind == EntryKind.TREE:
            below.append((inner, entry.target, entry.size))
        for object_id, size in entry.objects():
            if objects.setdefault(object_id, size) != size:
                raise FormatInvalid(f"{shown(inner)} has another size elsewhere")
    return below
