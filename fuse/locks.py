"""flock and POSIX byte-range locks among the processes of one mount.

Rules as in fcntl(2) and flock(2): readers share, a writer excludes; a lock of the same owner over the same bytes
replaces what was there; what is given back in the middle leaves two. POSIX locks are an inode's; flock locks too,
but the two kinds do not see each other. Waiters are woken whenever something of their inode is given back.
"""

import errno
import fcntl
from collections.abc import Callable

import trio

from tbshare.fuse.operations import FuseError, Lock

END_MAX = 2**63 - 1


class _Held:
    """The locks of one inode, as (owner, lock) pairs, and who waits for one."""

    __slots__ = ("changed", "locks", "waiters")

    def __init__(self) -> None:
        self.locks: list[tuple[int, Lock]] = []
        self.changed = trio.Event()
        self.waiters = 0


class Locks:
    """One kind of lock, for all inodes of a mount: make one for POSIX locks and one for flock."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}

    def conflict(self, inode: int, owner: int, wanted: Lock) -> Lock | None:
        """Return a lock of another owner that is in the way, or None."""
        held = self._held.get(inode)
        if held is None or wanted.kind == fcntl.F_UNLCK:
            return None
        for other, lock in held.locks:
            exclusive = fcntl.F_WRLCK in (wanted.kind, lock.kind)
            if other != owner and exclusive and lock.start <= wanted.end and wanted.start <= lock.end:
                return lock
        return None

    def set(self, inode: int, owner: int, wanted: Lock) -> None:
        """Take, change or give back a lock at once, or EAGAIN."""
        if self.conflict(inode, owner, wanted) is not None:
            raise FuseError(errno.EAGAIN)
        held = self._held.setdefault(inode, _Held())
        kept: list[tuple[int, Lock]] = []
        for other, lock in held.locks:
            if other != owner or lock.end < wanted.start or wanted.end < lock.start:
                kept.append((other, lock))
                continue
            if lock.start < wanted.start:
                kept.append((owner, Lock(lock.kind, lock.start, wanted.start - 1, lock.pid)))
            if wanted.end < lock.end:
                kept.append((owner, Lock(lock.kind, wanted.end + 1, lock.end, lock.pid)))
        if wanted.kind != fcntl.F_UNLCK:
            kept.append((owner, wanted))
        held.locks = kept
        self._woken(inode, held)

    async def wait(self, inode: int, owner: int, wanted: Lock) -> None:
        """Take a lock when it is free; cancelling ends the wait."""
        while self.conflict(inode, owner, wanted) is not None:
            held = self._held[inode]
            held.waiters += 1
            try:
                await held.changed.wait()
            finally:
                held.waiters -= 1
                self._woken(inode, held, only_tidy=True)
        self.set(inode, owner, wanted)

    def released(self, inode: int, owner: int) -> None:
        """Give back all that an owner has of an inode."""
        if inode in self._held:
            self.set(inode, owner, Lock(fcntl.F_UNLCK, 0, END_MAX))

    def owned(self, inode: int, wanted: Callable[[int], bool] = bool) -> list[Lock]:
        """Return the locks of an inode whose owner is `wanted`."""
        held = self._held.get(inode)
        return [] if held is None else [lock for owner, lock in held.locks if wanted(owner)]

    def _woken(self, inode: int, held: _Held, *, only_tidy: bool = False) -> None:
        if not only_tidy:
            held.changed.set()
            held.changed = trio.Event()
        if not held.locks and not held.waiters:
            self._held.pop(inode, None)
