"""A log.db of level 1, as the first version wrote it."""

import sqlite3
from pathlib import Path

import pytest

from tbshare.errors import StoreUnusable
from tbshare.peers.identity import Identity
from tbshare.volumes.database import Database
from tbshare.volumes.entry import Entry, Genesis, MemberAdd, RefSet, make_entry
from tbshare.volumes.log import Log
from tbshare.volumes.upgrade import upgrade

LEVEL_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (arrival INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, encoded BLOB NOT NULL);
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
PRAGMA user_version=1;
"""
INCARNATION = b"i" * 32


def level_1(home: Path, *, entries: int = 2500) -> list[Entry]:
    """Write a log.db of level 1: a chain, and a branch from its 40th entry."""
    identity = Identity.load_or_create(home / "anna.key")
    genesis = (
        Genesis(name="lab", nonce=b"n" * 32),
        MemberAdd(node=identity.node, certificate=identity.certificate, name="anna", role="admin"),
    )
    made: list[Entry] = []
    for number in range(entries):
        push = RefSet(volume="models", name="a", rev=number + 1, tree=b"x" * 32, size_bytes=1, files=1)
        previous = made[39] if number == entries - 1 else made[-1] if made else None
        made.append(
            make_entry(
                identity,
                incarnation=INCARNATION,
                previous=previous,
                lamport=number + 1,
                time_ns=0,
                ops=[push] if number else genesis,
            )
        )
    connection = sqlite3.connect(home / "anna.db")
    connection.executescript(LEVEL_1)
    rows = [(entry.hash, entry.encoded) for entry in made]
    connection.executemany("INSERT INTO entries (hash, encoded) VALUES (?, ?)", rows)
    meta = [("cluster", made[0].hash), ("incarnation", b"j" * 32)]
    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
    connection.execute(
        "INSERT INTO pins (what, ranges, note, created_ns) VALUES (?, ?, 'mine', 0)", (b"t" * 32, b"\x90")
    )
    last = made[-1]
    connection.execute(
        "INSERT INTO acknowledgements VALUES (?, ?, ?, ?, ?)",
        (b"p" * 32, last.node, last.incarnation, last.seq, last.hash),
    )
    connection.commit()
    connection.close()
    return made


def opened(home: Path) -> Log:
    return Log.open(home / "anna.db", Identity.load_or_create(home / "anna.key"), clock_ns=lambda: 7)


def test_everything_comes_along(tmp_path: Path) -> None:
    made = level_1(tmp_path)
    before = (tmp_path / "anna.db").read_bytes()
    log = opened(tmp_path)
    assert not log.damaged
    assert log.entries_after(0, 10_000) == list(enumerate(made, 1))
    assert {head.hash for head in log.vector()} == {made[-2].hash, made[-1].hash}
    assert log.cluster == made[0].hash
    assert [pin.note for pin in log.pins.list()] == ["mine"]
    assert [head.hash for head in log.acknowledged(b"p" * 32)] == [made[-1].hash]
    log.check()
    again = log.append([RefSet(volume="models", name="b", rev=1, tree=b"x" * 32, size_bytes=1, files=1)])
    assert (again.seq, again.incarnation, again.lamport) == (1, b"j" * 32, len(made) + 1)
    log.close()
    with sqlite3.connect(tmp_path / "anna.db.level-1") as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (1,)
        assert copy.execute("SELECT COUNT(*) FROM entries").fetchone() == (len(made),)
    copy.close()
    assert before[:16] == b"SQLite format 3\0"
    log = opened(tmp_path)
    assert len(log.entries_after(0, 10_000)) == len(made) + 1
    log.close()


def test_a_crash_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = level_1(tmp_path, entries=100)
    database = Database(tmp_path / "anna.db")
    with monkeypatch.context() as patched:
        patched.setattr("tbshare.volumes.upgrade.SCHEMA_LEVEL", "not a number;")
        with pytest.raises(StoreUnusable):
            upgrade(database)
    database.close()
    with sqlite3.connect(tmp_path / "anna.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()
    log = opened(tmp_path)
    assert len(log.entries_after(0, 1000)) == len(made)
    log.close()


def test_a_damaged_one_is_salvaged(tmp_path: Path) -> None:
    made = level_1(tmp_path, entries=100)
    with sqlite3.connect(tmp_path / "anna.db") as connection:
        connection.execute("DELETE FROM entries WHERE arrival = 60")
    connection.close()
    log = opened(tmp_path)
    assert log.damaged
    assert log.entries_after(0, 1000)[:59] == list(enumerate(made[:59], 1))
    assert len(log.entries_after(0, 1000)) == 60, "and the other branch"
    assert log.cluster == made[0].hash
    log.close()
