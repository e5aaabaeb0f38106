"""A working file as a mount has it open: read, written, punched; what was changed is noted where it must be.

Where the store's disk can share blocks nobody notes ranges: the kernel writes the file by itself (passthrough),
and the daemon sees by its extents what changed. All else goes through here.
"""

import ctypes
import os
import time
from functools import partial
from typing import Final

import trio

from tbshare.fuse.operations import Answer, Buffer
from tbshare.wire.mount import MountStaged

INLINE_BYTES: Final = 64 << 10  # a larger piece is moved in a thread: the disk may make it wait
RANGES_MAX: Final = 4096  # noted singly; of more the whole file counts as changed
RECENT_NS: Final = 2_000_000_000  # a time of change this young may hide one more change
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate", None)


class Stage:
    """One working file, open. `file` and `version` are what a save goes to and starts from."""

    def __init__(
        self, staged: MountStaged, known_path: tuple[bytes, ...], file: int, version: int, *, is_new: bool
    ) -> None:
        self.id, self.path, self.cloned = staged.id, staged.path, staged.cloned
        self.file, self.version = file, version
        self.descriptor = os.open(staged.path, os.O_RDWR | os.O_CLOEXEC)
        self.is_new, self.told = is_new, False
        self.known_path = known_path  # in the volume
        self.removed = False  # by this mount
        self.handles = 0
        self.writers = 0
        self.lock = trio.Lock()  # held while it is cut: one after the other, in order
        self.closing = False  # its last cut is under way: who opens the file waits for the end of it
        self.promised: tuple[bytes, ...] | None = None  # the path that fsync told the daemon
        self.killed_mode: int | None = None  # what a write left of the mode
        self.failures = 0  # cuts that did not succeed, in a row
        self._ranges: list[tuple[int, int]] | None = []  # None: too many
        self._must_cut = is_new  # also if nothing is written
        self._mark = _sure(self._state())

    # what it is ------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns

    def attributes(self) -> tuple[int, int, int]:
        """Return size, blocks and mtime_ns."""
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_blocks, status.st_mtime_ns

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return os.fstat(self.descriptor).st_size

    def changed(self) -> bool:
        """Return whether it may differ from what it was when it was staged, or cut last."""
        return self._must_cut or self._ranges != [] or self._state() != self._mark

    def idle_seconds(self) -> float:
        """Return for how long nothing was written."""
        return (time.time_ns() - self._state()[1]) / 1e9

    def taken(self) -> tuple[list[tuple[int, int]] | None, tuple[int, int] | None]:
        """Return the ranges changed since the last cut (None: not known), and what `cut` is to be told."""
        ranges, self._ranges, self._must_cut = self._ranges, [], False
        return None if self.cloned else ranges, _sure(self._state())

    def cut(self, state: tuple[int, int] | None) -> None:
        """Note that what it was at `state` is a version now."""
        self._mark, self.failures = state, 0

    def uncut(self, ranges: list[tuple[int, int]] | None) -> None:
        """Note that what was taken is no version after all."""
        self._must_cut = True
        self.failures += 1
        self._ranges = None if ranges is None or self._ranges is None else [*ranges, *self._ranges]

    def note(self, start: int, end: int) -> None:
        """Note that a range was changed."""
        if self.cloned or self._ranges is None or start >= end:
            return
        if self._ranges and self._ranges[-1][0] <= start <= self._ranges[-1][1]:
            start, end = self._ranges[-1][0], max(end, self._ranges.pop()[1])
        self._ranges.append((start, end))
        if len(self._ranges) > RANGES_MAX:
            self._ranges = None

    def touched(self) -> None:
        """Note that it is to be cut even if its bytes and times look the same."""
        self._must_cut = True

    # what is done to it ----------------------------------------------------------------------------------------

    def read(self, offset: int, size_bytes: int) -> Answer[Buffer]:
        """Return bytes; fewer only at the end."""
        if size_bytes <= INLINE_BYTES:
            return os.pread(self.descriptor, size_bytes, offset)
        return trio.to_thread.run_sync(partial(os.pread, self.descriptor, size_bytes, offset))

    def write(self, offset: int, data: memoryview) -> Answer[int]:
        """Write all of it, and return how much that is."""
        self.note(offset, offset + len(data))
        if self.size_bytes < offset:
            self.note(self.size_bytes, offset)
        if len(data) <= INLINE_BYTES:
            return self._write(offset, data)
        return trio.to_thread.run_sync(self._write, offset, data)

    def _write(self, offset: int, data: memoryview) -> int:
        done = 0
        while done < len(data):
            done += os.pwrite(self.descriptor, data[done:], offset + done)
        return done

    def lseek(self, offset: int, whence: int) -> int:
        """Find data or a hole."""
        return os.lseek(self.descriptor, offset, whence)

    def truncate(self, size_bytes: int) -> None:
        """Make it shorter or longer."""
        before = self.size_bytes
        os.ftruncate(self.descriptor, size_bytes)
        self.note(min(before, size_bytes), max(before, size_bytes))
        self.touched()

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Reserve, punch or zero a range."""
        before = self.size_bytes
        place = (ctypes.c_int64(offset), ctypes.c_int64(length))
        if _fallocate is None:
            os.posix_fallocate(self.descriptor, offset, length)
        elif _fallocate(self.descriptor, mode, *place) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.note(offset, offset + length)
        self.note(before, self.size_bytes)
        self.touched()

    def copy_from(self, source: "Stage", offset_in: int, offset_out: int, length: int) -> int:
        """Copy from another working file, or this one, and return how much."""
        done = os.copy_file_range(source.descriptor, self.descriptor, length, offset_in, offset_out)
        self.note(offset_out, offset_out + done)
        return done

    def set_mtime(self, mtime_ns: int) -> None:
        """Give it another time of change."""
        os.utime(self.descriptor, ns=(mtime_ns, mtime_ns))
        self.touched()

    def only_read(self) -> None:
        """Give up writing: whoever makes an object of the file itself must see that nobody writes."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(descriptor, self.descriptor, inheritable=False)
        os.close(descriptor)

    def write_again(self) -> None:
        """Undo `only_read`."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(descriptor, self.descriptor, inheritable=False)
        os.close(descriptor)

    def close(self) -> None:
        """Close it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _sure(state: tuple[int, int]) -> tuple[int, int] | None:
    """Return size and time of change if one more change would alter them: the clock of files has coarse steps."""
    return state if time.time_ns() - state[1] > RECENT_NS else None
