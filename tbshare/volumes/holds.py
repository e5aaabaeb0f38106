"""Pins and leases: what keeps bytes on this node. Rows of log.db, because no peer can tell us of them again."""

import builtins
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import msgspec

from tbshare.errors import InputRefused, StoreUnusable
from tbshare.volumes.database import Database

RANGES_MAX: Final = 1 << 20  # of one pin; a rank's slice of a large model has some thousand
NOTE_LETTERS_MAX: Final = 1024
_Ranges = tuple[tuple[int, int], ...]
_ranges_decoder = msgspec.msgpack.Decoder(_Ranges)


@dataclass(frozen=True)
class Pin:
    """A promise to keep a tree or object, or ranges of it, on this node."""

    id: int
    what: bytes  # a tree's or an object's id
    ranges: tuple[tuple[int, int], ...]  # (start, end) in bytes; empty means all of it
    note: str
    created_ns: int


@dataclass(frozen=True)
class Lease:
    """A right with an end: somebody is using these bytes."""

    id: int
    what: bytes
    kind: str  # "run", "mount", "path" ...
    pid: int
    boot: str  # boot id of the machine; a pid means nothing in another boot
    expires: float  # seconds on the monotonic clock of that boot; infinity lasts as long as the process


class Pins:
    """The pins of this node; every change is durable on return."""

    def __init__(self, database: Database, clock_ns: Callable[[], int]) -> None:
        self._database = database
        self._clock_ns = clock_ns

    def add(self, what: bytes, *, ranges: Sequence[tuple[int, int]] = (), note: str = "") -> int:
        """Add a pin and return its id; InputRefused when a range is empty, or there are too many."""
        if len(ranges) > RANGES_MAX or any(not 0 <= start < end < 1 << 63 for start, end in ranges):
            raise InputRefused(f"a pin takes up to {RANGES_MAX} ranges, none of them empty")
        row = (what, msgspec.msgpack.encode(tuple(ranges)), note[:NOTE_LETTERS_MAX], self._clock_ns())
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO pins (what, ranges, note, created_ns) VALUES (?, ?, ?, ?)", row
            )
            return cast("int", cursor.lastrowid)

    def remove(self, pin: int) -> bool:
        """Take a pin away; False when there was none."""
        with self._database.transaction() as connection:
            return connection.execute("DELETE FROM pins WHERE id = ?", (pin,)).rowcount > 0

    def list(self, what: bytes | None = None) -> list[Pin]:
        """Return all pins, or those of one tree or object."""
        query = "SELECT id, what, ranges, note, created_ns FROM pins"
        rows = (
            self._database.rows(f"{query} ORDER BY id")
            if what is None
            else self._database.rows(f"{query} WHERE what = ? ORDER BY id", what)
        )
        return [_pin(cast("tuple[int, bytes, bytes, str, int]", row)) for row in rows]


def _pin(row: tuple[int, bytes, bytes, str, int]) -> Pin:
    number, what, ranges, note, created_ns = row
    try:
        return Pin(number, what, _ranges_decoder.decode(ranges), note, created_ns)
    except msgspec.DecodeError as error:
        raise StoreUnusable(f"log.db is damaged: pin {number}: {error}", cure="tbshare verify --repair") from error


class Leases:
    """The leases of this node; every change is durable on return."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, what: bytes, *, kind: str, pid: int, boot: str, expires: float) -> int:
        """Add a lease and return its id."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO leases (what, kind, pid, boot, expires) VALUES (?, ?, ?, ?, ?)",
                (what, kind, pid, boot, expires),
            )
            return cast("int", cursor.lastrowid)

    def renew(self, lease: int, expires: float) -> bool:
        """Give a lease another end; False when there is none."""
        with self._database.transaction() as connection:
            cursor = connection.execute("UPDATE leases SET expires = ? WHERE id = ?", (expires, lease))
            return cursor.rowcount > 0

    def remove(self, lease: int) -> bool:
        """Take a lease away; False when there was none."""
        with self._database.transaction() as connection:
            return connection.execute("DELETE FROM leases WHERE id = ?", (lease,)).rowcount > 0

    def list(self, what: bytes | None = None) -> list[Lease]:
        """Return all leases, or those of one object."""
        query = "SELECT id, what, kind, pid, boot, expires FROM leases"
        rows = (
            self._database.rows(f"{query} ORDER BY id")
            if what is None
            else self._database.rows(f"{query} WHERE what = ? ORDER BY id", what)
        )
        return [Lease(*cast("tuple[int, bytes, str, int, str, float]", row)) for row in rows]

    def drop_dead(self, *, boot: str, now: float, alive: Collection[int]) -> builtins.list[Lease]:
        """Remove and return the leases of other boots, those that ended, and those of processes not `alive`."""
        with self._database.lock:
            dead = [
                lease
                for lease in self.list()
                if lease.boot != boot or lease.expires <= now or lease.pid not in alive
            ]
            self._delete(lease.id for lease in dead)
            return dead

    def _delete(self, ids: Iterable[int]) -> None:
        with self._database.transaction() as connection:
            connection.executemany("DELETE FROM leases WHERE id = ?", [(number,) for number in ids])
