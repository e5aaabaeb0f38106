"""An object that is arriving: written block by block at its final offset, synced in batches.

Three states of a block, and only one way between them: absent -> written (its bytes passed the hash and lie in
the page cache) -> present (they are synced, and the index says so). What is written is served to others; what is
present survives the power. Of an absent block some leaves may be here, for whoever reads the object while it is
not whole; they are remembered in memory only, until the block has all of them and is written. A failed sync makes
the written blocks of that file absent again, because the pages may be gone although a second fsync would succeed
(Rebello et al., USENIX ATC 2020).
"""

import contextlib
import errno
import os
from pathlib import Path
from threading import Condition, Lock

from tbshare.content import bits, layout
from tbshare.content.bits import Bits
from tbshare.content.block import LEAF_BYTES
from tbshare.content.leaves import leaf_count
from tbshare.content.manifest import Manifest
from tbshare.store import disk

SMALL_BYTES = 64 * 1024  # an object up to this size rests in a pack, and arrives in memory


class Arriving:
    """One partial object. Thread-safe: lanes write, the syncer syncs, senders read."""

    def __init__(self, manifest: Manifest, path: Path, present: Bits, *, reserved: bool = True) -> None:
        """Open or make the partial file; DiskFull when its space is to be `reserved` and cannot be."""
        self.manifest = manifest
        self.layout = layout.choose(manifest.header)
        self.path = path
        self.present = present
        self.recorded = present  # what the index says is present
        self.written: Bits = 0
        self.owned = False  # somebody brings in all of it
        self.readers = 0  # who bring in what they read; this and the former are the store's
        self._leaves: dict[int, Bits] = {}  # of blocks that are absent
        self._failures = 0
        self._lock = Lock()
        self._idle = Condition(self._lock)  # told when `_writers` falls
        self._sealed = False
        self._pages = Lock()
        self._closed = False
        self._writers = 0
        self._memory = bytearray(manifest.size) if self.small else None
        self.descriptor = -1 if self.small else self._open(reserved)

    @property
    def small(self) -> bool:
        """Whether it is kept in memory until it is complete."""
        return self.manifest.size <= SMALL_BYTES

    def _open(self, reserved: bool) -> int:
        with contextlib.suppress(FileNotFoundError):
            os.chmod(self.path, 0o600)  # read-only when we were stopped just before its last rename
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if reserved:
                self._reserve(descriptor)
            elif os.fstat(descriptor).st_size < self._file_bytes:
                os.ftruncate(descriptor, self._file_bytes)
            # Also for a file that is there: who made it may have been killed before its name was synced.
            disk.sync_directory(self.path.parent)
        except BaseException:
            os.close(descriptor)
            if not self.present:
                self.path.unlink(missing_ok=True)
            raise
        return descriptor

    @property
    def _file_bytes(self) -> int:
        return self.manifest.size + self.layout.shift

    def reserve(self) -> None:
        """Reserve its space, which it was opened without; DiskFull when that cannot be."""
        if not self.small:
            self._reserve(self.descriptor)

    def _reserve(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if status.st_size < self._file_bytes or status.st_blocks * 512 < self._file_bytes:
            disk.reserve(descriptor, self._file_bytes)

    def file_offset(self, number: int) -> int:
        """Return where a block lies in the partial file. Header blocks stay where they are until the end."""
        offset = self.manifest.offsets[number]
        header = self.manifest.header
        return offset + self.layout.shift if header and offset >= header.data_start else offset

    def write(self, number: int, data: memoryview) -> None:
        """Write a block whose bytes have been hashed. OSError or DiskFull: it stays absent.

        A block that is here already is left alone: a late second copy must not touch an object that is being
        completed. OSError (EBADF) once the object was closed.
        """
        self._write(number, 0, data)

    def write_leaves(self, number: int, first: int, data: memoryview) -> None:
        """Write leaves of a block, from `first` on, that were proven to be its own; as `write`."""
        self._write(number, first, data)

    def _write(self, number: int, first: int, data: memoryview) -> None:
        leaves = bits.full(leaf_count(len(data))) << first
        with self._lock:
            if self._closed or self._sealed:
                raise OSError(errno.EBADF, "the object is no longer arriving")
            if self._has(number, leaves):
                return
            self._writers += 1
            failures = self._failures
        start = first * LEAF_BYTES
        try:
            if self._memory is not None:
                offset = self.manifest.offsets[number] + start
                self._memory[offset : offset + len(data)] = data
            else:
                with self._pages:  # two lanes that write to one file only spin on its lock in the kernel
                    disk.write_all(self.descriptor, data, self.file_offset(number) + start)
        finally:
            with self._lock:
                self._writers -= 1
                self._idle.notify_all()
                self._close_if_unused()
        with self._lock:
            if failures != self._failures:  # its pages may be among those that the sync has dropped
                raise OSError(errno.EIO, "the disk failed while a block was written")
            leaves |= self._leaves.get(number, 0)
            if leaves == bits.full(leaf_count(self.manifest.lengths[number])):
                self.written |= 1 << number
                self._leaves.pop(number, None)
            elif not (self.present | self.written) >> number & 1:
                self._leaves[number] = leaves

    def _has(self, number: int, leaves: Bits) -> bool:
        return bool((self.present | self.written) >> number & 1) or not leaves & ~self._leaves.get(number, 0)

    def leaves(self, number: int) -> Bits:
        """Return the leaves of a block that may be read."""
        with self._lock:
            if (self.present | self.written) >> number & 1:
                return bits.full(leaf_count(self.manifest.lengths[number]))
            return self._leaves.get(number, 0)

    def leaves_of_absent(self) -> dict[int, Bits]:
        """Return the leaves that may be read of blocks that are absent."""
        with self._lock:
            return dict(self._leaves)

    @property
    def readable(self) -> Bits:
        """Blocks that may be served: verified, synced or not."""
        with self._lock:
            return self.present | self.written

    @property
    def missing(self) -> Bits:
        """Blocks that are neither written nor present."""
        return bits.full(self.manifest.block_count) & ~self.readable

    @property
    def complete(self) -> bool:
        """Whether every block is written or present."""
        return not self.missing

    def sync(self) -> bool:
        """Make the written blocks durable; the index is the caller's. Return whether `present` grew.

        OSError: the blocks are absent again and must be written anew.
        """
        if self._memory is not None:
            return False
        with self._lock:
            batch = self.written
            if not batch or self._closed:
                return False
            self._writers += 1  # keeps the descriptor
        try:
            disk.sync_file(self.descriptor)
        except OSError:
            with self._lock:
                self._leaves.clear()
                self.written = 0  # and not only the batch: a failure is reported once, for all pages
                self._failures += 1
            raise
        finally:
            with self._lock:
                self._writers -= 1
                self._idle.notify_all()
                self._close_if_unused()
        with self._lock:
            self.present |= batch
            self.written &= ~batch
        return True

    def read(self, number: int) -> bytes:
        """Return a block's bytes as they lie there, not checked again."""
        offset, length = self.manifest.offsets[number], self.manifest.lengths[number]
        if self._memory is not None:
            return bytes(self._memory[offset : offset + length])
        return os.pread(self.descriptor, length, self.file_offset(number))

    def content(self) -> bytes:
        """Return all bytes of a small object."""
        assert self._memory is not None
        return bytes(self._memory)

    def forget(self, numbers: Bits) -> None:
        """Make blocks absent again."""
        with self._lock:
            self.present &= ~numbers
            self.written &= ~numbers

    def seal(self) -> None:
        """Let nothing be written any more, and wait for whoever writes now: the object is being completed."""
        with self._lock:
            self._sealed = True
            while self._writers:
                self._idle.wait()

    @property
    def closed(self) -> bool:
        """Whether nobody can write to it any more: it is whole, or was given up."""
        with self._lock:
            return self._closed

    @property
    def sealed(self) -> bool:
        """Whether it is being completed; its header may be padded already."""
        with self._lock:
            return self._sealed

    def close(self) -> None:
        """Close the file, once whoever writes now is done."""
        with self._lock:
            self._closed = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._closed and self._writers == 0 and self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
