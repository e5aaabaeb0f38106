"""Volumes on the control socket: making and setting them, their conflicts, locks, snapshots and changes; drain."""

from tbshare.wire.files import CopyReport, VersionLine
from tbshare.wire.parts import Event, Line, Params, Result, Size
from tbshare.wire.where import Where


class VolumeListParams(Params, frozen=True):
    """For volume_list: `removed` lists those too whose grace time is not over."""

    removed: bool = False


class RoleLine(Line, frozen=True):
    """What a node may do in a volume. `role`: read | write | publish | admin | none."""

    node: str
    role: str
    own: bool = False  # given for this volume; else it is the node's role in the cluster


class VolumeLine(Line, frozen=True):
    """A volume; `mode`: models | media | owner."""

    name: str
    mode: str
    refs: int = 0
    size_bytes: Size = 0  # logical, without history
    text: str = ""  # why it is read-only, or was removed
    id: str = ""  # 16 hex digits; empty for `models`
    files: Size = 0
    bytes_here: Size = 0
    conflicts: int = 0
    snapshots: int = 0
    role: str = ""  # of this node
    removed: bool = False
    owner: str = ""  # the one node that writes, of mode owner
    options: dict[str, str] = {}  # as `volume set` takes them, defaults too
    roles: list[RoleLine] = []  # filled in by volume_show


class VolumeList(Result, frozen=True):
    """The volumes, by name."""

    volumes: list[VolumeLine]


class VolumeCreateParams(Params, frozen=True):
    """For volume_create. `options` are texts as the user types them: `volumes/policy.py` knows them.

    `source`: an absolute path of this machine whose files are taken in; the same call again takes that up where it
    was (a volume of this name and mode that is there already is then no error). `move` adopts the files.
    """

    name: str
    mode: str = "media"
    owner: str = ""  # a node's name or key prefix; of mode owner; empty is this node
    options: dict[str, str] = {}
    roles: dict[str, str] = {}  # node -> role
    source: bytes = b""
    move: bool = False


class VolumeMade(Result, frozen=True):
    """The volume that there is now, and what was taken in."""

    volume: VolumeLine
    already: bool = False
    copied: CopyReport | None = None


class VolumeSetParams(Params, frozen=True):
    """For volume_set: what is named is changed, the rest stays."""

    name: str
    owner: str = ""
    options: dict[str, str] = {}
    roles: dict[str, str] = {}


class VolumeNameParams(Params, frozen=True):
    """For volume_show and volume_restore."""

    name: str


class VolumeReport(Result, frozen=True):
    """One volume."""

    volume: VolumeLine


class VolumeRemoveParams(Params, frozen=True):
    """For volume_remove: without `yes` nothing is done and the report says what would be."""

    name: str
    yes: bool = False


class VolumeRemoved(Result, frozen=True):
    """What goes, and how long `volume restore` brings it back."""

    volume: VolumeLine
    removed: bool
    grace_seconds: float = 0.0
    warnings: list[str] = []  # open files, locks held, bytes that are only here


class ConflictsParams(Params, frozen=True):
    """For conflicts: of one volume, or of all."""

    volume: str = ""


class ConflictLine(Line, frozen=True):
    """What is shown side by side. `kind`: versions (heads of one file) | names (several files).

    The first of `shown` has the name itself.
    """

    where: Where
    kind: str
    shown: list[VersionLine]


class ConflictList(Result, frozen=True):
    """All that waits for `resolve`, by path."""

    conflicts: list[ConflictLine]
    total: Size = 0  # when there are more than were listed


class ResolveParams(Params, frozen=True):
    """For resolve. `keep`: the name or key prefix of a node, the id of a version, or a name as it is shown."""

    where: Where
    keep: bytes


class Resolved(Result, frozen=True):
    """Which version has the name now; the others stay in the history."""

    where: Where
    version: str
    author: str
    others: int = 0


class LocksParams(Params, frozen=True):
    """For locks: of one volume, or of all."""

    volume: str = ""


class LockLine(Line, frozen=True):
    """A lease. `kind`: file | bundle | directory."""

    where: Where
    node: str  # who holds it
    kind: str = "file"
    left_seconds: float = 0.0  # until it ends, unless it is renewed
    granted_by: str = ""
    here: bool = False  # held by this node


class LockList(Result, frozen=True):
    """The leases this node knows of."""

    locks: list[LockLine]


class SnapshotParams(Params, frozen=True):
    """For snapshot_create and snapshot_remove; a new one without a name is named after the time."""

    volume: str
    name: str = ""


class SnapshotListParams(Params, frozen=True):
    """For snapshot_list."""

    volume: str


class SnapshotLine(Line, frozen=True):
    """A snapshot: a place in the log."""

    volume: str
    name: str
    author: str
    when_ns: int


class Snapshot(Result, frozen=True):
    """The snapshot that was made, or removed."""

    snapshot: SnapshotLine


class SnapshotList(Result, frozen=True):
    """The snapshots of a volume, newest first."""

    snapshots: list[SnapshotLine]


class WatchParams(Params, frozen=True):
    """For watch: `Changed` events of a volume, or of what is at a path and below, until the caller leaves."""

    where: Where


class Changed(Event, frozen=True, tag="changed"):
    """Something in a volume is another than before. `kind`: file | directory | bundle | link.

    `what`: created | saved | forked | moved (it was at `before`) | removed | described (its attributes are others)
    | lost: the reader was too slow, and must look for itself. What is moved and saved at once is told twice.
    """

    where: Where
    what: str
    before: Where | None = None
    kind: str = "file"
    version: str = ""
    author: str = ""
    size_bytes: Size = 0
    when_ns: int = 0
    here: bool = False  # done on this node


class DrainParams(Params, frozen=True):
    """For drain: with `wait` the call lasts until this node may be unplugged."""

    wait: bool = True


class Draining(Event, frozen=True, tag="draining"):
    """What is still nowhere else."""

    versions_left: Size
    bytes_left: Size
    entries_left: Size = 0  # of the log
    rate: float = 0.0  # bytes per second
    eta_seconds: float | None = None
    text: str = ""  # what it waits for: nobody is connected


class DrainReport(Result, frozen=True):
    """Whether this node may be unplugged: every version it holds is on another node, synced there."""

    safe: bool
    versions_left: Size = 0
    bytes_left: Size = 0
    entries_left: Size = 0
    holders: list[str] = []  # names of the nodes that have what was here
    text: str = ""


class UndrainParams(Params, frozen=True):
    """For undrain."""
