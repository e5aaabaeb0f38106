"""A cluster with a virtual clock that runs the real `plan`: how long until every node has everything?

Cables are directed links with a rate; a node may have one network card that its links share. Control messages take
CONTROL_SECONDS. What is decided, in which order, is the code's; what is simulated is only how fast bytes flow.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbshare.content import bits
from tbshare.content.block import BLOCK_BYTES
from tbshare.peers import plan
from tbshare.wire import limits

CABLE = 50e6  # bytes per second, 400 Mbit/s
BLOCKS = 128  # 0.54 GB
CONTROL_SECONDS = 0.001
ANNOUNCE_SECONDS = 0.020
ANNOUNCE_BLOCKS = 8
TICK_SECONDS = 0.1
END_SECONDS = 600.0  # of virtual time: later means that the transfer hangs


@dataclass(eq=False)
class Transfer:
    """A block on its way; the provider may still have to begin with it."""

    block: int
    remaining: float
    asked: float
    cancelled: bool = False


@dataclass(eq=False)
class Lane:
    provider: "Node"
    fetcher: "Node"
    cable: float  # bytes per second; 0 when cut
    queue: deque[Transfer] = field(default_factory=deque[Transfer])  # at the provider, the first is being sent
    in_flight: list[Transfer] = field(default_factory=list[Transfer])  # as the fetcher counts
    rate: plan.Rate = field(default_factory=plan.Rate)
    flow: float = 0.0  # bytes per second now
    moved_at: float = 0.0  # the last byte, or the first request on an idle lane
    arrived_at: float = 0.0
    suspect: bool = False


@dataclass(eq=False)
class Node:
    name: bytes
    have: bits.Bits
    nic: float  # bytes per second each way, for all its links
    starts: float = 0.0
    needed: bits.Bits = 0
    lanes: dict[bytes, Lane] = field(default_factory=dict[bytes, Lane])  # by provider
    known: dict[bytes, bits.Bits] = field(default_factory=dict[bytes, bits.Bits])
    unannounced: list[int] = field(default_factory=list[int])
    alive: bool = True
    started: bool = False
    done_at: float = -1.0
    received: float = 0.0  # bytes, duplicates included


_NOBODY = Node(b"", 0, 0.0)
_NO_LANE = Lane(_NOBODY, _NOBODY, 0.0)


class Cluster:
    """Nodes 0 .. n-1 and the cables between them; the nodes that lack something fetch it."""

    def __init__(
        self,
        cables: dict[tuple[int, int], float],
        have: dict[int, bits.Bits],
        *,
        blocks: int = BLOCKS,
        nics: dict[int, float] | None = None,
        starts: dict[int, float] | None = None,
        askers_known: bool = True,
    ) -> None:
        count = 1 + max(max(pair) for pair in cables)
        self.sizes = [BLOCK_BYTES] * blocks
        self.all = bits.full(blocks)
        self.askers_known = askers_known
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._flow_epoch = 0
        self._flow_at = 0.0
        self.nodes = [
            Node(
                bytes([index]) * 32,
                have.get(index, 0),
                nic=(nics or {}).get(index, float("inf")),
                starts=(starts or {}).get(index, 0.0),
            )
            for index in range(count)
        ]
        self.by_name = {node.name: node for node in self.nodes}
        for (one, other), rate in cables.items():
            for provider, fetcher in ((self.nodes[one], self.nodes[other]), (self.nodes[other], self.nodes[one])):
                fetcher.lanes[provider.name] = Lane(provider, fetcher, rate)
        for node in self.nodes:
            node.needed = self.all & ~node.have
            self.at(node.starts, partial(self._start, node))

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def run(self) -> list[float]:
        """Run until all living nodes have everything; return when each had, in seconds."""
        while any(node.alive and node.have != self.all for node in self.nodes):
            self.now, _, what = heapq.heappop(self._events)
            assert self.now < END_SECONDS, "the transfer hangs"
            what()
        return [node.done_at for node in self.nodes]

    def cut(self, one: int, other: int) -> None:
        """The cable falls out: bytes stop, nobody is told."""
        names = [self.nodes[one].name, self.nodes[other].name]
        self.nodes[one].lanes[names[1]].cable = 0.0
        self.nodes[other].lanes[names[0]].cable = 0.0
        self._reflow()

    def kill(self, index: int) -> None:
        """The node falls silent; its peers notice after NODE_GONE_SECONDS."""
        node = self.nodes[index]
        node.alive = False
        for name in node.lanes:
            self.cut(index, self.nodes.index(self.by_name[name]))
            self.at(self.now + limits.NODE_GONE_SECONDS, partial(self._forget, self.by_name[name], node))

    def _forget(self, node: Node, gone: Node) -> None:
        for transfer in node.lanes[gone.name].in_flight:
            node.needed |= 1 << transfer.block
        del node.lanes[gone.name]
        del node.known[gone.name]
        gone.started = False
        self._think(node)

    def _start(self, node: Node) -> None:
        node.started = True
        if not node.needed:
            node.done_at = self.now
        for name, lane in node.lanes.items():
            node.known[name] = 0
            lane.moved_at = self.now
            self._tell(lane.provider, node, lane.provider.have)
            if lane.provider.started:
                self._tell(node, lane.provider, node.have)
        if node.needed:
            self._tick(node)

    def _tick(self, node: Node) -> None:
        if node.needed or any(lane.in_flight for lane in node.lanes.values()):
            self._think(node)
            self.at(self.now + TICK_SECONDS, lambda: self._tick(node))

    def _tell(self, teller: Node, listener: Node, blocks: bits.Bits) -> None:
        def heard() -> None:
            if teller.name in listener.known and listener.lanes[teller.name].cable:
                listener.known[teller.name] |= blocks
                if listener.needed & blocks:
                    self._think(listener)

        self.at(self.now + CONTROL_SECONDS, heard)

    def _announce(self, node: Node) -> None:
        if node.unannounced and node.alive:
            blocks = bits.of(node.unannounced)
            node.unannounced.clear()
            for name in node.lanes:
                self._tell(node, self.by_name[name], blocks)

    # -- deciding

    def _views(self, node: Node) -> list[plan.PeerView]:
        views: list[plan.PeerView] = []
        for name, lane in node.lanes.items():
            outstanding = sum(int(transfer.remaining) for transfer in lane.in_flight)
            quiet = self.now - lane.moved_at
            lane.suspect = lane.suspect or plan.is_suspect(outstanding, quiet)
            views.append(
                plan.PeerView(
                    peer=name,
                    holds=node.known[name],
                    in_flight_bytes=outstanding,
                    in_flight_blocks=len(lane.in_flight),
                    window_bytes=plan.window(lane.rate.bytes_per_second, 2 * CONTROL_SECONDS),
                    rate=lane.rate.bytes_per_second,
                    suspect=lane.suspect,
                    askers=self._askers(lane.provider),
                )
            )
        return views

    def _askers(self, provider: Node) -> tuple[bytes, ...]:
        """Return who has said to the provider that it wants the tree, or whoever fetches it at all."""
        return tuple(
            node.name
            for node in self.nodes
            if node.started
            and node.done_at != node.starts
            and (not self.askers_known or node.lanes.get(provider.name, _NO_LANE).cable)
        )

    def _think(self, node: Node) -> None:
        if not node.alive or not node.started:
            return
        self._advance()
        requests = [
            plan.Request(name, transfer.block, int(transfer.remaining))
            for name, lane in node.lanes.items()
            for transfer in lane.in_flight
        ]
        for steal in plan.steals(requests, node.needed, self.sizes, self._views(node)):
            self._cancel(node.lanes[steal.loser], steal.block)
            self._ask(node.lanes[steal.winner], steal.block)
        for ask in plan.plan(node.name, node.needed, self.sizes, self._views(node)):
            assert node.needed >> ask.block & 1
            node.needed ^= 1 << ask.block
            self._ask(node.lanes[ask.peer], ask.block)

    def _ask(self, lane: Lane, block: int) -> None:
        transfer = Transfer(block, self.sizes[block], self.now)
        if not lane.in_flight:
            lane.moved_at = self.now
        lane.in_flight.append(transfer)

        def asked() -> None:
            if not transfer.cancelled:
                assert lane.provider.have >> block & 1
                lane.queue.append(transfer)
                self._reflow()

        self.at(self.now + CONTROL_SECONDS, asked)

    def _cancel(self, lane: Lane, block: int) -> None:
        transfer = next(transfer for transfer in lane.in_flight if transfer.block == block)
        lane.in_flight.remove(transfer)
        transfer.cancelled = True

        def cancelled() -> None:
            if transfer in itertools.islice(lane.queue, 1, None):  # what is being sent is sent to the end
                lane.queue.remove(transfer)

        self.at(self.now + CONTROL_SECONDS, cancelled)

    # -- bytes

    def _sending(self) -> list[Lane]:
        return [lane for node in self.nodes for lane in node.lanes.values() if lane.queue and lane.cable]

    def _advance(self) -> None:
        elapsed, self._flow_at = self.now - self._flow_at, self.now
        for lane in self._sending():
            if lane.flow and elapsed:
                lane.queue[0].remaining -= lane.flow * elapsed
                lane.fetcher.received += lane.flow * elapsed
                lane.moved_at = self.now
                lane.suspect = False

    def _reflow(self) -> None:
        """Share the links out anew and await the next block that is complete."""
        self._advance()
        self._flow_epoch += 1
        epoch, sending = self._flow_epoch, self._sending()
        soonest = float("inf")
        _share_fairly(sending)
        for lane in sending:
            soonest = min(soonest, max(0.0, lane.queue[0].remaining) / lane.flow)
        if soonest < float("inf"):
            self.at(self.now + soonest, lambda: self._arrivals() if epoch == self._flow_epoch else None)

    def _arrivals(self) -> None:
        self._advance()
        arrived = [lane for lane in self._sending() if lane.queue[0].remaining < 1]
        blocks = [(lane, lane.queue.popleft()) for lane in arrived]
        for lane, _ in blocks:
            lane.flow = 0.0
        self._reflow()
        for lane, transfer in blocks:
            self._arrived(lane, transfer)

    def _arrived(self, lane: Lane, transfer: Transfer) -> None:
        node = lane.fetcher
        lane.rate = lane.rate.after(self.sizes[transfer.block], self.now - max(transfer.asked, lane.arrived_at))
        lane.arrived_at = self.now
        if transfer in lane.in_flight:
            lane.in_flight.remove(transfer)
        if node.have >> transfer.block & 1:
            return
        node.have |= 1 << transfer.block
        node.needed &= ~(1 << transfer.block)
        for other in node.lanes.values():
            if any(waiting.block == transfer.block for waiting in other.in_flight):
                self._cancel(other, transfer.block)
        node.unannounced.append(transfer.block)
        if len(node.unannounced) >= ANNOUNCE_BLOCKS:
            self._announce(node)
        elif len(node.unannounced) == 1:
            self.at(self.now + ANNOUNCE_SECONDS, lambda: self._announce(node))
        if node.have == self.all:
            node.done_at = self.now
        self._think(node)


def _share_fairly(lanes: list[Lane]) -> None:
    """Give each lane its max-min fair rate: the tightest cable or network card first, to all that pass it."""
    limits_of: dict[object, tuple[float, list[Lane]]] = {}
    for lane in lanes:
        for key, rate in (
            (lane, lane.cable),
            ((lane.provider, "out"), lane.provider.nic),
            ((lane.fetcher, "in"), lane.fetcher.nic),
        ):
            limits_of.setdefault(key, (rate, []))[1].append(lane)
    left = set(lanes)
    while left:
        shares = {
            key: (rate - sum(lane.flow for lane in through if lane not in left)) / count
            for key, (rate, through) in limits_of.items()
            if (count := sum(lane in left for lane in through))
        }
        tightest = min(shares, key=lambda key: shares[key])
        for lane in limits_of[tightest][1]:
            if lane in left:
                lane.flow = shares[tightest]
                left.remove(lane)


def mesh(count: int, rate: float = CABLE) -> dict[tuple[int, int], float]:
    return dict.fromkeys(itertools.combinations(range(count), 2), rate)


def bound(rate: float, blocks: int = BLOCKS) -> float:
    """Return how long the blocks take at that many bytes per second."""
    return blocks * BLOCK_BYTES / rate


def cut_bound(cables: dict[tuple[int, int], float], count: int, source: int = 0) -> float:
    """Return the optimum for any schedule: all bytes over the smallest cut between the source and a receiver."""
    others = [index for index in range(count) if index != source]
    smallest = min(
        sum(rate for (one, other), rate in cables.items() if (one in near) != (other in near))
        for size in range(len(others))
        for chosen in itertools.combinations(others, size)
        for near in [{source, *chosen}]
    )
    return bound(smallest)


def spread(cluster: Cluster, *events: tuple[float, Callable[[], None]]) -> list[float]:
    for when, what in events:
        cluster.at(when, what)
    return cluster.run()


WHOLE = {0: bits.full(BLOCKS)}
RING = {(0, 1): CABLE, (1, 2): CABLE, (2, 3): CABLE, (0, 3): CABLE}


@pytest.mark.parametrize(
    ("count", "blocks", "most"), [(2, 128, 1.01), (3, 128, 1.05), (4, 128, 1.06), (6, 128, 1.10)]
)
def test_a_full_mesh_comes_close_to_the_bound(count: int, blocks: int, most: float) -> None:
    done = spread(Cluster(mesh(count), {0: bits.full(blocks)}, blocks=blocks))
    assert max(done) <= most * bound((count - 1) * CABLE, blocks)


def test_at_thunderbolt_speed_the_delay_of_announcements_is_hidden() -> None:
    done = spread(Cluster(mesh(4, 6e9), {0: bits.full(1024)}, blocks=1024))
    assert max(done) <= 1.06 * bound(3 * 6e9, 1024)


def test_a_ring_uses_both_directions() -> None:
    assert max(spread(Cluster(RING, WHOLE))) <= 1.06 * bound(2 * CABLE)
    assert max(spread(Cluster(RING, WHOLE, askers_known=False))) <= 1.08 * bound(2 * CABLE)


def test_a_longer_ring_and_a_cube_forward_over_several_hops() -> None:
    ring = {(index, (index + 1) % 6): CABLE for index in range(6)}
    assert max(spread(Cluster(ring, WHOLE))) <= 1.10 * bound(2 * CABLE)
    cube = {(one, one ^ bit): CABLE for one in range(8) for bit in (1, 2, 4) if one < one ^ bit}
    assert max(spread(Cluster(cube, WHOLE))) <= 1.15 * bound(3 * CABLE)


@pytest.mark.parametrize("slow_rate", [0.02, 0.15])
def test_a_slow_member_slows_nobody_else(slow_rate: float) -> None:
    alone = max(spread(Cluster(mesh(4), WHOLE)))
    nics = {4: slow_rate * CABLE}
    done = spread(Cluster(mesh(5), WHOLE, nics=nics))
    assert max(done[:4]) <= 1.05 * alone
    assert done[4] <= 1.02 * bound(nics[4])


def test_the_slow_member_may_be_the_first_by_rank() -> None:
    done = spread(Cluster(mesh(4), {3: bits.full(BLOCKS)}, nics={0: 0.15 * CABLE}))
    assert max(done[1:]) <= 1.06 * bound(2 * CABLE)


def test_on_a_switch_each_byte_leaves_the_seed_about_once() -> None:
    nics = dict.fromkeys(range(4), CABLE)
    alone = max(spread(Cluster(mesh(4, 1e12), WHOLE, nics=nics)))
    assert alone <= 1.06 * bound(CABLE)
    done = spread(Cluster(mesh(5, 1e12), WHOLE, nics=nics | {4: 0.1 * CABLE}))
    assert max(done[:4]) <= 1.05 * alone


def test_two_seeds_share_the_load() -> None:
    cables = {pair: rate for pair, rate in mesh(4).items() if pair != (0, 1)}
    done = spread(Cluster(cables, WHOLE | {1: bits.full(BLOCKS)}))
    assert max(done) <= 1.05 * bound(3 * CABLE)


def test_holders_of_different_halves_serve_together() -> None:
    low = bits.full(BLOCKS // 2)
    done = spread(Cluster(mesh(4), {0: low, 1: bits.full(BLOCKS) ^ low}))
    assert max(done) <= 1.10 * bound(3 * CABLE)


@pytest.mark.parametrize("known", [True, False])
def test_a_seed_cable_lost_midway_costs_its_bandwidth_and_the_suspicion(known: bool) -> None:
    cluster = Cluster(mesh(4), WHOLE, askers_known=known)
    lost_at = 1.5
    done = spread(cluster, (lost_at, lambda: cluster.cut(0, 1)))
    optimum = lost_at + (1 - lost_at / bound(3 * CABLE)) * bound(2 * CABLE)
    assert max(done) <= optimum + limits.LANE_SUSPECT_SECONDS


def test_a_receiver_that_dies_leaves_the_others_to_finish() -> None:
    cluster = Cluster(mesh(4), WHOLE)
    died_at = 1.5
    done = spread(cluster, (died_at, lambda: cluster.kill(2)))
    optimum = died_at + (1 - died_at / bound(3 * CABLE)) * bound(2 * CABLE)
    assert max(done[1], done[3]) <= optimum + limits.LANE_SUSPECT_SECONDS
    assert done[2] < 0


def test_a_late_joiner_is_fed_by_all_and_slows_nobody() -> None:
    joined_at = 2.0
    done = spread(Cluster(mesh(4), WHOLE, starts={3: joined_at}))
    assert done[3] - joined_at <= 1.06 * bound(3 * CABLE)
    assert max(done[1:3]) <= 1.05 * max(spread(Cluster(mesh(3), WHOLE)))


@pytest.mark.parametrize("stride", [3, 9, 11])
def test_a_push_of_few_changed_blocks_spreads_them(stride: int) -> None:
    changed = bits.periodic(1, stride, BLOCKS)
    have = dict.fromkeys((1, 2, 3), bits.full(BLOCKS) ^ changed)
    cluster = Cluster(mesh(4), WHOLE | have)
    done = spread(cluster)
    moved = changed.bit_count()
    assert max(done) <= bound(3 * CABLE, moved) + 3 * bound(CABLE, 1)  # a block comes in, and goes out again
    assert all(abs(node.received / BLOCK_BYTES - moved) <= 0.1 * moved for node in cluster.nodes[1:])


@settings(max_examples=8, deadline=None)
@given(st.lists(st.floats(0.3, 2.0), min_size=6, max_size=6), st.booleans())
def test_cables_of_any_rate_are_used(rates: list[float], known: bool) -> None:
    cables = {pair: rate * CABLE for pair, rate in zip(mesh(4), rates, strict=True)}
    done = spread(Cluster(cables, WHOLE, askers_known=known))
    assert max(done) <= 1.5 * cut_bound(cables, 4)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_connected_cluster_finishes_whatever_falls_out(data: st.DataObject) -> None:
    count, blocks = data.draw(st.integers(2, 6)), 32
    tree = {(data.draw(st.integers(0, index - 1)), index): CABLE for index in range(1, count)}
    extra = data.draw(st.sets(st.sampled_from(sorted(mesh(count)))))
    rate = st.floats(0.1, 2.0)
    cables = {pair: CABLE * data.draw(rate) for pair in sorted({*tree, *extra})}
    have = {index: data.draw(st.integers(0, bits.full(blocks))) for index in range(1, count)}
    cluster = Cluster(cables, have | {0: bits.full(blocks)}, blocks=blocks)
    falls = [pair for pair in cables if pair not in tree and data.draw(st.booleans())]
    done = spread(cluster, *[(data.draw(st.floats(0, 1)), partial(cluster.cut, *pair)) for pair in falls])
    assert all(when >= 0 for when in done)
    for node in cluster.nodes[1:]:
        lacked = (blocks - (have[cluster.nodes.index(node)]).bit_count()) * BLOCK_BYTES
        assert node.received <= lacked + 0.5 * blocks * BLOCK_BYTES  # duplicates of what was stolen
