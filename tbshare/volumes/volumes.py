"""All volumes of a node: their tables, kept up with the log.

A commit of the log, own or received, is folded in the thread that commits, under the log's lock: what a caller
saved it reads when the call returns. The tables are a cache. They note how far they came, and by what rules they
judged; when the log has another entry at that place, or the rules have changed since, they are made anew from it.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from tbshare.errors import DiskFull, StoreUnusable, UsageError
from tbshare.volumes.asof import CATCH_UP_ENTRIES, Ops, counted, ops_for
from tbshare.volumes.entry import Entry, Move, Remove
from tbshare.volumes.expiry import tick
from tbshare.volumes.ids import ROOT, Ids
from tbshare.volumes.item import TreeAccess
from tbshare.volumes.log import Log
from tbshare.volumes.opened import Opened, Shared
from tbshare.volumes.tables import Changes, Tables
from tbshare.volumes.volume import Handle

__all__ = ["Changes", "Subscriber", "Volumes"]

Subscriber = Callable[[int, Changes], None]  # (volume id, what the fold changed); under the log's lock: be quick
Arrived = Sequence[tuple[int, Entry]]

TOUCHED_MAX: Final = 1000
PUT_BACK: Final = "log.db is older than what was made of it, as if it had been put back"
IDLE_ENTRIES: Final = 1024  # of others, after which a volume's position is written down


class _Judged(msgspec.Struct, frozen=True, array_like=True):
    """By what the entries folded so far were judged: `State.rules` of these authors, each up to its stamp."""

    authors: tuple[tuple[bytes, bytes], ...] = ()  # in order, each with the highest stamp it gave
    rules: bytes = b""
    last: bytes = b""  # hash of the entry at `position`


class _Kept:
    """A volume with how far its tables are: what `Opened` is to those who read and write."""

    def __init__(self, opened: Opened, tables: Tables, *, making: bool = False) -> None:
        self.opened = opened
        self.tables = tables
        self.making = making  # nobody reads these yet
        self.position = tables.position
        noted = tables.fact("judged")
        self.judged = msgspec.msgpack.decode(noted, type=_Judged) if noted else _Judged()


class Volumes:
    """The volumes of one node. `folder` None keeps the tables in memory; `clock` is monotonic, in seconds."""

    def __init__(
        self,
        log: Log,
        folder: Path | None,
        *,
        node: bytes,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
        trees: TreeAccess,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._log = log
        self.changes: list[Subscriber] = []
        self._shared = Shared(
            log, node, Ids(node, random, log.take_run), trees, time_ns, clock, folder, self.catch_up, log.state()
        )  # fmt: skip
        self._retired: list[Tables] = []
        self._kept: dict[int, _Kept] = {}  # replaced, never changed: readers take no lock
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("*@*"):  # of snapshots; made when they are asked for
                left.unlink()
        self._refresh()
        log.on_commit.append(self._arrived)
        self.catch_up()

    def close(self) -> None:
        """Fold no more, and close the tables."""
        if self._arrived in self._log.on_commit:
            self._log.on_commit.remove(self._arrived)
        kept, self._kept = self._kept, {}
        for one in kept.values():
            with suppress(DiskFull, StoreUnusable):  # the tables are a cache, and what failed was said before
                if one.position != one.tables.position:
                    one.tables.fold([], one.position, facts={"judged": msgspec.msgpack.encode(one.judged)})
                tick(one.opened)
            for tables in (one.tables, *[snapshot.tables for snapshot in one.opened.snapshots.values()]):
                tables.close()
        for tables in self._retired:
            tables.close()

    # ---- what there is --------------------------------------------------------------------------------

    def open(self, name: str) -> Handle:
        """Return the volume of this name; UsageError, with the nearest names, when there is none."""
        return self.open_id(self._shared.state.volume_named(name).id)

    def open_id(self, volume: int) -> Handle:
        """Return the volume of this id, removed or not; UsageError when it has no files."""
        return Handle(self._opened(volume))

    def handles(self) -> list[Handle]:
        """Return the volumes that have files, without those removed."""
        return [Handle(kept.opened) for kept in self._kept.values() if not kept.opened.volume.removed]

    def tables(self, volume: int) -> Tables:
        """Return the tables of a volume, for replication and retention; ask each time, they may be made anew."""
        return self._opened(volume).tables

    def removed_seconds(self, volume: int) -> float:
        """Return for how long a volume is removed, on its own clock, since this was asked first."""
        opened = self._opened(volume)
        tick(opened)
        removal, tables = opened.volume.removed_time_ns, opened.tables
        noted = tables.fact("removed")
        known, since = msgspec.msgpack.decode(noted, type=tuple[int, float]) if noted else (0, 0.0)
        if known != removal:
            since = tables.clock
            tables.note("removed", msgspec.msgpack.encode((removal, since)))
        return tables.clock - since

    def _opened(self, volume: int) -> Opened:
        kept = self._kept.get(volume)
        if kept is None:
            known = self._shared.state.volume_by_id(volume)
            what = f"{known.name} holds refs, no files" if known else f"there is no volume {volume:016x}"
            raise UsageError(what, cure="tbshare volume ls")
        return kept.opened

    # ---- keeping up -----------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Fold what the log has and the tables have not: at the start, and after a full disk."""
        with self._log.standing_still():
            while behind := [kept for kept in self._kept.values() if kept.position < self._log.last_arrival]:
                arrival = min(kept.position for kept in behind)
                entries = self._log.entries_after(arrival, CATCH_UP_ENTRIES)
                if not entries:
                    return
                for kept in behind:
                    self._take(kept, entries, flush=True)
                if any(kept.opened.damage for kept in behind):
                    return

    def _arrived(self, arrived: Arrived) -> None:
        """Fold what was committed just now."""
        state = self._log.state()
        if state is not self._shared.state:
            self._shared.state = state
            self._refresh()
        for kept in self._kept.values():
            if kept.position + 1 == arrived[0][0]:
                self._take(kept, arrived)
        self.catch_up()

    def require_all(self) -> None:
        """Raise StoreUnusable when something that was saved may be known neither to the log nor to the tables.

        Whoever gives up bytes that nothing names, or says what is only here, asks this first.
        """
        if self._log.damaged:
            raise StoreUnusable(
                f"{self._log.damaged}; until it is mended nobody knows what is only here",
                cure="tbshare verify --repair",
            )
        self.catch_up()
        for kept in list(self._kept.values()):
            if kept.opened.damage:
                raise StoreUnusable(
                    f"{kept.opened.volume.name}: {kept.opened.damage}; until then nobody knows what is only here",
                    cure="tbshare du",
                )

    def tick(self) -> None:
        """Let the clocks by which versions grow old go on, and keep how far they are."""
        for kept in list(self._kept.values()):
            with suppress(DiskFull, StoreUnusable):  # it goes on the next time
                tick(kept.opened)

    def check(self) -> list[str]:
        """Read all tables, make those anew that are damaged, and return the names of their volumes."""
        damaged = [kept for kept in self._kept.values() if not kept.tables.intact()]
        with self._log.standing_still():
            for kept in damaged:
                self._make_anew(kept, damaged=True)
        return [kept.opened.volume.name for kept in damaged]

    def _refresh(self) -> None:
        """Open the tables of volumes that are new, and make those anew whose entries count differently now."""
        state = self._shared.state
        kept = dict(self._kept)
        for number, volume in state.volumes_by_id.items():
            if volume.mode != "models" and number not in kept:
                kept[number] = self._kept_by(number)
        self._kept = kept
        for one in kept.values():
            judged, number = one.judged, one.opened.id
            judges_anew = judged.authors and state.rules(number, dict(judged.authors)) != judged.rules
            is_other_log = one.position and self._log.hash_at(one.position) != judged.last
            if is_other_log and not self._log.damaged:
                self._log.note_lost(PUT_BACK)
            if judges_anew or is_other_log:
                self._make_anew(one)

    def _kept_by(self, volume: int) -> _Kept:
        """Open the newest tables of a volume; where they are damaged, begin anew."""
        *older, newest = self._files(volume) or [self._file(volume, 0)]
        for file in older:
            _remove(file)
        try:
            tables = self._tables(newest)
        except StoreUnusable:
            _remove(newest)
            tables = self._tables(newest)
        return _Kept(Opened(self._shared, volume, tables, ticked=self._shared.clock()), tables)

    def _file(self, volume: int, making: int) -> Path:
        folder = self._shared.folder or Path()
        return folder / (f"{volume:016x}.db" if not making else f"{volume:016x}-{making}.db")

    def _files(self, volume: int) -> list[Path]:
        """Return the tables of a volume on the disk, the newest last."""
        if self._shared.folder is None:
            return []
        files = [file for file in self._shared.folder.glob(f"{volume:016x}*.db") if "@" not in file.name]
        return sorted(files, key=_making_of)

    def _tables(self, file: Path) -> Tables:
        return Tables.open(":memory:" if self._shared.folder is None else file)

    def _make_anew(self, kept: _Kept, *, damaged: bool = False) -> None:
        """Fold the log into new tables, aside from those read meanwhile, and let them take their place."""
        file = self._file(kept.opened.id, _making_of(kept.tables.path) + 1)
        fresh = _Kept(kept.opened, self._tables(file), making=True)
        while entries := self._log.entries_after(fresh.position, CATCH_UP_ENTRIES):
            before = fresh.position
            self._take(fresh, entries, flush=True)
            if fresh.position == before:
                fresh.tables.close()
                _remove(file)
                return
        with suppress(DiskFull, StoreUnusable):  # else all is wanted, and looked for, again
            if not damaged:
                fresh.tables.take_over(kept.tables)
        old, kept.tables = kept.tables, fresh.tables
        kept.position, kept.judged = fresh.position, fresh.judged
        kept.opened.tables = fresh.tables
        kept.opened.folded(None)
        kept.opened.makings += 1
        self._retired.append(old)  # somebody may be reading it; the file goes when they are done
        if self._shared.folder is not None:
            _remove(old.path)
        self._tell(kept, Changes(directories={ROOT}, anew=True))

    def _take(self, kept: _Kept, arrived: Arrived, *, flush: bool = False) -> None:
        """Fold those of these entries that come next for a volume."""
        news = [(arrival, entry) for arrival, entry in arrived if arrival > kept.position]
        if not news:
            return
        batch: list[tuple[Entry, Ops]] = []
        authors = dict(kept.judged.authors)
        for _, entry in news:
            ops = ops_for(kept.opened.id, entry)
            if not ops:
                continue
            authors[entry.node] = max(authors.get(entry.node, b""), entry.stamp())
            if counted(self._shared.state, kept.opened.id, entry):
                batch.append((entry, ops))
        position, last = news[-1][0], news[-1][1].hash
        rules, ordered = kept.judged.rules, tuple(sorted(authors.items()))
        if ordered != kept.judged.authors:
            rules = self._shared.state.rules(kept.opened.id, authors)
        judged = _Judged(ordered, rules, last)
        if batch or flush or position - kept.tables.position >= IDLE_ENTRIES:
            self._write(kept, batch, position, judged)
        else:
            kept.position, kept.judged = position, judged

    def _write(self, kept: _Kept, batch: list[tuple[Entry, Ops]], position: int, judged: _Judged) -> None:
        """Fold a batch into the tables; what fails is said by `why_read_only`, and tried again later."""
        try:
            changes = kept.tables.fold(batch, position, facts={"judged": msgspec.msgpack.encode(judged)})
        except (DiskFull, StoreUnusable) as error:
            kept.opened.damage = str(error)
            if isinstance(error, StoreUnusable) and not kept.making:
                self._make_anew(kept, damaged=True)
            return
        kept.position, kept.judged = position, judged
        kept.opened.damage = ""
        if not kept.making:
            kept.opened.folded(_touched(batch, changes))
            self._tell(kept, changes)

    def _tell(self, kept: _Kept, changes: Changes) -> None:
        if changes:
            for subscriber in self.changes:
                subscriber(kept.opened.id, changes)


def _touched(batch: Sequence[tuple[Entry, Ops]], changes: Changes) -> frozenset[int] | None:
    """Return the files and directories that a fold touched; None when paths of others may lead elsewhere now."""
    if len(changes.files) > TOUCHED_MAX or any(
        isinstance(op, Move) or (isinstance(op, Remove) and op.directory) for _, ops in batch for _, op in ops
    ):
        return None
    return frozenset(changes.files | changes.directories)


def _making_of(file: Path) -> int:
    """Return how often tables with this name were made anew."""
    return int(file.stem.partition("-")[2] or 0)


def _remove(file: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        file.with_name(file.name + ending).unlink(missing_ok=True)
