"""log.db while it is open: what is committed to it, in memory as far as that is needed, and read back by arrival.

Invariant, kept by the lock: what is in memory is what is committed. An entry is in the database before anyone is
told of it, its `prev` before it, and the MemberAdd of its author before it (but for our own entries, which may be
older than our membership).

In memory are the ends of the branches and the entries that concern the cluster; those with files alone, nearly
all, are read from the disk when they are asked for.
"""

import logging
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, Self, cast

from tbshare.content.block import HASH_BYTES
from tbshare.errors import LogDamaged, NotPermitted, StoreUnusable, TbshareError, UsageError
from tbshare.volumes import salvage
from tbshare.volumes.acknowledged import Acknowledgements
from tbshare.volumes.batch import Batch, Queue, groups_of
from tbshare.volumes.branches import Branch, Known
from tbshare.volumes.database import Database, suspicion_of
from tbshare.volumes.entry import (
    HEARD_MAX,
    AnyOp,
    At,
    Entry,
    FileOp,
    Heard,
    KnownOp,
    Signer,
    make_entry,
    node_of_certificate,
)
from tbshare.volumes.fold import State, fold, in_order
from tbshare.volumes.holds import Leases, Pins
from tbshare.volumes.log_rows import Stored, read
from tbshare.volumes.members_file import MembersFile
from tbshare.volumes.membership import (
    Membership,
    concerns_cluster,
    has_statement,
    membership,
)
from tbshare.volumes.upgrade import upgrade
from tbshare.wire.message import Head

_log = logging.getLogger("tbshare.volumes.log")
ATTENTION_MAX: Final = 100
PLACES_KNOWN: Final = 4096
RUN_BYTES: Final = 3  # of ids.RUN_BITS

Listener = Callable[[Sequence[tuple[int, Entry]]], None]


class Owner(Signer, Protocol):
    """The identity a log is written with (peers.identity.Identity is one)."""

    @property
    def certificate(self) -> bytes:
        """The node's certificate, DER."""
        ...


class LogFile:
    """log.db of one node; safe to call from several threads. Every method may touch the disk."""

    def __init__(
        self,
        database: Database,
        owner: Owner,
        clock_ns: Callable[[], int],
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        members: MembersFile | None = None,
    ) -> None:
        """Use `open`."""
        self._database = database
        self._owner = owner
        self._clock_ns = clock_ns
        self._random_bytes = random_bytes
        self._lock = database.lock
        self._queue = Queue(self._commit_batches)
        self._places: dict[At, Known] = {}
        self._state: State | None = None
        self._unfolded: list[Entry] = []  # came after `_state` was folded
        self._answered: tuple[State, bytes] | None = None  # what of it is said in the log of this incarnation
        self.on_commit: list[
            Listener
        ] = []  # called under the lock, by the thread that commits, with (arrival, entry)
        self.committing = frozenset[int]()  # then: the threads whose ops these are; none of what came from a peer
        self.pins = Pins(database, clock_ns)
        self.leases = Leases(database)
        upgrade(database)
        self._stored = Stored(database)
        self._branches = self._stored.branches
        self._concerning = {entry.hash: entry for entry in self._stored.concerning_cluster()}
        self._acknowledgements = Acknowledgements(database)
        self._cluster = self._meta("cluster")
        self.damaged = self._meta("damaged").decode()
        self.lost = self._meta("lost").decode()  # why some of it may be gone for good
        self._incarnation = self._meta("incarnation")
        if not self._incarnation:
            self._incarnation = random_bytes(HASH_BYTES)
            self._set_meta("incarnation", self._incarnation)
        self._who = self._membership()
        self._members = members or MembersFile()
        self._note_members()

    @classmethod
    def open(
        cls,
        path: Path,
        owner: Owner,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> Self:
        """Open or create log.db; StoreUnusable when it is of a newer level.

        From a damaged file what can be read is taken into a new one, and `damaged` says so.
        """
        salvage.finish(path)
        members = MembersFile.beside(path)
        try:
            return cls._opened(path, owner, clock_ns, random_bytes, members)
        except LogDamaged as error:
            _log.error("%s", error)
        said = salvage.salvage(path, owner.node, cluster=members.cluster, clock_ns=clock_ns)
        _log.error("%s", said)
        suspicion_of(path).unlink(missing_ok=True)
        return cls._opened(path, owner, clock_ns, random_bytes, members)

    @classmethod
    def _opened(
        cls,
        path: Path,
        owner: Owner,
        clock_ns: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        members: MembersFile,
    ) -> Self:
        database = Database(path)
        try:
            log = cls(database, owner, clock_ns, random_bytes=random_bytes, members=members)
            if suspicion_of(path).exists():
                log.check()
                suspicion_of(path).unlink()
            return log
        except BaseException:
            database.close()
            raise

    def check(self) -> None:
        """Read every entry; LogDamaged when one is not what was written, or is missing."""
        with self._lock:
            try:
                self._stored.check()
            except LogDamaged:
                self._database.suspect()
                raise

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._acknowledgements.save()
            self._database.close()

    def _meta(self, key: str) -> bytes:
        rows = self._database.rows("SELECT value FROM meta WHERE key = ?", key)
        return bytes(cast("bytes", rows[0][0])) if rows else b""

    def _set_meta(self, key: str, value: bytes) -> None:
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _membership(self, also: Sequence[Entry] = ()) -> Membership:
        concerning = [*self._concerning.values(), *[entry for entry in also if concerns_cluster(entry)]]
        return membership(in_order(concerning), self._cluster, self._before)

    def trusted(self) -> dict[bytes, bytes]:
        """Return node id -> certificate of every other node we talk to: members, and who let us in.

        While the log is damaged these are the members there were before, as far as none of them was removed.
        """
        with self._lock:
            certificates = {node: member.certificate for node, member in self._who.members.items()}
            sponsor = self._meta("sponsor")
            if sponsor and not certificates:  # nothing of the cluster's log has arrived yet
                certificates[node_of_certificate(sponsor)] = sponsor
            if self.damaged and self._members.cluster == self._cluster:
                known = self._members.certificates.items()
                certificates |= {node: text for node, text in known if node not in self._who.removed}
            certificates.pop(self._owner.node, None)
            return certificates

    def _note_members(self) -> None:
        """Keep beside the log whom we talk to; what a damaged log says of that is not all."""
        if self._cluster and not self.damaged:
            self._members.write(self._cluster, self.trusted())

    def _before(self, entry: Entry, place: At) -> bool | None:
        """Say whether an entry is at or before a place; None when that is not known here."""
        with self._lock:
            if place not in self._places:
                if self._branches.find(place) is None:
                    return None
                if len(self._places) >= PLACES_KNOWN:
                    self._places.clear()
                self._places[place] = self._branches.known([place])
            return self._branches.covered(self._places[place], entry)

    def take_run(self, bits: int) -> bool:
        """Note for good that ids with these random bits are given; False when they were before."""
        with self._lock:
            taken = self._meta("id_runs")
            run = bits.to_bytes(RUN_BYTES, "big")
            if run in {taken[place : place + RUN_BYTES] for place in range(0, len(taken), RUN_BYTES)}:
                return False
            self._set_meta("id_runs", taken + run)
            return True

    @contextmanager
    def standing_still(self) -> Generator[None, None, None]:
        """Let nothing be committed meanwhile."""
        with self._lock:
            yield

    # ---- writing --------------------------------------------------------------------------------------

    def append(self, ops: Sequence[KnownOp]) -> Entry:
        """Sign and commit a batch of ops; durable on return.

        Callers that wait at the same time share one commit, and as far as they fit, one entry. FormatInvalid or
        InputRefused for ops that no node would accept; NotPermitted when this node was removed.
        """
        batch = Batch(ops)
        self._queue.put(batch)
        return _result(batch)

    def _append_now(self, ops: Sequence[KnownOp]) -> Entry:
        """Append while we hold the lock: whoever leads the others would wait for it."""
        batch = Batch(ops)
        self._commit_batches([batch])
        return _result(batch)

    def _commit_batches(self, batches: Sequence[Batch]) -> None:
        try:
            with self._lock:
                before, self.committing = self.committing, frozenset([batch.thread for batch in batches])
                try:
                    self._commit_own(batches)
                finally:
                    self.committing = before
        except BaseException as error:  # noqa: BLE001  handed to every caller that waits, each raises it
            for batch in batches:
                batch.entry, batch.error = None, error

    def _commit_own(self, batches: Sequence[Batch]) -> None:
        """Commit ops of ours, after what our log has to say before anything else."""
        with self._lock:
            batches = [*[Batch([op]) for op in self._unheard()], *batches]
            if not batches:
                return
            self._refuse_if_removed()
            if self.damaged:
                self._refuse_files(batches)
            entries: list[Entry] = []
            previous, lamport = self._own_head(), self._branches.lamport
            for group in groups_of(batches):
                lamport += 1
                ops = [op for batch in group for op in batch.ops]
                raw_ops = [raw for batch in group for raw in batch.raw_ops]
                entry = self._entry(ops, previous, lamport, raw_ops)
                entries.append(entry)
                previous = At(entry.node, entry.incarnation, entry.seq, entry.hash)
                for batch in group:
                    batch.entry = entry
            self._commit(entries, {})

    def _unheard(self) -> list[Heard]:
        """Return what our log does not say yet that we have heard of: what takes a right from us.

        By that, what we write from here on is judged (heard.py).
        """
        state = self.state()
        if self._answered is not None and self._answered[0] is state and self._answered[1] == self._incarnation:
            return []
        entries = state.unheard(self._owner.node, self._own_head())
        if not entries:
            self._answered = state, self._incarnation
        parts = range(0, len(entries), HEARD_MAX)
        return [Heard(entries=tuple(entries[start : start + HEARD_MAX])) for start in parts]

    def _refuse_files(self, batches: Sequence[Batch]) -> None:
        if any(isinstance(op, FileOp) for batch in batches for op in batch.ops):
            raise StoreUnusable(
                f"{self.damaged}; volumes are read-only until then", cure="tbshare verify --repair"
            )

    def _refuse_if_removed(self) -> None:
        if not self._cluster:
            raise UsageError("this node is in no cluster yet", cure="tbshare up")
        if self._owner.node in self._who.removed:
            raise NotPermitted(
                "this node was removed from its cluster", cure="use a new home directory, then tbshare pair"
            )

    def _own_head(self) -> At | None:
        branches = self._branches.of_log(self._owner.node, self._incarnation)
        assert len(branches) <= 1, "a branch of our log that we did not write starts a new incarnation"
        return at_of(branches[0].head()) if branches else None

    def _entry(
        self, ops: Sequence[AnyOp], previous: At | None, lamport: int, raw_ops: Sequence[bytes] = ()
    ) -> Entry:
        return make_entry(
            self._owner,
            incarnation=self._incarnation,
            previous=previous,
            lamport=lamport,
            time_ns=self._clock_ns(),
            ops=ops,
            raw_ops=raw_ops,
        )

    def _commit(self, entries: Sequence[Entry], meta: dict[str, bytes], attention: Sequence[str] = ()) -> None:
        """Make entries, settings and lines for the user durable together, then known."""
        with self._database.transaction() as connection:
            placed = self._stored.insert(connection, entries)
            self._acknowledgements.write(connection)
            for pair in meta.items():
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", pair)
            for line in (*attention, *self._forked(placed)):
                connection.execute(
                    "INSERT OR IGNORE INTO attention (time_ns, line) VALUES (?, ?)", (self._clock_ns(), line)
                )
                connection.execute(
                    "DELETE FROM attention WHERE id NOT IN (SELECT id FROM attention ORDER BY id DESC LIMIT ?)",
                    (ATTENTION_MAX,),
                )
        self._stored.arrived(placed)
        self._acknowledgements.saved()
        self._incarnation = meta.get("incarnation", self._incarnation)
        changed_cluster = meta.get("cluster", self._cluster) != self._cluster
        self._cluster = meta.get("cluster", self._cluster)
        concerning = [entry for entry in entries if concerns_cluster(entry)]
        self._concerning.update({entry.hash: entry for entry in concerning})
        awaited = self._who.awaited and any(entry.hash in self._who.awaited for entry in entries)
        if changed_cluster or awaited or any(has_statement(entry) for entry in concerning):
            self._who = self._membership()
            self._note_members()
        self._unfolded += concerning
        if changed_cluster or awaited:
            self._state = None
        if placed:
            self._tell([(arrival, entry) for _, entry, arrival in placed])

    def _tell(self, arrived: Sequence[tuple[int, Entry]]) -> None:
        for call in self.on_commit:
            try:
                call(arrived)
            except TbshareError:  # it is committed all the same; who follows the log reads it again
                _log.exception("what was committed could not be taken up")

    def _forked(self, placed: Sequence[tuple[Branch, Entry, int]]) -> list[str]:
        """Return a line for each log of another node of which these entries are a further branch."""
        lines: dict[str, None] = {}
        for branch, entry, _ in placed:
            known = branch.id in self._branches.by_id or entry.node == self._owner.node
            if not known and self._branches.of_log(entry.node, entry.incarnation):
                member = self._who.members.get(entry.node) or self._who.removed.get(entry.node)
                name = member.name if member else entry.node[:4].hex()
                lines[f"node {name}'s log forked: it was restored or cloned; nothing was lost"] = None
        return list(lines)

    # ---- by arrival -----------------------------------------------------------------------------------

    @property
    def last_arrival(self) -> int:
        """The number of the entry that came last; 0 before the first."""
        return self._stored.last_arrival

    @property
    def lamport(self) -> int:
        """The highest Lamport time here."""
        return self._branches.lamport

    def entries_after(self, arrival: int, limit: int) -> list[tuple[int, Entry]]:
        """Return up to `limit` entries that came after this one, oldest first, with their arrival."""
        with self._lock:
            rows = self._stored.after(arrival, limit)
        try:
            return [(row.arrival, read(row.encoded)) for row in rows]
        except LogDamaged:
            self._database.suspect()
            raise

    def hash_at(self, arrival: int) -> bytes:
        """Return the hash of the entry with this arrival, b"" when there is none."""
        with self._lock:
            rows = self._stored.after(arrival - 1, 1)
        return read(rows[0].encoded).hash if rows and rows[0].arrival == arrival else b""

    def vector(self) -> list[Head]:
        """Return the heads of every branch of every log we hold: for `Acknowledged`, and to compare."""
        with self._lock:
            return self._branches.heads()

    def at(self) -> tuple[At, ...]:
        """Return the heads of every branch of every log: what a snapshot names."""
        return tuple([at_of(head) for head in self.vector()])

    def covers(self, heads: Sequence[At]) -> Callable[[Entry], bool]:
        """Return what says of an entry of ours whether it is at or before one of these places."""
        with self._lock:
            known = self._branches.known(heads)

        def covered(entry: Entry) -> bool:
            with self._lock:
                return self._branches.covered(known, entry)

        return covered

    def state(self) -> State:
        """Return the fold of all entries; cached until the next one arrives."""
        with self._lock:
            if self._state is None:
                self._state = fold(self._concerning.values(), self._cluster, self._before)
            elif self._unfolded:
                self._state = self._state.extended(self._unfolded)
            self._unfolded = []
            return self._state

    def attention(self) -> list[str]:
        """Return the lines for the user about what went wrong with a log; oldest first."""
        return [str(line) for (line,) in self._database.rows("SELECT line FROM attention ORDER BY id")]


def _result(batch: Batch) -> Entry:
    if batch.error is not None:
        raise batch.error
    assert batch.entry is not None
    return batch.entry


def at_of(head: Head) -> At:
    """Return the place of a head."""
    return At(head.node, head.incarnation, head.seq, head.hash)
