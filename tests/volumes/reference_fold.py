"""The slow, obvious fold of a namespace: all is computed again from the whole set of ops, nothing counted along.

It says what `tbshare.volumes.namespace` must say. Rows are the same; how they come about has nothing in common.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tbshare.volumes.entry import Describe, Entry, FileOp, Move, Place, Remove, Save
from tbshare.volumes.ids import given_by, owner_of
from tbshare.volumes.rows import Attributes, DirectoryRow, FileRow, MoveRow, NameRow, VersionRow, version_again


@dataclass(frozen=True)
class Told:
    """An op with all that its entry says about it."""

    stamp: bytes
    time_ns: int
    op: FileOp


@dataclass(frozen=True)
class Reference:
    """The rows of a namespace; those that say nothing are left out."""

    names: dict[int, NameRow]
    directories: dict[int, DirectoryRow]
    files: dict[int, FileRow]
    versions: dict[tuple[int, int], VersionRow]
    moves: dict[bytes, MoveRow]
    totals: tuple[int, int]


def reference(entries: Iterable[tuple[Entry, Iterable[tuple[int, FileOp]]]]) -> Reference:
    """Return what a set of ops means."""
    told: dict[bytes, Told] = {}
    for entry, ops in entries:
        for index, op in ops:
            stamp = entry.stamp() + index.to_bytes(2, "big")
            made = op.version if isinstance(op, Save) else op.place if isinstance(op, Place | Move) else None
            if made is None or given_by(made, owner_of(entry.node)):
                told[stamp] = Told(stamp, entry.time_ns, op)
    ordered = [told[stamp] for stamp in sorted(told)]
    versions = _versions(ordered)
    names = _names(ordered)
    files = _files(ordered, names, versions)
    for file in files.values():
        for number in file.names:
            name = names[number]
            name.alive = name.place not in name.gone or number == file.revived
    directories, moves = _directories(ordered, names)
    shown = [file.weight for file in files.values() if file.weight >= 0]
    return Reference(names, directories, files, versions, moves, (len(shown), sum(shown)))


def _versions(ordered: list[Told]) -> dict[tuple[int, int], VersionRow]:
    rows: dict[tuple[int, int], VersionRow] = {}
    for told in ordered:
        op = told.op
        if isinstance(op, Describe) and (op.id or op.directory):
            for name, value in op.xattrs.items():
                if name[:1] == b"\0" and value is not None and len(value) == 40:
                    version, size = -1 - int.from_bytes(value[:8], "big") // 2, int.from_bytes(value[32:], "big")
                    row = VersionRow(op.id, version, (), "xattr", value[:32], size, 0, 0, told.stamp, told.time_ns)
                    rows.setdefault((op.id, version), row)
        if not isinstance(op, Save):
            continue
        version, parents = op.version, tuple(sorted(set(op.parents) - {op.version}))
        while (op.file, version) in rows:  # in the order of stamps: who comes later gets another id
            version = version_again(version, told.stamp)
        rows[op.file, version] = VersionRow(
            op.file, version, parents, op.contents or "file", op.content, op.size, op.mtime_ns, op.epoch,
            told.stamp, told.time_ns,
        )  # fmt: skip
    return rows


def _names(ordered: list[Told]) -> dict[int, NameRow]:
    rows: dict[int, NameRow] = {}
    for told in ordered:
        op = told.op
        if isinstance(op, Place):
            row = rows.setdefault(op.id, NameRow(op.id))
            row.parent, row.name, row.file = op.parent, op.name, op.file
            row.place, row.stamp, row.time_ns = op.place, told.stamp, told.time_ns
        elif isinstance(op, Remove) and not op.directory:
            row = rows.setdefault(op.id, NameRow(op.id))
            row.gone = tuple(sorted({*row.gone, op.place}))
            row.seen = tuple(sorted({*row.seen, *op.seen}))
    return rows


def _files(
    ordered: list[Told], names: dict[int, NameRow], versions: dict[tuple[int, int], VersionRow]
) -> dict[int, FileRow]:
    saved = {file for (file, _), row in versions.items() if row.contents != "xattr"}
    numbers = {name.file for name in names.values() if name.file} | saved
    numbers |= {told.op.id for told in ordered if isinstance(told.op, Describe) and not told.op.directory}
    numbers -= {0}  # the root is no file
    rows: dict[int, FileRow] = {}
    for number in numbers:
        mine = [row for row in versions.values() if row.file == number and row.contents != "xattr"]
        parents = {parent for row in mine for parent in row.parents}
        known = {row.version for row in mine}
        heads, since = _heads({row.version: row for row in mine})
        named = [name for name in names.values() if name.file == number]
        standing = [name for name in named if name.place not in name.gone]
        seen = {version for name in named for version in name.seen}
        unseen = [head for head in heads if head.version not in seen]
        revived = max(named, key=lambda name: name.stamp).id if named and unseen and not standing else 0
        sizes = {(head.contents, head.content): head.size for head in reversed(heads)}  # the first one's counts
        rows[number] = FileRow(
            number,
            heads=tuple(heads),
            since=tuple(since),
            names=tuple(sorted(name.id for name in named)),
            standing=len(standing),
            revived=revived,
            weight=sum(sizes.values()) if heads and (standing or revived) else -1,
            waiting=tuple(sorted(parents - known)),
            attributes=_attributes(ordered, number, directory=False),
            orderly=len(heads) > 1 and _is_orderly(heads, {row.version: row for row in mine}),
        )
    return rows


def _is_orderly(heads: list[VersionRow], rows: dict[int, VersionRow]) -> bool:
    left, seen = [head.version for head in heads], set[int]()
    while left:
        version = left.pop()
        if version not in seen and version in rows:
            seen.add(version)
            left += rows[version].parents
    return all(rows[one].stamp > rows[other].stamp for one in seen for other in rows[one].parents if other in rows)


def _heads(rows: dict[int, VersionRow]) -> tuple[list[VersionRow], list[tuple[bytes, int]]]:
    """Return the heads, the one under the name first, and where their branches began if they are several."""

    def up(version: int, path: frozenset[int] = frozenset()) -> set[int]:
        if version not in rows or version in path:
            return set()
        return {version}.union(*(up(parent, path | {version}) for parent in rows[version].parents))

    def newest(some: Iterable[VersionRow]) -> VersionRow:
        return max(some, key=lambda row: row.stamp)

    heads = [row for row in rows.values() if not any(row.version in other.parents for other in rows.values())]
    if len(heads) < 2:
        return heads, []
    living = set[int]().union(*(up(head.version) for head in heads))
    roots = [rows[version] for version in living if not any(parent in rows for parent in rows[version].parents)]
    path: list[VersionRow] = []
    while roots:
        path.append(newest(roots))
        roots = [rows[v] for v in living if path[-1].version in rows[v].parents and rows[v] not in path]
    main = path[-1] if path and path[-1] in heads else newest(heads)
    began = {
        head.version: min((rows[v] for v in up(head.version) - up(main.version)), key=lambda row: row.stamp)
        for head in heads
        if head is not main
    } | {main.version: main}
    heads.sort(key=lambda head: (head is not main, began[head.version].stamp, head.stamp))
    return heads, [(began[head.version].stamp, began[head.version].time_ns) for head in heads]


def _directories(
    ordered: list[Told], names: dict[int, NameRow]
) -> tuple[dict[int, DirectoryRow], dict[bytes, MoveRow]]:
    rows: dict[int, DirectoryRow] = {0: DirectoryRow(0, alive=True)}
    moves: dict[bytes, MoveRow] = {}
    for told in ordered:
        op = told.op
        if isinstance(op, Place):
            rows.setdefault(op.parent, DirectoryRow(op.parent))
        elif isinstance(op, Remove) and op.directory:
            row = rows.setdefault(op.id, DirectoryRow(op.id))
            row.gone = tuple(sorted({*row.gone, op.place}))
        elif isinstance(op, Describe) and op.directory:
            rows.setdefault(op.id, DirectoryRow(op.id))
        elif isinstance(op, Move):
            row = rows.setdefault(op.id, DirectoryRow(op.id))
            rows.setdefault(op.parent, DirectoryRow(op.parent)).used = True
            row.place, row.placed = op.place, told.stamp
            move = MoveRow(told.stamp, op.id, op.parent, op.name, op.place, told.time_ns)
            moves[told.stamp] = move
            if op.id not in _upwards(rows, op.parent):
                move.before = row.stamp
                row.stamp, row.parent, row.name, row.time_ns = told.stamp, op.parent, op.name, told.time_ns
    _fill(ordered, rows, names)
    return rows, moves


def _fill(ordered: list[Told], rows: dict[int, DirectoryRow], names: dict[int, NameRow]) -> None:
    """Say of each directory whether it lives, and how much lives in it."""
    for row in rows.values():
        row.attributes = _attributes(ordered, row.id, directory=True)
        row.alive = row.id == 0 or (row.stamp != b"" and row.place not in row.gone)
    parents = [name.parent for name in names.values() if name.alive]
    for number in parents:
        _revive(rows, number)
    for row in [row for row in rows.values() if row.alive and row.id]:
        _revive(rows, row.parent)
    parents += [row.parent for row in rows.values() if row.alive and row.id]
    for row in rows.values():
        row.children = parents.count(row.id)


def _upwards(rows: dict[int, DirectoryRow], number: int) -> list[int]:
    """Return a directory and all above it."""
    path = [number]
    while number:
        number = rows[number].parent
        path.append(number)
    return path


def _revive(rows: dict[int, DirectoryRow], number: int) -> None:
    """Let a directory live in which something does, and those above it; one never placed has none above."""
    while number and rows[number].stamp:
        rows[number].alive = True
        number = rows[number].parent


def _attributes(ordered: list[Told], number: int, *, directory: bool) -> Attributes | None:
    row: Attributes | None = None
    for told in ordered:
        op = told.op
        if not isinstance(op, Describe) or op.id != number or op.directory != directory:
            continue
        row = row or Attributes()
        row.mode = row.mode if op.mode is None else (op.mode, told.stamp)
        row.uid = row.uid if op.uid is None else (op.uid, told.stamp)
        row.gid = row.gid if op.gid is None else (op.gid, told.stamp)
        row.mtime_ns = row.mtime_ns if op.mtime_ns is None else (op.mtime_ns, told.stamp)
        row.birthtime_ns = row.birthtime_ns if op.birthtime_ns is None else (op.birthtime_ns, told.stamp)
        row.xattrs |= {name: (value, told.stamp) for name, value in op.xattrs.items()}
        row.xattrs = dict(sorted(row.xattrs.items()))
    return row
