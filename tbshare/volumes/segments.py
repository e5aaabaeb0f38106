"""Packs old entries: nothing is thrown away, a newcomer still gets and checks every one."""

from collections.abc import Sequence
from typing import Final

from tbshare.volumes.branches import Branch, Known
from tbshare.volumes.database import Database
from tbshare.volumes.entry import decode_entry
from tbshare.volumes.log_rows import Row, Segment, Stored, pack
from tbshare.volumes.membership import concerns_cluster

SEGMENT_ENTRIES: Final = 4096
SEGMENT_ENTRIES_MIN: Final = 256  # fewer are not worth it yet
SEGMENT_BYTES: Final = 4 << 20


def compact(database: Database, stored: Stored, common: Sequence[Known], newest_kept: int) -> int:
    """Pack the entries that are in all of `common`, but the newest of each branch; return how many.

    Each segment is one transaction, in which its rows go: a crash leaves either.
    """
    return sum([_compact_branch(database, stored, branch, common, newest_kept) for branch in _all(stored)])


def _all(stored: Stored) -> list[Branch]:
    return list(stored.branches.by_id.values())


def _compact_branch(
    database: Database, stored: Stored, branch: Branch, common: Sequence[Known], newest_kept: int
) -> int:
    last = min([known.get(branch.id, 0) for known in common], default=branch.seq)
    last = min(last, branch.seq - max(newest_kept, 1))
    packed, seq = 0, branch.fork_seq
    while rows := stored.loose(branch.id, seq, last, SEGMENT_ENTRIES):
        seq = rows[-1].seq
        chosen = _chosen(rows)
        if len(chosen) < min(SEGMENT_ENTRIES_MIN, newest_kept):
            break
        seq = chosen[-1].seq
        _seal(database, branch, chosen)
        stored.refresh()
        packed += len(chosen)
    return packed


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that go into the next segment: no more bytes than it takes."""
    chosen: list[Row] = []
    size = 0
    for row in rows:
        size += len(row.encoded)
        if chosen and size > SEGMENT_BYTES:
            break
        chosen.append(row)
    return chosen


def _seal(database: Database, branch: Branch, rows: Sequence[Row]) -> None:
    assert not any(concerns_cluster(decode_entry(row.encoded)) for row in rows[:1])
    segment = Segment([row.arrival for row in rows], [row.seq for row in rows], [row.encoded for row in rows])
    values = (
        branch.id, rows[0].seq, rows[-1].seq, rows[0].arrival, rows[-1].arrival, len(rows), pack(segment),
    )  # fmt: skip
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO segments (branch, first_seq, last_seq, first_arrival, last_arrival, entries, data)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        connection.executemany("DELETE FROM entries WHERE arrival = ?", [(row.arrival,) for row in rows])
