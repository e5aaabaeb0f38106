"""What a volume shows of itself: items of a directory, lines of a history, conflicts, changes. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from tbshare.content.tree import Tree

Path = tuple[bytes, ...]  # names from the volume's root down; () is the root
Kind = Literal["file", "directory", "bundle", "link"]


class TreeAccess(Protocol):
    """Where the trees of bundles are: the store of this node."""

    def get(self, tree: bytes) -> Tree:
        """Return the tree of this id; ObjectMissing when it is not on this node."""
        ...

    def put(self, tree: Tree) -> bytes:
        """Keep a tree, durably, and return its id."""
        ...


class Large(msgspec.Struct, frozen=True):
    """The value of an extended attribute that is too large for the log: an object, as a file's bytes are."""

    object: bytes
    size: int


class Item(msgspec.Struct, frozen=True, gc=False):  # no cycle can be made of it, and there may be many
    """One name as it is shown: a file, a directory, a bundle or a symbolic link.

    `id` serves as inode number: hard links share it, and a head shown under a name of its own has another.
    """

    name: bytes  # as shown, so a fork's name tells whose it is; b"" for the root
    id: int
    file: int  # what saves go to: the file, or the directory's id; inside a bundle the bundle's file
    kind: Kind
    version: int = 0  # the head that is shown; 0 for a directory
    content: bytes = b""  # object, tree of a bundle, or where a link points; a directory in a bundle: its tree
    size: int = 0
    mode: int = 0  # permission bits
    uid: int | None = None  # None: nobody said; a mount shows its own user
    gid: int | None = None
    mtime_ns: int = 0
    ctime_ns: int = 0
    birthtime_ns: int = 0
    xattrs: Mapping[bytes, bytes] = {}
    large_xattrs: Mapping[bytes, Large] = {}
    links: int = 1
    fork: bool = False  # shown beside the file it belongs to, not under its name
    author: bytes = b""  # node that saved the version
    heads: int = 1  # how many versions of the file are shown; more than one is a conflict
    inside: bool = False  # in a bundle, or the bundle's own root

    @property
    def is_directory(self) -> bool:
        """Whether it is listed, as a directory or a bundle."""
        return self.kind in ("directory", "bundle")


class Content(msgspec.Struct, frozen=True):
    """What a save gives a file; the bytes are in the store already, and durable."""

    content: bytes  # object id, tree id, or where the link points
    size: int = 0
    mtime_ns: int = 0
    kind: Literal["file", "bundle", "link"] = "file"


class Attributes(msgspec.Struct, frozen=True):
    """What to change of an item's attributes; None, and a name that is not given, stays as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    birthtime_ns: int | None = None
    xattrs: Mapping[bytes, bytes | Large | None] = {}  # None takes the attribute away


class Saved(msgspec.Struct, frozen=True):
    """A save that is durable on this node; `fork` when it stands beside another head."""

    file: int
    version: int
    path: Path  # as it is shown now
    fork: bool
    entry: bytes = b""  # hash of the log entry, for `Log.unacknowledged`


class Line(msgspec.Struct, frozen=True):
    """One version in a file's history, newest first."""

    path: Path  # where the file is, or was last
    file: int
    version: int
    parents: tuple[int, ...]
    author: bytes
    time_ns: int  # by the author's clock; for people
    content: bytes
    size: int
    mtime_ns: int
    kind: Literal["file", "bundle", "link"]
    head: bool
    stamp: bytes = b""  # its place in the order of ops
    shown: bytes = b""  # name it has in its directory now; empty when it is history
    expired: bool = False  # its bytes were given up by retention


class Conflict(msgspec.Struct, frozen=True):
    """Items that want one name: heads of one file, or several files."""

    path: Path
    kind: Literal["versions", "names"]
    items: tuple[Item, ...]  # the first is under the name


class Change(msgspec.Struct, frozen=True):
    """Something happened to a path; `item` is what is there now, None when nothing is."""

    path: Path
    item: Item | None
    what: Literal["saved", "placed", "moved", "removed", "described"] = "saved"  # placed: it was nowhere before
    before: Path | None = None  # where it was, of what was moved
    author: bytes = b""  # node that did it
    time_ns: int = 0  # by its clock
    kind: Kind = "file"  # of what was removed


@dataclass(frozen=True)
class Totals:
    """What a volume holds: the heads that are shown, as quotas count it."""

    files: int
    size_bytes: int
    quota_bytes: int = 0  # 0: none


class Put(msgspec.Struct, frozen=True):
    """One of many things to be put into a volume at once: `Handle.put_many`.

    `base` is as for `Handle.save`; what is inside a bundle forks with it. With `new` the name must be free.
    """

    path: Path
    kind: Kind
    content: Content | None = None  # None for a directory
    attributes: Attributes | None = None
    base: tuple[int, ...] | None = None
    new: bool = False
