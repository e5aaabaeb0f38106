from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tbshare.volumes.rows import Children, DirectoryRow, FileRow, NameRow, VersionRow
from tbshare.volumes.shown import Shown, clash_key, may_be_generated, resolve, shown

NODES = {bytes([number]) * 8: f"studio-{number}" for number in range(1, 4)}
NOON = 1_795_443_900_000_000_000  # 2026-11-23 14:25 UTC


def node_name(author: bytes) -> str:
    return NODES[author]


def stamp(lamport: int, node: int = 1, number: int = 0) -> bytes:
    return lamport.to_bytes(8, "big") + bytes([node]) * 8 + bytes(16) + number.to_bytes(2, "big")


def version(number: int, content: bytes, lamport: int, node: int = 1) -> VersionRow:
    return VersionRow(1, number, (), "file", content, 1, 0, 0, stamp(lamport, node, number), NOON)


def file(number: int, name: bytes, *heads: VersionRow, lamport: int = 1, node: int = 1) -> tuple[NameRow, FileRow]:
    """Return a name of a new file; each head is a branch that began with itself."""
    since = tuple((head.stamp, head.time_ns) for head in heads) if len(heads) > 1 else ()
    row = NameRow(
        number,
        name=name,
        file=number,
        place=number,
        stamp=stamp(lamport, node, number),
        time_ns=NOON,
        alive=True,
    )
    return row, FileRow(number, heads=heads, since=since, names=(number,), standing=1)


def directory(number: int, name: bytes, lamport: int = 1, node: int = 1) -> DirectoryRow:
    return DirectoryRow(number, name=name, stamp=stamp(lamport, node, number), time_ns=NOON, alive=True)


def names(items: list[Shown]) -> list[bytes]:
    return [item.name for item in items]


def names_of(*things: tuple[NameRow, FileRow] | DirectoryRow, sensitive: bool = False) -> list[bytes]:
    return names(shown(children(*things), node_name, sensitive=sensitive))


def children(*things: tuple[NameRow, FileRow] | DirectoryRow) -> Children:
    return Children(
        [one for one in things if isinstance(one, tuple)],
        [one for one in things if isinstance(one, DirectoryRow)],
    )


A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def test_a_fork_stands_beside_its_file_with_who_and_when() -> None:
    forked = file(1, b"cut.mov", version(1, A, 5), version(2, B, 4, node=2))
    items = shown(children(forked), node_name)
    assert names(items) == [b"cut (from studio-2, 2026-11-23 14.25).mov", b"cut.mov"]
    assert [(item.fork, item.given) for item in items] == [(True, False), (False, True)]
    assert b":" not in items[0].name, "a Mac shows it as a slash, Windows takes it for a stream"
    assert [may_be_generated(item.name) for item in items] == [True, False]


def test_a_third_and_a_fourth_head_are_numbered() -> None:
    forked = file(1, b"a.txt", *(version(n, bytes([n]) * 32, 9 - n, node=2) for n in range(1, 5)))
    assert names_of(forked) == [
        b"a (from studio-2, 2026-11-23 14.25 2).txt",
        b"a (from studio-2, 2026-11-23 14.25 3).txt",
        b"a (from studio-2, 2026-11-23 14.25).txt",
        b"a.txt",
    ]


def test_heads_with_the_same_bytes_are_shown_once() -> None:
    assert names_of(file(1, b"a", version(1, A, 5), version(2, A, 4), version(3, B, 3), version(4, B, 2))) == [
        b"a",
        b"a (from studio-1, 2026-11-23 14.25)",
    ]


def test_a_fork_keeps_its_name_while_somebody_saves_in_it() -> None:
    row, forked = file(1, b"a", version(1, A, 5), version(7, B, 40, node=3))
    forked.since = (forked.since[0], (stamp(4, 2), NOON))
    assert names_of((row, forked)) == [b"a", b"a (from studio-2, 2026-11-23 14.25)"]


def test_of_two_files_with_one_name_the_first_keeps_it() -> None:
    first, second = (
        file(1, b"a.txt", version(1, A, 1), lamport=1),
        file(2, b"A.TXT", version(2, B, 1), lamport=2),
    )
    assert names_of(second, first) == [b"A (from studio-1, 2026-11-23 14.25).TXT", b"a.txt"]
    assert names_of(second, first, sensitive=True) == [b"A.TXT", b"a.txt"]


def test_composed_and_decomposed_are_one_name_and_given_bytes_stay() -> None:
    composed, decomposed = "Ä.txt".encode(), "A\u0308.txt".encode()
    assert clash_key(composed) == clash_key(decomposed) == "ä.txt".encode()
    both = [file(1, composed, version(1, A, 1)), file(2, decomposed, version(2, B, 1), lamport=2)]
    assert names_of(*both) == ["A\u0308 (from studio-1, 2026-11-23 14.25).txt".encode(), composed]


def test_a_directory_and_a_file_of_one_name() -> None:
    found = names_of(directory(1, b"v1.2", lamport=2, node=2), file(2, b"v1.2", version(1, A, 1)))
    assert found == [b"v1.2", b"v1.2 (from studio-2, 2026-11-23 14.25)"], "a directory has no extension"


def test_same_name_same_bytes_made_twice_is_shown_once() -> None:
    one, two = file(1, b"a", version(1, A, 1)), file(2, b"a", version(2, A, 1), lamport=2)
    (item,) = shown(children(two, one), node_name)
    assert item.row is one[0]
    assert item.twins == (two[0],)
    assert len(names_of(one, file(2, b"A", version(2, A, 1), lamport=2))) == 2, "only if the bytes of the name are"


def test_desktop_settings_are_never_shown_twice() -> None:
    """The newest wins and nobody is told: where icons stand is nobody's work."""
    one = file(1, b".DS_Store", version(1, A, 1), version(3, C, 9))
    one[1].heads = one[1].heads[::-1]
    two = file(2, b".DS_Store", version(2, B, 2))
    (item,) = shown(children(two, one), node_name)
    assert item.head is not None
    assert item.head.content == C
    assert item.twins == (two[0],)


def test_a_file_without_a_version_is_not_shown() -> None:
    assert not names_of(file(1, b"a"))


def test_extensions() -> None:
    tail = b" (from studio-2, 2026-11-23 14.25)"
    for name, expected in {
        b"a.tar.gz": b"a%b.tar.gz",
        b"Film.fcpbundle": b"Film%b.fcpbundle",
        b".zshrc": b".zshrc%b",
        b".zshrc.bak": b".zshrc%b.bak",
        b"Mr. Smith and sons": b"Mr. Smith and sons%b",
        b"v1.0.mov": b"v1.0%b.mov",
        b"ends.": b"ends.%b",
        b"..": b"..%b",
        b"..x": b"..x%b",
        b"\xff.mov": b"\xff%b.mov",
    }.items():
        assert expected % tail in names_of(file(1, name, version(1, A, 5), version(2, B, 4, node=2)))


def test_a_long_name_is_cut_between_letters() -> None:
    name = "é".encode() * 125 + b".mov"
    (fork,) = [found for found in names_of(file(1, name, version(1, A, 5), version(2, B, 4))) if found != name]
    assert len(fork) in (254, 255)
    assert fork.decode().startswith("éé")
    assert fork.endswith(b" (from studio-1, 2026-11-23 14.25).mov")


def test_a_name_that_somebody_gave_is_not_taken_by_a_fork() -> None:
    taken = file(1, b"A (From studio-2, 2026-11-23 14.25)", version(1, C, 9), lamport=9)
    forked = file(2, b"a", version(2, A, 5), version(3, B, 4, node=2))
    assert names_of(taken, forked) == [
        b"A (From studio-2, 2026-11-23 14.25)",
        b"a",
        b"a (from studio-2, 2026-11-23 14.25 2)",
    ]


@st.composite
def directories(draw: st.DrawFn) -> list[tuple[NameRow, FileRow] | DirectoryRow]:
    given_names = [b"a", b"A", b"a.b", b"A.B", b"\xff", "ä".encode(), "a\u0308".encode(), b".DS_Store"]
    words = st.sampled_from([*given_names, b"a (from studio-1, 2026-11-23 14.25)", b"x" * 255, "é".encode() * 127])
    things: list[tuple[NameRow, FileRow] | DirectoryRow] = []
    for number in range(1, draw(st.integers(1, 7)) + 1):
        lamport, node = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        if draw(st.integers(0, 3)) == 0:
            things.append(directory(number, draw(words), lamport, node))
            continue
        heads = [
            version(10 * number + one, draw(st.sampled_from([A, B, C])), draw(st.integers(1, 4)), node)
            for one in range(draw(st.integers(1, 4)))
        ]
        things.append(file(number, draw(words), *heads, lamport=lamport, node=node))
    return things


@settings(max_examples=400, deadline=None)
@given(st.data(), directories(), st.booleans())
def test_every_head_is_shown_under_a_name_of_its_own(
    data: st.DataObject, things: list[tuple[NameRow, FileRow] | DirectoryRow], sensitive: bool
) -> None:
    items = shown(children(*things), node_name, sensitive=sensitive)
    again = shown(children(*data.draw(st.permutations(things))), node_name, sensitive=sensitive)
    assert items == again, "the order in which rows come says nothing"
    keys = [item.name if sensitive else clash_key(item.name) for item in items]
    assert len(set(keys)) == len(keys)
    assert all(len(item.name) <= 255 for item in items)
    assert all(one.name < two.name for one, two in pairwise(items))
    for item in items:
        assert resolve(children(*things), item.name, node_name, sensitive=sensitive) == item
    found = {(item.row.id, item.head.content if item.head else b"") for item in items}
    found |= {(twin.id, item.head.content) for item in items if item.head for twin in item.twins}
    for thing in things:
        if isinstance(thing, DirectoryRow):
            assert (thing.id, b"") in found
        elif thing[0].name != b".DS_Store":
            assert {(thing[0].id, head.content) for head in thing[1].heads} <= found


def test_nothing_has_a_name_that_is_not_shown() -> None:
    one = file(1, b"Readme", version(1, A, 1))
    assert resolve(children(one), b"other", node_name) is None
    found = resolve(children(one), b"README", node_name)
    assert found is not None
    assert found.name == b"Readme", "as a Mac finds it"
    assert resolve(children(one), b"README", node_name, sensitive=True) is None
