"""What the logs mean: members, volumes and refs, as a pure function of a set of entries.

Entries are folded in the order (lamport, node, incarnation, seq, hash), whatever order they came in. Those by
nodes that never were members, and those a removed node wrote after its time, count for nothing. A node's ref ops
from before it joined count once it is a member.

No push overwrites another: of two that chose the same number for different trees, the later in the order becomes
`3.studio-2`. A RefRemove takes only what its author had seen. Volumes, roles and snapshots: catalogue.py.

Ops of files are not folded here, and entries that have nothing else need not be given: volumes/namespace.py.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NoReturn

import msgspec

from tbshare.content.block import named_hash
from tbshare.content.ref import Ref, folded, parse_ref, shown
from tbshare.errors import RefUnknown, UsageError, VolumeUnknown
from tbshare.volumes.catalogue import WRITERS, Catalogue, Rights, Role, Snapshot, Volume
from tbshare.volumes.entry import (
    At,
    Entry,
    Heard,
    RefRemove,
    RefSet,
    RoleSet,
    SnapshotCreate,
    SnapshotRemove,
    UnknownOp,
    VolumeCreate,
    VolumeSet,
)
from tbshare.volumes.heard import Hearing
from tbshare.volumes.membership import Before, Member, Membership, membership

RULES_CONTEXT: Final = "tbshare 2026-11-23 what verdicts on entries rest on"
EVERY_VOLUME: Final = "*"
LABEL_LETTERS_MIN: Final = 7  # of a label, to find a version by its start, as in git
NODE_DIGITS_MIN: Final = 4  # of a node id, to name a node by its start

__all__ = ["Member", "RefRemoved", "RefVersion", "Role", "Snapshot", "State", "Volume", "fold"]


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
    volumes: Mapping[str, Volume]  # by folded name, those not removed; `models` is always there
    volumes_by_id: Mapping[int, Volume]  # the removed ones too, in the order they were made
    rights: Mapping[int, Rights]  # by volume
    taken: Mapping[int, tuple[Snapshot, ...]]  # snapshots of the volumes that have some
    who: Membership
    refs: Mapping[tuple[str, str], tuple[RefVersion, ...]]  # (volume, name) folded -> versions, newest last
    refs_removed: tuple[RefRemoved, ...]
    read_only: Mapping[str | int, str]  # a volume's folded name or id, or "*" for all -> why
    lamport: int  # the highest seen
    entries: tuple[Entry, ...]  # in order; those without ops of the cluster may be left out
    hearing: Hearing = field(compare=False)
    before: Before | None = field(default=None, compare=False)

    def extended(self, entries: Iterable[Entry]) -> "State":
        """Return the fold of these entries and of those this state was folded from."""
        return fold([*self.entries, *entries], self.cluster, self.before)

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

    # volumes ---------------------------------------------------------------------------------------------------

    def volume_named(self, text: str, *, removed: bool = False) -> Volume:
        """Return the volume of this name, with `removed` also a removed one; VolumeUnknown names the nearest."""
        wanted = folded(text)
        found = self.volumes.get(wanted)
        if found is None and removed:
            found = next((each for each in self.volumes_by_id.values() if folded(each.name) == wanted), None)
        if found is not None:
            return found
        names = {
            folded(each.name): each.name for each in self.volumes_by_id.values() if removed or not each.removed
        }
        near = [names[name] for name in difflib.get_close_matches(wanted, sorted(names), 3, 0.5)]
        hint = f"nearest: {', '.join(near)}" if near else f"the volumes are: {', '.join(sorted(names.values()))}"
        raise VolumeUnknown(f"no volume {shown(text)}; {hint}", cure="tbshare volume ls")

    def volume_by_id(self, volume_id: int) -> Volume | None:
        """Return a volume, the removed ones too; None when there is none of this id."""
        return self.volumes_by_id.get(volume_id)

    def snapshots(self, volume_id: int) -> tuple[Snapshot, ...]:
        """Return the snapshots of a volume, in the order they were made."""
        return self.taken.get(volume_id, ())

    def role(self, node: bytes, volume_id: int) -> Role:
        """Return a node's role in a volume now: as given there, else as in the cluster; "none" for strangers."""
        rights = self.rights.get(volume_id)
        member = self.members.get(node)
        return rights.role(node, member.role) if rights is not None and member is not None else "none"

    def administers(self, node: bytes, volume_id: int) -> bool:
        """Say whether the node may set options and roles of the volume now."""
        member = self.members.get(node)
        return member is not None and "admin" in (member.role, self.role(node, volume_id))

    def may_read(self, node: bytes, volume_id: int) -> bool:
        """Say whether the node may have bytes of the volume now."""
        return self.role(node, volume_id) != "none"

    def may_write(self, volume_id: int, node: bytes) -> bool:
        """Say whether the node may change files of the volume now."""
        rights = self.rights.get(volume_id)
        if rights is None or node not in self.members or self.volumes_by_id[volume_id].removed:
            return False
        return rights.may_write(node, self.who.role_of(node))

    def is_valid(self, volume_id: int, entry: Entry) -> bool:
        """Say whether what the entry does to files of the volume counts."""
        rights = self.rights.get(volume_id)
        if rights is None or not self.counts(entry):
            return False
        return rights.might_write(entry, self.who.role_of(entry.node), self.hearing)

    def unheard(self, node: bytes, head: At | None) -> list[bytes]:
        """Return the entries that take a right from a node of which its log, which ends here, does not say so."""
        member = self.members.get(node)
        if member is None:
            return []
        taken = [entry for rights in self.rights.values() for entry in rights.taken(node, member.role)]
        return [entry for entry in dict.fromkeys(taken) if head is None or not self.hearing.at(head, entry)]

    def counts(self, entry: Entry) -> bool:
        """Say whether the entry is by a node that is or was a member, and before the end of its time."""
        return self.who.counts(entry)

    def rules(self, volume_id: int, authors: Mapping[bytes, bytes]) -> bytes:
        """Return what the verdicts on entries of these authors, each up to its stamp, rest on, as one hash.

        While it stays the same, so does `is_valid` of all of them. A right taken away alone does not change it.
        """
        rights = self.rights.get(volume_id)
        rests: list[object] = []
        for node, stamp in sorted(authors.items()):
            kept = [(place.hash, place.hash in self.who.awaited) for place in self.who.seen.get(node, ())]
            given = rights.rests(node, self.who.role_of(node), stamp, self.hearing) if rights else []
            rests.append((node, node in self.members, sorted(kept), given))
        return named_hash(RULES_CONTEXT, [msgspec.msgpack.encode(rests)])

    # refs ------------------------------------------------------------------------------------------------------

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
        name = folded(volume)
        known = self.volumes.get(name)
        keys = (EVERY_VOLUME, name, known.id if known is not None else EVERY_VOLUME)
        return next((self.read_only[key] for key in keys if key in self.read_only), "")


@dataclass
class _Folding:
    """What has been folded so far; each op is a method."""

    who: Membership
    catalogue: Catalogue
    refs: dict[tuple[str, str], list[RefVersion]] = field(default_factory=dict[tuple[str, str], list[RefVersion]])
    revs: dict[tuple[str, str], set[str]] = field(default_factory=dict[tuple[str, str], set[str]])  # ever used
    trees: dict[tuple[str, str], set[tuple[int, bytes]]] = field(  # (number, tree) ever pushed
        default_factory=dict[tuple[str, str], set[tuple[int, bytes]]]
    )
    removed: list[RefRemoved] = field(default_factory=list[RefRemoved])
    put_away: dict[int, dict[tuple[str, str], list[RefRemoved]]] = field(  # with the volume they are in
        default_factory=dict[int, dict[tuple[str, str], list[RefRemoved]]]
    )
    read_only: dict[str | int, str] = field(default_factory=dict[str | int, str])

    def volume_set(self, op: VolumeSet, entry: Entry, place: int) -> None:
        """Set options; the refs of a volume of models go and come back with it."""
        name = self.catalogue.shown_name(op.volume)
        removed = self.catalogue.set(op, entry, place)
        if removed is None or self.catalogue.mode(op.volume) != "models":
            return
        if removed:
            self.put_away[op.volume] = {
                key: [RefRemoved(version, entry.node, entry.time_ns) for version in self.refs.pop(key)]
                for key in [key for key in self.refs if key[0] == folded(name)]
            }
            return
        for key, gone in self.put_away.pop(op.volume, {}).items():
            self.refs[key] = [*[each.version for each in gone], *self.refs.get(key, [])]

    def may_publish(self, volume: str, entry: Entry) -> bool:
        """Say whether the author may publish in this volume, which has refs or does not exist yet."""
        id_ = self.catalogue.named(volume)
        holds_refs = id_ is None or self.catalogue.mode(id_) == "models"
        return holds_refs and self.catalogue.may_write(entry, id_)

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
        volume = folded(op.volume) if isinstance(op.volume, str) else op.volume
        self.read_only.setdefault(EVERY_VOLUME if volume == "" else volume, why)

    def take(self, entry: Entry) -> None:
        """Fold the ops of one entry that counts."""
        for place, op in enumerate(entry.ops):
            match op:
                case RefSet() if self.may_publish(op.volume, entry):
                    self.ref_set(op, entry)
                case RefRemove() if self.may_publish(op.volume, entry):
                    self.ref_remove(op, entry)
                case VolumeCreate():
                    self.catalogue.create(op, entry, place)
                case VolumeSet():
                    self.volume_set(op, entry, place)
                case RoleSet():
                    self.catalogue.set_role(op, entry, place)
                case SnapshotCreate():
                    self.catalogue.snapshot(op, entry)
                case SnapshotRemove():
                    self.catalogue.forget_snapshot(op, entry)
                case UnknownOp() if self.who.role_of(entry.node) in WRITERS:
                    self.unknown(op)
                case _:
                    pass  # who belongs to the cluster is known already, and files are folded by volume


def in_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries in the one order, each once."""
    ordered = sorted(entries, key=lambda entry: (*entry.order(), entry.signature))
    return tuple({entry.hash: entry for entry in reversed(ordered)}.values())[::-1]


def fold(entries: Iterable[Entry], cluster: bytes, before: Before | None = None) -> State:
    """Return the state of the cluster whose genesis entry has the hash `cluster`.

    Any order and any duplicates give the same state. Without that entry it is a state without members.
    """
    ordered = in_order(entries)
    who = membership(ordered, cluster, before)
    hearing = _hearing(ordered, who)
    catalogue = Catalogue(who, hearing)
    folding = _Folding(who=who, catalogue=catalogue)
    for entry in ordered:
        if who.counts(entry):
            folding.take(entry)
    refs = {
        key: tuple(sorted(versions, key=lambda version: version.number))
        for key, versions in folding.refs.items()
        if versions
    }
    put_away = [gone for keys in folding.put_away.values() for each in keys.values() for gone in each]
    volumes = catalogue.volumes()
    return State(
        cluster=cluster,
        cluster_name=who.cluster_name,
        members=who.members,
        removed_members=who.removed,
        volumes={folded(volume.name): volume for volume in volumes.values() if not volume.removed},
        volumes_by_id=volumes,
        rights=catalogue.rights(),
        taken=catalogue.snapshots(),
        who=who,
        refs=refs,
        refs_removed=(*folding.removed, *put_away),
        read_only=folding.read_only,
        lamport=max((entry.lamport for entry in ordered), default=0),
        entries=ordered,
        hearing=hearing,
        before=before,
    )


def _hearing(ordered: Iterable[Entry], who: Membership) -> Hearing:
    hearing = Hearing(who.before)
    for entry in ordered:
        for op in entry.ops:
            if isinstance(op, Heard):
                for heard in op.entries:
                    hearing.note(entry, heard)
            elif isinstance(op, RoleSet | VolumeSet):
                hearing.note(entry, entry.hash)
    return hearing
