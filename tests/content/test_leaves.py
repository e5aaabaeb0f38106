"""Leaves of blocks: which a range needs, and what a run of them proves."""

from itertools import accumulate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content import bits
from tbshare.content.block import BLOCK_BYTES, LEAF_BYTES, block_id, leaf_row
from tbshare.content.leaves import Run, blocks_between, leaf_count, leaves_between, proven, runs_of

LENGTHS = st.integers(1, BLOCK_BYTES)
DATA = Random(1).randbytes(5 * LEAF_BYTES + 99)


@given(LENGTHS, st.data())
def test_the_leaves_between_two_bytes_are_those_that_hold_some(length: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, length))
    end = data.draw(st.integers(start, length))
    some = (start, end - 1, *range(start, end, LEAF_BYTES)) if start < end else ()
    assert set(bits.members(leaves_between(start, end))) == {at // LEAF_BYTES for at in some}
    assert leaves_between(0, length) == bits.full(leaf_count(length))


@given(LENGTHS, st.integers(0, (1 << 16) - 1), st.integers(1, BLOCK_BYTES))
def test_runs_are_the_leaves_in_order_and_none_too_long(length: int, wanted: int, size_max: int) -> None:
    wanted &= bits.full(leaf_count(length))
    runs = list(runs_of(wanted, length, size_max))
    leaves = [leaf for run in runs for leaf in range(run.first, run.first + run.count)]
    assert leaves == list(bits.members(wanted))
    assert all(run.size <= max(size_max, LEAF_BYTES) for run in runs)
    assert sum(run.size for run in runs) == sum(min(LEAF_BYTES, length - leaf * LEAF_BYTES) for leaf in leaves)


@given(st.lists(st.integers(1, 100), max_size=8), st.integers(0, 900), st.integers(0, 900))
def test_the_blocks_between_two_bytes_hold_them_all(lengths: list[int], start: int, end: int) -> None:
    offsets = list(accumulate(lengths, initial=0))
    found = [
        offsets[number] + at
        for number, first, after in blocks_between(offsets, start, end)
        for at in range(first, after)
    ]
    assert found == list(range(start, min(end, offsets[-1])))


@given(st.integers(-1, 7), st.integers(-1, 7))
def test_a_part_is_some_of_the_leaves_and_not_all(first: int, count: int) -> None:
    there = leaf_count(len(DATA))
    leaves = set(range(first, first + count))
    assert Run(first, count, len(DATA)).is_part == (bool(leaves) and leaves < set(range(there)))


@pytest.mark.parametrize(("first", "count"), [(0, 1), (2, 3), (5, 1), (4, 2)])
def test_a_run_is_proven_by_its_row(first: int, count: int) -> None:
    run, row, block = Run(first, count, len(DATA)), leaf_row(DATA), block_id(DATA)
    leaves = DATA[run.start : run.start + run.size]
    came = bytearray(row + leaves)
    told = proven(run, block, memoryview(came))
    assert told is not None
    assert (told[0], bytes(told[1])) == (row, leaves)
    for at in (0, len(row) - 1, len(row), len(came) - 1):
        came[at] ^= 1
        assert proven(run, block, memoryview(came)) is None
        came[at] ^= 1
    assert proven(run, block, memoryview(came)[:-1]) is None
    assert proven(run, block_id(leaves), memoryview(came)) is None
    other = Run((first + 1) % (6 - count) if count < 5 else 0, count, len(DATA))
    if other.first != first:
        assert proven(other, block, memoryview(came)) is None
