"""Peers that lie, break off, dawdle or come without a token; and memory while gigabytes pass."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tbshare.content.block import BLOCK_BYTES, block_id
from tbshare.errors import BlockCorrupt, PeerError, PeerUnreachable
from tbshare.transport.lane import connect_lane
from tbshare.transport.lane_receive import ReceiveLane
from tbshare.transport.lane_send import SendLane
from tbshare.transport.link import Item, Target
from tbshare.transport.pool import BufferPool
from tbshare.transport.rate import RateLimit
from tbshare.wire.lane import GREETING_BYTES, TAG_BYTES, Header, Sealer, Tokens

SECONDS = 20
KEY = b"k" * 32


class Fetcher:
    """A sink that expects every request to bring `data`, and counts what is written."""

    def __init__(self, data: bytes, *, on_write: Callable[[], None] = lambda: None) -> None:
        self.expected = Target(block_id(data), len(data), self.write)
        self.written = 0
        self.on_write = on_write
        self.delivered_blocks = 0
        self.ends: list[BaseException | None] = []

    def target(self, request: int) -> Target | None:
        return self.expected if request < 1000 else None

    def write(self, view: memoryview) -> None:
        self.written += len(view)
        self.on_write()

    def delivered(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        self.delivered_blocks += len(blocks)

    def failed(self, request: int, error: OSError) -> None:
        raise error

    def ended(self, error: BaseException | None) -> None:
        self.ends.append(error)


class Provider:
    """An origin that remembers why it ended."""

    def __init__(self) -> None:
        self.ends: list[BaseException | None] = []

    def refused(self, request: int, error: OSError) -> None:
        raise error

    def ended(self, error: BaseException | None) -> None:
        self.ends.append(error)


@contextmanager
def fed_lane(fetcher: Fetcher, *, key: bytes = b"") -> Generator[tuple[socket.socket, ReceiveLane]]:
    """Give the peer's raw end of a lane; afterwards wait until the lane has ended and let go of everything."""
    peer, ours = socket.socketpair()
    pool = BufferPool(2)
    with peer:
        lane = ReceiveLane(ours, fetcher, pool, key=key)
        yield peer, lane
    assert lane.join(SECONDS)
    assert len(fetcher.ends) == 1
    assert pool.in_use == 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    never = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        never.wait(0.001)


def received(lane: ReceiveLane, count: int) -> bool:
    return lane.bytes_received == count


def sealed_block(sealer: Sealer, request: int, data: bytes) -> bytes:
    header = Header(request, len(data), sealed=True)
    frame = bytearray(data + bytes(TAG_BYTES))
    sealer.seal(header, memoryview(frame))
    return header.encode() + frame


@given(st.binary(min_size=1, max_size=300), st.data(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_one_bit_changed_in_flight_is_never_written(data: bytes, draw: st.DataObject, sealed: bool) -> None:
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    fetcher = Fetcher(data)
    plain = Header(0, len(data)).encode() + data
    frame = bytearray(sealed_block(Sealer(KEY), 0, data) if sealed else plain)
    frame[len(Header(0, 1).encode()) + bit // 8] ^= 1 << bit % 8
    with fed_lane(fetcher, key=KEY if sealed else b"") as (peer, _):
        peer.sendall(frame)
        peer.shutdown(socket.SHUT_WR)
    assert isinstance(fetcher.ends[0], PeerError if sealed else BlockCorrupt)
    assert fetcher.written == fetcher.delivered_blocks == 0


@given(st.binary(max_size=200), st.booleans())
@example(Header(1000, 1).encode() + b"a", False)
@example(Header(1, 1000).encode() + b"a" * 1000, False)
@example(Header(0, 0, goodbye=True).encode() + b"more", False)
@example(Header(7, 0, goodbye=True).encode(), False)
@settings(max_examples=80, deadline=None)
def test_garbage_ends_the_lane_with_the_peers_fault(garbage: bytes, sealed: bool) -> None:
    fetcher = Fetcher(b"never sent")
    with fed_lane(fetcher, key=KEY if sealed else b"") as (peer, _), suppress(BrokenPipeError, ConnectionError):
        peer.sendall(garbage)
        peer.shutdown(socket.SHUT_WR)
    polite = garbage.startswith(Header(0, 0, goodbye=True).encode()) and not sealed
    assert fetcher.ends[0] is None if polite else isinstance(fetcher.ends[0], PeerError | PeerUnreachable)
    assert fetcher.written == 0


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("kept", [1, 15, 16, 17, 50, 115])
def test_a_lane_cut_anywhere_is_a_cut(kept: int, sealed: bool) -> None:
    data = os.urandom(100)
    fetcher = Fetcher(data)
    frame = sealed_block(Sealer(KEY), 0, data) if sealed else Header(0, 100).encode() + data
    with fed_lane(fetcher, key=KEY if sealed else b"") as (peer, _):
        peer.sendall(frame[:kept])
    assert isinstance(fetcher.ends[0], PeerUnreachable)
    assert fetcher.written == 0


def test_a_goodbye_that_counts_other_blocks_is_no_goodbye() -> None:
    data = b"block"
    fetcher = Fetcher(data)
    with fed_lane(fetcher) as (peer, _):
        peer.sendall(Header(0, len(data)).encode() + data + Header(2, 0, goodbye=True).encode())
    assert isinstance(fetcher.ends[0], PeerError)
    assert fetcher.written == len(data)


def test_a_forged_goodbye_does_not_end_a_sealed_lane_well() -> None:
    fetcher = Fetcher(b"block")
    with fed_lane(fetcher, key=KEY) as (peer, _):
        peer.sendall(Header(0, 0, sealed=True, goodbye=True).encode() + bytes(TAG_BYTES))
    assert isinstance(fetcher.ends[0], PeerError)


def test_a_sealed_block_that_is_repeated_is_not_written_twice() -> None:
    data = b"block"
    fetcher = Fetcher(data)
    frame = sealed_block(Sealer(KEY), 0, data)
    with fed_lane(fetcher, key=KEY) as (peer, _):
        peer.sendall(frame + frame)
        wait_until(lambda: bool(fetcher.ends))
    assert isinstance(fetcher.ends[0], PeerError)
    assert fetcher.written == len(data)


def test_a_slow_peer_is_seen_to_make_progress_within_a_block() -> None:
    data = os.urandom(BLOCK_BYTES)
    fetcher = Fetcher(data)
    with fed_lane(fetcher) as (peer, lane):
        frame = Header(0, len(data)).encode() + data
        for start, end in ((0, 7), (7, 1000), (1000, 5000), (5000, 6000)):
            before = lane.progress_at_seconds
            peer.sendall(frame[start:end])
            # The read for the rest of the block is still under way; what came is counted all the same.
            wait_until(partial(received, lane, end))
            assert lane.progress_at_seconds > before
        assert lane.block_since_seconds is not None
        peer.sendall(frame[6000:])
        wait_until(lambda: fetcher.delivered_blocks == 1)
        assert lane.block_since_seconds is None
        peer.sendall(Header(1, 0, goodbye=True).encode())
    assert fetcher.ends == [None]


def test_a_fetcher_that_talks_on_a_lane_is_hung_up_on() -> None:
    peer, ours = socket.socketpair()
    provider = Provider()
    lane = SendLane(ours, provider)
    with peer:
        peer.sendall(b"x")
        assert lane.join(SECONDS)
    assert isinstance(provider.ends[0], PeerError)


def test_a_token_opens_one_lane_once_over_a_real_socket() -> None:
    tokens = Tokens()
    tokens.issue(5, b"t" * 32)

    def dial(token: bytes) -> int:
        with connect_lane(listener.getsockname(), 5, token), listener.accept()[0] as accepted:
            return tokens.redeem(accepted.recv(GREETING_BYTES, socket.MSG_WAITALL))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(PeerError):
            dial(b"x" * 32)
        assert dial(b"t" * 32) == 5
        with pytest.raises(PeerError):
            dial(b"t" * 32)
    with pytest.raises(PeerUnreachable):
        connect_lane(listener.getsockname() if listener.fileno() >= 0 else ("127.0.0.1", 1), 5, b"t" * 32)


def test_many_lanes_share_few_buffers() -> None:
    data = os.urandom(BLOCK_BYTES)
    pool, most = BufferPool(3), [0]

    def look() -> None:
        most[0] = max(most[0], pool.in_use)

    fetchers = [Fetcher(data, on_write=look) for _ in range(5)]
    lanes: list[tuple[SendLane, ReceiveLane]] = []
    with open_file(data) as fd:
        for fetcher in fetchers:
            ours, theirs = socket.socketpair()
            lanes.append((SendLane(ours, Provider()), ReceiveLane(theirs, fetcher, pool)))
        for sending, _ in lanes:
            sending.submit([Item(number, fd, 0, len(data), lambda: None) for number in range(6)])
            sending.finish()
        assert all(sending.join(SECONDS) and receiving.join(SECONDS) for sending, receiving in lanes)
    assert [fetcher.ends for fetcher in fetchers] == [[None]] * 5
    assert [fetcher.delivered_blocks for fetcher in fetchers] == [6] * 5
    assert 1 <= most[0] <= 3
    assert pool.in_use == 0


def test_one_stuck_disk_does_not_take_the_whole_pool() -> None:
    data = os.urandom(BLOCK_BYTES)
    stuck, pool = threading.Event(), BufferPool(6)
    slow = Fetcher(data, on_write=lambda: wait_until(stuck.is_set))
    quick = Fetcher(data)
    ends = [socket.socketpair(), socket.socketpair()]
    with open_file(data) as fd:
        sending = [SendLane(ours, Provider()) for ours, _ in ends]
        receiving = [ReceiveLane(ends[0][1], slow, pool), ReceiveLane(ends[1][1], quick, pool)]
        for lane in sending:
            lane.submit([Item(number, fd, 0, len(data), lambda: None) for number in range(9)])
            lane.finish()
        assert receiving[1].join(SECONDS)
        assert quick.delivered_blocks == 9
        assert not slow.ends
        stuck.set()
        assert all(lane.join(SECONDS) for lane in sending)
        assert receiving[0].join(SECONDS)
    assert slow.delivered_blocks == 9


@contextmanager
def open_file(data: bytes) -> Generator[int]:
    fd = os.memfd_create("blocks") if sys.platform == "linux" else os.open(os.devnull, os.O_RDWR)
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 5)), max_size=30), st.floats(1e3, 1e9))
def test_the_limit_is_kept_over_any_time(spends: list[tuple[int, float]], rate: float) -> None:
    limit = RateLimit(rate, now=100.0)
    now, sent = 100.0, 0
    for count, idle in spends:
        pause = limit.spend(count, now)
        assert pause >= 0
        sent += count
        now += pause + idle
        # Never ahead of the limit by more than one slice, once the pause was kept.
        assert sent <= (now - 100.0) * rate + limit.slice_bytes + 1 + 1e-6 * sent


MEMORY_PROGRAM = """
import os, socket, sys, tempfile
from pathlib import Path
from tbshare.content.block import BLOCK_BYTES, block_id
from tbshare.transport.lane_receive import FileWrite, ReceiveLane
from tbshare.transport.lane_send import SendLane
from tbshare.transport.link import Item, Target
from tbshare.transport.pool import BufferPool

key, blocks = bytes.fromhex(sys.argv[1]), 500
source, destination = tempfile.TemporaryFile(), tempfile.TemporaryFile()
names = []
for _ in range(4):
    data = os.urandom(BLOCK_BYTES)
    source.write(data)
    names.append(block_id(data))
del data
source.flush()
most = 0

class Ends:
    error = None
    arrived = 0
    def target(self, request):
        offset = request % 4 * BLOCK_BYTES
        return Target(names[request % 4], BLOCK_BYTES, FileWrite(destination.fileno(), offset))
    def delivered(self, blocks):
        global most
        self.arrived += len(blocks)
        status = Path("/proc/self/status").read_text()
        most = max(most, int(status.partition("RssAnon:")[2].split()[0]))
    def failed(self, request, error):
        raise error
    def refused(self, request, error):
        raise error
    def ended(self, error):
        self.error = self.error or error

ends, pool = Ends(), BufferPool()
with socket.create_server(("127.0.0.1", 0)) as listener:
    fetcher = socket.create_connection(listener.getsockname())
    provider = listener.accept()[0]
receiving = ReceiveLane(fetcher, ends, pool, key=key)
sending = SendLane(provider, ends, key=key)
sending.submit([
    Item(number, source.fileno(), number % 4 * BLOCK_BYTES, BLOCK_BYTES, lambda: None) for number in range(blocks)
])
sending.finish()
sending.join()
receiving.join()
assert ends.error is None, ends.error
assert ends.arrived == blocks
assert pool.in_use == 0
print(most // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("key", ["", KEY.hex()], ids=["open", "sealed"])
def test_memory_stays_bounded_while_two_gigabytes_pass(key: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, key], capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr
    assert 0 < int(run.stdout) < 120, f"{run.stdout.strip()} MiB of anonymous memory"
