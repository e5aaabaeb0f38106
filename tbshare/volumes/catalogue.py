"""The volumes of a cluster, their options, roles and snapshots: folded from ops in their one order. Pure.

A volume's id comes from the entry that made it, so two made with one name at once are two volumes: the later is
shown as `name.NODE`. Of two VolumeSets for one option the later holds, of two RoleSets for one node too.

What a node was allowed to do is judged at the place in the order where it did it, and by what it had heard of:
a role, or a volume's ownership, that was taken away binds it from where its own log says so (heard.py).
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from tbshare.content.block import named_hash
from tbshare.content.ref import MODELS, PART_LETTERS_MAX, folded
from tbshare.volumes.entry import (
    At,
    Entry,
    Mode,
    RoleSet,
    SnapshotCreate,
    SnapshotRemove,
    VolumeCreate,
    VolumeSet,
)
from tbshare.volumes.entry import Role as GivenRole
from tbshare.volumes.heard import Allows, Hearing, Said, allowed, taken
from tbshare.volumes.membership import Membership
from tbshare.volumes.policy import FIXED, Option, Policy, policy_of, understood

VOLUME_CONTEXT: Final = "tbshare 2026-11-23 volume id from entry and place"
PLACE_BYTES: Final = 2
MODELS_ID: Final = 0
WRITERS: Final = frozenset({"admin", "publish", "write"})

Role = GivenRole | Literal["none"]
Key = TypeVar("Key")
Shown = tuple[str, bytes]  # the name somebody chose, and who


def volume_id(entry_hash: bytes, place: int) -> int:
    """Return the id of the volume that the op at `place` of this entry made: 63 bits, never 0."""
    digest = named_hash(VOLUME_CONTEXT, [entry_hash, place.to_bytes(PLACE_BYTES, "big")])
    return int.from_bytes(digest[:8], "big") >> 1 or 1


@dataclass(frozen=True)
class Volume:
    """A named namespace; `name` is unique among the volumes."""

    id: int
    name: str
    mode: Mode
    policy: Policy
    author: bytes = b""
    time_ns: int = 0  # by the author's clock; for people
    entry: bytes = b""  # the hash of the one that made it
    options: tuple[tuple[str, Option], ...] = ()  # as the log has them, those of newer versions too
    removed_time_ns: int = 0

    @property
    def removed(self) -> bool:
        """Whether it was removed, and can still be brought back."""
        return self.policy.removed


@dataclass(frozen=True)
class Snapshot:
    """The state of a volume at these places of the logs; `name` is unique in the volume."""

    name: str
    heads: tuple[At, ...]
    author: bytes
    time_ns: int
    entry: bytes  # the hash of the one that made it


def _writes(in_cluster: str) -> Allows:
    return lambda role: (role or in_cluster) in WRITERS


def _administers(in_cluster: str) -> Allows:
    return lambda role: (role or in_cluster) == "admin"


@dataclass(frozen=True)
class Rights:
    """Who may do what in one volume: the roles given in it, and the owners it had, in the order of ops."""

    mode: Mode
    roles: Mapping[bytes, tuple[Said, ...]] = field(default_factory=dict[bytes, tuple[Said, ...]])
    owners: tuple[Said, ...] = ()  # as hex

    def role(self, node: bytes, in_cluster: GivenRole | None) -> Role:
        """Return the role, now, of a node that has this one in the cluster; None is no member."""
        given = self.roles.get(node)
        return _role(given, in_cluster)

    def may_write(self, node: bytes, in_cluster: GivenRole | None) -> bool:
        """Say whether the node may change files now; nobody does in a volume of published trees."""
        if self.mode == "models" or self.role(node, in_cluster) not in WRITERS:
            return False
        return self.mode == "media" or self.owners[-1].value == node.hex()

    def might_write(self, entry: Entry, in_cluster: GivenRole | None, hearing: Hearing) -> bool:
        """Say whether the author might change files when it wrote this entry."""
        if self.mode == "models" or in_cluster is None:
            return False
        stamp, heard, allows = entry.stamp(), hearing.by(entry), _writes(in_cluster)
        if not allowed(_until(self.roles.get(entry.node, ()), stamp), allows, heard, otherwise=allows("")):
            return False
        owners = _until(self.owners, stamp) if self.mode == "owner" else ()
        return allowed(owners, entry.node.hex().__eq__, heard, otherwise=self.mode == "media")

    def taken(self, node: bytes, in_cluster: GivenRole) -> list[bytes]:
        """Return the entries that took a right from a node which it would have without them."""
        given = self.roles.get(node, ())
        entries: list[bytes] = []
        for allows in (_writes(in_cluster), _administers(in_cluster)):
            entries += taken(given, allows, otherwise=allows(""))
        owners = self.owners if self.mode == "owner" else ()
        return entries + taken(owners, node.hex().__eq__, otherwise=False)

    def rests(self, node: bytes, in_cluster: GivenRole | None, stamp: bytes, hearing: Hearing) -> list[object]:
        """Return what the verdicts on entries of a node up to this stamp rest on."""

        def decide(said: tuple[Said, ...], allows: Allows) -> list[tuple[bytes, str]]:
            known = _until(said, stamp)
            return [
                (one.stamp, one.value)
                for one in known
                if allows(one.value) or hearing.until(node, one.entry, stamp)
            ]

        role, owners = in_cluster or "", self.owners if self.mode == "owner" else ()
        roles = decide(self.roles.get(node, ()), _writes(role))
        return [self.mode, role, roles, decide(owners, node.hex().__eq__)]


def _role(given: Sequence[Said] | None, in_cluster: GivenRole | None) -> Role:
    if in_cluster is None:
        return "none"
    return (given[-1].value if given else "") or in_cluster  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def _until(said: Sequence[Said], stamp: bytes) -> Sequence[Said]:
    return said[: bisect_left(said, stamp, key=_stamp_of)]


def _stamp_of(said: Said) -> bytes:
    return said.stamp


@dataclass
class _Making:
    """A volume while ops are folded."""

    id: int
    mode: Mode
    options: dict[str, Option]
    shown: Shown
    entry: Entry | None
    removed_time_ns: int = 0
    roles: dict[bytes, list[Said]] = field(default_factory=dict[bytes, list[Said]])
    owners: list[Said] = field(default_factory=list[Said])
    snapshots: dict[tuple[bytes, str], tuple[SnapshotCreate, Entry]] = field(
        default_factory=dict[tuple[bytes, str], tuple[SnapshotCreate, Entry]]
    )

    @property
    def author(self) -> bytes:
        return self.entry.node if self.entry else b""

    @property
    def removed(self) -> bool:
        return self.options.get("removed") is True

    def volume(self, name: str) -> Volume:
        return Volume(
            id=self.id,
            name=name,
            mode=self.mode,
            policy=policy_of(self.options),
            author=self.author,
            time_ns=self.entry.time_ns if self.entry else 0,
            entry=self.entry.hash if self.entry else b"",
            options=tuple(sorted(self.options.items())),
            removed_time_ns=self.removed_time_ns if self.removed else 0,
        )

    def rights(self) -> Rights:
        roles = {node: tuple(given) for node, given in self.roles.items()}
        return Rights(mode=self.mode, roles=roles, owners=tuple(self.owners))


class Catalogue:
    """Folds the ops about volumes; each has to come in its order, with the entry and the place in it."""

    def __init__(self, who: Membership, hearing: Hearing) -> None:
        self._who = who
        self._hearing = hearing
        models = _Making(MODELS_ID, "models", {}, (MODELS, b""), None)
        self._volumes: dict[int, _Making] = {MODELS_ID: models}
        self._ids: dict[str, int] | None = None  # by folded shown name, of those not removed

    # ---- what is asked while ops are folded, and afterwards ---------------------------------------------

    def named(self, name: str) -> int | None:
        """Return the id of the volume that is shown under this name now."""
        if self._ids is None:
            names = self._names()
            self._ids = {folded(names[id_]): id_ for id_, made in self._volumes.items() if not made.removed}
        return self._ids.get(folded(name))

    def shown_name(self, id_: int) -> str:
        """Return the name a volume is shown under now; "" when there is none."""
        return self._names().get(id_, "")

    def mode(self, id_: int) -> Mode:
        """Return the mode of a volume."""
        return self._volumes[id_].mode

    def may_write(self, entry: Entry, id_: int | None) -> bool:
        """Say whether the author may write, into a volume or only as to the cluster, as far as ops are folded."""
        role = self._who.role_of(entry.node)
        given = self._volumes[id_].roles.get(entry.node, ()) if id_ is not None else ()
        if role is None:
            return False
        allows = _writes(role)
        return allowed(given, allows, self._hearing.by(entry), otherwise=allows(""))

    def _administers(self, entry: Entry, id_: int) -> bool:
        role, given = self._who.role_of(entry.node), self._volumes[id_].roles.get(entry.node, ())
        if role is None or role == "admin":
            return role is not None
        return allowed(given, _administers(role), self._hearing.by(entry), otherwise=False)

    def _names(self) -> dict[int, str]:
        order = sorted(self._volumes.values(), key=lambda made: made.removed)  # a removed one's name is free again
        return _unique({made.id: made.shown for made in order}, self._who.first_names)

    def volumes(self) -> dict[int, Volume]:
        """Return all volumes, in the order they were made."""
        names = self._names()
        return {id_: made.volume(names[id_]) for id_, made in self._volumes.items()}

    def rights(self) -> dict[int, Rights]:
        """Return who may do what, by volume."""
        return {id_: made.rights() for id_, made in self._volumes.items()}

    def snapshots(self) -> dict[int, tuple[Snapshot, ...]]:
        """Return the snapshots of each volume that has some, in the order they were made."""
        return {id_: self._snapshots(made) for id_, made in self._volumes.items() if made.snapshots}

    def _snapshots(self, made: _Making) -> tuple[Snapshot, ...]:
        shown = {key: (op.name, entry.node) for key, (op, entry) in made.snapshots.items()}
        names = _unique(shown, self._who.first_names)
        return tuple(
            [
                Snapshot(names[key], op.heads, entry.node, entry.time_ns, entry.hash)
                for key, (op, entry) in made.snapshots.items()
            ]
        )

    # ---- ops ----------------------------------------------------------------------------------------------

    def create(self, op: VolumeCreate, entry: Entry, place: int) -> None:
        """Make a volume."""
        if self._who.role_of(entry.node) not in WRITERS:
            return
        id_ = volume_id(entry.hash, place)
        if id_ in self._volumes:
            return
        options = {name: value for name, value in op.options.items() if name != "removed"}
        made = _Making(id_, op.mode, options, (op.name, entry.node), entry)
        made.owners.append(Said(_stamp(entry, place), policy_of(options).owner or entry.node.hex(), entry.hash))
        self._volumes[id_] = made
        self._ids = None

    def set(self, op: VolumeSet, entry: Entry, place: int) -> bool | None:
        """Give a volume options; return whether it is removed now when that has changed, else None."""
        made = self._volumes.get(op.volume)
        if made is None or not self._administers(entry, op.volume):
            return None
        before = made.removed
        made.options.update({name: value for name, value in op.options.items() if name not in FIXED})
        owner = op.options.get("owner")
        if isinstance(owner, str) and understood("owner", owner):
            made.owners.append(Said(_stamp(entry, place), owner or made.author.hex(), entry.hash))
        if made.removed == before:
            return None
        made.removed_time_ns = entry.time_ns
        self._ids = None
        return made.removed

    def set_role(self, op: RoleSet, entry: Entry, place: int) -> None:
        """Give a node a role in a volume."""
        made = self._volumes.get(op.volume)
        if made is not None and self._administers(entry, op.volume):
            made.roles.setdefault(op.node, []).append(Said(_stamp(entry, place), op.role, entry.hash))

    def snapshot(self, op: SnapshotCreate, entry: Entry) -> None:
        """Name a state of a volume of files."""
        made = self._volumes.get(op.volume)
        if made is not None and made.mode != "models" and self.may_write(entry, op.volume):
            made.snapshots.setdefault((entry.hash, folded(op.name)), (op, entry))

    def forget_snapshot(self, op: SnapshotRemove, entry: Entry) -> None:
        """Forget a snapshot: whoever made it may, and whoever administers the volume."""
        made = self._volumes.get(op.volume)
        key = (op.entry, folded(op.name))
        if made is None or key not in made.snapshots:
            return
        if made.snapshots[key][1].node == entry.node or self._administers(entry, op.volume):
            del made.snapshots[key]


def _stamp(entry: Entry, place: int) -> bytes:
    return entry.stamp() + place.to_bytes(PLACE_BYTES, "big")


def _unique(wished: Mapping[Key, Shown], node_names: Mapping[bytes, str]) -> dict[Key, str]:
    """Return a name for each; where one is taken, the later gets `.NODE` behind it, and then a number."""
    names: dict[Key, str] = {}
    taken: set[str] = set()
    for key, (wish, author) in wished.items():
        name, number = wish, 1
        while folded(name) in taken:
            behind = f".{node_names.get(author, author[:4].hex())}{f'-{number}' if number > 1 else ''}"
            name, number = f"{wish[: PART_LETTERS_MAX - len(behind)]}{behind}", number + 1
        taken.add(folded(name))
        names[key] = name
    return names
