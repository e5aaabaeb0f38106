"""The volumes of a cluster, their options, roles and snapshots: folded from ops in their one order. Pure.

A volume's id comes from the entry that made it, so two made with one name at once are two volumes: the later is
shown as `name.NODE`. Of two VolumeSets for one option the later holds, of two RoleSets for one node too.

What a node was allowed to do is judged at the place in the order where it did it: taking its role away makes void
what comes after that in the order, never what came before.
"""

from bisect import bisect_left
from collections.abc import Mapping
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


@dataclass(frozen=True)
class Timeline:
    """Values in the order of the ops that gave them."""

    stamps: tuple[bytes, ...] = ()
    values: tuple[str, ...] = ()

    def at(self, stamp: bytes | None) -> str:
        """Return the value that holds at `stamp`, the last one without; "" before the first."""
        place = len(self.stamps) if stamp is None else bisect_left(self.stamps, stamp)
        return self.values[place - 1] if place else ""

    def until(self, stamp: bytes) -> list[tuple[bytes, str]]:
        """Return what an answer of `at` up to `stamp` depends on."""
        return [(when, value) for when, value in zip(self.stamps, self.values, strict=True) if when < stamp]


@dataclass(frozen=True)
class Rights:
    """Who may do what in one volume: the roles given in it, and the owners it had."""

    mode: Mode
    roles: Mapping[bytes, Timeline] = field(default_factory=dict[bytes, Timeline])
    owners: Timeline = Timeline()  # as hex

    def role(self, node: bytes, in_cluster: GivenRole | None, stamp: bytes | None = None) -> Role:
        """Return the role of a node that has this one in the cluster; None is no member."""
        if in_cluster is None:
            return "none"
        given = self.roles.get(node)
        return (given.at(stamp) if given is not None else "") or in_cluster  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    def may_write(self, node: bytes, in_cluster: GivenRole | None, stamp: bytes | None = None) -> bool:
        """Say whether the node may change files; nobody does in a volume of published trees."""
        if self.mode == "models" or self.role(node, in_cluster, stamp) not in WRITERS:
            return False
        return self.mode == "media" or self.owners.at(stamp) == node.hex()


@dataclass
class _Making:
    """A volume while ops are folded."""

    id: int
    mode: Mode
    options: dict[str, Option]
    shown: Shown
    entry: Entry | None
    removed_time_ns: int = 0
    roles: dict[bytes, list[tuple[bytes, str]]] = field(default_factory=dict[bytes, list[tuple[bytes, str]]])
    owners: list[tuple[bytes, str]] = field(default_factory=list[tuple[bytes, str]])
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
        roles = {node: _timeline(given) for node, given in self.roles.items()}
        return Rights(mode=self.mode, roles=roles, owners=_timeline(self.owners))


def _timeline(given: list[tuple[bytes, str]]) -> Timeline:
    ordered = sorted(given)
    return Timeline(tuple([stamp for stamp, _ in ordered]), tuple([value for _, value in ordered]))


class Catalogue:
    """Folds the ops about volumes; each has to come in its order, with the entry and the place in it."""

    def __init__(self, who: Membership) -> None:
        self._who = who
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

    def role(self, node: bytes, id_: int | None) -> Role:
        """Return the role of a node, in a volume or only in the cluster, as far as ops are folded."""
        role: Role = self._who.role_of(node) or "none"
        given = self._volumes[id_].roles.get(node) if id_ is not None else None
        return (given[-1][1] or role) if given and role != "none" else role  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    def _administers(self, node: bytes, id_: int) -> bool:
        return "admin" in (self._who.role_of(node), self.role(node, id_))

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
        made.owners.append((_stamp(entry, place), policy_of(options).owner or entry.node.hex()))
        self._volumes[id_] = made
        self._ids = None

    def set(self, op: VolumeSet, entry: Entry, place: int) -> bool | None:
        """Give a volume options; return whether it is removed now when that has changed, else None."""
        made = self._volumes.get(op.volume)
        if made is None or not self._administers(entry.node, op.volume):
            return None
        before = made.removed
        made.options.update({name: value for name, value in op.options.items() if name not in FIXED})
        owner = op.options.get("owner")
        if isinstance(owner, str) and understood("owner", owner):
            made.owners.append((_stamp(entry, place), owner or made.author.hex()))
        if made.removed == before:
            return None
        made.removed_time_ns = entry.time_ns
        self._ids = None
        return made.removed

    def set_role(self, op: RoleSet, entry: Entry, place: int) -> None:
        """Give a node a role in a volume."""
        made = self._volumes.get(op.volume)
        if made is not None and self._administers(entry.node, op.volume):
            made.roles.setdefault(op.node, []).append((_stamp(entry, place), op.role))

    def snapshot(self, op: SnapshotCreate, entry: Entry) -> None:
        """Name a state of a volume of files."""
        made = self._volumes.get(op.volume)
        if made is not None and made.mode != "models" and self.role(entry.node, op.volume) in WRITERS:
            made.snapshots.setdefault((entry.hash, folded(op.name)), (op, entry))

    def forget_snapshot(self, op: SnapshotRemove, entry: Entry) -> None:
        """Forget a snapshot: whoever made it may, and whoever administers the volume."""
        made = self._volumes.get(op.volume)
        key = (op.entry, folded(op.name))
        if made is None or key not in made.snapshots:
            return
        if made.snapshots[key][1].node == entry.node or self._administers(entry.node, op.volume):
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
