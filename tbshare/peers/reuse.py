"""Blocks that need not come from anybody: those of other objects in this store, and copies within one fetch."""

import logging
from collections.abc import Iterable, Sequence

from tbshare.content import bits
from tbshare.content.bits import Bits
from tbshare.content.block import ObjectId, block_id
from tbshare.errors import BlockCorrupt, ObjectMissing
from tbshare.store.arriving import Arriving
from tbshare.store.store import Store

_log = logging.getLogger("tbshare.peers.reuse")
Unit = tuple[Arriving, int]  # a block of an arriving object
Place = tuple[ObjectId, int]  # a block of an object that is here


def find_local(store: Store, units: Sequence[Unit], missing: Bits) -> dict[int, Place]:
    """Return the missing units whose bytes are somewhere in the store, and where."""
    found: dict[int, Place] = {}
    for unit in bits.members(missing):
        arriving, number = units[unit]
        place = store.find_block(arriving.manifest.block(number))
        if place is not None:
            found[unit] = place
    return found


def copy_blocks(
    store: Store, units: Sequence[Unit], batch: Iterable[tuple[int, Place]], copies: Iterable[tuple[int, int]]
) -> tuple[list[int], list[Place]]:
    """Fill units from the store, and from one another, given as (from, to); every block is hashed again.

    Return which are here now, and the blocks of the store that could not be read as they should be.
    """
    done: list[int] = []
    wrong: list[Place] = []
    for unit, (object_id, number) in batch:
        try:
            data = store.read_block(object_id, number)
        except (BlockCorrupt, ObjectMissing, OSError) as error:
            _log.warning("a block here could not be used again: %s", error)
            wrong.append((object_id, number))
            continue
        arriving, own = units[unit]
        arriving.write(own, memoryview(data))
        done.append(unit)
    for source, unit in copies:
        arriving, own = units[source]
        target, number = units[unit]
        data = arriving.read(own)
        if block_id(data) != target.manifest.block(number):
            _log.warning("a block that has just arrived is not on the disk as it came; it is asked for again")
            continue
        target.write(number, memoryview(data))
        done.append(unit)
    return done, wrong
