"""What every kind of lane promises (tbshare/transport/link.py). A new kind adds a factory to KINDS."""

import errno
import threading
import time
from functools import partial

import pytest

from tbshare.content.block import BLOCK_BYTES, LEAF_BYTES, block_id, leaf_row
from tbshare.errors import BlockCorrupt, PeerError, PeerUnreachable
from tbshare.transport.lane_receive import FileWrite
from tbshare.transport.lane_send import QUEUE_ITEMS_MAX
from tbshare.transport.link import SKIP, Item, Target
from tbshare.transport.rate import RateLimit
from tests.transport.lane_ends import (
    SECONDS,
    SIZES,
    CaseOf,
    Kind,
    wait_until,
)


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
