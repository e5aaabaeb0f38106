"""A log.db that was damaged: it opens, says so, the file is kept, and nothing that could be read is lost."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tbshare.errors import LogDamaged, StoreUnusable
from tbshare.peers.exchange import Exchange
from tbshare.peers.identity import Identity
from tbshare.volumes import salvage
from tbshare.volumes.database import Database
from tbshare.volumes.entry import Entry, KnownOp, RefSet, Save
from tbshare.volumes.log import Log

FILES = 300


def opened(home: Path, name: str = "anna") -> Log:
    return Log.open(home / f"{name}.db", Identity.load_or_create(home / f"{name}.key"), clock_ns=lambda: 7)


def push(name: str, rev: int = 1) -> RefSet:
    return RefSet(volume="models", name=name, rev=rev, tree=b"x" * 32, size_bytes=1, files=1)


def save(number: int) -> Save:
    return Save(volume=5, file=number, version=number, content=number.to_bytes(32, "big"), size=number)


def filled(home: Path) -> tuple[list[Entry], bytes]:
    """Make a log of a node in a cluster with bert; return its entries and bytes."""
    log = opened(home)
    log.create_cluster("anna")
    bert = opened(home, "bert")
    log.add_member(Identity.load_or_create(home / "bert.key").certificate, "bert")
    bert.join(log.cluster, certificate=Identity.load_or_create(home / "anna.key").certificate, name="anna")
    for number in range(1, FILES):
        ops: list[KnownOp] = [save(number)] if number % 10 else [push("a", number), save(number)]
        log.append(ops)
    log.pins.add(b"t" * 32, note="by hand")
    entries = [entry for _, entry in log.entries_after(0, 10_000)]
    talk(log, bert)
    log.close()
    bert.close()
    return entries, (home / "anna.db").read_bytes()


def talk(one: Log, other: Log) -> None:
    """Let two logs speak as two daemons would, until neither has anything to say."""
    sides = {b"1": Exchange(one), b"2": Exchange(other)}
    mail = [(b"2", b"1", message) for message in sides[b"1"].joined(b"2")]
    mail += [(b"1", b"2", message) for message in sides[b"2"].joined(b"1")]
    for _ in range(1000):
        if not mail:
            return
        to, source, message = mail.pop(0)
        mail += [(peer, to, answer) for peer, answer in sides[to].received(source, message)]
    raise AssertionError("they talk for ever")


def kept(home: Path) -> list[Path]:
    found = [path for path in home.glob("anna.db.damaged-*") if path.name[-1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def check_salvaged(home: Path, entries: list[Entry], before: bytes) -> int:
    """Open the damaged log, see that it is sound, and that a peer gives back all; return how many were left."""
    log = opened(home)
    if not log.damaged:
        log.check()
        log.close()
        return len(entries)
    assert "could be read" in log.damaged
    assert log.damaged in log.attention()
    assert kept(home)[-1].read_bytes() == before, "the damaged file is kept as it is"
    left = [entry for _, entry in log.entries_after(0, 10_000)]
    assert {entry.hash for entry in left} <= {entry.hash for entry in entries}
    log.check()
    if left:
        with pytest.raises(StoreUnusable, match="read-only"):
            log.append([save(9)])
        own = log.append([push("while-damaged")])
        assert own.incarnation not in {entry.incarnation for entry in entries}, "no seq is used twice"
        assert own.seq == 1
    else:
        identity = Identity.load_or_create(home / "bert.key")
        log.join(entries[0].hash, certificate=identity.certificate, name="bert")
    bert = opened(home, "bert")
    talk(log, bert)
    assert not log.damaged, "all came back"
    assert {entry.hash for entry in entries} <= {entry.hash for _, entry in log.entries_after(0, 10_000)}
    assert log.append([save(9)])
    talk(log, bert)
    assert log.vector() == bert.vector()
    bert.close()
    log.close()
    log = opened(home)
    assert not log.damaged
    log.close()
    return len(left)


def test_a_truncated_file(tmp_path: Path) -> None:
    entries, data = filled(tmp_path)
    bert = (tmp_path / "bert.db").read_bytes()
    most = 0
    for size in (
        1,
        50,
        100,
        600,
        4095,
        4096,
        5000,
        8192,
        20_000,
        len(data) // 2,
        len(data) - 4096,
        len(data) - 1,
    ):
        (tmp_path / "anna.db").write_bytes(data[:size])
        (tmp_path / "bert.db").write_bytes(bert)
        most = max(most, check_salvaged(tmp_path, entries, data[:size]))
    assert most > FILES // 2


def test_flipped_bits_in_each_page(tmp_path: Path) -> None:
    entries, data = filled(tmp_path)
    bert = (tmp_path / "bert.db").read_bytes()
    found: list[int] = []
    for page in range(0, len(data) // 4096, 5):
        damaged = bytearray(data)
        for place in range(page * 4096, (page + 1) * 4096, 97):
            damaged[place] ^= 0x55
        (tmp_path / "anna.db").write_bytes(damaged)
        (tmp_path / "bert.db").write_bytes(bert)
        (tmp_path / "anna.db.suspect").touch()  # else some of it is only met when it is read
        found.append(check_salvaged(tmp_path, entries, bytes(damaged)))
    assert sum(found) > len(found) * len(entries) // 3, "one page takes few entries with it"


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def lose_an_entry(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM entries WHERE arrival = 150")
    connection.close()


def other_bytes(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        (encoded,) = connection.execute("SELECT encoded FROM entries WHERE arrival = 151").fetchone()
        changed = encoded.replace(b"\xa4save", b"\xa4sofa")
        connection.execute("UPDATE entries SET encoded = ? WHERE arrival = 151", (changed,))
    connection.close()


def no_table(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE branches")
    connection.close()


@pytest.mark.parametrize("damage", [garbage, lose_an_entry, other_bytes, no_table])
def test_other_damage(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    entries, _ = filled(tmp_path)
    damage(tmp_path / "anna.db")
    before = (tmp_path / "anna.db").read_bytes()
    (tmp_path / "anna.db.suspect").touch()
    left = check_salvaged(tmp_path, entries, before)
    assert kept(tmp_path)
    assert damage is not garbage or left == 0
    assert damage is not no_table or left == len(entries)
    assert not (tmp_path / "anna.db.suspect").exists()


def test_pins_come_along(tmp_path: Path) -> None:
    filled(tmp_path)
    no_table(tmp_path / "anna.db")
    log = opened(tmp_path)
    assert log.damaged
    assert [(pin.what, pin.note) for pin in log.pins.list()] == [(b"t" * 32, "by hand")]
    log.close()


def test_damage_that_is_met_later_is_dealt_with_at_the_next_start(tmp_path: Path) -> None:
    filled(tmp_path)
    other_bytes(tmp_path / "anna.db")
    log = opened(tmp_path)
    assert not log.damaged
    with pytest.raises(LogDamaged) as caught:
        log.check()
    assert caught.value.cure
    log.close()
    log = opened(tmp_path)
    assert log.damaged
    assert len(log.entries_after(0, 1000)) == 150
    log.close()


def test_an_empty_file_is_a_new_log(tmp_path: Path) -> None:
    (tmp_path / "anna.db").touch()
    log = opened(tmp_path)
    assert not log.damaged
    log.create_cluster("anna")
    log.close()


@pytest.mark.parametrize("cut", ["before the move", "between", "after the move"])
def test_power_lost_while_salvaging(tmp_path: Path, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = filled(tmp_path)
    (tmp_path / "anna.db").write_bytes(data[: len(data) // 2])

    class Cut(Exception):  # noqa: N818
        pass

    def power_cut(*_: object) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        if cut == "before the move":
            patched.setattr(salvage, "_move", power_cut)
        elif cut == "between":
            patched.setattr(salvage, "sync_directory", power_cut)
        else:
            patched.setattr(Path, "rename", power_cut)
        with pytest.raises(Cut):
            opened(tmp_path)
    log = opened(tmp_path)
    assert log.damaged
    assert len(log.entries_after(0, 1000)) > 50
    assert len(kept(tmp_path)) == 1
    assert kept(tmp_path)[0].read_bytes() == data[: len(data) // 2]
    log.close()


def test_a_file_that_is_in_use_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr("tbshare.volumes.database.BUSY_SECONDS", 0.01)
    other = sqlite3.connect(tmp_path / "anna.db", isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnusable, match="locked"):
        opened(tmp_path)
    other.close()
    assert not kept(tmp_path)
    Database(tmp_path / "anna.db").close()
