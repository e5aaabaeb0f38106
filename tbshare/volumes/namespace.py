"""The fold of one volume's namespace: from the set of its ops to rows. Pure.

The rows are a function of the set of ops: any order, any batches and any doubles give equal rows. What makes it
so:
  - a name is a register: the Place with the highest stamp wins; a Remove takes away one *place* for good, so that
    a rename beats a removal that did not know of it;
  - versions are a set, and heads are those that no known version has as a parent;
  - a name whose file has a head that those who removed it had not seen lives on: an edit beats a removal;
  - directories are moved in the order of stamps, and a Move that would put one below itself is skipped (Kleppmann
    et al., "A highly-available move operation for replicated trees"): what comes late undoes the later ones, and
    they are done again, once a batch;
  - a directory is alive while its place was not removed, or something alive is in it.
Counts are kept along the way, so that the cost of an op depends on the op and not on the size of the volume.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from tbshare.content.tree import large_of
from tbshare.volumes.entry import OPS_MAX, Describe, Entry, FileOp, Move, Place, Remove, Save
from tbshare.volumes.heads import extended, in_order
from tbshare.volumes.ids import COUNT_BITS, ROOT, RUN_BITS, owner_of
from tbshare.volumes.row_source import Nothing, Source
from tbshare.volumes.rows import (
    NO_STAMP,
    Attributes,
    Changes,
    DirectoryRow,
    FileRow,
    MoveRow,
    NameRow,
    VersionRow,
    version_again,
    version_of_large,
)

Batch = Iterable[tuple[Entry, Sequence[tuple[int, FileOp]]]]  # each op with its index in the entry

SIZE_MAX: Final = (1 << 63) - 1  # of one file with its forks, as counted: sizes are what a member says they are
_OWNER_SHIFT: Final = RUN_BITS + COUNT_BITS
_NUMBERS: Final = [index.to_bytes(2, "big") for index in range(OPS_MAX)]

Row = TypeVar("Row", NameRow, DirectoryRow, FileRow)


class _Rows(dict[int, Row]):
    """Rows by id; one that is asked for and not here is loaded, or made."""

    def __init__(self, load: Callable[[int], Row | None], make: Callable[[int], Row]) -> None:
        super().__init__()
        self._load: Callable[[int], Row | None] = load
        self._make: Callable[[int], Row] = make

    def __missing__(self, number: int) -> Row:
        row = self._load(number)
        made = self._make(number) if row is None else row
        self[number] = made
        return made


class Namespace:
    """The tables of one volume in memory: all of them, or those that a batch needs, loaded from a source."""

    def __init__(self, source: Source | None = None, *, trusting: bool = False) -> None:
        """Start empty. `trusting`: no version in a batch is in the source already; who stores rows finds out."""
        self._source: Source = source or Nothing()
        self._trusting = trusting
        self.names: dict[int, NameRow] = _Rows(self._source.name, NameRow)
        self.directories: dict[int, DirectoryRow] = _Rows(self._source.directory, _new_directory)
        self.files: dict[int, FileRow] = _Rows(self._source.file, FileRow)
        self.versions: dict[tuple[int, int], VersionRow] = {}
        self.moves: dict[bytes, MoveRow] = {}
        self.last_move = NO_STAMP
        self.files_alive = 0
        self.bytes_alive = 0
        self._changes = Changes()
        self._moves: list[MoveRow] = []
        self._forked: set[int] = set()
        self._folders: dict[type, Callable[[Any, bytes, int, int], None]] = {
            Place: self._place,
            Move: self._move,
            Remove: self._remove,
            Save: self._save,
            Describe: self._describe,
        }

    def totals(self) -> tuple[int, int]:
        """Return how many files there are to be seen, and the logical bytes of their shown heads."""
        return self.files_alive, self.bytes_alive

    def fold(self, batch: Batch) -> Changes:
        """Fold ops in and return what they touched."""
        changes = self._changes = Changes()
        folders = self._folders
        for entry, ops in batch:
            stamp, time_ns, owner = entry.stamp(), entry.time_ns, owner_of(entry.node)
            for index, op in ops:
                folders[op.__class__](op, stamp + _NUMBERS[index], time_ns, owner)
        if self._moves:
            moves, self._moves = self._moves, []
            self._fold_moves(moves)
        if self._forked:
            for number in self._forked:
                self._order_heads(self.files[number])
            self._forked.clear()
        return changes

    # versions ------------------------------------------------------------------------------------------------

    def _save(self, op: Save, stamp: bytes, time_ns: int, owner: int) -> None:
        version, parents = op.version, op.parents
        if version >> _OWNER_SHIFT != owner:
            return
        if len(parents) > 1 or version in parents:
            parents = tuple(sorted({*parents} - {version}))
        row = VersionRow(
            op.file, version, parents, op.contents or "file", op.content, op.size, op.mtime_ns, op.epoch,
            stamp, time_ns,
        )  # fmt: skip
        file = self.files[op.file]
        key = (op.file, version)
        known = self.versions.get(key)
        if known is None and not self._trusting:
            known = self._known_version(key)
        if known is None:
            self._add_version(file, row)
        else:
            self._save_again(file, known, row)

    def _add_version(self, file: FileRow, row: VersionRow) -> None:
        self.versions[file.id, row.version] = row
        self._changes.versions.append(row)
        self._changes.files.add(file.id)
        heads, parents = file.heads, row.parents
        if not file.waiting and (not parents if not heads else len(heads) == 1 and parents == (heads[0].version,)):
            file.heads = (row,)
        elif file.orderly and not file.waiting and (known := extended(file.heads, file.since, row)):
            file.heads, file.since = known
        else:
            self._join(file, row, new=True)
        if file.standing:
            self._weigh(file)
        else:
            self._settle(file)

    def _known_version(self, key: tuple[int, int]) -> VersionRow | None:
        """Return the row of a version if it has come."""
        row = self.versions.get(key)
        if row is None:
            row = self._source.version(key)
            if row is not None:
                self.versions[key] = row
        return row

    def _join(self, file: FileRow, row: VersionRow, *, new: bool) -> None:
        """Take the parents of `row` from the file's heads, and make it one if it is new and has no known child."""
        waiting = set(file.waiting)
        heads = {head.version: head for head in file.heads}
        for parent in row.parents:
            if heads.pop(parent, None) is None and self._known_version((file.id, parent)) is None:
                waiting.add(parent)
        if row.version in waiting:
            waiting.discard(row.version)
        elif new:
            heads[row.version] = row
        file.heads, file.since, file.orderly = tuple(heads.values()), (), False
        file.waiting = tuple(sorted(waiting))
        if len(heads) > 1:
            self._forked.add(file.id)

    def _order_heads(self, file: FileRow) -> None:
        """Decide which of several heads is under the name, from all versions that are known."""
        if len(file.heads) > 1:
            for row in self._source.versions_of(file.id):
                self.versions.setdefault((row.file, row.version), row)
            file.heads, file.since, file.orderly = in_order(file.heads, self.versions)
            self._weigh(file)

    def _save_again(self, file: FileRow, known: VersionRow, row: VersionRow) -> None:
        """Fold a version in that is known already: the same op once more, or another op that gave its id again.

        The op with the lowest stamp has the id, and any other the first that is free, or has a higher stamp, of a
        row of ids of its own: a hash table kept in order, the same whatever came first.
        """
        taken: VersionRow | None = known
        while taken is not None:
            if taken.stamp == row.stamp:
                return
            if row.stamp < taken.stamp:
                self.versions[file.id, row.version] = row
                file.heads = tuple(row if head.version == row.version else head for head in file.heads)
                self._join(file, row, new=False)
                row = taken
            row = msgspec.structs.replace(row, version=version_again(row.version, row.stamp))
            taken = self._known_version((file.id, row.version))
        self._add_version(file, row)

    def _settle(self, file: FileRow) -> None:
        """Decide which of the file's names lives although removed, if any, and what the file weighs."""
        revived = 0
        if not file.standing and file.names and file.heads:
            rows = [self.names[number] for number in file.names]
            seen = {version for row in rows for version in row.seen}
            if any(head.version not in seen for head in file.heads):
                revived = max(rows, key=_stamp_of).id
        if revived != file.revived:
            before, file.revived = file.revived, revived
            for number in (before, revived):
                if number:
                    self._set_alive(self.names[number], number == revived)
        self._weigh(file)

    def _weigh(self, file: FileRow) -> None:
        """Count the file and its bytes in the totals."""
        heads = file.heads
        if not heads or not (file.standing or file.revived):
            weight = -1
        elif len(heads) == 1:
            weight = heads[0].size
        else:
            weight = min(sum([head.size for head in file.shown_heads()]), SIZE_MAX)
        before = file.weight
        if weight != before:
            file.weight = weight
            self.files_alive += (weight >= 0) - (before >= 0)
            self.bytes_alive += max(weight, 0) - max(before, 0)

    # names ---------------------------------------------------------------------------------------------------

    def _place(self, op: Place, stamp: bytes, time_ns: int, owner: int) -> None:
        place = op.place
        if place >> _OWNER_SHIFT != owner:
            return
        name = self.names[op.id]
        if stamp <= name.stamp:
            return
        before = self.files[name.file] if name.file else None
        self._changes.placed.setdefault(op.id, (name.parent, name.name) if name.alive else None)
        if before is not None and name.alive:
            self._set_alive(name, False)
        stood = before is not None and name.place not in name.gone
        name.parent, name.name, name.file = op.parent, op.name, op.file
        name.place, name.stamp, name.time_ns = place, stamp, time_ns
        file = self.files[op.file]
        if before is not file:
            file.names = tuple(sorted((*file.names, name.id)))
        stands = place not in name.gone
        file.standing += stands
        if before is not None:
            before.standing -= stood
            if before.revived == name.id:
                before.revived = 0
            if before is not file:
                before.names = tuple([number for number in before.names if number != name.id])
                self._changes.files.add(before.id)
                self._settle(before)
        if stands:
            self._set_alive(name, True)
        self._changes.files.add(file.id)
        self._settle(file)

    def _remove(self, op: Remove, stamp: bytes, time_ns: int, _owner: int) -> None:
        self._changes.removed[op.id] = stamp, time_ns
        if op.directory:
            directory = self.directories[op.id]
            if op.place not in directory.gone:
                directory.gone = tuple(sorted((*directory.gone, op.place)))
                self._settle_directory(directory)
            return
        name = self.names[op.id]
        gone, seen = name.gone, name.seen
        if op.seen:
            name.seen = op.seen if not seen and len(op.seen) == 1 else tuple(sorted({*seen, *op.seen}))
        stood = name.file and name.place not in gone
        if op.place not in gone:
            name.gone = tuple(sorted((*gone, op.place)))
        if not name.file:
            return
        file = self.files[name.file]
        if stood and name.place == op.place:
            file.standing -= 1
            self._set_alive(name, False)
        if not file.standing:
            self._settle(file)

    def _set_alive(self, name: NameRow, alive: bool) -> None:
        """Let a name live or not, and count it in its directory."""
        if name.alive != alive:
            name.alive = alive
            self._changes.files.add(name.file)
            self._count(name.parent, 1 if alive else -1)

    # directories ---------------------------------------------------------------------------------------------

    def _count(self, number: int, more: int) -> None:
        """Count children of a directory that came to life or died, and so up while that decides its own life."""
        touched = self._changes.directories
        while True:
            touched.add(number)
            directory = self.directories[number]
            directory.children += more
            alive = _lives(directory)
            if alive == directory.alive:
                return
            directory.alive = alive
            more = 1 if alive else -1
            number = directory.parent

    def _settle_directory(self, directory: DirectoryRow) -> None:
        """Decide whether a directory lives, after its place or what was removed has changed."""
        self._changes.directories.add(directory.id)
        alive = _lives(directory)
        if alive != directory.alive:
            directory.alive = alive
            self._count(directory.parent, 1 if alive else -1)

    def _move(self, op: Move, stamp: bytes, time_ns: int, owner: int) -> None:
        if op.place >> _OWNER_SHIFT == owner:
            self._moves.append(MoveRow(stamp, op.id, op.parent, op.name, op.place, time_ns))

    def _known_move(self, stamp: bytes) -> MoveRow | None:
        row = self.moves.get(stamp)
        if row is None:
            row = self._source.move(stamp)
            if row is not None:
                self.moves[stamp] = row
        return row

    def _fold_moves(self, moves: list[MoveRow]) -> None:
        """Fold a batch of Moves in: those that came late are done in their place, the later ones again after them.

        A new directory that no Move ever named as a parent can be in nobody's way, so that it needs no such care.
        """
        moves.sort(key=_stamp_of)
        last, again = self.last_move, list[MoveRow]()
        for move in moves:
            if move.stamp <= last and self._known_move(move.stamp) is not None:
                continue
            self.moves[move.stamp] = move
            last = max(last, move.stamp)
            directory = self.directories[move.id]
            fresh = not directory.placed and not directory.used and move.id != move.parent
            self.directories[move.parent].used = True
            if directory.placed < move.stamp:
                directory.place, directory.placed = move.place, move.stamp
                if not fresh:
                    self._settle_directory(directory)
            if fresh:
                self._apply(move)
            else:
                again.append(move)
        if again:
            self._move_again(again)
        self.last_move = last

    def _move_again(self, moves: list[MoveRow]) -> None:
        """Do Moves in the order of stamps, after undoing those that come later than the first of them."""
        first, done = moves[0].stamp, list[MoveRow]()
        if first < self.last_move:
            for row in self._source.moves_from(first):
                self.moves.setdefault(row.stamp, row)
            late = {move.stamp for move in moves}
            done = [row for stamp, row in self.moves.items() if stamp > first and stamp not in late]
            done.sort(key=_stamp_of)
        for move in reversed(done):
            self._undo(move)
        for move in sorted((*moves, *done), key=_stamp_of):
            self._apply(move)

    def _undo(self, move: MoveRow) -> None:
        if move.before is None:
            return
        if move.before:
            before = self._known_move(move.before)
            assert before is not None, "a Move that was done is kept"
            self._put(self.directories[move.id], before.stamp, before.parent, before.name, before.time_ns)
        else:
            self._put(self.directories[move.id], NO_STAMP, ROOT, b"", 0)

    def _apply(self, move: MoveRow) -> None:
        number = move.parent
        while number not in (ROOT, move.id):
            number = self.directories[number].parent
        directory = self.directories[move.id]
        if number == move.id:
            move.before = None
            return
        move.before = directory.stamp
        self._put(directory, move.stamp, move.parent, move.name, move.time_ns)

    def _put(self, directory: DirectoryRow, stamp: bytes, parent: int, name: bytes, time_ns: int) -> None:
        """Put a directory, with all below it, somewhere; or nowhere, when the stamp is empty."""
        self._changes.placed.setdefault(
            directory.id, (directory.parent, directory.name) if directory.alive else None
        )
        if directory.alive:
            directory.alive = False
            self._count(directory.parent, -1)
        directory.stamp, directory.parent, directory.name, directory.time_ns = stamp, parent, name, time_ns
        self._settle_directory(directory)

    # attributes ----------------------------------------------------------------------------------------------

    def _describe(self, op: Describe, stamp: bytes, time_ns: int, _owner: int) -> None:
        row: DirectoryRow | FileRow
        self._changes.described[op.id] = stamp, time_ns
        if op.directory:
            row = self.directories[op.id]
            self._changes.directories.add(op.id)
        elif op.id == ROOT:
            return  # no file has this id
        else:
            row = self.files[op.id]
            self._changes.files.add(op.id)
        attributes = row.attributes
        if attributes is None:
            attributes = row.attributes = Attributes()
        for field in ("mode", "uid", "gid", "mtime_ns", "birthtime_ns"):
            value: int | None = getattr(op, field)
            if value is not None:
                before: tuple[int, bytes] | None = getattr(attributes, field)
                if before is None or before[1] < stamp:
                    setattr(attributes, field, (value, stamp))
        for name, xattr in op.xattrs.items():
            known = attributes.xattrs.get(name)
            if known is None or known[1] < stamp:
                attributes.xattrs[name] = (xattr, stamp)
            large = large_of(name, xattr) if xattr is not None else None
            if large is not None:
                self._save_large(op.id, *large, stamp, time_ns)
        attributes.xattrs = dict(sorted(attributes.xattrs.items()))  # equal rows are equal bytes

    def _save_large(self, number: int, content: bytes, size: int, stamp: bytes, time_ns: int) -> None:
        """Note that the bytes of a large attribute belong to the volume, as those of versions do."""
        key = number, version_of_large(content)
        known = self._known_version(key)
        if known is None or stamp < known.stamp:
            row = self.versions[key] = VersionRow(*key, (), "xattr", content, size, 0, 0, stamp, time_ns)
            if known is None:
                self._changes.versions.append(row)


def _stamp_of(row: VersionRow | NameRow | MoveRow) -> bytes:
    return row.stamp


def _new_directory(number: int) -> DirectoryRow:
    return DirectoryRow(number, alive=number == ROOT)


def _lives(directory: DirectoryRow) -> bool:
    if directory.id == ROOT:
        return True
    return directory.stamp != NO_STAMP and (directory.children > 0 or directory.place not in directory.gone)
