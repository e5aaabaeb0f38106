"""Extended attributes: `user.` of Linux is nothing in a volume, as on a Mac; what is large is an object."""

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Final

from tbshare.fuse.nodes import Node
from tbshare.fuse.operations import Answer, FuseError

PREFIX: Final = b"user."
VALUE_BYTES_MAX: Final = 65536
NAME_BYTES_MAX: Final = 255
ReadObject = Callable[[Node, bytes, int], Awaitable[bytes]]  # whose it is, the object, its bytes


class Xattrs:
    """Reads and checks extended attributes."""

    def __init__(self, read_object: ReadObject) -> None:
        self._read_object = read_object

    def value(self, node: Node, name: bytes) -> Answer[bytes]:
        """Return a value; ENODATA."""
        key = name[len(PREFIX) :]
        if not name.startswith(PREFIX):
            raise FuseError(errno.EOPNOTSUPP if name.startswith(b"system.") else errno.ENODATA)
        value = node.item.xattrs.get(key)
        if value is not None:
            return value
        large = node.item.large_xattrs.get(key)
        if large is None:
            raise FuseError(errno.ENODATA)
        return self._large(node, *large)

    async def _large(self, node: Node, content: bytes, size_bytes: int) -> bytes:
        return await self._read_object(node, content, size_bytes)

    def names(self, node: Node) -> list[bytes]:
        """Return the names there are."""
        item = node.item
        return (
            [PREFIX + name for name in (*item.xattrs, *item.large_xattrs)]
            if item.xattrs or item.large_xattrs
            else []
        )

    def setting(self, node: Node, name: bytes, value: bytes, flags: int) -> dict[bytes, bytes | None]:
        """Return what to note for a new value; EEXIST, ENODATA, E2BIG."""
        key = _key(name)
        there = key in node.item.xattrs or key in node.item.large_xattrs
        if there and flags & os.XATTR_CREATE:
            raise FuseError(errno.EEXIST)
        if not there and flags & os.XATTR_REPLACE:
            raise FuseError(errno.ENODATA)
        if len(value) > VALUE_BYTES_MAX:
            raise FuseError(errno.E2BIG)
        return {key: value}

    def removing(self, node: Node, name: bytes) -> dict[bytes, bytes | None]:
        """Return what to note to remove one; ENODATA."""
        key = _key(name)
        if key not in node.item.xattrs and key not in node.item.large_xattrs:
            raise FuseError(errno.ENODATA)
        return {key: None}


def _key(name: bytes) -> bytes:
    """Return the name in the volume; EOPNOTSUPP for those that are not the user's."""
    if not name.startswith(PREFIX) or len(name) == len(PREFIX):
        raise FuseError(errno.EOPNOTSUPP)
    if len(name) > NAME_BYTES_MAX:
        raise FuseError(errno.ERANGE)
    return name[len(PREFIX) :]
