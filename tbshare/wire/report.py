"""What the daemon answers on the control socket: events on the way, results, and the lines both are made of.

Ids of nodes and trees are lower-case hex, so that they can be printed; sizes are bytes, times are seconds, moments
are seconds since 1970 UTC. What is asked stands in `local.py`; files and volumes have `files.py` and `volume.py`.
"""

from tbshare.wire.files import Chunk, Copying
from tbshare.wire.mount import MountForget, MountItems, MountVolumesChanged
from tbshare.wire.parts import Event, Line, Result, Size
from tbshare.wire.volume import Changed, Draining


class HelloReport(Result, frozen=True):
    """The daemon's side of it."""

    level: int
    version: str
    pid: int


class Done(Result, frozen=True):
    """It is done and there is nothing more to say than `text`."""

    text: str = ""


class Warned(Event, frozen=True, tag="warning"):
    """Something the user should know: a header that does not parse, a file left out."""

    text: str


class Noted(Event, frozen=True, tag="note"):
    """Something good to know: default excludes, a layout chosen."""

    text: str


class Started(Event, frozen=True, tag="started"):
    """The work has this id in `ps`, `stop` and `wait`."""

    id: str


class LinkLine(Line, frozen=True):
    """One path to a node."""

    kind: str  # control | lane
    address: str
    direct: bool = False  # a cable between the two
    round_trip_seconds: float | None = None
    rate: float = 0.0  # bytes per second, now


class NodeLine(Line, frozen=True):
    """A node of the cluster. `state`: here (this one) | connected | away | removed."""

    name: str
    id: str
    state: str
    addresses: list[str] = []
    links: list[LinkLine] = []
    version: str = ""
    accept: str = "all"  # all | on-demand | none
    free_bytes: Size | None = None
    seen_seconds: float | None = None  # moment it was last heard


class NodeList(Result, frozen=True):
    """All nodes, this one first."""

    nodes: list[NodeLine]


class Code(Event, frozen=True, tag="code"):
    """The code to type on the new node."""

    code: str
    expires_seconds: float
    addresses: list[str]


class TryFailed(Event, frozen=True, tag="try-failed"):
    """Somebody typed a wrong code."""

    tries_left: int
    address: str = ""


class Paired(Result, frozen=True):
    """The other side's node, and the cluster as it now is."""

    name: str
    id: str
    nodes: list[str] = []  # names of all nodes, both sides included


class Attention(Line, frozen=True):
    """Something that needs the user. `cure` is a command."""

    kind: str  # conflict | corrupt | one-copy | away | disk | link | gc | ...
    text: str
    cure: str = ""


class Feature(Line, frozen=True):
    """An optional part: the native module, an extra."""

    name: str
    present: bool
    text: str = ""


class MountLine(Line, frozen=True):
    """A live mount. `lacking`: what this front cannot do, in words; `volumes` empty: all of them."""

    directory: str
    pid: int
    front: str
    lacking: list[str] = []
    volumes: list[str] = []


class StatusReport(Result, frozen=True):
    """The state of this node and what it knows of the others."""

    attention: list[Attention]
    node: NodeLine
    nodes: list[NodeLine]  # the others
    cluster: str
    version: str
    pid: int
    home: str
    store_path: str
    port: int
    uptime_seconds: float
    refs: int = 0
    stored_bytes: Size = 0
    free_bytes: Size = 0
    reserved_bytes: Size = 0
    keep_free_bytes: Size = 0
    features: list[Feature] = []
    processes: int = 0
    survives_reboot: bool = False
    mounts: list[MountLine] = []


class SpaceLine(Event, frozen=True, tag="space"):
    """What the push means for a node: `needs 470 GB, 310 free: keeps on demand`."""

    node: str
    text: str
    fits: bool = True


class Ingest(Event, frozen=True, tag="ingest"):
    """Progress of taking the files in."""

    bytes_done: Size
    bytes_total: Size
    files_done: Size = 0
    files_total: Size = 0
    path: str = ""
    rate: float = 0.0  # bytes per second


class Published(Event, frozen=True, tag="published"):
    """The ref is in the log. `already` names the ref that had the same content: nothing moved."""

    ref: str
    tree: str
    already: bool = False


class SourceLine(Line, frozen=True):
    """From whom a node's bytes come."""

    name: str
    rate: float
    bytes: Size


class NodeProgress(Line, frozen=True):
    """How far a node is with a tree. `state`: waiting | fetching | durable | failed | declined | away."""

    name: str
    id: str
    state: str
    bytes_total: Size = 0
    bytes_present: Size = 0
    bytes_moved: Size = 0
    bytes_reused: Size = 0  # were there already: dedup
    rate: float = 0.0
    eta_seconds: float | None = None
    sources: list[SourceLine] = []
    reason: str = ""


class Nodes(Event, frozen=True, tag="nodes"):
    """Progress of every target, again and again."""

    nodes: list[NodeProgress]


class PushReport(Result, frozen=True):
    """How a push or pull ended. Names in `pending` and `failed` make the exit status 3.

    `seconds_moving` is from the publication to the last durable node; `rate_best` is the best rate measured from
    one node to one other, 0 when nothing moved.
    """

    ref: str
    tree: str
    bytes: Size = 0
    files: Size = 0
    already: bool = False
    dry_run: bool = False
    id: str = ""
    seconds: float = 0.0
    seconds_ingest: float = 0.0
    seconds_moving: float = 0.0
    rate_best: float = 0.0
    nodes: list[NodeProgress] = []
    blocks_total: Size = 0
    blocks_new: Size = 0  # not known to this node before
    bytes_new: Size = 0
    bytes_unique: Size = 0  # without what repeats inside the tree
    pending: list[str] = []
    failed: list[str] = []
    files_moved: Size = 0  # adopted by --move, or put back by --undo


class RefLine(Line, frozen=True):
    """One rev of a name. `here`: whole | partial | no."""

    ref: str
    volume: str
    name: str
    rev: int
    size_bytes: Size
    files: Size
    tree: str
    when_seconds: float
    author: str
    labels: list[str] = []  # a hub revision, and such
    on: list[str] = []  # names of the nodes that hold it whole
    here: str = "no"
    pinned: bool = False
    bytes_here: Size = 0


class RefList(Result, frozen=True):
    """The refs, by volume and name, newest rev first."""

    refs: list[RefLine]


class FileLine(Line, frozen=True):
    """One file of a tree. `layout`: exact | shifted | packed | "" when it is not here."""

    path: str
    size_bytes: Size
    object: str
    kind: str = "file"  # file | link | directory
    layout: str = ""
    format: str = ""  # safetensors | gguf | ""
    tensors: int = 0
    aligned: int = 0  # tensors that can be mapped as they lie
    bytes_here: Size = 0
    text: str = ""  # why a header was not understood; the target of a link


class HolderLine(Line, frozen=True):
    """A node that has bytes of it."""

    name: str
    id: str
    bytes_present: Size
    pinned: bool = False


class ShowReport(Result, frozen=True):
    """What it is, where it lies and who has it."""

    line: RefLine
    files: list[FileLine]
    files_total: Size
    holders: list[HolderLine] = []
    blocks: Size = 0
    bytes_unique: Size = 0
    tensors: int = 0
    aligned: int = 0
    directory: str = ""  # of `path`, when it has been made
    warnings: list[str] = []


class PathReport(Result, frozen=True):
    """Where it is. `left_out` are files not materialised without `allow_code`."""

    ref: str
    directory: str
    left_out: list[str] = []


class RemoveReport(Result, frozen=True):
    """What goes, from where, and when the bytes are freed."""

    ref: str
    removed: bool
    nodes: list[str] = []
    size_bytes: Size = 0
    bytes_freed: Size = 0  # once the grace time is over; shared blocks stay
    grace_seconds: float = 0.0
    warnings: list[str] = []


class KeepReport(Result, frozen=True):
    """What pin, unpin or evict came to."""

    ref: str
    pinned: bool
    bytes_here: Size = 0
    bytes_freed: Size = 0
    text: str = ""


class HeldLine(Line, frozen=True):
    """Garbage that cannot go yet, and who holds it back."""

    by: str
    bytes: Size
    text: str = ""


class GcReport(Result, frozen=True):
    """What was freed."""

    objects: int
    bytes_freed: Size
    bytes_waiting: Size = 0  # for the grace time
    held: list[HeldLine] = []
    seconds: float = 0.0


class Checked(Event, frozen=True, tag="checked"):
    """Progress of verify."""

    bytes_done: Size
    bytes_total: Size
    corrupt: int = 0
    rate: float = 0.0


class Problem(Line, frozen=True):
    """A block that is not what it should be."""

    path: str
    block: str
    text: str
    ref: str = ""
    repaired: bool = False


class VerifyReport(Result, frozen=True):
    """Blocks found corrupt, put in quarantine, fetched again."""

    bytes: Size
    blocks: Size
    corrupt: int = 0
    quarantined: int = 0
    repaired: int = 0
    seconds: float = 0.0
    problems: list[Problem] = []


class DuLine(Line, frozen=True):
    """What one ref takes here. `unique_bytes` would be freed were it alone evicted."""

    ref: str
    logical_bytes: Size
    here_bytes: Size
    unique_bytes: Size = 0
    pinned: bool = False


class DiskUse(Result, frozen=True):
    """What the store takes. `shared_bytes` are on disk once for several files (reflink)."""

    path: str
    logical_bytes: Size
    unique_bytes: Size
    shared_bytes: Size
    disk_bytes: Size
    reclaimable_bytes: Size
    quarantine_bytes: Size = 0
    free_bytes: Size = 0
    reserved_bytes: Size = 0
    keep_free_bytes: Size = 0
    lines: list[DuLine] = []


class ProcessLine(Line, frozen=True):
    """Something that goes on. `kind`: push | pull | fetch | run | verify."""

    id: str
    kind: str
    what: str
    state: str
    started_seconds: float
    bytes_done: Size = 0
    bytes_total: Size = 0
    rate: float = 0.0
    eta_seconds: float | None = None
    nodes: list[NodeProgress] = []
    text: str = ""


class ProcessList(Result, frozen=True):
    """All that goes on here, oldest first."""

    processes: list[ProcessLine]


class WaitReport(Result, frozen=True):
    """How it ended. `state`: done | pending | failed | stopped."""

    id: str
    kind: str
    what: str
    state: str
    seconds: float = 0.0
    text: str = ""
    push: PushReport | None = None


class Ready(Event, frozen=True, tag="ready"):
    """The model can be used. Bytes mapped in place against bytes that had to be copied."""

    seconds: float
    mapped_bytes: Size
    copied_bytes: Size = 0
    tensors: int = 0
    copied_tensors: int = 0
    note: str = ""


class Text(Event, frozen=True, tag="text"):
    """The next piece of the answer."""

    text: str


class RunReport(Result, frozen=True):
    """How a run ended. `finish`: stop | length."""

    tokens: int
    prompt_tokens: int = 0
    seconds_first: float = 0.0  # from the prompt to the first token
    seconds: float = 0.0
    rate: float = 0.0  # tokens per second
    finish: str = "stop"


AnyEvent = (
    Warned
    | Noted
    | Started
    | Code
    | TryFailed
    | SpaceLine
    | Ingest
    | Published
    | Nodes
    | Checked
    | Ready
    | Text
    | Chunk
    | Copying
    | Changed
    | Draining
    | MountForget
    | MountVolumesChanged
    | MountItems
)

# When a client reads slowly, a newer one of these replaces the older; all other events are kept.
REPLACEABLE: tuple[type[Event], ...] = (Ingest, Nodes, Checked, Copying, Draining)
