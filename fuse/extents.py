"""The files that an object's bytes are in, open, and which of the object's bytes can be read from them."""

import contextlib
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

from tbshare.fuse.operations import Buffer
from tbshare.wire.mount import MountExtent

MAPPED_BYTES_MIN: Final = 64 * 1024  # of one piece; what is shorter is quicker copied


class StoreFile:
    """A file of the store, open. Nobody shortens it; it may be unlinked, or get another name."""

    def __init__(self, path: bytes) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self.descriptor)
        self.identity = status.st_dev, status.st_ino
        self._view = memoryview(b"")
        if status.st_size >= MAPPED_BYTES_MIN:
            with contextlib.suppress(OSError, ValueError):
                self._view = memoryview(mmap.mmap(self.descriptor, status.st_size, access=mmap.ACCESS_READ))

    def read(self, offset: int, length: int) -> Buffer:
        """Return bytes of the file. A view stays good when the file is closed."""
        if length >= MAPPED_BYTES_MIN and offset + length <= len(self._view):
            return self._view[offset : offset + length]
        return os.pread(self.descriptor, length, offset)

    def close(self) -> None:
        """Close it; its pages stay mapped while somebody has a view."""
        self._view = memoryview(b"")
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Bytes(StoreFile):
    """All bytes of a small object, as the daemon told them: no file is open for them."""

    def __init__(self, data: bytes) -> None:
        self.descriptor = -1
        self.identity = 0, 0
        self._view = memoryview(data)

    def read(self, offset: int, length: int) -> Buffer:
        """Return bytes."""
        return self._view[offset : offset + length]


def open_files(extents: Iterable[MountExtent]) -> dict[bytes, StoreFile]:
    """Open the files of extents. FileNotFoundError: a name has changed since they were told."""
    files: dict[bytes, StoreFile] = {}
    try:
        for path in {extent.path for extent in extents if extent.path}:
            files[path] = StoreFile(path)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return files


class _Range(NamedTuple):
    """Bytes [start, end) of the object are in `file`, `shift` further on; None: they are zeros."""

    start: int
    end: int
    file: StoreFile | None
    shift: int


class Extents:
    """What can be read of one object: it grows."""

    def __init__(self) -> None:
        self._ranges: list[_Range] = []  # in order, apart
        self._files: dict[tuple[int, int], StoreFile] = {}

    def take(self, extents: Iterable[MountExtent], files: dict[bytes, StoreFile], *, anew: bool = False) -> None:
        """Add extents, whose files are open; `anew`: they are all that can be read."""
        extents = list(extents)
        known = dict[bytes, StoreFile]()
        if anew:
            self._ranges = []
        for path, file in files.items():
            before = self._files.setdefault(file.identity, file)
            known[path] = before
            if before is not file:
                file.close()
        for extent in extents:
            end = extent.start + extent.length
            if extent.start < end:
                shift = extent.offset - extent.start
                self._add(_Range(extent.start, end, known.get(extent.path), shift))
        if anew:
            self._close_others(set(known.values()))

    def take_bytes(self, data: bytes) -> None:
        """Take all bytes of a small object."""
        self._ranges = [_Range(0, len(data), Bytes(data), 0)]

    def _close_others(self, used: set[StoreFile]) -> None:
        for identity, file in list(self._files.items()):
            if file not in used:
                file.close()
                del self._files[identity]

    def _add(self, new: _Range) -> None:
        first = bisect_right(self._ranges, new.start, key=_start)
        if first and self._ranges[first - 1].end >= new.start:
            first -= 1
        last = bisect_right(self._ranges, new.end, key=_start)
        touched: list[_Range] = []
        for old in self._ranges[first:last]:
            if (old.file, old.shift) == (new.file, new.shift):
                new = new._replace(start=min(old.start, new.start), end=max(old.end, new.end))
            else:  # its neighbour in another file; what both have is the same
                touched += [old._replace(end=min(old.end, new.start))] if old.start < new.start else []
                touched += [old._replace(start=max(old.start, new.end))] if old.end > new.end else []
        self._ranges[first:last] = sorted([*touched, new], key=_start)

    def parts(self, start: int, end: int) -> list[Buffer] | None:
        """Return bytes [start, end) in parts; None when some of them cannot be read."""
        parts: list[Buffer] = []
        at = bisect_right(self._ranges, start, key=_start) - 1
        while start < end:
            if not 0 <= at < len(self._ranges) or not self._ranges[at].start <= start < self._ranges[at].end:
                return None
            found = self._ranges[at]
            length = min(end, found.end) - start
            parts.append(bytes(length) if found.file is None else found.file.read(start + found.shift, length))
            start, at = start + length, at + 1
        return parts

    def backing(self, size: int) -> int | None:
        """Return the descriptor of the one file that has all of the object, byte for byte; None: there is none."""
        if len(self._ranges) != 1:
            return None
        (found,) = self._ranges
        alone = (found.start, found.end, found.shift) == (0, size, 0) and found.file is not None
        if (
            not alone
            or found.file is None
            or found.file.descriptor < 0
            or os.fstat(found.file.descriptor).st_size != size
        ):
            return None
        return found.file.descriptor

    def close(self) -> None:
        """Close all files."""
        self._ranges = []
        self._close_others(set())


def _start(each: _Range) -> int:
    return each.start
