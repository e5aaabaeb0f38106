"""The entries as log.db holds them: each in its row, or many old ones of one branch together in a segment.

A segment is made of entries that every member has, for good: newcomers still get them, and their signatures are
checked there. What concerns the cluster keeps its row, so that a start finds it.
"""

import heapq
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, cast

import msgspec
import zstandard

from tbshare.errors import FormatInvalid, LogDamaged
from tbshare.volumes.branches import Branch, Branches, Known
from tbshare.volumes.database import Database
from tbshare.volumes.entry import NO_HASH, Entry, decode_entry
from tbshare.volumes.membership import concerns_cluster
from tbshare.wire.message import Head

SEGMENT_BYTES_MAX: Final = 64 << 20  # of one, unpacked; ours are a few MB
SEGMENTS_OPEN_MAX: Final = 4
ROWS_AT_ONCE: Final = 512
DAMAGED_CURE: Final = "tbshare verify --repair"

Placed = list[tuple[Branch, Entry, int]]  # where entries lie, with their arrival


class Row(NamedTuple):
    """One entry as it lies in log.db."""

    arrival: int
    seq: int
    encoded: bytes


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """What is packed into one segment: the same entries in each of the three."""

    arrivals: list[int]
    seqs: list[int]
    encoded: list[bytes]


class SegmentRange(NamedTuple):
    """Where a segment lies."""

    first_arrival: int
    last_arrival: int
    first_seq: int
    last_seq: int
    branch: int
    id: int


_segment_decoder = msgspec.msgpack.Decoder(Segment)


def pack(segment: Segment) -> bytes:
    """Return the bytes of a segment."""
    packer = zstandard.ZstdCompressor(level=9, write_checksum=True)
    return packer.compress(msgspec.msgpack.encode(segment))


def unpack(data: bytes) -> Segment:
    """Return the segment these bytes are; LogDamaged when they are none."""
    try:
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=SEGMENT_BYTES_MAX)
        segment = _segment_decoder.decode(raw)
    except (zstandard.ZstdError, msgspec.DecodeError, RecursionError) as error:
        raise LogDamaged(f"log.db is damaged: a segment: {error}", cure=DAMAGED_CURE) from error
    if not len(segment.arrivals) == len(segment.seqs) == len(segment.encoded):
        raise LogDamaged("log.db is damaged: a segment does not fit together", cure=DAMAGED_CURE)
    return segment


def read(encoded: object) -> Entry:
    """Return the entry of a row; LogDamaged when it is none."""
    try:
        return decode_entry(cast("bytes", encoded))
    except (FormatInvalid, TypeError) as error:
        raise LogDamaged(f"log.db is damaged: {error}", cure=DAMAGED_CURE) from error


class Stored:
    """Reads and writes the entries of log.db; the caller holds the lock."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._segments: list[SegmentRange] = []
        self._open: dict[int, Segment] = {}
        self.branches = Branches(self.hash_of)
        self.last_arrival = 0
        self.refresh()
        for row in database.rows("SELECT id, node, incarnation, parent, fork_seq FROM branches ORDER BY id"):
            self.branches.add(self._ended(Branch(*cast("tuple[int, bytes, bytes, int, int]", row))))

    def _ended(self, branch: Branch) -> Branch:
        query = "SELECT arrival, hash, encoded FROM entries WHERE branch = ? ORDER BY seq DESC LIMIT 1"
        for arrival, hash_, encoded in self._database.rows(query, branch.id):
            entry = read(encoded)
            if (entry.node, entry.incarnation, entry.hash) != (branch.node, branch.incarnation, hash_):
                raise LogDamaged("log.db is damaged: an entry lies in another log", cure=DAMAGED_CURE)
            branch.end(entry, cast("int", arrival))
        if branch.seq <= branch.fork_seq or (branch.parent and branch.parent not in self.branches.by_id):
            raise LogDamaged("log.db is damaged: a branch has no entries", cure=DAMAGED_CURE)
        self.last_arrival = max(self.last_arrival, branch.arrival)
        return branch

    def refresh(self) -> None:
        """Read where the segments lie."""
        query = "SELECT first_arrival, last_arrival, first_seq, last_seq, branch, id FROM segments"
        rows = self._database.rows(query)
        self._segments = sorted([SegmentRange(*cast("tuple[int, int, int, int, int, int]", row)) for row in rows])
        self._open.clear()

    # ---- writing --------------------------------------------------------------------------------------

    def insert(self, connection: sqlite3.Connection, entries: Sequence[Entry]) -> Placed:
        """Write entries, parents first; `arrived` makes them known once that is committed."""
        ends = {branch.hash: branch for branch in self.branches.by_id.values()}
        placed: Placed = []
        next_id = max(self.branches.by_id, default=0) + 1
        for arrival, entry in enumerate(entries, self.last_arrival + 1):
            branch = ends.pop(entry.prev, None)
            if branch is None:
                parent = self._parent(entry, placed)
                fork_seq = entry.seq - 1 if parent else 0
                branch = Branch(next_id, entry.node, entry.incarnation, parent, fork_seq)
                row = (branch.id, branch.node, branch.incarnation, branch.parent, branch.fork_seq)
                connection.execute("INSERT INTO branches VALUES (?, ?, ?, ?, ?)", row)
                next_id += 1
            ends[entry.hash] = branch
            placed.append((branch, entry, arrival))
        connection.executemany(
            "INSERT INTO entries (arrival, branch, seq, concerns_cluster, hash, encoded)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [
                (arrival, branch.id, entry.seq, concerns_cluster(entry), entry.hash, entry.encoded)
                for branch, entry, arrival in placed
            ],
        )
        return placed

    def _parent(self, entry: Entry, placed: Placed) -> int:
        """Return the branch in which the `prev` of an entry lies; 0 when it begins a log."""
        if entry.prev == NO_HASH:
            return 0
        for branch, other, _ in placed:
            if other.hash == entry.prev:
                return branch.id
        before = self.find_previous(entry)
        if before is None:
            raise LogDamaged("log.db is damaged: an entry is missing", cure=DAMAGED_CURE)
        return before.id

    def find_previous(self, entry: Entry) -> Branch | None:
        """Return the branch in which the entry before this one lies."""
        return self.branches.find(Head(entry.node, entry.incarnation, entry.seq - 1, entry.prev))

    def arrived(self, placed: Placed) -> None:
        """Note what was written."""
        for branch, entry, arrival in placed:
            if branch.id not in self.branches.by_id:
                self.branches.add(branch)
            self.branches.append(branch, entry, arrival)
            self.last_arrival = arrival

    # ---- reading --------------------------------------------------------------------------------------

    def _segment(self, number: int) -> Segment:
        if number not in self._open:
            rows = self._database.rows("SELECT data FROM segments WHERE id = ?", number)
            while len(self._open) >= SEGMENTS_OPEN_MAX:
                del self._open[next(iter(self._open))]
            try:
                self._open[number] = unpack(cast("bytes", rows[0][0]) if rows else b"")
            except LogDamaged:
                self._database.suspect()
                raise
        return self._open[number]

    def entry_of(self, branch: int, seq: int) -> Entry | None:
        """Return one entry of a branch; None when it is not there, which is damage unless nobody had it."""
        rows = self._database.rows("SELECT encoded FROM entries WHERE branch = ? AND seq = ?", branch, seq)
        if rows:
            return read(rows[0][0])
        for place in self._segments:
            if place.branch == branch and place.first_seq <= seq <= place.last_seq:
                segment = self._segment(place.id)
                if seq in segment.seqs:
                    return read(segment.encoded[segment.seqs.index(seq)])
        return None

    def hash_of(self, branch: int, seq: int) -> bytes:
        """Return the hash of one entry of a branch, b"" when it is not there."""
        rows = self._database.rows("SELECT hash FROM entries WHERE branch = ? AND seq = ?", branch, seq)
        if rows:
            return cast("bytes", rows[0][0])
        entry = self.entry_of(branch, seq)
        return entry.hash if entry else b""

    def of_branch(self, branch: int, seq: int, limit: int) -> list[Row]:
        """Return up to `limit` entries of a branch after this seq, in order."""
        query = "SELECT arrival, seq, encoded FROM entries WHERE branch = ? AND seq > ? ORDER BY seq LIMIT ?"
        rows = self._rows(query, branch, seq, limit)
        sealed: list[Row] = []
        for place in self._segments:
            if place.branch == branch and place.last_seq > seq and len(sealed) < limit:
                sealed += [row for row in self._rows_of(place) if row.seq > seq]
        return sorted([*rows, *sealed])[:limit]

    def loose(self, branch: int, seq: int, last: int, limit: int) -> list[Row]:
        """Return up to `limit` entries of a branch after `seq` up to `last` that may be packed, in order."""
        query = (
            "SELECT arrival, seq, encoded FROM entries"
            " WHERE branch = ? AND seq > ? AND seq <= ? AND concerns_cluster = 0 ORDER BY seq LIMIT ?"
        )
        return self._rows(query, branch, seq, last, limit)

    def after(self, arrival: int, limit: int) -> list[Row]:
        """Return up to `limit` entries that arrived after this one, in order of arrival."""
        query = "SELECT arrival, seq, encoded FROM entries WHERE arrival > ? ORDER BY arrival LIMIT ?"
        rows = self._rows(query, arrival, limit)
        end = rows[-1].arrival if len(rows) == limit else self.last_arrival
        sealed: list[Row] = []
        for place in self._segments:
            if place.last_arrival <= arrival:
                continue
            if place.first_arrival > end or sum([row.arrival < place.first_arrival for row in sealed]) >= limit:
                break
            sealed += [row for row in self._rows_of(place) if row.arrival > arrival]
        return sorted([*rows, *sealed])[:limit]

    def _rows(self, query: str, *values: int) -> list[Row]:
        return [Row(*cast("tuple[int, int, bytes]", row)) for row in self._database.rows(query, *values)]

    def _rows_of(self, place: SegmentRange) -> list[Row]:
        segment = self._segment(place.id)
        return [Row(*row) for row in zip(segment.arrivals, segment.seqs, segment.encoded, strict=True)]

    def concerning_cluster(self) -> Iterator[Entry]:
        """Yield the entries that concern the cluster, in order of arrival."""
        query = "SELECT hash, encoded FROM entries WHERE concerns_cluster = 1 ORDER BY arrival"
        for hash_, encoded in self._database.rows(query):
            entry = read(encoded)
            if entry.hash != hash_:
                raise LogDamaged("log.db is damaged: an entry has another hash", cure=DAMAGED_CURE)
            yield entry

    def check(self) -> None:
        """Read all there is; LogDamaged when something is not what was written."""
        for (said,) in self._database.rows("PRAGMA quick_check(1)"):
            if said != "ok":
                raise LogDamaged(f"log.db is damaged: {said}", cure=DAMAGED_CURE)
        for branch in self.branches.by_id.values():
            seq = branch.fork_seq
            prev = self.branches.hash_on(branch, seq) if seq else NO_HASH
            while seq < branch.seq:
                rows = self.of_branch(branch.id, seq, ROWS_AT_ONCE)
                for row in rows:
                    entry = read(row.encoded)
                    if (entry.node, entry.incarnation, entry.prev) != (branch.node, branch.incarnation, prev):
                        raise LogDamaged(f"log.db is damaged: entry {seq + 1} of a log", cure=DAMAGED_CURE)
                    seq, prev = entry.seq, entry.hash
                if not rows:
                    raise LogDamaged(f"log.db is damaged: entry {seq + 1} of a log", cure=DAMAGED_CURE)

    def part_for(self, known: Known, limit_bytes: int) -> list[bytes]:
        """Return entries that are not among the `known`, in order of arrival, and make them known.

        One at least, if any is left; then no more than `limit_bytes` together.
        """

        def rows_of(branch: Branch, seq: int) -> Iterator[tuple[int, int, int, bytes]]:
            while seq < branch.seq and (rows := self.of_branch(branch.id, seq, ROWS_AT_ONCE)):
                for row in rows:
                    yield row.arrival, row.seq, branch.id, row.encoded
                seq = rows[-1].seq

        part: list[bytes] = []
        total = 0
        for _, seq, branch, encoded in heapq.merge(*[rows_of(*lack) for lack in self.branches.lacking(known)]):
            total += len(encoded)
            if part and total > limit_bytes:
                break
            part.append(encoded)
            known[branch] = seq
        return part
