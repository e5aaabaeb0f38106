"""Files of a volume on the control socket: what is asked for, what is answered.

Ids of files, directories and versions are 16 hex digits (`where.id_text`), those of contents 64; a directory has
no version. Names and paths are bytes; times are nanoseconds since 1970 UTC.
"""

from tbshare.wire.parts import Event, Line, Params, Result, Size
from tbshare.wire.where import Where

CHUNK_BYTES_MAX = 1024 * 1024
XATTRS_INLINE_BYTES_MAX = 4096  # of one file in a listing; `file_stat` has them all


class Xattr(Line, frozen=True):
    """An extended attribute."""

    name: bytes
    value: bytes


class Item(Line, frozen=True, gc=False):
    """A file or directory as its directory shows it; what `ls -l`, a mount and fsspec need to know.

    `kind`: file | directory | bundle | link. `here`: whole | partial | no. `copies`: local | `N copies` |
    everywhere, of the version shown; `locked_by`, `copies` and `here` are filled in where details are asked for.
    """

    name: bytes  # empty for the root
    kind: str
    id: str  # of the file or directory: what a mount makes its inode number from
    version: str = ""
    content: str = ""  # the object of a file, the tree of a bundle
    target: bytes = b""  # of a link
    size_bytes: Size = 0
    mode: int = 0  # permission bits
    uid: int | None = None  # None: that of whoever looks
    gid: int | None = None
    mtime_ns: int = 0
    ctime_ns: int = 0
    birthtime_ns: int = 0
    links: int = 1  # names of the file
    xattrs: list[Xattr] = []
    xattrs_bytes: Size = 0  # of all; more than XATTRS_INLINE_BYTES_MAX are left out of listings
    author: str = ""  # name of the node that saved it
    fork: bool = False  # beside the version that has the file's own name
    heads: int = 1  # versions shown side by side, this one counted
    here: str = ""
    copies: str = ""
    pinned: bool = False
    locked_by: str = ""  # name of the node that holds the lease


class VersionLine(Line, frozen=True):
    """One line of a file's history: a save.

    `here`: whole | partial | no | expired (its bytes were given back; nobody has them).
    """

    version: str
    when_ns: int
    author: str
    kind: str = "file"
    size_bytes: Size = 0
    mtime_ns: int = 0
    content: str = ""
    parents: list[str] = []
    head: bool = False  # nothing was saved upon it
    shown: bytes = b""  # its name now, when it is shown
    here: str = ""
    copies: str = ""
    path: bytes = b""  # where the file is, or was last


class FileListParams(Params, frozen=True):
    """For file_list. `details` adds who holds it and who has locked it, `xattrs` the extended attributes."""

    where: Where
    details: bool = False
    xattrs: bool = False


class FileList(Result, frozen=True):
    """What is asked for, and what is in it when that is a directory, in the order of names."""

    item: Item
    items: list[Item] = []


class FileStatParams(Params, frozen=True):
    """For file_stat and file_show. `details` costs the answers of other nodes: who holds it, who has locked it."""

    where: Where
    details: bool = True


class FileStat(Result, frozen=True):
    """One file or directory, with all its extended attributes and details."""

    item: Item


class Holder(Line, frozen=True):
    """A node that has bytes of a version. `here`: whole | partial."""

    name: str
    id: str
    here: str = "whole"
    pinned: bool = False


class FileReport(Result, frozen=True):
    """What `show` says: the file, its versions (newest first), and who holds the one shown."""

    where: Where
    item: Item
    versions: list[VersionLine] = []
    versions_total: Size = 0
    holders: list[Holder] = []
    bytes_here: Size = 0
    files: Size = 0  # below a directory
    text: str = ""  # what else there is to know: an unknown owner, a removed volume


class FileReadParams(Params, frozen=True):
    """For file_read: the bytes come in `Chunk` events.

    An empty `version` is the one shown; no `length` means to the end.
    """

    where: Where
    version: str = ""
    offset: Size = 0
    length: Size | None = None


class Chunk(Event, frozen=True, tag="chunk"):
    """The next bytes of a file, in order: at most CHUNK_BYTES_MAX."""

    offset: Size
    data: bytes


class FileRead(Result, frozen=True):
    """What was read; all chunks together are `bytes` long."""

    version: str
    size_bytes: Size
    bytes: Size


class FileExtentsParams(Params, frozen=True):
    """For file_extents: an empty `version` is the one shown; `blocks` are told only when asked for."""

    where: Where
    version: str = ""
    blocks: bool = False


class Extent(Line, frozen=True, array_like=True, gc=False):
    """`length` bytes of a file from `start` on lie in a file of the store, at `offset`."""

    start: Size
    length: Size
    path: bytes
    offset: Size


class BlockLine(Line, frozen=True, array_like=True, gc=False):
    """A block of a file: where it is in it, and its id."""

    offset: Size
    length: Size
    id: bytes


class FileExtents(Result, frozen=True):
    """Where the bytes of a version are on this machine.

    `whole` says that all are; else there are no extents, and `file_read` fetches. They are immutable, and readable
    for as long as they are open, even if the store gives them up; who finds one gone before it was opened asks
    again.
    """

    version: str
    content: str  # the object
    size_bytes: Size
    whole: bool
    extents: list[Extent] = []
    blocks: list[BlockLine] = []


class FileStageParams(Params, frozen=True):
    """For file_stage: the file that is to be written. `new`: PathExists when there is something already."""

    where: Where
    new: bool = False


class Staging(Result, frozen=True):
    """Where bytes are written that `file_commit` then takes: on the disk of the store, so that nothing is copied.

    A writer makes a directory `writer-…` of its own in there and holds a lock (flock) on it for as long as it
    lives: what nobody holds is swept.
    """

    directory: bytes


class Commit(Line, frozen=True):
    """A file that was written to `staged`, and is closed.

    `base` are the versions the writer started from: what else was saved since stands beside it as a fork. None is
    the version shown now, empty that there was none. `new`: PathExists when there is something.
    """

    where: Where
    staged: bytes
    base: list[str] | None = None
    new: bool = False


class FileCommitParams(Params, frozen=True):
    """For file_commit: all of it becomes visible at once, or nothing does. The staged files go."""

    commits: list[Commit]


class SavedLine(Line, frozen=True):
    """A save. `fork`: it stands beside another version of the file, under the name given."""

    where: Where
    version: str
    fork: bool = False


class FileCommitted(Result, frozen=True):
    """What was saved, durably; what is inside a bundle is saved with it and has no line."""

    saved: list[SavedLine]


class FileCopyParams(Params, frozen=True):
    """For file_copy: at least one side is in a volume. `into`: the target was written as a directory, `reels/`.

    As `cp` does it: several sources, or a target that is a directory, put each under its own name. `move` makes
    the files themselves the store's, as `push --move` does; it goes from this machine into a volume only.
    """

    sources: list[Where]
    target: Where
    recursive: bool = False
    into: bool = False
    move: bool = False


class Copying(Event, frozen=True, tag="copying"):
    """How far a copy is."""

    bytes_done: Size
    bytes_total: Size = 0  # 0 while it is being counted
    files_done: Size = 0
    files_total: Size = 0
    path: bytes = b""
    rate: float = 0.0  # bytes per second


class CopyReport(Result, frozen=True):
    """What a copy came to. Its files are durable here, but for those whose bytes were away when it was made."""

    files: Size = 0  # all of them, those counted below too
    directories: Size = 0
    size_bytes: Size = 0
    files_same: Size = 0  # were there with this very content already
    files_shared: Size = 0  # copied inside the store: a new name for the same bytes
    files_away: Size = 0  # of those shared: no node that is connected has their bytes
    files_moved: Size = 0  # adopted by `move`
    seconds: float = 0.0


class FileMoveParams(Params, frozen=True):
    """For file_move: rename, in one volume. `into` as for a copy."""

    source: Where
    target: Where
    into: bool = False


class FileRemoveParams(Params, frozen=True):
    """For file_remove: directories only with `recursive`, or, those with nothing in them, with `empty`.

    History keeps what is removed.
    """

    wheres: list[Where]
    recursive: bool = False
    empty: bool = False


class FileRemoved(Result, frozen=True):
    """What went from the names; `restore` brings it back."""

    files: Size = 0
    directories: Size = 0
    size_bytes: Size = 0


class FileMkdirParams(Params, frozen=True):
    """For file_mkdir: `parents` makes what is missing above it, and takes one that is there for made."""

    where: Where
    parents: bool = False


class HistoryParams(Params, frozen=True):
    """For history: of a path, also of one that is removed."""

    where: Where


class History(Result, frozen=True):
    """All that is known of a path, newest first."""

    where: Where
    lines: list[VersionLine] = []


class RestoreParams(Params, frozen=True):
    """For restore: the state of a path becomes the newest version, at `target` where one is given.

    Which: a `version`; or the newest `before_ns`; or as in the `snapshot`; with none of them the last version
    before the one shown, or, of a removed path, the last. A directory is restored with all below it, but to no
    `version`.
    """

    where: Where
    version: str = ""
    before_ns: int = 0
    snapshot: str = ""
    target: Where | None = None


class Restored(Result, frozen=True):
    """What was brought back, and where it stands."""

    where: Where
    version: str = ""
    when_ns: int = 0  # of the version brought back
    files: Size = 0
    same: bool = False  # it was so already
    files_away: Size = 0  # no node that is connected has their bytes
    text: str = ""  # which these are, and who may have them
