"""What a mount says to the daemon of its node, on the control socket. Pure.

A mount keeps two connections: on one lasts `mount_attach`, whose events tell what to forget; on the other go the
calls, many at once. Paths are tuples of names from the volume's root; ids are numbers here, as a mount asks often.
Local bytes are read by the mount itself, from the extents it is told: a file it has open stays readable whatever
the daemon does. Only bytes that are not here, and changes of the namespace, are asked for.
"""

import msgspec

from tbshare.wire.parts import Event, Line, Params, Result, Size

Path = tuple[bytes, ...]


class MountItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name as it is shown; the fields of `volumes.item.Item`.

    `kind`: file | directory | bundle | link. `content` is the object, the tree of a bundle, or a link's target.
    """

    name: bytes
    id: int  # what the inode number is made of: hard links share it
    file: int  # what saves go to
    kind: str
    version: int = 0
    content: bytes = b""
    size: int = 0
    mode: int = 0
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int = 0
    ctime_ns: int = 0
    birthtime_ns: int = 0
    xattrs: dict[bytes, bytes] = {}
    large_xattrs: dict[bytes, tuple[bytes, int]] = {}  # name -> object, bytes
    links: int = 1
    fork: bool = False
    inside: bool = False  # in a bundle


class MountVolume(Line, frozen=True):
    """A volume as a mount shows it. `mode`: models | media | owner; the files of `models` are its refs."""

    id: int
    name: str
    mode: str
    read_only: str = ""  # why nobody writes here; empty: they may
    sensitive: bool = False  # names that differ in case only are two
    files: Size = 0
    size_bytes: Size = 0
    quota_bytes: Size = 0  # 0: none


class MountAttachParams(Params, frozen=True):
    """For mount_attach: the call lasts as long as the mount; `volumes` empty: all of them."""

    directory: str
    pid: int
    front: str  # which one serves it, for `status`
    lacking: list[str] = []  # what this front cannot do, in words
    volumes: list[str] = []


class MountForget(Event, frozen=True, tag="mount_forget"):
    """Something of a volume changed: listings of these directories and attributes of these ids are out of date.

    Both empty: everything of the volume is.
    """

    volume: int
    directories: list[int] = []
    ids: list[int] = []


class MountVolumesChanged(Event, frozen=True, tag="mount_volumes"):
    """Volumes came, went, or have other rules now: ask mount_volumes again. The first event of every attach.

    `attached` is the number of the attach, for mount_change.
    """

    attached: int = 0


class MountItems(Event, frozen=True, tag="mount_items"):
    """A part of a listing that is too long for one message; the result has the last part."""

    items: list[MountItem]


class MountVolumesParams(Params, frozen=True):
    """For mount_volumes. `begins`: this mount begins; what mounts that are gone left is saved first."""

    begins: bool = False


class MountVolumeList(Result, frozen=True):
    """The volumes of the cluster that this node may read, and the room on the disk of its store."""

    volumes: list[MountVolume] = []
    disk_bytes: Size = 0
    free_bytes: Size = 0  # what may still be written: the reserve is taken off


class MountListParams(Params, frozen=True):
    """For mount_list and mount_lookup: a path of a volume. Files of refs that run code are left out."""

    volume: int
    path: Path
    allow_code: bool = False


class MountListing(Result, frozen=True):
    """A directory and what is in it; `items` is empty for anything else, and for mount_lookup."""

    item: MountItem
    items: list[MountItem] = []


class Mkdir(msgspec.Struct, frozen=True, tag="mkdir"):
    """Make a directory."""

    path: Path
    mode: int = 0o755
    uid: int | None = None
    gid: int | None = None


class Symlink(msgspec.Struct, frozen=True, tag="symlink"):
    """Make a symbolic link."""

    path: Path
    target: bytes
    uid: int | None = None
    gid: int | None = None


class Link(msgspec.Struct, frozen=True, tag="link"):
    """Give a file a second name."""

    source: Path
    path: Path


class Rename(msgspec.Struct, frozen=True, tag="rename"):
    """Rename as rename(2) does; a file over a file is a new version of that one."""

    source: Path
    target: Path
    exchange: bool = False
    replace: bool = True


class Unlink(msgspec.Struct, frozen=True, tag="unlink"):
    """Take a file's name away."""

    path: Path


class Rmdir(msgspec.Struct, frozen=True, tag="rmdir"):
    """Remove an empty directory."""

    path: Path


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """Change attributes; None stays as it is, and an xattr whose value is None goes."""

    path: Path
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    birthtime_ns: int | None = None
    xattrs: dict[bytes, bytes | None] = {}


MountChange = Mkdir | Symlink | Link | Rename | Unlink | Rmdir | Describe


class MountChangeParams(Params, frozen=True):
    """For mount_change: done in this order; one that fails does not keep the others from being done.

    `attached` is the number of the asker's mount_attach: it is not told to forget the ids it has `known`, which it
    mends itself.
    """

    volume: int
    changes: list[MountChange]
    attached: int = 0
    known: list[int] = []


class MountChanged(msgspec.Struct, frozen=True, array_like=True):
    """What became of one change: `errno` 0 and the item that is there now (None after a removal), or why not."""

    errno: int = 0
    message: str = ""
    item: MountItem | None = None


class MountChangeResult(Result, frozen=True):
    """One for each change, durable."""

    changed: list[MountChanged]


class MountExtent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`length` bytes of a file from `start` lie in a store file at `offset`; holes have an empty path."""

    start: int
    length: int
    path: bytes
    offset: int


class MountOpenParams(Params, frozen=True):
    """For mount_open: a version of a file of a volume, or an object of one (in a bundle, a ref, an xattr).

    `size` is what the item says, in case nothing of the object is here. `also`: small objects that will be opened
    next.
    """

    volume: int
    file: int
    version: int
    content: bytes
    size: Size = 0
    also: list[bytes] = []


class MountOpened(Result, frozen=True):
    """Where the bytes are that can be read now, in order. `whole`: all of them, and they stay there while open.

    `also`: the bytes of those of the small objects asked for that are here, by object.
    """

    size: Size
    whole: bool
    extents: list[MountExtent] = []
    also: dict[bytes, bytes] = {}


class MountNeedParams(Params, frozen=True):
    """For mount_need: have these bytes here, verified; `ahead` more are fetched without being waited for.

    `waiting` says that a reader waits: before any bulk traffic. `seconds` is how long it may take. `also`: small
    versions that will be read next, each a file, a version and its object; they are fetched with this one.
    """

    volume: int
    file: int
    version: int
    content: bytes
    start: Size
    length: Size
    ahead: Size = 0
    waiting: bool = True
    seconds: float = 30.0
    also: list[tuple[int, int, bytes]] = []


class MountStageParams(Params, frozen=True):
    """For mount_stage: make a working file to write to; it starts with the bytes of `content`, or empty.

    `path` is where the file is, or will be when its first version is cut. `file` 0 means there is none yet. `pid`
    is the mount's: while that process lives, the working file is its own. `mtime_ns`: what the file's is.
    """

    volume: int
    path: Path
    pid: int
    file: int = 0
    version: int = 0
    content: bytes = b""
    mode: int = 0o644
    truncate: bool = False
    mtime_ns: int = 0


class MountStaged(Result, frozen=True):
    """A working file. `cloned`: its disk can share blocks.

    Such a file can be cut while it is written to, and nobody needs to note what is written.
    """

    id: int
    path: bytes
    cloned: bool = False


class MountCutParams(Params, frozen=True):
    """For mount_cut: save what is in a working file now as a version of the file it was staged for.

    `changed` are the ranges (start, end) written since the last cut, None when nobody knows. `path` is where the
    file is now, () when it has no name any more: then nothing is saved. `last`: nobody goes on writing, and the
    working file is not needed afterwards. `file` and `version`: what it is a new version of, as a rename may have
    put it in the place of another file; 0: as it was staged. Attributes that are None stay as they are; `uid`,
    `gid`, `xattrs` and `birthtime_ns` are of a file that has no version yet. `attached` as in mount_change.
    """

    stage: int
    path: Path
    file: int = 0
    version: int = 0
    changed: list[tuple[int, int]] | None = None
    mtime_ns: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    xattrs: dict[bytes, bytes] = {}
    birthtime_ns: int | None = None
    last: bool = False
    attached: int = 0


class MountCut(Result, frozen=True):
    """The file as it is now; None when it has no name."""

    item: MountItem | None = None
    file: int = 0
    version: int = 0  # that holds these bytes; the item may show another
    bytes_written: Size = 0  # to the disk for it
    bytes_hashed: Size = 0


class MountCutsParams(Params, frozen=True):
    """For mount_cuts: save several files of one volume, new and small ones as one change of it."""

    volume: int
    cuts: list[MountCutParams]
    attached: int = 0


class MountCutAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What became of one of them."""

    errno: int = 0
    cut: MountCut = MountCut()


class MountCuts(Result, frozen=True):
    """One for each."""

    answers: list[MountCutAnswer]


class MountSpareParams(Params, frozen=True):
    """For mount_spare: make empty working files, for files of a volume that are created later."""

    volume: int
    pid: int
    count: Size


class MountSpares(Result, frozen=True):
    """They have no path until mount_cut or mount_sync says one."""

    staged: list[MountStaged]


class MountSyncParams(Params, frozen=True):
    """For mount_sync: fsync was called and the mount has synced the file's data; its row is to be durable.

    `path` as in mount_cut. `copies`: a version is cut, and so many nodes are to have it within `seconds`. With
    `promised` False nothing was synced: only the path and mode are noted, for what a mount that is killed leaves.
    """

    stage: int
    path: Path
    copies: int = 1
    seconds: float = 30.0
    promised: bool = True
    mode: int | None = None


class MountUnstageParams(Params, frozen=True):
    """For mount_unstage: nothing was written; forget the working file."""

    stage: int
