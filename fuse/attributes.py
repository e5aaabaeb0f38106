"""What stat(2) and the kernel's caches are told of a node."""

from collections.abc import Callable
from typing import Final

import msgspec

from tbshare.fuse.nodes import Node
from tbshare.fuse.operations import Attributes, Entry, SetAttributes

KNOWN_SECONDS: Final = 100_000.0  # until somebody says otherwise, which is said at once
BLOCK_BYTES: Final = 512
SECOND_NS: Final = 1_000_000_000

StagedSize = Callable[[Node], tuple[int, int, int]]  # size, blocks, mtime_ns of a working file


class Owners(msgspec.Struct, frozen=True):
    """To whom files belong: to one user and group, or `numeric` to whom the volume says."""

    uid: int
    gid: int
    numeric: bool = False

    def of(self, node: Node) -> tuple[int, int]:
        """Return user and group of a node."""
        if not self.numeric:
            return self.uid, self.gid
        item = node.item
        return self.uid if item.uid is None else item.uid, self.gid if item.gid is None else item.gid


class Shown:
    """Makes attributes and entries."""

    def __init__(self, owners: Owners) -> None:
        self.owners = owners
        self.staged_size: StagedSize | None = None  # set by whoever writes

    def attributes(self, node: Node) -> Attributes:
        """Return a node's attributes."""
        item = node.item
        uid, gid = self.owners.of(node)
        size, mtime_ns, known, staged_ns = item.size, item.mtime_ns, KNOWN_SECONDS, 0
        blocks = (size + BLOCK_BYTES - 1) // BLOCK_BYTES
        if item.kind == "link":
            size, blocks = len(item.content), 0
        elif node.is_directory:
            size, blocks, mtime_ns = 4096, 8, max(mtime_ns, node.changed_ns)
        elif node.stage is not None and self.staged_size is not None:
            size, blocks, mtime_ns = self.staged_size(node)
            known, staged_ns = 0.0, mtime_ns
        links = 1 if node.is_directory else max(item.links, len(node.names)) if node.names else 0
        return Attributes(
            node.ino,
            node.type | item.mode,
            size,
            links,
            uid,
            gid,
            node.atime_ns or mtime_ns,
            mtime_ns,
            max(item.ctime_ns, node.described_ns, node.changed_ns, staged_ns),
            blocks,
            0,
            4096,
            known,
            item.birthtime_ns,
        )

    def entry(self, node: Node, parent: Node, name: bytes) -> Entry:
        """Return the entry of a node found under a name; one that the listing writes otherwise is not kept."""
        known = KNOWN_SECONDS if (parent, name) in node.names else 0.0
        return Entry(node.inode, self.attributes(node), 0, known)


def times_of(changes: SetAttributes, now_ns: int) -> tuple[int | None, int | None]:
    """Return the new times of access and of change, None for those that stay."""
    atime = now_ns if changes.atime_now else changes.atime_ns
    mtime = now_ns if changes.mtime_now else changes.mtime_ns
    return atime, mtime
