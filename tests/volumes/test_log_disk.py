import sqlite3
import threading
from pathlib import Path

import pytest

from tbshare.errors import DiskFull, InputRefused, StoreUnusable
from tbshare.peers.identity import Identity
from tbshare.volumes.entry import Entry, RefSet
from tbshare.volumes.log import Log


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def opened(home: Path) -> Log:
    """Return the log of a node alone in its cluster."""
    log = Log.open(home / "anna.db", Identity.load_or_create(home / "anna.key"), clock_ns=lambda: 7)
    if not log.cluster:
        log.create_cluster("anna")
    return log


def push(name: str, rev: int = 1) -> RefSet:
    return RefSet(volume="models", name=name, rev=rev, tree=b"x" * 32, size_bytes=1, files=1)


def test_appends_from_many_threads(home: Path) -> None:
    log = opened(home)
    found: list[Entry] = []

    def work(worker: int) -> None:
        found.extend(log.append([push(f"w{worker}", rev)]) for rev in range(1, 21))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    log = opened(home)
    assert len(found) == 160
    for worker in range(8):
        assert [version.number for version in log.state().versions("models", f"w{worker}")] == list(range(1, 21))
    stored = {entry.hash for entry in log.state().entries}
    assert {entry.hash for entry in found} <= stored
    assert log.state().entries[-1].seq == len(stored)


def test_a_newer_level_is_refused_and_left_alone(home: Path) -> None:
    opened(home).close()
    with sqlite3.connect(home / "anna.db") as connection:
        connection.execute("PRAGMA user_version=3")
    connection.close()
    before = (home / "anna.db").read_bytes()
    with pytest.raises(StoreUnusable, match="level 3") as caught:
        opened(home)
    assert "upgrade" in caught.value.cure
    assert (home / "anna.db").read_bytes() == before


def test_a_full_disk_loses_nothing(home: Path) -> None:
    log = opened(home)
    log.append([push("a")])
    before = log.state()
    with log._database.transaction() as connection:  # pyright: ignore[reportPrivateUsage]
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    log._database.rows(f"PRAGMA max_page_count={pages}")  # pyright: ignore[reportPrivateUsage]

    def fill() -> None:
        for rev in range(2, 100):
            log.append([push("b" * 90, rev)] * 20)

    with pytest.raises(DiskFull) as caught:
        fill()
    assert caught.value.cure
    log._database.rows("PRAGMA max_page_count=100000")  # pyright: ignore[reportPrivateUsage]
    stored, vector = log.state(), log.vector()
    assert set(before.entries) <= set(stored.entries)
    log.close()
    log = opened(home)
    assert log.vector() == vector
    assert log.state() == stored, "what is in memory is what is committed"
    assert log.append([push("c")]).seq == len(stored.entries) + 1


def test_pins_and_leases(home: Path) -> None:
    log = opened(home)
    one = log.pins.add(b"t" * 32, note="by hand")
    two = log.pins.add(b"u" * 32, ranges=[(0, 10), (20, 30)])
    with pytest.raises(InputRefused):
        log.pins.add(b"u" * 32, ranges=[(5, 5)])
    lease = log.leases.add(b"t" * 32, kind="run", pid=7, boot="boot", expires=float("inf"))
    other = log.leases.add(b"t" * 32, kind="path", pid=8, boot="boot", expires=100.0)
    log.close()
    log = opened(home)
    assert [(pin.id, pin.what, pin.ranges, pin.note) for pin in log.pins.list()] == [
        (one, b"t" * 32, (), "by hand"),
        (two, b"u" * 32, ((0, 10), (20, 30)), ""),
    ]
    assert [pin.id for pin in log.pins.list(b"u" * 32)] == [two]
    assert log.pins.remove(one)
    assert not log.pins.remove(one)
    assert [(held.id, held.expires) for held in log.leases.list(b"t" * 32)] == [
        (lease, float("inf")),
        (other, 100.0),
    ]
    assert log.leases.renew(other, 200.0)
    assert [dead.id for dead in log.leases.drop_dead(boot="boot", now=150.0, alive=[7, 8])] == []
    assert [dead.id for dead in log.leases.drop_dead(boot="boot", now=150.0, alive=[8])] == [lease]
    assert [dead.id for dead in log.leases.drop_dead(boot="boot", now=200.0, alive=[8])] == [other]
    again = log.leases.add(b"t" * 32, kind="run", pid=8, boot="boot", expires=float("inf"))
    assert again > other, "an id is never used twice"
    assert [dead.id for dead in log.leases.drop_dead(boot="next", now=0.0, alive=[8])] == [again]
    assert not log.leases.renew(other, 1.0)
    assert not log.leases.remove(other)
