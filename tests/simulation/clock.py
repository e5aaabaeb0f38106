"""Time in a simulated cluster: one heap of events, and clocks that each machine may have wrong."""

import heapq
import itertools
from collections.abc import Callable

EPOCH_NS = 1_795_000_000 * 10**9  # what all clocks show when a run begins
SECOND_NS = 10**9
YEAR_SECONDS = 365.25 * 86400.0


class World:
    """The time that passes for all, and what will happen: nothing else makes anything happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.events = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something at a time; of two at one time, the first said is done first."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something later."""
        self.at(self.now + seconds, what)

    def run(self, until: float = float("inf"), *, events_max: int = 200_000) -> None:
        """Let everything happen up to a time, or until nothing is left to happen. What is idle costs nothing."""
        for _ in range(events_max):
            if not self._events or self._events[0][0] > until:
                if until < float("inf"):
                    self.now = max(self.now, until)
                return
            self.now, _, what = heapq.heappop(self._events)
            self.events += 1
            what()
        raise AssertionError(f"the cluster does not come to rest: {events_max} events and no end")


class Clock:
    """The clocks of one machine: `time_ns` may jump, and run fast; `monotonic` runs as fast, and never jumps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since = 0.0
        self._wall = float(0)  # seconds since EPOCH_NS at `_since`
        self._steady = 0.0
        self.rate = 1.0

    def _settle(self) -> None:
        passed = (self._world.now - self._since) * self.rate
        self._wall += passed
        self._steady += passed
        self._since = self._world.now

    def monotonic(self) -> float:
        """Return the seconds of a clock that nobody sets."""
        self._settle()
        return self._steady

    def time_ns(self) -> int:
        """Return what the user's clock shows."""
        self._settle()
        return EPOCH_NS + int(self._wall * SECOND_NS)

    def jump(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self._settle()
        self._wall += seconds

    def run_at(self, rate: float) -> None:
        """From now on the clock runs this fast."""
        self._settle()
        self.rate = rate
