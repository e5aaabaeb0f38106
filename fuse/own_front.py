"""The front that is ours: mount, serve with our own loop, unmount."""

import os

import trio

from tbshare.fuse import mounting
from tbshare.fuse.loop import Loop
from tbshare.fuse.mounting import Mounted, MountOptions
from tbshare.fuse.negotiation import Wishes
from tbshare.fuse.operations import Operations, Session


class OwnFront:
    """Serves one mount by `Loop`."""

    name = "own loop"

    def __init__(self, wishes: Wishes | None = None) -> None:
        self._wishes = wishes or Wishes()

    async def run(
        self,
        operations: Operations,
        directory: str,
        options: MountOptions,
        *,
        task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Mount, serve until somebody unmounts, and clean up; cancelled, unmount lazily."""
        mounted, device = await trio.to_thread.run_sync(mounting.mount, directory, options)
        loop = Loop(operations, device, self._wishes)
        serving = trio.CancelScope(shield=True)
        ended = trio.Event()

        async def serve(*, task_status: trio.TaskStatus[Session]) -> None:
            try:
                with serving:
                    await loop.run(task_status=task_status)
            finally:
                ended.set()

        try:
            async with trio.open_nursery() as nursery:
                session = await nursery.start(serve)
                await trio.to_thread.run_sync(mounting.raise_read_ahead, directory)
                task_status.started(session)
                try:
                    await ended.wait()
                except trio.Cancelled:
                    # Requests are answered while it is unmounted, also those that unmounting makes.
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(mounted.leave)
                    serving.cancel()
                    raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_close, mounted, device)


def _close(mounted: Mounted, device: int) -> None:
    mounted.leave()  # when serving failed
    os.close(device)
    mounted.close()
