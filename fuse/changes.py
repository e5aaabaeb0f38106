"""Changes of names and attributes on their way to the daemon: in order, and several at once while it is busy."""

import errno
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import trio

from tbshare.errors import TbshareError, errno_of
from tbshare.fuse.link import Link
from tbshare.fuse.operations import FuseError
from tbshare.wire import mount as wire

BATCH_MAX: Final = 256
WAITING_MAX: Final = 4096
_log = logging.getLogger(__name__)
OnDone = Callable[[wire.MountItem | None], None]
_DONE_BEFORE: Final[
    dict[type[wire.MountChange], int]
] = {  # what a change that was done already is answered with when it is asked for again
    wire.Mkdir: errno.EEXIST,
    wire.Symlink: errno.EEXIST,
    wire.Link: errno.EEXIST,
    wire.Rename: errno.ENOENT,
    wire.Unlink: errno.ENOENT,
    wire.Rmdir: errno.ENOENT,
}


class _Asked:
    """One change on its way. `on_done` is called with what is there then; without it somebody waits for `done`."""

    def __init__(self, change: wire.MountChange, known: list[int], on_done: OnDone | None) -> None:
        self.change, self.known, self.on_done = change, known, on_done
        self.done = trio.Event()
        self.changed = wire.MountChanged(errno.EIO)
        self.abandoned = False  # who asked was interrupted, and did not mend anything


class _Queue:
    """The changes of one volume that are not done yet, in order."""

    def __init__(self) -> None:
        self.waiting: deque[_Asked] = deque()
        self.last: _Asked | None = None
        self.room = trio.Event()


class Changes:
    """The changes of a mount. `attached` is the number the daemon knows the mount by.

    `ask` waits until a change is done. `tell` does not: it is for what can be foreseen to succeed, and happens a
    moment later. Whoever needs to see it done waits for `settled`. What fails all the same is told by fsync of a
    directory.
    """

    def __init__(self, link: Link, nursery: trio.Nursery, forget_volume: Callable[[int], None]) -> None:
        self.attached = 0
        self._link, self._nursery, self._forget_volume = link, nursery, forget_volume
        self._queues: dict[int, _Queue] = {}
        self._failed: dict[int, int] = {}  # by volume: errno of something that was told and did not come about

    async def ask(self, volume: int, change: wire.MountChange, known: list[int]) -> wire.MountItem | None:
        """Have a change done, and return what is there then; FuseError.

        `known` are the ids that the caller mends itself: the daemon need not tell this mount of them.
        """
        asked = self._put(volume, _Asked(change, known, None))
        try:
            await asked.done.wait()
        except trio.Cancelled:
            queue = self._queues.get(volume)
            if queue is not None and asked in queue.waiting:
                queue.waiting.remove(asked)
                asked.done.set()
            asked.abandoned = True
            raise
        if asked.changed.errno:
            raise FuseError(asked.changed.errno)
        return asked.changed.item

    async def tell(
        self,
        volume: int,
        change: wire.MountChange,
        known: list[int],
        on_done: OnDone,
    ) -> None:
        """Have a change done soon; `on_done` gets what is there then. Waits only while very many are waiting."""
        queue = self._queues.get(volume)
        while queue is not None and len(queue.waiting) >= WAITING_MAX:
            await queue.room.wait()
            queue = self._queues.get(volume)
        self._put(volume, _Asked(change, known, on_done))

    async def settled(self, volume: int) -> None:
        """Wait until all that was told or asked so far is done."""
        queue = self._queues.get(volume)
        if queue is not None and queue.last is not None:
            await queue.last.done.wait()

    async def all_settled(self) -> None:
        """Wait until nothing is on its way."""
        for volume in list(self._queues):
            await self.settled(volume)

    def failure(self, volume: int) -> int:
        """Return, once, the errno of something that was told and did not come about; 0 when all did."""
        return self._failed.pop(volume, 0)

    def _put(self, volume: int, asked: _Asked) -> _Asked:
        queue = self._queues.get(volume)
        if queue is None:
            queue = self._queues[volume] = _Queue()
            self._nursery.start_soon(self._send, volume, queue)
        queue.waiting.append(asked)
        queue.last = asked
        return asked

    async def _send(self, volume: int, queue: _Queue) -> None:
        while queue.waiting:
            batch = [queue.waiting.popleft() for _ in range(min(len(queue.waiting), BATCH_MAX))]
            queue.room.set()
            queue.room = trio.Event()
            await self._send_batch(volume, batch)
        del self._queues[volume]
        queue.room.set()

    async def _send_batch(self, volume: int, batch: list[_Asked]) -> None:
        again = False

        def resent() -> None:
            nonlocal again
            again = True

        known = sorted({number for asked in batch for number in asked.known})
        params = wire.MountChangeParams(volume, [asked.change for asked in batch], self.attached, known)
        try:
            answer = await self._link.call("mount_change", params, wire.MountChangeResult, resent=resent)
            for asked, changed in zip(batch, answer.changed, strict=True):
                before = again and changed.errno and changed.errno == _DONE_BEFORE.get(type(asked.change))
                asked.changed = await self._as_done(volume, asked.change) if before else changed
        except TbshareError as error:
            for asked in batch:
                asked.changed = wire.MountChanged(errno_of(error), str(error))
        finally:
            self._tell_askers(volume, batch)

    def _tell_askers(self, volume: int, batch: Sequence[_Asked]) -> None:
        mistaken = False
        for asked in batch:
            asked.done.set()
            mistaken |= asked.abandoned
            if asked.on_done is None:
                continue
            if not asked.changed.errno:
                asked.on_done(asked.changed.item)
                continue
            _log.warning("%s did not come about: %s", asked.change, asked.changed.message)
            self._failed[volume] = asked.changed.errno
            mistaken = True
        if mistaken:
            self._forget_volume(volume)

    async def _as_done(self, volume: int, change: wire.MountChange) -> wire.MountChanged:
        """Say what became of a change that the daemon did, and could not say so before it ended."""
        if isinstance(change, wire.Unlink | wire.Rmdir):
            return wire.MountChanged()
        path = change.target if isinstance(change, wire.Rename) else change.path
        try:
            listing = await self._link.call("mount_lookup", wire.MountListParams(volume, path), wire.MountListing)
        except TbshareError as error:
            return wire.MountChanged(errno_of(error), str(error))
        return wire.MountChanged(item=listing.item)
