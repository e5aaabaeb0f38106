"""index.db: what the store holds, in SQLite. A cache: everything in it can be found again on the disk.

`synchronous=NORMAL`: a transaction may be lost with the power, and `recover` finds again what it said. What it
cannot find, because an older row would be believed (which blocks of a partial object are present), is committed
with `durable`, before the files are changed that an older row would speak of.
Objects have a small integer key here, so that a row of `blocks` is 32 bytes and two numbers.
"""

import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from tbshare.content import bits
from tbshare.content.bits import Bits
from tbshare.content.block import HASH_BYTES, BlockId, ObjectId
from tbshare.content.manifest import Manifest
from tbshare.errors import DiskFull, StoreUnusable
from tbshare.store.pack import Kind, Place

LEVEL = 1
_VARIABLES_MAX = 500  # in one statement
_FOLDED = 4096  # ids at once; a power of two
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id BLOB NOT NULL, kind INTEGER NOT NULL, pack INTEGER NOT NULL,
    offset INTEGER NOT NULL, length INTEGER NOT NULL,
    PRIMARY KEY (id, kind)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_place ON records (pack, offset);
CREATE TABLE IF NOT EXISTS packs (number INTEGER PRIMARY KEY, scanned INTEGER NOT NULL);
-- state: 'whole' or 'partial'; place: 'exact', 'shifted' or 'packed'
CREATE TABLE IF NOT EXISTS objects (
    key INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, state TEXT NOT NULL,
    place TEXT NOT NULL, present TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS blocks (
    id BLOB NOT NULL, object INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (id, object, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS blocks_by_object ON blocks (object);
CREATE TABLE IF NOT EXISTS quarantine (
    path TEXT PRIMARY KEY, object BLOB NOT NULL, blocks TEXT NOT NULL, found_ns INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One object as the index knows it. `present` is meant for partial objects only."""

    key: int
    id: ObjectId
    size: int
    whole: bool
    place: str
    present: Bits


def _runs_text(present: Bits) -> str:
    return " ".join(f"{start}+{length}" for start, length in bits.to_runs(present))


def _runs_of(text: str, count: int) -> Bits:
    pairs = (run.split("+") for run in text.split())
    return bits.from_runs(((int(start), int(length)) for start, length in pairs), count)


class Index:
    """The tables of index.db. Thread-safe: one connection behind a lock."""

    def __init__(self, path: Path) -> None:
        self._lock = RLock()
        self._depth = 0
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        """Set the connection up; sqlite3.DatabaseError when this is no index of ours."""
        settings = ("journal_mode=WAL", "synchronous=NORMAL", "cache_size=-16000")
        for setting in (*settings, "fullfsync=ON", "checkpoint_fullfsync=ON"):  # the last two: macOS
            self._connection.execute(f"PRAGMA {setting}").fetchall()
        (level,) = self._connection.execute("PRAGMA user_version").fetchone()
        if level not in (0, LEVEL):
            raise sqlite3.DatabaseError(f"index of level {level}")
        self._connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={LEVEL};COMMIT;")
        ((answer,),) = self._rows("PRAGMA quick_check(1)")
        if answer != "ok":
            raise sqlite3.DatabaseError(str(answer))

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Generator[None, None, None]:
        """Make the changes inside one transaction; nests. `durable`: they survive the power when this ends."""
        with self._lock:
            outermost = self._depth == 0
            assert outermost or not durable, "the outer transaction decides"
            if outermost:
                self._do(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._do("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                if outermost:
                    self._do("COMMIT")
            except BaseException:
                if outermost and self._connection.in_transaction:
                    with suppress(sqlite3.Error):  # SQLite has rolled back by itself
                        self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def make_durable(self) -> None:
        """Make every transaction so far survive the power."""
        self._do("PRAGMA wal_checkpoint(PASSIVE)")

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _do(self, statement: str, values: tuple[object, ...] = ()) -> None:
        with self._lock:
            try:
                self._connection.execute(statement, values)
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
                    raise DiskFull("the disk is full", cure="tbshare du; tbshare gc --now") from error
                raise StoreUnusable(f"index.db cannot be written: {error}", cure="tbshare restart") from error

    # records -------------------------------------------------------------------------------------------------

    def add_record(self, kind: Kind, record_id: bytes, place: Place) -> None:
        """Remember where a record lies; the newest place wins."""
        self._do(
            "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?)",
            (record_id, int(kind), place.pack, place.offset, place.length),
        )

    def record(self, kind: Kind, record_id: bytes) -> Place | None:
        """Return where a record lies."""
        with self._lock:
            row = self._connection.execute(
                "SELECT pack, offset, length FROM records WHERE id=? AND kind=?", (record_id, int(kind))
            ).fetchone()
        return None if row is None else Place(*row)

    def records(self, kind: Kind | None = None) -> list[tuple[Kind, bytes, Place]]:
        """Return all records, or those of a kind."""
        with self._lock:
            rows = self._connection.execute("SELECT kind, id, pack, offset, length FROM records").fetchall()
        return [(Kind(row[0]), row[1], Place(*row[2:])) for row in rows if kind is None or row[0] == kind]

    def records_after(self, after: tuple[bytes, int], limit: int) -> list[tuple[Kind, bytes]]:
        """Return kind and id of records in the order of ids, those after (id, kind)."""
        query = "SELECT kind, id FROM records WHERE (id, kind) > (?, ?) ORDER BY id, kind LIMIT ?"
        with self._lock:
            rows = self._connection.execute(query, (*after, limit)).fetchall()
        return [(Kind(kind), record_id) for kind, record_id in rows]

    def records_in(self, pack: int) -> list[tuple[Kind, bytes, Place]]:
        """Return the records that lie in a pack."""
        query = "SELECT kind, id, pack, offset, length FROM records WHERE pack=?"
        with self._lock:
            rows = self._connection.execute(query, (pack,)).fetchall()
        return [(Kind(row[0]), row[1], Place(*row[2:])) for row in rows]

    def records_from(self, pack: int, offset: int) -> list[tuple[Kind, bytes, Place]]:
        """Return the records that lie in a pack from this byte on."""
        query = "SELECT kind, id, pack, offset, length FROM records WHERE pack=? AND offset>=?"
        with self._lock:
            rows = self._connection.execute(query, (pack, offset)).fetchall()
        return [(Kind(row[0]), row[1], Place(*row[2:])) for row in rows]

    def packs_named(self) -> set[int]:
        """Return the packs that records point into."""
        found: set[int] = set()
        number, query = -1, "SELECT MIN(pack) FROM records WHERE pack>?"
        while True:  # one after the other by the index: DISTINCT would read them all
            with self._lock:
                (next_,) = self._connection.execute(query, (number,)).fetchone()
            if next_ is None:
                return found
            found.add(number := int(next_))

    def living_bytes(self) -> dict[int, int]:
        """Return how many bytes of each pack are records of the index."""
        with self._lock:
            return dict(self._connection.execute("SELECT pack, SUM(length) FROM records GROUP BY pack").fetchall())

    def remove_record(self, kind: Kind, record_id: bytes) -> None:
        """Forget a record."""
        self._do("DELETE FROM records WHERE id=? AND kind=?", (record_id, int(kind)))

    def scanned(self) -> dict[int, int]:
        """Return, for each pack, up to which byte its records are in the index."""
        with self._lock:
            return dict(self._connection.execute("SELECT number, scanned FROM packs").fetchall())

    def set_scanned(self, number: int, end: int) -> None:
        """Remember up to which byte a pack's records are in the index."""
        self._do("INSERT OR REPLACE INTO packs VALUES (?, ?)", (number, end))

    def forget_pack(self, number: int) -> None:
        """Forget a pack that was removed, and the records that still point into it."""
        self._do("DELETE FROM packs WHERE number=?", (number,))
        self._do("DELETE FROM records WHERE pack=?", (number,))

    # objects -------------------------------------------------------------------------------------------------

    def object(self, object_id: bytes) -> Row | None:
        """Return what is known of an object."""
        with self._lock:
            row = self._connection.execute(
                "SELECT key, id, size, state, place, present FROM objects WHERE id=?", (object_id,)
            ).fetchone()
        return None if row is None else self._row(row)

    def whole_of(self, ids: Sequence[bytes]) -> set[bytes]:
        """Return those of these objects that are whole."""
        found: set[bytes] = set()
        for start in range(0, len(ids), _VARIABLES_MAX):
            part = ids[start : start + _VARIABLES_MAX]
            marks = ",".join("?" * len(part))
            query = f"SELECT id FROM objects WHERE state='whole' AND id IN ({marks})"
            with self._lock:
                found.update(row[0] for row in self._connection.execute(query, part))
        return found

    def objects_after(self, key: int, limit: int) -> list[Row]:
        """Return objects in the order of their keys, those after `key`."""
        query = "SELECT key, id, size, state, place, present FROM objects WHERE key > ? ORDER BY key LIMIT ?"
        with self._lock:
            rows = self._connection.execute(query, (key, limit)).fetchall()
        return [self._row(row) for row in rows]

    def whole_bytes(self) -> int:
        """Return the bytes of all whole objects."""
        with self._lock:
            return int(
                self._connection.execute("SELECT SUM(size) FROM objects WHERE state='whole'").fetchone()[0] or 0
            )

    def partial_objects(self) -> list[ObjectId]:
        """Return the objects that are not whole."""
        with self._lock:
            rows = self._connection.execute("SELECT id FROM objects WHERE state!='whole'").fetchall()
        return [ObjectId(row[0]) for row in rows]

    def is_each_packed(self) -> bool:
        """Say whether the contents that rest in packs are those of the packed objects: read once, in no order."""
        contents = self._fingerprint("SELECT id FROM records WHERE kind=3")
        return contents == self._fingerprint("SELECT id FROM objects WHERE place='packed' AND state='whole'")

    def _fingerprint(self, query: str) -> tuple[int, int]:
        """Return number and XOR of the ids that a query gives."""
        count = total = 0
        with self._lock:
            cursor = self._connection.execute(query)
            while rows := cursor.fetchmany(_FOLDED):
                count += len(rows)
                part, width = int.from_bytes(b"".join([row[0] for row in rows]), "big"), _FOLDED * HASH_BYTES * 8
                while width > HASH_BYTES * 8:  # one half over the other, until one id is left
                    width //= 2
                    part = part >> width ^ part & (1 << width) - 1
                total ^= part
        return count, total

    def packed_without_content(self) -> list[ObjectId]:
        """Return the objects that should rest in a pack and do not."""
        query = (
            "SELECT id FROM objects WHERE place='packed' AND state='whole' AND NOT EXISTS"
            " (SELECT 1 FROM records WHERE records.id=objects.id AND kind=?)"
        )
        with self._lock:
            return [ObjectId(row[0]) for row in self._connection.execute(query, (int(Kind.CONTENT),))]

    def content_without_object(self) -> list[ObjectId]:
        """Return the ids of contents that rest in a pack and of which no whole object is known."""
        query = (
            "SELECT id FROM records WHERE kind=? AND NOT EXISTS"
            " (SELECT 1 FROM objects WHERE objects.id=records.id AND state='whole')"
        )
        with self._lock:
            return [ObjectId(row[0]) for row in self._connection.execute(query, (int(Kind.CONTENT),))]

    def files_of_objects(self, first: int) -> list[Row]:
        """Return the objects that are files, of which the id begins with this byte."""
        query = (
            "SELECT key, id, size, state, place, present FROM objects"
            " WHERE id>=? AND id<? AND (place!='packed' OR state!='whole')"
        )
        end = bytes([first + 1]) if first < 255 else bytes([255]) * 33
        with self._lock:
            rows = self._connection.execute(query, (bytes([first]), end)).fetchall()
        return [self._row(row) for row in rows]

    def objects(self) -> list[Row]:
        """Return all objects."""
        with self._lock:
            rows = self._connection.execute("SELECT key, id, size, state, place, present FROM objects").fetchall()
        return [self._row(row) for row in rows]

    @staticmethod
    def _row(row: tuple[int, bytes, int, str, str, str]) -> Row:
        key, object_id, size, state, place, present = row
        # The count bounds only damage; an object has at most size+2 blocks under any cut.
        return Row(key, ObjectId(object_id), size, state == "whole", place, _runs_of(present, size + 2))

    def put_object(self, manifest: Manifest, *, whole: bool, place: str) -> None:
        """Add or change an object, and make its blocks findable."""
        with self.transaction():
            self._do(
                "INSERT INTO objects (id, size, state, place) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET state=excluded.state, place=excluded.place, "
                "present=''",
                (manifest.id, manifest.size, "whole" if whole else "partial", place),
            )
            row = self.object(manifest.id)
            assert row is not None
            self._connection.executemany(
                "INSERT OR IGNORE INTO blocks VALUES (?, ?, ?)",
                ((manifest.block(number), row.key, number) for number in range(manifest.block_count)),
            )

    def set_present(self, object_id: ObjectId, present: Bits) -> None:
        """Record which blocks of a partial object are synced."""
        self._do("UPDATE objects SET present=? WHERE id=?", (_runs_text(present), object_id))

    def remove_object(self, object_id: ObjectId) -> None:
        """Forget an object and its blocks; its manifest stays."""
        with self.transaction():
            row = self.object(object_id)
            if row is not None:
                self._do("DELETE FROM blocks WHERE object=?", (row.key,))
                self._do("DELETE FROM objects WHERE key=?", (row.key,))

    def holders(self, block: BlockId) -> list[tuple[ObjectId, int, bool]]:
        """Return objects that contain a block, its number there, and whether they are whole; whole ones first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT o.id, b.number, o.state='whole' AS whole FROM blocks b JOIN objects o ON o.key=b.object "
                "WHERE b.id=? ORDER BY whole DESC LIMIT 16",
                (block,),
            ).fetchall()
        return [(ObjectId(object_id), number, bool(whole)) for object_id, number, whole in rows]

    # quarantine ----------------------------------------------------------------------------------------------

    def add_quarantine(self, path: str, object_id: ObjectId, blocks: Iterable[int], found_ns: int) -> None:
        """Remember a file that was put aside and why."""
        self._do(
            "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?)",
            (path, object_id, " ".join(map(str, blocks)), found_ns),
        )

    def quarantined(self) -> list[tuple[str, ObjectId, list[int]]]:
        """Return the files put aside, their object and the numbers of the corrupt blocks."""
        with self._lock:
            rows = self._connection.execute("SELECT path, object, blocks FROM quarantine").fetchall()
        return [(path, ObjectId(object_id), [int(n) for n in blocks.split()]) for path, object_id, blocks in rows]

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()
