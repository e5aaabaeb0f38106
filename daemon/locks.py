"""Locks while something of a volume is written: taken on what is there, released afterwards.

A lock keeps two people from working at once; that nothing is lost never rests on it. So a lock that nobody who
grants it decides on in time is done without, and what is saved then is a fork at worst.
"""

import contextlib
from collections.abc import AsyncGenerator, Generator, Sequence

import trio

from tbshare.errors import Locked, PathMissing, PathNotDirectory, VolumeReadOnly
from tbshare.peers.leasing import Leasing
from tbshare.peers.mesh import Mesh
from tbshare.volumes.item import Item, Path
from tbshare.volumes.leases import Kind
from tbshare.volumes.volume import Handle

DECIDED_SECONDS = 1.5  # for a lock on one file; a granter that has just started would take ten

_Key = tuple[int, int]


class Locks:
    """Takes and releases locks; several calls of this node share one."""

    def __init__(self, mesh: Mesh, leasing: Leasing) -> None:
        self._mesh, self._leasing = mesh, leasing
        self._users: dict[_Key, int] = {}

    @contextlib.asynccontextmanager
    async def held(self, handle: Handle, paths: Sequence[Path]) -> AsyncGenerator[Handle, None]:
        """Hold the locks of what these paths lead to; what is saved through the handle given tells of them.

        Locked or VolumeReadOnly when another does.
        """
        targets = await trio.to_thread.run_sync(_targets, handle, paths) if paths else []
        taken: list[_Key] = []
        epochs: dict[int, int] = {}
        try:
            for item, ancestors in targets:
                key = (handle.id, item.file)
                self._users[key] = self._users.get(key, 0) + 1
                taken.append(key)
                epochs[item.file] = await self._take(handle, item, ancestors)
            yield handle.under(epochs)
        finally:
            with trio.CancelScope(shield=True):
                for key in taken:
                    self._users[key] -= 1
                    if not self._users[key]:
                        del self._users[key]
                        await self._leasing.release(*key)

    @contextlib.contextmanager
    def held_in_thread(self, handle: Handle, paths: Sequence[Path]) -> Generator[Handle, None, None]:
        """Do the same for a worker thread."""
        if not paths:
            yield handle
            return
        stack = contextlib.AsyncExitStack()
        under = trio.from_thread.run(stack.enter_async_context, self.held(handle, paths))
        try:
            yield under
        finally:
            trio.from_thread.run(stack.aclose)

    def holders(self, volume: int) -> dict[int, bytes]:
        """Return the files of a volume that are locked, and the node that each is locked by."""
        return {grant.id: grant.node for grant in self._leasing.listed() if grant.volume == volume}

    async def _take(self, handle: Handle, item: Item, ancestors: Sequence[int]) -> int:
        """Return the epoch of the lease; 0 when nobody decided on it in time."""
        kind: Kind = "bundle" if item.kind == "bundle" else "file"
        try:
            with trio.move_on_after(DECIDED_SECONDS):
                return (await self._leasing.take(handle.id, item.file, ancestors, kind)).epoch
        except Locked as error:
            name = item.name.decode("utf-8", "backslashreplace")
            volume = (await self._mesh.state()).volume_by_id(handle.id)
            if volume is not None and volume.policy.locked == "read-only":
                raise VolumeReadOnly(f"{name} can only be read now: {error}", cure=error.cure) from error
            raise Locked(f"{name} is locked: {error}", cure=error.cure) from error
        return 0


def _targets(handle: Handle, paths: Sequence[Path]) -> list[tuple[Item, list[int]]]:
    """Return what is to be locked, the same thing once, and the ids of the directories above it."""
    result: dict[int, tuple[Item, list[int]]] = {}
    above: dict[Path, Item | None] = {}
    for path in paths:
        with contextlib.suppress(PathMissing, PathNotDirectory):
            item = handle.lookup(path)
            ancestors: list[int] = []
            for depth in range(1, len(path)):
                part = path[:depth]
                if part not in above:
                    above[part] = handle.find(part)
                found = above[part]
                if found is not None and not found.inside:
                    ancestors.append(found.file)
            if item.kind != "directory" or item.inside:
                result.setdefault(item.file, (item, ancestors))
    return list(result.values())
