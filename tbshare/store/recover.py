"""Bring the index in step with the disk at start: after a crash a little, after its deletion everything.

The disk is the truth. What cannot be explained is moved to quarantine/, never deleted.
"""

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Protocol

from tbshare.content import bits
from tbshare.content.block import ObjectId, block_id
from tbshare.content.layout import PAGE_BYTES, choose
from tbshare.content.manifest import Manifest
from tbshare.errors import BlockCorrupt, DiskFull, FormatInvalid, StoreUnusable
from tbshare.store import disk
from tbshare.store.arriving import Arriving
from tbshare.store.home import Home
from tbshare.store.index import Index
from tbshare.store.pack import Packs


class Recovering(Protocol):
    """What recovery needs of a Store that is being opened."""

    @property
    def home(self) -> Home:
        """Its paths."""
        ...

    @property
    def index(self) -> Index:
        """Its index, open."""
        ...

    @property
    def packs(self) -> Packs:
        """Its packs, open."""
        ...

    @property
    def notices(self) -> list[str]:
        """Where to say what was found."""
        ...

    def manifest(self, object_id: ObjectId) -> Manifest | None:
        """Return a manifest that is here."""
        ...


def open_index(home: Home, notices: list[str]) -> Index:
    """Open index.db; a damaged one is put aside and made again from the disk."""
    try:
        return Index(home.index)
    except sqlite3.OperationalError as error:  # full, read-only, locked: nothing is wrong with what is in it
        raise StoreUnusable(f"index.db cannot be opened: {error}", cure="df; tbshare up") from error
    except sqlite3.DatabaseError as error:
        notices.append(f"index.db was damaged ({error}) and was made again from the objects")
        for suffix in ("", "-wal", "-shm"):
            path = home.index.with_name(home.index.name + suffix)
            if path.exists():
                put_aside(home, path)
        return Index(home.index)


def put_aside(home: Home, path: Path) -> None:
    """Move a file into quarantine, under a name of its own."""
    os.rename(path, home.folder("quarantine") / f"{path.name}-{time.time_ns()}")


def recover(store: Recovering) -> None:
    """Compare index and disk, and mend the index."""
    read_packs(store.packs, store.index)
    _packed_objects(store)
    _whole_objects(store)
    _partial_objects(store)
    store.index.make_durable()


def read_packs(packs: Packs, index: Index) -> None:
    """Take into the index the records it does not know; drop its rows for records that are not there.

    The index may know more than the packs: a record that was appended and not synced when the power went.
    """
    scanned = index.scanned()
    for number in packs.numbers():
        start = scanned.get(number, 0)
        size = packs.path(number).stat().st_size
        start = start if start <= size else 0
        doubtful = index.records_from(number, start)
        if start == size and not doubtful:
            continue
        with index.transaction():
            for kind, record_id, _ in doubtful:
                index.remove_record(kind, record_id)
            end = start
            for found in packs.scan(number, start):
                if found.sound:
                    index.add_record(found.kind, found.id, found.place)
                    end = found.place.offset + found.place.length
            index.set_scanned(number, end)
        packs.cut_tail(number, end)
    for number in {*scanned, *index.packs_named()} - set(packs.numbers()):
        index.forget_pack(number)


def _manifest(store: Recovering, object_id: ObjectId) -> Manifest | None:
    try:
        return store.manifest(object_id)
    except (FormatInvalid, BlockCorrupt):
        return None


def _packed_objects(store: Recovering) -> None:
    index = store.index
    if index.is_each_packed():
        return
    for object_id in index.packed_without_content():
        index.remove_object(object_id)
    for object_id in index.content_without_object():
        found = _manifest(store, object_id)
        if found is not None:
            index.put_object(found, whole=True, place="packed")


def _whole_objects(store: Recovering) -> None:
    """Compare the files of whole objects with the index, one folder after the other."""
    folders = {path.name: path for path in store.home.folder("objects").iterdir() if len(path.name) == 2}
    for first in range(256):
        _whole_objects_in(store, folders.get(f"{first:02x}"), first)


def _whole_objects_in(store: Recovering, folder: Path | None, first: int) -> None:
    index = store.index
    rows = {row.id: row for row in index.files_of_objects(first)}
    seen: set[ObjectId] = set()
    with os.scandir(folder) if folder is not None else contextlib.nullcontext(()) as entries:
        ordered = sorted(entries, key=lambda each: each.name)
    for each in ordered:
        name, _, suffix = each.name.partition(".")
        place = suffix or "exact"
        try:
            object_id = ObjectId(bytes.fromhex(name))
        except ValueError:
            continue
        found = _manifest(store, object_id)
        if found is None or each.stat().st_size != _file_size(found, place):
            put_aside(store.home, Path(each.path))
            store.notices.append(
                f"{each.name} was put into quarantine: nothing says what it is, or its size is wrong"
            )
            continue
        seen.add(object_id)
        row = rows.get(object_id)
        if row is None or not row.whole or row.place != place:
            index.put_object(found, whole=True, place=place)
            store.home.partial(object_id).unlink(missing_ok=True)
    for row in rows.values():
        if row.whole and row.id not in seen:
            index.remove_object(row.id)
            store.notices.append(f"object {row.id.hex()[:12]} is gone from the disk")


def _file_size(found: Manifest, place: str) -> int:
    if place == "shifted" and found.header is not None:
        return found.size + -found.header.data_start % PAGE_BYTES
    return found.size


def _partial_objects(store: Recovering) -> None:
    index = store.index
    partial = [row for each in index.partial_objects() if (row := index.object(each)) is not None]
    rows = {row.id: row for row in partial}
    for path in store.home.folder("partial").iterdir():
        try:
            object_id = ObjectId(bytes.fromhex(path.name))
        except ValueError:
            continue
        if object_id in rows:
            continue
        found = _manifest(store, object_id)
        if found is None:
            put_aside(store.home, path)
            store.notices.append(
                f"the partial object {path.name[:12]} was put into quarantine: its manifest is gone"
            )
            continue
        index.put_object(found, whole=False, place=choose(found.header).name)
        index.set_present(object_id, _hash_again(store, found))
    for row in rows.values():
        if not store.home.partial(row.id).exists():  # small ones had only ever been in memory
            index.remove_object(row.id)


def _hash_again(store: Recovering, found: Manifest) -> bits.Bits:
    """Return the blocks of a partial file that are what they should be, synced."""
    try:
        arriving = Arriving(found, store.home.partial(found.id), 0)
    except (DiskFull, OSError):
        return 0
    try:
        good = bits.of(
            number
            for number in range(found.block_count)
            if len(data := arriving.read(number)) == found.lengths[number]
            and block_id(data) == found.block(number)
        )
        if not arriving.small:
            disk.sync_file(arriving.descriptor)
        return good
    finally:
        arriving.close()
