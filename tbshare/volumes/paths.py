"""Paths of a volume: which are allowed, and what they lead to.

A path is walked down from the root, one query a part. A part may be a name somebody gave, or one that only stands
for a fork or a clash, `Film (from studio-2, 2026-11-23 14.05).fcpbundle`. Where it leads into a bundle, the rest
of it is looked up in the tree of the version that is shown there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from tbshare.content import tree
from tbshare.content.tree import DEPTH_MAX, LARGE, NAME_BYTES_MAX, large_of
from tbshare.errors import NameTooLong, PathInvalid, PathMissing, PathNotDirectory
from tbshare.volumes.bundle import Draft, inside_id
from tbshare.volumes.bundle import shown as quoted
from tbshare.volumes.ids import ROOT
from tbshare.volumes.item import Item, Kind, Large, Path
from tbshare.volumes.opened import Opened
from tbshare.volumes.rows import Attributes, DirectoryRow, FileRow, NameRow, VersionRow
from tbshare.volumes.shown import Shown, clash_key, may_be_generated, resolve, shown

DIRECTORY_MODE: Final = 0o755
_NO_ATTRIBUTES: Final = Attributes()
FILE_MODE: Final = 0o644
LINK_MODE: Final = 0o777
Default = TypeVar("Default", int, None)
_KINDS: Final[dict[tree.Kind, Kind]] = {
    tree.Kind.FILE: "file", tree.Kind.TREE: "directory", tree.Kind.LINK: "link"
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Where a path leads: the rows, or what a name would be put into when `item` is None."""

    path: Path
    parent: int = ROOT  # the directory it is in; of a bundle, the one that the bundle is in
    item: Item | None = None
    name: NameRow | None = None
    file: FileRow | None = None
    head: VersionRow | None = None  # which of the file's heads is shown there
    directory: DirectoryRow | None = None
    fork: bool = False
    inside: Path = ()  # the part of the path that is within the bundle `file`
    twins: tuple[NameRow, ...] = ()  # names hidden behind this one, with the same bytes

    def there(self) -> Item:
        """Return the item; PathMissing."""
        if self.item is None:
            raise PathMissing(f"nothing is called {at(self.path)}")
        return self.item


def at(path: Path) -> str:
    """Return a path as it can stand in a message."""
    return quoted(b"/" + b"/".join(path))


def checked(path: Path) -> Path:
    """Return the path; PathInvalid or NameTooLong when no volume can hold it, or it would leave the volume."""
    if len(path) > DEPTH_MAX:
        raise NameTooLong(f"a path of {len(path)} names; {DEPTH_MAX} are possible")
    for name in path:
        # 255 UTF-16 units, what a Mac allows, are never more than 255 bytes of UTF-8 hold.
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLong(
                f"a name of {len(name)} bytes; {NAME_BYTES_MAX} are possible: {quoted(name[:40])}..."
            )
        if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
            raise PathInvalid(f"{quoted(name)} is no name of a file in a volume")
    return path


def find(opened: Opened, path: Path) -> Found:
    """Return where a path leads; PathMissing and PathNotDirectory are about what is above the last name."""
    checked(path)
    if not path:
        return _root(opened)
    parent = ROOT
    for depth in range(len(path) - 1):
        known = opened.step(parent, path[depth])
        if known is None:
            folds = opened.folds
            here = found_in(opened, path[: depth + 1], parent)
            if here.item is None:
                raise PathMissing(f"nothing is called {at(here.path)}")
            if here.item.kind == "bundle":
                return _inside(opened, here, path, path[depth + 1 :])
            if here.item.kind != "directory":
                raise PathNotDirectory(f"{at(here.path)} is not a directory")
            known = here.item.file
            opened.note_step(parent, path[depth], known, folds)
        parent = known
    return found_in(opened, path, parent)


def found_in(opened: Opened, path: Path, parent: int) -> Found:
    """Return what the directory `parent`, to which the path leads but for its last name, shows under that."""
    one = _named(opened, parent, path[-1])
    return Found(path, parent) if one is None else _found(opened, path, parent, one)


def deepest(opened: Opened, path: Path) -> Found:
    """Return what the longest part of a path leads to that is there."""
    while True:
        try:
            found = find(opened, path)
        except (PathMissing, PathNotDirectory):
            found = Found(path)
        if found.item is not None:
            return found
        path = path[:-1]


def _root(opened: Opened) -> Found:
    row = opened.tables.directory(ROOT)
    assert row is not None, "every volume has a root"
    return Found((), ROOT, directory_item(opened, row, b""), directory=row)


def _named(opened: Opened, parent: int, name: bytes) -> Shown | None:
    """Return what a directory shows under a name."""
    key, sensitive = clash_key(name), opened.case_sensitive
    group = opened.tables.child(parent, key)
    one = resolve(group, name, opened.node_name, sensitive=sensitive) if group else None
    if one is None and may_be_generated(name):
        one = resolve(opened.tables.children(parent), name, opened.node_name, sensitive=sensitive)
    return one


def _found(opened: Opened, path: Path, parent: int, one: Shown) -> Found:
    item = item_of(opened, one)
    if isinstance(one.row, DirectoryRow):
        return Found(path, parent, item, directory=one.row)
    assert one.file is not None
    return Found(path, parent, item, one.row, one.file, one.head, fork=one.fork, twins=one.twins)


def listed(opened: Opened, path: Path) -> list[Found]:
    """Return what is in a directory or a bundle, ordered by name; PathMissing, PathNotDirectory."""
    found = _listable(opened, path)
    if found.file is not None:
        return _listed_inside(opened, found)
    parent = found.there().file
    return [_found(opened, (*path, one.name), parent, one) for one in _shown_in(opened, parent)]


def items(opened: Opened, path: Path) -> list[Item]:
    """Return what `listed` finds as items alone: a directory may have many."""
    found = _listable(opened, path)
    if found.file is not None:
        return [one.there() for one in _listed_inside(opened, found)]
    return [item_of(opened, one) for one in _shown_in(opened, found.there().file)]


def _listable(opened: Opened, path: Path) -> Found:
    found = find(opened, path)
    if not found.there().is_directory:
        raise PathNotDirectory(f"{at(path)} is not a directory")
    return found


def _shown_in(opened: Opened, directory: int) -> list[Shown]:
    return shown(opened.tables.children(directory), opened.node_name, sensitive=opened.case_sensitive)


# ---- inside bundles ---------------------------------------------------------------------------------------------


def draft_of(opened: Opened, found: Found) -> Draft:
    """Return the tree of the bundle that a path leads into, as it is in the version shown there, to be changed."""
    assert found.head is not None
    return Draft(opened.shared.trees, found.head.content, opened.key_of, opened.shared.time_ns())


def _inside(opened: Opened, bundle: Found, path: Path, rest: Path) -> Found:
    entry = draft_of(opened, bundle).find(rest)
    item = None if entry is None else item_inside(bundle, rest, entry)
    return Found(
        path, bundle.parent, item, bundle.name, bundle.file, bundle.head, fork=bundle.fork, inside=rest,
    )  # fmt: skip


def _listed_inside(opened: Opened, found: Found) -> list[Found]:
    return [
        Found(
            (*found.path, entry.name), found.parent, item_inside(found, (*found.inside, entry.name), entry),
            found.name, found.file, found.head, fork=found.fork, inside=(*found.inside, entry.name),
        )
        for entry in draft_of(opened, found).list(found.inside)
    ]  # fmt: skip


def item_inside(bundle: Found, inside: Path, entry: tree.Entry) -> Item:
    """Return an entry of a bundle's tree as an item."""
    assert bundle.file is not None
    assert bundle.head is not None
    assert bundle.item is not None
    plain, large = parted(dict(entry.xattrs))
    whose = bundle.head.version if bundle.fork else bundle.file.id
    return Item(
        name=entry.name,
        id=inside_id(whose, inside),
        file=bundle.file.id,
        kind=_KINDS[entry.kind],
        version=bundle.head.version,
        content=entry.target,
        size=len(entry.target) if entry.kind == tree.Kind.LINK else entry.size,
        mode=entry.mode,
        uid=bundle.item.uid,
        gid=bundle.item.gid,
        mtime_ns=entry.mtime_ns,
        ctime_ns=bundle.head.time_ns,
        birthtime_ns=entry.mtime_ns,
        xattrs=plain,
        large_xattrs=large,
        author=bundle.item.author,
        inside=True,
    )


# ---- items ------------------------------------------------------------------------------------------------------


def item_of(opened: Opened, one: Shown) -> Item:
    """Return what a directory shows as an item."""
    if isinstance(one.row, DirectoryRow):
        return directory_item(opened, one.row, one.name)
    assert one.file is not None
    assert one.head is not None
    return file_item(opened, one.name, one.file, one.head, fork=one.fork)


def file_item(opened: Opened, name: bytes, file: FileRow, head: VersionRow, *, fork: bool = False) -> Item:
    """Return one head of a file as an item."""
    about = file.attributes or _NO_ATTRIBUTES
    plain, large = parted(about.living_xattrs()) if about.xattrs else ({}, {})
    described = about.mtime_ns
    mtime_ns = described[0] if described is not None and described[1] > head.stamp else head.mtime_ns
    default = LINK_MODE if head.contents == "link" else DIRECTORY_MODE if head.contents == "bundle" else FILE_MODE
    return Item(
        name=name,
        id=head.version if fork else file.id,
        file=file.id,
        kind=head.kind,
        version=head.version,
        content=head.content,
        size=len(head.content) if head.contents == "link" else head.size,
        mode=_value(about.mode, default),
        uid=_value(about.uid, None),
        gid=_value(about.gid, None),
        mtime_ns=mtime_ns,
        ctime_ns=head.time_ns,
        birthtime_ns=_value(about.birthtime_ns, min(head.time_ns, mtime_ns) if not head.parents else mtime_ns),
        xattrs=plain,
        large_xattrs=large,
        links=max(file.standing, 1),
        fork=fork,
        author=opened.node_of(head.author),
        heads=1 if len(file.heads) == 1 else len(file.shown_heads()),
    )


def directory_item(opened: Opened, row: DirectoryRow, name: bytes) -> Item:
    """Return a directory as an item."""
    about = row.attributes or Attributes()
    plain, large = parted(about.living_xattrs())
    mtime_ns = _value(about.mtime_ns, row.time_ns)
    return Item(
        name=name,
        id=row.id,
        file=row.id,
        kind="directory",
        mode=_value(about.mode, DIRECTORY_MODE),
        uid=_value(about.uid, None),
        gid=_value(about.gid, None),
        mtime_ns=mtime_ns,
        ctime_ns=row.time_ns,
        birthtime_ns=_value(about.birthtime_ns, row.time_ns),
        xattrs=plain,
        large_xattrs=large,
        author=opened.node_of(row.author) if row.stamp else b"",
    )


def _value(pair: tuple[int, bytes] | None, default: Default) -> int | Default:
    return default if pair is None else pair[0]


def parted(xattrs: dict[bytes, bytes]) -> tuple[dict[bytes, bytes], dict[bytes, Large]]:
    """Return the xattrs that have their value with them, and those whose value is an object."""
    plain = {name: value for name, value in xattrs.items() if not name.startswith(LARGE)}
    large = {
        name[1:]: Large(*found)
        for name, value in xattrs.items()
        if (found := large_of(name, value)) is not None and name[1:] not in plain
    }
    return plain, large


def joined(
    xattrs: Mapping[bytes, bytes | Large | None], known: Mapping[bytes, bytes]
) -> dict[bytes, bytes | None]:
    """Return what to store for these changes; `known` are the names that are stored now."""
    stored: dict[bytes, bytes | None] = {}
    for name, value in xattrs.items():
        if isinstance(value, Large):
            stored[LARGE + name] = value.object + value.size.to_bytes(8, "big")
            value = None
        elif LARGE + name in known:
            stored[LARGE + name] = None
        if value is not None or name in known or LARGE + name not in stored:
            stored[name] = value
    return stored
