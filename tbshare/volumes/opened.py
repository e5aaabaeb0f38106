"""One volume of this node: its tables, and what an operation on it needs."""

from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path as FolderPath
from threading import Lock
from typing import Final, TypeVar

from tbshare.errors import QuotaExceeded, VolumeReadOnly
from tbshare.volumes.asof import counted
from tbshare.volumes.batch import OPS_BYTES_MAX
from tbshare.volumes.claims import Claims
from tbshare.volumes.entry import OPS_MAX, Entry, FileOp, encode_op
from tbshare.volumes.fold import State, Volume
from tbshare.volumes.ids import Ids
from tbshare.volumes.item import TreeAccess
from tbshare.volumes.log import Log
from tbshare.volumes.policy import Policy
from tbshare.volumes.shown import clash_key, may_be_generated
from tbshare.volumes.tables import Tables

Looked = TypeVar("Looked", bound="Look")
FOLDS_KNOWN: Final = 64
STEPS_KNOWN: Final = 1000  # directories that paths went through lately
AUTHOR_BYTES: Final = 8  # of a node's key, in the rows


@dataclass(frozen=True)
class Look:
    """What an operation found, and what it must have for itself from then on until its ops are committed."""

    alone: frozenset[Hashable]
    together: frozenset[Hashable]
    rests: frozenset[int] | None = None  # files and directories that decide what was found; None: more than these


@dataclass
class Shared:
    """What all volumes of a node have in common."""

    log: Log
    node: bytes
    ids: Ids
    trees: TreeAccess
    time_ns: Callable[[], int]
    clock: Callable[[], float]  # monotonic, in seconds
    folder: FolderPath | None  # where tables are; None keeps them in memory
    catch_up: Callable[[], None]  # folds what the log has and the tables have not
    state: State  # replaced when an op of the cluster was committed; reading it waits for nobody


@dataclass
class Opened:
    """A volume with its tables; `frozen` says why nothing can ever be written through this one, a snapshot."""

    shared: Shared
    id: int
    tables: Tables
    frozen: str = ""
    damage: str = ""  # why the tables are not what the log says
    ticked: float = 0.0  # the clock when the volume's own clock was last told
    folds: int = 0  # how often something was folded
    touched: tuple[frozenset[int] | None, ...] = ()  # by each of the last folds; None: directories went elsewhere
    makings: int = 0  # how often the tables were made anew
    claims: Claims = field(default_factory=Claims)
    snapshots: "dict[tuple[bytes, int], Opened]" = field(  # by the entry that made them, and `makings`
        default_factory=dict[tuple[bytes, int], "Opened"]
    )
    snapshots_lock: Lock = field(default_factory=Lock)
    _known: Volume | None = None  # as it was last
    _pending_bytes: int = 0
    _steps: dict[int, dict[bytes, int]] = field(default_factory=dict[int, dict[bytes, int]])  # directory -> in it
    _steps_lock: Lock = field(default_factory=Lock)
    _pending_lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._known = self.shared.state.volume_by_id(self.id)

    @property
    def volume(self) -> Volume:
        """The volume as the cluster has it now; as removed when what made it counts for nothing any more."""
        volume = self.shared.state.volume_by_id(self.id)
        if volume is not None:
            self._known = volume
            return volume
        assert self._known is not None, "tables are opened for volumes that there are"
        return replace(self._known, policy=replace(self._known.policy, removed=True))

    @property
    def policy(self) -> Policy:
        """The options of the volume."""
        return self.volume.policy

    @property
    def case_sensitive(self) -> bool:
        """Whether names that differ in case alone are two."""
        return self.policy.case == "sensitive"

    def key_of(self, name: bytes) -> bytes:
        """Return what names of this volume are compared by."""
        return name if self.case_sensitive else clash_key(name)

    def why_read_only(self) -> str:
        """Return why this node may not write here, or ""."""
        state, volume = self.shared.state, self.volume
        if self.frozen or self.damage:
            return self.frozen or self.damage
        if volume.removed:
            return f"volume {volume.name} was removed"
        newer = state.why_read_only(volume.name)
        if newer:
            return newer
        if not state.may_write(self.id, self.shared.node):
            role = state.role(self.shared.node, self.id)
            who = "its owner writes it" if volume.mode == "owner" else f"this node's role in it is {role}"
            return f"volume {volume.name} takes no writes from this node: {who}"
        return ""

    def append(self, ops: Sequence[FileOp]) -> Entry:
        """Commit ops as one entry; VolumeReadOnly."""
        if self.damage:
            self.shared.catch_up()  # there may be room again
        why = self.why_read_only()
        if why:
            raise VolumeReadOnly(why, cure="tbshare volume ls")
        entry = self.shared.log.append(ops)
        if self.damage:
            raise VolumeReadOnly(f"{self.damage}; what was saved is in the log, and shows when there is room")
        if not counted(self.shared.state, self.id, entry):  # another role came between the look and the commit
            raise VolumeReadOnly(self.why_read_only() or "this did not count", cure="tbshare volume ls")
        return entry

    @contextmanager
    def settled(self, look: Callable[[], Looked]) -> Generator[Looked, None, None]:
        """Look, claim what was found, and look again if anything was folded in between."""
        while True:
            folds, looked = self.folds, look()
            with self.claims.hold(looked.alone, looked.together):
                if self.folds != folds and self._touches(looked, folds):
                    again = look()
                    if not (again.alone <= looked.alone and again.together <= looked.together | looked.alone):
                        continue
                    looked = again
                yield looked
                return

    def folded(self, touched: frozenset[int] | None) -> None:
        """Note a fold, and what it touched."""
        with self._steps_lock:
            self.touched = (*self.touched[1 - FOLDS_KNOWN :], touched)
            self.folds += 1
            for parent in list(self._steps) if touched is None else touched:
                self._steps.pop(parent, None)

    def step(self, parent: int, name: bytes) -> int | None:
        """Return the directory that a directory shows under a name; None when that must be looked up."""
        return self._steps.get(parent, {}).get(name)

    def note_step(self, parent: int, name: bytes, directory: int, folds: int) -> None:
        """Remember what was looked up, if nothing was folded since `folds`."""
        with self._steps_lock:
            if self.folds == folds and not may_be_generated(name):  # such a name hangs on more than its directory
                if len(self._steps) >= STEPS_KNOWN:
                    self._steps.clear()
                self._steps.setdefault(parent, {})[name] = directory

    def _touches(self, look: Look, folds: int) -> bool:
        """Say whether a fold since that one may have changed what was found."""
        since, touched = self.folds - folds, self.touched
        if look.rests is None or since >= min(FOLDS_KNOWN, len(touched)):
            return True
        return any(one is None or not one.isdisjoint(look.rests) for one in touched[-since - 1 :])

    @contextmanager
    def room_for(self, more_bytes: int) -> Generator[None, None, None]:
        """Hold room in the quota while a save is committed; QuotaExceeded when there is none."""
        quota = self.policy.quota_bytes
        with self._pending_lock:
            used = self.tables.totals()[1] + self._pending_bytes
            if quota and more_bytes > 0 and used + more_bytes > quota:
                raise QuotaExceeded(
                    f"volume {self.volume.name} has {used} of its {quota} bytes in use, "
                    f"and this needs {more_bytes} more",
                    cure=f"tbshare volume set {self.volume.name} quota=SIZE, or remove something",
                )
            self._pending_bytes += max(more_bytes, 0)
        try:
            yield
        finally:
            with self._pending_lock:
                self._pending_bytes -= max(more_bytes, 0)

    def node_name(self, author: bytes) -> str:
        """Return the name of the node whose key starts with these bytes."""
        state, node = self.shared.state, self.node_of(author)
        member = state.members.get(node) or state.removed_members.get(node)
        return member.name if member is not None else author[:4].hex()

    def node_of(self, author: bytes) -> bytes:
        """Return the id of the node whose key starts with these bytes; the bytes when nobody's does."""
        state = self.shared.state
        for node in (*state.members, *state.removed_members):
            if node.startswith(author):
                return node
        return author


def parts_of(ops: Iterable[FileOp]) -> list[list[FileOp]]:
    """Return ops in order, in lists that each fit an entry."""
    parts: list[list[FileOp]] = []
    size = 0
    for op in ops:
        length = len(encode_op(op))
        if not parts or len(parts[-1]) == OPS_MAX or size + length > OPS_BYTES_MAX:
            parts.append([])
            size = 0
        parts[-1].append(op)
        size += length
    return parts
