"""The rows of one volume's namespace, as the fold makes them and as `tables` stores them. Pure.

Every row is a function of the set of ops alone, so two nodes that folded the same ops have equal rows. A stamp
orders ops: Lamport time, the first bytes of the author's key, the entry's hash, the op's number in it. Sets of ids
are sorted tuples without doubles: equal sets are equal rows, and equal bytes on the disk. No row can be part of a
cycle of references, so the garbage collector need not look at them (`gc=False`).
"""

from typing import Final, Literal

import msgspec

from tbshare.content.block import named_hash
from tbshare.volumes.entry import Contents
from tbshare.volumes.ids import ROOT

STAMP_AUTHOR: Final = slice(8, 16)  # of a stamp: the first bytes of its author's key
AGAIN_CONTEXT: Final = "tbshare 2026-11-24 version id given again"
NO_STAMP: Final = b""  # lower than any


def author_of(stamp: bytes) -> bytes:
    """Return the first 8 bytes of the key of the node that wrote the op of this stamp."""
    return stamp[STAMP_AUTHOR]


class VersionRow(msgspec.Struct, array_like=True, gc=False):
    """One saved state of a file. An id given twice, by a machine that was copied as it ran: see `version_again`.

    Or the value of an extended attribute that is an object ("xattr"), of a file or a directory: a node holds its
    bytes as those of a version. It has no parents, is no head, and its `version` is negative, as no save's is.
    """

    file: int
    version: int
    parents: tuple[int, ...]
    contents: Contents | Literal["xattr"]
    content: bytes
    size: int
    mtime_ns: int
    epoch: int
    stamp: bytes
    time_ns: int

    @property
    def author(self) -> bytes:
        """The first 8 bytes of the key of the node that saved it."""
        return self.stamp[STAMP_AUTHOR]

    @property
    def kind(self) -> Contents:
        """What was saved."""
        assert self.contents != "xattr", "nobody saved an attribute"
        return self.contents


def version_again(version: int, stamp: bytes) -> int:
    """Return the next id for the op of this stamp, when another op has the one it gave."""
    digest = named_hash(AGAIN_CONTEXT, [version.to_bytes(8, "big"), stamp])
    return int.from_bytes(digest[:8], "big") >> 1 or 1


def version_of_large(content: bytes) -> int:
    """Return what the bytes of an xattr have as their version."""
    return ~(int.from_bytes(content[:8], "big") >> 1)


class Attributes(msgspec.Struct, array_like=True, gc=False):
    """What was described: each value with the stamp of the op that set it, None where nobody did.

    An xattr whose value is None was removed.
    """

    mode: tuple[int, bytes] | None = None
    uid: tuple[int, bytes] | None = None
    gid: tuple[int, bytes] | None = None
    mtime_ns: tuple[int, bytes] | None = None
    birthtime_ns: tuple[int, bytes] | None = None
    xattrs: dict[bytes, tuple[bytes | None, bytes]] = {}

    def living_xattrs(self) -> dict[bytes, bytes]:
        """Return the xattrs that are set, by name, in the order of their names."""
        return {name: value for name, (value, _) in sorted(self.xattrs.items()) if value is not None}


class NameRow(msgspec.Struct, array_like=True, gc=False):
    """A name of a file: its winning Place, and what was removed of it."""

    id: int
    parent: int = ROOT
    name: bytes = b""
    file: int = 0  # 0 until it was placed
    place: int = 0
    stamp: bytes = NO_STAMP
    time_ns: int = 0
    alive: bool = False
    gone: tuple[int, ...] = ()  # places that were removed, this one or others
    seen: tuple[int, ...] = ()  # versions that those who removed it knew

    @property
    def author(self) -> bytes:
        """The first 8 bytes of the key of the node that placed it."""
        return self.stamp[STAMP_AUTHOR]


class DirectoryRow(msgspec.Struct, array_like=True, gc=False):
    """A directory: where it is, by the last Move that makes no cycle, and what is in it."""

    id: int
    parent: int = ROOT
    name: bytes = b""
    stamp: bytes = NO_STAMP  # of the Move that put it there; empty while it is nowhere
    time_ns: int = 0
    place: int = 0  # of its newest Move, even when that one is skipped: what a removal names
    placed: bytes = NO_STAMP  # the newest Move's stamp
    alive: bool = False
    used: bool = False  # some Move named it as a parent
    children: int = 0  # alive names and directories in it
    gone: tuple[int, ...] = ()
    attributes: Attributes | None = None

    @property
    def author(self) -> bytes:
        """The first 8 bytes of the key of the node that put it there."""
        return self.stamp[STAMP_AUTHOR]


class FileRow(msgspec.Struct, array_like=True, gc=False):
    """A file: its heads, the one under the name first, and its names."""

    id: int
    heads: tuple[VersionRow, ...] = ()
    since: tuple[tuple[bytes, int], ...] = ()  # of several heads: stamp and time where the branch of each began
    names: tuple[int, ...] = ()  # placed for this file, alive or not
    standing: int = 0  # names whose place was not removed
    revived: int = 0  # the name that lives although removed, for a head its removers had not seen; 0: none
    weight: int = -1  # logical bytes of its shown heads; -1 when it is not to be seen
    waiting: tuple[int, ...] = ()  # parents of its versions that have not come yet
    attributes: Attributes | None = None
    orderly: bool = False  # it has several heads, and none of what they come from is later than what came of it

    @property
    def alive(self) -> bool:
        """Whether it has a name that lives."""
        return self.standing > 0 or self.revived != 0

    @property
    def mtime_ns(self) -> int:
        """The modification time: of the head under the name, unless it was described later."""
        saved = self.heads[0] if self.heads else None
        described = self.attributes.mtime_ns if self.attributes is not None else None
        if described is not None and (saved is None or described[1] > saved.stamp):
            return described[0]
        return saved.mtime_ns if saved is not None else 0

    def shown_heads(self) -> tuple[VersionRow, ...]:
        """Return the heads without those that have the content of an earlier one: at most one each."""
        return tuple([head for head, _ in self.branches()]) if len(self.heads) > 1 else self.heads

    def branches(self) -> list[tuple[VersionRow, tuple[bytes, int]]]:
        """Return the shown heads of a file that has several, each with stamp and time where its branch began."""
        first: dict[tuple[str, bytes], tuple[VersionRow, tuple[bytes, int]]] = {}
        began = self.since or [(head.stamp, head.time_ns) for head in self.heads]
        for head, since in zip(self.heads, began, strict=True):
            first.setdefault((head.contents, head.content), (head, since))
        return list(first.values())


class Children(msgspec.Struct, frozen=True):
    """What is in a directory, before `shown` says under which names."""

    names: list[tuple[NameRow, FileRow]]
    directories: list[DirectoryRow]

    def __bool__(self) -> bool:
        return bool(self.names or self.directories)


class MoveRow(msgspec.Struct, array_like=True, gc=False):
    """One Move, in the order of stamps; `before` is what undoing it returns to."""

    stamp: bytes
    id: int
    parent: int
    name: bytes
    place: int
    time_ns: int
    before: bytes | None = None  # the stamp the directory had; None when this is skipped, as it would make a cycle


class Changes(msgspec.Struct):
    """What folding a batch touched: ids whose rows, or whose listing, may have changed, and the new versions.

    And what no row tells afterwards: of names and directories that were put somewhere, where each was before, None
    for nowhere; of those that were taken away, and of files and directories that were described, stamp and time.
    """

    files: set[int] = msgspec.field(default_factory=set[int])
    directories: set[int] = msgspec.field(default_factory=set[int])
    versions: list[VersionRow] = msgspec.field(default_factory=list[VersionRow])
    placed: dict[int, tuple[int, bytes] | None] = msgspec.field(
        default_factory=dict[int, tuple[int, bytes] | None]
    )
    removed: dict[int, tuple[bytes, int]] = msgspec.field(default_factory=dict[int, tuple[bytes, int]])
    described: dict[int, tuple[bytes, int]] = msgspec.field(default_factory=dict[int, tuple[bytes, int]])
    anew: bool = False  # all may be another than before: the tables were made anew

    def __bool__(self) -> bool:
        return bool(self.files or self.directories or self.versions or self.anew)
