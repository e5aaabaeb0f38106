"""Which entries count for a volume, and tables folded from a part of the log: a snapshot, a moment, all of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tbshare.volumes.entry import FILE_OPS, Entry, FileOp
from tbshare.volumes.fold import State
from tbshare.volumes.log import Log
from tbshare.volumes.tables import Tables

CATCH_UP_ENTRIES: Final = 4096  # in one fold

Ops = list[tuple[int, FileOp]]


def ops_for(volume: int, entry: Entry) -> Ops:
    """Return the ops of an entry that are about this volume's files, each with its number in the entry."""
    return [(index, op) for index, op in enumerate(entry.ops) if isinstance(op, FILE_OPS) and op.volume == volume]


def counted(state: State, volume: int, entry: Entry) -> bool:
    """Say whether what the entry does to the volume is valid."""
    return state.is_valid(volume, entry)


def tables_of(
    log: Log, state: State, volume: int, wanted: Callable[[Entry], bool], path: Path | None = None
) -> Tables:
    """Return tables, in memory or at `path`, of what the wanted entries of the log say about a volume."""
    tables = Tables.open(path or ":memory:")
    arrival = 0
    while entries := log.entries_after(arrival, CATCH_UP_ENTRIES):
        batch: Sequence[tuple[Entry, Ops]] = [
            (entry, ops)
            for _, entry in entries
            if (ops := ops_for(volume, entry)) and wanted(entry) and counted(state, volume, entry)
        ]
        arrival = entries[-1][0]
        tables.fold(batch, arrival)
    return tables
