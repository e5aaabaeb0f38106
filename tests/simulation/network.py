"""Cables and sessions between simulated machines. A message is bytes; each direction of a cable can fail alone.

A session carries messages in order, each way, and is lost as a whole: of what is on its way a prefix still comes.
When only one direction fails, the other still delivers until silence has been noticed, and then the session ends.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from tbshare.wire import limits
from tests.simulation.clock import World

DIAL_SECONDS = 0.25
LATENCY_SECONDS = 0.001
JITTER_SECONDS = 0.05


class End(Protocol):
    """What runs on a machine and has sessions."""

    @property
    def key(self) -> bytes:
        """The node."""
        ...

    def trusts(self, node: bytes) -> bool: ...
    def joined(self, session: "Session") -> None: ...
    def received(self, session: "Session", message: bytes) -> None: ...
    def left(self, session: "Session") -> None: ...


@dataclass(eq=False)
class Way:
    """One direction of a session."""

    free_at: float = 0.0  # when the message before the next one has arrived
    on_the_way: int = 0
    blocked: bool = False  # the cable fails this way: what is sent is lost
    still: int | None = None  # the session is lost: so many messages still come
    open: bool = True  # the receiving end has not heard of the end yet


@dataclass(eq=False)
class Session:
    """One session of two machines; `sides` 0 and 1."""

    machines: tuple[int, int]
    ends: tuple[End, End]
    ways: tuple[Way, Way] = field(default_factory=lambda: (Way(), Way()))  # by the side that receives
    lost: bool = False

    def side(self, end: End) -> int:
        """Return which side an end is."""
        return 0 if self.ends[0] is end else 1

    def peer(self, end: End) -> End:
        """Return the other end."""
        return self.ends[1 - self.side(end)]


class Network:
    """All cables and sessions. `running` says what runs on a machine now."""

    def __init__(self, world: World, random: Random, running: Callable[[int], End | None]) -> None:
        self.world, self.random, self._running = world, random, running
        self.cables: dict[tuple[int, int], list[bool]] = {}  # (low, high) -> works low to high, high to low
        self.sessions: dict[tuple[int, int], Session] = {}
        self.messages = 0
        self._dialling: set[tuple[int, int]] = set()

    def set_cable(self, one: int, other: int, forth: bool, back: bool) -> None:
        """Let a cable work or fail, each way."""
        pair, works = ((one, other), [forth, back]) if one < other else ((other, one), [back, forth])
        self.cables[pair] = works
        session = self.sessions.get(pair)
        if session is not None and not all(works):
            for side in (0, 1):
                session.ways[side].blocked = not works[1 - side]
            self.lose(session, silent=True)
        self.wake(pair)

    def add_machine(self, index: int) -> None:
        """Lay cables from a new machine to all others; they do not work yet."""
        for other in range(index):
            self.cables[other, index] = [False, False]

    def wake(self, *pairs: tuple[int, int]) -> None:
        """Dial soon, where there is no session: all pairs, or these."""
        for pair in pairs or tuple(self.cables):
            if pair not in self._dialling and pair not in self.sessions and all(self.cables[pair]):
                self._dialling.add(pair)
                self.world.after(DIAL_SECONDS * (0.5 + self.random.random()), lambda pair=pair: self._dial(pair))  # type: ignore[misc]

    def _dial(self, pair: tuple[int, int]) -> None:
        self._dialling.discard(pair)
        one, other = self._running(pair[0]), self._running(pair[1])
        if pair in self.sessions or not all(self.cables[pair]) or one is None or other is None:
            return
        if not one.trusts(other.key) or not other.trusts(one.key):
            return
        if self.session_with(one, other.key) or self.session_with(other, one.key):
            return  # a clone of it is connected: one session for each pair of nodes
        session = self.sessions[pair] = Session(pair, (one, other))
        one.joined(session)
        other.joined(session)

    def sessions_of(self, end: End) -> list[Session]:
        """Return the sessions that an end has not seen end."""
        return [s for s in self.sessions.values() if end in s.ends and s.ways[s.side(end)].open]

    def session_with(self, end: End, node: bytes) -> Session | None:
        """Return the session an end has with a node."""
        return next((s for s in self.sessions_of(end) if s.peer(end).key == node), None)

    def send(self, session: Session, sender: End, message: bytes) -> None:
        """Send; nothing says whether it arrives."""
        way = session.ways[1 - session.side(sender)]
        if session.lost or way.blocked:
            return
        self.messages += 1
        arrives = self.world.now + LATENCY_SECONDS + self.random.random() * JITTER_SECONDS
        way.free_at = max(way.free_at, arrives)
        way.on_the_way += 1
        receiver = session.peer(sender)
        self.world.at(way.free_at, lambda: self._arrive(session, way, receiver, message))

    def _arrive(self, session: Session, way: Way, receiver: End, message: bytes) -> None:
        way.on_the_way -= 1
        if not way.open:
            return
        if way.still is not None:
            if way.still <= 0:
                return
            way.still -= 1
        receiver.received(session, message)

    def lose(
        self, session: Session, *, silent: bool = False, dead: End | None = None, whole: bool = False
    ) -> None:
        """End a session: at once, or (`silent`) when both have noticed. `dead` no longer notices anything.

        `whole`: it is closed in good order, and all that was sent still comes.
        """
        if session.lost and dead is None:
            return
        session.lost = True
        for side, end in enumerate(session.ends):
            way = session.ways[side]
            if not way.open:
                continue
            if end is dead:
                way.open = False
                continue
            if not whole and way.still is None:
                way.still = self.random.randint(0, way.on_the_way)
            notices = self.world.now + (limits.NODE_GONE_SECONDS if silent else 0.0) + self.random.random()
            self.world.at(max(notices, way.free_at), lambda way=way, end=end: self._left(session, way, end))  # type: ignore[misc]
        self._forget(session)

    def _left(self, session: Session, way: Way, end: End) -> None:
        if not way.open:
            return
        way.open = False
        end.left(session)
        self._forget(session)

    def _forget(self, session: Session) -> None:
        if any(way.open for way in session.ways):
            return
        if self.sessions.get(session.machines) is session:
            del self.sessions[session.machines]
            self.wake()

    def stopped(self, end: End) -> None:
        """What ran on a machine is gone, without a word."""
        for session in list(self.sessions.values()):
            if end in session.ends:
                self.lose(session, silent=self.random.random() < 0.5, dead=end)

    def pairs(self, machines: int) -> list[tuple[int, int]]:
        """Return all pairs of machines."""
        return list(itertools.combinations(range(machines), 2))
