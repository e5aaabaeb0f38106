"""Blocks and leaves against the definition written out slowly."""

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content.block import (
    BLOCK_BYTES,
    BLOCK_CONTEXT,
    HASH_BYTES,
    LEAF_BYTES,
    block_id,
    block_id_of_row,
    leaf_row,
    named_hash,
)

SIZES = [1, 2, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 3 * LEAF_BYTES, BLOCK_BYTES - 1, BLOCK_BYTES]


@pytest.mark.parametrize("size", SIZES)
def test_the_definition(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    leaves = [data[start : start + LEAF_BYTES] for start in range(0, size, LEAF_BYTES)]
    row = b"".join(blake3(leaf).digest() for leaf in leaves)
    assert leaf_row(data) == leaf_row(memoryview(data)) == leaf_row(bytearray(data)) == row
    assert len(row) == HASH_BYTES * len(leaves)
    assert block_id(data) == block_id_of_row(row) == blake3(row, derive_key_context=BLOCK_CONTEXT).digest()


def test_ids_are_for_ever() -> None:
    """Ids of stores in the field: if this fails, the format has changed."""
    assert block_id(b"tbshare").hex() == "934b19f7f4467c3daff158d7d93710c580ce8ced3034f5f40fe07607eb1a3e67"
    assert block_id(bytes(BLOCK_BYTES)).hex() == "e832814a0915e65439d5b8435bf41e5ea6ce634871295209b8baa8d7fe8c678a"


@given(st.binary(min_size=1, max_size=4096), st.data())
def test_a_flipped_bit_gives_another_id(data: bytes, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(0, 8 * len(data) - 1))
    flipped = bytearray(data)
    flipped[place // 8] ^= 1 << place % 8
    assert block_id(flipped) != block_id(data)


@given(st.binary(min_size=1, max_size=4096))
def test_a_block_of_one_leaf_is_not_named_by_the_hash_of_its_bytes(data: bytes) -> None:
    assert block_id(data) != blake3(data).digest()
    assert block_id(data) != blake3(blake3(data).digest()).digest()


@pytest.mark.parametrize("size", [0, BLOCK_BYTES + 1])
def test_what_is_no_block_is_a_mistake_of_the_caller(size: int) -> None:
    with pytest.raises(AssertionError):
        leaf_row(bytes(size))


@given(st.lists(st.binary(max_size=64)), st.lists(st.binary(max_size=64)))
def test_named_hashes_are_of_the_joined_parts_and_of_their_context(one: list[bytes], two: list[bytes]) -> None:
    assert (named_hash("a", one) == named_hash("a", two)) == (b"".join(one) == b"".join(two))
    assert named_hash("a", one) != named_hash("b", one)
