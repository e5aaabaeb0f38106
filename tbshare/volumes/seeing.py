"""From the rows back to what people see: under which path a file is, what changed, what is in conflict."""

from collections.abc import Collection

import msgspec

from tbshare.errors import PathMissing
from tbshare.volumes.ids import ROOT
from tbshare.volumes.item import Change, Conflict, Item, Kind, Path, Saved
from tbshare.volumes.opened import Opened
from tbshare.volumes.paths import directory_item, file_item, item_of
from tbshare.volumes.rows import Changes, DirectoryRow, FileRow, NameRow, author_of
from tbshare.volumes.shown import Shown, clash_key, shown


def around(opened: Opened, parent: int, name: bytes) -> list[Shown]:
    """Return what a directory shows of those who want this name, and of their forks."""
    group = opened.tables.child(parent, clash_key(name))
    alone = len(group.names) + len(group.directories) == 1
    if not alone or any(len(file.heads) > 1 for _, file in group.names):
        ids = {row.id for row, _ in group.names} | {row.id for row in group.directories}
        everything = shown(opened.tables.children(parent), opened.node_name, sensitive=opened.case_sensitive)
        return [one for one in everything if one.row.id in ids]
    return shown(group, opened.node_name, sensitive=opened.case_sensitive)


def directory_path(opened: Opened, directory: int, *, dead: bool = False) -> Path | None:
    """Return the path of a directory, None when it is nowhere; with `dead`, the last one it had."""
    names: list[bytes] = []
    while directory != ROOT:
        row = opened.tables.directory(directory)
        if row is None or not row.stamp or not (row.alive or dead):
            return None
        names.append(_shown_name(opened, row) if row.alive else row.name)
        directory = row.parent
    return tuple(reversed(names))


def _shown_name(opened: Opened, row: NameRow | DirectoryRow) -> bytes:
    """Return the name a row is shown under, b"" when it hides behind another."""
    for one in around(opened, row.parent, row.name):
        if one.row.id == row.id and not one.fork:
            return one.name
    return b""


def paths(opened: Opened, number: int, *, dead: bool = False) -> list[Path]:
    """Return the paths of a file or a directory; with `dead`, the last one of what has none."""
    row = opened.tables.file(number)
    if row is None or not row.names:
        path = directory_path(opened, number, dead=dead)
        return [path] if path is not None and opened.tables.directory(number) is not None else []
    names = opened.tables.names_of(number)
    alive = [name for name in names if name.alive]
    found: list[Path] = []
    for name in alive or (names[-1:] if dead else []):
        above = directory_path(opened, name.parent, dead=dead)
        last = _shown_name(opened, name) if name.alive else name.name
        if above is not None and last:
            found.append((*above, last))
    return found


def item(opened: Opened, file: int, version: int = 0) -> Item:
    """Return a file by its id, at a version or as its head; PathMissing."""
    row = opened.tables.file(file)
    head = None
    if row is not None and row.heads:
        head = row.heads[0] if not version else opened.tables.version(file, version)
    if row is None or head is None:
        directory = opened.tables.directory(file) if not version else None
        if directory is None or not (directory.alive or directory.stamp):
            raise PathMissing(f"there is no file {file:016x} in the volume")
        path = directory_path(opened, file)
        return directory_item(opened, directory, path[-1] if path else b"")
    known = paths(opened, file)
    return file_item(opened, known[0][-1] if known else b"", row, head)


def saved(opened: Opened, file: int, version: int, entry: bytes, path: Path = ()) -> Saved:
    """Return what became of a save: under which path it is shown, and whether as a fork."""
    row = opened.tables.file(file)
    if row is None or not row.heads:
        return Saved(file, version, path, False, entry)
    version = version or row.heads[0].version
    if not path or len(row.heads) > 1:
        for name in opened.tables.names_of(file):
            above = directory_path(opened, name.parent) if name.alive else None
            for one in around(opened, name.parent, name.name) if above is not None else ():
                if (
                    above is not None
                    and one.head is not None
                    and (one.head.file, one.head.version) == (file, version)
                ):
                    return Saved(file, version, (*above, one.name), one.fork, entry)
    return Saved(file, version, path, False, entry)


def changed(opened: Opened, changes: Changes) -> list[Change]:
    """Return what a fold changed, by path."""
    found: dict[Path, Change] = {}
    for number, (stamp, time_ns) in changes.removed.items():
        path = _last_path(opened, number)
        if path is not None:
            kind: Kind = "directory" if opened.tables.name(number) is None else "file"
            found[path] = Change(path, None, "removed", None, opened.node_of(author_of(stamp)), time_ns, kind)
    for number in sorted(changes.directories & {*changes.placed, *changes.described}):
        change = _of_directory(opened, changes, number)
        if change is not None:
            found[change.path] = change
    new = {version.version for version in changes.versions}
    for number in sorted(changes.files):
        file = opened.tables.file(number)
        if file is not None and file.heads and file.alive:
            for name in opened.tables.names_of(number):
                for change in _of_name(opened, changes, name, new) if name.alive else ():
                    found[change.path] = change
    return sorted(found.values(), key=lambda change: change.path)


def _of_directory(opened: Opened, changes: Changes, number: int) -> Change | None:
    """Return what happened to a directory itself, not to what is in it."""
    row, path = opened.tables.directory(number), directory_path(opened, number)
    if row is None or not row.alive or path is None:
        return None
    change = _placed(opened, changes, row, (row.stamp, row.time_ns)) or _described(opened, changes, number)
    item = directory_item(opened, row, path[-1] if path else b"")
    return None if change is None else msgspec.structs.replace(change, path=path, item=item)


def _of_name(opened: Opened, changes: Changes, name: NameRow, new: Collection[int]) -> list[Change]:
    """Return what happened to one name of a file, and to the forks that are shown beside it."""
    above = directory_path(opened, name.parent)
    found: list[Change] = []
    for one in around(opened, name.parent, name.name) if above is not None else ():
        if one.row.id != name.id or one.head is None or above is None:
            continue
        placed = None if one.fork else _placed(opened, changes, name, (name.stamp, name.time_ns))
        saved = Change((), None, "saved", None, opened.node_of(one.head.author), one.head.time_ns)
        change = saved if one.head.version in new else None
        if placed is not None and (change is None or placed.what == "moved"):
            change = placed
        if change is None and not one.fork:
            change = _described(opened, changes, name.file)
        if change is not None:
            item = item_of(opened, one)
            found.append(msgspec.structs.replace(change, path=(*above, one.name), item=item))
    return found


def _placed(opened: Opened, changes: Changes, row: NameRow | DirectoryRow, by: tuple[bytes, int]) -> Change | None:
    """Return that a name or a directory was put where it is, if it was: from elsewhere or from nowhere."""
    if row.id not in changes.placed:
        return None
    was, who = changes.placed[row.id], opened.node_of(author_of(by[0]))
    if was is None:
        return Change((), None, "placed", None, who, by[1])
    above = directory_path(opened, was[0], dead=True)
    if was == (row.parent, row.name) or above is None:
        return None
    return Change((), None, "moved", (*above, was[1]), who, by[1])


def _described(opened: Opened, changes: Changes, number: int) -> Change | None:
    if number not in changes.described:
        return None
    stamp, time_ns = changes.described[number]
    return Change((), None, "described", None, opened.node_of(author_of(stamp)), time_ns)


def _last_path(opened: Opened, number: int) -> Path | None:
    """Return the path that a name or a directory had when it was taken away; None if it is still there."""
    row: NameRow | DirectoryRow | None = opened.tables.name(number) or opened.tables.directory(number)
    if row is None or row.alive or not row.stamp:
        return None
    above = directory_path(opened, row.parent, dead=True)
    return None if above is None else (*above, row.name)


def conflicts(opened: Opened, limit: int) -> list[Conflict]:
    """Return files with several heads, then names that several files or directories want."""
    found: list[Conflict] = []
    for file in opened.tables.conflicts(limit):
        found += _versions(opened, file)
    for parent, key in opened.tables.clashes(limit):
        above = directory_path(opened, parent)
        group = opened.tables.child(parent, key)
        rows: list[NameRow | DirectoryRow] = [*group.directories, *[row for row, _ in group.names]]
        if above is None or not rows:
            continue
        wanted: dict[bytes, list[Shown]] = {}
        for one in around(opened, parent, rows[0].name):
            if not one.fork:  # a.mov and A.mov are no clash where case counts
                wanted.setdefault(one.row.name if opened.case_sensitive else key, []).append(one)
        for items in wanted.values():
            items.sort(key=lambda one: (not one.given, one.name))
            if len(items) > 1:
                shown_items = tuple([item_of(opened, one) for one in items])
                found.append(Conflict((*above, items[0].name), "names", shown_items))
    return found[:limit]


def _versions(opened: Opened, file: FileRow) -> list[Conflict]:
    for name in opened.tables.names_of(file.id):
        above = directory_path(opened, name.parent) if name.alive else None
        if above is None:
            continue
        heads = [one for one in around(opened, name.parent, name.name) if one.row.id == name.id]
        heads.sort(key=lambda one: one.fork)
        if len(heads) > 1:
            items = tuple([item_of(opened, one) for one in heads])
            return [Conflict((*above, heads[0].name), "versions", items)]
    return []
