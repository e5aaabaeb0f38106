"""Local files and directories go into a volume: read, made objects, and saved in batches that are each durable.

What was committed stays when the work is stopped or the daemon is killed; taken up again with `resume`, files that
stand in the volume with the same size and time are not read again. One path that cannot be taken is one line, and
the rest goes on. All of it runs in one thread, beside the threads that hash.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from tbshare.content.block import TreeId
from tbshare.content.tree import XATTR_BYTES_MAX, Entry, Tree
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
from tbshare.store import adopt
from tbshare.store.ingest import Ingest
from tbshare.store.pack import Kind
from tbshare.store.source import SourceFile, shown
from tbshare.store.store import Store
from tbshare.volumes.bundle import is_bundle_name
from tbshare.volumes.entry import XATTRS_BYTES_MAX, XATTRS_MAX
from tbshare.volumes.item import Attributes, Content, Item, Put, Saved
from tbshare.volumes.item import Path as VolumePath
from tbshare.volumes.volume import Handle

BATCH_PATHS = 500
BATCH_SECONDS = 2.0
TROUBLES_MAX = 1000  # lines that are kept; the others are counted

Locked = Callable[[Sequence[VolumePath]], AbstractContextManager[None]]


@dataclass
class Taken:
    """How far it is, and what came of it; read by other threads while it grows."""

    files: int = 0
    files_skipped: int = 0
    directories: int = 0
    shared: int = 0  # copied inside the store
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
        *,
        stop: threading.Event,
        resume: bool = False,
        keep: Callable[[bytes], None] | None = None,
    ) -> None:
        """With `resume` what stands there already is not read again.

        With `keep` the files themselves are adopted; it is called with trees of them, to be kept while links
        to them stand where the files were.
        """
        self._store, self._handle, self._locked, self._stop = store, handle, locked, stop
        self._resume, self._move = resume, keep is not None
        self._keep = keep
        self.taken = Taken()
        self._lock = threading.Lock()
        workers = max(1, min(4, os.cpu_count() or 1))
        self._ingest = Ingest(
            store, workers=workers, stop=stop, advance=self._advance, move=self._move, fixed=True
        )
        self._batch: list[Put] = []
        self._there: list[VolumePath] = []  # what the batch replaces
        self._since = time.monotonic()
        self._many = False  # more than one path: the rest goes on when one cannot be taken
        self._listed: tuple[VolumePath, dict[bytes, Item]] | None = None
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
        """Return what stands at a path of the volume; one listing answers for a whole directory."""
        if not path:
            return None
        if self._listed is None or self._listed[0] != path[:-1]:
            above = self._handle.find(path[:-1])
            items = self._handle.list(path[:-1]) if above is not None and above.kind == "directory" else []
            self._listed = path[:-1], {item.name: item for item in items}
        return self._listed[1].get(path[-1])

    def _is_taken(self, found: Found, there: Item | None) -> bool:
        """Whether an earlier attempt has brought this file in."""
        if not self._resume or there is None:
            return False
        if found.kind == "link":
            moved = self._move and os.path.realpath(found.real).startswith(self._objects + b"/")
            same = bool(moved) or (there.kind == "link" and there.content == found.target)
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
        xattrs = local_tree.read_xattrs(found.real)
        if (
            sum(len(name) + len(value) for name, value in xattrs.items()) > XATTRS_BYTES_MAX
            or len(xattrs) > XATTRS_MAX
        ):
            self.taken.warnings.append(
                f"{shown(found.path)}: its extended attributes are too large and are left out"
            )
            xattrs = {}
        return Attributes(
            mode=status.st_mode & 0o7777,
            uid=status.st_uid if others else None,
            gid=status.st_gid if others else None,
            mtime_ns=status.st_mtime_ns,
            birthtime_ns=found.birthtime_ns,
            xattrs=dict(xattrs),
        )

    # bundles ---------------------------------------------------------------------------------------------------

    def _bundle(self, directory: Found, known: bytes) -> Tree:
        """Return the tree of a bundle, or of a directory in one; what is as in the tree `known` is not read."""
        listing = self._store.tree(TreeId(known)) if known and self._resume else None
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
        xattrs = sorted(local_tree.read_xattrs(found.real).items())
        if sum(len(key) + len(value) for key, value in xattrs) > XATTR_BYTES_MAX:
            self.taken.warnings.append(
                f"{shown(found.path)}: its extended attributes are too large and are left out"
            )
            xattrs = []
        mode, mtime_ns = status.st_mode & 0o7777, status.st_mtime_ns
        if found.kind == "link":
            return Entry(name, EntryKind.LINK, found.target, 0, mode, mtime_ns, xattrs)
        if found.kind == "directory":
            below = before.target if before is not None and before.kind == EntryKind.TREE else b""
            tree = self._bundle(found, below)
            return Entry(name, EntryKind.TREE, tree.id, tree.size, mode, mtime_ns, xattrs)
        if before is not None and (before.kind, before.size, before.mtime_ns) == (0, found.size, mtime_ns):
            self._advance(found.size)
            return Entry(name, EntryKind.FILE, before.target, found.size, mode, mtime_ns, xattrs)
        return Entry(name, EntryKind.FILE, self._object(found, 0), found.size, mode, mtime_ns, xattrs)

    # batches ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Commit what is waiting; afterwards it is durable."""
        batch, there = self._batch, self._there
        self._batch, self._there, self._since = [], [], time.monotonic()
        self._listed = None
        if batch:
            self._store.sync_records()
            self._pin()
            try:
                with self._locked(there):
                    self._note(self._handle.put_many(batch))
            except FileError as error:
                if isinstance(error, QuotaExceeded | VolumeReadOnly) or (len(batch) == 1 and not self._many):
                    raise
                self._each(batch, there)
            self._room = self._room_bytes()
        self.taken.directories += sum(put.kind == "directory" for put in batch)
        self.taken.moved += adopt.leave_links(self._store, self._ingest.adopted)
        self._ingest.adopted.clear()
        self._since = time.monotonic()

    def _each(self, batch: Sequence[Put], there: Sequence[VolumePath]) -> None:
        """Save one after another, because one of them cannot be."""
        for put in batch:
            try:
                with self._locked([put.path] if put.path in there else []):
                    self._note(self._handle.put_many([put]))
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
