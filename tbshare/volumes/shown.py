"""What a directory shows: every name once, every head of every file; and back from a shown name to its row. Pure.

Names that a Mac takes for one cannot stand in one directory. The one that was placed first keeps its name; the
others, and the heads of a file besides the one under its name, are shown as
`name (from NODE, 2026-11-23 14.05).ext`: who made it and when, in UTC so that every node shows the same. Nothing
is renamed: it is shown so while it clashes.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import count
from typing import Final

import msgspec

from tbshare.volumes.rows import Children, DirectoryRow, FileRow, NameRow, VersionRow, author_of

GENERATED: Final = b" (from "  # in every name that nobody gave
NAME_BYTES_MAX: Final = 255
NODE_BYTES_MAX: Final = 64
_MADE: Final = re.compile(
    rb" \(from .+?, \d{4}-\d\d-\d\d \d\d\.\d\d(?: \d+)?\)(?=(?:\.tar)?(?:\.[0-9A-Za-z_+-]{1,16})?\Z)"
)  # what `_free_name` adds
_NANOSECONDS: Final = 10**9
_EXTENSION: Final = re.compile(rb"(?<=[^.])(?:\.tar)?\.[0-9A-Za-z_+-]{1,16}\Z")
_DESKTOP: Final = b".DS_Store"  # of the Finder: where icons are; no one wants two

NodeName = Callable[[bytes], str]  # the first 8 bytes of a node's key -> its name


class Shown(msgspec.Struct, frozen=True, gc=False):
    """One thing as a directory shows it."""

    name: bytes
    row: NameRow | DirectoryRow
    file: FileRow | None = None  # None for a directory
    head: VersionRow | None = None
    since: tuple[bytes, int] = (
        b"",
        0,
    )  # of a head beside its file's name: stamp and time where its branch began
    twins: tuple[NameRow, ...] = ()  # of files made apart with this name and these bytes: hidden, removed with it

    @property
    def fork(self) -> bool:
        """Whether it is a head beside the one under the file's name."""
        return self.since[0] != b""

    @property
    def given(self) -> bool:
        """Whether it is shown under the name that somebody gave it."""
        return self.name == self.row.name


def clash_key(name: bytes) -> bytes:
    """Return what two names share that a Mac takes for one: NFC and case-folded; bytes that are no UTF-8 stay."""
    if name.isascii():
        return name.lower()
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return name
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold()).encode()


def shown(children: Children, node_name: NodeName, *, sensitive: bool = False) -> list[Shown]:
    """Return what a directory shows, ordered by name; `sensitive` tells names apart that differ in case only."""
    key_of = bytes if sensitive else clash_key
    groups: dict[bytes, list[Shown]] = {}
    for row in children.directories:
        groups.setdefault(key_of(row.name), []).append(Shown(row.name, row))
    for name in _without_doubles(children.names):
        groups.setdefault(key_of(name.name), []).append(name)
    found: list[Shown] = []
    others: list[Shown] = []
    for group in groups.values():
        if len(group) > 1:
            group.sort(key=_order)
            others += group[1:]
        found.append(group[0])
        for item in group:
            if item.file is not None and len(item.file.heads) > 1 and item.name != _DESKTOP:
                beside = item.file.branches()[1:]
                others += [Shown(item.name, item.row, item.file, head, since) for head, since in beside]
    taken = set(groups)
    for item in sorted(others, key=_order):
        named = msgspec.structs.replace(item, name=_free_name(item, node_name, key_of, taken))
        taken.add(key_of(named.name))
        found.append(named)
    found.sort(key=lambda item: item.name)
    return found


def resolve(children: Children, name: bytes, node_name: NodeName, *, sensitive: bool = False) -> Shown | None:
    """Return what is shown under a name, or None; `children` are all of the directory's."""
    items = shown(children, node_name, sensitive=sensitive)
    for item in items:
        if item.name == name:
            return item
    key_of = bytes if sensitive else clash_key
    key = key_of(name)
    return next((item for item in items if key_of(item.name) == key), None)


def given(name: bytes) -> bytes:
    """Return the name that one which nobody gave was made from; any other as it is."""
    return _MADE.sub(b"", name) or name


def may_be_generated(name: bytes) -> bool:
    """Say whether a name can be one that nobody gave, so that the whole directory must be asked for it."""
    return GENERATED in name


def _without_doubles(names: Iterable[tuple[NameRow, FileRow]]) -> Iterable[Shown]:
    """Yield the names of saved files; of those with one name and the same bytes the first, and one .DS_Store."""
    by_name: dict[bytes, list[Shown]] = {}
    for row, file in names:
        if file.heads:
            by_name.setdefault(row.name, []).append(Shown(row.name, row, file, file.heads[0]))
    for name, items in by_name.items():
        if len(items) == 1:
            yield items[0]
        elif name == _DESKTOP:
            newest = max(items, key=lambda item: (item.file.heads[0].stamp, item.row.stamp) if item.file else ())
            yield msgspec.structs.replace(newest, twins=_rows(item for item in items if item is not newest))
        else:
            yield from _merged(items)


def _merged(items: list[Shown]) -> Iterable[Shown]:
    by_content: dict[tuple[object, ...], list[Shown]] = {}
    for item in sorted(items, key=_order):
        heads = item.file.shown_heads() if item.file else ()
        alone = (heads[0].contents, heads[0].content) if len(heads) == 1 else (item.row.id,)
        by_content.setdefault(alone, []).append(item)
    for first, *rest in by_content.values():
        yield msgspec.structs.replace(first, twins=_rows(rest)) if rest else first


def _rows(items: Iterable[Shown]) -> tuple[NameRow, ...]:
    rows = [item.row for item in items if isinstance(item.row, NameRow)]
    return tuple(sorted(rows, key=lambda row: row.stamp))


def _order(item: Shown) -> tuple[bytes, int, bytes]:
    """Order by who came first: a name by its placing, a head beside it by where its branch began."""
    return item.since[0] or item.row.stamp, item.row.id, item.head.stamp if item.head is not None else b""


def _free_name(item: Shown, node_name: NodeName, key_of: Callable[[bytes], bytes], taken: set[bytes]) -> bytes:
    stamp, time_ns = item.since if item.fork else (item.row.stamp, item.row.time_ns)
    node = _shortened(re.sub(r"[/:\0]", "-", node_name(author_of(stamp))).encode(), NODE_BYTES_MAX)
    moment = datetime.fromtimestamp(time_ns // _NANOSECONDS, UTC)
    when = moment.strftime("%Y-%m-%d %H.%M").encode()
    match = _EXTENSION.search(item.name) if item.file is not None else None
    extension = match[0] if match else b""
    stem = item.name.removesuffix(extension)
    for number in count(1):
        again = b" %d" % number if number > 1 else b""
        tail = b"%b%b, %b%b)%b" % (GENERATED, node, when, again, extension)
        name = _shortened(stem, NAME_BYTES_MAX - len(tail)) + tail
        if key_of(name) not in taken:
            return name
    raise AssertionError("numbers do not end")


def _shortened(text: bytes, most: int) -> bytes:
    """Return at most so many bytes of a text, without half a letter of UTF-8 at the end."""
    if len(text) <= most:
        return text
    end = most
    while end > most - 4 and text[end] & 0xC0 == 0x80:  # a byte inside a letter
        end -= 1
    return text[:end]
