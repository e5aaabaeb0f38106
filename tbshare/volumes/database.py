"""log.db as a file: opened, checked and migrated; SQLite's errors in our words.

WAL with synchronous=FULL: a committed transaction survives a power cut. `fullfsync` makes that true on macOS,
where fsync alone leaves the bytes in the disk's cache; elsewhere it does nothing.
"""

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Final

from tbshare.errors import DiskFull, LogDamaged, StoreUnusable

SCHEMA_LEVEL: Final = 2  # in user_version; a store of a newer level is not touched
BUSY_SECONDS: Final = 5.0
_SIGNS_OF_DAMAGE: Final = frozenset({"SQLITE_ERROR", "SQLITE_IOERR_SHORT_READ"})  # no such table, for one

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
ENTRIES_SCHEMA: Final = """
CREATE TABLE branches (
    id INTEGER PRIMARY KEY, node BLOB NOT NULL, incarnation BLOB NOT NULL,
    parent INTEGER NOT NULL, fork_seq INTEGER NOT NULL  -- 0: it begins a log
);
CREATE TABLE entries (
    arrival INTEGER PRIMARY KEY,        -- a parent, and the entry that made its author a member, come before it
    branch INTEGER NOT NULL, seq INTEGER NOT NULL,
    concerns_cluster INTEGER NOT NULL,
    hash BLOB NOT NULL,
    encoded BLOB NOT NULL
);
CREATE UNIQUE INDEX entries_place ON entries (branch, seq);
CREATE INDEX entries_cluster ON entries (concerns_cluster) WHERE concerns_cluster = 1;
CREATE TABLE segments (
    id INTEGER PRIMARY KEY, branch INTEGER NOT NULL,
    first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL,
    first_arrival INTEGER NOT NULL, last_arrival INTEGER NOT NULL,
    entries INTEGER NOT NULL, data BLOB NOT NULL
);
"""
_HELD_SCHEMA: Final = """
CREATE TABLE acknowledgements (
    peer BLOB NOT NULL, node BLOB NOT NULL, incarnation BLOB NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL
);
CREATE INDEX acknowledgements_peer ON acknowledgements (peer);
CREATE TABLE pins (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    what BLOB NOT NULL, ranges BLOB NOT NULL, note TEXT NOT NULL, created_ns INTEGER NOT NULL
);
CREATE TABLE leases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    what BLOB NOT NULL, kind TEXT NOT NULL, pid INTEGER NOT NULL, boot TEXT NOT NULL, expires REAL NOT NULL
);
CREATE TABLE attention (id INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, line TEXT NOT NULL UNIQUE);
"""


class Database:
    """One connection to log.db, used by several threads in turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = RLock()
        try:
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None
            )
        except sqlite3.Error as error:
            raise _translated(error, path) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise _translated(error, path) from error
        except StoreUnusable:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        level = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if level > SCHEMA_LEVEL:
            raise StoreUnusable(
                f"{self.path.name} is of level {level}, this version of tbshare knows {SCHEMA_LEVEL}",
                cure="upgrade tbshare on this node",
            )
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "fullfsync=ON", "checkpoint_fullfsync=ON"):
            self._connection.execute(f"PRAGMA {pragma}").fetchall()
        if level == 0:
            # One transaction with the level: a crash leaves either nothing or all of it.
            self._connection.executescript(
                f"BEGIN;{_SCHEMA}{ENTRIES_SCHEMA}{_HELD_SCHEMA}PRAGMA user_version={SCHEMA_LEVEL};COMMIT;"
            )
            level = SCHEMA_LEVEL
        self.level = level

    def copy(self, name: str) -> None:
        """Make a copy of the file beside it; one that is there is replaced."""
        with self.lock, closing(sqlite3.connect(self.path.with_name(name))) as target:
            self._connection.backup(target)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self.lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection, None, None]:
        """Hold the lock and one transaction: durable when the block ends, undone when it raises."""
        with self.lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.rollback()
                    raise
                self._connection.commit()
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.rollback()
                raise self._told(error) from error

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Return all rows of a query."""
        with self.lock:
            try:
                return list(self._connection.execute(query, values).fetchall())
            except sqlite3.Error as error:
                raise self._told(error) from error

    def _told(self, error: sqlite3.Error) -> StoreUnusable | DiskFull:
        """Return SQLite's error as ours; the next start looks at all of a file that is damaged."""
        told = _translated(error, self.path)
        if isinstance(told, LogDamaged):
            self.suspect()
        return told

    def suspect(self) -> None:
        """Have the next start read all of the file."""
        with suppress(OSError):
            suspicion_of(self.path).touch()


def suspicion_of(path: Path) -> Path:
    """Return the file whose presence says that a database has shown damage."""
    return path.with_name(f"{path.name}.suspect")


def _translated(error: sqlite3.Error, path: Path) -> StoreUnusable | DiskFull:
    """Return SQLite's error as ours."""
    if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
        return DiskFull(f"the disk is full; nothing was written to {path.name}", cure="tbshare gc --now")
    unusable = isinstance(error, sqlite3.OperationalError | sqlite3.ProgrammingError)
    if unusable and getattr(error, "sqlite_errorname", "") not in _SIGNS_OF_DAMAGE:
        return StoreUnusable(f"{path.name} cannot be used: {error}", cure="tbshare status")
    return LogDamaged(f"{path.name} is damaged: {error}", cure="tbshare verify --repair")
