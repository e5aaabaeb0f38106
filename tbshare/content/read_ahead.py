"""How far ahead of a reader bytes are fetched: not at all while it jumps about, more and more while it goes on.

Each read that goes on where the last one ended doubles the window, up to WINDOW_BYTES_MAX; a jump closes it. Small
gaps count as going on (a player skips what it does not play), and so does reading the same again.
"""

from dataclasses import dataclass

from tbshare.content.block import BLOCK_BYTES, LEAF_BYTES

WINDOW_BYTES_MIN = 4 * LEAF_BYTES
WINDOW_BYTES_MAX = 16 * BLOCK_BYTES  # 64 MiB: half a second of the fastest cable, a few of a slow one
GAP_BYTES_MAX = 4 * LEAF_BYTES
BEFORE_IT_GROWS = 2  # reads in a row that go on: the first read of a file says nothing yet


@dataclass(frozen=True)
class ReadAhead:
    """What is known of one reader. `after` gives what is known once it has read more."""

    end: int = 0  # where its last read ended
    reads: int = 0  # in a row that went on
    window: int = 0  # bytes to have on their way behind `end`

    def after(self, start: int, length: int) -> "ReadAhead":
        """Return what is known after a read of `length` bytes from `start`."""
        end = start + length
        goes_on = self.end - max(length, GAP_BYTES_MAX) <= start <= self.end + GAP_BYTES_MAX
        if not goes_on:
            return ReadAhead(end, 1)
        reads = self.reads + 1
        if reads < BEFORE_IT_GROWS:
            return ReadAhead(max(end, self.end), reads)
        if end <= self.end:  # read again
            return ReadAhead(self.end, reads, self.window)
        window = max(WINDOW_BYTES_MIN, self.window + min(self.window, 2 * (end - self.end)))
        return ReadAhead(end, reads, min(window, WINDOW_BYTES_MAX))
