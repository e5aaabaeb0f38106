"""The first step of a push: a file becomes an object of the store.

Where the file system can share blocks the file is cloned, and the clone is hashed; elsewhere the buffer that is
hashed is the buffer that is written. Either way nothing that can still change becomes an object. Threads take
the blocks of a file in turn: hashing is what costs (facts: 5 GB/s a core on Zen 4, 2 on Apple silicon).
"""

import contextlib
import errno
import mmap
import os
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tbshare.content import gguf, layout, safetensors
from tbshare.content.block import BLOCK_BYTES, ObjectId, TreeId, block_id
from tbshare.content.cut import lengths as cut_lengths
from tbshare.content.cut import rule_for
from tbshare.content.manifest import Manifest, of_blocks
from tbshare.content.safetensors import padded
from tbshare.content.tree import Entry, Tree
from tbshare.content.tree import Kind as EntryKind
from tbshare.content.weights import HEADER_BYTES_MAX, Header, HeaderShort
from tbshare.errors import HeaderInvalid, InputRefused, Interrupted, SourceChanged
from tbshare.store import adopt, disk
from tbshare.store.arriving import SMALL_BYTES
from tbshare.store.pack import Kind
from tbshare.store.source import Source, SourceFile, shown
from tbshare.store.store import Store

_PARSERS: dict[str, Callable[[bytes, int], Header]] = {".safetensors": safetensors.parse, ".gguf": gguf.parse}
_FIRST_READ_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of one file."""

    object_id: ObjectId
    manifest: Manifest
    how: str  # "cloned", "copied", "packed" or "adopted"
    warning: str = ""


class Ingest:
    """Takes files in. `advance(bytes)` is called from worker threads as bytes are hashed; `stop` ends it early."""

    def __init__(
        self,
        store: Store,
        *,
        workers: int,
        stop: threading.Event | None = None,
        advance: Callable[[int], None] = lambda _: None,
        move: bool = False,
        fixed: bool = False,
    ) -> None:
        """With `fixed` every file is cut into blocks of one size, as all that can be written to is."""
        self.store = store
        self.workers = workers
        self.move = move
        self.fixed = fixed
        self.adopted: list[adopt.Adopted] = []
        self.stop = stop or threading.Event()
        self.advance = advance
        self.warnings: list[str] = []

    def source(self, source: Source) -> TreeId:
        """Take in everything of a source; return its tree. Durable when this returns.

        InputRefused, SourceChanged, DiskFull or Interrupted: files taken in so far stay as objects that nothing
        names, so that the next attempt finds them; a half of a file never stays.
        """
        entries: dict[tuple[bytes, ...], list[Entry]] = {path: [] for path in source.folders}
        entries.setdefault((), [])
        for link in source.links:
            entries[link.path[:-1]].append(
                Entry(link.path[-1], EntryKind.LINK, link.target, 0, 0o777, link.mtime_ns)
            )
        for file in source.files:
            taken = self.file(file)
            if taken.warning:
                self.warnings.append(f"{shown(file.path)}: {taken.warning}")
            entries[file.path[:-1]].append(
                Entry(
                    file.path[-1], EntryKind.FILE, taken.object_id, taken.manifest.size, file.mode, file.mtime_ns
                )
            )
        return self._trees(source, entries)

    def _trees(self, source: Source, entries: dict[tuple[bytes, ...], list[Entry]]) -> TreeId:
        """Build the trees from the deepest up, keep them, and make every record durable."""
        for path in sorted((path for path in entries if path), key=len, reverse=True):
            tree = self._keep(Tree(entries[path]))
            entries[path[:-1]].append(
                Entry(path[-1], EntryKind.TREE, tree.id, tree.size, 0o755, source.folders[path])
            )
        root = self._keep(Tree(entries[()]))
        self.store.sync_records()
        return root.id

    def _keep(self, tree: Tree) -> Tree:
        self.store.add_record(Kind.TREE, tree.id, tree.encoded)
        return tree

    def file(self, file: SourceFile) -> Ingested:
        """Take in one file."""
        try:
            descriptor = os.open(file.real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputRefused(f"{shown(file.path)}: {reason}", cure="check the file, or --exclude it") from error
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise SourceChanged(f"{shown(file.path)} is no longer a file", cure="push again")
            return self._take(file, descriptor, before)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ESTALE):
                raise InputRefused(f"{shown(file.path)} cannot be read: {error.strerror}") from error
            raise disk.translated(error) from error
        finally:
            os.close(descriptor)

    def _header(self, file: SourceFile, descriptor: int, size: int) -> tuple[Header | None, str]:
        return (None, "") if self.fixed else _header(file, descriptor, size)

    def _take(self, file: SourceFile, descriptor: int, before: os.stat_result) -> Ingested:
        size = before.st_size
        header, warning = self._header(file, descriptor, size)
        if size <= SMALL_BYTES:
            return self._small(file, descriptor, before, header, warning)
        if self.move:
            adopt.check(self.store, file, descriptor)
            found = self._hash(file, descriptor, -1, size, header)
            self.adopted += adopt.link(self.store, file, descriptor, found)
            return Ingested(found.id, found, "adopted", warning)
        temporary = self.store.home.temporary("ingest")
        chosen = layout.choose(header)
        clone = disk.clone_file(descriptor, temporary) if not chosen.shift else None
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        target = os.open(temporary, flags, 0o600) if clone is None else clone
        try:
            if clone is not None:
                found, warning = self._hash_cloned(file, descriptor, clone)
            else:
                self.store.check_room(size)
                disk.reserve(target, size + chosen.shift)
                found = self._hash(file, descriptor, target, size, header)
                _refuse_changed(file, descriptor, before)
            self._seal(found, target, temporary, chosen.shift if clone is None else 0)
            return Ingested(found.id, found, "copied" if clone is None else "cloned", warning)
        finally:
            os.close(target)
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

    def _hash_cloned(self, file: SourceFile, source: int, clone: int) -> tuple[Manifest, str]:
        """Return the manifest of a clone, and a warning.

        The source is read, whose pages are in memory as often as not, while the clone's never are (the page cache
        is by file): 7 against 1 GB/s here. Afterwards the two must consist of the same disk blocks, which proves
        that these bytes are the clone's; else the clone itself is hashed.
        """
        size = os.fstat(clone).st_size
        header, warning = self._header(file, clone, size)
        if os.fstat(source).st_size == size:
            with contextlib.suppress(SourceChanged):
                found = self._hash(file, source, -1, size, header)
                if disk.same_blocks(source, clone):
                    return found, warning
            self.advance(-size)
        return self._hash(file, clone, -1, size, header), warning

    def _seal(self, found: Manifest, target: int, temporary: Path, shift: int) -> None:
        """Pad the header of a shifted object, sync, and name the object."""
        if self.store.is_whole(found.id):
            return
        if shift:
            assert found.header is not None
            original = os.pread(target, found.header.data_start, 0)
            self.store.add_record(Kind.HEADER, found.id, original)
            disk.write_all(target, padded(original, len(original) + shift), 0)
        disk.sync_file(target)
        self.store.adopt_file(found, temporary, "shifted" if shift else "exact")

    def _small(
        self, file: SourceFile, descriptor: int, before: os.stat_result, header: Header | None, warning: str
    ) -> Ingested:
        size = before.st_size
        data = os.pread(descriptor, size + 1, 0)
        if len(data) != size:
            raise SourceChanged(f"{shown(file.path)} changed while it was read", cure="push again")
        _refuse_changed(file, descriptor, before)
        position, blocks = 0, list[bytes]()
        for length in _lengths(size, header):
            blocks.append(block_id(data[position : position + length]))
            position += length
        found = of_blocks(size, header, blocks)
        self.store.add_small(found, data)
        self.advance(size)
        return Ingested(found.id, found, "packed", warning)

    def _hash(self, file: SourceFile, source: int, target: int, size: int, header: Header | None) -> Manifest:
        """Hash all blocks of a file, copying them to `target` unless that is negative."""
        work = _Blocks(source, target, _lengths(size, header), header, self.stop, self.advance)
        count = min(self.workers, len(work.lengths))
        if count <= 1:
            work.run()
        else:
            with ThreadPoolExecutor(count, thread_name_prefix="ingest") as pool:
                for done in [pool.submit(work.run) for _ in range(count)]:
                    done.result()
        if self.stop.is_set():
            raise Interrupted("stopped while files were read; nothing was published")
        if work.short:
            raise SourceChanged(f"{shown(file.path)} became shorter while it was read", cure="push again")
        return of_blocks(size, header, work.ids)


class _Blocks:
    """The blocks of one file; several threads call `run`."""

    def __init__(
        self,
        source: int,
        target: int,
        lengths: Sequence[int],
        header: Header | None,
        stop: threading.Event,
        advance: Callable[[int], None],
    ) -> None:
        self.source, self.target, self.lengths = source, target, lengths
        self.ids: list[bytes] = [b""] * len(lengths)
        self.short = False
        self._stop, self._advance = stop, advance
        self._lock = threading.Lock()
        self._next, self._position = 0, 0
        self._data_start = header.data_start if header else 0
        self._shift = layout.choose(header).shift if target >= 0 else 0

    def _claim(self) -> tuple[int, int] | None:
        with self._lock:
            if self._next == len(self.lengths) or self.short or self._stop.is_set():
                return None
            number, offset = self._next, self._position
            self._next += 1
            self._position += self.lengths[number]
            return number, offset

    def run(self) -> None:
        """Take blocks until there are none left."""
        buffer = mmap.mmap(-1, BLOCK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = memoryview(buffer)
        try:
            while (claimed := self._claim()) is not None:
                number, offset = claimed
                view = whole[: self.lengths[number]]
                if disk.read_into(self.source, view, offset) != len(view):
                    self.short = True
                    return
                self.ids[number] = block_id(view)
                if self.target >= 0:
                    moved = self._shift if offset >= self._data_start else 0
                    disk.write_all(self.target, view, offset + moved)
                self._advance(len(view))
        except BaseException:
            self.short = self.short or not self._stop.is_set()
            raise
        finally:
            view = whole[:0]
            whole.release()
            view.release()
            buffer.close()


def _lengths(size: int, header: Header | None) -> list[int]:
    if header is None:
        return cut_lengths(rule_for(None), size)
    return cut_lengths(rule_for(header), size, header.data_start, header.tensors)


def _refuse_changed(file: SourceFile, descriptor: int, before: os.stat_result) -> None:
    """SourceChanged when a file was written to since `before`; asked before its copy becomes an object."""
    now = os.fstat(descriptor)
    marks = [(status.st_size, status.st_mtime_ns, status.st_ctime_ns) for status in (before, now)]
    if marks[0] != marks[1]:
        raise SourceChanged(f"{shown(file.path)} changed while it was read", cure="push again")


def read_header(file: SourceFile) -> tuple[Header | None, str]:
    """Return the tensors of a weights file that is not taken in, or why there are none. InputRefused."""
    try:
        descriptor = os.open(file.real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputRefused(f"{shown(file.path)}: {error.strerror}") from error
    try:
        return _header(file, descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _header(file: SourceFile, descriptor: int, size: int) -> tuple[Header | None, str]:
    """Return the tensors of a weights file, or None and, where one was to be expected, why there are none."""
    suffix = os.path.splitext(os.fsdecode(file.path[-1]))[1].lower()
    parser = _PARSERS.get(suffix)
    if parser is None:
        return None, ""
    wanted = _FIRST_READ_BYTES
    while True:
        prefix = os.pread(descriptor, min(wanted, size, HEADER_BYTES_MAX + 8), 0)
        try:
            return parser(prefix, size), ""
        except HeaderShort as more:
            if len(prefix) >= min(size, HEADER_BYTES_MAX):
                return None, "pushed as plain bytes: its header cannot be read whole"
            wanted = max(more.needed, 4 * wanted)
        except HeaderInvalid as error:
            return None, f"pushed as plain bytes: {error}"
