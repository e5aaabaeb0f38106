"""A file and a bytearray that go through the same: reads, writes, truncations, holes, copies, maps (own fsx)."""

import contextlib
import ctypes
import mmap
import os
from pathlib import Path
from random import Random

PAGE = 4096
PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE = 2, 1, 16
_libc = ctypes.CDLL(None, use_errno=True)


class ShadowFile:
    """Does random things to a file and knows what must be in it."""

    def __init__(self, path: Path, seed: int, *, size_max: int = 1 << 20, reopen_share: float = 0.02) -> None:
        self.path, self.random, self._size_max, self._reopen_share = path, Random(seed), size_max, reopen_share
        self.data = bytearray()
        self.done: list[str] = []
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT)

    def run(self, count: int) -> None:
        """Do so many things; AssertionError says what was done last when a byte is wrong."""
        steps = (self.write, self.write, self.read, self.truncate, self.punch, self.zero, self.extend, self.copy,
                 self.map_write, self.map_read, self.append)  # fmt: skip
        for _ in range(count):
            step = self.random.choice(steps)
            try:
                step()
            except AssertionError as error:
                raise AssertionError(f"{self.path.name}: after {self.done[-12:]}: {error}") from error
            if self.random.random() < self._reopen_share:
                self.reopen()
        self.reopen()

    def close(self) -> None:
        os.close(self._descriptor)

    def reopen(self) -> None:
        """Close, and open again: it is a version meanwhile."""
        self._note("reopen", 0, 0)
        os.close(self._descriptor)
        self._descriptor = os.open(self.path, os.O_RDWR)
        assert os.fstat(self._descriptor).st_size == len(self.data), "size after reopening"
        self._compare(os.pread(self._descriptor, len(self.data) + 1, 0), 0, len(self.data))

    def _place(self) -> tuple[int, int]:
        start = self.random.randrange(self._size_max)
        return start, min(self.random.choice((1, 100, 4096, 70_000, 300_000)), self._size_max - start)

    def _note(self, what: str, start: int, length: int) -> None:
        self.done.append(f"{what} {start}+{length}")

    def _compare(self, found: bytes, start: int, end: int) -> None:
        expected = bytes(self.data[start:end])
        if found == expected:
            return
        assert len(found) == len(expected), f"{len(found)} bytes from {start}, not {len(expected)}"
        first = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        raise AssertionError(f"byte {start + first} is {found[first]}, not {expected[first]}")

    def _put(self, start: int, piece: bytes) -> None:
        if start > len(self.data):
            self.data += bytes(start - len(self.data))
        self.data[start : start + len(piece)] = piece

    def write(self) -> None:
        start, length = self._place()
        self._note("write", start, length)
        piece = self.random.randbytes(length)
        assert os.pwrite(self._descriptor, piece, start) == length
        self._put(start, piece)

    def append(self) -> None:
        if len(self.data) + 5000 > self._size_max:
            return
        self._note("append", len(self.data), 5000)
        piece = self.random.randbytes(5000)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            assert os.write(descriptor, piece) == len(piece)
        finally:
            os.close(descriptor)
        self._put(len(self.data), piece)

    def read(self) -> None:
        start, length = self._place()
        self._note("read", start, length)
        self._compare(os.pread(self._descriptor, length, start), start, start + length)

    def truncate(self) -> None:
        size = self.random.randrange(self._size_max)
        self._note("truncate", size, 0)
        os.ftruncate(self._descriptor, size)
        self.data = self.data[:size] + bytes(max(0, size - len(self.data)))
        assert os.fstat(self._descriptor).st_size == size

    def _fallocate(self, mode: int, start: int, length: int) -> bool:
        place = (ctypes.c_int64(start), ctypes.c_int64(length))
        return bool(_libc.fallocate(self._descriptor, mode, *place) == 0)

    def punch(self) -> None:
        start, length = self._place()
        self._note("punch", start, length)
        if self._fallocate(PUNCH_HOLE | KEEP_SIZE, start, length) and start < len(self.data):
            end = min(start + length, len(self.data))
            self.data[start:end] = bytes(end - start)

    def zero(self) -> None:
        start, length = self._place()
        self._note("zero", start, length)
        if self._fallocate(ZERO_RANGE, start, length):
            self._put(start, bytes(length))

    def extend(self) -> None:
        start, length = self._place()
        self._note("fallocate", start, length)
        if self._fallocate(0, start, length) and start + length > len(self.data):
            self.data += bytes(start + length - len(self.data))

    def copy(self) -> None:
        start, length = self._place()
        target = self.random.randrange(self._size_max - length)
        length = min(length, max(0, len(self.data) - start))
        if not length or abs(target - start) < length:
            return
        self._note(f"copy to {target}", start, length)
        done = os.copy_file_range(self._descriptor, self._descriptor, length, start, target)
        self._put(target, bytes(self.data[start : start + done]))

    def map_write(self) -> None:
        with self._mapped() as mapped:
            start = self.random.randrange(len(mapped))
            piece = self.random.randbytes(min(9000, len(mapped) - start))
            self._note("map_write", start, len(piece))
            mapped[start : start + len(piece)] = piece
            self._put(start, piece)

    def map_read(self) -> None:
        with self._mapped() as mapped:
            start = self.random.randrange(len(mapped))
            self._note("map_read", start, 20_000)
            self._compare(mapped[start : start + 20_000], start, min(start + 20_000, len(self.data)))

    @contextlib.contextmanager
    def _mapped(self):  # type: ignore[no-untyped-def]
        if not self.data:
            self.data = bytearray(b"x")
            os.pwrite(self._descriptor, b"x", 0)
        with mmap.mmap(self._descriptor, len(self.data)) as mapped:
            yield mapped
