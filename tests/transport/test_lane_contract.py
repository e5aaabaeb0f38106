"""What every kind of lane promises (tbshare/transport/link.py). A new kind adds a factory to KINDS."""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tbshare.content.block import BLOCK_BYTES, LEAF_BYTES, block_id, leaf_row
from tbshare.errors import BlockCorrupt, PeerError, PeerUnreachable
from tbshare.transport.lane_receive import FileWrite, ReceiveLane
from tbshare.transport.lane_send import QUEUE_ITEMS_MAX, SendLane
from tbshare.transport.link import SKIP, Item, Late, Origin, ReceiveEnd, SendEnd, Sink, Target
from tbshare.transport.pool import BufferPool
from tbshare.transport.rate import RateLimit

SECONDS = 20  # far more than anything here takes
SIZES = [1, LEAF_BYTES, LEAF_BYTES + 1, BLOCK_BYTES, 3 * LEAF_BYTES + 5, BLOCK_BYTES, 77, BLOCK_BYTES - 1]


@dataclass
class Kind:
    """How to make the two ends of one kind of lane; `send` may be called once, and `receive` once."""

    send: Callable[[Origin, RateLimit | None], SendEnd]
    receive: Callable[[Sink, BufferPool], ReceiveEnd]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fetcher = socket.create_connection(listener.getsockname())
        return listener.accept()[0], fetcher


def over_sockets(pair: Callable[[], tuple[socket.socket, socket.socket]], key: bytes) -> Kind:
    provider, fetcher = pair()
    return Kind(
        lambda origin, limit: SendLane(provider, origin, key=key, limit=limit),
        lambda sink, pool: ReceiveLane(fetcher, sink, pool, key=key),
    )


KINDS: dict[str, Callable[[], Kind]] = {
    "tcp": lambda: over_sockets(tcp_pair, b""),
    "tcp-sealed": lambda: over_sockets(tcp_pair, b"k" * 32),
    "unix": lambda: over_sockets(socket.socketpair, b""),
    "unix-sealed": lambda: over_sockets(socket.socketpair, b"k" * 32),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    def threads() -> set[threading.Thread]:
        return set(threading.enumerate())

    before, files = threads(), len(os.listdir("/dev/fd"))
    yield KINDS[request.param]()
    assert threads() <= before, "a lane left a thread behind"
    assert len(os.listdir("/dev/fd")) == files, "a lane left a descriptor open"


class Fetcher:
    """A sink that knows what it expects and remembers what it was told."""

    def __init__(self, targets: dict[int, Target | Late]) -> None:
        self.targets = targets
        self.asked = threading.Event()
        self.gate: threading.Event | None = None  # until it is set, `target` does not return
        self.blocks: list[tuple[int, bytes]] = []
        self.failures: list[tuple[int, OSError]] = []
        self.ends: list[BaseException | None] = []

    def target(self, request: int) -> Target | Late | None:
        self.asked.set()
        if self.gate is not None:
            assert self.gate.wait(SECONDS)
        return self.targets.pop(request, None)

    def delivered(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        assert not self.ends
        assert blocks
        self.blocks.extend(blocks)

    def failed(self, request: int, error: OSError) -> None:
        assert not self.ends
        self.failures.append((request, error))

    def ended(self, error: BaseException | None) -> None:
        self.ends.append(error)


class Provider:
    """An origin that remembers what it was told, and how often each item was released."""

    def __init__(self) -> None:
        self.released: dict[int, int] = {}
        self.refusals: list[tuple[int, OSError]] = []
        self.ends: list[BaseException | None] = []

    def release(self, request: int) -> Callable[[], None]:
        self.released[request] = 0

        def count() -> None:
            self.released[request] += 1

        return count

    def refused(self, request: int, error: OSError) -> None:
        assert not self.ends
        self.refusals.append((request, error))

    def ended(self, error: BaseException | None) -> None:
        self.ends.append(error)

    def released_all_once(self) -> bool:
        return set(self.released.values()) <= {1}


class Case:
    """A source file of blocks with the given sizes, a destination, and what goes between."""

    def __init__(self, directory: Path, sizes: Sequence[int]) -> None:
        self.data = [os.urandom(size) for size in sizes]
        self.offsets = [sum(sizes[:index]) for index in range(len(sizes))]
        (directory / "source").write_bytes(b"".join(self.data))
        self.source = os.open(directory / "source", os.O_RDWR)
        self.destination = os.open(directory / "destination", os.O_RDWR | os.O_CREAT)
        self.provider = Provider()
        self.fetcher = Fetcher({number: self.target(number) for number in range(len(sizes))})
        self.pool = BufferPool(4)

    def target(self, number: int) -> Target:
        data = self.data[number]
        return Target(block_id(data), len(data), FileWrite(self.destination, self.offsets[number]))

    def items(self, numbers: Sequence[int]) -> list[Item]:
        return [
            Item(number, self.source, self.offsets[number], len(self.data[number]), self.provider.release(number))
            for number in numbers
        ]

    def all_items(self) -> list[Item]:
        return self.items(range(len(self.data)))

    def arrived(self, number: int) -> bool:
        data = self.data[number]
        return os.pread(self.destination, len(data), self.offsets[number]) == data

    def destination_bytes(self) -> int:
        return os.fstat(self.destination).st_size

    def has_arrived(self, count: int) -> bool:
        return len(self.fetcher.blocks) == count

    def corrupt(self, number: int) -> None:
        os.pwrite(
            self.source, bytes([self.data[number][-1] ^ 1]), self.offsets[number] + len(self.data[number]) - 1
        )

    def joined(self, sending: SendEnd, receiving: ReceiveEnd) -> tuple[BaseException | None, BaseException | None]:
        """Wait for both ends; return why each ended, having checked what is true however it ended."""
        assert sending.join(SECONDS)
        assert receiving.join(SECONDS)
        assert len(self.provider.ends) == len(self.fetcher.ends) == 1
        assert self.provider.released_all_once()
        assert self.pool.in_use == 0
        return self.provider.ends[0], self.fetcher.ends[0]


@pytest.fixture
def case_of(tmp_path: Path) -> Iterator[Callable[[Sequence[int]], Case]]:
    cases: list[Case] = []

    def make(sizes: Sequence[int]) -> Case:
        cases.append(Case(tmp_path, sizes))
        return cases[-1]

    yield make
    for case in cases:
        os.close(case.source)
        os.close(case.destination)


CaseOf = Callable[[Sequence[int]], Case]


def test_blocks_arrive_whole_in_order_and_the_lane_says_goodbye(kind: Kind, case_of: CaseOf) -> None:
    case = case_of(SIZES)
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.all_items())
    sending.finish()
    assert case.joined(sending, receiving) == (None, None)
    assert case.fetcher.blocks == [(number, leaf_row(data)) for number, data in enumerate(case.data)]
    assert all(case.arrived(number) for number in range(len(SIZES)))
    assert receiving.bytes_received >= sending.bytes_sent >= sum(SIZES)


def test_more_can_be_submitted_when_the_queue_ran_dry(kind: Kind, case_of: CaseOf) -> None:
    case = case_of(SIZES)
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    for number in range(len(SIZES)):
        sending.submit(case.items([number]))
        wait_until(partial(case.has_arrived, number + 1))
    sending.finish()
    assert case.joined(sending, receiving) == (None, None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    never = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        never.wait(0.001)


def test_wrong_bytes_are_never_written_and_end_the_lane(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([1000, BLOCK_BYTES, 1000])
    case.corrupt(1)
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.all_items())
    _, error = case.joined(sending, receiving)
    assert isinstance(error, BlockCorrupt)
    assert block_id(case.data[1]).hex()[:16] in str(error)
    assert [request for request, _ in case.fetcher.blocks] == [0]
    assert case.arrived(0)
    assert case.destination_bytes() == 1000, "nothing of the wrong block, nor anything after it"


def test_what_was_written_before_wrong_bytes_is_told(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([1000, 1000])
    case.corrupt(1)
    both_are_here = threading.Event()

    def write_late(view: memoryview) -> None:
        assert both_are_here.wait(SECONDS)
        FileWrite(case.destination, 0)(view)

    case.fetcher.targets[0] = Target(block_id(case.data[0]), 1000, write_late)
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.all_items())
    wait_until(lambda: receiving.bytes_received >= 2000 and receiving.block_since_seconds is None)
    both_are_here.set()
    _, error = case.joined(sending, receiving)
    assert isinstance(error, BlockCorrupt)
    assert [request for request, _ in case.fetcher.blocks] == [0]


def test_a_block_that_was_not_asked_for_ends_the_lane(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([1000])
    del case.fetcher.targets[0]
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.all_items())
    _, error = case.joined(sending, receiving)
    assert isinstance(error, PeerError)
    assert case.destination_bytes() == 0


@pytest.mark.parametrize("length", [999, 1001])
def test_a_block_of_another_length_ends_the_lane(kind: Kind, case_of: CaseOf, length: int) -> None:
    case = case_of([1000])
    target = case.target(0)
    case.fetcher.targets[0] = Target(target.block_id, length, target.write)
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.all_items())
    _, error = case.joined(sending, receiving)
    assert isinstance(error, PeerError)
    assert case.destination_bytes() == 0


def test_a_late_answer_is_drained_and_dropped(kind: Kind, case_of: CaseOf) -> None:
    case = case_of(SIZES)
    case.fetcher.targets[3] = case.fetcher.targets[4] = SKIP
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.all_items())
    sending.finish()
    assert case.joined(sending, receiving) == (None, None)
    assert [request for request, _ in case.fetcher.blocks] == [0, 1, 2, 5, 6, 7]
    assert not case.arrived(3)


def test_what_is_cancelled_is_not_sent(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([BLOCK_BYTES] * 10)  # more than the kernel takes off the provider's hands
    case.fetcher.gate = threading.Event()
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.all_items())
    assert case.fetcher.asked.wait(SECONDS)
    sending.cancel([8, 9, 12345])
    assert case.provider.released[8] == case.provider.released[9] == 1
    case.fetcher.gate.set()
    sending.finish()
    assert case.joined(sending, receiving) == (None, None)
    assert [request for request, _ in case.fetcher.blocks] == list(range(8))


def test_asking_for_too_much_is_the_peers_fault_and_takes_nothing(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([10])
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    item = case.items([0])[0]
    with pytest.raises(PeerError):
        sending.submit([item] * (QUEUE_ITEMS_MAX + 1))
    assert case.provider.released == {0: 0}
    sending.submit([item])
    sending.finish()
    assert case.joined(sending, receiving) == (None, None)


def test_a_lane_that_is_over_releases_what_it_is_given(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([10])
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.close()
    assert sending.join(SECONDS)
    sending.submit(case.all_items())
    receiving.close()
    assert case.joined(sending, receiving)[0] is None


def test_the_fetcher_closes_while_it_waits_for_a_header(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([10, 10])
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.items([0]))
    wait_until(lambda: len(case.fetcher.blocks) == 1)
    receiving.close()
    receiving.close()
    assert case.joined(sending, receiving) == (None, None), "the provider hears of it, and nothing was owed"


def test_the_fetcher_closes_while_it_waits_for_a_buffer(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([BLOCK_BYTES] * 10)
    taken = [case.pool.take(lambda: False) for _ in range(case.pool.size)]
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.all_items())
    assert case.fetcher.asked.wait(SECONDS)
    receiving.close()
    assert receiving.join(SECONDS)
    for buffer in taken:
        assert buffer is not None
        case.pool.give(buffer)
    provider_error, error = case.joined(sending, receiving)
    assert error is None
    assert isinstance(provider_error, PeerUnreachable), "blocks were outstanding"


def test_the_fetcher_closes_in_the_middle_of_a_block(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([BLOCK_BYTES])
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, RateLimit(1e6, now=time.monotonic()))
    sending.submit(case.all_items())
    wait_until(lambda: receiving.bytes_received > 200_000)
    assert receiving.block_since_seconds is not None
    assert case.pool.in_use == 1
    receiving.close()
    _, error = case.joined(sending, receiving)
    assert error is None
    assert case.destination_bytes() == 0


def test_the_provider_closes_while_nobody_takes_its_bytes(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([BLOCK_BYTES] * 10)
    case.fetcher.gate = threading.Event()
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.all_items())
    assert case.fetcher.asked.wait(SECONDS)
    sending.close()
    assert sending.join(SECONDS)
    assert case.provider.released_all_once()
    case.fetcher.gate.set()
    provider_error, error = case.joined(sending, receiving)
    assert provider_error is None
    assert isinstance(error, PeerUnreachable), "an end without a goodbye is a cut"


def test_the_provider_closes_while_the_limit_holds_it_back(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([BLOCK_BYTES])
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, RateLimit(10, now=time.monotonic()))
    sending.submit(case.all_items())
    wait_until(lambda: receiving.bytes_received > 1000)
    sending.close()
    provider_error, error = case.joined(sending, receiving)
    assert provider_error is None
    assert isinstance(error, PeerUnreachable)


def test_whole_blocks_before_a_cut_are_kept(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([LEAF_BYTES, LEAF_BYTES])
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.items([0]))
    wait_until(lambda: sending.bytes_sent >= LEAF_BYTES)
    sending.close()
    _, error = case.joined(sending, receiving)
    assert isinstance(error, PeerUnreachable)
    assert case.arrived(0)
    assert [request for request, _ in case.fetcher.blocks] == [0]


def test_a_disk_that_fails_fails_the_request_and_not_the_lane(kind: Kind, case_of: CaseOf) -> None:
    case = case_of(SIZES)

    def full(_: memoryview) -> None:
        raise OSError(errno.ENOSPC, "no space")

    case.fetcher.targets[3] = Target(block_id(case.data[3]), SIZES[3], full)
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit(case.all_items())
    sending.finish()
    assert case.joined(sending, receiving) == (None, None)
    assert [(request, error.errno) for request, error in case.fetcher.failures] == [(3, errno.ENOSPC)]
    assert [request for request, _ in case.fetcher.blocks] == [0, 1, 2, 4, 5, 6, 7]


def test_a_block_that_cannot_be_read_is_refused_and_the_lane_goes_on(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([1000, 1000, 1000])
    beyond = Item(1, case.source, 2500, 1000, case.provider.release(1))
    receiving = kind.receive(case.fetcher, case.pool)
    sending = kind.send(case.provider, None)
    sending.submit([*case.items([0]), beyond, *case.items([2])])
    sending.finish()
    assert case.joined(sending, receiving) == (None, None)
    assert [request for request, _ in case.provider.refusals] == [1]
    assert [request for request, _ in case.fetcher.blocks] == [0, 2]


def test_a_limit_holds_and_keeps_bytes_flowing(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([LEAF_BYTES] * 4)
    receiving = kind.receive(case.fetcher, case.pool)
    started = time.monotonic()
    sending = kind.send(case.provider, RateLimit(4e6, now=started))
    sending.submit(case.all_items())
    sending.finish()
    gaps = [0.0]
    while not case.fetcher.ends:
        gaps.append(time.monotonic() - receiving.progress_at_seconds)
        threading.Event().wait(0.005)
    assert case.joined(sending, receiving) == (None, None)
    assert time.monotonic() - started > 4 * LEAF_BYTES / 4e6 - 0.15
    assert max(gaps) < 0.5, "a limited lane is not taken for a dead one"
