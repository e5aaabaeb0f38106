"""Objects that are read while they arrive: leaves, and what a reader and whoever brings in all share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content.block import BLOCK_BYTES, LEAF_BYTES
from tbshare.content.manifest import Manifest
from tbshare.errors import ObjectInUse
from tbshare.store.arriving import Arriving
from tbshare.store.readable import Readable, header_blocks, keep_header, read_range, readable
from tbshare.store.store import Extent, Store
from tests.store.weights_files import manifest_of, random_bytes, weights

OpenStore = Callable[..., Store]
DATA = random_bytes("readable", 2 * BLOCK_BYTES + 3 * LEAF_BYTES + 17)
FOUND = manifest_of("film.mov", DATA)


def bring(arriving: Arriving, data: bytes, number: int, first: int = 0, count: int = 16) -> None:
    """Write leaves of a block."""
    found = arriving.manifest
    block = data[found.offsets[number] : found.offsets[number + 1]]
    part = block[first * LEAF_BYTES : (first + count) * LEAF_BYTES]
    arriving.write_leaves(number, first, memoryview(part))


def shared(store: Store, found: Manifest) -> Arriving:
    arriving = store.share(found)
    assert arriving is not None
    return arriving


def ranges(store: Store, found: Manifest = FOUND) -> list[tuple[int, int]]:
    return [(extent.start, extent.end) for extent in readable(store, found).extents]


def test_leaves_can_be_read_as_they_come(open_store: OpenStore) -> None:
    store = open_store()
    arriving = shared(store, FOUND)
    assert ranges(store) == []
    bring(arriving, DATA, 1, 2, 3)
    start = BLOCK_BYTES + 2 * LEAF_BYTES
    assert ranges(store) == [(start, start + 3 * LEAF_BYTES)]
    assert not store.held(FOUND.id)  # whole blocks are served to others, no leaves
    bring(arriving, DATA, 1, 0, 2)
    bring(arriving, DATA, 2, 3, 1)
    assert ranges(store) == [(BLOCK_BYTES, BLOCK_BYTES + 5 * LEAF_BYTES), (len(DATA) - 17, len(DATA))]
    bring(arriving, DATA, 1, 5, 11)
    assert store.held(FOUND.id) == 0b010
    bring(arriving, DATA, 0)
    assert ranges(store)[0] == (0, 2 * BLOCK_BYTES)
    assert read_range(readable(store, FOUND).extents, 5, 2 * BLOCK_BYTES - 5) == DATA[5 : 2 * BLOCK_BYTES - 5]
    assert os.stat(store.home.partial(FOUND.id)).st_size == len(DATA)
    assert os.stat(store.home.partial(FOUND.id)).st_blocks * 512 <= 2 * BLOCK_BYTES + LEAF_BYTES + 4096


def test_blocks_are_there_after_the_last_reader_and_leaves_are_not(open_store: OpenStore) -> None:
    store = open_store()
    arriving = shared(store, FOUND)
    bring(arriving, DATA, 1)
    bring(arriving, DATA, 2, 0, 1)
    store.sync_arriving([arriving])
    assert store.share(FOUND) is arriving
    store.unshare(arriving)
    assert not arriving.closed
    store.unshare(arriving)
    assert arriving.closed
    assert not store.is_arriving(FOUND.id)
    assert ranges(store) == [(BLOCK_BYTES, 2 * BLOCK_BYTES)]


def test_a_fetch_and_readers_fill_the_same_file(open_store: OpenStore) -> None:
    store = open_store()
    arriving = shared(store, FOUND)
    bring(arriving, DATA, 2)
    assert store.begin(FOUND) is arriving
    with pytest.raises(ObjectInUse):
        store.begin(FOUND)
    assert os.stat(arriving.path).st_blocks * 512 >= len(DATA)  # whoever brings in all has the room for it
    store.abandon(FOUND.id, arriving)
    assert not arriving.closed
    assert store.begin(FOUND) is arriving
    for number in (0, 1):
        bring(arriving, DATA, number)
    store.finish([arriving])
    store.unshare(arriving)
    assert store.share(FOUND) is None
    assert readable(store, FOUND).whole
    assert read_range(readable(store, FOUND).extents, 0, len(DATA)) == DATA


def test_what_is_thrown_away_is_closed_whoever_reads_it(open_store: OpenStore) -> None:
    store = open_store()
    arriving = shared(store, FOUND)
    store.abandon(FOUND.id)
    assert arriving.closed
    again = shared(store, FOUND)
    assert again is not arriving
    store.unshare(arriving)
    assert not again.closed
    bring(again, DATA, 0)


def test_the_header_of_a_shifted_object_reads_the_same_before_and_after(open_store: OpenStore) -> None:
    data = weights("r", [500_000, 7], odd=True)
    found = manifest_of("odd.safetensors", data)
    store = open_store()
    arriving = shared(store, found)
    assert list(header_blocks(found)) == [0]
    assert found.header is not None
    data_start = found.header.data_start
    bring(arriving, data, 1)
    assert ranges(store, found) == [(found.offsets[1], found.offsets[2])]
    keep_header(store, arriving)
    bring(arriving, data, 0)
    assert ranges(store, found)[0][0] == data_start  # not where it will be padded
    keep_header(store, arriving)
    assert ranges(store, found)[0] == (0, data_start)
    before = readable(store, found).extents
    opened = [extent.path.open("rb") for extent in before]
    for number in range(2, found.block_count):
        bring(arriving, data, number)
    assert store.begin(found) is arriving
    store.finish([arriving])
    assert read_range(readable(store, found).extents, 0, len(data)) == data
    for extent, file in zip(before, opened, strict=True):
        with file:
            file.seek(extent.offset)
            assert file.read(extent.end - extent.start) == data[extent.start : extent.end]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=5), st.integers(0, 40), st.integers(0, 40)
)
def test_covers(runs: list[tuple[int, int]], start: int, end: int) -> None:
    held = {at for first, length in runs for at in range(first, first + length)}
    extents = tuple(Extent(at, at + 1, Path("f"), at) for at in sorted(held))
    assert Readable(False, extents).covers(start, end) == (set(range(start, end)) <= held)
