"""`watch`: what changes in a volume, told as it happens.

Whoever commits puts what was touched into a queue; a task of each reader turns that into paths. A reader that
falls behind is told `lost` once instead: it looks for itself and is told again what comes then.
"""

import time
from collections import deque
from collections.abc import Mapping

import trio

from tbshare.daemon.control import Emit
from tbshare.daemon.file_lines import FileLines
from tbshare.daemon.files import Files
from tbshare.daemon.service import Service
from tbshare.errors import UsageError
from tbshare.volumes.item import Change, Path
from tbshare.volumes.rows import VersionRow
from tbshare.volumes.volume import Handle
from tbshare.volumes.volumes import Changes
from tbshare.wire.report import Done
from tbshare.wire.volume import Changed, WatchParams
from tbshare.wire.where import Where, id_text

WAITING_MAX = 1024  # commits that a reader may be behind


class Watching:
    """Answers watch."""

    def __init__(self, service: Service, files: Files) -> None:
        self.service, self.files = service, files

    async def watch(self, params: WatchParams, emit: Emit) -> Done:
        """Tell changes at a path and below until the reader leaves."""
        if params.where.snapshot:
            raise UsageError(
                f"{params.where}: nothing changes in a snapshot", cure=f"tbshare watch {params.where.volume}"
            )
        state, handle = await self.files.open(params.where)
        told = FileLines(self.service, state, handle)
        queue = _Queue(handle.id, trio.lowlevel.current_trio_token())
        self.service.volumes.changes.append(queue.put)
        try:
            while True:
                await queue.filled.wait()
                queue.filled = trio.Event()
                while queue.waiting:
                    for event in await self._events(handle, told, params.where, queue.waiting.popleft()):
                        await emit(event)
                if queue.take_lost():
                    await emit(Changed(params.where, "lost", when_ns=time.time_ns()))
        finally:
            self.service.volumes.changes.remove(queue.put)

    async def _events(self, handle: Handle, told: FileLines, where: Where, changes: Changes) -> list[Changed]:
        if changes.anew:
            return [Changed(where, "lost", when_ns=time.time_ns())]
        found = await trio.to_thread.run_sync(handle.changed, changes)
        new = {version.version: version for version in changes.versions}
        return [
            event
            for change in found
            if _is_below(change.path, where.parts) or (change.before and _is_below(change.before, where.parts))
            for event in self._of_change(handle, told, change, new)
        ]

    def _of_change(
        self, handle: Handle, told: FileLines, change: Change, new: Mapping[int, VersionRow]
    ) -> list[Changed]:
        """Return what is told of a change: that it was moved, and that it was saved as well."""
        item = change.item
        version = new.get(item.version) if item is not None else None
        kinds: list[str] = ["moved"] if change.what == "moved" else []
        if version is not None and item is not None:
            kinds.append("forked" if item.fork else "saved" if version.parents else "created")
        elif change.what != "moved":
            kinds.append("created" if change.what == "placed" else change.what)
        return [self._event(handle, told, change, what) for what in kinds]

    def _event(self, handle: Handle, told: FileLines, change: Change, what: str) -> Changed:
        item, is_save = change.item, what in ("saved", "forked")
        author = item.author if item is not None and is_save else change.author
        return Changed(
            _where(handle, change.path),
            what,
            _where(handle, change.before) if what == "moved" and change.before is not None else None,
            item.kind if item is not None else change.kind,
            version=id_text(item.version) if item is not None else "",
            author=told.name(author) if author else "",
            size_bytes=item.size if item is not None else 0,
            when_ns=item.ctime_ns if item is not None and is_save else change.time_ns,
            here=author == self.service.identity.node,
        )


def _is_below(path: Path, above: Path) -> bool:
    return path[: len(above)] == above


def _where(handle: Handle, path: Path) -> Where:
    return Where(handle.name, b"/".join(path))


class _Queue:
    """Changes on their way to one reader; `put` is called by whatever thread commits."""

    def __init__(self, volume: int, token: trio.lowlevel.TrioToken) -> None:
        self._volume, self._token = volume, token
        self.waiting: deque[Changes] = deque()
        self.filled = trio.Event()
        self._lost = False

    def put(self, volume: int, changes: Changes) -> None:
        """Add what was touched, or note that it was too much."""
        if volume != self._volume or not changes:
            return
        if len(self.waiting) >= WAITING_MAX:
            self._lost = True
        else:
            self.waiting.append(changes)
        try:
            self._token.run_sync_soon(self._wake, idempotent=True)
        except trio.RunFinishedError:
            return  # the daemon ends

    def _wake(self) -> None:
        self.filled.set()

    def take_lost(self) -> bool:
        """Return whether something was left out since the last call."""
        lost, self._lost = self._lost, False
        return lost
