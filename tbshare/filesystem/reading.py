"""Files that are read: from the store's files where they are complete here, else through the daemon.

What is mapped is memory of the page cache: it is counted with a process that reads it, and given back when others
need it. `memoryview()` is the map itself, and pyarrow reads without a copy.
"""

import contextlib
import io
import mmap
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Self

from fsspec.spec import AbstractBufferedFile

from tbshare.filesystem.connections import Access
from tbshare.wire.files import Extent, FileExtents, FileExtentsParams, FileReadParams

TIMES_GONE_MAX = 10  # that a store file may vanish between being told of and being opened
BUFFER_BYTES = 256 * 1024
SMALL_BYTES = 64 * 1024  # what the store keeps in packs: such a file begins within a page
FETCH_BYTES = 4 * 1024 * 1024  # a block, which is what is fetched and checked as one


_Untyped: Any = AbstractBufferedFile  # fsspec says nothing of types


open_file = os.open
View = memoryview  # classes below have methods of that name


class StoreBytes:
    """The bytes of one version: files of the store, open, and so readable whatever becomes of their names."""

    def __init__(self, size: int, extents: Sequence[Extent]) -> None:
        """Open them. FileNotFoundError when one is gone since it was told of."""
        self.size = size
        self._parts: list[tuple[Extent, int]] = []
        self._maps: dict[int, tuple[mmap.mmap, int]] = {}
        try:
            for extent in extents:
                self._parts.append((extent, open_file(extent.path, os.O_RDONLY | os.O_CLOEXEC)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files; what was mapped stays for as long as somebody has a view of it."""
        parts, self._parts = self._parts, []
        for _, descriptor in parts:
            os.close(descriptor)

    def read_into(self, view: memoryview, position: int) -> int:
        """Fill a view from a position; return how many bytes there were, fewer only at the end."""
        done = 0
        for extent, descriptor in self._parts:
            skip = position + done - extent.start
            if not 0 <= skip < extent.length:
                continue
            end = min(len(view), done + extent.length - skip)
            while done < end:
                at = extent.offset + position + done - extent.start
                count = os.preadv(descriptor, [view[done:end]], at)
                if count == 0:
                    raise OSError(5, f"{os.fsdecode(extent.path)} is shorter than it was; try: tbshare verify")
                done += count
        return done

    def read(self, position: int, length: int) -> bytes:
        """Return bytes, fewer only at the end."""
        count = max(0, min(length, self.size - position))
        for extent, descriptor in self._parts:
            if extent.start <= position and position + count <= extent.start + extent.length:
                data = os.pread(descriptor, count, extent.offset + position - extent.start)
                if len(data) == count:
                    return data
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), position)
        return bytes(buffer)

    def view(self, position: int, length: int) -> memoryview:
        """Return bytes as they are mapped; what crosses from one store file to another is copied."""
        count = max(0, min(length, self.size - position))
        for number, (extent, descriptor) in enumerate(self._parts):
            if count and extent.start <= position and position + count <= extent.start + extent.length:
                if number not in self._maps:
                    skip = extent.offset % mmap.ALLOCATIONGRANULARITY
                    mapped = mmap.mmap(
                        descriptor, extent.length + skip, access=mmap.ACCESS_READ, offset=extent.offset - skip
                    )
                    self._maps[number] = mapped, skip
                mapped, skip = self._maps[number]
                start = skip + position - extent.start
                return memoryview(mapped)[start : start + count]
        return memoryview(self.read(position, count))

    @property
    def is_one_file(self) -> bool:
        """Whether it is all of one file of the store, and nothing else."""
        if len(self._parts) != 1:
            return False
        extent, descriptor = self._parts[0]
        return extent.offset == 0 and extent.length == self.size == os.fstat(descriptor).st_size

    def descriptor(self) -> int:
        """Return the descriptor of the one file that it is. UnsupportedOperation."""
        if not self.is_one_file:
            raise io.UnsupportedOperation("this file is a part of a file of the store, or several")
        return self._parts[0][1]


class _Raw(io.RawIOBase):
    """A position in the bytes of a version."""

    def __init__(self, stored: StoreBytes) -> None:
        super().__init__()
        self.stored, self._position = stored, 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the store's file, where that is the file."""
        return self.stored.descriptor()

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer."""
        count = self.stored.read_into(memoryview(buffer).cast("B"), self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.stored.size}[whence]
        if start + offset < 0:
            raise OSError(22, "a position before the start of the file")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def close(self) -> None:
        """Let go of the store's files."""
        if not self.closed:
            self.stored.close()
        super().close()


class _Opened:
    """What every open file of a version has."""

    def __init__(self, fs: Any, path: str, found: FileExtents) -> None:
        self.fs, self.path, self.version = fs, path, found.version

    @property
    def mode(self) -> str:
        """How it is open."""
        return "rb"

    @property
    def name(self) -> str:
        """Its path."""
        return self.path

    @property
    def full_name(self) -> str:
        """Its URL."""
        return str(self.fs.unstrip_protocol(self.path))

    def info(self) -> dict[str, Any]:
        """Return what the file system says of the path now."""
        return dict(self.fs.info(self.path))


class SmallReader(_Opened, io.BytesIO):
    """A small file: read when it is opened, as it takes less than a map of it would."""

    def __init__(self, fs: Any, path: str, found: FileExtents, stored: StoreBytes) -> None:
        io.BytesIO.__init__(self, stored.read(0, found.size_bytes))
        _Opened.__init__(self, fs, path, found)
        self.size = found.size_bytes
        stored.close()

    def writable(self) -> bool:
        """Say no."""
        return False

    def write(self, data: Any, /) -> int:
        """UnsupportedOperation."""
        raise io.UnsupportedOperation("this file is open for reading")

    def memoryview(self) -> View:
        """Return all bytes."""
        return memoryview(self.getvalue())


class MappedReader(_Opened, mmap.mmap):
    """A file that is one file of the store, mapped.

    `seek`, `read`, `readline` and `tell` are those of mmap. They never give up the interpreter's lock: DuckDB has
    several threads seek and then read in one file, and mixes them up with any file that does, also with fsspec's
    local ones. A position past the end is a ValueError.
    """

    def __new__(cls, fs: Any, path: str, found: FileExtents, stored: StoreBytes) -> Self:
        """Map it."""
        return super().__new__(cls, stored.descriptor(), found.size_bytes, access=mmap.ACCESS_READ)

    def __init__(self, fs: Any, path: str, found: FileExtents, stored: StoreBytes) -> None:
        _Opened.__init__(self, fs, path, found)
        self._size, self._stored, self._closed = found.size_bytes, stored, False

    @property
    def size(self) -> int:  # type: ignore[override]
        """How many bytes it has."""
        return self._size

    @property
    def closed(self) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it is closed; a view of it may live on."""
        return self._closed

    def close(self) -> None:
        """Close it; who has a view of it keeps that."""
        self._closed = True
        self._stored.close()
        with contextlib.suppress(BufferError):
            super().close()

    def readable(self) -> bool:
        """Say yes."""
        return True

    def writable(self) -> bool:
        """Say no."""
        return False

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def isatty(self) -> bool:
        """Say no."""
        return False

    def flush(self, *_: int) -> None:
        """Do nothing."""

    def fileno(self) -> int:
        """Return the descriptor of the store's file."""
        return self._stored.descriptor()

    def memoryview(self) -> View:
        """Return all bytes as they are mapped; valid also after `close`."""
        return memoryview(self)

    def read_buffer(self, size: int = -1) -> View:
        """Read as `read` does, without a copy: pyarrow asks for this."""
        position = self.tell()
        end = self._size if size < 0 else min(self._size, position + size)
        self.seek(end)
        return memoryview(self)[position:end]

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer."""
        target = memoryview(buffer).cast("B")
        source = self.read_buffer(len(target))
        target[: len(source)] = source
        return len(source)

    readinto1 = readinto

    def read1(self, size: int = -1, /) -> bytes:
        """Read as `read` does."""
        return self.read(size)

    def readlines(self, hint: int = -1, /) -> list[bytes]:
        """Return the lines that are left."""
        return list(self)

    def __iter__(self) -> Iterator[bytes]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(self.readline, b"")

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        """Say how it comes back: opened anew where it is unpickled."""
        return _opened_again, (self.fs, self.path, self.tell())


class LocalReader(_Opened, io.BufferedReader):
    """A file that consists of several parts of the store: weights whose header was padded."""

    def __init__(self, fs: Any, path: str, found: FileExtents, stored: StoreBytes) -> None:
        io.BufferedReader.__init__(self, _Raw(stored), BUFFER_BYTES)
        _Opened.__init__(self, fs, path, found)
        self.size, self._stored = found.size_bytes, stored

    def memoryview(self) -> View:
        """Return a copy of all bytes."""
        return self._stored.view(0, self.size)

    def read_buffer(self, size: int = -1) -> View:
        """Read as `read` does; what is in one file of the store is mapped, not copied."""
        position = self.tell()
        view = self._stored.view(position, self.size if size < 0 else size)
        self.seek(position + len(view))
        return view


def local_reader(
    fs: Any, path: str, found: FileExtents, stored: StoreBytes
) -> SmallReader | MappedReader | LocalReader:
    """Return an open file for bytes that are all here."""
    if found.size_bytes <= SMALL_BYTES:
        return SmallReader(fs, path, found, stored)
    return (MappedReader if stored.is_one_file else LocalReader)(fs, path, found, stored)


def _opened_again(fs: Any, path: str, position: int) -> Any:
    file = fs.open(path)
    file.seek(position)
    return file


class RemoteReader(_Untyped):  # type: ignore[misc]
    """A file that is not, or not wholly, on this machine: ranges of it come through the daemon.

    The version is the one that was shown when it was opened. Once it is complete here it is read from the store.
    Where threads meet in it, as DuckDB's do, each reads on from where it has itself been last.
    """

    def __init__(
        self, fs: Any, path: str, found: FileExtents, block_size: int | None = None, **options: Any
    ) -> None:
        self.version = found.version
        self._access: Access = fs.access
        self._path = path
        self._stored: StoreBytes | None = None
        self._lock, self._crowded = threading.RLock(), False
        self._been: dict[int, int] = {}  # thread -> position
        untyped: Any = super()
        untyped.__init__(fs, path, "rb", block_size or FETCH_BYTES, size=found.size_bytes, **options)

    @contextlib.contextmanager
    def _turn(self) -> Generator[None]:
        """Let one thread after another; that one ever had to wait says that they do not hand it on in turn."""
        if not self._lock.acquire(blocking=False):
            self._crowded = True
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def seek(self, loc: int, whence: int = 0) -> int:
        """Go to a position."""
        untyped: Any = super()
        with self._turn():
            position = self._been[threading.get_ident()] = int(untyped.seek(loc, whence))
            return position

    def read(self, length: int = -1) -> bytes:
        """Read from the position."""
        untyped: Any = super()
        with self._turn():
            been = self._been.pop(threading.get_ident(), None)
            if self._crowded and been is not None:
                self.loc = been
            data = bytes(untyped.read(length))
            if self._crowded:
                self._been[threading.get_ident()] = self.loc
            return data

    def _fetch_range(self, start: int, end: int) -> bytes:
        if self._stored is None:
            _, self._stored = located(self._access, self._path, self.version)
        if self._stored is not None:
            return self._stored.read(start, end - start)
        return fetched(self._access, self._path, self.version, start, end - start)

    def close(self) -> None:
        """Close it."""
        if self._stored is not None:
            self._stored.close()
        untyped: Any = super()
        untyped.close()


def located(access: Access, path: str, version: str = "") -> tuple[FileExtents, StoreBytes | None]:
    """Return which version a path is, or this version of it, and its bytes if they are complete here."""
    params = FileExtentsParams(access.where(path), version)
    found = access.ask(path, lambda client: client.file_extents(params))
    for _ in range(TIMES_GONE_MAX):
        if not found.whole:
            break
        try:
            return found, StoreBytes(found.size_bytes, found.extents)
        except FileNotFoundError:  # given up, or written anew elsewhere, since it was told
            found = access.ask(path, lambda client: client.file_extents(params))
    return found, None


def read_all(access: Access, path: str, start: int | None, end: int | None) -> bytes:
    """Return the bytes [start, end) of a file, counted as slices are."""
    found, stored = located(access, path)
    first, last, _ = slice(start, end).indices(found.size_bytes)
    if stored is None:
        return fetched(access, path, found.version, first, last - first) if last > first else b""
    try:
        return stored.read(first, last - first)
    finally:
        stored.close()


def fetched(access: Access, path: str, version: str, start: int, length: int) -> bytes:
    """Return a range of a version's bytes, through the daemon."""
    parts: list[bytes] = []
    params = FileReadParams(access.where(path), version, start, length)
    access.ask(path, lambda client: client.file_read(params, parts.append))
    return b"".join(parts)
