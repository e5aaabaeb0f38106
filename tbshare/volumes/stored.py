"""How the rows of a namespace lie in SQLite: loaded for one batch, and what differs written back.

A row is msgpack, and only what is searched for is a column. Ids of one run are in order, so that new rows lie side
by side; what is written is sorted for the same reason.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from tbshare.volumes.entry import Entry, FileOp, Move, Place, Remove, Save
from tbshare.volumes.ids import COUNT_BITS
from tbshare.volumes.namespace import Namespace
from tbshare.volumes.recent import Recent, Written
from tbshare.volumes.rows import Changes, DirectoryRow, FileRow, MoveRow, NameRow, VersionRow
from tbshare.volumes.shown import clash_key

LEVEL: Final = 3  # in user_version; tables of any other level are made again
IDS_AT_ONCE: Final = 2000  # in one query
ROWS_IN_PART_MAX: Final = 32
ROWS_IN_PARTS_MAX: Final = 256  # at which it is no matter any more
FORKED, SAVED_OVER, LOST = (
    1,
    2,
    4,
)  # flags of a file: several heads shown; has older versions; has no living name
SCHEMA: Final = """
CREATE TABLE facts (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE names (
    id INTEGER PRIMARY KEY, file INTEGER NOT NULL,
    parent INTEGER NOT NULL, alive INTEGER NOT NULL, key BLOB NOT NULL, row BLOB NOT NULL
);
CREATE INDEX names_by_key ON names (parent, alive, key);
CREATE TABLE directories (
    id INTEGER PRIMARY KEY,
    parent INTEGER,                     -- null while it is nowhere
    alive INTEGER NOT NULL, key BLOB NOT NULL, row BLOB NOT NULL
);
CREATE INDEX directories_by_key ON directories (parent, alive, key);
CREATE TABLE files (
    id INTEGER PRIMARY KEY, row BLOB NOT NULL, flags INTEGER NOT NULL,
    lost REAL                           -- when it lost its last living name, on the volume's clock
);
CREATE INDEX files_forked ON files (id) WHERE flags & 1;
CREATE INDEX files_aging ON files (id) WHERE flags >= 2;
CREATE TABLE versions (
    file INTEGER NOT NULL, version INTEGER NOT NULL,
    here INTEGER NOT NULL, arrived REAL NOT NULL,  -- no part of the fold; the second on the volume's clock
    row BLOB NOT NULL,
    PRIMARY KEY (file, version)
) WITHOUT ROWID;
CREATE INDEX versions_wanted ON versions (file, version) WHERE here = 0;
CREATE TABLE moves (stamp BLOB PRIMARY KEY, row BLOB NOT NULL) WITHOUT ROWID;
"""

NAMES, DIRECTORIES, FILES = range(3)
TABLES: Final = ("names", "directories", "files")

Part = TypeVar("Part", bound=Sequence[object])
Batch = Sequence[tuple[Entry, Sequence[tuple[int, FileOp]]]]

encode: Final = msgspec.msgpack.Encoder().encode
name_of: Final = msgspec.msgpack.Decoder(NameRow).decode
directory_of: Final = msgspec.msgpack.Decoder(DirectoryRow).decode
file_of: Final = msgspec.msgpack.Decoder(FileRow).decode
version_of: Final = msgspec.msgpack.Decoder(VersionRow).decode
move_of: Final = msgspec.msgpack.Decoder(MoveRow).decode


def flags_of(file: FileRow) -> int:
    """Return the flags of a file's row."""
    heads = file.heads
    if len(heads) == 1:
        flags = SAVED_OVER if heads[0].parents else 0
    else:
        flags = SAVED_OVER if any(head.parents for head in heads) else 0
        flags |= FORKED if file.weight >= 0 and len(file.shown_heads()) > 1 else 0
    return flags | LOST if file.weight < 0 else flags


class Load:
    """Loads rows into the namespace of one batch, and remembers what they were."""

    def __init__(self, connection: sqlite3.Connection, recent: Recent) -> None:
        self._connection = connection
        self._recent = recent
        self.names: dict[int, tuple[bytes, int, int, bool, bytes]] = {}  # row, and what is a column or makes one
        self.directories: dict[int, tuple[bytes, int | None, bool, bytes]] = {}
        self.files: dict[int, tuple[bytes, int]] = {}
        self.versions: dict[tuple[int, int], bytes] = {}
        self.moves: dict[bytes, bytes] = {}
        self._asked = (
            set[int](),
            set[int](),
            set[int](),
        )  # names, directories, files: those not found do not exist

    def batch(self, space: Namespace, batch: Batch) -> None:
        """Load the rows that ops name, in few queries."""
        names, directories, files = self._asked = _named(batch)
        for number, raw in self._many(NAMES, names):
            name = space.names[number] = self._name(number, raw)
            files.add(name.file)
            directories.add(name.parent)
        for number, raw in self._many(FILES, files):
            space.files[number] = self._file(number, raw)
        for number, raw in self._many(DIRECTORIES, directories):
            space.directories[number] = self._directory(number, raw)

    def _many(self, kind: int, ids: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        rows, missing = self._recent.rows[kind], list[int]()
        for number in ids:
            raw = rows.get(number)
            if raw is not None:
                yield number, raw
            elif not self._is_new(kind, number):
                missing.append(number)
        ordered = iter(sorted(missing))
        while some := list(islice(ordered, IDS_AT_ONCE)):
            text = ",".join(map(str, some))
            yield from self._connection.execute(f"SELECT id, row FROM {TABLES[kind]} WHERE id IN ({text})")

    def _is_new(self, kind: int, number: int) -> bool:
        """Say whether an id comes after all that the tables have of its run."""
        last = self._recent.last_of(kind, number)
        if last is None:
            first = number >> COUNT_BITS << COUNT_BITS
            query = f"SELECT id FROM {TABLES[kind]} WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1"
            row = self._one(query, first, first | (1 << COUNT_BITS) - 1)
            last = -1 if row is None else int(row[0])
            self._recent.note_last(kind, number, last)
        return number > last

    def _raw(self, kind: int, number: int) -> bytes | None:
        if number in self._asked[kind]:
            return None
        return next((raw for _, raw in self._many(kind, (number,))), None)

    def _one(self, query: str, *values: object) -> Any:
        return self._connection.execute(query, values).fetchone()

    def _name(self, number: int, raw: bytes) -> NameRow:
        row = name_of(raw)
        self.names[number] = raw, row.file, row.parent, row.alive, row.name
        return row

    def _file(self, number: int, raw: bytes) -> FileRow:
        row = file_of(raw)
        self.files[number] = raw, flags_of(row)
        return row

    def _directory(self, number: int, raw: bytes) -> DirectoryRow:
        row = directory_of(raw)
        self.directories[number] = raw, row.parent if row.stamp else None, row.alive, row.name
        return row

    # what a batch asks for besides, as a namespace.Source ---------------------------------------------------

    def name(self, name: int) -> NameRow | None:
        """Return the row of a name."""
        raw = self._raw(NAMES, name)
        return None if raw is None else self._name(name, raw)

    def directory(self, directory: int) -> DirectoryRow | None:
        """Return the row of a directory."""
        raw = self._raw(DIRECTORIES, directory)
        return None if raw is None else self._directory(directory, raw)

    def file(self, file: int) -> FileRow | None:
        """Return the row of a file."""
        raw = self._raw(FILES, file)
        return None if raw is None else self._file(file, raw)

    def version(self, key: tuple[int, int]) -> VersionRow | None:
        """Return the row of a version."""
        row = self._one("SELECT row FROM versions WHERE file = ? AND version = ?", *key)
        if row is None:
            return None
        self.versions[key] = row[0]
        return version_of(row[0])

    def versions_of(self, file: int) -> Iterator[VersionRow]:
        """Yield the versions of a file that were not loaded yet."""
        found = self._connection.execute("SELECT version, row FROM versions WHERE file = ?", (file,)).fetchall()
        for version, raw in found:
            if (file, version) not in self.versions:
                self.versions[file, version] = raw
                yield version_of(raw)

    def move(self, stamp: bytes) -> MoveRow | None:
        """Return the Move of this stamp."""
        row = self._one("SELECT row FROM moves WHERE stamp = ?", stamp)
        if row is None:
            return None
        self.moves[stamp] = row[0]
        return move_of(row[0])

    def moves_from(self, stamp: bytes) -> Iterator[MoveRow]:
        """Yield the Moves of this stamp and later ones that were not loaded yet."""
        found = self._connection.execute("SELECT stamp, row FROM moves WHERE stamp >= ?", (stamp,)).fetchall()
        for number, raw in found:
            if number not in self.moves:
                self.moves[number] = raw
                yield move_of(raw)


def _named(batch: Batch) -> tuple[set[int], set[int], set[int]]:
    """Return the names, directories and files that ops name."""
    names, directories, files = set[int](), set[int](), set[int]()
    for _, ops in batch:
        for _, op in ops:
            if isinstance(op, Save):
                files.add(op.file)
            elif isinstance(op, Place):
                names.add(op.id)
                files.add(op.file)
                directories.add(op.parent)
            elif isinstance(op, Move):
                directories.update((op.id, op.parent))
            elif isinstance(op, Remove):
                (directories if op.directory else names).add(op.id)
            else:
                (directories if op.directory else files).add(op.id)
    return names, directories, files


def insert_rows(
    connection: sqlite3.Connection, statement: str, columns: int, rows: Sequence[Sequence[object]]
) -> None:
    """Insert rows with this statement up to its values.

    Few rows go in few steps: each step lets other threads have the interpreter, and waits for it afterwards.
    """
    one = f"({','.join('?' * columns)})"
    if len(rows) > ROWS_IN_PARTS_MAX:
        connection.executemany(f"{statement} VALUES {one}", rows)
        return
    for part in parts_of(rows):
        values = ",".join([one] * len(part))
        connection.execute(f"{statement} VALUES {values}", [value for row in part for value in row])


def parts_of(rows: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """Yield the rows in parts whose sizes are powers of two: of these few, prepared statements are kept."""
    start = 0
    while start < len(rows):
        size = min(1 << (len(rows) - start).bit_length() - 1, ROWS_IN_PART_MAX)
        yield rows[start : start + size]
        start += size


class Flush:
    """Writes the rows of a namespace that differ from what was loaded; `written` says which."""

    def __init__(self, connection: sqlite3.Connection, load: Load, space: Namespace) -> None:
        self._connection = connection
        self._load, self._space = load, space
        self.written = Written({}, {}, {}, ([], [], []), [], [])

    def _many(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        if rows:
            self._connection.executemany(statement, rows)

    def _insert(self, table: str, rows: Sequence[Sequence[object]]) -> None:
        if rows:
            columns = len(rows[0])
            insert_rows(self._connection, f"INSERT INTO {table}", columns, rows)

    def _update(self, table: str, rows: Sequence[tuple[int, bytes]]) -> None:
        """Replace rows whose other columns stay as they are."""
        if len(rows) > ROWS_IN_PARTS_MAX:
            self._many(f"UPDATE {table} SET row = ?2 WHERE id = ?1", rows)
        else:
            for part in parts_of(rows):
                values = ",".join(["(?,?)"] * len(part))
                self._connection.execute(
                    f"UPDATE {table} SET row = column2 FROM (VALUES {values}) WHERE id = column1",
                    [value for row in part for value in row],
                )

    def all(self, changes: Changes, here: Callable[[VersionRow], int] | None, clock: float) -> None:
        """Write all tables. sqlite3.IntegrityError: a new version was there already, see `Namespace.trusting`."""
        versions = self._space.versions
        self._insert(
            "versions",
            [
                (*key, 0 if here is None else int(here(versions[key])), clock, encode(versions[key]))
                for key in sorted([(row.file, row.version) for row in changes.versions])
            ],
        )
        known = self._load.versions
        self._many(
            "UPDATE versions SET row = ?, here = 0 WHERE file = ? AND version = ?",  # it has other bytes now
            [(raw, *key) for key, old in known.items() if (raw := encode(versions[key])) != old],
        )
        moves = ((stamp, encode(row)) for stamp, row in sorted(self._space.moves.items()))
        known_moves = self._load.moves
        self._many(
            "INSERT OR REPLACE INTO moves VALUES (?, ?)",
            [(stamp, raw) for stamp, raw in moves if known_moves.get(stamp) != raw],
        )
        self._files(clock)
        self._names()
        self._directories()

    def _files(self, clock: float) -> None:
        new: list[tuple[object, ...]] = []
        same: list[tuple[int, bytes]] = []
        other: list[tuple[object, ...]] = []
        again: list[tuple[int, int]] = []  # versions of files that live again: what was given up is wanted
        written, new_ids = self.written.files, self.written.new[FILES]
        for number, row in sorted(self._space.files.items()):
            raw, flags = encode(row), flags_of(row)
            known = self._load.files.get(number)
            if known is None:
                new.append((number, raw, flags, clock if flags & LOST else None))
                new_ids.append(number)
            elif known[1] != flags:
                if known[1] & LOST and not flags & LOST:
                    again += [(number, head.version) for head in row.heads]
                other.append((raw, flags, flags & LOST, clock, number))
            elif known[0] != raw:
                same.append((number, raw))
            else:
                continue
            written[number] = raw
        self._insert("files", new)
        self._update("files", same)
        lost = "CASE WHEN ? THEN COALESCE(lost, ?) END"
        self._many(f"UPDATE files SET row = ?, flags = ?, lost = {lost} WHERE id = ?", other)
        self._many("UPDATE versions SET here = 0 WHERE here = 3 AND file = ? AND version = ?", again)

    def _names(self) -> None:
        new: list[tuple[object, ...]] = []
        same: list[tuple[int, bytes]] = []
        other: list[tuple[object, ...]] = []
        written, new_ids = self.written.names, self.written.new[NAMES]
        for number, row in sorted(self._space.names.items()):
            raw = encode(row)
            known = self._load.names.get(number)
            if known is None:
                key = clash_key(row.name)
                new.append((number, row.file, row.parent, row.alive, key, raw))
                new_ids.append(number)
                if row.alive:
                    self.written.appeared.append(((row.parent, key), number, row.file))
            elif known[0] == raw:
                continue
            elif known[1:] == (row.file, row.parent, row.alive, row.name):
                same.append((number, raw))
            else:
                key = clash_key(row.name)
                other.append((row.file, row.parent, row.alive, key, raw, number))
                self.written.changed.extend([(row.parent, key), (known[2], clash_key(known[4]))])
            written[number] = raw
        self._insert("names", new)
        self._update("names", same)
        self._many("UPDATE names SET file = ?, parent = ?, alive = ?, key = ?, row = ? WHERE id = ?", other)

    def _directories(self) -> None:
        new: list[tuple[object, ...]] = []
        same: list[tuple[int, bytes]] = []
        other: list[tuple[object, ...]] = []
        written, new_ids = self.written.directories, self.written.new[DIRECTORIES]
        for number, row in sorted(self._space.directories.items()):
            raw, parent = encode(row), row.parent if row.stamp else None
            known = self._load.directories.get(number)
            if known is None:
                key = clash_key(row.name)
                new.append((number, parent, row.alive, key, raw))
                new_ids.append(number)
                if row.alive and parent is not None:
                    self.written.appeared.append(((parent, key), number, 0))
            elif known[0] == raw:
                continue
            elif known[1:] == (parent, row.alive, row.name):
                same.append((number, raw))
            else:
                key = clash_key(row.name)
                other.append((parent, row.alive, key, raw, number))
                self.written.changed.extend([(row.parent, key), (known[1] or 0, clash_key(known[3]))])
            written[number] = raw
        self._insert("directories", new)
        self._update("directories", same)
        self._many("UPDATE directories SET parent = ?, alive = ?, key = ?, row = ? WHERE id = ?", other)
