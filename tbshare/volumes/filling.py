"""Many things put into a volume at once: what copying a directory in, or taking footage in, is made of."""

from dataclasses import dataclass

from tbshare.content import tree
from tbshare.errors import PathExists, PathInvalid, PathIsDirectory, PathNotDirectory
from tbshare.volumes.bundle import DIRECTORY_MODE, Draft, is_bundle_name
from tbshare.volumes.ids import ROOT
from tbshare.volumes.item import Attributes, Content, Path, Put
from tbshare.volumes.opened import Opened
from tbshare.volumes.paths import FILE_MODE, LINK_MODE, Found, at, checked, found_in, joined
from tbshare.volumes.writing import Writing

_KINDS = {
    "file": tree.Kind.FILE,
    "link": tree.Kind.LINK,
    "bundle": tree.Kind.TREE,
    "directory": tree.Kind.TREE,
}


@dataclass(frozen=True)
class _Directory:
    """A directory things are put into; one that this writing makes is not in the tables yet."""

    id: int
    made: bool


@dataclass(frozen=True)
class _Bundle:
    """A bundle, or a directory in one, that things are put into; a new one is made in `finish`."""

    draft: Draft
    inside: Path = ()


@dataclass
class _New:
    """A bundle that is not there yet."""

    parent: int
    name: bytes
    draft: Draft
    attributes: Attributes | None = None


class Filling:
    """Puts things into a volume through one writing. What an earlier one made, a later one finds."""

    def __init__(self, opened: Opened, writing: Writing) -> None:
        self._opened = opened
        self._writing = writing
        self._into: dict[Path, _Directory | _Bundle] = {(): _Directory(ROOT, made=False)}  # by keys
        self._new: dict[Path, _New] = {}
        self._put: set[Path] = set()

    def put(self, put: Put) -> int:
        """Put one thing, with the directories above it that are missing; return its file, 0 in a bundle."""
        key = self._key(checked(put.path))
        if not key:
            raise PathInvalid("the root of a volume is there already")
        if key in self._put:
            raise PathExists(f"{at(put.path)} is put there twice")
        into = self._directory(put.path[:-1])
        if put.kind != "directory":
            self._put.add(key)
        if isinstance(into, _Bundle):
            self._put_inside(into, put)
            return 0
        found = Found(put.path, into.id) if into.made else found_in(self._opened, put.path, into.id)
        if put.new and found.item is not None:
            raise PathExists(f"{at(put.path)} is there already")
        if put.kind == "directory":
            self._put_directory(key, found, put)
            return 0
        return self._put_file(key, found, put)

    def finish(self) -> None:
        """Save the bundles that are new."""
        for new in self._new.values():
            finished = new.draft.finish()
            content = Content(finished.id, finished.size, self._opened.shared.time_ns(), "bundle")
            self._writing.new_file(new.parent, new.name, content, new.attributes)

    def _key(self, path: Path) -> Path:
        return tuple([self._opened.key_of(name) for name in path])

    def _directory(self, path: Path) -> _Directory | _Bundle:
        """Return where things of a directory are put, making it, and those above it, where they are missing."""
        key = self._key(path)
        known = self._into.get(key)
        if known is None:
            above = self._directory(path[:-1])
            known = self._below(above, path) if isinstance(above, _Directory) else self._inside(above, path[-1])
            self._into[key] = known
        return known

    def _below(self, above: _Directory, path: Path) -> _Directory | _Bundle:
        found = Found(path, above.id) if above.made else found_in(self._opened, path, above.id)
        if found.item is None:
            return self._make(self._key(path), found)
        if found.directory is not None:
            return _Directory(found.directory.id, made=False)
        if found.item.kind != "bundle":
            raise PathNotDirectory(f"{at(path)} is not a directory")
        return _Bundle(self._writing.draft(found))

    def _inside(self, above: _Bundle, name: bytes) -> _Bundle:
        inside = (*above.inside, name)
        above.draft.make_directories(inside)
        return _Bundle(above.draft, inside)

    def _make(self, key: Path, found: Found) -> _Directory | _Bundle:
        name = found.path[-1]
        if not is_bundle_name(name):
            return _Directory(self._writing.move(found.parent, name), made=True)
        draft = Draft(self._opened.shared.trees, b"", self._opened.key_of, self._opened.shared.time_ns())
        self._new[key] = _New(found.parent, name, draft)
        return _Bundle(draft)

    def _put_directory(self, key: Path, found: Found, put: Put) -> None:
        into = self._directory(put.path)
        if put.attributes is None:
            return
        if key in self._new:
            self._new[key].attributes = put.attributes
        elif isinstance(into, _Directory):
            known = found.directory.attributes if found.directory is not None else None
            self._writing.describe(into.id, put.attributes, known, directory=True)
        elif found.file is not None:
            self._writing.describe(found.file.id, put.attributes, found.file.attributes)

    def _put_file(self, key: Path, found: Found, put: Put) -> int:
        if put.content is None:
            raise PathInvalid(f"{at(put.path)} has no content")
        writing = self._writing
        if key in self._into or found.directory is not None:
            raise PathIsDirectory(f"{at(put.path)} is a directory")
        if found.file is None or found.head is None:
            return writing.new_file(found.parent, put.path[-1], put.content, put.attributes)
        head = found.head
        if (head.contents == "bundle") != (put.kind == "bundle"):
            raise PathIsDirectory(f"{at(put.path)} is {'' if head.contents == 'bundle' else 'not '}a directory")
        if (head.contents, head.content) != (put.content.kind, put.content.content):
            parents = (head.version,) if put.base is None else put.base
            writing.save(found.file, put.content, parents, instead_of=[head])
            writing.remove_twins(found)
        if put.attributes is not None:
            writing.describe(found.file.id, put.attributes, found.file.attributes)
        return found.file.id

    def _put_inside(self, into: _Bundle, put: Put) -> None:
        inside = (*into.inside, put.path[-1])
        if put.kind == "directory":
            into.draft.make_directories(inside)
        elif put.content is None:
            raise PathInvalid(f"{at(put.path)} has no content")
        elif put.new and into.draft.find(inside) is not None:
            raise PathExists(f"{at(put.path)} is there already")
        else:
            into.draft.put(inside, new_entry(put.path[-1], put.content, None))
        if put.attributes is not None:
            entry = into.draft.find(inside)
            assert entry is not None, "it was put there"
            into.draft.describe(inside, described(entry, put.attributes))


def new_entry(name: bytes, content: Content, attributes: Attributes | None) -> tree.Entry:
    """Return the entry of a tree that a new file is."""
    mode = {"link": LINK_MODE, "bundle": DIRECTORY_MODE}.get(content.kind, FILE_MODE)
    size = 0 if content.kind == "link" else content.size
    entry = tree.Entry(name, _KINDS[content.kind], content.content, size, mode, content.mtime_ns)
    return entry if attributes is None else described(entry, attributes)


def described(entry: tree.Entry, attributes: Attributes) -> tree.Entry:
    """Return an entry with attributes changed; a tree keeps no owner."""
    known = dict(entry.xattrs)
    xattrs = {**known, **joined(attributes.xattrs, known)}
    return tree.Entry(
        entry.name,
        entry.kind,
        entry.target,
        entry.size,
        entry.mode if attributes.mode is None else attributes.mode & 0o7777,
        entry.mtime_ns if attributes.mtime_ns is None else attributes.mtime_ns,
        sorted([(name, value) for name, value in xattrs.items() if value is not None]),
    )
