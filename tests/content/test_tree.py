"""Trees: one encoding, no name that leads out of them, and nothing but FormatInvalid for all other bytes."""

import posixpath
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content.tree import NAME_BYTES_MAX, XATTR_BYTES_MAX, Entry, Kind, Tree, decode, leaves_tree
from tbshare.errors import FormatInvalid

NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
XATTRS = st.dictionaries(st.binary(max_size=9), st.binary(max_size=9), max_size=3).map(
    lambda found: sorted(found.items())
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Return any entry a directory can hold."""
    kind = draw(st.sampled_from(Kind))
    size = st.binary(min_size=1, max_size=40) if kind == Kind.LINK else st.binary(min_size=32, max_size=32)
    target = draw(size.filter(lambda text: kind != Kind.LINK or b"\0" not in text))
    mtime = draw(st.integers(-(1 << 63), (1 << 63) - 1))
    number = draw(st.integers(0, 1 << 50))
    return Entry(draw(NAMES), kind, target, number, draw(st.integers(0, 0o7777)), mtime, draw(XATTRS))


TREES = st.lists(entries(), max_size=8, unique_by=lambda entry: entry.name).map(Tree)


def entry(name: bytes = b"a", kind: Kind = Kind.FILE, target: bytes = b"x" * 32, **fields: object) -> Entry:
    return msgspec.structs.replace(Entry(name, kind, target, 1, 0o644, 7), **fields)


@given(TREES, st.randoms())
def test_round_trip_in_any_order(tree: Tree, random: Random) -> None:
    shuffled = list(tree.entries)
    random.shuffle(shuffled)
    again = decode(tree.encoded)
    assert again == tree == Tree(shuffled)
    assert again.id == tree.id == Tree(shuffled).id
    assert again.entries == tree.entries
    assert again.size == sum(each.size for each in tree.entries)


@given(TREES, st.data())
def test_any_flipped_bit_is_refused_or_has_another_id(tree: Tree, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(0, 8 * len(tree.encoded) - 1))
    flipped = bytearray(tree.encoded)
    flipped[place // 8] ^= 1 << place % 8
    try:
        other = decode(bytes(flipped))
    except FormatInvalid:
        return
    assert other != tree
    assert other.encoded == bytes(flipped)


@given(st.binary(max_size=300))
def test_junk(data: bytes) -> None:
    with pytest.raises(FormatInvalid):
        decode(data)


@given(TREES, st.data())
def test_cut_short(tree: Tree, draw: st.DataObject) -> None:
    with pytest.raises(FormatInvalid):
        decode(tree.encoded[: draw.draw(st.integers(0, len(tree.encoded) - 1))])


@pytest.mark.parametrize(
    "bad",
    [
        entry(b""),
        entry(b"."),
        entry(b".."),
        entry(b"a/b"),
        entry(b"../../etc/passwd"),
        entry(b"a\0b"),
        entry(b"x" * (NAME_BYTES_MAX + 1)),
        entry(target=b"short"),
        entry(kind=Kind.TREE, target=b""),
        entry(kind=Kind.LINK, target=b""),
        entry(kind=Kind.LINK, target=b"a\0b"),
        entry(kind=Kind.LINK, target=b"x" * 4097),
        entry(size=-1),
        entry(mode=0o10000),
        entry(mode=-1),
        entry(xattrs=[(b"b", b""), (b"a", b"")]),
        entry(xattrs=[(b"a", b""), (b"a", b"")]),
        entry(xattrs=[(b"a", b"x" * XATTR_BYTES_MAX)]),
    ],
)
def test_what_no_directory_can_hold(bad: Entry) -> None:
    with pytest.raises(FormatInvalid):
        Tree([bad])
    with pytest.raises(FormatInvalid):
        decode(msgspec.msgpack.encode([1, [bad]]))


@pytest.mark.parametrize(
    "data",
    [
        msgspec.msgpack.encode([1, [entry(b"b"), entry(b"a")]]),  # out of order
        msgspec.msgpack.encode([1, [entry(b"a"), entry(b"a")]]),  # twice
        msgspec.msgpack.encode([2, []]),  # a newer level
        msgspec.msgpack.encode([1, [], 0]),  # a field too many
        msgspec.msgpack.encode([1, [[b"a", 3, b"x" * 32, 1, 0o644, 7, []]]]),  # unknown kind
        msgspec.msgpack.encode([1, [[b"a", 0, b"x" * 32, 1, 0o644, 7]]]),  # the attributes left out
        b"\x91" * 100_000,
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(FormatInvalid):
        decode(data)


def test_ids_are_for_ever() -> None:
    """Ids of stores in the field: if this fails, the format has changed."""
    assert Tree([]).id.hex() == "f42ce9d4e05689f8a1252c6e07642d9b3ecf366f88bee2f2ced0b7896163fe3d"
    assert (
        Tree([entry(b"b"), entry(b"a", xattrs=[(b"user.a", b"1")])]).id.hex()
        == "df5951d1e1539dc56414ac4e2d9ffc6f63d1b1f5aabf9e3f876809e574f0d862"
    )


PARTS = st.sampled_from([b"..", b".", b"", b"a", b"b", b"..."])


@given(st.lists(st.sampled_from([b"d", b"e"]), max_size=3), st.lists(PARTS, min_size=1, max_size=7))
def test_links_that_leave(folders: list[bytes], parts: list[bytes]) -> None:
    """Against the path worked out step by step; a link that climbs above the root and comes back has left, too."""
    target = b"/".join(parts)
    left, place = target.startswith(b"/"), list(folders)
    for part in parts:
        if part == b"..":
            left = left or not place
            place = place[:-1]
        elif part not in (b"", b"."):
            place.append(part)
    assert leaves_tree((*folders, b"link"), target) == left
    if not left:
        assert posixpath.normpath(b"/".join((*folders, target))).split(b"/")[0] != b".."
