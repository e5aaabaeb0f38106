"""Keeps the logs of connected nodes equal: what is said to whom, without a clock, a socket or a thread.

Each side begins with a Vector, what it has. From then on it is known of the peer what it has and what it was sent,
as one number a branch, so that whatever grows here is due there: `due` gives it in parts, as fast as the link
takes them. Nothing is remembered of a session that ended: the next one begins with Vectors again.

What cannot be taken yet, because something before it is missing, is not kept; a Vector asks for all that is
lacking, once until something came of it.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tbshare.errors import DiskFull, StoreUnusable
from tbshare.volumes.branches import Known
from tbshare.volumes.entry import Entry
from tbshare.volumes.log import Log
from tbshare.volumes.membership import concerns_cluster
from tbshare.wire import limits
from tbshare.wire.message import Acknowledged, AnyMessage, Entries, Head, Vector

_log = logging.getLogger("tbshare.peers.exchange")
PART_BYTES: Final = limits.ENVELOPE_BYTES_MAX // 2

Said = list[tuple[bytes, AnyMessage]]  # to which peer what


@dataclass
class _Side:
    """What we know of a connected node."""

    known: Known | None = None  # what it has or was sent; None until it said so
    heads: list[Head] = field(default_factory=list[Head])  # in its last Vector
    told: list[Head] = field(default_factory=list[Head])  # in the last Acknowledged
    asked_again: bool = False
    unkept: bool = False  # it sent entries that could not be stored, as on a full disk


class Exchange:
    """The logs' side of all sessions of one node. Every call may touch the disk; one at a time."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.urgent = False  # what came concerns the cluster: `acknowledgements` should not wait
        self.concerned = False  # something came that changes the state: whoever looks sets it back
        self._sides: dict[bytes, _Side] = {}

    def joined(self, peer: bytes) -> list[AnyMessage]:
        """Begin with a peer; return what to say first."""
        side = self._sides[peer] = _Side()
        side.told = self.log.vector()
        return [Vector(self.log.summary()), Acknowledged(side.told)]

    def left(self, peer: bytes) -> None:
        """Forget a session that is over."""
        self._sides.pop(peer, None)

    def received(self, peer: bytes, message: AnyMessage) -> Said:
        """Take a message in; return all there is to say then, to whom."""
        return [*self.take(peer, message), *self._all_due()]

    def grown(self, entries: Iterable[Entry] = ()) -> Said:
        """Return all there is to say when the log has grown by itself."""
        self.noted(entries)
        return self._all_due()

    def _all_due(self) -> Said:
        said: Said = []
        for peer in list(self._sides):
            while (part := self.due(peer)) is not None:
                said.append((peer, part))
        return [*said, *self.acknowledgements()]

    def noted(self, entries: Iterable[Entry]) -> None:
        """Note what kind of entries were committed here, our own and others'."""
        if any(concerns_cluster(entry) for entry in entries):
            self.urgent = self.concerned = True

    def take(self, peer: bytes, message: AnyMessage) -> Said:
        """Take a message in; return the answer to it. What is `due`, to anybody, may be more then."""
        side = self._sides.get(peer)
        if side is None:
            return []
        match message:
            case Vector():
                side.known = self.log.known(message.heads)
                side.heads = message.heads
                self._perhaps_repaired(side)
            case Entries():
                return self._take_entries(peer, side, message.entries)
            case Acknowledged():
                self.log.acknowledge(peer, message.heads)
            case _:
                pass
        return []

    def _take_entries(self, peer: bytes, side: _Side, encoded: list[bytes]) -> Said:
        try:
            received = self.log.receive(encoded)
        except (DiskFull, StoreUnusable, OSError) as error:
            _log.warning("entries from %s could not be kept: %s", peer[:4].hex(), error)
            side.unkept = True
            return []
        for reason in received.rejected[:10]:
            _log.info("of %d entries from %s: %s", len(encoded), peer[:4].hex(), reason)
        if received.accepted:
            side.asked_again = False
            if side.known is not None:
                self.log.note_known(side.known, received.accepted)
        if received.rejected and not side.asked_again:
            side.asked_again = True
            return [(peer, Vector(self.log.summary()))]
        self._perhaps_repaired(side)
        return []

    def _perhaps_repaired(self, side: _Side) -> None:
        """Find out whether what was lost by damage here has come back: when we have all that a peer has."""
        if self.log.damaged and side.heads and all(self.log.has(head) for head in side.heads):
            self.log.repaired()

    def again(self) -> Said:
        """Ask once more for what could not be stored; the peers think that it is here. Call it now and then."""
        unkept = [peer for peer, side in self._sides.items() if side.unkept]
        for peer in unkept:
            self._sides[peer].unkept = False
        return [(peer, Vector(self.log.summary())) for peer in unkept]

    def due(self, peer: bytes) -> Entries | None:
        """Return the next part of what a peer lacks, None when it has all; it counts as sent."""
        side = self._sides.get(peer)
        if side is None or side.known is None or not self.log.lacks(side.known):
            return None
        part = self.log.part_for(side.known, PART_BYTES)
        return Entries(part) if part else None

    def acknowledgements(self) -> Said:
        """Return what to say to each peer about how far the log here is now, if it was not said yet.

        To all, not only to who sent it: each must know when the last one has seen a removal.
        """
        self.urgent = False
        heads = self.log.vector()
        said: Said = []
        for peer, side in self._sides.items():
            if side.told != heads:
                side.told = heads
                said.append((peer, Acknowledged(heads)))
        return said
