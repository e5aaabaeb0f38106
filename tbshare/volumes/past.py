"""The past of a volume: the versions of a path, bringing them back, and the whole volume as it was."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from tbshare.content import tree
from tbshare.content.ref import folded, is_part
from tbshare.errors import (
    ObjectMissing,
    PathExists,
    PathInvalid,
    PathIsDirectory,
    PathMissing,
    PathNotDirectory,
    VolumeReadOnly,
)
from tbshare.volumes import seeing
from tbshare.volumes.asof import tables_of
from tbshare.volumes.bundle import Draft
from tbshare.volumes.entry import SnapshotCreate, SnapshotRemove
from tbshare.volumes.filling import new_entry
from tbshare.volumes.fold import Snapshot
from tbshare.volumes.ids import ROOT
from tbshare.volumes.item import Attributes, Content, Item, Kind, Line, Path, Put, Saved
from tbshare.volumes.log import Log
from tbshare.volumes.opened import Opened
from tbshare.volumes.paths import Found, at, checked, find, found_in, listed
from tbshare.volumes.policy import keeps_history
from tbshare.volumes.rows import FileRow, NameRow, VersionRow
from tbshare.volumes.shown import clash_key, given
from tbshare.volumes.tables import Here
from tbshare.volumes.writing import Writing, content_of

SNAPSHOTS_OPEN: Final = 4  # at once, in memory


@dataclass(frozen=True)
class Wanted:
    """Something that is to be as it was."""

    path: Path
    kind: Kind
    content: Content | None = None  # None for a directory
    attributes: Attributes | None = None


# ---- history ----------------------------------------------------------------------------------------------------


def history(opened: Opened, path: Path) -> list[Line]:
    """Return the versions of what has, or had, this path, newest first; PathMissing, PathIsDirectory.

    A name that stood for a fork or a clash, and stands for nothing any more, leads to what it was made from: there
    is what was saved under it.
    """
    try:
        return _history(opened, path)
    except (PathMissing, PathIsDirectory):
        plain = tuple([given(name) for name in path])
        if plain == path:
            raise
        return _history(opened, plain)


def _history(opened: Opened, path: Path) -> list[Line]:
    try:
        found = find(opened, path)
    except (PathMissing, PathNotDirectory):
        found = Found(checked(path))
    if found.inside:
        return _history_inside(opened, found)
    if found.fork and found.file is not None and found.head is not None:
        before = _before(opened, found.file, found.head)
        return [line for line in _lines(opened, found.file, path) if line.version in before]
    lines = _lines(opened, found.file, path) if found.file is not None else []
    for twin in found.twins:  # hidden behind this one: what was saved in them is nowhere else
        file = opened.tables.file(twin.file)
        lines += _lines(opened, file, path) if file is not None else []
    directories = found.directory is not None
    for parent in _parents(opened, path[:-1]) if path else ():
        dead = opened.tables.dead_children(parent, clash_key(path[-1]))
        directories |= bool(dead.directories)
        for name, file in dead.names:
            if _is_named(opened, name, path[-1]) and (found.file is None or file.id != found.file.id):
                lines += _lines(opened, file, path)
    if not lines and directories:
        raise PathIsDirectory(f"{at(path)} is a directory: its files have the history")
    if not lines:
        raise PathMissing(f"nothing is, or was, called {at(path)}")
    return sorted({(line.file, line.version): line for line in lines}.values(), key=_newest_first)


def _newest_first(line: Line) -> tuple[bool, bytes]:
    return not line.head, bytes(255 - byte for byte in line.stamp)


def _is_named(opened: Opened, row: NameRow, name: bytes) -> bool:
    return opened.key_of(row.name) == opened.key_of(name)


def _parents(opened: Opened, path: Path) -> list[int]:
    """Return the directories that have, or had, this path."""
    found = [ROOT]
    for name in path:
        key, above = clash_key(name), found
        found = list[int]()
        for parent in above:
            for group in (opened.tables.child(parent, key), opened.tables.dead_children(parent, key)):
                found += [row.id for row in group.directories if opened.key_of(row.name) == opened.key_of(name)]
    return found


def _lines(opened: Opened, file: FileRow, path: Path) -> list[Line]:
    heads = {head.version for head in file.shown_heads()} if file.alive else set[int]()
    names: dict[int, bytes] = {}
    if len(heads) > 1:
        for name in opened.tables.names_of(file.id):
            for one in seeing.around(opened, name.parent, name.name) if name.alive else ():
                if one.head is not None and one.file is not None and one.file.id == file.id:
                    names[one.head.version] = one.name
    return [
        _line(opened, row, path, head=row.version in heads, shown=names.get(row.version, path[-1]))
        for row in opened.tables.versions(file.id)
    ]


def _line(opened: Opened, row: VersionRow, path: Path, *, head: bool, shown: bytes) -> Line:
    return Line(
        path=path,
        file=row.file,
        version=row.version,
        parents=row.parents,
        author=opened.node_of(row.author),
        time_ns=row.time_ns,
        stamp=row.stamp,
        content=row.content,
        size=row.size,
        mtime_ns=row.mtime_ns,
        kind=row.kind,
        head=head,
        shown=shown if head else b"",
        expired=opened.tables.here(row.file, row.version) == Here.EXPIRED,
    )


def _before(opened: Opened, file: FileRow, head: VersionRow) -> set[int]:
    """Return a version and those it came from."""
    rows = {row.version: row for row in opened.tables.versions(file.id)}
    found, waiting = set[int](), [head.version]
    while waiting:
        version = waiting.pop()
        if version not in found and version in rows:
            found.add(version)
            waiting += rows[version].parents
    return found


def _history_inside(opened: Opened, found: Found) -> list[Line]:
    """Return the versions of a bundle in which what lies at a path in it changed."""
    assert found.file is not None
    assert found.head is not None
    before = _before(opened, found.file, found.head) if found.fork else None
    lines: list[Line] = []
    last: tuple[bytes, int] | None = None
    for row in reversed(opened.tables.versions(found.file.id)):
        if row.contents != "bundle" or (before is not None and row.version not in before):
            continue
        try:
            entry = Draft(opened.shared.trees, row.content, opened.key_of).find(found.inside)
        except (ObjectMissing, PathMissing, PathNotDirectory):
            continue
        if entry is None or entry.kind == tree.Kind.TREE or (entry.target, entry.size) == last:
            continue
        last, content = (entry.target, entry.size), content_of(entry)
        line = _line(opened, row, found.path, head=row.version == found.head.version, shown=found.path[-1])
        lines.append(
            msgspec.structs.replace(
                line, content=content.content, size=content.size, mtime_ns=content.mtime_ns, kind=content.kind
            )
        )
    if not lines:
        raise PathMissing(f"{at(found.path)} has no history that is on this node")
    return lines[::-1]


# ---- what is to come back ---------------------------------------------------------------------------------------


def wanted(opened: Opened, path: Path, version: int, before_ns: int | None) -> list[Wanted]:
    """Return what a path and all below it were: in a version, before a moment, or before it was deleted."""
    if not version and before_ns is None:
        return _deleted(opened, path)
    try:
        lines = history(opened, path)
    except (PathIsDirectory, PathMissing):
        if version:
            raise
        lines = []
    if version:
        lines = [line for line in lines if line.version == version]
    else:
        lines = [line for line in lines if before_ns is not None and line.time_ns <= before_ns]
    if lines:
        return [_of_line(max(lines, key=lambda line: line.stamp))]
    if version or before_ns is None:
        raise PathMissing(f"{at(path)} has no such version; tbshare history shows them")
    then = moment(opened, before_ns)
    try:
        found = find(then, path)
        found.there()
        return list(_all_of(then, found))
    finally:
        then.tables.close()


def _of_line(line: Line) -> Wanted:
    if line.expired:
        raise PathMissing(f"that version of {at(line.path)} is older than the history that is kept")
    return Wanted(line.path, line.kind, Content(line.content, line.size, line.mtime_ns, line.kind))


def _deleted(opened: Opened, path: Path) -> list[Wanted]:
    try:
        there = find(opened, path).item
    except (PathMissing, PathNotDirectory):
        there = None
    if there is not None:
        raise PathExists(f"{at(path)} is there; say which version, or before when")
    try:
        return [_of_line(history(opened, path)[0])]
    except PathIsDirectory:
        rows = [
            row
            for parent in _parents(opened, path[:-1])
            for row in opened.tables.dead_children(parent, clash_key(path[-1])).directories
        ]
        newest = max(rows, key=lambda row: row.stamp)
        return list(_dead_below(opened, path, newest.id))


def _dead_below(opened: Opened, path: Path, directory: int) -> Iterator[Wanted]:
    """Yield a removed directory with what was in it last, but for what is kept without history."""
    yield Wanted(path, "directory")
    dead = opened.tables.dead_children(directory)
    for name, file in sorted(dead.names, key=lambda pair: pair[0].stamp):
        below = (*path, name.name)
        if file.heads and not file.alive and keeps_history(opened.policy, below):
            head = file.heads[0]
            yield Wanted(below, head.kind, Content(head.content, head.size, head.mtime_ns, head.kind))
    for row in dead.directories:
        yield from _dead_below(opened, (*path, row.name), row.id)


def _all_of(then: Opened, found: Found) -> Iterator[Wanted]:
    item = found.there()
    if found.path:
        yield _of_item(found.path, item)
    if item.kind == "directory" and not found.inside:
        for below in listed(then, found.path):
            yield from _all_of(then, below)


def _of_item(path: Path, item: Item) -> Wanted:
    attributes = Attributes(mode=item.mode, xattrs={**item.xattrs, **item.large_xattrs})
    if item.kind == "directory" and not item.inside:
        return Wanted(path, item.kind, None, attributes)
    kind = "bundle" if item.kind == "directory" else item.kind
    size = 0 if item.kind == "link" else item.size
    return Wanted(path, kind, Content(item.content, size, item.mtime_ns, kind), attributes)


def put_of(one: Wanted, path: Path) -> Put:
    """Return what puts something as it was to another path."""
    return Put(path, one.kind, one.content, one.attributes)


# ---- bringing back ----------------------------------------------------------------------------------------------


def restore(opened: Opened, everything: Sequence[Wanted], epochs: Mapping[int, int]) -> list[Saved]:
    """Save these as the newest versions of what they were, which is placed again where it is gone."""
    writing = Writing(opened, epochs)
    restoring = _Restoring(opened, writing)
    files = [(one.path, restoring.put(one)) for one in everything]
    entry = writing.commit()
    versions = writing.versions
    return [seeing.saved(opened, file, versions.get(file, 0), entry, path) for path, file in files if file]


class _Restoring:
    """Gathers the ops of a restore; directories that are gone are placed again, with their ids."""

    def __init__(self, opened: Opened, writing: Writing) -> None:
        self._opened = opened
        self._writing = writing
        self._directories: dict[Path, int] = {(): ROOT}

    def put(self, one: Wanted) -> int:
        """Bring one thing back; return its file, 0 for a directory."""
        inside = self._inside(one.path)
        if inside is not None and one.content is not None and inside.file is not None:
            self._writing.put_entry(inside, new_entry(one.path[-1], one.content, one.attributes))
            return inside.file.id
        if one.content is None:
            number = self._directory(one.path)
            if one.attributes is not None:
                row = self._opened.tables.directory(number)
                known = row.attributes if row is not None else None
                self._writing.describe(number, one.attributes, known, directory=True)
            return 0
        return self._file(one.path, one.content, one.attributes)

    def _inside(self, path: Path) -> Found | None:
        try:
            found = find(self._opened, path)
        except (PathMissing, PathNotDirectory):
            return None
        return found if found.inside else None

    def _directory(self, path: Path) -> int:
        key = tuple([self._opened.key_of(name) for name in path])
        if key not in self._directories:
            above = self._directory(path[:-1])
            found = found_in(self._opened, path, above)
            if found.item is not None and found.directory is None:
                raise PathNotDirectory(f"{at(path)} is not a directory")
            if found.directory is not None:
                self._directories[key] = found.directory.id
            else:
                dead = self._opened.tables.dead_children(above, clash_key(path[-1])).directories
                dead = [row for row in dead if self._opened.key_of(row.name) == key[-1]]
                again = max(dead, key=lambda row: row.stamp).id if dead else 0
                self._directories[key] = self._writing.move(above, path[-1], again)
        return self._directories[key]

    def _file(self, path: Path, content: Content, attributes: Attributes | None) -> int:
        writing, parent = self._writing, self._directory(path[:-1])
        found = found_in(self._opened, path, parent)
        if found.directory is not None:
            raise PathIsDirectory(f"{at(path)} is a directory")
        file, heads = found.file, [found.head] if found.head is not None else []
        if file is None:
            file, heads = self._dead(parent, path[-1])
        if file is None:
            return writing.new_file(parent, path[-1], content, attributes)
        if found.file is None or [(content.kind, content.content)] != [(h.contents, h.content) for h in heads]:
            writing.save(file, content, [head.version for head in heads], instead_of=heads if file.alive else ())
        if attributes is not None:
            writing.describe(file.id, attributes, file.attributes)
        return file.id

    def _dead(self, parent: int, name: bytes) -> tuple[FileRow | None, list[VersionRow]]:
        """Place the file again that had this name last; return it with its heads."""
        dead = [
            (row, file)
            for row, file in self._opened.tables.dead_children(parent, clash_key(name)).names
            if _is_named(self._opened, row, name) and file.heads and not file.alive
        ]
        if not dead:
            return None, []
        row, file = max(dead, key=lambda pair: pair[0].stamp)
        self._writing.place(parent, name, file.id, row.id)
        return file, list(file.heads)


# ---- snapshots --------------------------------------------------------------------------------------------------


def snapshot_create(opened: Opened, name: str) -> Snapshot:
    """Name the state of the volume as this node knows it now; PathExists."""
    if not is_part(name):
        raise PathInvalid(
            f"{name!a} is no name for a snapshot: letters, digits, '.', '_' and '-'", cure=_listing(opened)
        )
    if _named(opened, name) is not None:
        raise PathExists(f"volume {opened.volume.name} has a snapshot {name} already", cure=_listing(opened))
    log = _writable(opened)
    log.append([SnapshotCreate(volume=opened.id, name=name, heads=log.at())])
    snapshot = _named(opened, name)
    assert snapshot is not None, "it was made"
    return snapshot


def snapshot_remove(opened: Opened, name: str) -> None:
    """Forget a snapshot; PathMissing."""
    snapshot = snapshot_named(opened, name)
    _writable(opened).append([SnapshotRemove(volume=opened.id, name=snapshot.name, entry=snapshot.entry)])


def _listing(opened: Opened) -> str:
    return f"tbshare snapshot ls {opened.volume.name}"


def _writable(opened: Opened) -> Log:
    why = opened.why_read_only()
    if why:
        raise VolumeReadOnly(why, cure="tbshare volume ls")
    return opened.shared.log


def _named(opened: Opened, name: str) -> Snapshot | None:
    snapshots = opened.shared.state.snapshots(opened.id)
    return next((one for one in reversed(snapshots) if folded(one.name) == folded(name)), None)


def snapshot_named(opened: Opened, name: str) -> Snapshot:
    """Return a snapshot by its name; PathMissing, which names those there are."""
    snapshot = _named(opened, name)
    if snapshot is None:
        names = ", ".join(one.name for one in opened.shared.state.snapshots(opened.id)) or "none"
        raise PathMissing(
            f"volume {opened.volume.name} has no snapshot {name!a}; it has: {names}", cure=_listing(opened)
        )
    return snapshot


def as_of(opened: Opened, name: str) -> Opened:
    """Return the volume as a snapshot has it; a few of them stay open."""
    snapshot = snapshot_named(opened, name)
    with opened.snapshots_lock:
        key = snapshot.entry, opened.makings  # when other entries count, so they do in the snapshot
        known = opened.snapshots.get(key)
        if known is None:
            known = opened.snapshots[key] = _of_snapshot(opened, snapshot)
            while len(opened.snapshots) > SNAPSHOTS_OPEN:
                _forget(opened.snapshots.pop(next(iter(opened.snapshots))))
        return known


def _of_snapshot(opened: Opened, snapshot: Snapshot) -> Opened:
    shared = opened.shared
    name = f"{opened.id:016x}@{snapshot.entry.hex()}-{opened.makings}.db"
    path = shared.folder / name if shared.folder is not None else None
    covered = shared.log.covers(snapshot.heads)
    tables = tables_of(shared.log, shared.state, opened.id, covered, path)
    return Opened(shared, opened.id, tables, frozen=f"snapshot {snapshot.name} shows the volume as it was")


def _forget(snapshot: Opened) -> None:
    """Take the file away; who still reads it does so to the end."""
    path = snapshot.tables.path
    if snapshot.shared.folder is not None:
        for left in path.parent.glob(f"{path.name}*"):
            left.unlink()


def moment(opened: Opened, before_ns: int) -> Opened:
    """Return the volume as it was before a moment, by the clocks of those who wrote."""
    shared = opened.shared
    tables = tables_of(shared.log, shared.state, opened.id, lambda entry: entry.time_ns <= before_ns)
    return Opened(shared, opened.id, tables, frozen="it shows the volume as it was")
