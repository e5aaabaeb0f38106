"""What a node had heard of when it wrote an entry, as its own log says; and what it may do by that. Pure.

Giving a right holds from its place in the order of ops. Taking one away binds a node from the entry on in which it
says that it has heard of it: what it saved on the other side of a cut, rightly as far as it could know, stays. So
a verdict on an entry rests on what is given before it in the order, and on the log it stands in, and nothing that
arrives later makes it void. A node that does not say what it has heard is removed: membership.py.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tbshare.volumes.entry import At, Entry
from tbshare.volumes.membership import Before


class Said(NamedTuple):
    """A role or an owner that somebody set, with the hash of the entry that did it."""

    stamp: bytes
    value: str
    entry: bytes


Allows = Callable[[str], bool]  # whether this value, of a role or an owner, is one that gives the right asked for


def allowed(said: Sequence[Said], allows: Allows, heard: Callable[[bytes], bool], *, otherwise: bool) -> bool:
    """Say whether there is a right, after what was said in order: the last that gives it or is heard of decides.

    `otherwise` is whether there was one before anything was said.
    """
    for one in reversed(said):
        if allows(one.value):
            return True
        if heard(one.entry):
            return False
    return otherwise


def taken(said: Sequence[Said], allows: Allows, *, otherwise: bool) -> list[bytes]:
    """Return the entries that took the right away for now; none for who never had it."""
    entries: list[bytes] = []
    for one in reversed(said):
        if allows(one.value):
            return entries
        entries.append(one.entry)
    return entries if otherwise else []


class Hearing:
    """Who says in which entries what it has heard of; what a node wrote itself it has heard of."""

    def __init__(self, before: Before) -> None:
        self._before = before
        self._in: dict[tuple[bytes, bytes], list[Entry]] = {}  # (node, what it has heard of) -> where it says so

    def note(self, entry: Entry, heard: bytes) -> None:
        """Take up that the author has heard of an entry."""
        self._in.setdefault((entry.node, heard), []).append(entry)

    def by(self, entry: Entry) -> Callable[[bytes], bool]:
        """Return what says whether the author of an entry had heard of another one by then."""
        return lambda heard: self.at(At(entry.node, entry.incarnation, entry.seq, entry.hash), heard)

    def at(self, place: At, heard: bytes) -> bool:
        """Say whether the log that ends here says that its node has heard of an entry."""
        return any(self._before(entry, place) for entry in self._in.get((place.node, heard), ()))

    def until(self, node: bytes, heard: bytes, stamp: bytes) -> bool:
        """Say whether any log of the node says, before this stamp, that it has heard of an entry."""
        return any(entry.stamp() < stamp for entry in self._in.get((node, heard), ()))
