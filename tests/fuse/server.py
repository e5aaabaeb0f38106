"""A mount in a process of its own: python -m tests.fuse.server FRONT SOURCE DIRECTORY. Ends when unmounted.

A process of its own, because a test that touches a mapped page keeps the interpreter's lock while the kernel asks.
Operations over a plain directory, and some more for tests, told by names and by attributes of the mount's root:
`NAME.cached` is opened without a backing file; "user.complete" on it makes it a new inode, as a file that became
complete; "user.counts" tells how often each method was asked; `stuck` is a file whose bytes never come; `broken`
fails with an error that nobody expects; the bytes of `later` come later.
"""

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import trio

from bench.plain_directory import Node, PlainDirectory
from tbshare.fuse import front
from tbshare.fuse.mounting import MountOptions
from tbshare.fuse.operations import ROOT_INODE, Answer, Buffer, Entry, Opened, RequestContext


class Watched(PlainDirectory):
    """A plain directory that counts, and that can be told to change."""

    def __init__(self, directory: str, *, passthrough: bool) -> None:
        super().__init__(directory, passthrough=passthrough)
        self.counts: Counter[str] = Counter()
        self._names: dict[int, tuple[int, bytes]] = {}
        self._complete: set[int] = set()

    def entry(self, parent: Node, name: bytes) -> Entry:
        found = super().entry(parent, name)
        self._names[found.inode] = (parent.inode, name)
        return found

    def _name(self, inode: int) -> bytes:
        return self._names.get(inode, (0, b""))[1]

    def open(self, inode: int, flags: int, kill_privileges: bool, context: RequestContext) -> Opened:
        self.counts["open"] += 1
        made = super().open(inode, flags, kill_privileges, context)
        if self._name(inode).endswith(b".cached") and inode not in self._complete:
            return Opened(made.handle)
        return made

    def read(self, handle: int, offset: int, size_bytes: int) -> Answer[Buffer]:
        self.counts["read"] += 1
        name = self._name(self.handles[handle].inode)
        if name == b"stuck":
            return self._never()
        if name == b"broken":
            raise ZeroDivisionError
        if name == b"later":
            return self._later(handle, offset, size_bytes)
        return super().read(handle, offset, size_bytes)

    async def _never(self) -> bytes:
        await trio.sleep_forever()
        return b""

    async def _later(self, handle: int, offset: int, size_bytes: int) -> Buffer:
        await trio.lowlevel.checkpoint()
        return cast(Buffer, super().read(handle, offset, size_bytes))

    def write(self, handle: int, offset: int, data: memoryview, kill_privileges: bool) -> Answer[int]:
        self.counts["write"] += 1
        if self._name(self.handles[handle].inode).startswith(b"later"):
            return self._write_later(handle, offset, data, kill_privileges)
        return super().write(handle, offset, data, kill_privileges)

    async def _write_later(self, handle: int, offset: int, data: memoryview, kill_privileges: bool) -> int:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        return cast(int, super().write(handle, offset, data, kill_privileges))

    def getxattr(self, inode: int, name: bytes, context: RequestContext) -> bytes:
        if inode == ROOT_INODE and name == b"user.counts":
            return json.dumps(self.counts).encode()
        if name == b"user.io-mode":
            assert self.session is not None
            return self.session.io_mode(inode).encode()
        return super().getxattr(inode, name, context)

    def setxattr(self, inode: int, name: bytes, value: bytes, flags: int, context: RequestContext) -> None:
        if name == b"user.complete":
            self._completed(inode)
            return
        super().setxattr(inode, name, value, flags, context)

    def _completed(self, inode: int) -> None:
        """Let the next lookup find a new inode, which is known to be complete."""
        assert self.session is not None
        node = self.nodes[inode]
        del self._by_key[node.key]
        self._complete.add(self._spare_next)  # the number that `entry` takes, because this one is in use
        self.session.expire_entry(*self._names[inode])


async def main(name: str, source: str, directory: str, words: Sequence[str]) -> None:
    """Serve until unmounted; say on stdout when it is there."""
    operations = Watched(source, passthrough="no_passthrough" not in words)
    options = MountOptions(allow_other="allow_other" in words, guarded="no_guard" not in words)
    async with trio.open_nursery() as nursery:
        session = await nursery.start(front.choose(name).front.run, operations, directory, options)
        sys.stdout.write(f"{session.capabilities.name} is ready\n")
        sys.stdout.flush()
    operations.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    os.umask(0)
    assert Path(sys.argv[3]).is_dir()
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
