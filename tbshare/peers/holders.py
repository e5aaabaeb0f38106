"""Who holds blocks of a tree that is being fetched, and who is not asked for them any more."""

import time
from collections.abc import Iterable, Sequence

from tbshare.content.bits import Bits
from tbshare.peers.lanes import PeerLanes
from tbshare.peers.mesh import Peer
from tbshare.peers.plan import PeerView, window

FAULTS_MAX = 3  # lanes from one peer that ended badly; then it is not asked any more for this tree
STARVED_SECONDS = 5.0  # without anybody to ask for what is missing: then the fetch fails, and is tried again later
STARVED_SECONDS_MIN = 2.0  # the same, when all have said what they hold


class Holder:
    """What one peer holds of the tree, and what it has given."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.holds: Bits = 0
        self.told = False
        self.wrong = 0  # lanes that ended by a wrong block or a broken protocol
        self.silent = 0  # lanes in a row that had to be cut
        self.bytes = 0

    @property
    def excluded(self) -> bool:
        """Whether it is not asked any more."""
        return max(self.wrong, self.silent) >= FAULTS_MAX


class Holders:
    """The holders of one tree, by node."""

    def __init__(self) -> None:
        self.all: dict[bytes, Holder] = {}
        self.fed_at = time.monotonic()  # when somebody had something that is missing

    def fault(self, node: bytes, *, wrong: bool) -> None:
        """Note a lane that ended badly: by what it brought, or by its silence."""
        holder = self.all.get(node)
        if holder is not None:
            holder.wrong += wrong
            holder.silent += not wrong

    def starved(self, needed: Bits, views: Sequence[PeerView], peers: Iterable[bytes], *, busy: bool) -> bool:
        """Return whether for a while nobody that may be asked has had any of what is missing."""
        now = time.monotonic()
        if busy or not needed or any(view.holds & needed for view in views):
            self.fed_at = now
        patience = STARVED_SECONDS if self._may_come(needed, peers) else STARVED_SECONDS_MIN
        return now - self.fed_at > patience

    def _may_come(self, needed: Bits, peers: Iterable[bytes]) -> bool:
        """Return whether a connected peer has not said what it holds, or holds some and has no lane yet."""
        holders = [self.all.get(node) for node in peers]
        return any(
            holder is None or not holder.told or (holder.holds & needed and not holder.excluded)
            for holder in holders
        )


def view_of(holder: Holder, lanes: PeerLanes, now: float, askers: tuple[bytes, ...]) -> PeerView:
    """Return what `plan` must know of a holder."""
    rate = lanes.rate.bytes_per_second
    return PeerView(
        peer=holder.peer.node,
        holds=holder.holds,
        in_flight_bytes=lanes.outstanding_bytes,
        in_flight_blocks=lanes.outstanding,
        window_bytes=window(rate, min(holder.peer.session.rtt_seconds, 1.0)) * max(1, len(lanes.lanes)),
        rate=rate,
        suspect=lanes.suspect(now),
        askers=askers,
    )
