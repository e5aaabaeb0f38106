"""Who belongs to the cluster: a pure function of the entries.

The members are the closure from the genesis entry: its author is the first admin, and every MemberAdd of an admin,
made for this cluster, counts. The first one that counts fixes a node's certificate.

MemberRemove is for good. Of the removed node's entries only those up to `until` count, whatever Lamport time the
others claim: whoever holds a stolen key can date back, but not get before a hash in the chain. When two admins
remove each other without knowing, the one who became a member earlier wins; that cannot be dated back either.
Several removals of one node add up: what any of them had seen counts. For files and volumes, though not for who
is a member, so does what a member had of the removed node's log when it heard of the removal, and says so (Heard):
it may have built upon that.

Of two admins that add one node with different roles, the higher role holds.

Only entries that concern the cluster are folded here (`concerns_cluster`); those with files alone, most of a log,
lie between them in its chain. What comes before what in a log is therefore asked of who knows all: `Before`.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from tbshare.content.ref import folded
from tbshare.volumes.entry import FILE_OPS, At, Entry, Genesis, Heard, MemberAdd, MemberRemove, MemberRename, Role

RANKS: Final[tuple[Role, ...]] = ("read", "write", "publish", "admin")

Kept = Mapping[bytes, tuple[At, ...]]  # removed node -> the last of its entries that count, with all before them
Before = Callable[[Entry, At], bool | None]  # is the entry at or before this place; None: the place is not known


def before_among(entries: Iterable[Entry]) -> Before:
    """Return the `Before` of entries that are all there are."""
    known = {entry.hash: entry for entry in entries}
    reached: dict[bytes, frozenset[bytes]] = {}

    def before(entry: Entry, place: At) -> bool | None:
        if place.hash not in known:
            return None
        if place.hash not in reached:
            reached[place.hash] = _ancestors(place.hash, known)
        return entry.hash in reached[place.hash]

    return before


def _ancestors(last: bytes, entries: Mapping[bytes, Entry]) -> frozenset[bytes]:
    """Return the hashes of the chain that ends in `last`."""
    hashes: set[bytes] = set()
    entry = entries.get(last)
    while entry is not None and entry.hash not in hashes:
        hashes.add(entry.hash)
        entry = entries.get(entry.prev)
    return frozenset(hashes)


@dataclass(frozen=True)
class Member:
    """A node of the cluster; `name` is unique among the members."""

    node: bytes
    certificate: bytes
    name: str
    role: Role


@dataclass(frozen=True)
class Membership:
    """Members and removed members in the order they joined, and which entries count.

    When an entry arrives whose hash is `awaited`, it has to be folded again.
    """

    cluster_name: str = ""
    members: Mapping[bytes, Member] = field(default_factory=dict[bytes, Member])
    removed: Mapping[bytes, Member] = field(default_factory=dict[bytes, Member])
    first_names: Mapping[bytes, str] = field(default_factory=dict[bytes, str])  # as each was added: never changes
    kept: Kept = field(default_factory=dict[bytes, tuple[At, ...]])  # of each removed node, as far as admins say
    seen: Kept = field(default_factory=dict[bytes, tuple[At, ...]])  # as far as any member says: what counts
    stamps: Mapping[bytes, bytes] = field(default_factory=dict[bytes, bytes])  # of the entry that added each
    awaited: frozenset[bytes] = frozenset()  # last entries of removed nodes that are not here
    before: Before = field(default=lambda _, __: None, compare=False, repr=False)

    def role_of(self, node: bytes) -> Role | None:
        """Return the role of a node that is or was a member."""
        member = self.members.get(node) or self.removed.get(node)
        return member.role if member else None

    def counts(self, entry: Entry) -> bool:
        """Say whether the entry is by a node that is or was a member, and before the end of its time."""
        if entry.node in self.seen:
            return _in_time(entry, self.seen, self.before)
        return entry.node in self.members


class _Statement(NamedTuple):
    """One op about members, with the entry it stands in."""

    entry: Entry
    op: MemberAdd | MemberRemove | MemberRename


class _Said(NamedTuple):
    """What somebody had of removed nodes' logs, with the entry it stands in."""

    entry: Entry
    op: Heard


class _Add(NamedTuple):
    """The op that made a node a member, with the entry it stands in."""

    entry: Entry
    op: MemberAdd


def concerns_cluster(entry: Entry) -> bool:
    """Say whether the entry has an op that is not of a volume's files alone."""
    return not all(isinstance(op, FILE_OPS) for op in entry.ops)


def has_statement(entry: Entry) -> bool:
    """Say whether the entry can change who is a member."""
    return any(isinstance(op, MemberAdd | MemberRemove | MemberRename) for op in entry.ops)


def membership(ordered: Iterable[Entry], cluster: bytes, before: Before | None = None) -> Membership:
    """Return who belongs to `cluster`; `ordered` is in `Entry.order`, each entry once.

    Without `before` these entries are all there are.
    """
    entries = {entry.hash: entry for entry in ordered}
    genesis = entries.get(cluster)
    start = genesis.ops[0] if genesis else None
    if genesis is None or not isinstance(start, Genesis):
        return Membership()
    statements = [
        _Statement(entry, op)
        for entry in entries.values()
        for op in entry.ops
        if isinstance(op, MemberAdd | MemberRemove | MemberRename)
        and (op.cluster == cluster or (not op.cluster and entry is genesis))
    ]
    said = ((entry, op) for entry in entries.values() for op in entry.ops if isinstance(op, Heard))
    heards = [_Said(entry, op) for entry, op in said if op.until]
    return _Cluster(statements, heards, genesis, before or before_among(entries.values())).membership(start.name)


def _in_time(entry: Entry, kept: Kept, before: Before) -> bool:
    """Say whether the entry was written before its author's time was over."""
    return entry.node not in kept or any(before(entry, place) for place in kept[entry.node])


@dataclass
class _Cluster:
    """The statements that are for this cluster, in order."""

    statements: list[_Statement]
    heards: list[_Said]
    genesis: Entry
    before: Before

    def membership(self, name: str) -> Membership:
        kept = self.removals()
        added = self.added(kept)
        names = self.names(added, kept)
        members = {
            node: Member(node=node, certificate=add.op.certificate, name=names[node], role=add.op.role)
            for node, add in added.items()
        }
        kept = {node: places for node, places in kept.items() if node in members}
        seen = self.vouched(kept, members)
        return Membership(
            cluster_name=name,
            members={node: member for node, member in members.items() if node not in kept},
            removed={node: member for node, member in members.items() if node in kept},
            first_names={node: add.op.name for node, add in added.items()},
            kept=kept,
            seen=seen,
            stamps={node: add.entry.stamp() for node, add in added.items()},
            awaited=frozenset(
                place.hash
                for places in seen.values()
                for place in places
                if self.before(self.genesis, place) is None
            ),
            before=self.before,
        )

    def added(self, kept: Kept) -> dict[bytes, _Add]:
        """Return the MemberAdd of every node in the closure, in the order they joined."""
        added: dict[bytes, _Add] = {}
        for entry, op in self.statements:
            if isinstance(op, MemberAdd) and entry is self.genesis and op.node == self.genesis.node:
                added.setdefault(self.genesis.node, _Add(entry, op))
        found = True
        while found:
            found = False
            for entry, op in self.statements:
                if not isinstance(op, MemberAdd) or not self.by_admin(entry, added, kept):
                    continue
                known = added.get(op.node)
                if known is None:
                    added[op.node] = _Add(entry, op)
                    found = True
                elif RANKS.index(op.role) > RANKS.index(known.op.role):
                    added[op.node] = _Add(known.entry, msgspec.structs.replace(known.op, role=op.role))
                    found = True
        return added

    def vouched(self, kept: Kept, members: Container[bytes]) -> Kept:
        """Return what counts of removed nodes, with what those who count themselves had of it."""
        seen = dict(kept)
        found = True
        while found:
            found = False
            for entry, op in self.heards:
                more = [place for place in op.until if place not in seen.get(place.node, (place,))]
                if more and entry.node in members and _in_time(entry, seen, self.before):
                    for place in more:
                        seen[place.node] = (*seen[place.node], place)
                    found = True
        return seen

    def by_admin(self, entry: Entry, added: Mapping[bytes, _Add], kept: Kept) -> bool:
        author = added.get(entry.node)
        return author is not None and author.op.role == "admin" and _in_time(entry, kept, self.before)

    def removals(self) -> dict[bytes, tuple[At, ...]]:
        """Return, for each removed node, the last of its entries that still count.

        Removals are taken in the order of their authors' seniority, and each only when its author is still an
        admin after it: so it cannot saw off the branch it sits on, and a later one never undoes an earlier one.
        """
        seniority = {node: rank for rank, node in enumerate(self.added({}))}
        removes = [(entry, op) for entry, op in self.statements if isinstance(op, MemberRemove)]
        removes = [(entry, op) for entry, op in removes if entry.node in seniority and op.node in seniority]
        removes.sort(key=lambda remove: (seniority[remove[0].node], remove[0].order()))
        kept: dict[bytes, tuple[At, ...]] = {}
        for entry, op in removes:
            leaving = entry.node == op.node
            places = [At(op.node, until.incarnation, until.seq, until.hash) for until in op.until]
            if leaving:
                places.append(At(entry.node, entry.incarnation, entry.seq, entry.hash))
            attempt = {**kept, op.node: tuple(dict.fromkeys([*kept.get(op.node, ()), *places]))}
            added = self.added(attempt)
            allowed = _in_time(entry, kept, self.before) and (leaving or self.by_admin(entry, added, attempt))
            if allowed and op.node in added:
                kept = attempt
        return kept

    def names(self, added: Mapping[bytes, _Add], kept: Kept) -> dict[bytes, str]:
        """Return a unique name for each node; of two that chose the same, the one that joined later gets `-2`."""
        wished = {node: add.op.name for node, add in added.items()}
        for entry, op in self.statements:
            if not isinstance(op, MemberRename) or op.node not in wished:
                continue
            if not _in_time(entry, kept, self.before):
                continue
            if entry.node == op.node or self.by_admin(entry, added, kept):
                wished[op.node] = op.name
        return _unique_names(wished, last=kept)


def _unique_names(wished: Mapping[bytes, str], last: Container[bytes]) -> dict[bytes, str]:
    """Return a name for each node; of two that want one, the later gets `-2`; those in `last` come after all."""
    names: dict[bytes, str] = {}
    taken: set[str] = set()
    for node in sorted(wished, key=lambda node: node in last):  # a removed node's name is free again
        name, number = wished[node], 1
        while folded(name) in taken:
            number += 1
            name = f"{wished[node]}-{number}"
        taken.add(folded(name))
        names[node] = name
    return names
