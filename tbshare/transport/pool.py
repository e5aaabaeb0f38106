"""The buffers that blocks arrive in: a fixed number for the whole daemon, whatever comes over however many lanes.

Waiting for a buffer is the back-pressure: a lane that has none does not read, the peer's window closes, and
memory stays where it is. A buffer holds one block and its tag.

Pages are private and huge where the kernel gives huge ones (a shared mapping, Python's default, is never huge),
and the buffer given back last is handed out first, so that a lightly loaded daemon touches few of them.
"""

import mmap
import sys
from collections.abc import Callable
from threading import Condition

from tbshare.content.block import BLOCK_BYTES

BUFFERS = 12  # 48 MiB: three each for four lanes
# The tag of a sealed block lies on a page of its own behind the block; the rest of this is never touched.
_MAPPING_BYTES = BLOCK_BYTES + 2 * 1024 * 1024


def make_buffer() -> memoryview:
    """Return new memory for one block and its tag, not yet backed by pages."""
    mapping = mmap.mmap(-1, _MAPPING_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        mapping.madvise(mmap.MADV_HUGEPAGE, 0, BLOCK_BYTES)
    return memoryview(mapping)


class BufferPool:
    """A fixed number of buffers; threads wait for one.

    Invariant: every buffer is either in `_free` or was taken and will be given back by who took it. Whoever
    holds one waits for a peer or a disk, never for a second buffer, so the pool cannot deadlock.
    """

    def __init__(self, buffers: int = BUFFERS) -> None:
        assert buffers > 0
        self.size = buffers
        self._changed = Condition()
        self._free: list[memoryview] = []
        self._unmade = buffers

    @property
    def in_use(self) -> int:
        """How many buffers are taken now."""
        with self._changed:
            return self.size - self._unmade - len(self._free)

    def take(self, stopped: Callable[[], bool]) -> memoryview | None:
        """Wait for a buffer; None once `stopped()`, which is asked again after each `wake`."""
        with self._changed:
            while not stopped():
                if self._free:
                    return self._free.pop()
                if self._unmade:
                    self._unmade -= 1
                    return make_buffer()
                self._changed.wait()
            return None

    def give(self, buffer: memoryview) -> None:
        """Give a buffer back."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()

    def wake(self) -> None:
        """Let every waiting thread ask again whether it is to stop."""
        with self._changed:
            self._changed.notify_all()
