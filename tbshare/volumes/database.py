"""log.db as a file: opened, checked and migrated; SQLite's errors in our words.

WAL with synchronous=FULL: a committed transaction survives a power cut. `fullfsync` makes that true on macOS,
where fsync alone leaves the bytes in the disk's cache; elsewhere it does nothing.
"""

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Final

from tbshare.errors import DiskFull, StoreUnusable

SCHEMA_LEVEL: Final = 1  # in user_version; a store of a newer level is not touched
BUSY_SECONDS: Final = 5.0

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    arrival INTEGER PRIMARY KEY,        -- a parent, and the entry that made its author a member, come before it
    hash BLOB NOT NULL UNIQUE,
    encoded BLOB NOT NULL
);
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
            self._connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={SCHEMA_LEVEL};COMMIT;")

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
                raise _translated(error, self.path) from error

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Return all rows of a query."""
        with self.lock:
            try:
                return list(self._connection.execute(query, values).fetchall())
            except sqlite3.Error as error:
                raise _translated(error, self.path) from error


def _translated(error: sqlite3.Error, path: Path) -> StoreUnusable | DiskFull:
    """Return SQLite's error as ours."""
    if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
        return DiskFull(f"the disk is full; nothing was written to {path.name}", cure="tbshare gc --now")
    if isinstance(error, sqlite3.OperationalError | sqlite3.ProgrammingError):
        return StoreUnusable(f"{path.name} cannot be used: {error}", cure="tbshare status")
    return StoreUnusable(f"{path.name} is damaged: {error}", cure="tbshare verify --repair")
