"""Handles of a file whose bytes are in a working file."""

import errno
import os
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from tbshare.fuse.handles import FileHandle, answered
from tbshare.fuse.nodes import Node
from tbshare.fuse.operations import Answer, Buffer, FuseError
from tbshare.fuse.stages import Stage

COPY_BYTES: Final = 1 << 20


class Written(Protocol):
    """Who is told what handles of working files are asked."""

    def kill_privileges(self, node: Node, stage: Stage) -> None:
        """Clear set-user-ID and the like: somebody else than the owner writes."""
        ...

    def flush(self, node: Node, stage: Stage) -> Answer[None]:
        """Answer one close(2) of possibly several."""
        ...

    def released(self, node: Node, stage: Stage) -> Answer[None]:
        """Take note that a handle is gone."""
        ...

    def sync(self, node: Node, stage: Stage) -> Answer[None]:
        """Make what was written survive anything."""
        ...


class StageHandle(FileHandle):
    """An open file. Reader or writer: all of a node share the one working file."""

    def __init__(self, writing: Written, node: Node, stage: Stage, flags: int) -> None:
        super().__init__(node)
        self.stage = stage
        self.writes = flags & os.O_ACCMODE != os.O_RDONLY
        self._writing = writing
        stage.handles += 1
        stage.writers += self.writes

    def read(self, offset: int, size_bytes: int) -> Answer[Buffer | Sequence[Buffer]]:
        """Return bytes."""
        return self.stage.read(offset, size_bytes)

    def write(self, offset: int, data: memoryview, kill_privileges: bool) -> Answer[int]:
        """Write."""
        self._check_writes()
        if kill_privileges:
            self._writing.kill_privileges(self.node, self.stage)
        return self.stage.write(offset, data)

    def flush(self, owner: int) -> Answer[None]:
        """One close(2) of possibly several."""
        return self._writing.flush(self.node, self.stage) if self.writes else None

    def release(self) -> Answer[None]:
        """End."""
        self.stage.handles -= 1
        self.stage.writers -= self.writes
        return self._writing.released(self.node, self.stage)

    def fsync(self, data_only: bool) -> Answer[None]:
        """Make what was written survive anything."""
        return self._writing.sync(self.node, self.stage)

    def fallocate(self, mode: int, offset: int, length: int) -> Answer[None]:
        """Reserve, punch or zero a range."""
        self._check_writes()
        return trio.to_thread.run_sync(self.stage.fallocate, mode, offset, length)

    def lseek(self, offset: int, whence: int) -> Answer[int]:
        """Find data or a hole."""
        return self.stage.lseek(offset, whence)

    async def copy_from(self, source: FileHandle, offset_in: int, offset_out: int, length: int) -> int:
        """Copy from another handle, and return how much."""
        self._check_writes()
        if isinstance(source, StageHandle):
            return await trio.to_thread.run_sync(self.stage.copy_from, source.stage, offset_in, offset_out, length)
        answer = await answered(source.read(offset_in, min(length, COPY_BYTES)))
        data = answer if isinstance(answer, bytes | bytearray | memoryview) else b"".join(map(bytes, answer))
        return await answered(self.stage.write(offset_out, memoryview(data)))

    def _check_writes(self) -> None:
        if not self.writes:
            raise FuseError(errno.EBADF)
