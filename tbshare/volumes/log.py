"""The durable log of one node: the cluster it is in, and the exchange with the logs of others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tbshare.content.block import HASH_BYTES
from tbshare.errors import NotPermitted, RefUnknown, UsageError
from tbshare.volumes.branches import Known
from tbshare.volumes.entry import (
    HEARD_MAX,
    SEEN_MAX,
    UNTIL_MAX,
    At,
    Entry,
    Genesis,
    Heard,
    MemberAdd,
    MemberRemove,
    MemberRename,
    RefRemove,
    Role,
    Until,
    node_of_certificate,
)
from tbshare.volumes.judge import Judge, readable, signed
from tbshare.volumes.log_file import LogFile, Owner, at_of
from tbshare.volumes.log_rows import read
from tbshare.volumes.segments import compact
from tbshare.wire.message import Head

__all__ = ["Log", "Owner", "Received"]
NEWEST_KEPT: Final = 1000  # entries of each branch that are not compacted


@dataclass(frozen=True)
class Received:
    """What became of entries from a peer: `accepted` are durable, `rejected` are reasons, one an entry."""

    accepted: tuple[Entry, ...]
    rejected: tuple[str, ...]


class Log(LogFile):
    """log.db of one node; safe to call from several threads. Every method may touch the disk."""

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
                Genesis(name=cluster_name, nonce=self._random_bytes(HASH_BYTES)),
                MemberAdd(
                    node=self._owner.node, certificate=self._owner.certificate, name=node_name, role="admin"
                ),
            )
            entry = self._entry(ops, self._own_head(), self._branches.lamport + 1)
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
            return self._append_now(
                [MemberAdd(node=node, certificate=certificate, name=name, role=role, cluster=self._cluster)]
            )

    def remove_member(self, node: bytes) -> Entry:
        """Append a MemberRemove that keeps all we have of the node's entries; UsageError when it is no member."""
        with self._lock:
            if node not in self._who.members:
                raise UsageError(f"node {node[:4].hex()} is not in this cluster", cure="tbshare node ls")
            if node != self._owner.node:
                self._require_admin()
            heads = [head for head in self._branches.heads() if head.node == node][:UNTIL_MAX]
            until = tuple([Until(head.incarnation, head.seq, head.hash) for head in heads])
            return self._append_now([MemberRemove(node=node, cluster=self._cluster, until=until)])

    def rename_member(self, node: bytes, name: str) -> Entry:
        """Append a MemberRename; UsageError when the node is no member."""
        with self._lock:
            if node not in self._who.members:
                raise UsageError(f"node {node[:4].hex()} is not in this cluster", cure="tbshare node ls")
            if node != self._owner.node:
                self._require_admin()
            return self._append_now([MemberRename(node=node, cluster=self._cluster, name=name)])

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
            return self._append_now([RefRemove(volume=volume, name=name, seen=part, rev=only) for part in parts])

    def _require_admin(self) -> None:
        member = self._who.members.get(self._owner.node)
        if member is None or member.role != "admin":
            raise NotPermitted(
                "this node is not an admin of the cluster", cure="run it on a node that is: tbshare node ls"
            )

    # ---- exchange -------------------------------------------------------------------------------------

    def receive(self, encoded: Sequence[bytes]) -> Received:
        """Check and commit entries from a peer, in any order, duplicates ignored.

        An entry needs a valid signature, its `prev`, and an author who is or was a member; one that lacks the
        latter two is only refused for now: the peer offers it again as long as our vector lacks it.
        """
        entries, rejected = readable(encoded)
        with self._lock:
            entries = [entry for entry in entries if self._branches.find(entry) is None]
        waiting, forged = signed(entries)  # what takes long, without the lock
        accepted: list[Entry] = []
        rejected += forged
        with self._lock:
            while True:
                waiting = [entry for entry in waiting if self._branches.find(entry) is None]
                judge = Judge(self._stored, self._who, self._membership, always=(self._cluster, self._owner.node))
                waiting, wrong = judge.judge(waiting)
                rejected += wrong
                taken = list(judge.accepted.values())
                if taken:
                    self._take(taken)
                    if self._own_head() is not None:  # else it is said where our log begins
                        self._commit_own([])
                    accepted += taken
                if not taken or not waiting:
                    break
            rejected += [judge.not_yet(entry) for entry in waiting]
        return Received(accepted=tuple(accepted), rejected=tuple(rejected))

    def _take(self, accepted: Sequence[Entry]) -> None:
        meta, lines = self._strange(accepted)
        seen = self._seen_of_removed(accepted)
        if seen and not meta:  # together: a crash in between would forget what we had seen at this moment
            lamport = max(self._branches.lamport, *[entry.lamport for entry in accepted]) + 1
            accepted = [*accepted, self._entry(seen, self._own_head(), lamport)]
        self._commit(accepted, meta, lines)
        if seen and meta:
            self._append_now(seen)

    def _seen_of_removed(self, accepted: Sequence[Entry]) -> list[MemberRemove | Heard]:
        """Return that we heard of the nodes that these entries remove, where we hold more of them than is kept.

        What we have seen of a node we may have built upon: a file of its making that was saved again here would
        lose its name. So it counts, as what the one who removed it had seen does. An admin removes it too: then
        whom that node let in stays.
        """
        named = {op.node for entry in accepted for op in entry.ops if isinstance(op, MemberRemove)}
        if not named & self._who.members.keys():
            return []
        who = self._membership(accepted)
        own = who.members.get(self._owner.node)
        if own is None:
            return []
        said: list[MemberRemove | Heard] = []
        for node in sorted(named & self._who.members.keys() & who.removed.keys()):
            heads = [at_of(head) for head in self._branches.heads() if head.node == node][:UNTIL_MAX]
            places = who.kept[node] if own.role == "admin" else who.seen[node]
            kept = [self._branches.known([place]) for place in places if self._branches.find(place)]
            if not all(any(self._branches.covered(known, head) for known in kept) for head in heads):
                if own.role == "admin":
                    until = tuple([Until(head.incarnation, head.seq, head.hash) for head in heads])
                    said.append(MemberRemove(node=node, cluster=self._cluster, until=until))
                else:
                    removals = [entry.hash for entry in accepted if _removes(entry, node)]
                    said.append(Heard(entries=tuple(removals[:HEARD_MAX]), until=tuple(heads)))
        return said

    def _strange(self, accepted: Sequence[Entry]) -> tuple[dict[str, bytes], list[str]]:
        """Return settings and lines for the user when some of these are ours and we did not write them.

        Then this store is older than what it once sent (restored), or another machine writes with our key
        (cloned). What we write from now on gets a new incarnation, so that no seq is used twice.
        """
        ours = [entry for entry in accepted if entry.node == self._owner.node]
        if not ours:
            return {}, []
        line = (
            "a peer had entries of this node that this store does not know: it was restored or cloned. "
            "Nothing was lost, both histories are kept; if another machine runs with this key, give it a new one"
        )
        if any(entry.incarnation == self._incarnation for entry in ours):
            return {"incarnation": self._random_bytes(HASH_BYTES)}, [line]
        return {}, [line]

    def summary(self) -> list[Head]:
        """Return the heads and a few entries before each: what to put into a `Vector` message.

        `known` works with `vector()` too, but whole logs are sent again to a peer that is ahead in them.
        """
        with self._lock:
            return self._branches.samples()

    def known(self, heads: Sequence[Head]) -> Known:
        """Return what a peer with these heads has, for `part_for`."""
        with self._lock:
            return self._branches.known(heads)

    def has(self, head: Head) -> bool:
        """Say whether this entry is here."""
        with self._lock:
            return self._branches.find(head) is not None

    def repaired(self, *, lost: str = "") -> None:
        """Note that what damage had lost is here again; or with `lost`, a sentence, that it is gone for good."""
        with self._lock:
            if lost:
                self.note_lost(lost)
            with self._database.transaction() as connection:
                connection.execute("DELETE FROM meta WHERE key = 'damaged'")
            self.damaged = ""
            self._note_members()

    def note_lost(self, lost: str) -> None:
        """Note that some of our log may be gone, by a sentence: what only it named is no garbage."""
        with self._lock:
            self._set_meta("lost", lost.encode())
            self.lost = lost

    def forget_lost(self) -> None:
        """Note that nobody looks any more for what was lost."""
        with self._lock:
            with self._database.transaction() as connection:
                connection.execute("DELETE FROM meta WHERE key = 'lost'")
            self.lost = ""

    def lacks(self, known: Known) -> bool:
        """Say whether there is anything that is not known there."""
        with self._lock:
            return bool(self._branches.lacking(known))

    def part_for(self, known: Known, limit_bytes: int) -> list[bytes]:
        """Return entries a peer lacks, oldest first, up to `limit_bytes` (one at least); none at the end.

        They are noted in `known`, so that the next call returns those that follow.
        """
        with self._lock:
            return self._stored.part_for(known, limit_bytes)

    def missing_for(self, heads: Sequence[Head], limit_bytes: int) -> list[bytes]:
        """Return the first part of what a peer with these heads lacks."""
        return self.part_for(self.known(heads), limit_bytes)

    def note_known(self, known: Known, entries: Iterable[Entry]) -> None:
        """Note in `known` entries that came from that peer, so that it does not get them back."""
        with self._lock:
            for entry in entries:
                branch = self._branches.find(entry)
                if branch is not None and known.get(branch.id, branch.fork_seq) == entry.seq - 1:
                    known[branch.id] = entry.seq

    # ---- acknowledgements and attention ---------------------------------------------------------------

    def acknowledge(self, peer: bytes, heads: Sequence[Head]) -> None:
        """Note that a peer has everything up to these heads; it replaces what it said before.

        It is written down with the next commit, at the latest when the log is closed: the peer says it again.
        """
        with self._lock:
            self._acknowledgements.put(peer, heads)

    def acknowledged(self, peer: bytes) -> list[Head]:
        """Return the heads a peer acknowledged last."""
        with self._lock:
            return self._acknowledgements.of(peer)

    def unacknowledged(self, entry: bytes | Entry) -> list[bytes]:
        """Return the members, other than us, that have not acknowledged the entry, or the one of this hash.

        By its hash it is found at once only if it concerns the cluster.
        """
        with self._lock:
            others = [node for node in self._who.members if node != self._owner.node]
            known = self._entry_of_hash(entry) if isinstance(entry, bytes) else entry
            if known is None or self._branches.find(known) is None:
                return others
            held = {node: self._branches.known(self.acknowledged(node)) for node in others}
            return [node for node in others if not self._branches.covered(held[node], known)]

    def all_have(self, heads: Sequence[At]) -> bool:
        """Say whether every other member has acknowledged all up to these places."""
        with self._lock:
            others = [node for node in self._who.members if node != self._owner.node]
            held = [self._branches.known(self.acknowledged(node)) for node in others]
            return all(self._branches.covered(known, head) for known in held for head in heads)

    def unheeding(self) -> list[bytes]:
        """Return the members that write on as if they did not have what took a right from them, and say they do.

        What they write counts as long as they do not say in their log that they have heard of it.
        """
        with self._lock:
            state, found = self.state(), list[bytes]()
            for node in state.members:
                taken = [self._concerning[entry] for entry in state.unheard(node, None)]
                said = self.acknowledged(node) if taken else []
                if not said or not all(self._branches.find(head) for head in said):
                    continue
                held = self._branches.known(said)
                ends = [branch for branch in self._branches.by_id.values() if branch.node == node]
                if any(
                    self._branches.covered(held, entry)
                    and any(
                        end.lamport > entry.lamport and not state.hearing.at(at_of(end.head()), entry.hash)
                        for end in ends
                    )
                    for entry in taken
                ):
                    found.append(node)
            return found

    def _entry_of_hash(self, hash_: bytes) -> Entry | None:
        if hash_ in self._concerning:
            return self._concerning[hash_]
        rows = self._database.rows("SELECT encoded FROM entries WHERE hash = ?", hash_)
        return read(rows[0][0]) if rows else None

    def acknowledged_by_all(self, entry: bytes | Entry) -> bool:
        """Say whether we have the entry and every other member has acknowledged it."""
        with self._lock:
            known = self._entry_of_hash(entry) if isinstance(entry, bytes) else entry
            return known is not None and self._branches.find(known) is not None and not self.unacknowledged(known)

    def compact(self, *, newest_kept: int = NEWEST_KEPT) -> int:
        """Pack entries that every member has acknowledged; return how many. The newest of each branch stay."""
        with self._lock:
            others = [node for node in self._who.members if node != self._owner.node]
            common = [self._branches.known(self.acknowledged(node)) for node in others]
            self._acknowledgements.save()
            return compact(self._database, self._stored, common, newest_kept)


def _removes(entry: Entry, node: bytes) -> bool:
    return any(isinstance(op, MemberRemove) and op.node == node for op in entry.ops)
