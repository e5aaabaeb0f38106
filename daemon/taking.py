"""Local files and directories go into a volume: read, made objects, and saved in batches that are each durable.

What was committed stays when the work is stopped or the daemon is killed; taken up again with `resume`, files that
stand in the volume with the same size and time are not read again. One path that cannot be taken is one line, and
the rest goes on. All of it runs in one thread, beside the threads that hash.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tbshare.content.block import TreeId
from tbshare.content.tree import LARGE_BYTES, XATTR_BYTES_MAX, Entry, Tree
from tbshare.content.tree import Kind as EntryKind
from tbshare.daemon import local_tree
from tbshare.daemon.local_tree import Found
from tbshare.errors import (
    FileError,
    InputRefused,
    Interrupted,
    PathIsDirectory,
    PathNotDirectory,
    QuotaExceeded,
    TbshareError,
    VolumeReadOnly,
)
from tbshare.store import adopt, disk
from tbshare.store.ingest import Ingest
from tbshare.store.pack import Kind
from tbshare.store.source import SourceFile, shown
from tbshare.store.store import Store
from tbshare.volumes.bundle import is_bundle_name
from tbshare.volumes.entry import XATTRS_BYTES_MAX, XATTRS_MAX
from tbshare.volumes.item import Attributes, Content, Item, Large, Put, Saved
from tbshare.volumes.item import Path as VolumePath
from tbshare.volumes.paths import joined
from tbshare.volumes.volume import Handle

BATCH_PATHS = 500
BATCH_SECONDS = 2.0
ASKED_SINGLY = 16  # names of one directory that are looked up before it is listed
XATTR_INLINE_BYTES_MAX = 4096  # a longer value is an object
TROUBLES_MAX = 1000  # lines that are kept; the others are counted

Locked = Callable[[Sequence[VolumePath]], AbstractContextManager[Handle]]


@dataclass
class Taken:
    """How far it is, and what came of it; read by other threads while it grows."""

    files: int = 0
    files_skipped: int = 0
    directories: int = 0
    shared: int = 0  # copied inside the store
    away: int = 0  # of these, whose bytes no node has that is connected
    bytes: int = 0
    path: str = ""
    troubles: list[str] = field(default_factory=list[str])
    troubles_count: int = 0
    warnings: list[str] = field(default_factory=list[str])
    moved: int = 0
    forks: list[VolumePath] = field(default_factory=list[VolumePath])
    last: Saved | None = None

    def trouble(self, text: str) -> None:
        """Note a path that was not taken."""
        self.troubles_count += 1
        if len(self.troubles) < TROUBLES_MAX:
            self.troubles.append(text)


class Taking:
    """Takes local trees into one volume."""

    def __init__(
        self,
        store: Store,
        handle: Handle,
        locked: Locked,
        kept: Callable[[], AbstractContextManager[None]],
        *,
        stop: threading.Event,
        resume: bool = False,
        keep: Callable[[bytes], None] | None = None,
    ) -> None:
        """With `resume` what stands there already is not read again.

        While `kept` is entered, from the first path of a batch until it is saved, no garbage is collected. With
        `keep` the files themselves are adopted; it is called with trees of them, to be kept while links to them
        stand where the files were.
        """
        self._store, self._handle, self._locked, self._stop = store, handle, locked, stop
        self._kept, self._batch_kept = kept, ExitStack()
        self._resume, self._move = resume, keep is not None
        self._keep = keep
        self.taken = Taken()
        self._lock = threading.Lock()
        workers = max(1, min(4, os.cpu_count() or 1))
        self._ingest = Ingest(
            store, workers=workers, stop=stop, advance=self._advance, move=self._move, fixed=True
        )
        self._values = Ingest(store, workers=1, stop=stop, fixed=True)  # of extended attributes
        self._has_begun = False
        self._batch: list[Put] = []
        self._there: list[VolumePath] = []  # what the batch replaces
        self._since = time.monotonic()
        self._many = False  # more than one path: the rest goes on when one cannot be taken
        self._asked: tuple[VolumePath | None, int] = (None, 0)  # the directory, and how many of its names
        self._listed: dict[bytes, Item] | None = None  # what is in that directory
        self._room = self._room_bytes()
        self._objects = os.fsencode(os.path.realpath(store.home.folder("objects")))

    def _advance(self, count: int) -> None:
        with self._lock:
            self.taken.bytes += count

    def _room_bytes(self) -> int | None:
        totals = self._handle.totals()
        return totals.quota_bytes - totals.size_bytes if totals.quota_bytes else None

    # one tree --------------------------------------------------------------------------------------------------

    def tree(self, root: bytes, target: VolumePath, *, recursive: bool) -> None:
        """Take what is at and below `root` in, as `target`. Durable when this returns.

        Interrupted, DiskFull, QuotaExceeded and the like end it; what was committed until then stays.
        """
        try:
            for found in self._walk(root, target, recursive=recursive):
                if self._stop.is_set():
                    raise Interrupted("stopped; what was taken so far is in the volume", cure="the same again")
                self._one(found, (*target, *found.path[1:]))
            self.flush()
        finally:
            adopt.roll_back(self._store, self._ingest.adopted)  # of those whose save is not committed
            self._ingest.adopted.clear()
            self._batch_kept.close()

    def _walk(self, root: bytes, target: VolumePath, *, recursive: bool) -> Iterator[Found]:
        name = target[-1] if target else b"root"
        self._many = os.path.isdir(root)
        if not os.path.isdir(root):
            yield local_tree.found(os.path.realpath(root) if not recursive else root, (name,), is_bundle_name)
            return
        if not recursive:
            raise InputRefused(f"{os.fsdecode(root)} is a directory", cure="cp -r")
        walk = local_tree.walk(root, is_bundle=is_bundle_name, trouble=self.taken.trouble, name=name)
        for found in walk:
            if found.path == (name,) and not target:
                continue  # the root of the volume is there
            yield found

    def _one(self, found: Found, path: VolumePath) -> None:
        self.taken.path = shown(path)
        if not self._has_begun:
            self._batch_kept.enter_context(self._kept())
            self._has_begun = True
        try:
            there = self._item(path)
            put = None if self._is_taken(found, there) else self._put(found, path, there)
        except (InputRefused, FileError) as error:
            if isinstance(error, QuotaExceeded | VolumeReadOnly) or not self._many:
                raise
            self.taken.trouble(str(error))
            return
        if found.kind != "directory":
            self.taken.files += 1
        if put is not None:
            self._batch.append(put)
            if there is not None and there.kind != "directory":
                self._there.append(path)
        if len(self._batch) >= BATCH_PATHS or time.monotonic() - self._since > BATCH_SECONDS:
            self.flush()

    def _item(self, path: VolumePath) -> Item | None:
        """Return what stands at a path of the volume; after a few, one listing answers for a whole directory."""
        if not path:
            return None
        if self._asked[0] != path[:-1]:
            above = self._handle.find(path[:-1])
            self._asked, self._listed = (path[:-1], 0), None
            if above is None or above.kind != "directory":
                self._listed = {}
        if self._listed is None and self._asked[1] < ASKED_SINGLY:
            self._asked = path[:-1], self._asked[1] + 1
            item = self._handle.find(path)
            return item if item is not None and item.name == path[-1] else None
        if self._listed is None:
            self._listed = {item.name: item for item in self._handle.list(path[:-1])}
        return self._listed.get(path[-1])

    def _is_taken(self, found: Found, there: Item | None) -> bool:
        """Whether an earlier attempt has brought this file in."""
        if there is None or not (self._resume or found.kind == "link"):
            return False
        if found.kind == "link":
            moved = there.kind == "file" and self._is_adopted(found)
            same = moved or (self._resume and there.kind == "link" and there.content == found.target)
            self.taken.files_skipped += same
            return same
        same = found.kind == "file" == there.kind and (there.size, there.mtime_ns) == (
            found.size,
            found.status.st_mtime_ns,
        )
        if same:
            self.taken.files_skipped += 1
            self._advance(found.size)
        return same

    def _is_adopted(self, found: Found) -> bool:
        """Whether a link is what stands in the place of a file that became the store's."""
        return os.path.realpath(found.real).startswith(self._objects + b"/")

    def _put(self, found: Found, path: VolumePath, there: Item | None) -> Put:
        """Read what a path needs and return what is to be saved."""
        if there is not None and found.kind == "directory" and there.kind != "directory":
            raise PathNotDirectory(f"{shown(path)} is in the volume, and no directory", cure="remove it first")
        if there is not None and found.kind != "directory" and there.kind == "directory":
            raise PathIsDirectory(f"{shown(path)} is a directory in the volume", cure="remove it first")
        attributes = self._attributes(found)
        if found.kind == "directory":
            return Put(path, "directory", None, attributes)
        if found.kind == "link":
            content = Content(found.target, len(found.target), found.status.st_mtime_ns, "link")
        elif found.kind == "bundle":
            tree = self._bundle(found, there.content if there is not None and there.kind == "bundle" else b"")
            content = Content(tree.id, tree.size, found.status.st_mtime_ns, "bundle")
        else:
            content = Content(
                self._object(found, there.size if there else 0), found.size, found.status.st_mtime_ns
            )
            self.taken.files_skipped += there is not None and there.content == content.content
        return Put(path, found.kind, content, attributes)

    def _object(self, found: Found, replaced_bytes: int) -> bytes:
        """Make a file an object; QuotaExceeded before it is read when it would not fit."""
        grown = found.size - replaced_bytes
        if self._room is not None and grown > self._room:
            left = max(0, self._room)
            raise QuotaExceeded(
                f"{shown(found.path)}: {found.size} bytes; the quota of {self._handle.name} leaves {left}",
                cure=f"tbshare volume set {self._handle.name} --quota SIZE",
            )
        status = found.status
        file = SourceFile(found.path, Path(os.fsdecode(found.real)), found.size, 0o644, status.st_mtime_ns)
        ingested = self._ingest.file(file)
        if ingested.manifest.size != found.size:
            raise InputRefused(f"{shown(found.path)} changed while it was read", cure="copy it again")
        if self._room is not None:
            self._room -= grown
        return ingested.object_id

    def _attributes(self, found: Found) -> Attributes:
        status = found.status
        others = status.st_uid != os.geteuid()  # the user's own stay the user's, on every machine
        xattrs: dict[bytes, bytes | Large | None] = {}
        left = XATTRS_BYTES_MAX // 2  # of what one op holds; many small ones may be too much as well
        for name, value in sorted(local_tree.read_xattrs(found.real).items())[:XATTRS_MAX]:
            fits = len(value) <= min(XATTR_INLINE_BYTES_MAX, left)
            xattrs[name] = value if fits else self._large(name, value)
            left -= len(value) if fits else 0
        if len(xattrs) == XATTRS_MAX:
            self.taken.warnings.append(f"{shown(found.path)}: of its extended attributes {XATTRS_MAX} are taken")
        return Attributes(
            mode=status.st_mode & 0o7777,
            uid=status.st_uid if others else None,
            gid=status.st_gid if others else None,
            mtime_ns=status.st_mtime_ns,
            birthtime_ns=found.birthtime_ns,
            xattrs=xattrs,
        )

    def _large(self, name: bytes, value: bytes) -> Large:
        """Make the value of an extended attribute an object, as a file's bytes are."""
        temporary = self._store.home.temporary("xattr")
        try:
            disk.write_new(temporary, value, 0o600)
            taken = self._values.file(SourceFile((name,), temporary, len(value), 0o600, 0))
            return Large(taken.object_id, len(value))
        except OSError as error:
            raise disk.translated(error) from error
        finally:
            temporary.unlink(missing_ok=True)

    # bundles ---------------------------------------------------------------------------------------------------

    def _bundle(self, directory: Found, known: bytes) -> Tree:
        """Return the tree of a bundle, or of a directory in one; what is as in the tree `known` is not read."""
        listing = self._store.tree(TreeId(known)) if known else None
        before = {entry.name: entry for entry in listing.entries} if listing else {}
        entries: list[Entry] = []
        for found in local_tree.inside(directory, self.taken.trouble):
            if self._stop.is_set():
                raise Interrupted("stopped; what was taken so far is in the volume", cure="the same again")
            entries.append(self._inner(found, before.get(found.path[-1])))
        tree = Tree(entries)
        self._store.add_record(Kind.TREE, tree.id, tree.encoded)
        return tree

    def _inner(self, found: Found, before: Entry | None) -> Entry:
        name, status = found.path[-1], found.status
        xattrs = self._inner_xattrs(found)
        mode, mtime_ns = status.st_mode & 0o7777, status.st_mtime_ns
        if (
            found.kind == "link"
            and before is not None
            and before.kind == EntryKind.FILE
            and self._is_adopted(found)
        ):
            return before
        if found.kind == "link":
            return Entry(name, EntryKind.LINK, found.target, 0, mode, mtime_ns, xattrs)
        if found.kind == "directory":
            below = before.target if before is not None and before.kind == EntryKind.TREE else b""
            tree = self._bundle(found, below)
            if before is not None and tree.id == below:  # a link in the place of a file has changed its time alone
                mtime_ns = before.mtime_ns
            return Entry(name, EntryKind.TREE, tree.id, tree.size, mode, mtime_ns, xattrs)
        known = before if self._resume else None
        if known is not None and (known.kind, known.size, known.mtime_ns) == (0, found.size, mtime_ns):
            self._advance(found.size)
            return Entry(name, EntryKind.FILE, known.target, found.size, mode, mtime_ns, xattrs)
        return Entry(name, EntryKind.FILE, self._object(found, 0), found.size, mode, mtime_ns, xattrs)

    def _inner_xattrs(self, found: Found) -> list[tuple[bytes, bytes]]:
        """Return attributes as an entry of a tree has them: the largest as objects, until they fit in there."""
        values = local_tree.read_xattrs(found.real)
        inline, large = dict[bytes, bytes | Large | None](values), dict[bytes, bytes | Large | None]()
        for name in sorted(values, key=lambda name: (-len(values[name]), name)):
            stored = joined({**inline, **large}, {})
            if sum(len(key) + len(value or b"") for key, value in stored.items()) <= XATTR_BYTES_MAX:
                break
            if len(values[name]) > LARGE_BYTES:
                large[name] = self._large(name, values[name])
            else:
                del inline[name]
                self.taken.warnings.append(f"{shown(found.path)}: too many extended attributes; some are left out")
        stored = joined({**inline, **large}, {})
        return sorted((name, value) for name, value in stored.items() if value is not None)

    # batches ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Commit what is waiting; afterwards it is durable."""
        batch, there = self._batch, self._there
        self._batch, self._there, self._since = [], [], time.monotonic()
        self._asked = (None, 0)
        if batch:
            self._store.sync_records()
            self._pin()
            try:
                with self._locked(there) as under:
                    self._note(under.put_many(batch))
            except FileError as error:
                if isinstance(error, QuotaExceeded | VolumeReadOnly) or (len(batch) == 1 and not self._many):
                    raise
                self._each(batch, there)
            self._room = self._room_bytes()
        self.taken.directories += sum(put.kind == "directory" for put in batch)
        self.taken.moved += adopt.leave_links(self._store, self._ingest.adopted)
        self._ingest.adopted.clear()
        self._batch_kept.close()
        self._has_begun = False
        self._since = time.monotonic()

    def _each(self, batch: Sequence[Put], there: Sequence[VolumePath]) -> None:
        """Save one after another, because one of them cannot be."""
        for put in batch:
            try:
                with self._locked([put.path] if put.path in there else []) as under:
                    self._note(under.put_many([put]))
            except FileError as error:
                if isinstance(error, QuotaExceeded | VolumeReadOnly):
                    raise
                self.taken.trouble(f"{shown(put.path)}: {error}")

    def _note(self, saved: Sequence[Saved]) -> None:
        self.taken.forks += [each.path for each in saved if each.fork]
        self.taken.last = saved[-1] if saved else self.taken.last

    def _pin(self) -> None:
        """Keep adopted objects for as long as links to them stand where the files were."""
        adopted = self._ingest.adopted
        if not adopted:
            return
        entries = [
            Entry(str(number).encode(), EntryKind.FILE, each.object_id, each.marks[1], 0o644, 0)
            for number, each in enumerate(adopted)
        ]
        tree = Tree(entries)
        self._store.add_record(Kind.TREE, tree.id, tree.encoded)
        self._store.sync_records()
        assert self._keep is not None
        self._keep(tree.id)


def first_trouble(taken: Taken) -> TbshareError | None:
    """Return the error to end with when paths were left out."""
    if not taken.troubles_count:
        return None
    more = taken.troubles_count - 1
    text = taken.troubles[0] + (f"; and {more} more" if more else "")
    return InputRefused(f"not everything was taken: {text}", cure="mend them, then the same again")
