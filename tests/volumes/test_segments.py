"""Old entries that every member has are packed; nobody notices but the disk."""

import sqlite3
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

import pytest

from tbshare.errors import LogDamaged
from tbshare.peers.identity import Identity
from tbshare.volumes.entry import Entry, KnownOp, RefSet, Save, make_entry
from tbshare.volumes.log import Log
from tbshare.volumes.log_rows import Segment, pack, unpack

numbers = count(1)


def opened(home: Path, name: str) -> Log:
    return Log.open(home / f"{name}.db", Identity.load_or_create(home / f"{name}.key"), clock_ns=lambda: 7)


def save() -> Save:
    number = next(numbers)
    return Save(volume=5, file=number, version=number, content=Random(number).randbytes(32), size=number)


def push(rev: int) -> RefSet:
    return RefSet(volume="models", name="a", rev=rev, tree=b"x" * 32, size_bytes=1, files=1)


def give(source: Log, target: Log) -> int:
    known, accepted = source.known(target.summary()), 0
    while part := source.part_for(known, 20_000):
        accepted += len(target.receive(part).accepted)
    return accepted


def segments(log: Log) -> int:
    (row,) = log._database.rows("SELECT COUNT(*) FROM segments")  # pyright: ignore[reportPrivateUsage]
    return int(str(row[0]))


def everything(log: Log, at_once: int = 1000) -> list[tuple[int, Entry]]:
    found: list[tuple[int, Entry]] = []
    while part := log.entries_after(found[-1][0] if found else 0, at_once):
        found += part
    return found


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Log, Log]]:
    """Two logs with 300 entries each, that came in turns, and refs between the files."""
    anna, bert = opened(tmp_path, "anna"), opened(tmp_path, "bert")
    anna.create_cluster("anna")
    identities = [Identity.load_or_create(tmp_path / f"{name}.key") for name in ("anna", "bert")]
    anna.add_member(identities[1].certificate, "bert")
    bert.join(anna.cluster, certificate=identities[0].certificate, name="anna")
    for turn in range(10):
        for log in (anna, bert):
            for number in range(30):
                ops: list[KnownOp] = [push(turn + 1)] if number == 7 else [save()]
                log.append(ops)
        give(anna, bert)
        give(bert, anna)
    yield anna, bert
    anna.close()
    bert.close()


def test_only_what_all_have_is_packed(pair: tuple[Log, Log], tmp_path: Path) -> None:
    anna, bert = pair
    assert anna.compact(newest_kept=10) == 0, "bert has acknowledged nothing yet"
    node = Identity.load_or_create(tmp_path / "bert.key").node
    anna.acknowledge(node, [head for head in bert.vector() if head.node == node])
    assert anna.compact(newest_kept=100_000) == 0
    before, state, vector = everything(anna), anna.state(), anna.vector()
    packed = anna.compact(newest_kept=10)
    assert 0 < packed <= 300
    assert everything(anna) == before
    assert (anna.state(), anna.vector()) == (state, vector)


def test_what_is_packed_is_read_as_before(pair: tuple[Log, Log], tmp_path: Path) -> None:
    anna, bert = pair
    for log, other in ((anna, bert), (bert, anna)):
        for node in {head.node for head in log.vector()}:
            log.acknowledge(node, other.vector())
    before, state, summary, sent = (
        everything(anna),
        anna.state(),
        anna.summary(),
        anna.missing_for([], 1 << 30),
    )
    assert anna.compact(newest_kept=10) > 500
    assert segments(anna) >= 2
    assert anna.compact(newest_kept=10) == 0, "a few more are left for later"
    for log in (anna, opened(tmp_path, "anna")):
        log.check()
        for at_once in (1, 7, 300, 10_000):
            assert everything(log, at_once) == before
        for start in (0, 1, 99, 100, 333, 600, 601, 602, 603):
            assert log.entries_after(start, 50) == [each for each in before if each[0] > start][:50]
        assert (log.state(), log.summary()) == (state, summary)
        assert log.missing_for([], 1 << 30) == sent, "the order is that of arrival"
        assert [log.hash_at(arrival) for arrival, _ in before] == [entry.hash for _, entry in before]
        assert log.receive(sent) == log.receive([]), "all are known"
        covers = log.covers([at for at in log.at() if at.node == before[0][1].node])
        assert {covers(entry) for _, entry in before if entry.node == before[0][1].node} == {True}
        assert {covers(entry) for _, entry in before if entry.node != before[0][1].node} == {False}
    log.close()
    cora = opened(tmp_path, "cora")
    identity = Identity.load_or_create(tmp_path / "cora.key")
    anna.add_member(identity.certificate, "cora")
    cora.join(anna.cluster, certificate=Identity.load_or_create(tmp_path / "anna.key").certificate, name="anna")
    assert give(anna, cora) == len(before) + 1, "a newcomer gets everything, and checks it"
    assert cora.vector() == anna.vector()
    cora.close()


def test_a_branch_from_a_packed_entry(pair: tuple[Log, Log], tmp_path: Path) -> None:
    anna, bert = pair
    identity = Identity.load_or_create(tmp_path / "bert.key")
    old = [entry for _, entry in everything(anna) if entry.node == identity.node][40]
    anna.acknowledge(identity.node, anna.vector())
    anna.compact(newest_kept=10)
    branch = make_entry(
        identity, incarnation=old.incarnation, previous=old, lamport=old.lamport + 1, time_ns=0, ops=[save()]
    )
    low = make_entry(
        identity, incarnation=old.incarnation, previous=old, lamport=old.lamport, time_ns=0, ops=[save()]
    )
    received = anna.receive([branch.encoded, low.encoded])
    assert received.accepted == (branch,)
    assert len(received.rejected) == 1
    assert len(anna.vector()) == 3
    give(anna, bert)
    assert bert.vector() == anna.vector()
    anna.close()
    anna = opened(tmp_path, "anna")
    assert anna.vector() == bert.vector()
    covers = anna.covers([at for at in anna.at() if at.hash == branch.hash])
    own = [entry for _, entry in everything(anna) if entry.node == identity.node]
    assert [entry.seq for entry in own if covers(entry)] == list(range(1, 43))
    anna.close()


@pytest.mark.parametrize("moment", ["INSERT INTO segments", "DELETE FROM entries"])
def test_a_crash_while_packing(
    pair: tuple[Log, Log], tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, bert = pair
    anna.acknowledge(bert.at()[0].node, bert.vector())
    anna.acknowledge(bert.at()[-1].node, bert.vector())
    before = everything(anna)
    database = anna._database  # pyright: ignore[reportPrivateUsage]
    name = "segments" if "segments" in moment else "entries"
    event = "INSERT" if "INSERT" in moment else "DELETE"
    with database.transaction() as connection:
        connection.execute(
            f"CREATE TRIGGER crash BEFORE {event} ON {name} BEGIN SELECT RAISE(ABORT, 'power'); END"
        )
    with pytest.raises(LogDamaged):
        anna.compact(newest_kept=10)
    assert everything(anna) == before
    with database.transaction() as connection:
        connection.execute("DROP TRIGGER crash")
    assert anna.compact(newest_kept=10) > 500
    assert everything(anna) == before


def test_a_damaged_segment_is_noticed_and_salvaged_around(pair: tuple[Log, Log], tmp_path: Path) -> None:
    anna, bert = pair
    for head in bert.vector():
        anna.acknowledge(head.node, bert.vector())
    entries = len(everything(anna))
    anna.compact(newest_kept=10)
    anna.close()
    with sqlite3.connect(tmp_path / "anna.db") as connection:
        (data,) = connection.execute("SELECT data FROM segments WHERE id = 1").fetchone()
        middle = len(data) // 2
        connection.execute(
            "UPDATE segments SET data = ? WHERE id = 1", (data[:middle] + b"!!!!" + data[middle + 4 :],)
        )
    connection.close()
    anna = opened(tmp_path, "anna")
    with pytest.raises(LogDamaged):
        everything(anna)
    with pytest.raises(LogDamaged):
        anna.check()
    anna.close()
    anna = opened(tmp_path, "anna")
    assert anna.damaged
    assert 250 < len(everything(anna)) < entries
    assert anna.cluster == bert.cluster
    give(bert, anna)
    assert len(everything(anna)) == entries
    anna.close()


def test_junk_is_no_segment() -> None:
    segment = Segment([1, 2], [5, 6], [b"a", b"b"])
    assert unpack(pack(segment)) == segment
    for junk in (b"", b"junk", pack(segment)[:-1], pack(Segment([1], [1, 2], [b"x"]))):
        with pytest.raises(LogDamaged):
            unpack(junk)
