"""What a node gives to others: manifests and trees by id, what it holds of a tree, blocks on lanes.

Every request is checked against the asker (`grants`): the tree it names must be one of a ref that it may read, or
what it named so of versions that it may read; a record or object must be of that tree. A hash alone opens nothing.
"""

import logging
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import trio

from tbshare.content import bits
from tbshare.content.block import ObjectId
from tbshare.content.leaves import Run
from tbshare.errors import BlockCorrupt, ObjectMissing, PeerError
from tbshare.peers.grants import Grant, Grants
from tbshare.peers.mesh import Mesh, Peer
from tbshare.peers.rows import Rows
from tbshare.store.pack import Kind
from tbshare.store.store import Store
from tbshare.transport.lane_send import QUEUE_ITEMS_MAX, SendLane
from tbshare.transport.link import Item
from tbshare.transport.precedence import Precedence
from tbshare.transport.rate import RateLimit
from tbshare.volumes.catalogue import MODELS_ID
from tbshare.wire import lane as lane_wire
from tbshare.wire import limits
from tbshare.wire.message import (
    NO_SUCH_LANE,
    AnyMessage,
    Cancel,
    Corrupt,
    Fetch,
    Have,
    Holding,
    LaneOpen,
    LaneReady,
    Record,
    Records,
    RecordsWanted,
    Refused,
    Unwant,
    Want,
    Wanted,
)

_log = logging.getLogger("tbshare.peers.provide")
LANES_PER_PEER_MAX = 8
HOLDINGS_PER_MESSAGE = 2000
WANTS_MAX = 10_000
SUSPECTS_MAX = 1000
QUESTIONS_MAX = 8  # RecordsWanted of one peer that are being answered; a fetch has one at a time


@dataclass
class _Lane:
    """A lane we send on. Between LaneReady and the dial `end` is None."""

    peer: bytes
    number: int
    admission: int
    key: bytes
    offered_at: float  # monotonic
    urgent: bool = False
    end: SendLane | None = None
    queued: list[Item] = field(default_factory=list[Item])


class _Origin:
    """What stands behind one SendLane; called in its thread."""

    def __init__(self, provider: "Provider", lane: _Lane, token: trio.lowlevel.TrioToken) -> None:
        self._provider, self._lane, self._token = provider, lane, token

    def refused(self, request: int, error: OSError) -> None:
        """Tell the fetcher, by control."""
        self._token.run_sync_soon(self._provider.lane_refused, self._lane, request, str(error))

    def ended(self, error: BaseException | None) -> None:
        """Forget the lane."""
        if error is not None:
            _log.info("a lane to %s ended: %s", self._lane.peer[:4].hex(), error)
        self._token.run_sync_soon(self._provider.lane_ended, self._lane)


class Provider:
    """Answers the questions and requests of peers."""

    def __init__(self, store: Store, mesh: Mesh, *, port: int, limit: RateLimit | None = None) -> None:
        self.store = store
        self.mesh = mesh
        self.port = port
        self.limit = limit
        self.wants: dict[bytes, set[bytes]] = {}  # tree -> nodes that fetch it
        self.suspects: list[tuple[ObjectId, int]] = []  # blocks peers complained of, for the verifier
        self.suspected = trio.Event()
        self.bytes_served = 0
        self.must_seal: Callable[[Peer, int], bool] = lambda _peer, _volume: False  # whether it may not go plain
        self.grants = Grants(store, mesh)
        self.precedence = Precedence()
        self._rows = Rows(store)
        self._lanes: dict[tuple[bytes, int], _Lane] = {}
        self._waiting: dict[int, _Lane] = {}  # by admission, until they are dialled
        self._admissions = lane_wire.Tokens()
        self._last_admission = 0
        self._answering: Counter[bytes] = Counter()
        self._nursery: trio.Nursery | None = None
        mesh.on(RecordsWanted, self._on_records_wanted)
        mesh.on(Want, self._on_want)
        mesh.on(Unwant, self._on_unwant)
        mesh.on(LaneOpen, self._on_lane_open)
        mesh.on(Fetch, self._on_fetch)
        mesh.on(Cancel, self._on_cancel)
        mesh.on(Corrupt, self._on_corrupt)
        mesh.on_left(self._on_left)

    async def run(self) -> None:
        """Own the tasks that answers need; for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                for lane in self._lanes.values():
                    if lane.end is not None:
                        lane.end.close()

    # records ---------------------------------------------------------------------------------------------------

    async def _on_records_wanted(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, RecordsWanted)
        if len(message.ids) > limits.RECORDS_PER_REQUEST:
            raise PeerError("too many records asked for at once")
        if self._answering[peer.node] >= QUESTIONS_MAX:
            raise PeerError("too many questions at once")
        assert self._nursery is not None
        self._answering[peer.node] += 1
        self._nursery.start_soon(self._give_records, peer, message)

    async def _give_records(self, peer: Peer, message: RecordsWanted) -> None:
        """Answer beside the session's reading: two nodes that ask each other for much must both go on reading."""
        try:
            await self._send_records(peer, message)
        except Exception:  # noqa: BLE001 - a record that cannot be read ends neither session nor daemon
            _log.exception("records could not be given to %s", peer.hello.name)
        finally:
            self._answering[peer.node] -= 1

    async def _send_records(self, peer: Peer, message: RecordsWanted) -> None:
        if not message.ids:
            await peer.send(Records(message.request, [], done=True))
            return
        if message.tree:
            given = (await self.grants.of(peer, message.tree)).records
        else:
            given = await self.grants.of_any_ref(peer, message.ids)
        missing = [record_id for record_id in message.ids if record_id not in given]
        left = [record_id for record_id in message.ids if record_id in given]
        while left:
            count, records = await trio.to_thread.run_sync(self._records, peer, left)
            missing += [record_id for record_id in left[:count] if record_id not in records]
            left = left[count:]
            for parts in _messages(records):
                await peer.send(Records(message.request, parts))
        await peer.send(Records(message.request, [], missing, done=True))

    def _records(self, peer: Peer, ids: list[bytes]) -> tuple[int, dict[bytes, bytes]]:
        """Read records until they fill a message; return how many were looked for, and what is here."""
        records: dict[bytes, bytes] = {}
        size = count = 0
        for count, record_id in enumerate(ids, 1):  # noqa: B007
            try:
                data = self.store.record(Kind.MANIFEST, record_id) or self.store.record(Kind.TREE, record_id)
            except BlockCorrupt as error:
                _log.warning("a record cannot be given to %s: %s", peer.hello.name, error)
                continue
            if data is not None:
                records[record_id] = data
                size += len(data)
            if size >= limits.RECORD_PART_BYTES:
                break
        return count, records

    # what is held ----------------------------------------------------------------------------------------------

    async def _on_want(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Want)
        if len(self.wants) > WANTS_MAX:
            self.wants = {tree: nodes for tree, nodes in self.wants.items() if nodes}
            if len(self.wants) > WANTS_MAX:
                raise PeerError("more trees are asked for than there can be")
        self.wants.setdefault(message.tree, set()).add(peer.node)
        if message.files:
            grant = await self.grants.of_versions(peer, message)
        else:
            grant = await self.grants.of(peer, message.tree)  # of a ref that reaches us later we announce
        for answer in await trio.to_thread.run_sync(self._holdings, message.tree, grant):
            await peer.send(answer)

    async def _on_unwant(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Unwant)
        self.wants.get(message.tree, set()).discard(peer.node)
        if not self.wants.get(message.tree):
            self.wants.pop(message.tree, None)
        self.grants.take_back(peer, message.tree)

    def _holdings(self, tree: bytes, grant: Grant) -> list[Have]:
        """Return what this node can serve of a tree, in one message or more."""
        if grant.whole and all(self.store.is_whole(object_id) for object_id in grant.objects):
            return [Have(tree, whole=True)]
        held = [(object_id, self.store.held(object_id)) for object_id in grant.objects]
        rows = [Holding(object_id, bits.to_runs(blocks)) for object_id, blocks in held if blocks]
        parts = [rows[at : at + HOLDINGS_PER_MESSAGE] for at in range(0, len(rows), HOLDINGS_PER_MESSAGE)]
        return [Have(tree, holdings=part) for part in parts] or [Have(tree)]

    async def announce(self, tree: bytes, holdings: list[Holding], *, whole: bool = False) -> None:
        """Tell the nodes that fetch a tree of blocks that have come in here."""
        for node in list(self.wants.get(tree, ())):
            peer = self.mesh.peers.get(node)
            if peer is not None and await self.grants.may_have(peer, tree):
                await peer.send(Have(tree, whole=whole, holdings=holdings))

    # lanes -----------------------------------------------------------------------------------------------------

    async def _on_lane_open(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, LaneOpen)
        now = time.monotonic()
        for stale in [lane for lane in self._waiting.values() if now - lane.offered_at > limits.HANDSHAKE_SECONDS]:
            self.lane_ended(stale)  # never dialled
        mine = [lane for lane in self._lanes.values() if lane.peer == peer.node]
        if len(mine) >= LANES_PER_PEER_MAX or (peer.node, message.lane) in self._lanes:
            raise PeerError("too many lanes, or one number twice")
        if not message.sealed and self.must_seal(peer, MODELS_ID):
            raise PeerError(f"{peer.hello.name} asked for a lane without a seal on a link that needs one")
        key = secrets.token_bytes(lane_wire.KEY_BYTES) if message.sealed else b""
        token = secrets.token_bytes(lane_wire.TOKEN_BYTES)
        self._last_admission += 1
        lane = _Lane(peer.node, message.lane, self._last_admission, key, now, message.urgent)
        self._admissions.issue(lane.admission, token)
        self._waiting[lane.admission] = lane
        self._lanes[peer.node, message.lane] = lane
        await peer.send(LaneReady(message.lane, lane.admission, token, key, self.port))

    async def accept_lane(self, stream: trio.SocketStream, admitted: Callable[[], None]) -> None:
        """Take a dialled lane: its greeting must carry the token of one that waits, which is then used up."""
        greeting = bytearray()
        while len(greeting) < lane_wire.GREETING_BYTES:
            data = await stream.receive_some(lane_wire.GREETING_BYTES - len(greeting))
            if not data:
                return
            greeting += data
        try:
            lane = self._waiting.pop(self._admissions.redeem(bytes(greeting)))
        except PeerError as error:
            _log.warning("a lane was closed: %s", error)
            return
        admitted()
        connection = socket.socket(fileno=stream.socket.detach())
        lane.end = SendLane(
            connection,
            _Origin(self, lane, trio.lowlevel.current_trio_token()),
            key=lane.key,
            limit=self.limit,
            precedence=None if lane.urgent else self.precedence,
            urgent=lane.urgent,
        )
        queued, lane.queued = lane.queued, []
        lane.end.submit(queued)

    def lane_refused(self, lane: _Lane, request: int, reason: str) -> None:
        """Tell the fetcher that a block could not be read; in the trio thread."""
        peer = self.mesh.peers.get(lane.peer)
        if peer is not None and self._nursery is not None:
            self._nursery.start_soon(peer.send, Refused(lane.number, [request], reason))

    def lane_ended(self, lane: _Lane) -> None:
        """Forget a lane; in the trio thread."""
        if self._lanes.get((lane.peer, lane.number)) is lane:
            del self._lanes[lane.peer, lane.number]
        if self._waiting.pop(lane.admission, None) is not None:
            self._admissions.revoke(lane.admission)
        for item in lane.queued:
            item.release()
        lane.queued = []

    async def _on_fetch(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Fetch)
        lane = self._lanes.get((peer.node, message.lane))
        if lane is None:
            await peer.send(Refused(message.lane, [wanted.request for wanted in message.blocks], NO_SUCH_LANE))
            return
        if len(message.blocks) > limits.BLOCKS_PER_FETCH:
            raise PeerError("too many blocks asked for at once")
        grant = await self.grants.of(peer, message.tree)
        if grant.empty:
            _log.warning("%s asked for blocks of a tree that it may not have", peer.hello.name)
        objects = grant.records if lane.key or not self.must_seal(peer, grant.volume) else frozenset[bytes]()
        known = [wanted for wanted in message.blocks if wanted.object in objects]
        items, rotten = await trio.to_thread.run_sync(self._items, known, lane.urgent)
        for object_id, index in rotten:
            self._suspect(object_id, index)
        self.bytes_served += sum(item.length for item in items)
        if self._lanes.get((peer.node, message.lane)) is not lane:  # it ended while the files were opened
            for item in items:
                item.release()
            return
        self._queue(lane, items)
        opened = {item.request for item in items}
        refused = [wanted.request for wanted in message.blocks if wanted.request not in opened]
        if refused:
            await peer.send(Refused(message.lane, refused, "not here"))

    def _items(self, blocks: list[Wanted], urgent: bool) -> tuple[list[Item], list[tuple[ObjectId, int]]]:
        """Open blocks for sending; what is not here, or cannot be opened now, is left out. And what is rotten."""
        items: list[Item] = []
        rotten: list[tuple[ObjectId, int]] = []
        for wanted in blocks:
            try:
                item = self._item(wanted)
            except (OSError, BlockCorrupt, ObjectMissing) as error:
                _log.warning("block %d of %s cannot be read: %s", wanted.index, wanted.object.hex(), error)
                if isinstance(error, BlockCorrupt):
                    rotten.append((ObjectId(wanted.object), wanted.index))
                continue
            if item is not None and urgent:
                item = replace(item, release=self.precedence.goes_first(item.release))
            if item is not None:
                items.append(item)
        return items, rotten

    def _item(self, wanted: Wanted) -> Item | None:
        """Open a block, or a run of its leaves; None when it is not here."""
        place = self.store.open_block(ObjectId(wanted.object), wanted.index)
        if place is None:
            return None
        if not wanted.leaves:
            return Item(wanted.request, place.descriptor, place.offset, place.length, place.release)
        run = Run(wanted.first_leaf, wanted.leaves, place.length)
        try:
            row = self._rows.of(ObjectId(wanted.object), wanted.index, place) if run.is_part else b""
        except BaseException:
            place.release()
            raise
        if not row:
            place.release()
            return None
        return Item(wanted.request, place.descriptor, place.offset + run.start, run.size, place.release, row)

    @staticmethod
    def _queue(lane: _Lane, items: list[Item]) -> None:
        """Hand blocks to a lane; PeerError, and their files are let go, when more is asked for than it takes."""
        try:
            if lane.end is not None:
                lane.end.submit(items)
                return
            if len(lane.queued) + len(items) > QUEUE_ITEMS_MAX:
                raise PeerError("too many blocks asked for on a lane that was not dialled")
            lane.queued += items
        except PeerError:
            for item in items:
                item.release()
            raise

    async def _on_cancel(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Cancel)
        lane = self._lanes.get((peer.node, message.lane))
        if lane is not None and lane.end is not None:
            lane.end.cancel(message.requests)

    async def _on_corrupt(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Corrupt)
        _log.warning(
            "%s got a corrupt block %d of %s from here", peer.hello.name, message.index, message.object.hex()
        )
        self._suspect(ObjectId(message.object), message.index)

    def _suspect(self, object_id: ObjectId, index: int) -> None:
        """Have a block looked at by the verifier."""
        if len(self.suspects) < SUSPECTS_MAX:
            self.suspects.append((object_id, index))
            self.suspected.set()

    async def _on_left(self, peer: Peer) -> None:
        self.grants.forget(peer.node)
        for nodes in self.wants.values():
            nodes.discard(peer.node)
        for lane in [lane for lane in self._lanes.values() if lane.peer == peer.node]:
            if lane.end is not None:
                lane.end.close()
            else:
                self.lane_ended(lane)


def _messages(records: dict[bytes, bytes]) -> Iterator[list[Record]]:
    """Yield records as they are sent: several in one message, or a large one in parts."""
    together: list[Record] = []
    size = 0
    for record_id, data in records.items():
        if size + len(data) > limits.RECORD_PART_BYTES and together:
            yield together
            together, size = [], 0
        for offset in range(0, len(data), limits.RECORD_PART_BYTES):
            part = Record(record_id, offset, len(data), data[offset : offset + limits.RECORD_PART_BYTES])
            if len(data) > limits.RECORD_PART_BYTES:
                yield [part]
            else:
                together.append(part)
                size += len(data)
    if together:
        yield together
