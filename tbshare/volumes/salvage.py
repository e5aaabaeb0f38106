"""A new log.db from what can be read of a damaged one, which is moved aside and kept.

Rows are read one by one, around what is damaged; entries are also looked for in the bare bytes, for a file that
SQLite cannot open. Each entry tells by its hash, its chain and its signature that it is whole. What is taken is of
each branch all up to the first gap: what lay behind comes from the peers.

The new file is complete before the old one is moved. A crash between leaves either the old one, or none and the
new one, which `finish` then puts in its place.
"""

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tbshare.errors import FormatInvalid, StoreUnusable
from tbshare.store.disk import sync_directory
from tbshare.volumes.database import Database
from tbshare.volumes.entry import NO_HASH, Entry, Genesis, MemberAdd, decode_entry, verify_entry
from tbshare.volumes.log_rows import Stored, unpack

ROWS_AT_ONCE: Final = 1000
ROWS_BEYOND: Final = 10_000  # looked for after the last that was read, when nothing tells how many there are
ENTRIES_AT_ONCE: Final = 1000
SUFFIXES: Final = ("", "-wal", "-shm")
_ENVELOPE = re.compile(rb"\x92(?=[\xc4\xc5\xc6])")  # how an entry begins: two values, the first a byte string
_KEPT_META: Final = frozenset(  # a new incarnation: no seq is used twice
    {"cluster", "sponsor", "sponsor_name", "id_runs"}
)


@dataclass
class Salvaged:
    """What could be read."""

    arrivals: dict[bytes, int] = field(default_factory=dict[bytes, int])  # encoded entry -> arrival, 0 if unknown
    meta: dict[str, bytes] = field(default_factory=dict[str, bytes])
    rows: dict[str, list[tuple[object, ...]]] = field(default_factory=dict[str, list[tuple[object, ...]]])


def finish(path: Path) -> None:
    """Complete a salvage that a crash cut short, or forget it."""
    new = _beside(path, "new")
    if new.exists() and not path.exists():
        _move(path, _free(path, but_wal=True))
        new.rename(path)
        sync_directory(path.parent)
    for suffix in SUFFIXES:
        _with(new, suffix).unlink(missing_ok=True)


def salvage(path: Path, node: bytes, *, cluster: bytes = b"", clock_ns: Callable[[], int]) -> str:
    """Put a new log.db in the place of a damaged one; return a sentence about what became of it.

    `cluster` is what this node is known to be in, for a file that does not say so any more.
    """
    found = _read(path)
    for data in (path, _with(path, "-wal")):
        for encoded in _carved(data):
            found.arrivals.setdefault(encoded, 0)
    entries = in_chains(found.arrivals)
    kept = _free(path)
    said = f"log.db was damaged: {len(entries)} entries could be read, the file is kept as {kept.name}"
    meta = {name: value for name, value in found.meta.items() if name in _KEPT_META}
    meta["damaged"] = said.encode()
    cluster = meta.get("cluster") or cluster or _cluster_of(entries, node)
    if cluster:
        meta["cluster"] = cluster
    _write(_beside(path, "new"), entries, found, meta, (clock_ns(), said))
    _move(path, kept)
    _beside(path, "new").rename(path)
    sync_directory(path.parent)
    return said


def in_chains(arrivals: dict[bytes, int]) -> list[Entry]:
    """Return the entries that are whole and follow each other from the first, in the order they came."""
    entries: dict[bytes, tuple[int, Entry]] = {}
    for encoded, arrival in arrivals.items():
        with suppress(FormatInvalid):
            entry = decode_entry(encoded)
            verify_entry(entry)
            entries[entry.hash] = (arrival or 1 << 62, entry)
    ordered = sorted(entries.values(), key=lambda each: (each[0], each[1].order()))
    waiting: dict[bytes, list[Entry]] = {}
    taken: dict[bytes, Entry] = {}
    for _, entry in ordered:
        ready = [entry]
        while ready:
            each = ready.pop()
            previous = taken.get(each.prev)
            if previous is None and each.prev != NO_HASH:
                waiting.setdefault(each.prev, []).append(each)
            elif previous is None or _follows(each, previous):
                taken[each.hash] = each
                ready += waiting.pop(each.hash, [])
    return list(taken.values())


def _follows(entry: Entry, previous: Entry) -> bool:
    same_log = (entry.node, entry.incarnation) == (previous.node, previous.incarnation)
    return same_log and entry.seq == previous.seq + 1 and entry.lamport > previous.lamport


def _cluster_of(entries: Iterable[Entry], node: bytes) -> bytes:
    """Return the cluster that made this node a member, else the one it began."""
    own = b""
    for entry in entries:
        for op in entry.ops:
            if isinstance(op, MemberAdd) and op.node == node and op.cluster:
                return op.cluster
            if isinstance(op, Genesis) and entry.node == node:
                own = own or entry.hash
    return own


# ---- reading ------------------------------------------------------------------------------------------


def _read(path: Path) -> Salvaged:
    found = Salvaged()
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file,
    ):
        file.text_factory = _text
        for key, value in _rows(file, "SELECT key, value FROM meta"):
            found.meta[str(key)] = bytes(value) if isinstance(value, bytes) else b""
        for table, columns in (
            ("pins", "id, what, ranges, note, created_ns"),
            ("leases", "id, what, kind, pid, boot, expires"),
        ):
            found.rows[table] = list(_by_number(file, table, "id", columns))
        for _, data in _by_number(file, "segments", "id", "id, data"):
            with suppress(StoreUnusable, TypeError):
                segment = unpack(data)  # type: ignore[arg-type]
                found.arrivals |= dict(zip(segment.encoded, segment.arrivals, strict=True))
        for arrival, encoded in _by_number(file, "entries", "arrival", "arrival, encoded"):
            if isinstance(encoded, bytes) and isinstance(arrival, int):
                found.arrivals[encoded] = arrival
    return found


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _rows(file: sqlite3.Connection, query: str, *values: object) -> list[tuple[object, ...]]:
    """Return the rows up to the first that cannot be read."""
    rows: list[tuple[object, ...]] = []
    with suppress(sqlite3.Error):
        rows.extend(file.execute(query, values))
    return rows


def _by_number(file: sqlite3.Connection, table: str, key: str, columns: str) -> Iterator[tuple[object, ...]]:
    """Yield every row that can be read, by its number."""
    last = 0
    highest = [row[0] for row in _rows(file, f"SELECT MAX({key}) FROM {table}")]
    end = highest[0] if highest and isinstance(highest[0], int) else 0
    while True:
        query = f"SELECT {columns} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT {ROWS_AT_ONCE}"
        rows: list[tuple[object, ...]] = []
        whole = False
        with suppress(sqlite3.Error):
            for row in file.execute(query, (last,)):
                rows.append(row)  # noqa: PERF402  those before the damage count
            whole = True
        yield from rows
        last = max([last, *[row[0] for row in rows if isinstance(row[0], int)]])
        if whole and len(rows) < ROWS_AT_ONCE:
            return
        if not whole:  # one by one, until it goes on
            last, row = _next_readable(file, table, key, columns, last, end or last + ROWS_BEYOND)
            if row is None:
                return
            yield row


def _next_readable(
    file: sqlite3.Connection, table: str, key: str, columns: str, last: int, end: int
) -> tuple[int, tuple[object, ...] | None]:
    for number in range(last + 1, end + 1):
        for row in _rows(file, f"SELECT {columns} FROM {table} WHERE {key} = ?", number):
            return number, row
    return end, None


def _carved(path: Path) -> Iterator[bytes]:
    """Yield what looks like entries in the bytes of a file; those spread over pages are not found."""
    if not path.exists():
        return
    data = path.read_bytes()
    for match in _ENVELOPE.finditer(data):
        start, kind = match.start(), data[match.end()]
        width = {0xC4: 1, 0xC5: 2, 0xC6: 4}[kind]
        length = int.from_bytes(data[start + 2 : start + 2 + width], "big")
        end = start + 2 + width + length
        if data[end : end + 2] == b"\xc4\x40":  # the signature's 64 bytes follow
            yield data[start : end + 66]


# ---- writing ------------------------------------------------------------------------------------------


def _write(
    path: Path, entries: list[Entry], found: Salvaged, meta: dict[str, bytes], attention: tuple[int, str]
) -> None:
    for suffix in SUFFIXES:
        _with(path, suffix).unlink(missing_ok=True)
    with closing(Database(path)) as database:
        stored = Stored(database)
        for start in range(0, len(entries), ENTRIES_AT_ONCE):
            with database.transaction() as connection:
                placed = stored.insert(connection, entries[start : start + ENTRIES_AT_ONCE])
            stored.arrived(placed)
        with database.transaction() as connection:
            connection.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
            connection.execute("INSERT INTO attention (time_ns, line) VALUES (?, ?)", attention)
            for table, rows in found.rows.items():
                for row in rows:
                    with suppress(sqlite3.IntegrityError):
                        marks = ", ".join("?" * len(row))
                        connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{ending}")


def _with(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _free(path: Path, *, but_wal: bool = False) -> Path:
    """Return a name to keep a damaged file under; with `but_wal` that of the last one, to add what is missing."""
    number = 1
    while _beside(path, f"damaged-{number}").exists():
        number += 1
    return _beside(path, f"damaged-{max(number - 1, 1) if but_wal else number}")


def _move(path: Path, to: Path) -> None:
    for suffix in SUFFIXES:
        if _with(path, suffix).exists() and not _with(to, suffix).exists():
            _with(path, suffix).rename(_with(to, suffix))
    sync_directory(path.parent)
