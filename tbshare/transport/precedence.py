"""Who goes first on the way out: what somebody waits for, before bulk, on all lanes of a node."""

import itertools
import time
from collections.abc import Callable
from threading import Condition, Event

GIVE_WAY_SECONDS = 0.1  # at a time: a lane that sends nothing for longer is taken for dead
PATIENCE_SECONDS = 0.5  # for one that is not sent: its fetcher may be stuck, and the others go on
RECENT_SECONDS = 10.0  # since somebody last waited: another read is to be expected
# Of bulk that may be ahead of what somebody waits for, on each lane. 10 ms are promised; the answers to two
# questions and the leaf itself stand behind it, one after the other, before a file shows its first byte.
BULK_SECONDS = 0.005
SLICE_BYTES_MIN, SLICE_BYTES_MAX = 64 * 1024, 4 * 1024 * 1024


def slice_bytes(bytes_per_second: float) -> int:
    """Return how much bulk to hand at once to a link that takes so much; 0: it is not known."""
    wanted = int(bytes_per_second * BULK_SECONDS / 2)
    return min(max(wanted, SLICE_BYTES_MIN), SLICE_BYTES_MAX)


class Precedence:
    """What is waited for and not yet handed to a link; whoever sends bulk asks between slices. Thread-safe."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._since: dict[int, float] = {}
        self._last = -RECENT_SECONDS
        self._numbers = itertools.count()

    def goes_first(self, done: Callable[[], None]) -> Callable[[], None]:
        """Note something that somebody waits for, until what is returned here is called; that calls `done`."""
        number = next(self._numbers)
        with self._changed:
            self._last = self._since[number] = time.monotonic()

        def ended() -> None:
            with self._changed:
                del self._since[number]
                self._changed.notify_all()
            done()

        return ended

    @property
    def is_likely(self) -> bool:
        """Whether somebody has waited lately, so that bulk must not fill the queues on the way."""
        return time.monotonic() - self._last < RECENT_SECONDS

    def give_way(self, stopped: Event) -> None:
        """Wait while something goes first, for GIVE_WAY_SECONDS at most."""
        if not self._since:  # the usual case, without the lock
            return
        with self._changed:
            self._changed.wait_for(lambda: stopped.is_set() or not self._waits(), GIVE_WAY_SECONDS)

    def _waits(self) -> bool:
        now = time.monotonic()
        return any(now - since < PATIENCE_SECONDS for since in self._since.values())
