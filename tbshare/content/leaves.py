"""Leaves of a block: which of them a range of bytes needs, and how a few of them prove what they are.

A *run* is some leaves of one block that lie side by side. Alone it is believed when the block's row of leaf hashes
comes with it: the row must give the block's id, and the leaves their places in the row.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tbshare.content import bits
from tbshare.content.bits import Bits
from tbshare.content.block import HASH_BYTES, LEAF_BYTES, block_id_of_row, leaf_row


@dataclass(frozen=True, slots=True)
class Run:
    """Leaves [first, first + count) of a block of `length` bytes."""

    first: int
    count: int
    length: int

    @property
    def start(self) -> int:
        """Where its bytes start in the block."""
        return self.first * LEAF_BYTES

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return min((self.first + self.count) * LEAF_BYTES, self.length) - self.start

    @property
    def row_bytes(self) -> int:
        """How long the block's row is."""
        return leaf_count(self.length) * HASH_BYTES

    @property
    def is_part(self) -> bool:
        """Whether the block has these leaves, and others besides."""
        there = leaf_count(self.length)
        return 0 < self.count < there and 0 <= self.first <= there - self.count


def leaf_count(length: int) -> int:
    """Return how many leaves a block of this length has."""
    return -(-length // LEAF_BYTES)


def leaves_between(start: int, end: int) -> Bits:
    """Return the leaves of a block that hold its bytes [start, end)."""
    return bits.full(leaf_count(end)) & ~bits.full(start // LEAF_BYTES) if end > start else 0


def runs_of(leaves: Bits, length: int, size_max: int) -> Iterator[Run]:
    """Yield a block's leaves as runs of at most `size_max` bytes, or one leaf."""
    step = max(1, size_max // LEAF_BYTES)
    for start, end in bits.runs(leaves):
        for first in range(start, end, step):
            yield Run(first, min(step, end - first), length)


def blocks_between(offsets: Sequence[int], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the blocks that hold bytes [start, end) of a file, and which bytes of each: (block, start, end).

    `offsets` are where the blocks start, and at the end the file's size.
    """
    end = min(end, offsets[-1])
    if start >= end:
        return
    for number in range(bisect_right(offsets, start) - 1, len(offsets) - 1):
        first, after = offsets[number], offsets[number + 1]
        if first >= end:
            return
        yield number, max(0, start - first), min(after, end) - first


def proven(run: Run, block: bytes, row_and_leaves: memoryview) -> tuple[bytes, memoryview] | None:
    """Return a block's row and the leaves of a run that came behind it; None when they are not that block's."""
    row, leaves = bytes(row_and_leaves[: run.row_bytes]), row_and_leaves[run.row_bytes :]
    if len(leaves) != run.size or block_id_of_row(row) != block:
        return None
    expected = row[run.first * HASH_BYTES : (run.first + run.count) * HASH_BYTES]
    return (row, leaves) if leaf_row(leaves) == expected else None
