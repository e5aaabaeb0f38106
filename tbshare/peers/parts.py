"""What is known, while some bytes of an object are fetched, of the object, its readers, and who holds it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import trio

from tbshare.content import bits
from tbshare.content.bits import Bits
from tbshare.content.leaves import Run, blocks_between, leaves_between
from tbshare.content.manifest import Manifest
from tbshare.errors import FormatInvalid, TbshareError
from tbshare.peers.holders import FAULTS_MAX
from tbshare.peers.lanes import PeerLanes
from tbshare.peers.mesh import Peer
from tbshare.store.arriving import Arriving
from tbshare.wire.message import Have, Runs

AHEAD_MAX = 8  # readers of one object for which bytes are fetched ahead


@dataclass(eq=False)
class Wait:
    """Somebody waits for bytes [start, end) of an object.

    Not `urgent`: he has time. `gives_up`: not when nobody that is connected has them.
    """

    start: int
    end: int
    urgent: bool
    gives_up: bool
    since: float  # monotonic
    fed_at: float  # when somebody had what is missing, or it was asked for
    done: trio.Event = field(default_factory=trio.Event)
    error: TbshareError | None = None


@dataclass(eq=False)
class Flight:
    """A run of leaves of a block that was asked for."""

    part: "Part"
    block: int
    run: Run
    node: bytes
    lanes: PeerLanes
    asked_at: float  # monotonic

    @property
    def urgent(self) -> bool:
        """Whether somebody waited for it when it was asked for."""
        return self.lanes.urgent

    @property
    def leaves(self) -> Bits:
        """Its leaves, as a set."""
        return bits.full(self.run.count) << self.run.first


class Part:
    """An object of which some bytes are read."""

    def __init__(self, found: Manifest, arriving: Arriving) -> None:
        self.found, self.arriving = found, arriving
        self.waits: list[Wait] = []
        self.ahead: list[tuple[int, int]] = []  # [start, end), the newest last
        self.searched: Bits = 0  # blocks that were looked for in this store
        self._flights: dict[int, list[Flight]] = {}  # by block

    def blocks(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the blocks that lack some of bytes [start, end), and which bytes of each: (block, start, end)."""
        readable = self.arriving.readable
        for number, first, after in blocks_between(self.found.offsets, start, end):
            if not bits.contains(readable, number):
                yield number, first, after

    def absent(self, start: int, end: int) -> list[int]:
        """Return the blocks of bytes [start, end) that were not looked for and lack some."""
        blocks = self.blocks(start, end)
        return [number for number, _, _ in blocks if not bits.contains(self.searched, number)]

    def lacks(self, start: int, end: int) -> bool:
        """Return whether some of bytes [start, end) are not here."""
        return any(
            leaves_between(first, after) & ~self.arriving.leaves(number)
            for number, first, after in self.blocks(start, end)
        )

    def look_ahead(self, start: int, end: int) -> None:
        """Note what a reader will want; it takes the place of what was noted for the same reader before."""
        if start < end:
            others = [span for span in self.ahead if not span[0] <= start <= span[1]]
            self.ahead = [*others, (start, end)][-AHEAD_MAX:]

    def fly(self, flight: Flight) -> None:
        """Note a run that was asked for."""
        self._flights.setdefault(flight.block, []).append(flight)

    def land(self, flight: Flight) -> None:
        """Note that it came, or will not come."""
        self._flights[flight.block].remove(flight)
        if not self._flights[flight.block]:
            del self._flights[flight.block]

    def flying(self, block: int, counts: Callable[[Flight], bool] = lambda _: True) -> Bits:
        """Return the leaves of a block that are in flight; of flights that count."""
        leaves = 0
        for flight in self._flights.get(block, ()):
            if counts(flight):
                leaves |= flight.leaves
        return leaves

    def tell(self) -> None:
        """Wake whoever has what he waits for."""
        for wait in self.waits:
            if not wait.done.is_set() and (self.arriving.closed or not self.lacks(wait.start, wait.end)):
                wait.done.set()

    def fail(self, error: TbshareError) -> None:
        """Tell whoever waits that it cannot be done."""
        for wait in self.waits:
            wait.error = wait.error or error
            wait.done.set()


class RangeHolder:
    """What one peer holds of the objects of a tree."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.wrong = 0  # lanes that ended by wrong bytes or a broken protocol
        self.silent = 0  # lanes in a row that had to be cut
        self.refused: dict[bytes, Bits] = {}  # blocks that it did not give after all
        self.told = False
        self._whole = False
        self._runs: dict[bytes, list[Runs]] = {}  # as they came: what they are about may not be known yet
        self._holds: dict[bytes, Bits] = {}

    def take(self, message: Have) -> None:
        """Take in what it says."""
        self.told = True
        self._whole |= message.whole
        for holding in message.holdings:
            self._runs.setdefault(holding.object, []).append(holding.blocks)

    def refuse(self, object_id: bytes, block: int) -> None:
        """Note that it did not give a block."""
        self.refused[object_id] = self.refused.get(object_id, 0) | 1 << block

    def holds(self, found: Manifest, block: int) -> bool:
        """Return whether it may be asked for a block."""
        if max(self.wrong, self.silent) >= FAULTS_MAX or bits.contains(self.refused.get(found.id, 0), block):
            return False
        if self._whole:
            return True
        for runs in self._runs.pop(found.id, ()):
            try:
                held = bits.from_runs(runs, found.block_count)
            except FormatInvalid:
                self.wrong = FAULTS_MAX
                return False
            self._holds[found.id] = self._holds.get(found.id, 0) | held
        return bits.contains(self._holds.get(found.id, 0), block)
