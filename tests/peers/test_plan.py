"""Who is asked for which block: each rule of the plan, on drawn cases and against a brute-force oracle."""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content import bits
from tbshare.content.block import BLOCK_BYTES
from tbshare.peers import plan
from tbshare.peers.plan import Assignment, PeerView, Rate, Request, Steal
from tbshare.wire import limits

ME = b"\x80" * 32
RATE = 50e6


def peer_id(number: int) -> bytes:
    return bytes([number]) * 32


Case = tuple[bits.Bits, list[int], list[PeerView], bits.Bits]  # needed, sizes, peers, urgent
ASKERS = (peer_id(1), peer_id(2), ME)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Return needed blocks, sizes, peers and urgent blocks."""
    count = draw(st.integers(1, 40))
    some = st.integers(0, bits.full(count))
    sizes = draw(st.lists(st.sampled_from([1, 4096, BLOCK_BYTES]), min_size=count, max_size=count))
    peers: list[PeerView] = []
    for number in draw(st.lists(st.integers(1, 9), unique=True, max_size=6)):
        in_flight = draw(st.integers(0, 4))
        peers.append(
            PeerView(
                peer=peer_id(number),
                holds=draw(some | st.just(bits.full(count))),
                in_flight_bytes=in_flight * BLOCK_BYTES,
                in_flight_blocks=in_flight,
                window_bytes=draw(st.integers(0, 6)) * BLOCK_BYTES + 1,
                rate=draw(st.sampled_from([0.0, 1e6, RATE])),
                suspect=draw(st.integers(0, 5)) == 0,
                askers=draw(st.sampled_from([(), ASKERS])),
            )
        )
    return draw(some), sizes, peers, draw(st.just(0) | some)


def after(view: PeerView, sizes: Sequence[int], result: list[Assignment]) -> PeerView:
    """Return the view of the peer once it has been asked."""
    mine = [sizes[ask.block] for ask in result if ask.peer == view.peer]
    return replace(
        view,
        in_flight_bytes=view.in_flight_bytes + sum(mine),
        in_flight_blocks=view.in_flight_blocks + len(mine),
    )


@given(cases())
def test_it_asks_holders_for_needed_blocks_once_each(
    case: Case,
) -> None:
    needed, sizes, peers, urgent = case
    result = plan.plan(ME, needed, sizes, peers, urgent)
    holds = {view.peer: view.holds for view in peers}
    assert all(bits.contains(holds[ask.peer] & needed, ask.block) for ask in result)
    assert len({ask.block for ask in result}) == len(result)


@given(cases())
def test_windows_hold(case: Case) -> None:
    needed, sizes, peers, urgent = case
    result = plan.plan(ME, needed, sizes, peers, urgent)
    for view in peers:
        mine = [ask.block for ask in result if ask.peer == view.peer]
        windows = plan.URGENT_WINDOWS if any(bits.contains(urgent, block) for block in mine) else 1
        if mine and (view.in_flight_blocks or len(mine) > 1):
            assert after(view, sizes, result).in_flight_bytes <= windows * view.window_bytes


@given(cases())
def test_no_peer_that_could_help_is_left_idle(
    case: Case,
) -> None:
    needed, sizes, peers, urgent = case
    result = plan.plan(ME, needed, sizes, peers, urgent)
    left = needed & ~bits.of(ask.block for ask in result)
    for view in peers:
        asked = after(view, sizes, result)
        if not view.suspect and not asked.in_flight_blocks:
            assert not view.holds & left
        fits = asked.in_flight_bytes + BLOCK_BYTES <= view.window_bytes
        if not view.suspect and fits:
            assert not view.holds & left


@given(cases(), st.data())
def test_equal_input_gives_equal_output_in_whatever_order_peers_are_listed(
    case: Case, data: st.DataObject
) -> None:
    needed, sizes, peers, urgent = case
    shuffled = data.draw(st.permutations(peers))
    assert plan.plan(ME, needed, sizes, peers, urgent) == plan.plan(ME, needed, sizes, shuffled, urgent)


@given(cases())
def test_a_suspect_peer_gets_one_block_that_nobody_else_holds(case: Case) -> None:
    needed, sizes, peers, urgent = case
    result = plan.plan(ME, needed, sizes, peers, urgent)
    healthy = [view.holds for view in peers if not view.suspect]
    for view in peers:
        mine = [ask.block for ask in result if ask.peer == view.peer]
        if view.suspect and mine:
            assert len(mine) == 1
            assert not view.in_flight_blocks
            assert not any(bits.contains(holds, mine[0]) for holds in healthy)


@given(cases())
def test_everything_arrives_when_each_block_has_a_holder(case: Case) -> None:
    needed, sizes, peers, urgent = case
    peers = [replace(view, in_flight_bytes=0, in_flight_blocks=0) for view in peers]
    held = 0
    for view in peers:
        held |= view.holds
    needed &= held
    while needed:
        result = plan.plan(ME, needed, sizes, peers, urgent)
        assert result
        needed &= ~bits.of(ask.block for ask in result)


# -- the order


def preference(block: int, peers: list[PeerView], askers: Sequence[bytes], count: int) -> tuple[int, int, int]:
    """The rule in the simplest words: fewest holders; the first of my digits; up in my own part, else down."""
    holders = sum(bits.contains(view.holds, block) for view in peers)
    everyone = sorted({ME, *askers})
    if len(everyone) == 1:
        return holders, 0, block
    rank, level, run = everyone.index(ME), 0, 1
    while run < count and level < plan.LEVELS_MAX and block // run % len(everyone) != rank:
        run *= len(everyone)
        level += 1
    return holders, level, -block if level else block


@given(cases())
def test_each_peer_is_asked_in_the_order_of_the_rule(case: Case) -> None:
    needed, sizes, peers, _ = case
    healthy = [view for view in peers if not view.suspect]
    result = plan.plan(ME, needed, sizes, healthy)
    for view in healthy:
        mine = [ask.block for ask in result if ask.peer == view.peer]
        others = {ask.block for ask in result} - set(mine)
        offered = [block for block in bits.members(view.holds & needed) if block not in others]
        offered.sort(key=lambda block: preference(block, healthy, view.askers, len(sizes)))
        # What another peer was asked for may have come earlier in the order: it was not on offer any more.
        assert mine == offered[: len(mine)]


def test_the_fetchers_of_a_mesh_draw_disjoint_parts_of_the_seed() -> None:
    count, names = 60, [peer_id(number) for number in (1, 2, 3)]
    seed = PeerView(peer_id(9), bits.full(count), window_bytes=20 * BLOCK_BYTES, askers=tuple(names))
    drawn = [{ask.block for ask in plan.plan(me, bits.full(count), [BLOCK_BYTES] * count, [seed])} for me in names]
    assert drawn == [set(range(rank, count, 3)) for rank in range(3)]


def test_a_block_that_only_one_peer_holds_comes_first() -> None:
    one = PeerView(peer_id(1), 0b1111, window_bytes=BLOCK_BYTES)
    other = PeerView(peer_id(2), 0b1011, in_flight_blocks=9, in_flight_bytes=BLOCK_BYTES, window_bytes=BLOCK_BYTES)
    assert plan.plan(ME, 0b1111, [BLOCK_BYTES] * 4, [one, other]) == [Assignment(one.peer, 2)]


def test_what_only_the_seed_holds_comes_before_what_other_fetchers_hold() -> None:
    seed = PeerView(peer_id(1), 0b11, window_bytes=BLOCK_BYTES)
    fetcher = PeerView(peer_id(2), 0b01, window_bytes=BLOCK_BYTES)
    result = plan.plan(ME, 0b11, [BLOCK_BYTES] * 2, [seed, fetcher])
    assert sorted(result) == [Assignment(seed.peer, 1), Assignment(fetcher.peer, 0)]


def test_a_waiting_read_goes_first_and_to_the_fastest() -> None:
    slow = PeerView(peer_id(1), 0b111, rate=1e6)
    fast = PeerView(peer_id(2), 0b111, rate=RATE)
    result = plan.plan(ME, 0b111, [BLOCK_BYTES] * 3, [slow, fast], urgent=0b100)
    assert result[0] == Assignment(fast.peer, 2)


def test_a_waiting_read_passes_a_full_window_but_only_once_over() -> None:
    busy = PeerView(peer_id(1), bits.full(9), 2 * BLOCK_BYTES, 2, window_bytes=2 * BLOCK_BYTES)
    assert plan.plan(ME, bits.full(9), [BLOCK_BYTES] * 9, [busy]) == []
    asked = plan.plan(ME, bits.full(9), [BLOCK_BYTES] * 9, [busy], urgent=bits.full(9))
    assert [ask.block for ask in asked] == [0, 1]


def test_the_last_block_goes_to_whoever_has_it_here_first() -> None:
    slow, fast = PeerView(peer_id(1), 0b1, rate=1e6), PeerView(peer_id(2), 0b1, rate=RATE)
    assert plan.plan(ME, 0b1, [BLOCK_BYTES], [slow, fast]) == [Assignment(fast.peer, 0)]
    busy = replace(fast, in_flight_bytes=60 * BLOCK_BYTES, in_flight_blocks=60, window_bytes=64 * BLOCK_BYTES)
    assert plan.plan(ME, 0b1, [BLOCK_BYTES], [slow, busy]) == [Assignment(slow.peer, 0)]


def test_a_peer_not_measured_yet_is_taken_for_the_middle_of_the_others() -> None:
    rates = {1: 1e6, 2: 0.0, 3: RATE, 4: 2 * RATE}
    peers = [PeerView(peer_id(number), 0b1, rate=rate) for number, rate in rates.items()]
    chosen = [plan.plan(ME, 0b1, [BLOCK_BYTES], left)[0].peer[0] for left in (peers, peers[:3], peers[:2])]
    assert chosen == [4, 2, 1]


def test_a_block_larger_than_the_window_goes_alone() -> None:
    view = PeerView(peer_id(1), 0b11, window_bytes=1)
    assert plan.plan(ME, 0b11, [BLOCK_BYTES] * 2, [view]) == [Assignment(view.peer, 0)]


def test_a_suspect_peer_is_not_asked_for_what_waits_for_a_busy_one() -> None:
    busy = PeerView(peer_id(1), 0b01, 2 * BLOCK_BYTES, 2)
    suspect = PeerView(peer_id(2), 0b11, suspect=True)
    assert plan.plan(ME, 0b11, [BLOCK_BYTES] * 2, [busy, suspect]) == [Assignment(suspect.peer, 1)]
    assert plan.plan(ME, 0b01, [BLOCK_BYTES] * 2, [busy, suspect]) == []


def test_tiny_blocks_do_not_flood_a_peer() -> None:
    view = PeerView(peer_id(1), bits.full(1000), window_bytes=2 * BLOCK_BYTES)
    assert len(plan.plan(ME, view.holds, [1] * 1000, [view])) == plan.REQUESTS_MAX


# -- stealing


def flights(view: PeerView, blocks: Sequence[int]) -> tuple[PeerView, list[Request]]:
    """Return the view with these blocks in flight, and the requests."""
    requests = [Request(view.peer, block, BLOCK_BYTES) for block in blocks]
    return replace(view, in_flight_bytes=len(blocks) * BLOCK_BYTES, in_flight_blocks=len(blocks)), requests


SIZES = [BLOCK_BYTES] * 16
ALL = bits.full(16)


def test_an_idle_peer_takes_what_would_finish_latest() -> None:
    slow, requests = flights(PeerView(peer_id(1), ALL, rate=1e6), [3, 5])
    idle = PeerView(peer_id(2), ALL, rate=RATE)
    assert plan.steals(requests, 0, SIZES, [slow, idle]) == [
        Steal(5, slow.peer, idle.peer),
        Steal(3, slow.peer, idle.peer),
    ]


def test_nothing_moves_while_the_peer_has_work_of_its_own_or_would_be_no_sooner() -> None:
    slow, requests = flights(PeerView(peer_id(1), ALL, rate=1e6), [3])
    idle = PeerView(peer_id(2), ALL, rate=RATE)
    assert plan.steals(requests, 0b1, SIZES, [slow, idle]) == []
    assert plan.steals(requests, 0, SIZES, [slow, replace(idle, rate=1e6)]) == []
    assert plan.steals(requests, 0, SIZES, [slow, replace(idle, holds=0b1)]) == []


def test_the_tail_of_a_queue_is_halved_between_equals() -> None:
    busy, requests = flights(PeerView(peer_id(1), ALL, rate=RATE), [0, 1, 2, 3])
    idle = PeerView(peer_id(2), ALL, rate=RATE)
    assert [steal.block for steal in plan.steals(requests, 0, SIZES, [busy, idle])] == [3, 2]


def test_what_a_suspect_or_gone_peer_owes_moves_at_once() -> None:
    dead, requests = flights(PeerView(peer_id(1), ALL, rate=RATE, suspect=True), [7, 8])
    busy, more = flights(PeerView(peer_id(2), ALL, rate=RATE), [1, 2])
    moved = [Steal(7, dead.peer, busy.peer), Steal(8, dead.peer, busy.peer)]
    assert plan.steals(requests + more, ALL, SIZES, [dead, busy]) == moved
    assert plan.steals(requests + more, ALL, SIZES, [busy]) == moved
    assert plan.steals(requests, ALL, SIZES, [dead, replace(busy, suspect=True)]) == []


def test_what_a_suspect_peer_owes_moves_to_the_slowest_but_within_its_windows() -> None:
    dead, requests = flights(PeerView(peer_id(1), ALL, rate=RATE, suspect=True), range(10))
    slow = PeerView(peer_id(2), ALL, rate=100.0, window_bytes=2 * BLOCK_BYTES)
    assert [steal.block for steal in plan.steals(requests, ALL, SIZES, [dead, slow])] == [0, 1, 2, 3]


def test_an_idle_peer_takes_no_more_than_its_window() -> None:
    slow, requests = flights(PeerView(peer_id(1), ALL, rate=1e3), range(10))
    fast = PeerView(peer_id(2), ALL, rate=RATE, window_bytes=3 * BLOCK_BYTES)
    assert [steal.block for steal in plan.steals(requests, 0, SIZES, [slow, fast])] == [9, 8, 7]


def test_a_waiting_read_in_flight_at_a_slow_peer_moves() -> None:
    slow, requests = flights(PeerView(peer_id(1), ALL, rate=1e6), [7, 8])
    busy, more = flights(PeerView(peer_id(2), ALL, rate=RATE), [1, 2])
    assert plan.steals(requests + more, ALL, SIZES, [slow, busy], urgent=1 << 7) == [
        Steal(7, slow.peer, busy.peer)
    ]


@given(cases(), st.data())
def test_steals_go_to_healthy_holders_once_each_and_settle(case: Case, data: st.DataObject) -> None:
    _, sizes, peers, urgent = case
    blocks = data.draw(st.lists(st.sampled_from(range(len(sizes))), unique=True))
    requests: list[Request] = []
    for block in blocks:
        holders = [view for view in peers if bits.contains(view.holds, block)]
        if holders:
            requests.append(Request(data.draw(st.sampled_from(holders)).peer, block, sizes[block]))

    def views() -> list[PeerView]:
        mine = {view.peer: [request for request in requests if request.peer == view.peer] for view in peers}
        return [
            replace(
                view,
                in_flight_blocks=len(mine[view.peer]),
                in_flight_bytes=sum(request.remaining_bytes for request in mine[view.peer]),
            )
            for view in peers
        ]

    by_id = {view.peer: view for view in peers}
    for _ in range(200):
        moved = plan.steals(requests, 0, sizes, views(), urgent)
        if not moved:
            break
        assert len({steal.block for steal in moved}) == len(moved)
        for steal in moved:
            was = next(request for request in requests if request.block == steal.block)
            assert was.peer == steal.loser != steal.winner
            assert bits.contains(by_id[steal.winner].holds, steal.block)
            assert not by_id[steal.winner].suspect
            requests.remove(was)
            requests.append(Request(steal.winner, steal.block, sizes[steal.block]))
    else:
        pytest.fail("requests are moved to and fro")


# -- rates and windows


def test_the_window_covers_the_rate_within_bounds() -> None:
    assert plan.window(0.0, 0.001) == 2 * BLOCK_BYTES
    assert plan.window(100e6, 0.0) == 15_000_000
    assert plan.window(100e6, 0.050) == 20_000_000
    assert plan.window(6e9, 0.001) == 16 * BLOCK_BYTES


@given(st.lists(st.tuples(st.integers(1, 10**8), st.floats(1e-4, 10)), min_size=1))
def test_a_rate_lies_between_the_measurements(measured: list[tuple[int, float]]) -> None:
    rate = Rate()
    for byte_count, seconds in measured:
        rate = rate.after(byte_count, seconds)
    speeds = [byte_count / seconds for byte_count, seconds in measured]
    assert min(speeds) * 0.999 <= rate.bytes_per_second <= max(speeds) * 1.001


def test_a_rate_follows_a_change_within_a_second_and_ignores_no_time() -> None:
    rate = Rate().after(10**7, 0.1)
    assert abs(rate.bytes_per_second - 1e8) < 1
    assert rate.after(5, 0.0) == rate
    assert 8e7 < rate.after(1, 0.1).bytes_per_second < 8.5e7
    for _ in range(10):
        rate = rate.after(10**6, 0.1)
    assert 1e7 < rate.bytes_per_second < 2.5e7


def test_a_lane_is_suspect_when_it_owes_and_is_quiet() -> None:
    assert not plan.is_suspect(0, 60.0)
    assert not plan.is_suspect(1, limits.LANE_SUSPECT_SECONDS - 0.01)
    assert plan.is_suspect(1, limits.LANE_SUSPECT_SECONDS)


# -- speed


def test_the_largest_tree_is_planned_in_little_time() -> None:
    count, askers = 300_000, tuple(peer_id(number) for number in range(1, 8))
    everything = bits.full(count)
    peers = [
        PeerView(
            peer_id(number),
            holds=everything if number == 1 else bits.periodic(number * 0x2F1D % 2**17, 17, count),
            window_bytes=2 * BLOCK_BYTES,
            rate=RATE,
            askers=askers,
        )
        for number in range(1, 8)
    ]
    sizes = [BLOCK_BYTES] * count
    taken: list[float] = []
    for _, urgent in itertools.product(range(9), (0, everything)):
        began = time.perf_counter()
        result = plan.plan(ME, everything, sizes, peers, urgent)
        taken.append(time.perf_counter() - began)
        assert len(result) == (28 if urgent else 14)
    assert statistics.median(taken) < 0.020
