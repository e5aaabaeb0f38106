"""An object from a working file as it is now, although programs may go on writing to it.

Where the file system can share blocks, the working file is cloned, and the clone becomes the object: nothing is
written twice, and of its bytes only those are hashed that lie elsewhere on the disk than the base's. Elsewhere a
working file that nobody can write to any more is linked into objects/ itself, and one that is open is copied, the
buffer that is hashed being the buffer that is written. Holes stay holes.
"""

import contextlib
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

from tbshare.content import cut as cuts
from tbshare.content.block import BLOCK_BYTES, ObjectId, block_id
from tbshare.content.manifest import Manifest, of_blocks
from tbshare.store import disk
from tbshare.store.arriving import SMALL_BYTES
from tbshare.store.store import Store

Ranges = Sequence[tuple[int, int]]  # (start, end)
THREADS_MIN_BLOCKS = 8  # fewer blocks are hashed sooner than threads begin
WORKERS = max(1, min(4, os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Cut:
    """An object that was made of a working file. `linked`: it is the working file itself."""

    object_id: ObjectId
    size: int
    mtime_ns: int
    bytes_hashed: int = 0
    bytes_written: int = 0
    linked: bool = False


def cut(store: Store, path: Path, base: bytes, changed: Ranges | None, *, last: bool, clones: bool) -> Cut:
    """Make an object of the working file at `path`; durable after `sync_records`.

    `base` is the object that it held before, b"" if none, and `changed` where it was written to since; None: that
    is not known. `last`: nobody goes on writing. DiskFull leaves the working file as it is.
    """
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(source)
        data = os.pread(source, SMALL_BYTES + 1, 0) if status.st_size <= SMALL_BYTES else None
        if data is not None and len(data) <= SMALL_BYTES:
            return _small(store, data, status.st_mtime_ns)
        temporary = store.home.temporary("cut")
        try:
            clone = disk.clone_file(source, temporary) if clones else None
            if clone is not None:
                return _cloned(store, source, clone, temporary, base)
            if last and disk.hold_still(source):
                return _linked(store, path, source, temporary, base, changed)
            return _copied(store, source, temporary)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise disk.translated(error) from error
    finally:
        os.close(source)


def _small(store: Store, data: bytes, mtime_ns: int) -> Cut:
    found = of_blocks(len(data), None, [block_id(data)] if data else [])
    store.add_small(found, data)
    return Cut(found.id, len(data), mtime_ns, len(data), len(data))


# from a clone ----------------------------------------------------------------------------------------------------


def _cloned(store: Store, source: int, clone: int, temporary: Path, base: bytes) -> Cut:
    try:
        status = os.fstat(clone)
        mtime_ns = os.fstat(source).st_mtime_ns
        if status.st_size <= SMALL_BYTES:  # it was cut short in this moment
            return _small(store, os.pread(clone, SMALL_BYTES, 0), mtime_ns)
        blocks = Blocks(clone, status.st_size)
        known, place = _base(store, base)
        if known is not None and place is not None:
            blocks.take_over(known, _differing(clone, place, status.st_size))
        blocks.hash_clone(source)
        found = blocks.manifest()
        if not store.is_whole(found.id):
            disk.sync_file(clone)
            store.adopt_file(found, temporary, "exact")
        return Cut(found.id, found.size, mtime_ns, blocks.bytes_hashed, len(found.encoded))
    finally:
        os.close(clone)


def _base(store: Store, base: bytes) -> tuple[Manifest | None, Path | None]:
    """Return the manifest of the base if its blocks can be taken over, and its file if it is just its bytes."""
    row = store.row(ObjectId(base)) if base else None
    if row is None or not row.whole:
        return None, None
    found = store.manifest(row.id)
    if found is None or found.cut != cuts.FIXED:
        return None, None
    return found, store.home.object(row.id, row.place) if row.place == "exact" else None


def _differing(clone: int, base: Path, size: int) -> Ranges | None:
    """Return where a clone has other disk blocks than the base object; None where that cannot be told."""
    with contextlib.suppress(FileNotFoundError):  # collected in this moment
        descriptor = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return disk.differing_ranges(clone, descriptor, size)
        finally:
            os.close(descriptor)
    return None


# without clones --------------------------------------------------------------------------------------------------


def _linked(store: Store, path: Path, source: int, temporary: Path, base: bytes, changed: Ranges | None) -> Cut:
    """Make the working file itself an object; its name in staging/ stays until the caller has committed it."""
    disk.sync_file(source)
    status = os.fstat(source)
    blocks = Blocks(source, status.st_size)
    known, _ = _base(store, base)
    if known is not None and changed is not None:
        blocks.take_over(known, changed)
    blocks.hash(source, blocks.missing())
    if not disk.held_still(source) or not all(blocks.ids):
        return _copied(store, source, temporary)
    found = blocks.manifest()
    linked = not store.is_whole(found.id)
    if linked:
        os.link(path, temporary)
        store.adopt_file(found, temporary, "exact")
    return Cut(found.id, found.size, status.st_mtime_ns, blocks.bytes_hashed, len(found.encoded), linked)


def _copied(store: Store, source: int, temporary: Path) -> Cut:
    status = os.fstat(source)
    size, data = status.st_size, disk.data_ranges(source, status.st_size)
    store.check_room(sum(end - start for start, end in data))
    target = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(target, size)
        blocks = Blocks(source, size)
        written = blocks.copy(target)
        found = blocks.manifest()
        if not store.is_whole(found.id):
            disk.sync_file(target)
            store.adopt_file(found, temporary, "exact")
        return Cut(found.id, size, status.st_mtime_ns, blocks.bytes_hashed, written)
    finally:
        os.close(target)


# blocks ----------------------------------------------------------------------------------------------------------


@cache
def _zeros_id(length: int) -> bytes:
    """Return the id of a block that is all zeros; a file has at most two lengths of blocks."""
    return block_id(bytes(length))


class Blocks:
    """The ids of the blocks of one file, as they become known."""

    def __init__(self, descriptor: int, size: int) -> None:
        """Those in holes of the open file are known at once."""
        self._descriptor, self._size = descriptor, size
        self._lengths = cuts.lengths(cuts.FIXED, size)
        self._offsets = list(accumulate(self._lengths, initial=0))
        self._data = self._touched(disk.data_ranges(descriptor, size))
        self.ids = [
            b"" if number in self._data else _zeros_id(length) for number, length in enumerate(self._lengths)
        ]
        self.bytes_hashed = 0

    def _touched(self, ranges: Ranges) -> set[int]:
        """Return the blocks that these ranges touch."""
        return {
            number
            for start, end in ranges
            if start < min(end, self._size)
            for number in range(start // BLOCK_BYTES, -(-min(end, self._size) // BLOCK_BYTES))
        }

    def take_over(self, base: Manifest, changed: Ranges | None) -> None:
        """Take the ids of blocks that are not changed from the manifest of what the file held before."""
        if changed is None:
            return
        touched = self._touched(changed)
        for number, (old, new) in enumerate(zip(base.lengths, self._lengths, strict=False)):
            if old == new and number not in touched:
                self.ids[number] = base.block(number)

    def missing(self) -> list[int]:
        """Return the blocks whose ids are not known."""
        return [number for number, each in enumerate(self.ids) if not each]

    def manifest(self) -> Manifest:
        """Return the manifest; every id must be known."""
        assert all(self.ids)
        return of_blocks(self._size, None, self.ids)

    def hash_clone(self, source: int) -> None:
        """Hash what is missing of a clone.

        The working file is read, whose pages are in memory as often as not, while the clone's never are. Where the
        two consist of the same disk blocks afterwards, these bytes are the clone's; the rest is read from there.
        """
        numbers = self.missing()
        self.hash(source, numbers)
        differing = disk.differing_ranges(source, self._descriptor, self._size) if numbers else []
        again = set(numbers) if differing is None else self._touched(differing) & set(numbers)
        self.hash(self._descriptor, sorted(again | set(self.missing())))

    def hash(self, descriptor: int, numbers: Sequence[int]) -> None:
        """Hash these blocks of an open file; one that is shorter by now stays unknown."""
        self._in_threads(lambda part: self._hash(descriptor, part), numbers)

    def copy(self, target: int) -> int:
        """Copy all that is no hole, and hash the buffers that are copied; return how many bytes there were."""
        numbers = sorted(self._data)
        self._in_threads(lambda part: self._hash(self._descriptor, part, target), numbers)
        return sum(self._lengths[number] for number in numbers)

    def _in_threads(self, work: Callable[[Sequence[int]], int], numbers: Sequence[int]) -> None:
        count = WORKERS if len(numbers) >= THREADS_MIN_BLOCKS else 1
        if count == 1:
            self.bytes_hashed += work(numbers)
            return
        with ThreadPoolExecutor(count, thread_name_prefix="cut") as pool:
            self.bytes_hashed += sum(pool.map(work, [numbers[start::count] for start in range(count)]))

    def _hash(self, descriptor: int, numbers: Iterable[int], target: int = -1) -> int:
        """Hash blocks, and write them to `target` as they were hashed: there what is missing is zeros."""
        hashed = 0
        with mmap.mmap(-1, BLOCK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as buffer:
            for number in numbers:
                with memoryview(buffer)[: self._lengths[number]] as view:
                    count = disk.read_into(descriptor, view, self._offsets[number])
                    if target >= 0:
                        view[count:] = bytes(len(view) - count)
                        disk.write_all(target, view, self._offsets[number])
                    elif count != len(view):
                        self.ids[number] = b""
                        continue
                    self.ids[number] = block_id(view)
                    hashed += len(view)
        return hashed
