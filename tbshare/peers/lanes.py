"""The fetcher's lanes: opened when first needed, shared by all fetches from one peer, opened again when cut.

In the trio thread but for `_Sink.target` and what it looks up, which lane threads call: `_expected` is a plain
dict whose single operations are atomic, entries are added before a request is sent and removed after delivery.
"""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import trio

from tbshare.errors import BlockCorrupt, PeerError, PeerUnreachable
from tbshare.peers.mesh import Mesh, Peer
from tbshare.peers.plan import Rate, is_suspect
from tbshare.transport.lane import connect_lane
from tbshare.transport.lane_receive import ReceiveLane
from tbshare.transport.link import SKIP, Late, Target
from tbshare.transport.pool import BufferPool
from tbshare.wire import limits
from tbshare.wire.lane import KEY_BYTES
from tbshare.wire.message import (
    NO_SUCH_LANE,
    AnyMessage,
    Cancel,
    Corrupt,
    Fetch,
    LaneOpen,
    LaneReady,
    Refused,
    Wanted,
)

_log = logging.getLogger("tbshare.peers.lanes")
REOPEN_SECONDS = 1.0
DEAD_LANE_SECONDS = 1.5  # a lane that stays suspect this long is cut and opened again
URGENT_BUFFERS = 4
BLOCK_SECONDS_MAX = 600.0  # for one block: below 7 KB/s a lane only holds a buffer


class Key(NamedTuple):
    """Which lanes: from whom, and of which kind."""

    node: bytes
    sealed: bool
    urgent: bool


class Fetching(Protocol):
    """What a fetch offers to its lanes; all in the trio thread but the writing inside a Target."""

    tree: bytes

    def arrived(self, node: bytes, unit: int) -> None:
        """Note that a block was verified and written."""
        ...

    def lost(self, node: bytes, units: Sequence[int], *, reason: str, refused: bool) -> None:
        """Note that these will not come from this node; `refused` means it does not have them."""
        ...

    def fault(self, node: bytes, *, wrong: bool) -> None:
        """Note that a lane ended because of what its provider sent (`wrong`), or did not send."""
        ...

    def failed(self, unit: int, error: OSError) -> None:
        """Note that a block could not be written here."""
        ...


@dataclass(slots=True)
class _Expected:
    fetch: Fetching
    unit: int
    object: bytes
    index: int
    target: Target
    dropped: bool = False


class Lane:
    """One lane from a peer."""

    def __init__(self, lanes: "Lanes", peer: Peer, number: int) -> None:
        self.lanes, self.peer, self.number = lanes, peer, number
        self.end: ReceiveLane | None = None
        self.outstanding_bytes = 0
        self.outstanding = 0
        self.expected: dict[int, _Expected] = {}
        self.asked_at = 0.0  # monotonic; when something was asked for while nothing was outstanding
        self.cut = False  # because it was silent
        self.suspect_at = 0.0  # of its last byte when it became suspect; 0 while it is not
        self._token = trio.lowlevel.current_trio_token()

    # the Sink, called in lane threads

    def target(self, request: int) -> Target | Late | None:
        """Say where an arriving block goes."""
        expected = self.expected.get(request)
        if expected is None:
            return None
        return SKIP if expected.dropped else expected.target

    def delivered(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Hand a batch over to the trio thread."""
        self._token.run_sync_soon(self._delivered, [request for request, _ in blocks])

    def failed(self, request: int, error: OSError) -> None:
        """Hand a failed write over to the trio thread."""
        self._token.run_sync_soon(self._failed, request, error)

    def ended(self, error: BaseException | None) -> None:
        """Hand the end over to the trio thread."""
        self._token.run_sync_soon(self.lanes.lane_ended, self, error)

    # in the trio thread

    def _pop(self, request: int) -> _Expected | None:
        expected = self.expected.pop(request, None)
        if expected is not None and not expected.dropped:
            self.outstanding -= 1
            self.outstanding_bytes -= expected.target.length
        return expected

    def _delivered(self, requests: list[int]) -> None:
        for request in requests:
            expected = self._pop(request)
            if expected is not None and not expected.dropped:
                expected.fetch.arrived(self.peer.node, expected.unit)

    def _failed(self, request: int, error: OSError) -> None:
        expected = self._pop(request)
        if expected is not None and not expected.dropped:
            expected.fetch.failed(expected.unit, error)

    def refused(self, requests: Sequence[int], reason: str) -> None:
        """Take note that the provider will not answer these."""
        for request in requests:
            expected = self._pop(request)
            if expected is not None and not expected.dropped:
                # A lane that is gone says nothing about what the provider holds.
                expected.fetch.lost(self.peer.node, [expected.unit], reason=reason, refused=reason != NO_SUCH_LANE)

    def drop_all(self, reason: str) -> None:
        """Give back to their fetches whatever is outstanding."""
        for request in list(self.expected):
            expected = self._pop(request)
            if expected is not None and not expected.dropped:
                expected.fetch.lost(self.peer.node, [expected.unit], reason=reason, refused=False)

    def is_suspect(self, now: float) -> bool:
        """Return whether the lane makes no progress; once it does not, until a byte arrives."""
        progress = self.end.progress_at_seconds if self.end is not None else 0.0
        if self.suspect_at and progress > self.suspect_at:
            self.suspect_at = 0.0
        if not self.suspect_at and is_suspect(self.outstanding_bytes, self.quiet_seconds(now)):
            self.suspect_at = progress or now
        return bool(self.suspect_at)

    def must_end(self, now: float) -> bool:
        """Return whether the lane is to be opened again: silent too long, or a block that trickles."""
        if self.end is None:
            return False
        since = self.end.block_since_seconds
        trickles = since is not None and now - since > BLOCK_SECONDS_MAX
        waits = self.outstanding > 0 or self.suspect_at > 0
        return trickles or (waits and self.quiet_seconds(now) > DEAD_LANE_SECONDS)

    def quiet_seconds(self, now: float) -> float:
        """Return for how long nothing has come, counted from the first request at the earliest."""
        progress = self.end.progress_at_seconds if self.end is not None else 0.0
        return now - max(progress, self.asked_at)


class PeerLanes:
    """All lanes of one kind from one peer, and how fast it delivers on them."""

    def __init__(self, peer: Peer, *, sealed: bool, urgent: bool) -> None:
        self.peer, self.sealed, self.urgent = peer, sealed, urgent
        self.lanes: list[Lane] = []
        self.rate = Rate()
        self.bytes_before = 0
        self.busy_before = False
        self.reopen_at = 0.0
        self.opening = False

    @property
    def outstanding_bytes(self) -> int:
        """Bytes asked for and not here."""
        return sum(lane.outstanding_bytes for lane in self.lanes)

    @property
    def outstanding(self) -> int:
        """Blocks asked for and not here."""
        return sum(lane.outstanding for lane in self.lanes)

    def suspect(self, now: float) -> bool:
        """Return whether no lane makes progress."""
        return bool(self.lanes) and sum(lane.is_suspect(now) for lane in self.lanes) == len(self.lanes)

    def measure(self, seconds: float) -> None:
        """Take the bytes of the last `seconds` into the rate, if something was outstanding all the time."""
        received = sum(lane.end.bytes_received for lane in self.lanes if lane.end is not None)
        grown, self.bytes_before = received - self.bytes_before, received
        busy = self.outstanding > 0
        if grown > 0 and ((busy and self.busy_before) or not self.rate.bytes_per_second):
            self.rate = self.rate.after(grown, seconds)
        elif busy and self.busy_before:
            self.rate = self.rate.after(0, seconds)
        self.busy_before = busy


class Lanes:
    """Every lane this node fetches on."""

    def __init__(self, mesh: Mesh, pool: BufferPool, *, count: int, sealed: Callable[[Peer, str], bool]) -> None:
        self.mesh, self.pool, self.count, self.sealed = mesh, pool, count, sealed
        self._urgent_pool = BufferPool(URGENT_BUFFERS)  # of their own: bulk that waits for the disk has all others
        self.by_peer: dict[Key, PeerLanes] = {}
        self._numbers = itertools.count(1)
        self._requests = itertools.count(1)
        self._ready: dict[tuple[bytes, int], trio.Event] = {}
        self._answers: dict[tuple[bytes, int], LaneReady] = {}
        self._nursery: trio.Nursery | None = None
        self.changed: list[Callable[[], None]] = []  # called when a lane opened or ended
        mesh.on(LaneReady, self._on_ready)
        mesh.on(Refused, self._on_refused)
        mesh.on_left(self._on_left)

    async def run(self) -> None:
        """Measure, and renew lanes that stay silent; for ever."""
        before = time.monotonic()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                while True:
                    await trio.sleep(0.1)
                    now = time.monotonic()
                    for lanes in self.by_peer.values():
                        lanes.measure(now - before)
                        for lane in lanes.lanes:
                            if lane.end is not None and lane.must_end(now):
                                _log.warning("a lane from %s is silent; it is opened again", lane.peer.hello.name)
                                lane.cut = True
                                lane.end.close()
                    before = now
            finally:
                for lanes in self.by_peer.values():
                    for lane in lanes.lanes:
                        if lane.end is not None:
                            lane.end.close()

    def of(self, peer: Peer, volume: str, *, urgent: bool = False) -> PeerLanes:
        """Return the lanes from a peer that may carry blocks of a volume; opens them when there are none.

        `urgent`: the one on which is asked for what somebody waits for.
        """
        key = Key(peer.node, self.sealed(peer, volume), urgent)
        lanes = self.by_peer.get(key)
        if lanes is None or lanes.peer is not peer:
            lanes = self.by_peer[key] = PeerLanes(peer, sealed=key.sealed, urgent=urgent)
        wanted = 1 if urgent else self.count
        if len(lanes.lanes) < wanted and not lanes.opening and time.monotonic() >= lanes.reopen_at:
            lanes.opening = True
            assert self._nursery is not None
            self._nursery.start_soon(self._open, lanes)
        return lanes

    async def _open(self, lanes: PeerLanes) -> None:
        peer, sealed = lanes.peer, lanes.sealed
        number = next(self._numbers)
        lane = Lane(self, peer, number)
        key = (peer.node, number)
        event = self._ready[key] = trio.Event()
        try:
            await peer.send(LaneOpen(number, sealed, lanes.urgent))
            with trio.fail_after(limits.HANDSHAKE_SECONDS):
                await event.wait()
            ready = self._answers.pop(key)
            if len(ready.key) != (KEY_BYTES if sealed else 0) or not 0 < ready.port < 65536:
                raise PeerError("a lane was offered that is not what was asked for")
            dial = partial(
                connect_lane, (peer.lane_host, ready.port), ready.admission, ready.token, source=peer.local_host
            )
            connection = await trio.to_thread.run_sync(dial)
            pool = self._urgent_pool if lanes.urgent else self.pool
            lane.end = ReceiveLane(connection, lane, pool, key=ready.key, urgent=lanes.urgent)
            lanes.lanes.append(lane)
        except (PeerError, PeerUnreachable, OSError, trio.TooSlowError, KeyError) as error:
            _log.info("no lane from %s: %s", peer.hello.name, error)
            lanes.reopen_at = time.monotonic() + REOPEN_SECONDS
        except Exception:  # noqa: BLE001 - what one peer offers does not end the daemon
            _log.exception("no lane from %s", peer.hello.name)
            lanes.reopen_at = time.monotonic() + REOPEN_SECONDS
        finally:
            lanes.opening = False
            self._ready.pop(key, None)
            self._tell()

    def _tell(self) -> None:
        for call in self.changed:
            call()

    async def ask(
        self, lanes: PeerLanes, fetch: Fetching, wanted: Sequence[tuple[int, bytes, int, Target]]
    ) -> None:
        """Ask for blocks, given as (unit, object, index, target), spread over the peer's lanes."""
        batches: dict[Lane, list[Wanted]] = {}
        now = time.monotonic()
        for unit, object_id, index, target in wanted:
            lane = min(lanes.lanes, key=lambda lane: (lane.is_suspect(now), lane.outstanding_bytes))
            request = next(self._requests)
            lane.expected[request] = _Expected(fetch, unit, object_id, index, target)
            if not lane.outstanding:
                lane.asked_at = time.monotonic()
            lane.outstanding += 1
            lane.outstanding_bytes += target.length
            first, leaves = (target.run.first, target.run.count) if target.run is not None else (0, 0)
            batches.setdefault(lane, []).append(Wanted(request, object_id, index, first, leaves))
        for lane, batch in batches.items():
            for start in range(0, len(batch), limits.BLOCKS_PER_FETCH):
                part = batch[start : start + limits.BLOCKS_PER_FETCH]
                await lanes.peer.send(Fetch(lane.number, fetch.tree, part))

    async def cancel(self, node: bytes, fetch: Fetching, units: set[int] | None = None) -> None:
        """Take back requests of a fetch at one peer, all or some; what still arrives is dropped."""
        for key, lanes in list(self.by_peer.items()):
            if key.node != node:
                continue
            for lane in list(lanes.lanes):
                numbers: list[int] = []
                for request, expected in list(lane.expected.items()):
                    if (
                        expected.fetch is fetch
                        and not expected.dropped
                        and (units is None or expected.unit in units)
                    ):
                        expected.dropped = True
                        lane.outstanding -= 1
                        lane.outstanding_bytes -= expected.target.length
                        numbers.append(request)
                if numbers:
                    await lanes.peer.send(Cancel(lane.number, numbers))

    def lane_ended(self, lane: Lane, error: BaseException | None) -> None:
        """Forget a lane and give back what was outstanding on it; in the trio thread."""
        for lanes in self.by_peer.values():
            if lane in lanes.lanes:
                lanes.lanes.remove(lane)
                lanes.bytes_before = sum(other.end.bytes_received for other in lanes.lanes if other.end)
                lanes.reopen_at = time.monotonic() + (REOPEN_SECONDS if error is not None else 0.0)
        if error is not None:
            _log.info("a lane from %s ended: %s", lane.peer.hello.name, error)
        wrong = isinstance(error, BlockCorrupt | PeerError)
        if wrong or lane.cut:
            waiting = [expected.fetch for expected in lane.expected.values() if not expected.dropped]
            for fetch in {id(fetch): fetch for fetch in waiting}.values():
                fetch.fault(lane.peer.node, wrong=wrong)
        if isinstance(error, BlockCorrupt):
            self._complain(lane)
        lane.drop_all(str(error or "the lane was closed"))
        self._tell()

    def _complain(self, lane: Lane) -> None:
        """Say to the provider which blocks to verify: the wrong one is the oldest outstanding."""
        oldest = next((expected for expected in lane.expected.values() if not expected.dropped), None)
        if oldest is not None and self._nursery is not None:
            self._nursery.start_soon(lane.peer.send, Corrupt(oldest.object, oldest.index))
            oldest.fetch.lost(lane.peer.node, [oldest.unit], reason="wrong bytes", refused=True)

    async def _on_ready(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, LaneReady)
        event = self._ready.get((peer.node, message.lane))
        if event is not None:
            self._answers[peer.node, message.lane] = message
            event.set()

    async def _on_refused(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Refused)
        for key, lanes in self.by_peer.items():
            if key.node == peer.node:
                for lane in lanes.lanes:
                    if lane.number == message.lane:
                        lane.refused(message.requests, message.reason)

    async def _on_left(self, peer: Peer) -> None:
        for key, lanes in list(self.by_peer.items()):
            if lanes.peer is peer:
                del self.by_peer[key]
                for lane in lanes.lanes:
                    if lane.end is not None:
                        lane.end.close()
                    lane.drop_all("the peer left")
                lanes.lanes.clear()  # who still holds these must find that there is nothing to ask on
        self._tell()
