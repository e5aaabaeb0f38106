"""One volume's namespace in SQLite: a cache of the fold, which can be made again from the log at any time.

A batch loads the rows it touches, folds them with `namespace`, and writes back those that differ, in one
transaction with the position in the log. Rows are stored as msgpack; only what is searched for is a column.
`synchronous=NORMAL`: with the power the last batches may go, and they are folded again, as the position says.
"""

import math
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from threading import RLock
from typing import Final, Self, TypeVar

import msgspec

from tbshare.errors import DiskFull, StoreUnusable
from tbshare.volumes.entry import Entry, FileOp
from tbshare.volumes.namespace import Namespace
from tbshare.volumes.recent import Lately, Recent, Written
from tbshare.volumes.rows import (
    NO_STAMP,
    Changes,
    Children,
    DirectoryRow,
    FileRow,
    MoveRow,
    NameRow,
    VersionRow,
)
from tbshare.volumes.stored import (
    LEVEL,
    LOST,
    SCHEMA,
    Batch,
    Flush,
    Load,
    directory_of,
    file_of,
    insert_rows,
    name_of,
    version_of,
)

__all__ = ["Changes", "Children", "Here", "Superseded", "Tables"]

WAL_PAGES: Final = 32_768  # that a batch may find in the write-ahead log before it is copied into the file
PART: Final = 1000  # rows that an iterator reads at once
_OWNERS: Final = "owner "  # before the keys of facts that are not ours
Row = TypeVar("Row", NameRow, DirectoryRow, FileRow, VersionRow, MoveRow)


class Here(IntEnum):
    """Whether the bytes of a version are on this node; no part of the fold."""

    WANTED = 0
    HERE = 1
    EVICTED = 2  # given up, peers have them
    EXPIRED = 3  # given up for good: beyond the history to keep


class Superseded(msgspec.Struct, frozen=True):
    """A version that is no longer needed for what is shown: another follows it, or its file has no living name."""

    row: VersionRow
    here: Here
    since: float  # on the volume's clock


class Tables:
    """The tables of one volume. Thread-safe; reads do not wait for a batch that is being folded."""

    def __init__(self, path: Path | str) -> None:
        """Open the tables at `path`, or make them; `open` is the same. StoreUnusable when they are damaged."""
        self.path = Path(path)
        self._write_lock = RLock()
        self._read_lock = RLock()
        self._recent = Recent()
        self._writer = self._reader = self._connect(str(path))
        try:
            with self._translated():
                self._prepare()
                if str(path) == ":memory:":
                    self._read_lock = self._write_lock
                else:
                    self._reader = self._connect(str(path))
                    self._reader.execute("SELECT 1 FROM facts").fetchall()  # it reads on when the file is gone
                facts = dict(self._writer.execute("SELECT key, value FROM facts").fetchall())
                self._position = int(facts.get("position", 0))
                self._clashes: tuple[int, int, tuple[tuple[int, bytes], ...]] | None = None
                self._last_move = bytes(facts.get("last_move", NO_STAMP))
                self._totals = int(facts.get("files", 0)), int(facts.get("bytes", 0))
                self._clock = float(facts.get("clock", 0.0))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the tables at `path` (or ":memory:"), or make them; StoreUnusable when they must be made again."""
        return cls(path)

    def _connect(self, path: str) -> sqlite3.Connection:
        with self._translated():
            return sqlite3.connect(path, check_same_thread=False, isolation_level=None)

    def _prepare(self) -> None:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            f"wal_autocheckpoint={WAL_PAGES}",
            "cache_size=-64000",
        ):
            self._writer.execute(f"PRAGMA {pragma}").fetchall()
        (level,) = self._writer.execute("PRAGMA user_version").fetchone()
        if level == 0:
            self._writer.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version={LEVEL};COMMIT;")
        elif level != LEVEL:
            raise StoreUnusable(f"{self.path.name} is of level {level}, not {LEVEL}", cure="tbshare restart")

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
                text = f"the disk is full; nothing was written to {self.path.name}"
                raise DiskFull(text, cure="tbshare gc --now") from error
            raise StoreUnusable(f"{self.path.name} is damaged: {error}", cure="tbshare restart") from error
        except msgspec.DecodeError as error:
            raise StoreUnusable(f"{self.path.name} is damaged: {error}", cure="tbshare restart") from error

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def intact(self) -> bool:
        """Read all of the file and say whether it holds together; if not, it is to be made again."""
        try:
            ((answer,),) = self._rows("PRAGMA quick_check(1)")
        except StoreUnusable:
            return False
        return str(answer) == "ok"

    # the fold ------------------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The arrival of the last entry of the log that was folded; 0 at the start."""
        return self._position

    def fold(
        self,
        batch: Iterable[tuple[Entry, Sequence[tuple[int, FileOp]]]],
        position: int,
        here: Callable[[VersionRow], int] | None = None,
        facts: Mapping[str, bytes] | None = None,
    ) -> Changes:
        """Fold ops in and return what they touched; with the position and the owner's `facts` in one transaction.

        `here` says of each new version whether its bytes are on this node; without it they are wanted.
        """
        entries = list(batch)
        with self._write_lock, self._translated():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                try:
                    space, changes, written = self._fold(entries, here, trusting=True)
                except sqlite3.IntegrityError:  # some version came again
                    self._writer.execute("ROLLBACK")
                    self._writer.execute("BEGIN IMMEDIATE")
                    space, changes, written = self._fold(entries, here, trusting=False)
                self._set_facts(position, space, facts or {})
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            self._position = position
            self._last_move, self._totals = space.last_move, space.totals()
            self._recent.wrote(written)
        return changes

    def _fold(
        self, batch: Batch, here: Callable[[VersionRow], int] | None, *, trusting: bool
    ) -> tuple[Namespace, Changes, Written]:
        load = Load(self._writer, self._recent)
        space = Namespace(load, trusting=trusting)
        space.last_move, (space.files_alive, space.bytes_alive) = self._last_move, self._totals
        load.batch(space, batch)
        changes = space.fold(batch)
        flush = Flush(self._writer, load, space)
        flush.all(changes, here, self._clock)
        return space, changes, flush.written

    def _set_facts(self, position: int, space: Namespace, facts: Mapping[str, bytes]) -> None:
        ours: dict[str, object] = {
            "position": position,
            "files": space.files_alive,
            "bytes": str(space.bytes_alive),  # of absurd sizes more than an integer of SQLite holds
        }
        if space.last_move != self._last_move:
            ours["last_move"] = space.last_move
        rows = [*ours.items(), *[(_OWNERS + key, value) for key, value in facts.items()]]
        insert_rows(self._writer, "INSERT OR REPLACE INTO facts", 2, rows)

    def fact(self, key: str) -> bytes:
        """Return what the owner noted with a batch; empty when nothing."""
        rows = self._rows("SELECT value FROM facts WHERE key = ?", _OWNERS + key)
        return rows[0][0] if rows else b""

    def note(self, key: str, value: bytes) -> None:
        """Note something for the owner, by itself."""
        with self._write_lock, self._translated():
            self._writer.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (_OWNERS + key, value))

    @property
    def clock(self) -> float:
        """Seconds for which this volume was open, by `tick`: what the age of a version is counted on."""
        return self._clock

    def tick(self, seconds: float) -> None:
        """Let the clock run on; what was stored of it survives a restart."""
        with self._write_lock, self._translated():
            self._clock += seconds
            self._writer.execute("INSERT OR REPLACE INTO facts VALUES ('clock', ?)", (self._clock,))

    def take_over(self, before: "Tables") -> None:
        """Take from tables that these replace what no log says: the clock, and where the bytes of versions are.

        What was given up for good and is shown now is wanted again.
        """
        aging = "file IN (SELECT id FROM files WHERE flags >= 2)"  # of others it is found out again
        marks = before._rows(f"SELECT here, arrived, file, version FROM versions WHERE here > 1 OR {aging}")
        lost = before._rows("SELECT lost, id FROM files WHERE lost IS NOT NULL")
        expired = {(int(file), int(version)) for here, _, file, version in marks if int(here) == Here.EXPIRED}
        shown = expired - {(one.row.file, one.row.version) for one in self.superseded()} if expired else expired
        self.tick(before.clock - self._clock)
        with self._write_lock, self._translated():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._writer.executemany(
                    "UPDATE versions SET here = ?, arrived = ? WHERE file = ? AND version = ?", marks
                )
                self._writer.executemany("UPDATE files SET lost = ? WHERE id = ? AND lost IS NOT NULL", lost)
                self._writer.executemany("UPDATE versions SET here = 0 WHERE file = ? AND version = ?", shown)
            finally:
                self._writer.execute("COMMIT")

    # reads ---------------------------------------------------------------------------------------------------

    def _rows(self, query: str, *values: object) -> list[tuple[bytes, ...]]:
        with self._read_lock, self._translated():
            return self._reader.execute(query, values).fetchall()

    def _one(self, query: str, decode: Callable[[bytes], Row], *values: object) -> Row | None:
        rows = self._rows(query, *values)
        with self._translated():
            return decode(rows[0][0]) if rows else None

    @staticmethod
    def _recently(rows: Lately[int, bytes], number: int, decode: Callable[[bytes], Row]) -> Row | None:
        raw = rows.get(number)
        return None if raw is None else decode(raw)

    def children(self, directory: int) -> Children:
        """Return what lives in a directory, in the order of keys."""
        return self._children("parent = ? AND alive = 1", directory)

    def child(self, directory: int, key: bytes) -> Children:
        """Return what lives in a directory under names of this `clash_key`: one, or several that clash."""
        under, writes = (directory, key), self._recent.writes
        recent = self._recent.child(under)
        if recent is None:
            rows = self._rows(  # one query: this is asked for each part of each path
                "SELECT names.id, file, names.row, files.row FROM names JOIN files ON files.id = names.file"
                " WHERE parent = ?1 AND alive = 1 AND key = ?2 UNION ALL"
                " SELECT id, 0, row, x'' FROM directories WHERE parent = ?1 AND alive = 1 AND key = ?2",
                directory,
                key,
            )
            if len(rows) > 1:
                rows.sort()
            names = {(int(name), int(file)): (row, of_file) for name, file, row, of_file in rows if of_file}
            directories = {int(number): row for number, _, row, of_file in rows if not of_file}
            self._recent.note_child(under, names, directories, writes)
            recent = list(names.values()), list(directories.values())
        with self._translated():
            return Children(
                [(name_of(row), file_of(file)) for row, file in recent[0]],
                [directory_of(row) for row in recent[1]],
            )

    def dead_children(self, directory: int, key: bytes | None = None) -> Children:
        """Return what was last in a directory, under this `clash_key` if one is given, and was removed."""
        if key is None:
            return self._children("parent = ? AND alive = 0", directory)
        return self._children("parent = ? AND alive = 0 AND key = ?", directory, key)

    def _children(self, where: str, *values: object) -> Children:
        names = self._rows(
            "SELECT names.row, files.row FROM names JOIN files ON files.id = names.file"
            f" WHERE {where} ORDER BY key, names.id",
            *values,
        )
        directories = self._rows(f"SELECT row FROM directories WHERE {where} ORDER BY key, id", *values)
        with self._translated():
            return Children(
                [(name_of(name), file_of(file)) for name, file in names],
                [directory_of(row) for (row,) in directories],
            )

    def directory(self, directory: int) -> DirectoryRow | None:
        """Return the row of a directory, living or not; None when no op named it. The root always has one."""
        row = self._recently(self._recent.directories, directory, directory_of)
        row = row or self._one("SELECT row FROM directories WHERE id = ?", directory_of, directory)
        return DirectoryRow(0, alive=True) if row is None and not directory else row

    def file(self, file: int) -> FileRow | None:
        """Return the row of a file; None when no op named it."""
        row = self._recently(self._recent.files, file, file_of)
        return row or self._one("SELECT row FROM files WHERE id = ?", file_of, file)

    def name(self, name: int) -> NameRow | None:
        """Return the row of a name, living or not; None when no op named it."""
        row = self._recently(self._recent.names, name, name_of)
        return row or self._one("SELECT row FROM names WHERE id = ?", name_of, name)

    def depth_below(self, directory: int, most: int) -> int:
        """Return how many names the longest path in a directory has, without looking further down than `most`."""
        rows = self._rows(
            "WITH RECURSIVE below(id, depth) AS (SELECT ?1, 0 UNION ALL"
            " SELECT directories.id, depth + 1 FROM below JOIN directories ON directories.parent = below.id"
            " WHERE alive = 1 AND depth < ?2)"
            " SELECT max(depth + EXISTS (SELECT 1 FROM names WHERE parent = below.id AND alive = 1)) FROM below",
            directory,
            most,
        )
        return int(rows[0][0])

    def names_of(self, file: int) -> list[NameRow]:
        """Return the names of a file, living or not, the oldest first."""
        row = self.file(file)
        names = [self.name(name) for name in row.names] if row else []
        return sorted((name for name in names if name is not None), key=lambda name: name.stamp)

    def versions(self, file: int) -> list[VersionRow]:
        """Return all versions of a file, the newest first."""
        rows = self._rows("SELECT row FROM versions WHERE file = ? AND version >= 0", file)
        with self._translated():
            return sorted((version_of(row) for (row,) in rows), key=lambda row: row.stamp, reverse=True)

    def version(self, file: int, version: int) -> VersionRow | None:
        """Return one version of a file."""
        return self._one("SELECT row FROM versions WHERE file = ? AND version = ?", version_of, file, version)

    def totals(self) -> tuple[int, int]:
        """Return how many files there are to be seen, and the logical bytes of their shown heads."""
        return self._totals

    def conflicts(self, limit: int = 1000, after: int = 0) -> list[FileRow]:
        """Return living files that show several heads, by id, those after `after`."""
        rows = self._rows("SELECT row FROM files WHERE flags & 1 AND id > ? ORDER BY id LIMIT ?", after, limit)
        with self._translated():
            return [file_of(row) for (row,) in rows]

    def clashes(self, limit: int = 1000) -> list[tuple[int, bytes]]:
        """Return (directory, `clash_key`) of names that several living files or directories have."""
        position, known = self._position, self._clashes
        if known is not None and known[:2] == (position, limit):  # `status` asks, and it reads a whole index
            return list(known[2])
        several = "GROUP BY parent, alive, key HAVING count(*) > 1 AND max(alive) = 1"  # in the order of the index
        rows = self._rows(
            f"SELECT parent, key FROM (SELECT parent, key FROM names {several}"
            f" UNION ALL SELECT parent, key FROM directories WHERE parent IS NOT NULL {several}"
            " UNION ALL SELECT directories.parent, directories.key FROM directories CROSS JOIN names"
            " ON names.parent = directories.parent AND names.alive = 1 AND names.key = directories.key"
            " WHERE directories.alive = 1) LIMIT ?",
            limit,
        )
        found = list(dict.fromkeys([(int(parent), key) for parent, key in rows]))
        self._clashes = position, limit, tuple(found)
        return found

    # where bytes are -----------------------------------------------------------------------------------------

    def here(self, file: int, version: int) -> Here | None:
        """Return whether the bytes of a version are on this node; None when there is no such version."""
        rows = self._rows("SELECT here FROM versions WHERE file = ? AND version = ?", file, version)
        return Here(int(rows[0][0])) if rows else None

    def wanted(self, limit: int = 1000, after: tuple[int, int] = (-1, 0)) -> list[VersionRow]:
        """Return versions whose bytes are wanted here, those after the (file, version) `after`."""
        rows = self._rows(
            "SELECT row FROM versions WHERE here = 0 AND (file, version) > (?, ?) ORDER BY file, version LIMIT ?",
            *after,
            limit,
        )
        with self._translated():
            return [version_of(row) for (row,) in rows]

    def mark(self, versions: Iterable[tuple[int, int]], here: int) -> None:
        """Remember of versions (file, version) whether their bytes are on this node."""
        with self._write_lock, self._translated():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._writer.executemany(
                    "UPDATE versions SET here = ? WHERE file = ? AND version = ?",
                    ((int(here), file, version) for file, version in versions),
                )
            finally:
                self._writer.execute("COMMIT")

    def all_versions(self, *here: int) -> Iterator[VersionRow]:
        """Yield every version, or those with one of these marks: what garbage collection asks.

        Read in parts, each from the state there is then.
        """
        where = f"here IN ({','.join(str(int(mark)) for mark in here)}) AND " if here else ""
        after = (-1, -1)
        while True:
            rows = self._rows(
                f"SELECT row FROM versions WHERE {where}(file, version) > (?, ?) ORDER BY file, version LIMIT ?",
                *after,
                PART,
            )
            with self._translated():
                part = [version_of(row) for (row,) in rows]
            yield from part
            if len(part) < PART:
                return
            after = part[-1].file, part[-1].version

    def superseded(self) -> Iterator[Superseded]:
        """Yield every version that is no longer needed for what is shown, with the clock since when.

        Since its first child came, or since its file lost its last name: for a head, and if that was earlier.
        Read file by file, each as it is then.
        """
        after = 0
        while True:
            rows = self._rows("SELECT id FROM files WHERE flags >= 2 AND id > ? ORDER BY id LIMIT ?", after, PART)
            for (number,) in rows:
                yield from self._superseded_of(int(number))
            if len(rows) < PART:
                return
            after = int(rows[-1][0])

    def _superseded_of(self, file: int) -> list[Superseded]:
        found = self._rows(
            "SELECT versions.row, here, arrived, flags, lost FROM versions JOIN files ON id = file WHERE file = ?",
            file,
        )
        with self._translated():
            rows = [(version_of(row), Here(int(here)), float(arrived)) for row, here, arrived, _, _ in found]
        lost = float(found[0][4]) if found and int(found[0][3]) & LOST else math.inf
        since: dict[int, float] = {}
        for row, _, arrived in rows:
            for parent in row.parents:
                since[parent] = min(arrived, since.get(parent, lost))
        return [
            Superseded(row, here, max(arrived, began))
            for row, here, arrived in rows
            if (began := since.get(row.version, lost)) < math.inf
        ]
