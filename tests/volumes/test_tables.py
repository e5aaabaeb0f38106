import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tbshare.errors import StoreUnusable
from tbshare.volumes.entry import Describe, FileOp, Move, Place, Remove, Save
from tbshare.volumes.rows import DirectoryRow, FileRow, NameRow, VersionRow
from tbshare.volumes.shown import clash_key
from tbshare.volumes.stored import Load
from tbshare.volumes.tables import PART, Here, Tables
from tests.volumes.histories import VOLUME, Author, Told, deliveries, histories
from tests.volumes.reference_fold import Reference, reference


def same(tables: Tables, expected: Reference) -> None:
    """Check every row and every listing against the reference."""
    for number, name in expected.names.items():
        assert (tables.name(number) or NameRow(number)) == name
    for number, file in expected.files.items():
        assert (tables.file(number) or FileRow(number)) == file
        mine = {key: row for key, row in expected.versions.items() if row.file == number}
        assert {key: tables.version(*key) for key in mine} == mine
        versions = [row for row in mine.values() if row.contents != "xattr"]
        assert tables.versions(number) == sorted(versions, key=lambda row: row.stamp, reverse=True)
        assert {row.id for row in tables.names_of(number)} == set(file.names)
    for number, directory in expected.directories.items():
        assert (tables.directory(number) or DirectoryRow(number, alive=number == 0)) == directory
        listing(tables, number, expected)
    assert tables.totals() == expected.totals
    forked = [file.id for file in expected.files.values() if file.weight >= 0 and len(file.shown_heads()) > 1]
    assert [row.id for row in tables.conflicts()] == sorted(forked)


def listing(tables: Tables, directory: int, expected: Reference) -> None:
    for alive, found in ((True, tables.children(directory)), (False, tables.dead_children(directory))):
        named = [row for row in expected.names.values() if row.file and row.parent == directory]
        names = {row.id for row in named if row.alive == alive}
        directories = {
            row.id
            for row in expected.directories.values()
            if row.stamp and row.parent == directory and row.alive == alive
        }
        assert {name.id for name, _ in found.names} == names
        assert all(file == expected.files[name.file] for name, file in found.names)
        assert {row.id for row in found.directories} == directories
        names_found = [name.name for name, _ in found.names] + [row.name for row in found.directories]
        for key in {clash_key(name) for name in names_found}:
            child = tables.child(directory, key) if alive else tables.dead_children(directory, key)
            assert child.directories == [row for row in found.directories if clash_key(row.name) == key]
            assert child.names == [pair for pair in found.names if clash_key(pair[0].name) == key]


@settings(max_examples=250, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])
@given(st.data())
def test_any_order_any_batches_any_doubles(data: st.DataObject) -> None:
    entries = data.draw(histories())
    tables = Tables.open(":memory:")
    try:
        for position, batch in enumerate(data.draw(deliveries(entries)), 1):
            tables.fold(batch, position)
            assert tables.position == position
        same(tables, reference(entries))
    finally:
        tables.close()


# ---- as a file --------------------------------------------------------------------------------------------


def written(author: Author, *ops: FileOp) -> Told:
    return author.write(author.written + 1, *ops)


def save(author: Author, file: int, *parents: int, content: bytes = b"x") -> Save:
    return Save(volume=VOLUME, file=file, version=author.ids.new(), content=content * 32, parents=parents, size=3)


def place(author: Author, name: int, file: int) -> Place:
    return Place(volume=VOLUME, id=name, place=author.ids.new(), file=file, name=b"f%d" % name)


def test_a_file_that_is_opened_again_goes_on_where_it_was(tmp_path: Path) -> None:
    anna = Author(1)
    one, two = save(anna, 8), Move(volume=VOLUME, id=1, place=anna.ids.new(), name=b"d")
    told = [written(anna, one, place(anna, 9, 8)), written(anna, two)]
    tables = Tables.open(tmp_path / "v.db")
    tables.fold(told, 5, facts={"rules": b"r"})
    tables.tick(2.5)
    tables.close()
    tables = Tables.open(tmp_path / "v.db")
    assert (tables.position, tables.fact("rules"), tables.fact("position"), tables.clock) == (
        5,
        b"r",
        b"",
        2.5,
    )
    late = Move(volume=VOLUME, id=1, place=anna.ids.new(), name=b"e")
    told.append(anna.write(1, late))
    tables.fold(told[2:], 6)
    tables.fold([], 7)
    assert tables.position == 7
    same(tables, reference(told))
    tables.close()
    tables.close()


def test_a_batch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    anna = Author(1)
    tables = Tables.open(tmp_path / "v.db")

    def fails(_row: VersionRow) -> int:
        raise OSError("what is asked was not there")

    one = written(anna, save(anna, 8), place(anna, 9, 8))
    with pytest.raises(OSError, match="not there"):
        tables.fold([one], 1, fails, facts={"rules": b"r"})
    assert (tables.position, tables.totals(), tables.fact("rules")) == (0, (0, 0), b"")
    assert not tables.children(0)
    tables.fold([one], 1)
    same(tables, reference([one]))
    tables.close()


def test_a_version_that_comes_again_is_found_out_when_it_is_stored() -> None:
    """A batch trusts that its versions are new; the second time it is folded again without that trust."""
    anna = Author(1)
    first = save(anna, 8)
    told = [written(anna, first), written(anna, save(anna, 8, first.version)), written(anna, save(anna, 7))]
    tables = Tables.open(":memory:")
    tables.fold(told[:2], 1)
    assert [row.file for row in tables.fold([told[2], told[0]], 2).versions] == [7]
    same(tables, reference(told))
    tables.close()


def test_a_save_in_a_fork_reads_no_more_than_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    read = Load.versions_of

    def heard(self: Load, file: int) -> Iterator[VersionRow]:
        asked.append(file)
        return read(self, file)

    monkeypatch.setattr(Load, "versions_of", heard)
    anna, bert = Author(1), Author(2)
    first = save(anna, 8)
    ends = [save(anna, 8, first.version), save(bert, 8, first.version)]
    told = [written(anna, first), written(anna, ends[0]), written(bert, ends[1])]
    tables = Tables.open(":memory:")
    for position, one in enumerate(told, 1):
        tables.fold([one], position)
    assert asked == [8]
    for _ in range(20):
        for side, author in enumerate((anna, bert)):
            ends[side] = save(author, 8, ends[side].version)
            told.append(written(author, ends[side]))
            tables.fold([told[-1]], len(told))
    assert asked == [8]
    same(tables, reference(told))
    tables.close()


def test_where_bytes_are() -> None:
    anna = Author(1)
    ops = [save(anna, file) for file in (8, 7, 8)]
    tables = Tables.open(":memory:")
    tables.fold([written(anna, *ops[:2])], 1)
    tables.fold([written(anna, ops[2])], 2, lambda _row: Here.HERE)
    keys = sorted((op.file, op.version) for op in ops[:2])
    assert [(row.file, row.version) for row in tables.wanted()] == keys
    assert [(row.file, row.version) for row in tables.wanted(1)] == keys[:1]
    assert [(row.file, row.version) for row in tables.wanted(after=keys[0])] == keys[1:]
    tables.mark(keys[:1], Here.EVICTED)
    assert tables.here(*keys[0]) == Here.EVICTED
    assert tables.here(8, ops[2].version) == Here.HERE
    assert tables.here(8, 1) is None
    assert [(row.file, row.version) for row in tables.wanted()] == keys[1:]
    assert {row.version for row in tables.all_versions()} == {op.version for op in ops}
    assert {row.version for row in tables.all_versions(Here.HERE, Here.WANTED)} == {
        ops[0].version,
        ops[2].version,
    }
    tables.fold([written(anna, save(anna, 7, ops[1].version))], 3)
    assert tables.here(*keys[0]) == Here.EVICTED, "a fold does not touch it"
    tables.close()


def test_since_when_a_version_is_no_longer_needed() -> None:
    """On a clock that only runs while somebody lets it."""
    anna = Author(1)
    first, kept = save(anna, 8), save(anna, 7)
    second = save(anna, 8, first.version)
    name = place(anna, 9, 8)
    tables = Tables.open(":memory:")
    tables.fold([written(anna, first, kept, name, place(anna, 10, 7))], 1)
    assert not list(tables.superseded())
    tables.tick(10)
    tables.fold([written(anna, second)], 2)
    tables.tick(10)
    assert [(one.row.version, one.since) for one in tables.superseded()] == [(first.version, 10)]
    tables.fold([written(anna, Remove(volume=VOLUME, id=9, place=name.place, seen=(second.version,)))], 3)
    tables.tick(10)
    tables.fold([written(anna, Describe(volume=VOLUME, id=8, mode=0o600))], 4)
    found = {one.row.version: one.since for one in tables.superseded()}
    assert found == {first.version: 10, second.version: 20}
    tables.fold([written(anna, place(anna, 9, 8))], 5)
    assert [one.row.version for one in tables.superseded()] == [first.version], "it has a name again"
    tables.close()


def test_a_save_that_its_remover_knew_makes_a_lost_file_no_younger() -> None:
    anna = Author(1)
    first, name = save(anna, 8), place(anna, 9, 8)
    second = save(anna, 8, first.version)
    remove = Remove(volume=VOLUME, id=9, place=name.place, seen=(first.version, second.version))
    tables = Tables.open(":memory:")
    tables.fold([written(anna, first, name, remove)], 1)
    tables.tick(10)
    tables.fold([written(anna, second)], 2)
    row = tables.file(8)
    assert row is not None
    assert not row.alive
    assert [(one.row.version, one.since) for one in tables.superseded()] == [
        (first.version, 0),
        (second.version, 10),
    ]
    tables.close()


def test_more_rows_than_are_read_at_once() -> None:
    anna = Author(1)
    ops = [save(anna, 1000 + number) for number in range(PART * 2)]
    tables = Tables.open(":memory:")
    tables.fold([written(anna, *ops)], 1)
    again = [save(anna, op.file, op.version) for op in ops]
    tables.fold([written(anna, *again)], 2)
    assert len(list(tables.all_versions())) == 4 * PART
    found = sorted(one.row.version for one in tables.superseded())
    assert found == sorted(op.version for op in ops + again), "no file has a name"
    tables.close()


@pytest.mark.parametrize("offset", [0, 60, 4096, 5000, 9000, 20_000])
def test_damage_is_said_so_that_it_is_made_again(tmp_path: Path, offset: int) -> None:
    """Wherever the damage is: nothing but StoreUnusable, or rows as they were."""
    anna = Author(1)
    path = tmp_path / "v.db"
    tables = Tables.open(path)
    told = [written(anna, *(op for n in range(1, 300) for op in (save(anna, n), place(anna, 1000 + n, n))))]
    tables.fold(told, 1)
    tables.close()
    expected = reference(told)
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = b"\xa5" * 64
    path.write_bytes(data)
    try:
        tables = Tables.open(path)
    except StoreUnusable:
        return
    try:
        for number, row in expected.files.items():
            assert tables.file(number) in (row, None)
        tables.children(0)
        tables.fold([written(anna, *(save(anna, n, 5) for n in range(1, 300)))], 2)
        list(tables.all_versions())
    except StoreUnusable:
        pass
    finally:
        tables.close()


def test_a_file_of_another_kind_or_level(tmp_path: Path) -> None:
    path = tmp_path / "v.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreUnusable, match="damaged"):
        Tables.open(path)
    path.unlink()
    Tables.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreUnusable, match="level 99"):
        Tables.open(path)


def test_a_listing_does_not_wait_for_a_batch(tmp_path: Path) -> None:
    anna = Author(1)
    tables = Tables.open(tmp_path / "v.db")
    tables.fold([written(anna, save(anna, 8), place(anna, 9, 8))], 1)
    found: list[int] = []

    def here(_row: VersionRow) -> int:
        reader = threading.Thread(target=lambda: found.append(len(tables.children(0).names)))
        reader.start()
        reader.join(20)
        return Here.HERE

    tables.fold([written(anna, save(anna, 7), place(anna, 10, 7))], 2, here)
    assert found == [1], "in the middle of a batch, what there was before it"
    assert len(tables.children(0).names) == 2
    tables.close()


def test_several_threads_at_once(tmp_path: Path) -> None:
    tables = Tables.open(tmp_path / "v.db")
    authors = [Author(number) for number in range(1, 5)]
    told = [[written(one, save(one, n), place(one, 100 + n, n)) for n in range(1, 20)] for one in authors]

    def folds(mine: list[Told]) -> None:
        for one in mine:
            tables.fold([one], tables.position)
            tables.children(0)
            tables.mark([(1, 2)], Here.HERE)

    threads = [threading.Thread(target=folds, args=(mine,)) for mine in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    same(tables, reference(one for mine in told for one in mine))
    tables.close()
