"""Which bytes of an object can be read now, and where: all of a whole one, what was verified of one that arrives.

What is readable stays so for whoever has the file open, whatever becomes of the object; only names change: a
partial file moves to objects/ when it is whole. The header of a shifted object is padded then, in place, so while
it arrives its header is read from the pack where the original is kept.
"""

import contextlib
import os
from dataclasses import dataclass

from tbshare.content import bits, layout
from tbshare.content.bits import Bits
from tbshare.content.block import LEAF_BYTES, block_id
from tbshare.content.manifest import Manifest
from tbshare.errors import BlockCorrupt, ObjectMissing
from tbshare.store.arriving import SMALL_BYTES, Arriving
from tbshare.store.pack import Kind
from tbshare.store.store import Extent, Store


@dataclass(frozen=True)
class Readable:
    """The extents, in order, and whether they are all of the object."""

    whole: bool
    extents: tuple[Extent, ...]

    def covers(self, start: int, end: int) -> bool:
        """Return whether every byte of [start, end) can be read."""
        for extent in self.extents:
            if extent.start <= start < extent.end:
                start = extent.end
        return start >= end


def readable(store: Store, found: Manifest, start: int = 0, end: int | None = None) -> Readable:
    """Return what can be read; of an object that is not whole at least what there is of [start, end)."""
    end = found.size if end is None else end
    arriving = store.arriving(found.id)
    if arriving is not None and not arriving.sealed:  # the usual case, without asking the index
        ranges = _ranges(found, arriving.readable, arriving.leaves_of_absent(), start, end)
        return Readable(False, tuple(_extents(store, found, ranges)))
    for _ in range(2):  # it may become whole between the two lines that follow
        with contextlib.suppress(ObjectMissing):
            return Readable(True, tuple(store.extents(found.id)))
        held = store.held(found.id)
        if not store.is_whole(found.id):
            return Readable(False, tuple(_extents(store, found, _ranges(found, held, {}, start, end))))
    return Readable(False, ())


def keep_header(store: Store, arriving: Arriving) -> None:
    """Make the header of a shifted object readable, once all of it has arrived."""
    found, numbers = arriving.manifest, header_blocks(arriving.manifest)
    if not numbers or bits.of(numbers) & arriving.missing or _header_place(store, found) is not None:
        return
    parts = [arriving.read(number) for number in numbers]
    if all(block_id(part) == found.block(number) for number, part in zip(numbers, parts, strict=True)):
        store.add_record(Kind.HEADER, found.id, b"".join(parts))


def header_blocks(found: Manifest) -> range:
    """Return the blocks of an object's header if they are read from a pack while it arrives; else none."""
    header = found.header
    if header is None or not layout.choose(header).shift or found.size <= SMALL_BYTES:
        return range(0)
    return range(found.offsets.index(header.data_start))


def _ranges(found: Manifest, blocks: Bits, leaves: dict[int, Bits], start: int, end: int) -> list[tuple[int, int]]:
    """Return the ranges of a file's bytes that are readable, as far as they touch [start, end), joined."""
    offsets = found.offsets
    ranges = [(offsets[first], offsets[after]) for first, after in bits.runs(blocks)]
    for number, some in leaves.items():
        base, limit = offsets[number], offsets[number + 1]
        ranges += [
            (base + first * LEAF_BYTES, min(base + after * LEAF_BYTES, limit)) for first, after in bits.runs(some)
        ]
    joined: list[tuple[int, int]] = []
    for first, after in sorted(ranges):
        if joined and joined[-1][1] >= first:
            joined[-1] = joined[-1][0], max(joined[-1][1], after)
        else:
            joined.append((first, after))
    return [(first, after) for first, after in joined if after > start and first < end]


def _extents(store: Store, found: Manifest, ranges: list[tuple[int, int]]) -> list[Extent]:
    if found.size <= SMALL_BYTES:  # it arrives in memory
        return []
    path, shift = store.home.partial(found.id), layout.choose(found.header).shift
    if not shift or found.header is None:
        return [Extent(start, end, path, start) for start, end in ranges]
    data_start = found.header.data_start
    kept = _header_place(store, found)
    result = [kept] if kept is not None else []
    for start, end in ranges:
        if end > data_start:
            start = max(start, data_start)
            result.append(Extent(start, end, path, start + shift))
    return result


def _header_place(store: Store, found: Manifest) -> Extent | None:
    place = store.index.record(Kind.HEADER, found.id)
    if place is None or found.header is None:
        return None
    return Extent(0, found.header.data_start, store.packs.path(place.pack), place.offset)


def read_range(extents: tuple[Extent, ...], start: int, end: int) -> bytes:
    """Return bytes [start, end), which the extents cover. FileNotFoundError when a name has changed meanwhile."""
    parts: list[bytes] = []
    for extent in extents:
        if extent.start <= start < min(extent.end, end):
            upto = min(extent.end, end)
            descriptor = os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                part = os.pread(descriptor, upto - start, extent.offset + start - extent.start)
            finally:
                os.close(descriptor)
            parts.append(part)
            if len(part) != upto - start:
                raise BlockCorrupt("a file of the store is too short", cure="tbshare verify --repair")
            start = upto
    if start < end:
        raise ObjectMissing("these bytes are not on this node")
    return b"".join(parts)
