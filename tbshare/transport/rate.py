"""A limit on bytes per second, shared by any number of lanes (`push --limit`)."""

from threading import Lock


class RateLimit:
    """A token bucket that may be overdrawn: who sends first waits afterwards, so no size needs splitting here.

    Time is handed in, in seconds of any steady clock. `slice_bytes` is how much to send between two questions:
    a tenth of a second's worth, so that a slow limit is a thin stream and not a burst every few seconds, which
    the fetcher would take for a dead lane.
    """

    def __init__(self, bytes_per_second: float, *, now: float) -> None:
        self.set_rate(bytes_per_second)
        self._lock = Lock()
        self._free_at = now

    def set_rate(self, bytes_per_second: float) -> None:
        """Use another rate from now on."""
        assert bytes_per_second > 0
        self.bytes_per_second = bytes_per_second
        self.slice_bytes = max(int(bytes_per_second / 10), 4096)

    def spend(self, count: int, now: float) -> float:
        """Note that `count` bytes were sent; return the seconds to wait before sending more, 0.0 if none."""
        with self._lock:
            # Time in which nobody sent is worth one slice, not more: no burst after a pause.
            earliest = now - self.slice_bytes / self.bytes_per_second
            self._free_at = max(self._free_at, earliest) + count / self.bytes_per_second
            return max(self._free_at - now, 0.0)
