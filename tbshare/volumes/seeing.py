"""From the rows back to what people see: under which path a file is, what changed, what is in conflict."""

from tbshare.errors import PathMissing
from tbshare.volumes.ids import ROOT
from tbshare.volumes.item import Change, Conflict, Item, Path, Saved
from tbshare.volumes.opened import Opened
from tbshare.volumes.paths import directory_item, file_item, item_of
from tbshare.volumes.rows import Changes, DirectoryRow, FileRow, NameRow
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
    found: dict[Path, Item | None] = {}
    for number in sorted(changes.directories):
        row = opened.tables.directory(number)
        for path in paths(opened, number, dead=True):
            name = path[-1] if path else b""
            found[path] = directory_item(opened, row, name) if row is not None and row.alive else None
    for number in sorted(changes.files):
        file = opened.tables.file(number)
        if file is None or not file.heads:
            continue
        for path in paths(opened, number, dead=True):
            if file.alive or path not in found:
                found[path] = file_item(opened, path[-1], file, file.heads[0]) if file.alive else None
    return [Change(path, item) for path, item in sorted(found.items())]


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
