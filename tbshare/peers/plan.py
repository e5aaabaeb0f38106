"""Who is asked for which block: the decision each fetching node takes for one tree.

Every node that wants a tree runs this for itself, from what its peers have announced; there is no leader and no
schedule on the wire. Three rules make that come out close to the optimum M/((n-1)B) on a full mesh:

- *Parts.* What a peer holds is dealt out among those that ask it: of n askers, the one with rank r asks first for
  the blocks b with b mod n = r. So the fetchers draw disjoint parts from a seed, each over its own cable, and take
  the parts of the others from them as they announce them. When its own part is used up, because another fetcher
  is slow or gone, a node goes on with the blocks whose next digit in base n is its rank, and so on: those that
  help out take different shares, too.
- *Rarest first.* Blocks that the fewest peers hold come before others. This is what serves rings, trees and
  peers that hold only some of the blocks.
- *Nobody waits for the slow.* A peer with nothing left to be asked for takes over (`steals`) what would finish
  later where it is now.

Pure: no clock, no randomness, no input or output. The same values give the same answer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tbshare.content import bits
from tbshare.content.bits import Bits
from tbshare.content.block import BLOCK_BYTES
from tbshare.wire import limits

WINDOW_SECONDS = 0.15  # outstanding per peer: covers a busy provider's pauses, and no more has to be asked again
WINDOW_BLOCKS_MIN = 2  # one arrives while the next is read
WINDOW_BLOCKS_MAX = 16  # 64 MiB: memory of a provider and a fetcher is bounded by it
REQUESTS_MAX = limits.BLOCKS_PER_FETCH  # outstanding per peer: a thousand tiny blocks fit into any window
URGENT_WINDOWS = 2  # waiting reads, and what a suspect peer owes, may fill the window once more
RATE_SECONDS = 0.5  # time constant of the measured rate
STEAL_GAIN = 0.75  # a request moves when elsewhere it takes less than this of the time: below 1, or it would swing
LEVELS_MAX = 5  # digits of a block's number that deal it out; what is left is 1/fetchers**5 of the blocks


@dataclass(frozen=True)
class Rate:
    """How fast a peer delivers, averaged over about RATE_SECONDS; 0 while unknown."""

    bytes_per_second: float = 0.0

    def after(self, byte_count: int, seconds: float) -> "Rate":
        """Return the rate after `byte_count` arrived in `seconds` during which requests were outstanding."""
        if seconds <= 0:
            return self
        measured = byte_count / seconds
        if self.bytes_per_second <= 0:
            return Rate(measured)
        kept = math.exp(-seconds / RATE_SECONDS)
        return Rate(kept * self.bytes_per_second + (1 - kept) * measured)


def window(rate: float, round_trip_seconds: float) -> int:
    """Return how many bytes may be outstanding at a peer that delivers `rate` bytes per second (0: unknown)."""
    wanted = int(rate * (WINDOW_SECONDS + round_trip_seconds))
    return min(max(wanted, WINDOW_BLOCKS_MIN * BLOCK_BYTES), WINDOW_BLOCKS_MAX * BLOCK_BYTES)


def is_suspect(outstanding_bytes: int, quiet_seconds: float) -> bool:
    """Return whether a lane makes no progress.

    `quiet_seconds` counts from the last byte, or from the first request on an idle lane if that was later. A
    suspicion ends when a byte arrives or the lane is renewed, not when its requests have been moved away.
    """
    return outstanding_bytes > 0 and quiet_seconds >= limits.LANE_SUSPECT_SECONDS


@dataclass(frozen=True)
class PeerView:
    """What the fetching node knows about one peer it has a lane to."""

    peer: bytes
    holds: Bits
    in_flight_bytes: int = 0  # asked for and not yet arrived
    in_flight_blocks: int = 0
    window_bytes: int = WINDOW_BLOCKS_MIN * BLOCK_BYTES
    rate: float = 0.0  # bytes per second; 0: not measured yet
    suspect: bool = False
    askers: tuple[bytes, ...] = ()  # nodes that fetch the tree from it; where not known, all that fetch the tree


@dataclass(frozen=True, order=True)
class Assignment:
    """Ask `peer` for `block`."""

    peer: bytes
    block: int


@dataclass(frozen=True)
class Request:
    """A block asked for and not arrived; `remaining_bytes` of it are still to come."""

    peer: bytes
    block: int
    remaining_bytes: int


@dataclass(frozen=True)
class Steal:
    """Ask `winner` for `block`, then cancel it at `loser`."""

    block: int
    loser: bytes
    winner: bytes


def plan(
    me: bytes,
    needed: Bits,
    sizes: Sequence[int],
    peers: Sequence[PeerView],
    urgent: Bits = 0,
) -> list[Assignment]:
    """Return which needed blocks to ask of whom now, in the order of asking; no block twice.

    `needed` are the blocks neither here nor in flight, `sizes` the bytes of each block, `urgent` the blocks a
    reader waits for. A peer gets bulk blocks while they fit into its
    window (or nothing is outstanding there), urgent ones up to URGENT_WINDOWS of it. No healthy peer is left with
    nothing outstanding while it holds a needed block that is left over. A suspect peer is asked for one block at
    a time, and only for one that no healthy peer holds.

    For 300,000 blocks, seven peers and 14 to 16 assignments: 0.35 ms when the peers hold a regular pattern, 1.0 to
    1.4 ms when they hold random blocks, 0.1 to 0.3 ms for the usual call that fills one place (an EPYC with Zen 4,
    Python 3.11). The first of these:

        python -m timeit -s "from tbshare.content import bits; from tbshare.peers.plan import PeerView, plan
        n, ids = 300_000, [bytes([i]) * 32 for i in range(8)]
        peers = [PeerView(i, bits.periodic(7**i[0] % 2**17, 17, n), askers=tuple(ids)) for i in ids[1:]]
        need, sizes = bits.full(n), [4 << 20] * n" "plan(ids[0], need, sizes, peers)"
    """
    lanes = _lanes(peers)
    healthy = [lane for lane in lanes if not lane.view.suspect]
    taken: set[int] = set()
    result = _plan_urgent(urgent & needed, sizes, healthy, taken)
    ready = [lane for lane in healthy if lane.has_room(1)]
    if ready and needed:
        digits = bits.planes(lane.view.holds & needed for lane in healthy)
        for lane in ready:
            shares = _shares(me, lane.view.askers, len(sizes))
            lane.offers = _preferred(lane.view.holds & needed, digits, shares)
        result += _plan_bulk(sizes, ready, taken)
    return result + _plan_suspects(needed, sizes, lanes, taken)


def steals(
    requests: Sequence[Request],
    needed: Bits,
    sizes: Sequence[int],
    peers: Sequence[PeerView],
    urgent: Bits = 0,
) -> list[Steal]:
    """Return which requests to move to another peer; call it before `plan`, and `plan` with the views after it.

    `requests` are all in flight, per peer in the order of asking; a peer that is not in `peers` is gone. Three
    kinds move, each only to a healthy holder: what a suspect or gone peer owes, at once; an urgent block that
    would be here sooner from elsewhere; and, when a peer has room and holds nothing that is still `needed`,
    whatever would finish latest where it is. The gain must be STEAL_GAIN. A request moves at most once per call.
    """
    lanes = _lanes(peers)
    healthy = [lane for lane in lanes if not lane.view.suspect]
    names = {lane.view.peer for lane in healthy}
    hurried = {
        request.block
        for request in requests
        if request.peer not in names or (urgent and bits.contains(urgent, request.block))
    }
    helpers = [lane for lane in healthy if lane.has_room(1) and not lane.view.holds & needed]
    if not hurried and not helpers:
        return []
    queues = _Queues(requests, healthy, sizes)
    moved = queues.move(hurried, healthy, URGENT_WINDOWS) if hurried else []
    return moved + queues.move({request.block for request in requests}, helpers, 1)


@dataclass
class _Lane:
    """A peer while a decision is made: what is outstanding there grows."""

    view: PeerView
    rate: float  # never 0
    outstanding: int  # bytes
    requests: int
    offers: Iterator[int] = field(default_factory=lambda: iter(()))  # blocks, the best first

    def has_room(self, byte_count: int, windows: int = 1) -> bool:
        if self.requests == 0:
            return True
        fits = self.outstanding + byte_count <= windows * self.view.window_bytes
        return fits and self.requests < windows * REQUESTS_MAX

    def seconds(self, byte_count: int) -> float:
        """Return when that many more bytes would have arrived."""
        return (self.outstanding + byte_count) / self.rate

    def assign(self, block: int, sizes: Sequence[int]) -> Assignment:
        self.outstanding += sizes[block]
        self.requests += 1
        return Assignment(self.view.peer, block)


def _lanes(peers: Sequence[PeerView]) -> list[_Lane]:
    """Return the lanes in the order of their ids; an unknown rate is taken for the middle of the others."""
    known = sorted(view.rate for view in peers if view.rate > 0)
    typical = known[len(known) // 2] if known else 1.0
    views = sorted(peers, key=lambda view: view.peer)
    return [
        _Lane(
            view,
            rate=view.rate if view.rate > 0 else typical,
            outstanding=view.in_flight_bytes,
            requests=view.in_flight_blocks,
        )
        for view in views
    ]


def _plan_urgent(urgent: Bits, sizes: Sequence[int], lanes: list[_Lane], taken: set[int]) -> list[Assignment]:
    """Ask for what a reader waits for, each block of the holder that has it here first."""
    result: list[Assignment] = []
    while urgent:
        holders = [lane for lane in lanes if lane.has_room(BLOCK_BYTES, URGENT_WINDOWS)]
        holders = [lane for lane in holders if lane.view.holds & urgent]
        if not holders:
            break
        reachable = 0
        for lane in holders:
            reachable |= lane.view.holds & urgent
        for block in bits.ascending(reachable):
            able = [lane for lane in holders if bits.contains(lane.view.holds, block)]
            best = min(able, key=lambda lane: lane.seconds(sizes[block]))
            result.append(best.assign(block, sizes))
            taken.add(block)
            urgent ^= 1 << block
            if not best.has_room(BLOCK_BYTES, URGENT_WINDOWS):
                break
    return result


def _plan_bulk(sizes: Sequence[int], lanes: list[_Lane], taken: set[int]) -> list[Assignment]:
    """Fill the windows, always next at the peer that would be done first; a lane ends at what does not fit."""
    result: list[Assignment] = []
    while lanes:
        lane = min(lanes, key=lambda lane: lane.seconds(BLOCK_BYTES))
        block = next((offer for offer in lane.offers if offer not in taken), None)
        if block is None or not lane.has_room(sizes[block]):
            lanes.remove(lane)
            continue
        result.append(lane.assign(block, sizes))
        taken.add(block)
    return result


def _plan_suspects(needed: Bits, sizes: Sequence[int], lanes: list[_Lane], taken: set[int]) -> list[Assignment]:
    """Ask each suspect peer with nothing outstanding for one block that no healthy peer holds."""
    suspects = [lane for lane in lanes if lane.view.suspect and lane.requests == 0]
    if not suspects or not needed:
        return []
    for lane in lanes:
        if not lane.view.suspect:
            needed &= ~lane.view.holds
    result: list[Assignment] = []
    for lane in suspects:
        block = next((number for number in bits.ascending(lane.view.holds & needed) if number not in taken), None)
        if block is not None:
            result.append(lane.assign(block, sizes))
            taken.add(block)
    return result


def _shares(me: bytes, askers: Sequence[bytes], count: int) -> list[Bits]:
    """Return my share of `count` blocks at each level: those whose digit at that level is my rank."""
    everyone = sorted({me, *askers})
    return _shares_of_rank(everyone.index(me), len(everyone), count)


@lru_cache(maxsize=16)  # a fetch asks for the same again after each arrival; 40 KB per level of the largest tree
def _shares_of_rank(rank: int, askers: int, count: int) -> list[Bits]:
    shares: list[Bits] = []
    run = 1
    while askers > 1 and run < count and len(shares) < LEVELS_MAX:
        shares.append(bits.periodic(bits.full(run) << rank * run, run * askers, count))
        run *= askers
    return shares


def _preferred(available: Bits, digits: list[Bits], shares: list[Bits]) -> Iterator[int]:
    """Yield the blocks, the best first: the fewest holders, then my share at level 0, level 1, ... then the rest.

    My own part is drawn upwards, the parts of others downwards: a helper and the owner meet only at the end.
    """
    for tier in bits.by_count(available, digits):
        left = tier
        for level, share in enumerate(shares):
            mine = left & share
            if mine:
                yield from bits.ascending(mine) if level == 0 else bits.descending(mine)
                left ^= mine
            if not left:
                break
        yield from bits.descending(left) if shares else bits.ascending(left)


class _Queues:
    """Requests in flight, per lane in the order of asking, while some of them move."""

    def __init__(self, requests: Sequence[Request], healthy: list[_Lane], sizes: Sequence[int]) -> None:
        self._lanes = {lane.view.peer: lane for lane in healthy}
        self._requests = list(requests)
        self._sizes = sizes

    def move(self, blocks: set[int], winners: list[_Lane], windows: int) -> list[Steal]:
        """Move requests for `blocks` to `winners`, the latest first, while that gains; each once."""
        moved: list[Steal] = []
        while step := self._best(blocks, winners, windows):
            request, winner = step
            moved.append(Steal(request.block, request.peer, winner.view.peer))
            self._requests.remove(request)
            winner.assign(request.block, self._sizes)
        return moved

    def _best(self, blocks: set[int], winners: list[_Lane], windows: int) -> tuple[Request, _Lane] | None:
        """Return the request that would finish latest of those that gain by moving, and who gets it."""
        for seconds, request in sorted(self._finishes(blocks), key=lambda finish: -finish[0]):
            size = self._sizes[request.block]
            sooner = [
                lane
                for lane in winners
                if lane.view.peer != request.peer
                and lane.seconds(size) < STEAL_GAIN * seconds
                and lane.has_room(size, windows)
                and bits.contains(lane.view.holds, request.block)
            ]
            if sooner:
                return request, min(sooner, key=lambda lane: lane.seconds(size))
        return None

    def _finishes(self, blocks: set[int]) -> list[tuple[float, Request]]:
        """Return in how many seconds each request for one of `blocks` would be here; never, if not healthy."""
        ahead: dict[bytes, int] = {}
        result: list[tuple[float, Request]] = []
        for request in self._requests:
            ahead[request.peer] = ahead.get(request.peer, 0) + request.remaining_bytes
            lane = self._lanes.get(request.peer)
            if request.block in blocks:
                result.append((ahead[request.peer] / lane.rate if lane else math.inf, request))
        return result
