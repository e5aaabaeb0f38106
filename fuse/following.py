"""Reading a file that others may write to: what is read is always what the file is now.

The kernel has one page cache for an inode, whoever has it open: so a descriptor that was opened before a save must
not bring old bytes into it. Who reads while somebody writes on this machine reads the working file.
"""

from collections.abc import Sequence

import msgspec
import trio

from tbshare.fuse.handles import FileHandle, Reader, answered
from tbshare.fuse.nodes import Node
from tbshare.fuse.operations import Answer, Buffer, Opened
from tbshare.fuse.stages import Stage


class Following(FileHandle):
    """A handle of a reader, which opens the file anew when it has become another."""

    def __init__(
        self, node: Node, flags: int, number: int, reader: Reader, handle: FileHandle, content: bytes
    ) -> None:
        super().__init__(node)
        self._flags, self._number, self._reader = flags, number, reader
        self._handle, self._content = handle, content
        self._lock = trio.Lock()

    def read(self, offset: int, size_bytes: int) -> Answer[Buffer | Sequence[Buffer]]:
        """Return bytes; fewer only at the end."""
        stage = self.node.stage
        if isinstance(stage, Stage):
            return stage.read(offset, size_bytes)
        if self.node.item.content == self._content:
            return self._handle.read(offset, size_bytes)
        return self._read_anew(offset, size_bytes)

    async def _read_anew(self, offset: int, size_bytes: int) -> Buffer | Sequence[Buffer]:
        async with self._lock:
            if self.node.item.content != self._content:
                content = self.node.item.content
                handle, _ = await answered(self._reader.open(self.node, self._flags, self._number))
                before, self._handle, self._content = self._handle, handle, content
                await answered(before.release())
        return await answered(self.read(offset, size_bytes))

    def lseek(self, offset: int, whence: int) -> Answer[int]:
        """Find data or a hole."""
        stage = self.node.stage
        return (stage if isinstance(stage, Stage) else self._handle).lseek(offset, whence)

    def release(self) -> Answer[None]:
        """End."""
        return self._handle.release()


def following(node: Node, flags: int, number: int, reader: Reader) -> Answer[tuple[FileHandle, Opened]]:
    """Open a file to read it, in a volume that may be written to."""
    content, answer = node.item.content, reader.open(node, flags, number)
    if isinstance(answer, tuple):
        return _follows(Following(node, flags, number, reader, answer[0], content), answer[1])
    return _later(node, flags, number, reader, answer)


async def _later(
    node: Node, flags: int, number: int, reader: Reader, answer: Answer[tuple[FileHandle, Opened]]
) -> tuple[FileHandle, Opened]:
    content = node.item.content
    handle, opened = await answered(answer)
    return _follows(Following(node, flags, number, reader, handle, content), opened)


def _follows(handle: Following, opened: Opened) -> tuple[FileHandle, Opened]:
    """Return no backing file: a writer who comes later would write to the object through it."""
    return handle, msgspec.structs.replace(opened, backing=None)
