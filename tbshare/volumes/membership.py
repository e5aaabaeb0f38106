"""Who belongs to the cluster: a pure function of the entries.

The members are the closure from the genesis entry: its author is the first admin, and every MemberAdd of an admin,
made for this cluster, counts. The first one that counts fixes a node's certificate and role.

MemberRemove is for good. Of the removed node's entries only those up to `until` count, whatever Lamport time the
others claim: whoever holds a stolen key can date back, but not get before a hash in the chain. When two admins
remove each other without knowing, the one who became a member earlier wins; that cannot be dated back either.
Several removals of one node add up: what any of them had seen counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tbshare.content.ref import folded
from tbshare.volumes.entry import Entry, Genesis, MemberAdd, MemberRemove, MemberRename, Role


@dataclass(frozen=True)
class Member:
    """A node of the cluster; `name` is unique among the members."""

    node: bytes
    certificate: bytes
    name: str
    role: Role


@dataclass(frozen=True)
class Membership:
    """Members and removed members in the order they joined, and which entries count."""

    cluster_name: str = ""
    members: Mapping[bytes, Member] = field(default_factory=dict[bytes, Member])
    removed: Mapping[bytes, Member] = field(default_factory=dict[bytes, Member])
    first_names: Mapping[bytes, str] = field(default_factory=dict[bytes, str])  # as each was added: never changes
    kept: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict[bytes, frozenset[bytes]])

    def role_of(self, node: bytes) -> Role | None:
        """Return the role of a node that is or was a member."""
        member = self.members.get(node) or self.removed.get(node)
        return member.role if member else None

    def counts(self, entry: Entry) -> bool:
        """Say whether the entry is by a node that is or was a member, and before the end of its time."""
        kept = self.kept.get(entry.node)
        return entry.hash in kept if kept is not None else entry.node in self.members


class _Statement(NamedTuple):
    """One op about members, with the entry it stands in."""

    entry: Entry
    op: MemberAdd | MemberRemove | MemberRename


def has_statement(entry: Entry) -> bool:
    """Say whether the entry can change who is a member."""
    return any(isinstance(op, MemberAdd | MemberRemove | MemberRename) for op in entry.ops)


def membership(ordered: Iterable[Entry], cluster: bytes) -> Membership:
    """Return who belongs to `cluster`; `ordered` is in `Entry.order`, each entry once."""
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
    kept = _removals(statements, entries, genesis)
    added = _added(statements, genesis, kept)
    names = _names(statements, added, kept)
    members = {
        node: Member(node=node, certificate=op.certificate, name=names[node], role=op.role)
        for node, op in added.items()
    }
    return Membership(
        cluster_name=start.name,
        members={node: member for node, member in members.items() if node not in kept},
        removed={node: member for node, member in members.items() if node in kept},
        first_names={node: op.name for node, op in added.items()},
        kept={node: kept[node] for node in kept if node in members},
    )


def _added(
    statements: list[_Statement], genesis: Entry, kept: Mapping[bytes, frozenset[bytes]]
) -> dict[bytes, MemberAdd]:
    """Return the MemberAdd of every node in the closure, in the order they joined."""
    added: dict[bytes, MemberAdd] = {}
    for statement in statements:
        op = statement.op
        if isinstance(op, MemberAdd) and statement.entry is genesis and op.node == genesis.node:
            added.setdefault(genesis.node, op)
    found = True
    while found:
        found = False
        for entry, op in statements:
            if isinstance(op, MemberAdd) and op.node not in added and _by_admin(entry, added, kept):
                added[op.node] = op
                found = True
    return added


def _by_admin(entry: Entry, added: Mapping[bytes, MemberAdd], kept: Mapping[bytes, frozenset[bytes]]) -> bool:
    author = added.get(entry.node)
    return author is not None and author.role == "admin" and _in_time(entry, kept)


def _in_time(entry: Entry, kept: Mapping[bytes, frozenset[bytes]]) -> bool:
    return entry.node not in kept or entry.hash in kept[entry.node]


def _removals(
    statements: list[_Statement], entries: Mapping[bytes, Entry], genesis: Entry
) -> dict[bytes, frozenset[bytes]]:
    """Return, for each removed node, the hashes of its entries that still count.

    Removals are taken in the order of their authors' seniority, and each only when its author is still an admin
    after it: so it cannot saw off the branch it sits on, and a later one never undoes an earlier one.
    """
    seniority = {node: rank for rank, node in enumerate(_added(statements, genesis, {}))}
    removes = [(entry, op) for entry, op in statements if isinstance(op, MemberRemove)]
    removes = [(entry, op) for entry, op in removes if entry.node in seniority and op.node in seniority]
    removes.sort(key=lambda remove: (seniority[remove[0].node], remove[0].order()))
    kept: dict[bytes, frozenset[bytes]] = {}
    for entry, op in removes:
        hashes = _up_to(op, entries)
        leaving = entry.node == op.node
        if leaving:
            hashes |= _ancestors(entry.hash, op.node, entries)
        attempt = {**kept, op.node: kept.get(op.node, frozenset()) | hashes}
        added = _added(statements, genesis, attempt)
        allowed = _in_time(entry, kept) and (leaving or _by_admin(entry, added, attempt))
        if allowed and op.node in added:
            kept = attempt
    return kept


def _up_to(op: MemberRemove, entries: Mapping[bytes, Entry]) -> frozenset[bytes]:
    hashes: frozenset[bytes] = frozenset()
    for until in op.until:
        hashes |= _ancestors(until.hash, op.node, entries)
    return hashes


def _ancestors(last: bytes, node: bytes, entries: Mapping[bytes, Entry]) -> frozenset[bytes]:
    """Return the hashes of the chain that ends in `last`, as far as it is the node's."""
    hashes: set[bytes] = set()
    entry = entries.get(last)
    while entry is not None and entry.node == node and entry.hash not in hashes:
        hashes.add(entry.hash)
        entry = entries.get(entry.prev)
    return frozenset(hashes)


def _names(
    statements: list[_Statement], added: Mapping[bytes, MemberAdd], kept: Mapping[bytes, frozenset[bytes]]
) -> dict[bytes, str]:
    """Return a unique name for each node; of two that chose the same, the one that joined later gets `-2`."""
    wished = {node: op.name for node, op in added.items()}
    for entry, op in statements:
        if not isinstance(op, MemberRename) or op.node not in wished or not _in_time(entry, kept):
            continue
        if entry.node == op.node or _by_admin(entry, added, kept):
            wished[op.node] = op.name
    names: dict[bytes, str] = {}
    taken: set[str] = set()
    for node in sorted(wished, key=lambda node: node in kept):  # a removed node's name is free again
        name, number = wished[node], 1
        while folded(name) in taken:
            number += 1
            name = f"{wished[node]}-{number}"
        taken.add(folded(name))
        names[node] = name
    return names
