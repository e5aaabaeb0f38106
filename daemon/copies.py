"""Who holds which versions of files: asked of the nodes that are connected, answered from what is on the disk."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

import trio

from tbshare.content import bits
from tbshare.content.block import ObjectId, TreeId
from tbshare.errors import BlockCorrupt, FormatInvalid, ObjectMissing
from tbshare.peers.grants import Stored
from tbshare.peers.mesh import Mesh, Peer
from tbshare.store.store import Store
from tbshare.volumes.rows import VersionRow
from tbshare.volumes.volumes import Volumes
from tbshare.wire import limits
from tbshare.wire.message import AnyMessage, Ask, Draining, Held

ANSWER_SECONDS: Final = 10.0
ASK_MAX: Final = 1024  # versions in one question
Pair = tuple[int, int]  # (file, version)


def objects_of(store: Store, version: Stored) -> list[ObjectId]:
    """Return the objects a version consists of. ObjectMissing when a listing of a bundle is not here."""
    if version.contents == "bundle":
        return store.objects_below(TreeId(version.content))
    return [] if version.contents == "link" else [ObjectId(version.content)]


def rows_of(volumes: Volumes, volume: int, versions: Sequence[Pair]) -> list[VersionRow]:
    """Return the rows of those versions that this node knows of."""
    tables = volumes.tables(volume)
    rows = [tables.version(*pair) for pair in dict.fromkeys(versions)]
    return [row for row in rows if row is not None]


def whole_here(store: Store, versions: Sequence[Stored]) -> list[bool]:
    """Say of each version whether all its bytes are on this node, synced."""
    files = store.index.whole_of([each.content for each in versions if each.contents not in ("bundle", "link")])
    result: list[bool] = []
    for each in versions:
        if each.contents == "bundle":
            result.append(_bundle_here(store, each))
        else:
            result.append(each.contents == "link" or each.content in files)
    return result


def _bundle_here(store: Store, version: Stored) -> bool:
    try:
        objects = objects_of(store, version)
    except (ObjectMissing, BlockCorrupt, FormatInvalid):
        return False
    return len(store.index.whole_of(objects)) == len(set(objects))


def durability(holders: set[bytes], members: Iterable[bytes], me: bytes) -> str:
    """Return the word for how safe a version is: `local`, `N copies`, `everywhere`. Pure."""
    everybody = set(members)
    if not holders:
        return "no copy connected"
    if holders >= everybody and len(everybody) > 1:
        return "everywhere"
    if holders == {me}:
        return "local"
    return "1 copy" if len(holders) == 1 else f"{len(holders)} copies"


class Copies:
    """Asks and answers. In the trio thread but for `here`."""

    def __init__(self, store: Store, mesh: Mesh, volumes: Volumes) -> None:
        self.store, self.mesh, self.volumes = store, mesh, volumes
        self.leaving: set[bytes] = set()  # contents that this node is about to give up: they no longer count
        self.draining: set[bytes] = set()  # nodes that are to be unplugged
        self._numbers = itertools.count(1)
        self._questions: dict[tuple[bytes, int], _Question] = {}
        mesh.on(Ask, self._on_ask)
        mesh.on(Held, self._on_held)
        mesh.on(Draining, self._on_draining)
        mesh.on_left(self._on_left)

    def here(self, volume: int, versions: Sequence[Pair]) -> set[Pair]:
        """Return those versions whose bytes are on this node, synced, and stay."""
        rows = rows_of(self.volumes, volume, versions)
        here = whole_here(self.store, rows)
        return {
            (row.file, row.version)
            for row, is_here in zip(rows, here, strict=True)
            if is_here and row.content not in self.leaving
        }

    async def of(self, volume: int, versions: Sequence[Pair]) -> dict[Pair, set[bytes]]:
        """Return which nodes hold each version, whole and synced: this one and those that are connected."""
        result: dict[Pair, set[bytes]] = {pair: set() for pair in versions}
        here = await trio.to_thread.run_sync(self.here, volume, versions)
        for pair in here:
            result[pair].add(self.mesh.identity.node)
        for node, held in (await self.elsewhere(volume, versions)).items():
            for pair in held:
                result[pair].add(node)
        return result

    async def elsewhere(
        self, volume: int, versions: Sequence[Pair], *, any_holder: bool = False
    ) -> dict[bytes, set[Pair]]:
        """Return what each connected node holds of these versions.

        With `any_holder` nobody is waited for any more when each version is known to be on some node.
        """
        result: dict[bytes, set[Pair]] = {}
        unseen = set(versions)

        async def ask(peer: Peer) -> None:
            held: set[Pair] = set()
            for start in range(0, len(versions), ASK_MAX):
                held |= await self._ask(peer, volume, versions[start : start + ASK_MAX])
            result[peer.node] = held
            unseen.difference_update(held)
            if any_holder and not unseen:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for peer in list(self.mesh.peers.values()):
                if peer.hello.level >= limits.LEVEL_VOLUMES:
                    nursery.start_soon(ask, peer)
        return result

    async def _ask(self, peer: Peer, volume: int, versions: Sequence[Pair]) -> set[Pair]:
        number = next(self._numbers)
        question = self._questions[peer.node, number] = _Question()
        try:
            await peer.send(Ask(number, volume, list(versions)))
            with trio.move_on_after(ANSWER_SECONDS):
                if self.mesh.peers.get(peer.node) is peer:
                    await question.answered.wait()
        finally:
            del self._questions[peer.node, number]
        held = bits.from_runs(question.held, len(versions))
        return {versions[place] for place in bits.members(held)}

    async def _on_ask(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Ask)
        held: set[Pair] = set()
        if (await self.mesh.state()).may_read(peer.node, message.volume_id):
            held = await trio.to_thread.run_sync(self._held, message)
        places = bits.of(place for place, pair in enumerate(message.files) if pair in held)
        await peer.send(Held(message.request, bits.to_runs(places)))

    def _held(self, message: Ask) -> set[Pair]:
        known = {handle.id for handle in self.volumes.handles()}
        return self.here(message.volume_id, message.files) if message.volume_id in known else set()

    async def _on_held(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Held)
        question = self._questions.get((peer.node, message.request))
        if question is not None:
            question.held = message.held
            question.answered.set()

    async def _on_draining(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Draining)
        if message.on:
            self.draining.add(peer.node)
        else:
            self.draining.discard(peer.node)

    async def _on_left(self, peer: Peer) -> None:
        for (node, _), question in self._questions.items():
            if node == peer.node:
                question.answered.set()


class _Question:
    """One Ask under way."""

    def __init__(self) -> None:
        self.held: list[tuple[int, int]] = []
        self.answered = trio.Event()
