"""What the logs mean: members, volumes and refs, as a pure function of a set of entries.

Entries are folded in the order (lamport, node, incarnation, seq, hash), whatever order they came in. Those by
nodes that never were members, and those a removed node wrote after its time, count for nothing. A node's ref ops
from before it joined count once it is a member.

No push overwrites another: of two that chose the same number for different trees, the later in the order becomes
`3.studio-2`. A RefRemove takes only what its author had seen.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NoReturn

import msgspec

from tbshare.content.ref import MODELS, Ref, folded, parse_ref, shown
from tbshare.errors import RefUnknown, UsageError
from tbshare.volumes.entry import Entry, Mode, RefRemove, RefSet, UnknownOp, VolumeCreate
from tbshare.volumes.membership import Member, Membership, membership

PUBLISHERS: Final = frozenset({"admin", "publish", "write"})
EVERY_VOLUME: Final = "*"
LABEL_LETTERS_MIN: Final = 7  # of a label, to find a version by its start, as in git
NODE_DIGITS_MIN: Final = 4  # of a node id, to name a node by its start

__all__ = ["Member", "RefRemoved", "RefVersion", "State", "Volume", "fold"]


@dataclass(frozen=True)
class Volume:
    """A named namespace."""

    name: str
    mode: Mode
    options: tuple[tuple[str, str | int | bool], ...] = ()


class RefVersion(msgspec.Struct, frozen=True):
    """One published tree: what `volume:name@rev` stands for."""

    volume: str
    name: str
    rev: str  # "3", or "3.studio-2" when two pushes chose 3 at once
    number: int
    tree: bytes
    size_bytes: int
    files: int
    to: tuple[bytes, ...]  # empty: every node, by its accept rule
    label: str
    origin: str
    author: bytes
    time_ns: int  # by the author's clock; for people
    entries: tuple[bytes, ...]  # hashes of the entries that published it: more than one when nodes pushed the same

    def __str__(self) -> str:
        return str(Ref(name=self.name, volume=self.volume, rev=self.rev))


@dataclass(frozen=True)
class RefRemoved:
    """A version taken away; its bytes stay until the grace period is over."""

    version: RefVersion
    author: bytes
    time_ns: int


@dataclass(frozen=True)
class State:
    """The fold of a set of entries; equal sets give equal states."""

    cluster: bytes  # hash of the genesis entry
    cluster_name: str
    members: Mapping[bytes, Member]  # in the order they joined
    removed_members: Mapping[bytes, Member]
    volumes: Mapping[str, Volume]  # by folded name; `models` is always there
    refs: Mapping[tuple[str, str], tuple[RefVersion, ...]]  # (volume, name) folded -> versions, newest last
    refs_removed: tuple[RefRemoved, ...]
    read_only: Mapping[str, str]  # folded volume name, or "*" for all -> why
    lamport: int  # the highest seen
    entries: tuple[Entry, ...]  # in order

    def extended(self, entries: Iterable[Entry]) -> "State":
        """Return the fold of these entries and of those this state was folded from."""
        return fold([*self.entries, *entries], self.cluster)

    def is_member(self, node: bytes) -> bool:
        """Say whether the node is in the cluster now."""
        return node in self.members

    def certificates(self) -> dict[bytes, bytes]:
        """Return node id -> certificate (DER) of the members."""
        return {node: member.certificate for node, member in self.members.items()}

    def member_named(self, text: str) -> Member:
        """Return the member of this name, or whose id starts with these hex digits; UsageError if none does."""
        wanted = folded(text)
        found = [member for member in self.members.values() if folded(member.name) == wanted]
        if not found and len(wanted) >= NODE_DIGITS_MIN:
            found = [member for member in self.members.values() if member.node.hex().startswith(wanted)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(sorted(member.name for member in self.members.values())) or "none"
        trouble = "several nodes start with" if found else "no node is called"
        raise UsageError(f"{trouble} {shown(text)}; the nodes are: {names}", cure="tbshare node ls")

    def versions(self, volume: str, name: str) -> tuple[RefVersion, ...]:
        """Return all versions of a ref, newest last; empty when there is none."""
        return self.refs.get((folded(volume), folded(name)), ())

    def newest(self, volume: str, name: str) -> RefVersion | None:
        """Return the newest version of a ref, None when there is none."""
        versions = self.versions(volume, name)
        return versions[-1] if versions else None

    def next_rev(self, volume: str, name: str) -> int:
        """Return the number the next push of this name proposes; that of a removed version is not used again."""
        key = (folded(volume), folded(name))
        numbers = [version.number for version in self.refs.get(key, ())]
        gone = (removed.version for removed in self.refs_removed)
        numbers += [version.number for version in gone if (folded(version.volume), folded(version.name)) == key]
        return max(numbers, default=0) + 1

    def resolve(self, ref: str | Ref) -> RefVersion:
        """Return the version a ref means: by rev, by label or its start, or the newest.

        Raises RefUnknown, which says where it looked and names the nearest.
        """
        ref = parse_ref(ref) if isinstance(ref, str) else ref
        versions = self.refs.get(ref.key(), ())
        if not versions:
            self._unknown(ref)
        if not ref.rev:
            return versions[-1]
        wanted = folded(ref.rev)
        for version in versions:
            if folded(version.rev) == wanted:
                return version
        for version in reversed(versions):
            if folded(version.label) == wanted:
                return version
        if len(wanted) >= LABEL_LETTERS_MIN:
            starts = [version for version in versions if folded(version.label).startswith(wanted)]
            if starts and len({version.label for version in starts}) == 1:
                return starts[-1]
        revs = ", ".join(version.rev for version in versions[-8:])
        plain = replace(ref, rev="")
        raise RefUnknown(f"{plain} has no rev {shown(ref.rev)}; it has {revs}", cure=f"tbshare show {plain}")

    def _unknown(self, ref: Ref) -> NoReturn:
        volume = folded(ref.volume)
        if volume not in self.volumes:
            volumes = ", ".join(sorted(known.name for known in self.volumes.values()))
            raise RefUnknown(f"no volume {ref.volume}; the volumes are: {volumes}", cure="tbshare volume ls")
        names = {name: versions[-1].name for (where, name), versions in self.refs.items() if where == volume}
        near = [names[name] for name in difflib.get_close_matches(folded(ref.name), sorted(names), 3, 0.5)]
        if not near:
            near = [text for name, text in sorted(names.items()) if folded(ref.name) in name][:3]
        elsewhere = [str(v[-1]) for (_, name), v in self.refs.items() if name == folded(ref.name)]
        hint = f"; nearest: {', '.join([*near, *elsewhere])}" if near or elsewhere else ""
        raise RefUnknown(f"no ref {ref.name} in volume {ref.volume}{hint}", cure="tbshare ls")

    def why_read_only(self, volume: str) -> str:
        """Return why nothing may be written to the volume, or ""."""
        return self.read_only.get(EVERY_VOLUME) or self.read_only.get(folded(volume), "")


@dataclass
class _Folding:
    """What has been folded so far; each op is a method."""

    who: Membership
    volumes: dict[str, Volume] = field(default_factory=dict[str, Volume])
    refs: dict[tuple[str, str], list[RefVersion]] = field(default_factory=dict[tuple[str, str], list[RefVersion]])
    revs: dict[tuple[str, str], set[str]] = field(default_factory=dict[tuple[str, str], set[str]])  # ever used
    trees: dict[tuple[str, str], set[tuple[int, bytes]]] = field(  # (number, tree) ever pushed
        default_factory=dict[tuple[str, str], set[tuple[int, bytes]]]
    )
    removed: list[RefRemoved] = field(default_factory=list[RefRemoved])
    read_only: dict[str, str] = field(default_factory=dict[str, str])

    def volume_create(self, op: VolumeCreate) -> None:
        volume = Volume(name=op.name, mode=op.mode, options=tuple(sorted(op.options.items())))
        self.volumes.setdefault(folded(op.name), volume)

    def ref_set(self, op: RefSet, entry: Entry) -> None:
        key = (folded(op.volume), folded(op.name))
        trees = self.trees.setdefault(key, set())
        if (op.rev, op.tree) in trees and self.same_push(key, op, entry):
            return
        trees.add((op.rev, op.tree))
        self.refs.setdefault(key, []).append(
            RefVersion(
                volume=op.volume,
                name=op.name,
                rev=self.free_rev(key, op, entry),
                number=op.rev,
                tree=op.tree,
                size_bytes=op.size_bytes,
                files=op.files,
                to=op.to,
                label=op.label,
                origin=op.origin,
                author=entry.node,
                time_ns=entry.time_ns,
                entries=(entry.hash,),
            )
        )

    def same_push(self, key: tuple[str, str], op: RefSet, entry: Entry) -> bool:
        """Join a push to the version that has its number and its tree; False when that was removed meanwhile."""
        versions = self.refs.get(key, [])
        for place, version in enumerate(versions):
            if version.number == op.rev and version.tree == op.tree:
                to = (*version.to, *op.to) if version.to and op.to else ()
                entries = tuple(dict.fromkeys([*version.entries, entry.hash]))
                joined = msgspec.structs.replace(version, to=tuple(dict.fromkeys(to)), entries=entries)
                versions[place] = joined
                return True
        return False

    def free_rev(self, key: tuple[str, str], op: RefSet, entry: Entry) -> str:
        """Return the rev of a new version: its number, or with the node's name when that has another tree."""
        revs = self.revs.setdefault(key, set())
        rev, number = str(op.rev), 1
        while folded(rev) in revs:
            rev = f"{op.rev}.{self.who.first_names[entry.node]}{f'-{number}' if number > 1 else ''}"
            number += 1
        revs.add(folded(rev))
        return rev

    def ref_remove(self, op: RefRemove, entry: Entry) -> None:
        key = (folded(op.volume), folded(op.name))
        seen, kept = set(op.seen), list[RefVersion]()
        for version in self.refs.get(key, ()):
            left = tuple([publisher for publisher in version.entries if publisher not in seen])
            if op.rev and folded(op.rev) != folded(version.rev):
                left = version.entries
            if left:
                kept.append(msgspec.structs.replace(version, entries=left))
            else:
                self.removed.append(RefRemoved(version=version, author=entry.node, time_ns=entry.time_ns))
        if key in self.refs:
            self.refs[key] = kept

    def unknown(self, op: UnknownOp) -> None:
        why = f"a newer version of tbshare wrote {shown(op.kind)} into it; upgrade this node"
        self.read_only.setdefault(folded(op.volume) if op.volume else EVERY_VOLUME, why)

    def take(self, entry: Entry) -> None:
        """Fold the ops of one entry that counts, written by a node that may publish."""
        for op in entry.ops:
            match op:
                case RefSet():
                    self.ref_set(op, entry)
                case RefRemove():
                    self.ref_remove(op, entry)
                case VolumeCreate():
                    self.volume_create(op)
                case UnknownOp():
                    self.unknown(op)
                case _:
                    pass  # who belongs to the cluster is known already


def in_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries in the one order, each once."""
    ordered = sorted(entries, key=lambda entry: (*entry.order(), entry.signature))
    return tuple({entry.hash: entry for entry in reversed(ordered)}.values())[::-1]


def fold(entries: Iterable[Entry], cluster: bytes) -> State:
    """Return the state of the cluster whose genesis entry has the hash `cluster`.

    Any order and any duplicates give the same state. Without that entry it is a state without members.
    """
    ordered = in_order(entries)
    who = membership(ordered, cluster)
    folding = _Folding(who=who, volumes={MODELS: Volume(name=MODELS, mode="models")})
    may_publish = {node for node in (*who.members, *who.removed) if who.role_of(node) in PUBLISHERS}
    for entry in ordered:
        if entry.node in may_publish and who.counts(entry):
            folding.take(entry)
    refs = {
        key: tuple(sorted(versions, key=lambda version: version.number))
        for key, versions in folding.refs.items()
        if versions
    }
    return State(
        cluster=cluster,
        cluster_name=who.cluster_name,
        members=who.members,
        removed_members=who.removed,
        volumes=folding.volumes,
        refs=refs,
        refs_removed=tuple(folding.removed),
        read_only=folding.read_only,
        lamport=max((entry.lamport for entry in ordered), default=0),
        entries=ordered,
    )
