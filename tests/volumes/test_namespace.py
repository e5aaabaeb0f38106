from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tbshare.volumes.entry import Describe, FileOp, Move, Place, Remove, Save
from tbshare.volumes.namespace import Namespace
from tbshare.volumes.rows import DirectoryRow, FileRow, NameRow
from tests.volumes.histories import VOLUME, Author, Told, deliveries, histories
from tests.volumes.reference_fold import Reference, reference


def new_directory(number: int) -> DirectoryRow:
    return DirectoryRow(number, alive=number == 0)


def telling(rows: Mapping[int, Any], nothing: Callable[[int], object]) -> dict[int, Any]:
    """Return rows and their bytes, but those that say nothing: an op that lost may have asked for them."""
    told = {number: row for number, row in rows.items() if row != nothing(number)}
    return {number: (row, msgspec.msgpack.encode(row)) for number, row in told.items()}


def same(space: Namespace, expected: Reference) -> None:
    assert telling(space.names, NameRow) == telling(expected.names, NameRow)
    assert telling(space.files, FileRow) == telling(expected.files, FileRow)
    assert telling(space.directories, new_directory) == telling(expected.directories, new_directory)
    assert space.versions == expected.versions
    assert space.moves == expected.moves
    assert space.totals() == expected.totals


def folded(batches: Iterable[list[Told]]) -> Namespace:
    space = Namespace()
    for batch in batches:
        space.fold(batch)
    return space


@settings(max_examples=600, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])
@given(st.data())
def test_any_order_any_batches_any_doubles(data: st.DataObject) -> None:
    entries = data.draw(histories())
    same(folded(data.draw(deliveries(entries))), reference(entries))


# ---- the pitfalls, one by one -----------------------------------------------------------------------------


class Cluster:
    """Two nodes that write apart, Anna always a little earlier; each entry is one op's, or several's."""

    def __init__(self) -> None:
        self.anna, self.bert = Author(1), Author(2)
        self.told: list[Told] = []
        self.lamport = 0

    def write(self, author: Author, *ops: FileOp, lamport: int = 0, time_ns: int = 0) -> None:
        self.lamport = max(self.lamport + 1, lamport)
        self.told.append(author.write(lamport or self.lamport, *ops, time_ns=time_ns))

    def both_ways(self) -> Namespace:
        """Return the namespace, which is the same whatever comes first, at once or one by one."""
        space = folded([self.told])
        same(space, reference(self.told))
        for order in (self.told[::-1], self.told[1:] + self.told[:1], sorted(self.told, key=_hash)):
            same(folded([one] for one in [*order, *order[:2]]), reference(self.told))
        return space

    def paths(self) -> list[str]:
        """Return the paths of all that lives."""
        space = self.both_ways()

        def path(parent: int, name: bytes) -> str:
            if parent == 0:
                return name.decode()
            above = space.directories[parent]
            assert above.alive, "what lives is in what lives"
            return f"{path(above.parent, above.name)}/{name.decode()}"

        found = [path(row.parent, row.name) for row in space.names.values() if row.alive]
        directories = [row for row in space.directories.values() if row.alive and row.id]
        return sorted(found + [path(row.parent, row.name) + "/" for row in directories])

    def mkdir(self, author: Author, number: int, name: bytes, parent: int = 0) -> Move:
        op = Move(volume=VOLUME, id=number, place=author.ids.new(), name=name, parent=parent)
        self.write(author, op)
        return op

    def save(self, author: Author, file: int, content: bytes, *parents: int, lamport: int = 0) -> int:
        version = author.ids.new()
        op = Save(volume=VOLUME, file=file, version=version, content=content * 32, parents=parents, size=1)
        self.write(author, op, lamport=lamport)
        return version

    def place(self, author: Author, name: int, file: int, text: bytes, parent: int = 0) -> int:
        place = author.ids.new()
        self.write(author, Place(volume=VOLUME, id=name, place=place, file=file, name=text, parent=parent))
        return place

    def remove(self, author: Author, name: int, place: int, *seen: int, directory: bool = False) -> None:
        self.write(author, Remove(volume=VOLUME, id=name, place=place, seen=seen, directory=directory))


def _hash(one: Told) -> bytes:
    return one[0].hash


def test_two_directories_are_moved_into_each_other() -> None:
    lab = Cluster()
    lab.mkdir(lab.anna, 1, b"a")
    lab.mkdir(lab.anna, 2, b"b")
    lab.mkdir(lab.anna, 1, b"a", parent=2)
    lab.mkdir(lab.bert, 2, b"b", parent=1)
    assert lab.paths() == ["b/", "b/a/"], "the later one is skipped"


def test_three_directories_are_moved_in_a_ring() -> None:
    lab = Cluster()
    for number, name in enumerate((b"a", b"b", b"c"), 1):
        lab.mkdir(lab.anna, number, name)
    lab.mkdir(lab.anna, 1, b"a", parent=2)
    lab.mkdir(lab.bert, 2, b"b", parent=3)
    lab.mkdir(lab.anna, 3, b"c", parent=1)
    assert lab.paths() == ["c/", "c/b/", "c/b/a/"]


def test_a_directory_is_moved_into_itself_or_its_own_child() -> None:
    lab = Cluster()
    lab.mkdir(lab.anna, 1, b"a")
    lab.mkdir(lab.anna, 2, b"b", parent=1)
    lab.mkdir(lab.anna, 1, b"a", parent=1)
    lab.mkdir(lab.anna, 1, b"a", parent=2)
    assert lab.paths() == ["a/", "a/b/"]


def test_a_skipped_move_is_done_after_all_when_the_way_turns_out_to_have_been_free() -> None:
    lab = Cluster()
    lab.mkdir(lab.anna, 1, b"a")
    lab.mkdir(lab.anna, 2, b"b", parent=1)
    lab.lamport = 10
    lab.mkdir(lab.anna, 1, b"a", parent=2)
    early = Move(volume=VOLUME, id=2, place=lab.bert.ids.new(), name=b"b")
    lab.told.append(lab.bert.write(5, early))
    assert lab.paths() == ["b/", "b/a/"]


def test_a_removal_of_a_directory_holds_although_its_newest_move_is_skipped() -> None:
    """Whoever removes it names the newest place it was given; what is skipped may change later."""
    lab = Cluster()
    lab.mkdir(lab.anna, 1, b"a")
    lab.mkdir(lab.anna, 2, b"b", parent=1)
    skipped = lab.mkdir(lab.bert, 1, b"a", parent=2)
    assert lab.both_ways().directories[1].place == skipped.place
    lab.remove(lab.bert, 2, lab.both_ways().directories[2].place, directory=True)
    lab.remove(lab.bert, 1, skipped.place, directory=True)
    assert lab.paths() == []


def test_a_directory_lives_while_something_in_it_does() -> None:
    """Anna removes a tree, Bert puts a file deep into it: the way to the file stays, and nothing else."""
    lab = Cluster()
    for move in [
        lab.mkdir(lab.anna, 1, b"a"),
        lab.mkdir(lab.anna, 2, b"b", 1),
        lab.mkdir(lab.anna, 3, b"c", 1),
    ][::-1]:
        lab.remove(lab.anna, move.id, move.place, directory=True)
    version = lab.save(lab.bert, 8, b"x")
    place = lab.place(lab.bert, 9, 8, b"f", parent=2)
    assert lab.paths() == ["a/", "a/b/", "a/b/f"]
    lab.remove(lab.bert, 9, place, version)
    assert lab.paths() == []


def test_an_edit_beats_a_removal() -> None:
    lab = Cluster()
    first = lab.save(lab.anna, 8, b"x")
    place = lab.place(lab.anna, 9, 8, b"f")
    lab.remove(lab.anna, 9, place, first)
    assert lab.paths() == []
    second = lab.save(lab.bert, 8, b"y", first)
    assert lab.paths() == ["f"]
    lab.remove(lab.anna, 9, place, second)
    assert lab.paths() == [], "now it was seen"


def test_a_rename_beats_a_removal() -> None:
    lab = Cluster()
    version = lab.save(lab.anna, 8, b"x")
    place = lab.place(lab.anna, 9, 8, b"f")
    lab.place(lab.bert, 9, 8, b"g")
    lab.remove(lab.anna, 9, place, version)
    assert lab.paths() == ["g"]


def test_two_renames_of_one_file_leave_one_name() -> None:
    lab = Cluster()
    lab.save(lab.anna, 8, b"x")
    lab.place(lab.anna, 9, 8, b"f")
    lab.place(lab.anna, 9, 8, b"g")
    lab.place(lab.bert, 9, 8, b"h")
    assert lab.paths() == ["h"]


def test_a_hard_link_is_a_second_name_and_survives_the_first() -> None:
    lab = Cluster()
    version = lab.save(lab.anna, 8, b"x")
    place = lab.place(lab.anna, 9, 8, b"f")
    lab.place(lab.anna, 10, 8, b"g")
    assert lab.paths() == ["f", "g"]
    assert lab.both_ways().totals() == (1, 1), "one file, its bytes counted once"
    lab.remove(lab.anna, 9, place, version)
    later = lab.save(lab.bert, 8, b"y", version)
    assert lab.paths() == ["g"], "an edit brings no name back while the file has one"
    assert lab.both_ways().files[8].heads[0].version == later


def test_of_several_removed_names_an_edit_brings_the_newest_back() -> None:
    lab = Cluster()
    version = lab.save(lab.anna, 8, b"x")
    places = [lab.place(lab.anna, 9, 8, b"f"), lab.place(lab.anna, 10, 8, b"g")]
    for name, place in zip((9, 10), places, strict=True):
        lab.remove(lab.anna, name, place, version)
    lab.save(lab.bert, 8, b"y", version)
    assert lab.paths() == ["g"]


def test_a_name_that_is_given_to_another_file_leaves_the_first() -> None:
    lab = Cluster()
    lab.save(lab.anna, 7, b"x")
    lab.save(lab.anna, 8, b"y")
    lab.place(lab.anna, 9, 7, b"f")
    lab.place(lab.bert, 9, 8, b"f")
    space = lab.both_ways()
    assert (space.files[7].names, space.files[8].names) == ((), (9,))
    assert space.totals() == (1, 1)


def test_saving_by_a_temporary_file_is_a_new_version_of_the_same_file() -> None:
    """What a mount makes of `write T; rename T over F`: the version goes to F, the name T goes."""
    lab = Cluster()
    first = lab.save(lab.anna, 8, b"x")
    lab.place(lab.anna, 9, 8, b"f")
    temporary = lab.save(lab.anna, 10, b"y")
    place = lab.place(lab.anna, 11, 10, b"f.tmp")
    second = lab.save(lab.anna, 8, b"y", first)
    lab.remove(lab.anna, 11, place, temporary)
    assert lab.paths() == ["f"]
    assert [head.version for head in lab.both_ways().files[8].heads] == [second]


def test_concurrent_saves_are_all_heads_and_one_that_knows_them_joins_them() -> None:
    lab = Cluster()
    first = lab.save(lab.anna, 8, b"x")
    lab.place(lab.anna, 9, 8, b"f")
    one, two = lab.save(lab.anna, 8, b"y", first), lab.save(lab.bert, 8, b"z", first)
    assert [head.version for head in lab.both_ways().files[8].heads] == [two, one]
    assert lab.both_ways().totals() == (1, 2)
    joined = lab.save(lab.anna, 8, b"z", one, two)
    assert [head.version for head in lab.both_ways().files[8].heads] == [joined]


def test_the_head_under_the_name_stays_while_somebody_saves_in_the_other_branch() -> None:
    lab = Cluster()
    first = lab.save(lab.anna, 8, b"x")
    lab.place(lab.anna, 9, 8, b"f")
    fork, main = lab.save(lab.anna, 8, b"y", first), lab.save(lab.bert, 8, b"z", first)
    began = lab.both_ways().versions[8, fork]
    for content in (b"1", b"2"):
        fork = lab.save(lab.anna, 8, content, fork)
        file = lab.both_ways().files[8]
        assert [head.version for head in file.heads] == [main, fork]
        assert file.since[1] == (began.stamp, began.time_ns), "and the fork keeps the date of its beginning"


def test_a_parent_that_comes_later_is_no_head() -> None:
    lab = Cluster()
    first = lab.save(lab.anna, 8, b"x")
    second = lab.save(lab.anna, 8, b"y", first)
    space = folded([[lab.told[1]]])
    assert list(space.files[8].waiting) == [first]
    assert [row.version for row in space.fold([lab.told[0]]).versions] == [first], "it is in the history"
    assert [head.version for head in space.files[8].heads] == [second]
    assert not space.files[8].waiting


def test_clocks_order_nothing() -> None:
    """Bert's clock is ten years behind and his save comes later: it is under the name."""
    lab = Cluster()
    first = lab.save(lab.anna, 8, b"x")
    for author, content, year in ((lab.anna, b"y", 2036), (lab.bert, b"z", 2016)):
        op = Save(volume=VOLUME, file=8, version=author.ids.new(), content=content * 32, parents=(first,))
        lab.write(author, op, time_ns=(year - 1970) * 31_557_600 * 10**9)
    assert [head.content[:1] for head in lab.both_ways().files[8].heads] == [b"z", b"y"]


def test_an_id_that_another_node_would_have_given_makes_an_op_void() -> None:
    lab = Cluster()
    theirs = lab.bert.ids
    lab.write(lab.anna, Save(volume=VOLUME, file=8, version=theirs.new(), content=b"x" * 32))
    lab.write(lab.anna, Place(volume=VOLUME, id=9, place=theirs.new(), file=8, name=b"f"))
    lab.write(lab.anna, Move(volume=VOLUME, id=1, place=theirs.new(), name=b"d"))
    space = lab.both_ways()
    assert not space.versions
    assert not space.names
    assert lab.paths() == []


def test_a_version_id_that_is_given_twice_is_two_versions() -> None:
    """A virtual machine that was cloned as it ran gives ids twice."""
    lab = Cluster()
    parents = [lab.save(lab.bert, 8, content) for content in (b"a", b"b", b"c")]
    version = lab.anna.ids.new()
    for content, parent in zip((b"x", b"y", b"z"), parents, strict=True):
        lab.write(lab.anna, Save(volume=VOLUME, file=8, version=version, content=content * 32, parents=(parent,)))
    heads = lab.both_ways().files[8].heads
    assert {(head.content[:1], head.parents) for head in heads} == {
        (b"x", (parents[0],)), (b"y", (parents[1],)), (b"z", (parents[2],))
    }  # fmt: skip
    assert next(head.version for head in heads if head.content[:1] == b"x") == version, "the lowest stamp has it"
    lab.write(
        lab.bert, Save(volume=VOLUME, file=8, version=lab.bert.ids.new(), content=b"j" * 32,
                       parents=tuple(head.version for head in heads)),
    )  # fmt: skip
    (head,) = lab.both_ways().files[8].heads
    assert head.content == b"j" * 32


def test_the_last_value_of_each_attribute_wins() -> None:
    lab = Cluster()
    lab.write(lab.anna, Describe(volume=VOLUME, id=8, mode=0o600, xattrs={b"k": b"1", b"l": b"1"}))
    lab.write(lab.bert, Describe(volume=VOLUME, id=8, uid=5, xattrs={b"k": None}))
    attributes = lab.both_ways().files[8].attributes
    assert attributes is not None
    assert attributes.mode is not None
    assert attributes.mode[0] == 0o600
    assert attributes.living_xattrs() == {b"l": b"1"}


def test_the_modification_time_is_that_of_what_came_last() -> None:
    lab = Cluster()
    lab.write(lab.anna, Save(volume=VOLUME, file=8, version=lab.anna.ids.new(), content=b"x" * 32, mtime_ns=5))
    lab.write(lab.anna, Describe(volume=VOLUME, id=8, mtime_ns=3))
    assert lab.both_ways().files[8].mtime_ns == 3
    version = lab.both_ways().files[8].heads[0].version
    op = Save(volume=VOLUME, file=8, version=lab.anna.ids.new(), content=b"y" * 32, mtime_ns=4, parents=(version,))
    lab.write(lab.anna, op)
    assert lab.both_ways().files[8].mtime_ns == 4


def test_changes_name_what_was_touched() -> None:
    lab = Cluster()
    lab.mkdir(lab.anna, 1, b"a")
    version = lab.save(lab.anna, 8, b"x")
    lab.place(lab.anna, 9, 8, b"f", parent=1)
    space = folded([lab.told])
    lab.told.clear()
    lab.place(lab.anna, 9, 8, b"g")
    changes = space.fold(lab.told)
    assert changes.files == {8}
    assert changes.directories == {0, 1}, "that it left, and that it came into"
    assert not changes.versions
    lab.save(lab.anna, 8, b"y", version)
    assert [row.parents for row in space.fold(lab.told).versions] == [(version,)]
    assert not space.fold([]), "nothing"
