"""Open files: what the kernel may ask of a handle, and who makes handles."""

import errno
from collections.abc import Awaitable, Sequence
from typing import NoReturn, Protocol, TypeVar, cast

from tbshare.fuse.nodes import Node
from tbshare.fuse.operations import Answer, Buffer, FuseError, Opened, RequestContext

_T = TypeVar("_T")


class FileHandle:
    """One open file. What a kind of handle cannot do it inherits from here."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def read(self, offset: int, size_bytes: int) -> Answer[Buffer | Sequence[Buffer]]:
        """Return bytes; fewer only at the end."""
        return _refuse(errno.EBADF)

    def write(self, offset: int, data: memoryview, kill_privileges: bool) -> Answer[int]:
        """Write, and return how much."""
        return _refuse(errno.EBADF)

    def flush(self, owner: int) -> Answer[None]:
        """One close(2) of possibly several."""
        return None

    def release(self) -> Answer[None]:
        """Let go: the last use is over."""
        return None

    def fsync(self, data_only: bool) -> Answer[None]:
        """Make what was written survive anything."""
        return None

    def fallocate(self, mode: int, offset: int, length: int) -> Answer[None]:
        """Reserve, punch or zero, as the system call does."""
        return _refuse(errno.EBADF)

    def lseek(self, offset: int, whence: int) -> Answer[int]:
        """Find data or a hole."""
        return _refuse(errno.ENOSYS)

    def copy_from(self, source: "FileHandle", offset_in: int, offset_out: int, length: int) -> Answer[int]:
        """Copy from another handle into this one, and return how much."""
        return _refuse(errno.EOPNOTSUPP)


class Reader(Protocol):
    """Who opens files to read what is committed."""

    def open(self, node: Node, flags: int, number: int) -> Answer[tuple[FileHandle, Opened]]:
        """Open; `number` is the handle's number."""
        ...

    def is_whole(self, node: Node) -> Answer[bool]:
        """Return whether all bytes of a file are on this node."""
        ...

    def forgotten(self, node: Node) -> None:
        """Hear that the kernel knows a node no more."""
        ...

    async def run(self) -> None:
        """Do what goes on beside the requests, for ever."""
        ...


class Writer(Protocol):
    """Who opens files to write to them."""

    def wants(self, node: Node) -> bool:
        """Return whether a file that is opened for reading is to be opened by the writer.

        All who have a file open share one backing. One that may be written to must not be the object's own file.
        """
        ...

    def open(
        self, node: Node, flags: int, number: int, kill_privileges: bool
    ) -> Answer[tuple[FileHandle, Opened]]:
        """Open for writing; or a node that is staged, for anything."""
        ...

    def create(
        self, parent: Node, name: bytes, mode: int, flags: int, number: int, context: RequestContext
    ) -> Answer[tuple[Node, FileHandle, Opened]]:
        """Make a file under a name that is free, in a volume that may be written, and open it."""
        ...

    def truncate(
        self, node: Node, size_bytes: int, handle: FileHandle | None, kill_privileges: bool
    ) -> Answer[None]:
        """Make a file shorter or longer."""
        ...

    def attributes(self, node: Node) -> tuple[int, int, int]:
        """Return size, blocks and mtime_ns of what is staged for a node."""
        ...

    def describe(self, node: Node, mode: int | None, mtime_ns: int | None) -> bool:
        """Take attributes of what is staged; False: the volume is to be told, too."""
        ...

    def moved(self, node: Node) -> None:
        """Hear that a node that is staged, or a directory with some below, has another path."""
        ...

    def removed(self, node: Node) -> None:
        """Hear that a node has no name any more."""
        ...

    def forgotten(self, node: Node) -> None:
        """Hear that the kernel knows a node no more."""
        ...

    async def quiet(self, node: Node) -> None:
        """Wait until nothing of a node, or below a directory, is on its way into the volume.

        The name it goes by must not change meanwhile; and close(2) does not wait.
        """
        ...

    async def told(self, volume: int) -> None:
        """Wait until the daemon knows all names as they are now."""
        ...

    async def settle(self, node: Node) -> None:
        """Make what is staged a version now."""
        ...

    async def finish(self) -> None:
        """Make all that is staged versions: the mount has ended."""
        ...

    async def run(self) -> None:
        """Do what goes on beside the requests, for ever."""
        ...


def _refuse(number: int) -> NoReturn:
    raise FuseError(number)


async def answered(answer: Answer[_T]) -> _T:
    """Return an answer, waiting for it if it is to come."""
    return await cast("Awaitable[_T]", answer) if isinstance(answer, Awaitable) else answer
