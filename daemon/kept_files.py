"""pin, unpin and evict of what stands in a volume: a file, or all below a directory."""

import trio

from tbshare.daemon.files import Files
from tbshare.daemon.keeping import FileKeeping
from tbshare.daemon.service import Service
from tbshare.volumes.item import Item, Path
from tbshare.volumes.volume import Handle
from tbshare.wire.report import KeepReport
from tbshare.wire.where import Where


class KeptFiles:
    """Answers about what is kept on this node."""

    def __init__(self, service: Service, files: Files) -> None:
        self._files, self._keeping = files, FileKeeping(service)
        self._store = service.store

    async def _found(self, where: Where) -> tuple[Handle, list[Item]]:
        _, handle = await self._files.open(where, writing=True)
        return handle, await trio.to_thread.run_sync(_files_below, handle, where.parts)

    async def pin(self, where: Where) -> KeepReport:
        """Keep files on this node, those to come in them too."""
        handle, items = await self._found(where)
        await self._keeping.pin(handle.id, {item.file for item in items}, note=str(where))
        return KeepReport(str(where), True, text="pinned")

    async def unpin(self, where: Where) -> KeepReport:
        """Take the pins away."""
        handle, items = await self._found(where)
        count = await self._keeping.unpin(handle.id, {item.file for item in items})
        return KeepReport(str(where), False, text="unpinned" if count else "was not pinned")

    async def evict(self, where: Where) -> KeepReport:
        """Free the bytes on this node; never the last copy."""
        handle, items = await self._found(where)
        gone = await self._keeping.evict(handle.id, [(item.file, item.version) for item in items])
        text = f"evicted from this node; {len(gone.kept)} stay, they are nowhere else" if gone.kept else "evicted"
        return KeepReport(str(where), False, bytes_freed=gone.bytes_freed, text=text)


def _files_below(handle: Handle, path: Path) -> list[Item]:
    """Return the files at a path and below it."""
    stack, found = [path], list[Item]()
    while stack:
        here = stack.pop()
        item = handle.lookup(here)
        if item.kind != "directory":
            found.append(item)
            continue
        for each in handle.list(here):
            if each.kind == "directory":
                stack.append((*here, each.name))
            else:
                found.append(each)
    return found
