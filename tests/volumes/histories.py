"""What several nodes may have written about one volume: few things, many ops, nothing in order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Literal

from hypothesis import strategies as st

from tbshare.volumes.entry import AnyOp, Describe, Entry, FileOp, Move, Place, Remove, Save, make_entry
from tbshare.volumes.ids import Ids

VOLUME = 7
Told = tuple[Entry, Sequence[tuple[int, FileOp]]]  # an entry and its ops, as the fold takes them


def told(entry: Entry) -> Told:
    ops = [(index, op) for index, op in enumerate(entry.ops) if isinstance(op, FileOp)]
    return entry, ops


@dataclass
class Author:
    """One node as it writes; its signatures are none, as the fold does not look at them."""

    number: int
    ids: Ids = field(init=False)
    written: int = 0

    def __post_init__(self) -> None:
        self.ids = Ids(self.node, Random(self.number))

    @property
    def node(self) -> bytes:
        return bytes([self.number]) * 32

    def sign(self, data: bytes) -> bytes:
        return bytes(64)

    def write(self, lamport: int, *ops: AnyOp, time_ns: int = 0) -> Told:
        """Return an entry with these ops; `time_ns` is drawn from how many it wrote, unless given."""
        self.written += 1
        made_ns = time_ns or self.written
        return told(
            make_entry(self, incarnation=bytes(32), previous=None, lamport=lamport, time_ns=made_ns, ops=ops)
        )


AUTHORS = 3
FILES = [101, 102, 103]
NAMES = [201, 202, 203, 204]
DIRECTORIES = [301, 302, 303, 304]
CONTENTS: list[Literal["", "bundle"]] = ["", "bundle"]
XATTRS = [b"k", b"l", b"\0k", b"\0l"]
LARGE = [bytes([32]) * 32 + size.to_bytes(8, "big") for size in (1, 2)]  # as a value that is an object is stored
WORDS = [b"a", b"A", b"b.txt", b"\xff", b".DS_Store"]


@dataclass
class _Drawn:
    """The ids that ops of a history give and use: any op may name what any other made, before or after it."""

    draw: st.DrawFn
    places: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # (name or directory, place)
    versions: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # (file, version)

    def one(self, values: Sequence[int]) -> int:
        return self.draw(st.sampled_from(values))

    def some_versions(self, file: int) -> tuple[int, ...]:
        known = [version for number, version in self.versions if number == file] or [9]
        return tuple(self.draw(st.lists(st.sampled_from(known), max_size=3)))

    def new_id(self, author: Author, used: Sequence[int]) -> int:
        """Return an id of the author; seldom one that was given before, by it or by another."""
        again = used and self.draw(st.integers(0, 9)) == 0
        return self.one(used) if again else author.ids.new()

    def op(self, author: Author) -> FileOp:
        kind = self.draw(st.sampled_from(["place", "save", "save", "remove", "rmdir", "move", "move", "describe"]))
        file, name, directory = self.one(FILES), self.one(NAMES), self.one(DIRECTORIES)
        word = self.draw(st.sampled_from(WORDS))
        parent = self.one([0, *DIRECTORIES])
        if kind == "save":
            version = self.new_id(author, [version for _, version in self.versions])
            parents = self.some_versions(file)
            content, contents = self.draw(st.sampled_from([b"x", b"y"])), self.draw(st.sampled_from(CONTENTS))
            self.versions.append((file, version))
            return Save(
                volume=VOLUME, file=file, version=version, parents=parents, size=self.one([0, 1, 5]),
                content=content * 32, contents=contents,
            )  # fmt: skip
        if kind == "describe":
            return Describe(
                volume=VOLUME,
                id=self.one([file, directory, 0]),
                directory=self.draw(st.booleans()),
                mode=self.draw(st.sampled_from([None, 0o600, 0o644])),
                mtime_ns=self.draw(st.sampled_from([None, 5])),
                xattrs=self.draw(st.dictionaries(st.sampled_from(XATTRS), st.sampled_from([None, b"v", *LARGE]))),
            )
        if kind in ("remove", "rmdir"):
            number = directory if kind == "rmdir" else name
            known = [place for one, place in self.places if one == number] or [9]
            return Remove(
                volume=VOLUME, id=number, place=self.one(known), seen=self.some_versions(file),
                directory=kind == "rmdir",
            )  # fmt: skip
        place = self.new_id(author, [place for _, place in self.places])
        self.places.append((directory if kind == "move" else name, place))
        if kind == "move":
            return Move(volume=VOLUME, id=directory, place=place, name=word, parent=parent)
        return Place(volume=VOLUME, id=name, place=place, file=file, name=word, parent=parent)


@st.composite
def histories(draw: st.DrawFn) -> list[Told]:
    """Return entries of several authors, whose Lamport times say nothing about who knew of whom."""
    drawn = _Drawn(draw)
    authors = [Author(number) for number in range(1, AUTHORS + 1)]
    entries: list[Told] = []
    for _ in range(draw(st.integers(1, 14))):
        author = draw(st.sampled_from(authors))
        ops = [drawn.op(author) for _ in range(draw(st.integers(1, 3)))]
        entries.append(author.write(draw(st.integers(1, 12)), *ops))
    return entries


@st.composite
def deliveries(draw: st.DrawFn, entries: list[Told]) -> list[list[Told]]:
    """Return the entries in some order, some of them twice, in batches."""
    order = draw(st.permutations(entries + draw(st.lists(st.sampled_from(entries), max_size=3))))
    cuts = draw(st.sets(st.integers(1, len(order))))
    edges = [0, *sorted(cuts), len(order)]
    return [list(order[start:end]) for start, end in pairwise(edges)]
