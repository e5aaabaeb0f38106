"""Backing files: which inodes the kernel reads and writes by itself (FUSE_PASSTHROUGH, Linux 6.9).

The kernel allows one io mode for an inode at a time: while a handle (or a map) reads through the page cache, an
open with passthrough fails with EIO, and the other way round; and all passthrough opens of an inode name one
backing file. So the first open of an inode decides for all that follow, until the last of them is released.
"""

import errno
import fcntl
import logging
from struct import Struct
from typing import Final

from tbshare.fuse.operations import Opened

_log = logging.getLogger(__name__)

BACKING_OPEN: Final = 0x4010E501  # FUSE_DEV_IOC_BACKING_OPEN
BACKING_CLOSE: Final = 0x4004E502  # FUSE_DEV_IOC_BACKING_CLOSE
_BACKING_MAP: Final = Struct("<iIQ")  # fuse_backing_map: fd flags padding
_BACKING_ID: Final = Struct("<I")


class _Held:
    """The io mode of one inode: the id of its backing file, or None for the page cache; and how many handles."""

    __slots__ = ("handles", "identifier")

    def __init__(self, identifier: int | None) -> None:
        self.identifier = identifier
        self.handles = 1


class Backings:
    """The io mode of every open inode of one mount."""

    def __init__(self, device: int) -> None:
        self.allowed = False  # by INIT, and until the kernel says EPERM
        self._device = device
        self._held: dict[int, _Held] = {}
        self._direct: set[int] = set()

    def opened(self, inode: int, opened: Opened) -> int | None:
        """Note an open; return the id of the backing file that its answer names, or None."""
        if opened.direct_io and opened.backing is None and self.mode(inode) != "passthrough":
            self._direct.add(opened.handle)  # it has no io mode, and may stand beside both
            return None
        held = self._held.get(inode)
        if held is not None:
            held.handles += 1
            return held.identifier
        identifier = None
        if self.allowed and opened.backing is not None:
            identifier = self._register(opened.backing)
        self._held[inode] = _Held(identifier)
        return identifier

    def released(self, inode: int, handle: int) -> None:
        """Note the end of a handle; with the last one the kernel lets go of the backing file."""
        if handle in self._direct:
            self._direct.discard(handle)
            return
        held = self._held.get(inode)
        if held is None:
            return
        held.handles -= 1
        if held.handles:
            return
        del self._held[inode]
        if held.identifier is not None:
            fcntl.ioctl(self._device, BACKING_CLOSE, _BACKING_ID.pack(held.identifier))

    def mode(self, inode: int) -> str:
        """Return "passthrough", "cached", or "" when no handle is open."""
        held = self._held.get(inode)
        if held is None:
            return ""
        return "cached" if held.identifier is None else "passthrough"

    def _register(self, descriptor: int) -> int | None:
        """Give the kernel a file, and return its id; None if it may not be: the handle is a cached one then."""
        try:
            # A bytearray: with bytes, Python returns the buffer and the number is lost.
            number: int = fcntl.ioctl(
                self._device, BACKING_OPEN, bytearray(_BACKING_MAP.pack(descriptor, 0, 0)), True
            )
            return number
        except OSError as error:
            if error.errno == errno.EPERM:
                self.allowed = False
            # ELOOP: it lies on a stacked file system, such as overlayfs in a container.
            _log.info("no passthrough: %s", error.strerror)
            return None
