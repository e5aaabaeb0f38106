"""Packs: append-only files of small records, each named by an id and checked when read.

The bytes of a record are in the module docstring of `tbshare.store`. A record is durable after `sync`.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from threading import Lock

from blake3 import blake3

from tbshare.errors import BlockCorrupt
from tbshare.store import disk

PACK_BYTES_MAX = 256 * 1024 * 1024  # then the next pack is begun; a pack is compacted as a whole
RECORD_BYTES_MAX = 64 * 1024 * 1024 + 4096
_MAGIC = b"TBP1"
_HEAD = struct.Struct("<4sB3xQ32s16s")
_NAME = "pack-"


class Kind(IntEnum):
    """What a record is."""

    MANIFEST = 1
    TREE = 2
    CONTENT = 3  # the bytes of an object of up to 64 KiB, by object id
    HEADER = 4  # the original header of a shifted object, by object id


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record's payload lies."""

    pack: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Found:
    """A record met by a scan; `sound` says that its check holds."""

    kind: Kind
    id: bytes
    place: Place
    sound: bool


def _check(kind: int, record_id: bytes, payload: bytes) -> bytes:
    hasher = blake3(struct.pack("<BQ", kind, len(payload)))
    hasher.update(record_id)
    hasher.update(payload)
    return hasher.digest(length=16)


class Packs:
    """All packs of a store. Thread-safe. One pack, the last, is appended to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._sync_lock = Lock()  # taken before `_lock`; held while a sync runs, so that reading goes on
        self._descriptors: dict[int, int] = {}
        self._unsynced: dict[int, list[tuple[Kind, bytes, Place]]] = {}
        self._lost: list[tuple[Kind, bytes, Place]] = []
        numbers = self.numbers()
        self._last = numbers[-1] if numbers else 0
        self._end = self.path(self._last).stat().st_size if numbers else 0
        self._new_pack = False

    def path(self, number: int) -> Path:
        """Return the file of a pack."""
        return self._folder / f"{_NAME}{number:06d}"

    def numbers(self) -> list[int]:
        """Return the numbers of the packs there are, in order."""
        names = (entry.name.removeprefix(_NAME) for entry in self._folder.glob(f"{_NAME}*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def append(self, kind: Kind, record_id: bytes, payload: bytes) -> Place:
        """Add a record; it is readable at once and durable after the next `sync`."""
        assert len(payload) <= RECORD_BYTES_MAX
        head = _HEAD.pack(_MAGIC, kind, len(payload), record_id, _check(kind, record_id, payload))
        with self._lock:
            if self._last == 0 or self._end >= PACK_BYTES_MAX:
                self._last, self._end, self._new_pack = self._last + 1, 0, True
            descriptor = self._descriptor(self._last, create=True)
            disk.write_all(descriptor, head + payload, self._end)
            place = Place(self._last, self._end + _HEAD.size, len(payload))
            self._end = place.offset + place.length
            self._unsynced.setdefault(self._last, []).append((kind, record_id, place))
        return place

    def sync(self) -> None:
        """Make every appended record durable.

        OSError: the records since the last sync must be appended again (`take_lost`); they go to a new pack, for
        a second sync of this one would succeed without having written them.
        """
        with self._sync_lock:
            with self._lock:
                batch = {number: self._descriptor(number) for number in self._unsynced}
                appended, self._unsynced = self._unsynced, {}
                new_pack, self._new_pack = self._new_pack, False
            try:
                for descriptor in batch.values():
                    disk.sync_file(descriptor)
                if new_pack:
                    disk.sync_directory(self._folder)
            except OSError:
                with self._lock:
                    for records in (*appended.values(), *self._unsynced.values()):
                        self._lost += records
                    self._unsynced.clear()
                    self._end = PACK_BYTES_MAX
                raise

    def take_lost(self) -> list[tuple[Kind, bytes, Place]]:
        """Return the records that failed syncs have lost since the last call."""
        with self._lock:
            lost, self._lost = self._lost, []
            return lost

    def read(self, kind: Kind, record_id: bytes, place: Place) -> bytes:
        """Return the payload after checking it. BlockCorrupt when it is not what was written.

        FileNotFoundError when the pack has been compacted: the record has another place now.
        """
        with self._lock:
            descriptor = self._descriptor(place.pack)
            data = os.pread(descriptor, _HEAD.size + place.length, place.offset - _HEAD.size)
        payload = data[_HEAD.size :]
        expected = _HEAD.pack(_MAGIC, kind, place.length, record_id, _check(kind, record_id, payload))
        if data[: _HEAD.size] != expected:
            raise BlockCorrupt(
                f"a record of pack {place.pack} at byte {place.offset} is not what was written",
                cure="tbshare verify --repair",
            )
        return payload

    def scan(self, number: int, start: int = 0) -> Iterator[Found]:
        """Yield the records of a pack from a byte on which a record starts; skip over what is none."""
        descriptor = self._descriptor(number)
        size = os.fstat(descriptor).st_size
        position = start
        while position + _HEAD.size <= size:
            head = os.pread(descriptor, _HEAD.size, position)
            magic, kind, length, record_id, check = _HEAD.unpack(head)
            end = position + _HEAD.size + length
            if magic != _MAGIC or kind not in list(Kind) or length > RECORD_BYTES_MAX or end > size:
                position = self._next_magic(descriptor, position + 1, size)
                continue
            payload = os.pread(descriptor, length, position + _HEAD.size)
            place = Place(number, position + _HEAD.size, length)
            sound = _check(kind, record_id, payload) == check
            yield Found(Kind(kind), record_id, place, sound)
            position = end if sound else self._next_magic(descriptor, position + 1, size)

    def cut_tail(self, number: int, end: int) -> None:
        """Drop what follows the last sound record of the last pack: the torn end of an append."""
        with self._lock:
            if number == self._last and end < self._end:
                os.ftruncate(self._descriptor(number), end)
                disk.sync_file(self._descriptor(number))
                self._end = end

    def remove(self, number: int) -> None:
        """Delete a pack all of whose live records have been appended anew and synced."""
        with self._lock:
            assert number != self._last
            if number in self._descriptors:
                os.close(self._descriptors.pop(number))
            self.path(number).unlink(missing_ok=True)

    def begin_new(self) -> None:
        """Let nothing more be appended to the packs there are."""
        with self._lock:
            if self._last:
                self._last, self._end, self._new_pack = self._last + 1, 0, True

    @property
    def last(self) -> int:
        """The number of the pack that is appended to; 0 before the first."""
        return self._last

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def descriptor(self, number: int) -> int:
        """Return the open descriptor of a pack; it stays the packs' own."""
        with self._lock:
            return self._descriptor(number)

    def _descriptor(self, number: int, *, create: bool = False) -> int:
        if number not in self._descriptors:
            flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
            self._descriptors[number] = os.open(self.path(number), flags, 0o600)
        return self._descriptors[number]

    @staticmethod
    def _next_magic(descriptor: int, start: int, size: int) -> int:
        window = 1 << 20
        while start < size:
            data = os.pread(descriptor, window + len(_MAGIC), start)
            at = data.find(_MAGIC)
            if at >= 0:
                return start + at
            start += window
        return size
