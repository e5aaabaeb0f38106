"""Leaves of blocks on every kind of lane, and lanes that give way to them."""

import os
from dataclasses import dataclass
from functools import partial

import pytest

from tbshare.content.block import BLOCK_BYTES, block_id, leaf_row
from tbshare.content.leaves import Run
from tbshare.errors import BlockCorrupt
from tbshare.transport.lane_receive import FileWrite, ReceiveLane
from tbshare.transport.lane_send import SendLane
from tbshare.transport.link import Item, Target
from tbshare.transport.precedence import Precedence
from tests.transport.lane_ends import (
    SIZES,
    Case,
    CaseOf,
    Kind,
    tcp_pair,
    wait_until,
)


@dataclass
class Part:
    """A run of leaves of one block, at both ends of a lane."""

    case: Case
    run: Run
    row: bytes

    @classmethod
    def of(cls, case: Case, first: int, count: int) -> "Part":
        data = case.data[0]
        part = cls(case, Run(first, count, len(data)), leaf_row(data))
        write = FileWrite(case.destination, part.run.start)
        case.fetcher.targets[0] = Target(block_id(data), part.run.size, write, part.run)
        return part

    def item(self) -> Item:
        run, case = self.run, self.case
        return Item(0, case.source, run.start, run.size, case.provider.release(0), self.row)

    def arrived(self) -> bool:
        data = self.case.data[0][self.run.start : self.run.start + self.run.size]
        return os.pread(self.case.destination, len(data), self.run.start) == data


@pytest.mark.parametrize(("first", "count"), [(0, 1), (3, 12), (15, 1)])
def test_a_run_of_leaves_comes_with_its_row(kind: Kind, case_of: CaseOf, first: int, count: int) -> None:
    case = case_of([BLOCK_BYTES - 5])
    part = Part.of(case, first, count)
    receiving, sending = kind.receive(case.fetcher, case.pool), kind.send(case.provider, None)
    sending.submit([part.item()])
    sending.finish()
    assert case.joined(sending, receiving) == (None, None)
    assert case.fetcher.blocks == [(0, part.row)]
    assert part.arrived()


def test_leaves_that_are_not_what_the_row_says_end_the_lane(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([BLOCK_BYTES])
    part = Part.of(case, 15, 1)
    case.corrupt(0)
    receiving, sending = kind.receive(case.fetcher, case.pool), kind.send(case.provider, None)
    sending.submit([part.item()])
    sending.finish()
    _, ended = case.joined(sending, receiving)
    assert isinstance(ended, BlockCorrupt)
    assert case.destination_bytes() == 0


def test_a_row_that_is_not_the_blocks_ends_the_lane(kind: Kind, case_of: CaseOf) -> None:
    case = case_of([BLOCK_BYTES])
    part = Part.of(case, 2, 2)
    part.row = part.row[::-1]
    receiving, sending = kind.receive(case.fetcher, case.pool), kind.send(case.provider, None)
    sending.submit([part.item()])
    sending.finish()
    assert isinstance(case.joined(sending, receiving)[1], BlockCorrupt)
    assert case.destination_bytes() == 0


def test_a_lane_of_bulk_gives_way_and_sends_all_the_same(case_of: CaseOf) -> None:
    case, precedence = case_of(SIZES), Precedence()
    provider, fetcher = tcp_pair()
    receiving = ReceiveLane(fetcher, case.fetcher, case.pool)
    sent = precedence.goes_first(lambda: None)
    sending = SendLane(provider, case.provider, precedence=precedence)
    sending.submit(case.all_items())
    wait_until(partial(case.has_arrived, 1))  # a little goes on: a lane that sends nothing is taken for dead
    sent()
    sending.finish()
    assert case.joined(sending, receiving) == (None, None)
    assert all(case.arrived(number) for number in range(len(SIZES)))
