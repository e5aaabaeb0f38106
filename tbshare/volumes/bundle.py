"""Inside a bundle: a directory that is one file, whose versions are trees.

A `Draft` is a bundle's tree while it is changed: only the directories on the way are read, and only those touched
are encoded again, from the bottom up. What it raises is what a mount answers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from tbshare.content.block import named_hash
from tbshare.content.tree import XATTR_BYTES_MAX, Entry, Kind, Tree
from tbshare.errors import (
    DirectoryNotEmpty,
    MoveImpossible,
    PathIsDirectory,
    PathMissing,
    PathNotDirectory,
    XattrsTooLarge,
)
from tbshare.volumes.item import Path, TreeAccess

SUFFIXES: Final = (
    b".fcpbundle", b".drp", b".logicx", b".photoslibrary", b".imovielibrary",
    b".tvlibrary", b".band", b".theater", b".dvdmedia",
)  # fmt: skip
FINDER_INFO: Final = b"com.apple.FinderInfo"
FINDER_INFO_BYTES: Final = 32
_HAS_BUNDLE: Final = 0x20  # in byte 8: kHasBundle of the Finder's flags
_INSIDE_CONTEXT: Final = "tbshare 2026-11-24 inode number inside a bundle"
DIRECTORY_MODE: Final = 0o755


def is_bundle_name(name: bytes) -> bool:
    """Say whether a directory of this name is a bundle."""
    return name.lower().endswith(SUFFIXES) and name.lower() not in SUFFIXES


def is_package(finder_info: bytes) -> bool:
    """Say whether this FinderInfo makes a directory a package, that is a bundle."""
    return len(finder_info) == FINDER_INFO_BYTES and bool(finder_info[8] & _HAS_BUNDLE)


def inside_id(file: int, path: Path) -> int:
    """Return the inode number of what lies at `path` in the bundle `file`."""
    return int.from_bytes(named_hash(_INSIDE_CONTEXT, [file.to_bytes(8, "big"), b"/".join(path)])[:8], "big") >> 1


@dataclass
class _Directory:
    """One directory of a draft. An entry whose directory is `opened` gets its tree and size in `Draft.finish`."""

    entries: dict[bytes, Entry]  # by key
    opened: dict[bytes, "_Directory"] = field(default_factory=dict[bytes, "_Directory"])
    touched: bool = False


@dataclass(frozen=True)
class Taken:
    """Something taken out of a draft, with what was opened below it."""

    entry: Entry
    opened: _Directory | None


class Draft:
    """The tree of a bundle, to be read and changed. `key` gives what names are compared by."""

    def __init__(self, trees: TreeAccess, root: bytes, key: Callable[[bytes], bytes], now_ns: int = 0) -> None:
        """Open the tree `root`, empty bytes being none yet; `now_ns` becomes the mtime of directories changed."""
        self._trees = trees
        self._key = key
        self._now_ns = now_ns
        self._root = self._read(root)
        self._root.touched = not root

    def _read(self, tree: bytes) -> _Directory:
        if not tree:
            return _Directory({})
        entries: dict[bytes, Entry] = {}
        for entry in self._trees.get(tree).entries:
            key = self._key(entry.name)  # of names that differ in case alone, each must stay reachable
            entries[key if key not in entries else entry.name] = entry
        return _Directory(entries)

    def _directory(self, path: Path, *, touch: bool = False) -> _Directory:
        here = self._root
        here.touched |= touch
        for name in path:
            where = self._where(here, name)
            entry = here.entries.get(where)
            if entry is None:
                raise PathMissing(f"nothing is called {shown(name)} in the bundle")
            if entry.kind != Kind.TREE:
                raise PathNotDirectory(f"{shown(name)} is not a directory")
            if where not in here.opened:
                here.opened[where] = self._read(entry.target)
            here = here.opened[where]
            here.touched |= touch
        return here

    def _where(self, directory: _Directory, name: bytes) -> bytes:
        """Return under which key a directory has this name, or would have it."""
        exact = directory.entries.get(name)
        if exact is not None and exact.name == name:
            return name
        return self._key(name)

    def find(self, path: Path) -> Entry | None:
        """Return what has this path, None when nothing has; PathNotDirectory, PathMissing for what is above it."""
        directory = self._directory(path[:-1])
        return directory.entries.get(self._where(directory, path[-1]))

    def list(self, path: Path) -> list[Entry]:
        """Return the entries of a directory, ordered by name."""
        return sorted(self._directory(path).entries.values(), key=lambda entry: entry.name)

    def put(self, path: Path, entry: Entry, opened: _Directory | None = None) -> None:
        """Put an entry at a path, under the path's name, in place of what is there."""
        _check(entry)
        directory = self._changed(path)
        where = self._where(directory, path[-1])
        directory.opened.pop(where, None)
        directory.entries[where] = msgspec.structs.replace(entry, name=path[-1])
        if opened is not None:
            directory.opened[where] = opened

    def describe(self, path: Path, entry: Entry) -> None:
        """Put an entry that differs in its attributes alone from what is there."""
        _check(entry)
        directory = self._directory(path[:-1], touch=True)
        directory.entries[self._where(directory, path[-1])] = entry

    def make_directories(self, path: Path) -> None:
        """Make the directories of a path that are missing."""
        for depth in range(1, len(path) + 1):
            if self.find(path[:depth]) is None:
                self.put(path[:depth], self.empty_directory())

    def empty_directory(self) -> Entry:
        """Return the entry of an empty directory; its name is given by `put`."""
        return Entry(b"-", Kind.TREE, self._trees.put(Tree([])), 0, DIRECTORY_MODE, self._now_ns)

    def take(self, path: Path) -> Taken:
        """Take something out; PathMissing."""
        directory = self._changed(path)
        where = self._where(directory, path[-1])
        entry = directory.entries.pop(where, None)
        if entry is None:
            raise PathMissing(f"nothing is called {shown(path[-1])} in the bundle")
        return Taken(entry, directory.opened.pop(where, None))

    def move(self, source: Path, target: Path, *, exchange: bool = False) -> None:
        """Move within the bundle as POSIX does, over a file or an empty directory too."""
        if target[: len(source)] == source and len(target) > len(source):
            raise MoveImpossible(f"{shown(source[-1])} cannot go below itself")
        there = self.find(target)
        taken = self.take(source)
        if there is not None and exchange:
            other = self.take(target)
            self.put(source, other.entry, other.opened)
        elif there is not None and self._where_of(source) != self._where_of(target):
            self._check_over(taken.entry, there, target)
        self.put(target, taken.entry, taken.opened)

    def _where_of(self, path: Path) -> Path:
        return tuple([self._key(name) for name in path])

    def _check_over(self, moved: Entry, there: Entry, target: Path) -> None:
        check_over(moved.kind == Kind.TREE, there.kind == Kind.TREE, target[-1])
        if there.kind == Kind.TREE and self.list(target):
            raise DirectoryNotEmpty(f"{shown(target[-1])} is not empty")

    def _changed(self, path: Path) -> _Directory:
        """Return the directory that holds `path`, to be changed now."""
        directory = self._directory(path[:-1], touch=True)
        if len(path) > 1:
            above = self._directory(path[:-2])
            where = self._where(above, path[-2])
            above.entries[where] = msgspec.structs.replace(above.entries[where], mtime_ns=self._now_ns)
        return directory

    def finish(self) -> Tree:
        """Return the tree as it is now; it and the directories touched are kept by the store."""
        return self._finished(self._root)

    def _finished(self, directory: _Directory) -> Tree:
        for where, below in directory.opened.items():
            if below.touched:
                tree = self._finished(below)
                entry = directory.entries[where]
                directory.entries[where] = msgspec.structs.replace(entry, target=tree.id, size=tree.size)
        tree = Tree(directory.entries.values())
        self._trees.put(tree)
        return tree


def check_over(moved_is_directory: bool, there_is_directory: bool, name: bytes) -> None:
    """PathIsDirectory or PathNotDirectory when a rename would put a file over a directory, or the reverse."""
    if there_is_directory and not moved_is_directory:
        raise PathIsDirectory(f"{shown(name)} is a directory")
    if moved_is_directory and not there_is_directory:
        raise PathNotDirectory(f"{shown(name)} is not a directory")


def _check(entry: Entry) -> None:
    if sum(len(name) + len(value) for name, value in entry.xattrs) > XATTR_BYTES_MAX:
        raise XattrsTooLarge(f"the attributes of a file in a bundle are at most {XATTR_BYTES_MAX} bytes")


def shown(name: bytes) -> str:
    """Return a name as it can stand in a message."""
    text = name.decode("utf-8", "backslashreplace")
    return ascii(text) if not text.isprintable() else f"{text[:120]!r}"
