"""Versions on their way into a volume: one by one, and small new files as many together as wait at the moment."""

from collections import deque
from typing import Final

import trio

from tbshare.errors import PathMissing, StageMissing, TbshareError, errno_of
from tbshare.fuse.changes import Changes
from tbshare.fuse.link import Link
from tbshare.fuse.operations import FuseError
from tbshare.wire import mount as wire

BATCH_MAX: Final = 128
WAITING_MAX: Final = 1024  # closed files that are no version yet; who creates more waits


class _Asked:
    """One new file that was closed."""

    def __init__(self, params: wire.MountCutParams) -> None:
        self.params = params
        self.done = trio.Event()
        self.answer = wire.MountCutAnswer()


class Cuts:
    """What a mount asks to be saved."""

    def __init__(self, link: Link, changes: Changes, nursery: trio.Nursery) -> None:
        self._link, self._changes, self._nursery = link, changes, nursery
        self._waiting: dict[int, deque[_Asked]] = {}
        self._count = 0
        self._fewer = trio.Event()

    async def room(self) -> None:
        """Wait while too many closed files are no version yet."""
        while self._count >= WAITING_MAX:
            await self._fewer.wait()

    async def cut(self, volume: int, params: wire.MountCutParams) -> wire.MountCut:
        """Save one file, after the changes of names that were made before; FuseError."""
        await self._changes.settled(volume)
        again = False

        def resent() -> None:
            nonlocal again
            again = True

        try:
            return await self._link.call("mount_cut", params, wire.MountCut, resent=resent)
        except StageMissing as error:
            if again:
                return await self._done_before(volume, params)
            raise FuseError(errno_of(error)) from error
        except TbshareError as error:
            raise FuseError(errno_of(error)) from error

    async def _done_before(self, volume: int, params: wire.MountCutParams) -> wire.MountCut:
        """Return what the daemon saved, and could not say so before it ended."""
        if not params.path:
            return wire.MountCut()
        try:
            asked = wire.MountListParams(volume, params.path)
            item = (await self._link.call("mount_lookup", asked, wire.MountListing)).item
        except PathMissing:
            return wire.MountCut()
        except TbshareError as error:
            raise FuseError(errno_of(error)) from error
        return wire.MountCut(item, item.file, item.version)

    async def cut_together(self, volume: int, params: wire.MountCutParams) -> wire.MountCut:
        """Save a new file, together with others; FuseError."""
        asked = _Asked(params)
        waiting = self._waiting.get(volume)
        if waiting is None:
            waiting = self._waiting[volume] = deque()
            self._nursery.start_soon(self._send, volume, waiting)
        waiting.append(asked)
        self._count += 1
        try:
            await asked.done.wait()
        finally:
            self._count -= 1
            self._fewer.set()
            self._fewer = trio.Event()
        if asked.answer.errno:
            raise FuseError(asked.answer.errno)
        return asked.answer.cut

    async def _send(self, volume: int, waiting: deque[_Asked]) -> None:
        while waiting:
            batch = [waiting.popleft() for _ in range(min(len(waiting), BATCH_MAX))]
            await self._send_batch(volume, batch)
        del self._waiting[volume]

    async def _send_batch(self, volume: int, batch: list[_Asked]) -> None:
        again = False

        def resent() -> None:
            nonlocal again
            again = True

        await self._changes.settled(volume)
        params = wire.MountCutsParams(volume, [asked.params for asked in batch], batch[0].params.attached)
        try:
            answers = (await self._link.call("mount_cuts", params, wire.MountCuts, resent=resent)).answers
            for asked, answer in zip(batch, answers, strict=True):
                asked.answer = answer
                if again and answer.errno == StageMissing.errno:
                    asked.answer = await self._again(volume, asked.params)
        except TbshareError as error:
            for asked in batch:
                asked.answer = wire.MountCutAnswer(errno_of(error))
        finally:
            for asked in batch:
                asked.done.set()

    async def _again(self, volume: int, params: wire.MountCutParams) -> wire.MountCutAnswer:
        try:
            return wire.MountCutAnswer(0, await self._done_before(volume, params))
        except FuseError as error:
            return wire.MountCutAnswer(error.errno)


class Spares:
    """Empty working files that wait for a file to be created."""

    LOW: Final = 32
    MORE: Final = 64

    def __init__(self, link: Link, nursery: trio.Nursery, pid: int) -> None:
        self._link, self._nursery, self._pid = link, nursery, pid
        self._spare: dict[int, list[wire.MountStaged]] = {}
        self._asking: set[int] = set()

    def take(self, volume: int) -> wire.MountStaged | None:
        """Return an empty working file, None when there is none just now."""
        spare = self._spare.setdefault(volume, [])
        if len(spare) < self.LOW and volume not in self._asking:
            self._asking.add(volume)
            self._nursery.start_soon(self._more, volume)
        return spare.pop() if spare else None

    async def _more(self, volume: int) -> None:
        params = wire.MountSpareParams(volume, self._pid, self.MORE)
        try:
            told = await self._link.call("mount_spare", params, wire.MountSpares)
            self._spare[volume] += told.staged
        except TbshareError:
            return  # who creates a file asks for just one, and hears why not
        finally:
            self._asking.discard(volume)

    def rest(self) -> list[wire.MountStaged]:
        """Return all of them: the mount ends."""
        return [each for spare in self._spare.values() for each in spare]
