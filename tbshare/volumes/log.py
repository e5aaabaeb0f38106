"""The durable log of one node: every entry it knows, in log.db, and the state they fold to.

Invariant, kept by the lock: what is in memory is what is committed. An entry is in the database before anyone is
told of it, its `prev` before it, and the MemberAdd of its author before it (but for our own entries, which may be
older than our membership).
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final, Protocol, cast

from tbshare.content.block import HASH_BYTES
from tbshare.errors import FormatInvalid, NotPermitted, RefUnknown, StoreUnusable, UsageError
from tbshare.volumes.batch import Batch, groups_of
from tbshare.volumes.chains import Chains
from tbshare.volumes.database import Database
from tbshare.volumes.entry import (
    NO_HASH,
    SEEN_MAX,
    UNTIL_MAX,
    AnyOp,
    Entry,
    Genesis,
    KnownOp,
    MemberAdd,
    MemberRemove,
    MemberRename,
    RefRemove,
    Role,
    Signer,
    Until,
    decode_entry,
    make_entry,
    node_of_certificate,
    verify_entry,
)
from tbshare.volumes.fold import State, fold, in_order
from tbshare.volumes.holds import Leases, Pins
from tbshare.volumes.membership import Membership, has_statement, membership
from tbshare.wire.message import Head

LAMPORT_JUMP_MAX: Final = 1 << 48  # one entry may not use up the numbers of all others
LAMPORT_MAX: Final = (1 << 63) - 1
RECEIVE_MAX: Final = 65536  # entries in one call
ATTENTION_MAX: Final = 100


class Owner(Signer, Protocol):
    """The identity a log is written with (peers.identity.Identity is one)."""

    @property
    def certificate(self) -> bytes:
        """The node's certificate, DER."""
        ...


@dataclass(frozen=True)
class Received:
    """What became of entries from a peer: `accepted` are durable, `rejected` are reasons, one an entry."""

    accepted: tuple[Entry, ...]
    rejected: tuple[str, ...]


class Log:
    """log.db of one node; safe to call from several threads. Every method may touch the disk."""

    def __init__(self, database: Database, owner: Owner, clock_ns: Callable[[], int]) -> None:
        """Use `Log.open`."""
        self._database = database
        self._owner = owner
        self._clock_ns = clock_ns
        self._lock = database.lock
        self._chains = Chains()
        self._waiting: list[Batch] = []
        self._waiting_lock = Lock()
        self._state: State | None = None
        self._unfolded: list[Entry] = []  # came after `_state` was folded
        self.pins = Pins(database, clock_ns)
        self.leases = Leases(database)
        self._load()

    @classmethod
    def open(cls, path: Path, owner: Owner, *, clock_ns: Callable[[], int] = time.time_ns) -> "Log":
        """Open or create log.db; StoreUnusable when it is damaged or of a newer level."""
        database = Database(path)
        try:
            return cls(database, owner, clock_ns)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _load(self) -> None:
        for (encoded,) in self._database.rows("SELECT encoded FROM entries ORDER BY arrival"):
            try:
                entry = decode_entry(cast("bytes", encoded))
            except (FormatInvalid, TypeError) as error:
                raise StoreUnusable(f"log.db is damaged: {error}", cure="tbshare verify --repair") from error
            if entry.prev != NO_HASH and entry.prev not in self._chains.entries:
                raise StoreUnusable("log.db is damaged: an entry is missing", cure="tbshare verify --repair")
            self._chains.add(entry)
        self._cluster = self._meta("cluster")
        self._incarnation = self._meta("incarnation")
        if not self._incarnation:
            self._incarnation = secrets.token_bytes(HASH_BYTES)
            self._set_meta("incarnation", self._incarnation)
        self._who = self._membership()

    def _meta(self, key: str) -> bytes:
        rows = self._database.rows("SELECT value FROM meta WHERE key = ?", key)
        return bytes(cast("bytes", rows[0][0])) if rows else b""

    def _set_meta(self, key: str, value: bytes) -> None:
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _membership(self, also: Sequence[Entry] = ()) -> Membership:
        return membership(in_order([*self._chains.entries.values(), *also]), self._cluster)

    # ---- the cluster ----------------------------------------------------------------------------------

    @property
    def cluster(self) -> bytes:
        """The id of our cluster; empty before `create_cluster` or `join`."""
        return self._cluster

    def create_cluster(self, node_name: str, cluster_name: str = "lab") -> Entry:
        """Start a cluster with this node alone in it; UsageError when the log is in one."""
        with self._lock:
            if self._cluster:
                raise UsageError("this node is in a cluster already", cure="tbshare node ls")
            ops = (
                Genesis(name=cluster_name, nonce=secrets.token_bytes(HASH_BYTES)),
                MemberAdd(
                    node=self._owner.node, certificate=self._owner.certificate, name=node_name, role="admin"
                ),
            )
            entry = self._entry(ops, self._own_head(), self._chains.lamport + 1)
            self._commit([entry], {"cluster": entry.hash})
            return entry

    def join(self, cluster: bytes, *, certificate: bytes, name: str) -> None:
        """Make `cluster` ours; `certificate` and `name` are of the member that let us in.

        What this node published before stays published. UsageError when other nodes are in our present cluster.
        """
        sponsor = node_of_certificate(certificate)
        with self._lock:
            if cluster == self._cluster:
                return
            others = [member.name for node, member in self._who.members.items() if node != self._owner.node]
            if others:
                raise UsageError(
                    f"this node is in a cluster with {', '.join(others)}; one cluster a node",
                    cure="tbshare node rm (there), then pair again with a new home",
                )
            if len(cluster) != HASH_BYTES or sponsor == self._owner.node:
                raise UsageError("that is no cluster to join", cure="tbshare pair")
            meta = {"cluster": cluster, "sponsor": certificate, "sponsor_name": name.encode()}
            self._commit([], meta)

    def trusted(self) -> dict[bytes, bytes]:
        """Return node id -> certificate of every other node we talk to: members, and who let us in."""
        with self._lock:
            certificates = {node: member.certificate for node, member in self._who.members.items()}
            sponsor = self._meta("sponsor")
            if sponsor and not certificates:  # nothing of the cluster's log has arrived yet
                certificates[node_of_certificate(sponsor)] = sponsor
            certificates.pop(self._owner.node, None)
            return certificates

    def add_member(self, certificate: bytes, name: str, role: Role = "admin") -> Entry:
        """Append the MemberAdd of the node this certificate belongs to; NotPermitted when it was removed."""
        node = node_of_certificate(certificate)
        with self._lock:
            self._require_admin()
            if node in self._who.removed:
                raise NotPermitted(
                    "that node was removed from this cluster, and removal is for good",
                    cure="give it a new key: a new home directory there, then tbshare pair",
                )
            return self.append(
                [MemberAdd(node=node, certificate=certificate, name=name, role=role, cluster=self._cluster)]
            )

    def remove_member(self, node: bytes) -> Entry:
        """Append a MemberRemove that keeps all we have of the node's entries; UsageError when it is no member."""
        with self._lock:
            if node not in self._who.members:
                raise UsageError(f"node {node[:4].hex()} is not in this cluster", cure="tbshare node ls")
            if node != self._owner.node:
                self._require_admin()
            heads = self._chains.heads_of(node)[:UNTIL_MAX]
            until = tuple([Until(head.incarnation, head.seq, head.hash) for head in heads])
            return self.append([MemberRemove(node=node, cluster=self._cluster, until=until)])

    def rename_member(self, node: bytes, name: str) -> Entry:
        """Append a MemberRename; UsageError when the node is no member."""
        with self._lock:
            if node not in self._who.members:
                raise UsageError(f"node {node[:4].hex()} is not in this cluster", cure="tbshare node ls")
            if node != self._owner.node:
                self._require_admin()
            return self.append([MemberRename(node=node, cluster=self._cluster, name=name)])

    def remove_ref(self, volume: str, name: str, rev: str = "") -> Entry:
        """Append the RefRemove of one version (any rev `State.resolve` takes), or of all; RefUnknown if none."""
        with self._lock:
            state = self.state()
            versions = state.versions(volume, name)
            if rev or not versions:
                text = f"{volume}:{name}" + (f"@{rev}" if rev else "")
                versions = (state.resolve(text),)
            seen = tuple(dict.fromkeys([entry for version in versions for entry in version.entries]))
            if not seen:
                raise RefUnknown(f"no ref {name} in volume {volume}", cure="tbshare ls")
            only = versions[0].rev if rev else ""
            parts = [seen[start : start + SEEN_MAX] for start in range(0, len(seen), SEEN_MAX)]
            return self.append([RefRemove(volume=volume, name=name, seen=part, rev=only) for part in parts])

    def _require_admin(self) -> None:
        member = self._who.members.get(self._owner.node)
        if member is None or member.role != "admin":
            raise NotPermitted(
                "this node is not an admin of the cluster", cure="run it on a node that is: tbshare node ls"
            )

    # ---- writing --------------------------------------------------------------------------------------

    def append(self, ops: Sequence[KnownOp]) -> Entry:
        """Sign and commit a batch of ops; durable on return.

        Callers that wait at the same time share one commit, and as far as they fit, one entry. FormatInvalid or
        InputRefused for ops that no node would accept; NotPermitted when this node was removed.
        """
        batch = Batch(ops)
        with self._waiting_lock:
            self._waiting.append(batch)
        with self._lock:
            if batch.entry is None and batch.error is None:
                self._commit_waiting()
        if batch.error is not None:
            raise batch.error
        assert batch.entry is not None
        return batch.entry

    def _commit_waiting(self) -> None:
        with self._waiting_lock:
            batches, self._waiting = self._waiting, []
        try:
            self._refuse_if_removed()
            entries: list[Entry] = []
            previous, lamport = self._own_head(), self._chains.lamport
            for group in groups_of(batches):
                lamport += 1
                ops = [op for batch in group for op in batch.ops]
                previous = self._entry(ops, previous, lamport)
                entries.append(previous)
                for batch in group:
                    batch.entry = previous
            self._commit(entries, {})
        except BaseException as error:  # noqa: BLE001  handed to every caller that waits, each raises it
            for batch in batches:
                batch.entry, batch.error = None, error

    def _refuse_if_removed(self) -> None:
        if not self._cluster:
            raise UsageError("this node is in no cluster yet", cure="tbshare up")
        if self._owner.node in self._who.removed:
            raise NotPermitted(
                "this node was removed from its cluster", cure="use a new home directory, then tbshare pair"
            )

    def _own_head(self) -> Entry | None:
        branches = self._chains.branches(self._owner.node, self._incarnation)
        assert len(branches) <= 1, "a branch of our log that we did not write starts a new incarnation"
        return branches[0] if branches else None

    def _entry(self, ops: Sequence[AnyOp], previous: Entry | None, lamport: int) -> Entry:
        return make_entry(
            self._owner,
            incarnation=self._incarnation,
            previous=previous,
            lamport=lamport,
            time_ns=self._clock_ns(),
            ops=ops,
        )

    def _commit(self, entries: Sequence[Entry], meta: dict[str, bytes], attention: str = "") -> None:
        """Make entries, settings and a line for the user durable together, then known."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO entries (hash, encoded) VALUES (?, ?)",
                [(entry.hash, entry.encoded) for entry in entries],
            )
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(meta.items()))
            if attention:
                connection.execute(
                    "INSERT OR IGNORE INTO attention (time_ns, line) VALUES (?, ?)",
                    (self._clock_ns(), attention),
                )
                connection.execute(
                    "DELETE FROM attention WHERE id NOT IN (SELECT id FROM attention ORDER BY id DESC LIMIT ?)",
                    (ATTENTION_MAX,),
                )
        for entry in entries:
            self._chains.add(entry)
        self._incarnation = meta.get("incarnation", self._incarnation)
        changed_cluster = meta.get("cluster", self._cluster) != self._cluster
        self._cluster = meta.get("cluster", self._cluster)
        if changed_cluster or any(has_statement(entry) for entry in entries):
            self._who = self._membership()
        self._unfolded += entries
        if changed_cluster:
            self._state = None

    # ---- exchange -------------------------------------------------------------------------------------

    def receive(self, encoded: Sequence[bytes]) -> Received:
        """Check and commit entries from a peer, in any order, duplicates ignored.

        An entry needs a valid signature, its `prev`, and an author who is or was a member; one that lacks the
        latter two is only refused for now: the peer offers it again as long as our vector lacks it.
        """
        rejected = [f"more than {RECEIVE_MAX} entries at once"] * (len(encoded) > RECEIVE_MAX)
        waiting: list[Entry] = []
        for data in dict.fromkeys(encoded[:RECEIVE_MAX]):
            try:
                waiting.append(decode_entry(data))
            except FormatInvalid as error:
                rejected.append(str(error))
        with self._lock:
            waiting = [entry for entry in waiting if entry.hash not in self._chains.entries]
            accepted, refused = self._judge(sorted(waiting, key=Entry.order))
            if accepted:
                self._commit(accepted, *self._strange(accepted))
            return Received(accepted=tuple(accepted), rejected=(*rejected, *refused))

    def _judge(self, waiting: list[Entry]) -> tuple[list[Entry], list[str]]:
        """Return which of these entries may be stored, parents first, and why not the others."""
        accepted: dict[bytes, Entry] = {}
        rejected: list[str] = []
        who, lamport = self._who, self._chains.lamport
        progress = True
        while waiting and progress:
            progress, later = False, list[Entry]()
            for entry in waiting:
                if entry.hash in accepted:
                    continue
                if self._not_yet(entry, accepted, who):
                    later.append(entry)
                    continue
                wrong = self._never(entry, accepted, lamport)
                if wrong:
                    rejected.append(wrong)
                    continue
                accepted[entry.hash] = entry
                lamport = max(lamport, entry.lamport)
                progress = True
                if has_statement(entry):
                    who = self._membership(list(accepted.values()))
            waiting = later
        rejected += [self._not_yet(entry, accepted, who) for entry in waiting]
        return list(accepted.values()), rejected

    def _not_yet(self, entry: Entry, accepted: dict[bytes, Entry], who: Membership) -> str:
        """Return why an entry cannot be stored before another one, or ""."""
        if entry.prev != NO_HASH and entry.prev not in accepted and entry.prev not in self._chains.entries:
            return f"entry {entry.seq} of node {entry.node[:4].hex()} came without the one before it"
        known = entry.node in who.members or entry.node in who.removed
        if known or entry.hash == self._cluster or entry.node == self._owner.node:
            return ""
        return f"an entry of {entry.node[:4].hex()}, which is not a member"

    def _never(self, entry: Entry, accepted: dict[bytes, Entry], lamport: int) -> str:
        """Return what is wrong with an entry for good, or ""."""
        name = f"entry {entry.seq} of node {entry.node[:4].hex()}"
        previous = accepted.get(entry.prev) or self._chains.entries.get(entry.prev)
        if previous is not None:
            same_log = (previous.node, previous.incarnation) == (entry.node, entry.incarnation)
            if not same_log or entry.seq != previous.seq + 1 or entry.lamport <= previous.lamport:
                return f"{name} does not follow the one before it"
        if entry.lamport > min(lamport + LAMPORT_JUMP_MAX, LAMPORT_MAX - LAMPORT_JUMP_MAX):
            return f"{name} jumps too far ahead in Lamport time"
        try:
            verify_entry(entry)
        except FormatInvalid as error:
            return str(error)
        return ""

    def _strange(self, accepted: Sequence[Entry]) -> tuple[dict[str, bytes], str]:
        """Return settings and a line for the user when some of these are ours and we did not write them.

        Then this store is older than what it once sent (restored), or another machine writes with our key
        (cloned). What we write from now on gets a new incarnation, so that no seq is used twice.
        """
        ours = [entry for entry in accepted if entry.node == self._owner.node]
        if not ours:
            return {}, ""
        line = (
            "a peer had entries of this node that this store does not know: it was restored or cloned. "
            "Nothing was lost, both histories are kept; if another machine runs with this key, give it a new one"
        )
        if any(entry.incarnation == self._incarnation for entry in ours):
            return {"incarnation": secrets.token_bytes(HASH_BYTES)}, line
        return {}, line

    def vector(self) -> list[Head]:
        """Return the heads of every branch of every log we hold: for `Acknowledged`, and to compare."""
        with self._lock:
            return self._chains.heads()

    def summary(self) -> list[Head]:
        """Return the heads and a few entries before each: what to put into a `Vector` message.

        `missing_for` works with `vector()` too, but sends whole logs again to a peer that is ahead in them.
        """
        with self._lock:
            return self._chains.samples()

    def missing_for(self, heads: Sequence[Head], limit_bytes: int, *, skip: int = 0) -> list[bytes]:
        """Return entries a peer that has these heads lacks, oldest first, up to `limit_bytes` (one at least).

        Send all of them for one vector, `skip` being the number sent, until none is returned: of logs in which the
        peer is ahead some are offered that it has, and whoever stopped after them would never get further.
        """
        with self._lock:
            return self._chains.missing_for(heads, limit_bytes, skip=skip)

    def state(self) -> State:
        """Return the fold of all entries; cached until the next one arrives."""
        with self._lock:
            if self._state is None:
                self._state = fold(self._chains.entries.values(), self._cluster)
            elif self._unfolded:
                self._state = self._state.extended(self._unfolded)
            self._unfolded = []
            return self._state

    # ---- acknowledgements and attention ---------------------------------------------------------------

    def acknowledge(self, peer: bytes, heads: Sequence[Head]) -> None:
        """Record that a peer has everything up to these heads; it replaces what it said before."""
        rows = [(peer, head.node, head.incarnation, head.seq, head.hash) for head in heads]
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM acknowledgements WHERE peer = ?", (peer,))
            connection.executemany("INSERT INTO acknowledgements VALUES (?, ?, ?, ?, ?)", rows)

    def acknowledged(self, peer: bytes) -> list[Head]:
        """Return the heads a peer acknowledged last."""
        query = "SELECT node, incarnation, seq, hash FROM acknowledgements WHERE peer = ?"
        rows = [cast("tuple[bytes, bytes, int, bytes]", row) for row in self._database.rows(query, peer)]
        return [Head(node=node, incarnation=log, seq=seq, hash=hash_) for node, log, seq, hash_ in rows]

    def unacknowledged(self, entry: bytes) -> list[bytes]:
        """Return the members, other than us, that have not acknowledged the entry of this hash."""
        with self._lock:
            known = self._chains.entries.get(entry)
            others = [node for node in self._who.members if node != self._owner.node]
            if known is None:
                return others
            return [node for node in others if not self._chains.holds(self.acknowledged(node), known)]

    def acknowledged_by_all(self, entry: bytes) -> bool:
        """Say whether we have the entry of this hash and every other member has acknowledged it."""
        with self._lock:
            return entry in self._chains.entries and not self.unacknowledged(entry)

    def attention(self) -> list[str]:
        """Return the lines for the user about what went wrong with our own log; oldest first."""
        return [str(line) for (line,) in self._database.rows("SELECT line FROM attention ORDER BY id")]
