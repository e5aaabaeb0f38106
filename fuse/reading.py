"""Reads files from the store's own files, and has the daemon fetch what is not there.

What is read of one object is shared by all who have it open. An object that is whole is passed through to the
kernel where that can be; one that is not is read piece by piece, a little ahead of who reads on. When the last of
it has come, those that open it from then on get a new inode, which can be passed through; the old one lives on.
"""

import errno
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
import trio

from tbshare.content.read_ahead import ReadAhead
from tbshare.errors import ObjectMissing, TbshareError, errno_of
from tbshare.fuse.extents import Extents, StoreFile, open_files
from tbshare.fuse.handles import FileHandle
from tbshare.fuse.link import Link
from tbshare.fuse.names import Names
from tbshare.fuse.nodes import Node
from tbshare.fuse.operations import Answer, Buffer, FuseError, Opened
from tbshare.volumes.rows import version_of_large
from tbshare.wire import mount as wire

TRIES: Final = 5  # a file of the store may get another name between the answer and the open
NEEDS_MAX: Final = 4  # calls that wait for bytes of one object: a peer that is stuck leaves room for other files
IDLE_SECONDS: Final = 5.0  # for which what nobody has open is remembered
SMALL_BYTES: Final = 16 * 1024  # of a file whose bytes may be told with another one's
SMALL_AT_ONCE: Final = 250
DIRECTORIES_MAX: Final = 1000
COMPLETE_SECONDS: Final = 7 * 86400.0
COMPLETE_AT_ONCE: Final = 4  # objects


class ReadingOptions(msgspec.Struct, frozen=True):
    """What becomes of reads of bytes that are not here."""

    wait_seconds: float = 30.0  # then it is an error
    try_again: bool = False  # EAGAIN instead of EIO
    complete: bool = False  # what was opened is fetched to its end


class _Content:
    """One object, as far as it can be read here."""

    def __init__(self, params: wire.MountOpenParams) -> None:
        self.params, self.size = params, params.size
        self.whole = False
        self.asked = False  # the daemon was, at least once
        self.completing = False
        self.extents = Extents()
        self.coming: list[tuple[int, int, bytes]] = []  # small versions to be fetched with this one
        self.users = 0
        self.used_at = trio.current_time()
        self.opening = trio.Lock()
        self.room = trio.Semaphore(NEEDS_MAX)

    def take(self, opened: wire.MountOpened, files: dict[bytes, StoreFile]) -> None:
        """Take what the daemon said."""
        self.asked, self.size = True, opened.size
        self.extents.take(opened.extents, files, anew=opened.whole and not self.whole)
        self.whole |= opened.whole


class _Coming(NamedTuple):
    """What was not asked for yet of a directory in which small files are opened."""

    generation: int  # of its listing
    items: Iterator[wire.MountItem]


class Reading:
    """The reader of a mount. All in the trio thread."""

    def __init__(
        self,
        link: Link,
        waiting_link: Link,
        names: Names,
        nursery: trio.Nursery,
        options: ReadingOptions = ReadingOptions(),  # noqa: B008  (immutable)
    ) -> None:
        """`waiting_link` is for what waits for other nodes: it holds up nothing else."""
        self.options = options
        self._link, self._waiting_link, self._names, self._nursery = link, waiting_link, names, nursery
        self._contents: dict[tuple[int, bytes], _Content] = {}
        self._coming: dict[int, _Coming] = {}  # by the directory's inode
        self._completing = trio.Semaphore(COMPLETE_AT_ONCE)

    async def run(self) -> None:
        """Close what nobody has read from for a while, for ever."""
        while True:
            await trio.sleep(IDLE_SECONDS)
            now = trio.current_time()
            for key, content in list(self._contents.items()):
                if not content.users and now - content.used_at > IDLE_SECONDS:
                    del self._contents[key]
                    content.extents.close()

    def forgotten(self, node: Node) -> None:
        """Nothing is kept for a node."""

    # small files: those that come next in a directory are asked for together ---------------------------------

    def _small_next(self, node: Node) -> list[wire.MountItem]:
        """Return what is opened next if somebody reads a whole directory; nothing at the first of them."""
        parent = node.parent
        if parent is None or parent.listing is None or not 0 < node.item.size <= SMALL_BYTES:
            return []
        coming = self._coming.get(parent.inode)
        if coming is None or coming.generation != parent.generation:
            if len(self._coming) > DIRECTORIES_MAX:
                self._coming.clear()
            self._coming[parent.inode] = _Coming(parent.generation, iter(list(parent.listing.values())))
            return []
        found: list[wire.MountItem] = []
        for item in coming.items:
            if (
                item.kind == "file"
                and 0 < item.size <= SMALL_BYTES
                and (node.volume, item.content) not in self._contents
            ):
                found.append(item)
                if len(found) == SMALL_AT_ONCE:
                    break
        return found

    def _take_small(self, volume: int, told: dict[bytes, bytes]) -> None:
        for object_id, data in told.items():
            if (volume, object_id) not in self._contents:
                content = _Content(wire.MountOpenParams(volume, 0, 0, object_id, len(data)))
                content.whole = content.asked = True
                content.extents.take_bytes(data)
                self._contents[volume, object_id] = content

    # opening ---------------------------------------------------------------------------------------------------

    def open(self, node: Node, flags: int, number: int) -> Answer[tuple[FileHandle, Opened]]:
        """Open a file to read it."""
        content = self._content(node)
        if content.whole or not content.size:
            return self._opened(node, content, number)
        return self._open(node, content, number)

    def is_whole(self, node: Node) -> Answer[bool]:
        """Return whether all bytes of a file are on this node."""
        content = self._content(node)
        return True if content.whole or not content.size else self._is_whole(content)

    async def _is_whole(self, content: _Content) -> bool:
        content.users += 1
        try:
            await self._ask(content)
        finally:
            content.users -= 1
        return content.whole

    def _content(self, node: Node) -> _Content:
        item = node.item
        content = self._contents.get((node.volume, item.content))
        if content is None:
            params = wire.MountOpenParams(node.volume, item.file, item.version, item.content, item.size)
            content = self._contents[node.volume, item.content] = _Content(params)
        content.used_at = trio.current_time()
        return content

    async def _open(self, node: Node, content: _Content, number: int) -> tuple[FileHandle, Opened]:
        content.users += 1
        try:
            coming = self._small_next(node)
            await self._ask(content, [item.content for item in coming])
            if not content.whole and node.item.file:
                content.coming = [(item.file, item.version, item.content) for item in coming if not item.inside]
            if not content.whole and self.options.complete and not content.completing:
                content.completing = True
                self._nursery.start_soon(self._complete, content)
        finally:
            content.users -= 1
        return self._opened(node, content, number)

    def _opened(self, node: Node, content: _Content, number: int) -> tuple[FileHandle, Opened]:
        backing = content.extents.backing(content.size) if content.whole and self._is_passed(node) else None
        return _Handle(self, node, content), Opened(number, backing)

    def _is_passed(self, node: Node) -> bool:
        """Return whether nobody here writes to a file: a writer would write to the object by the same backing."""
        volume = self._names.volumes.get(node.volume)
        return volume is not None and bool(volume.read_only or volume.mode == "models")

    async def _ask(self, content: _Content, also: Sequence[bytes] = ()) -> None:
        """Learn what can be read, and of small files the bytes of those that come next."""
        async with content.opening:
            if not content.whole:
                params = msgspec.structs.replace(content.params, also=list(also)) if also else content.params
                await self._told(content, lambda: self._link.call("mount_open", params, wire.MountOpened))

    async def _told(self, content: _Content, ask: Callable[[], Awaitable[wire.MountOpened]]) -> None:
        for _ in range(TRIES):
            try:
                opened = await ask()
                files = await trio.to_thread.run_sync(open_files, opened.extents)
            except FileNotFoundError:
                continue
            except ObjectMissing as error:
                raise FuseError(errno.EAGAIN if self.options.try_again else errno.EIO) from error
            except TbshareError as error:
                raise FuseError(errno_of(error)) from error
            content.take(opened, files)
            self._take_small(content.params.volume, opened.also)
            return
        raise FuseError(errno.EIO)

    # reading ---------------------------------------------------------------------------------------------------

    async def need(self, content: _Content, start: int, end: int, ahead: int, *, waiting: bool = True) -> None:
        """Have the daemon fetch bytes [start, end), and a number of those behind them; FuseError."""
        told = content.params
        params = wire.MountNeedParams(
            told.volume,
            told.file,
            told.version,
            told.content,
            start,
            end - start,
            ahead,
            waiting,
            self.options.wait_seconds if waiting else COMPLETE_SECONDS,
            content.coming,
        )
        content.coming = []
        content.users += 1
        try:
            async with content.room if waiting else self._completing:
                await self._told(content, lambda: self._waiting_link.call("mount_need", params, wire.MountOpened))
        finally:
            content.users -= 1
            content.used_at = trio.current_time()

    def look_ahead(self, content: _Content, start: int, ahead: int) -> None:
        """Have more fetched, while who reads on goes on."""
        self._nursery.start_soon(self._look_ahead, content, start, ahead)

    async def _look_ahead(self, content: _Content, start: int, ahead: int) -> None:
        try:
            await self.need(content, start, start, ahead)
        except FuseError:
            return  # who comes to these bytes is told

    async def _complete(self, content: _Content) -> None:
        """Fetch an object to its end, when nobody waits for anything."""
        try:
            await self.need(content, 0, content.size, 0, waiting=False)
        except FuseError:
            content.completing = False

    def came(self, node: Node, content: _Content) -> None:
        """Give a file whose last bytes have come a new inode, if that gains something."""
        if content.whole and self._is_passed(node) and content.extents.backing(content.size) is not None:
            self._names.listings.tell(self._names.tree.renew(node))

    async def read_object(self, node: Node, content: bytes, size_bytes: int) -> bytes:
        """Return all bytes of an object that belongs to a file: of a large attribute."""
        item = node.item
        number = item.version if item.inside else version_of_large(content)
        found = _Content(wire.MountOpenParams(node.volume, item.file, number, content, size_bytes))
        try:
            await self.need(found, 0, size_bytes, 0)
            parts = found.extents.parts(0, size_bytes)
            if parts is None:
                raise FuseError(errno.EIO)
            return b"".join(parts)
        finally:
            found.extents.close()

    def done(self, content: _Content) -> None:
        """Note that a handle is gone."""
        content.users -= 1
        content.used_at = trio.current_time()


class _Handle(FileHandle):
    """A file open for reading."""

    def __init__(self, reading: Reading, node: Node, content: _Content) -> None:
        super().__init__(node)
        self._reading, self._content = reading, content
        self._seen = ReadAhead()
        self._asked_until = 0
        self._was_whole = content.whole
        content.users += 1

    def read(self, offset: int, size_bytes: int) -> Answer[Sequence[Buffer]]:
        """Return bytes; fewer only at the end."""
        content = self._content
        end = min(offset + size_bytes, content.size)
        if offset >= end:
            return []
        parts = content.extents.parts(offset, end)
        if content.whole:
            if not self._was_whole:
                self._was_whole = True
                self._reading.came(self.node, content)
            if parts is not None:
                return parts
        self._seen = self._seen.after(offset, end - offset)
        ahead = min(self._seen.window, content.size - end)
        if parts is None:
            self._asked_until = end + ahead
            return self._wait(offset, end, ahead)
        if ahead and self._asked_until < end + ahead // 2:
            self._asked_until = end + ahead
            self._reading.look_ahead(content, end, ahead)
        return parts

    async def _wait(self, start: int, end: int, ahead: int) -> Sequence[Buffer]:
        for _ in range(TRIES):
            await self._reading.need(self._content, start, end, ahead)
            parts = self._content.extents.parts(start, end)
            if parts is not None:
                return parts
        raise FuseError(errno.EIO)

    def lseek(self, offset: int, whence: int) -> int:
        """Find data or a hole: what is not here is data, too."""
        if offset >= self._content.size:
            raise FuseError(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else self._content.size

    def release(self) -> None:
        """Let go."""
        self._reading.done(self._content)
