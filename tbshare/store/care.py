"""What keeps a store healthy: verify and quarantine, dropping, compacting packs, counting what is on the disk."""

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tbshare.content import bits
from tbshare.content.block import BLOCK_BYTES, ObjectId, block_id
from tbshare.errors import BlockCorrupt, FormatInvalid, ObjectMissing
from tbshare.store import disk
from tbshare.store.arriving import Arriving
from tbshare.store.index import Row
from tbshare.store.pack import Kind, Place
from tbshare.store.store import Store

PAGE_ROWS = 10_000  # of the index, in memory at once
COMPACT_SHARE = 0.5  # of a pack must be dead before its living records are written anew


@dataclass(frozen=True, slots=True)
class Damage:
    """Blocks of one object that are not what they should be."""

    object_id: ObjectId
    blocks: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class DiskBytes:
    """What the store takes on its disk."""

    logical: int  # bytes of all whole objects
    unique: int  # of distinct blocks
    disk: int  # allocated
    shared: int  # of those, also part of another file
    quarantine: int


def verify_object(
    store: Store, object_id: ObjectId, *, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Damage | None:
    """Hash every block of a whole object again; return what is wrong with it."""
    try:
        found = store.manifest(object_id)
    except (BlockCorrupt, FormatInvalid):
        found = None
    if found is None:
        return Damage(object_id, (), "its manifest is gone")
    bad: list[int] = []
    buffer = memoryview(mmap.mmap(-1, BLOCK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    for number, length in enumerate(found.lengths):
        if stopped():
            break
        place = None
        with contextlib.suppress(ObjectMissing):
            place = store.open_block(object_id, number)
        if place is None:
            bad.append(number)
            continue
        view = buffer[:length]
        try:
            count = disk.read_into(place.descriptor, view, place.offset)
        except OSError:
            count = 0  # the disk cannot read it: as lost as a wrong byte
        finally:
            place.release()
        if count != length or block_id(view) != found.block(number):
            bad.append(number)
        advance(length)
    if not bad:
        return None
    return Damage(object_id, tuple(bad), f"{len(bad)} of {found.block_count} blocks are not what was written")


def is_wrong(store: Store, object_id: ObjectId, number: int) -> bool:
    """Return whether one block of a whole object is not what was written; False for what is not here."""
    found = store.manifest(object_id)
    if found is None or number >= found.block_count or not store.is_whole(object_id):
        return False
    try:
        store.read_block(object_id, number)
    except (BlockCorrupt, ObjectMissing, OSError):
        return True
    return False


def quarantine(store: Store, damage: Damage) -> None:
    """Put an object with corrupt blocks aside; its good blocks become a partial object that can be filled again.

    Nothing is deleted. The good blocks are copied (shared, where the disk can), synced and recorded before the
    file is moved, so that a crash at any point leaves the old file or the new state.
    """
    row = store.row(damage.object_id)
    if row is None or not row.whole:
        return
    try:
        found = store.manifest(damage.object_id)
    except (BlockCorrupt, FormatInvalid):
        found = None
    if found is None:  # the bytes may be good: they wait for the manifest to come from a peer
        store.index.remove_record(Kind.MANIFEST, row.id)
        return
    if row.place == "packed":
        store.index.remove_record(Kind.CONTENT, found.id)
        store.index.remove_object(found.id)
        store.index.add_quarantine(f"pack:{found.id.hex()}", found.id, damage.blocks, time.time_ns())
        return
    path = store.home.object(found.id, row.place)
    arriving = Arriving(found, store.home.partial(found.id), 0)
    try:
        good = bits.full(found.block_count) & ~bits.of(damage.blocks)
        for number in bits.members(good):
            try:
                arriving.write(number, memoryview(store.read_block(found.id, number)))
            except (BlockCorrupt, ObjectMissing):
                continue  # it rotted since it was verified
        arriving.sync()
    finally:
        arriving.close()
    aside = store.home.folder("quarantine") / f"{path.name}-{time.time_ns()}"
    with store.index.transaction(durable=True):
        store.index.put_object(found, whole=False, place=row.place)
        store.index.set_present(found.id, arriving.present)
        store.index.add_quarantine(aside.name, found.id, damage.blocks, time.time_ns())
    store.forget_path(path)
    os.rename(path, aside)
    disk.sync_directory(aside.parent)
    disk.sync_directory(path.parent)


def drop_object(store: Store, object_id: ObjectId) -> int:
    """Delete the bytes of an object; its manifest stays. Return the bytes freed at most."""
    row = store.row(object_id)
    return 0 if row is None else _drop(store, [row])


def _drop(store: Store, rows: Sequence[Row]) -> int:
    """Delete the bytes of objects; return how many.

    The index forgets first, durably: a row that came back with the power would say of the next partial file of
    the same object which blocks are present in it.
    """
    with store.index.transaction(durable=True):
        for row in rows:
            for kind in (Kind.CONTENT, Kind.HEADER):
                store.index.remove_record(kind, row.id)
            store.index.remove_object(row.id)
    for row in rows:
        store.abandon(row.id)
        store.home.partial(row.id).unlink(missing_ok=True)
        if row.place != "packed" and row.whole:
            path = store.home.object(row.id, row.place)
            store.forget_path(path)
            path.unlink(missing_ok=True)
    return sum(row.size for row in rows)


def collect(store: Store, live: set[bytes], live_trees: set[bytes]) -> tuple[int, int]:
    """Drop every object and record that nothing living needs; return how many objects and bytes went."""
    count = freed = key = 0
    while rows := store.index.objects_after(key, PAGE_ROWS):
        key = rows[-1].key
        dead = [row for row in rows if row.id not in live and not store.is_arriving(row.id)]
        freed += _drop(store, dead) if dead else 0
        count += len(dead)
    after = (b"", -1)
    while records := store.index.records_after(after, PAGE_ROWS):
        after = records[-1][1], int(records[-1][0])
        with store.index.transaction():
            for kind, record_id in records:
                keep = live_trees if kind == Kind.TREE else live
                if record_id not in keep and not store.is_arriving(record_id):
                    store.index.remove_record(kind, record_id)
    compact(store)
    return count, freed


def compact(store: Store) -> None:
    """Write the living records of packs that are mostly dead anew, and delete those packs."""
    dead = _mostly_dead(store)
    if store.packs.last in dead:
        store.close_pack()  # nothing is appended to any of these from here on
    for number in dead:
        inside = store.index.records_in(number)
        if not all(_sound(store, record) for record in inside):
            continue  # a pack with a rotten record stays until verify has found it
        moved = [
            (
                kind,
                record_id,
                place,
                store.packs.append(kind, record_id, store.packs.read(kind, record_id, place)),
            )
            for kind, record_id, place in inside
        ]
        store.sync_records()
        # Not before: rows of a pack that the power took are dropped. Durably: the number may be used again.
        with store.index.transaction(durable=True):
            for kind, record_id, old, new in moved:
                if store.index.record(kind, record_id) == old:
                    store.index.add_record(kind, record_id, new)
            store.index.forget_pack(number)
        store.forget_path(store.packs.path(number))
        store.packs.remove(number)


def _mostly_dead(store: Store) -> list[int]:
    """Return the packs of which less than 1 - COMPACT_SHARE is still needed."""
    living = store.index.living_bytes()
    sizes = {number: store.packs.path(number).stat().st_size for number in store.packs.numbers()}
    return [number for number, size in sizes.items() if living.get(number, 0) < size * (1 - COMPACT_SHARE)]


def _sound(store: Store, record: tuple[Kind, bytes, Place]) -> bool:
    try:
        store.packs.read(*record)
    except BlockCorrupt:
        return False
    return True


def disk_bytes(store: Store) -> DiskBytes:
    """Count what the store takes; reads the allocation of every file, not its bytes."""
    logical = allocated = shared = 0
    blocks: dict[bytes, int] = {}
    for row in store.index.objects():
        found = store.manifest(row.id)
        if not row.whole or found is None:
            continue
        logical += row.size
        for number, length in enumerate(found.lengths):
            blocks[found.block(number)] = length
    for name in ("objects", "partial", "staging"):
        for folder, _, files in os.walk(store.home.folder(name)):
            for file in files:
                one, common = _allocated(os.path.join(folder, file))
                allocated, shared = allocated + one, shared + common
    aside = sum(_allocated(entry.path)[0] for entry in os.scandir(store.home.folder("quarantine")))
    return DiskBytes(logical, sum(blocks.values()), allocated, shared, aside)


def _allocated(path: str) -> tuple[int, int]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return 0, 0
    try:
        return os.fstat(descriptor).st_blocks * 512, disk.shared_bytes(descriptor)
    finally:
        os.close(descriptor)


def unique_to(store: Store, objects: Iterable[ObjectId], others: Iterable[ObjectId]) -> int:
    """Return the bytes that would be freed if `objects` went and `others` stayed."""
    kept = set(others)
    return sum(row.size for object_id in set(objects) - kept if (row := store.row(object_id)) and row.whole)
