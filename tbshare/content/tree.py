"""The tree: a directory, as names to objects, trees and symbolic links. Its hash is the tree id.

Encoding: a msgpack array [level, entries], ordered by name; an entry is
[name, kind, target, size, mode, mtime_ns, xattrs]. Names are bytes as the file system gave them, 1 to 255 of
them, without `/` and NUL, and not `.` or `..`.
"""

from collections.abc import Iterable
from enum import IntEnum
from functools import cached_property

import msgspec

from tbshare.content.block import HASH_BYTES, TreeId, named_hash
from tbshare.errors import FormatInvalid

LEVEL = 1
TREE_CONTEXT = "tbshare 2026-11-23 tree id"
NAME_BYTES_MAX = 255
LINK_BYTES_MAX = 4096
XATTR_BYTES_MAX = 4096
ENTRIES_MAX = 500_000
DEPTH_MAX = 128
LARGE = b"\0"  # before the name of an xattr whose value is an object; no xattr's own name has it
LARGE_BYTES = HASH_BYTES + 8  # the object's id and its size


def large_of(name: bytes, value: bytes) -> tuple[bytes, int] | None:
    """Return object and size of an xattr, as it is stored, whose value is an object; None for any other."""
    if not name.startswith(LARGE) or len(value) != LARGE_BYTES:
        return None
    return value[:HASH_BYTES], int.from_bytes(value[HASH_BYTES:], "big")


class Kind(IntEnum):
    """What an entry's target is."""

    FILE = 0
    TREE = 1
    LINK = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One name of a directory. `size` is the file's size in bytes, or the sum of what is below a tree."""

    name: bytes
    kind: Kind
    target: bytes  # object id, tree id, or where the link points
    size: int
    mode: int  # permission bits only
    mtime_ns: int
    xattrs: list[tuple[bytes, bytes]] = []  # ordered by name

    def objects(self) -> list[tuple[bytes, int]]:
        """Return the objects it names, with their sizes: a file's bytes, and xattrs too large for here."""
        found = [large_of(name, value) for name, value in self.xattrs] if self.xattrs else []
        own = [(self.target, self.size)] if self.kind == Kind.FILE else []
        return own + [each for each in found if each is not None]


class _Encoded(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    level: int
    entries: list[Entry]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Encoded)


class Tree:
    """A directory's entries, ordered by name. Immutable, compared by id."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Take the entries in any order; FormatInvalid when a name or target is not allowed."""
        self.entries = sorted(entries, key=lambda entry: entry.name)
        if len(self.entries) > ENTRIES_MAX:
            raise FormatInvalid(f"a directory of more than {ENTRIES_MAX} names")
        previous = None
        for entry in self.entries:
            if entry.name == previous:
                raise FormatInvalid(f"the name {entry.name!r} twice in one directory")
            check_entry(entry)
            previous = entry.name

    @cached_property
    def encoded(self) -> bytes:
        """The canonical encoding."""
        return _encoder.encode(_Encoded(LEVEL, self.entries))

    @cached_property
    def id(self) -> TreeId:
        """The tree id."""
        return TreeId(named_hash(TREE_CONTEXT, [self.encoded]))

    @property
    def size(self) -> int:
        """Bytes of all files below."""
        return sum(entry.size for entry in self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


def check_name(name: bytes) -> None:
    """FormatInvalid unless a directory can hold this name."""
    if not name or len(name) > NAME_BYTES_MAX:
        raise FormatInvalid(f"a name of {len(name)} bytes; 1 to {NAME_BYTES_MAX} are possible")
    if b"/" in name or b"\0" in name or name in (b".", b".."):
        raise FormatInvalid(f"{name!r} is no name for a file")


def check_entry(entry: Entry) -> None:
    """FormatInvalid unless the entry is one that a directory can hold."""
    check_name(entry.name)
    if entry.kind == Kind.LINK:
        if not 0 < len(entry.target) <= LINK_BYTES_MAX or b"\0" in entry.target:
            raise FormatInvalid(f"the link {entry.name!r} points nowhere")
    elif len(entry.target) != HASH_BYTES:
        raise FormatInvalid(f"{entry.name!r} names its contents by something that is no id")
    if entry.size < 0 or not 0 <= entry.mode <= 0o7777:
        raise FormatInvalid(f"{entry.name!r} has an impossible size or mode")
    names = [name for name, _ in entry.xattrs]
    if names != sorted(set(names)):
        raise FormatInvalid(f"the attributes of {entry.name!r} are out of order")
    if sum(len(name) + len(value) for name, value in entry.xattrs) > XATTR_BYTES_MAX:
        raise FormatInvalid(f"the attributes of {entry.name!r} are larger than {XATTR_BYTES_MAX} bytes")


def decode(data: bytes) -> Tree:
    """Return the tree; FormatInvalid when the bytes are not the one encoding of one."""
    try:
        fields = _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError, OverflowError) as error:
        raise FormatInvalid(f"not a directory listing: {error}") from error
    if fields.level != LEVEL:
        raise FormatInvalid(f"a directory listing of level {fields.level}; this version reads {LEVEL}")
    tree = Tree(fields.entries)
    if tree.encoded != data:
        raise FormatInvalid("a directory listing in other than its one encoding")
    return tree


def leaves_tree(path: tuple[bytes, ...], target: bytes) -> bool:
    """Return whether a link at `path` (names from the root down) points out of the tree or is absolute."""
    if target.startswith(b"/"):
        return True
    depth = len(path) - 1
    for part in target.split(b"/"):
        if part == b"..":
            depth -= 1
            if depth < 0:
                return True
        elif part not in (b"", b"."):
            depth += 1
    return False
