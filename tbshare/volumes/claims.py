"""Which names and files are being changed by this node's own callers right now.

Nodes may change one thing at once, and the fold makes sense of it. Two callers of one node expect what a local
disk gives: of two that make one name, one is told that it exists. Each holds a claim on what it looked at while
its ops are committed; callers that touch different things share a commit.
"""

from collections import Counter
from collections.abc import Generator, Hashable, Iterable
from contextlib import contextmanager
from threading import Condition


class Claims:
    """What is claimed. All that one caller needs is taken at once, so nobody waits in a ring."""

    def __init__(self) -> None:
        self._alone: set[Hashable] = set()
        self._together: Counter[Hashable] = Counter()
        self._changed = Condition()

    @contextmanager
    def hold(self, alone: Iterable[Hashable], together: Iterable[Hashable] = ()) -> Generator[None, None, None]:
        """Hold these, waiting until nobody has what is wanted `alone`, nor alone what is wanted `together`."""
        mine = frozenset(alone)
        shared = frozenset(together) - mine
        with self._changed:
            self._changed.wait_for(lambda: self._free(mine, shared))
            self._alone |= mine
            self._together.update(shared)
        try:
            yield
        finally:
            with self._changed:
                self._alone -= mine
                self._together -= Counter(shared)
                self._changed.notify_all()

    def _free(self, alone: frozenset[Hashable], together: frozenset[Hashable]) -> bool:
        taken = any(thing in self._together for thing in alone)
        return not taken and self._alone.isdisjoint(alone) and self._alone.isdisjoint(together)
