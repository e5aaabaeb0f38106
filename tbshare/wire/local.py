"""What a program on this machine says to its own daemon, over the control socket.

The socket is `run/control.sock` in the home directory. On it go envelopes (a 4-byte big-endian length, then one
msgpack message): the client sends `Request`, the daemon answers with zero or more `Answer.event` and then one
`Answer.result` or `Answer.error` that carries the request's id. The first request is `hello`. Closing the
connection cancels its calls.

`METHODS` is the whole list: a name, what goes in, what comes out. Fields added later need defaults. What comes out
stands in `report.py`; files and volumes have modules of their own, for both.
"""

import msgspec

from tbshare.wire import files, mount, volume
from tbshare.wire.parts import Params, Result, Size
from tbshare.wire.report import (
    AnyEvent,
    DiskUse,
    Done,
    GcReport,
    HelloReport,
    KeepReport,
    NodeList,
    Paired,
    PathReport,
    ProcessList,
    PushReport,
    RefList,
    RemoveReport,
    RunReport,
    ShowReport,
    StatusReport,
    VerifyReport,
    WaitReport,
)
from tbshare.wire.where import Where

LEVEL = 1  # of this protocol; CLI and daemon of one installation are always equal
PART_BYTES = 1024 * 1024  # a result that is longer travels in parts
RESULT_BYTES_MAX = 64 * 1024 * 1024  # `show` of a tree with half a million files
FILES_SHOWN = 10_000  # of a tree, unless all are asked for


class Request(msgspec.Struct, frozen=True):
    """A call; `id` is chosen by the client and unique on its connection."""

    id: Size
    method: str
    params: msgspec.Raw


class Failure(msgspec.Struct, frozen=True):
    """An error of `tbshare.errors`: the name of its class, its sentence, its cure."""

    kind: str
    message: str
    cure: str = ""
    exit_status: int = 1


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of event, error, part and result.

    A result that does not fit in one envelope travels as `part`s, and an answer with none of the four ends it.
    """

    id: Size
    event: AnyEvent | None = None
    error: Failure | None = None
    part: bytes = b""
    result: msgspec.Raw = msgspec.Raw()  # empty when unset; decoded by the method's type


class HelloParams(Params, frozen=True):
    """First request on a connection."""

    level: int
    version: str


class NodeListParams(Params, frozen=True):
    """For node_list."""


class NodeRenameParams(Params, frozen=True):
    """For node_rename: `node` is a name or a key prefix."""

    node: str
    name: str


class PairOpenParams(Params, frozen=True):
    """For pair_open: let one new node join; the call lasts until it has, or the time is over."""


class PairJoinParams(Params, frozen=True):
    """For pair_join: an empty address means look around."""

    code: str
    address: str = ""


class StatusParams(Params, frozen=True):
    """For status."""


class PushParams(Params, frozen=True):
    """For push. `path` is absolute, or empty with `hf_cache`.

    `to` empty means every node that accepts. `undo` puts files adopted by `move` back. `detach` returns once the
    ref is published. `limit_bytes_per_second` 0 means none.
    """

    path: str
    name: str = ""
    volume: str = ""
    to: list[str] = []
    include: list[str] = []
    exclude: list[str] = []
    follow_links: bool = False
    move: bool = False
    undo: bool = False
    dry_run: bool = False
    detach: bool = False
    limit_bytes_per_second: Size = 0
    hf_cache: str = ""  # ORG/NAME[@rev] in the cache of Hugging Face
    hf_cache_directory: str = ""  # where the asker's cache is


class PullParams(Params, frozen=True):
    """For pull: fetch it here and pin it."""

    ref: str
    limit_bytes_per_second: Size = 0
    detach: bool = False


class RefListParams(Params, frozen=True):
    """For ref_list: `prefix` of the ref's text; `all_revs` also lists older revs."""

    prefix: str = ""
    all_revs: bool = False


class ShowParams(Params, frozen=True):
    """For show: a ref, or the absolute path of something not pushed."""

    ref: str = ""
    path: str = ""
    files_max: Size = FILES_SHOWN


class PathParams(Params, frozen=True):
    """For path: a stable, read-only, pinned directory."""

    ref: str
    allow_code: bool = False


class RemoveParams(Params, frozen=True):
    """For remove: without `yes` nothing is done and the report says what would be."""

    ref: str
    yes: bool = False


class RefParams(Params, frozen=True):
    """For pin, unpin and evict: a ref, or a file or directory of a volume."""

    ref: str = ""
    where: Where | None = None


class GcParams(Params, frozen=True):
    """For gc: `now` does not wait for the grace time."""

    now: bool = False


class VerifyParams(Params, frozen=True):
    """For verify: an empty ref means everything here."""

    ref: str = ""
    repair: bool = False


class DuParams(Params, frozen=True):
    """For du."""


class ProcessesParams(Params, frozen=True):
    """For processes."""


class IdParams(Params, frozen=True):
    """For stop and wait: the id that `ps` shows."""

    id: str


class RunParams(Params, frozen=True):
    """For run: without `raw` the prompt goes through the model's chat template."""

    ref: str
    prompt: str
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    system: str = ""
    raw: bool = False
    allow_code: bool = False


class ShutdownParams(Params, frozen=True):
    """For shutdown: answered once the stop has begun; the socket closes when it is over."""


class LogLevelParams(Params, frozen=True):
    """For log_level: debug | info | warning | error; not kept over a restart."""

    level: str


METHODS: dict[str, tuple[type[Params], type[Result]]] = {
    "hello": (HelloParams, HelloReport),  # answered by daemon/control.py itself
    "status": (StatusParams, StatusReport),
    "node_list": (NodeListParams, NodeList),
    "node_rename": (NodeRenameParams, Done),
    "pair_open": (PairOpenParams, Paired),
    "pair_join": (PairJoinParams, Paired),
    "push": (PushParams, PushReport),
    "pull": (PullParams, PushReport),
    "ref_list": (RefListParams, RefList),
    "show": (ShowParams, ShowReport),
    "path": (PathParams, PathReport),
    "remove": (RemoveParams, RemoveReport),
    "pin": (RefParams, KeepReport),
    "unpin": (RefParams, KeepReport),
    "evict": (RefParams, KeepReport),
    "gc": (GcParams, GcReport),
    "verify": (VerifyParams, VerifyReport),
    "du": (DuParams, DiskUse),
    "processes": (ProcessesParams, ProcessList),
    "stop": (IdParams, Done),
    "wait": (IdParams, WaitReport),
    "run": (RunParams, RunReport),
    "shutdown": (ShutdownParams, Done),
    "log_level": (LogLevelParams, Done),
    "volume_list": (volume.VolumeListParams, volume.VolumeList),
    "volume_show": (volume.VolumeNameParams, volume.VolumeReport),
    "volume_create": (volume.VolumeCreateParams, volume.VolumeMade),
    "volume_set": (volume.VolumeSetParams, volume.VolumeReport),
    "volume_remove": (volume.VolumeRemoveParams, volume.VolumeRemoved),
    "volume_restore": (volume.VolumeNameParams, volume.VolumeReport),
    "file_list": (files.FileListParams, files.FileList),
    "file_stat": (files.FileStatParams, files.FileStat),
    "file_show": (files.FileStatParams, files.FileReport),
    "file_read": (files.FileReadParams, files.FileRead),
    "file_extents": (files.FileExtentsParams, files.FileExtents),
    "file_stage": (files.FileStageParams, files.Staging),
    "file_commit": (files.FileCommitParams, files.FileCommitted),
    "file_copy": (files.FileCopyParams, files.CopyReport),
    "file_move": (files.FileMoveParams, files.FileStat),
    "file_remove": (files.FileRemoveParams, files.FileRemoved),
    "file_mkdir": (files.FileMkdirParams, files.FileStat),
    "history": (files.HistoryParams, files.History),
    "restore": (files.RestoreParams, files.Restored),
    "conflicts": (volume.ConflictsParams, volume.ConflictList),
    "resolve": (volume.ResolveParams, volume.Resolved),
    "locks": (volume.LocksParams, volume.LockList),
    "snapshot_create": (volume.SnapshotParams, volume.Snapshot),
    "snapshot_list": (volume.SnapshotListParams, volume.SnapshotList),
    "snapshot_remove": (volume.SnapshotParams, volume.Snapshot),
    "watch": (volume.WatchParams, Done),
    "drain": (volume.DrainParams, volume.DrainReport),
    "undrain": (volume.UndrainParams, Done),
    "mount_attach": (mount.MountAttachParams, Done),
    "mount_volumes": (mount.MountVolumesParams, mount.MountVolumeList),
    "mount_list": (mount.MountListParams, mount.MountListing),
    "mount_lookup": (mount.MountListParams, mount.MountListing),
    "mount_change": (mount.MountChangeParams, mount.MountChangeResult),
    "mount_open": (mount.MountOpenParams, mount.MountOpened),
    "mount_need": (mount.MountNeedParams, mount.MountOpened),
    "mount_stage": (mount.MountStageParams, mount.MountStaged),
    "mount_cut": (mount.MountCutParams, mount.MountCut),
    "mount_cuts": (mount.MountCutsParams, mount.MountCuts),
    "mount_spare": (mount.MountSpareParams, mount.MountSpares),
    "mount_sync": (mount.MountSyncParams, Done),
    "mount_unstage": (mount.MountUnstageParams, Done),
}
