"""Notices to the kernel: names and pages that it must not believe any more.

They are given by a thread, in the order they were queued. The kernel takes locks for them that a request in hand
may hold (a page being read, a directory being changed), so one given by the loop's own thread could wait for
itself.
"""

import errno
import logging
from collections.abc import Callable
from typing import Final

import trio

_log = logging.getLogger(__name__)
# The kernel does not know the inode or the name: there is nothing to forget. Or it is in use, and looked up later.
_EXPECTED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EBUSY})


class Notices:
    """The queue of one mount; `run` works it off."""

    def __init__(self) -> None:
        self._queue: list[Callable[[], object]] = []
        self._more = trio.Event()
        self._empty = trio.Event()
        self._empty.set()

    def add(self, give: Callable[[], object]) -> None:
        """Queue what gives one notice; never waits."""
        self._queue.append(give)
        if self._empty.is_set():
            self._empty = trio.Event()
        self._more.set()

    async def settled(self) -> None:
        """Wait until everything queued so far was taken."""
        await self._empty.wait()

    async def run(self) -> None:
        """Give what is queued, until cancelled."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            queue, self._queue = self._queue, []
            # Given up on cancellation: with the mount gone nothing waits for it, and the thread ends by itself.
            await trio.to_thread.run_sync(_give, queue, abandon_on_cancel=True)
            if not self._queue:
                self._empty.set()


def _give(queue: list[Callable[[], object]]) -> None:
    for give in queue:
        try:
            give()
        except OSError as error:
            if error.errno == errno.ENODEV:
                return  # unmounted
            if error.errno not in _EXPECTED:
                _log.warning("a notice to the kernel failed: %s", error)
