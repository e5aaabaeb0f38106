"""Ids of files, directories, names, placings and versions: 63 bits, given by the node that makes the thing. Pure.

    20 bits of the node's key | 21 random bits, drawn at each start | 22 bits counting from 1

An id tells whose it is, and the ids of one run are in order, which keeps them side by side in a table. They are
never given twice, and serve as inode numbers: bits that this store drew before are drawn again, and those of a
restored or cloned one, which does not know them all, differ by chance. 0 is the root directory of each volume.
"""

from collections.abc import Callable
from random import Random
from threading import Lock
from typing import Final

NODE_BITS: Final = 20
RUN_BITS: Final = 21
COUNT_BITS: Final = 22
ROOT: Final = 0


def owner_of(node: bytes) -> int:
    """Return the first bits of every id that this node gives."""
    return int.from_bytes(node[:4], "big") >> (32 - NODE_BITS)


def given_by(number: int, owner: int) -> bool:
    """Say whether an id was given by the node of this `owner_of`."""
    return number >> (RUN_BITS + COUNT_BITS) == owner


class Ids:
    """Gives the ids of one run of a node, to any thread."""

    def __init__(self, node: bytes, random: Random, take_run: Callable[[int], bool] = lambda _: True) -> None:
        """`take_run` notes random bits for good; False when they were noted before."""
        self._owner = owner_of(node) << RUN_BITS
        self._random = random
        self._take_run = take_run
        self._lock = Lock()
        self._next: int = 0
        self._end: int = 0

    def new(self) -> int:
        """Return an id that nothing has."""
        with self._lock:
            if self._next == self._end:
                while not self._take_run(bits := self._random.getrandbits(RUN_BITS)):
                    pass
                run = self._owner | bits
                self._next = (run << COUNT_BITS) + 1
                self._end = (run + 1) << COUNT_BITS
            self._next += 1
            return self._next - 1
