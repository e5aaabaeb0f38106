"""The branches of all logs: where each begins and ends, and by that what somebody with other heads lacks. Pure.

A log is a chain; when its node was restored or cloned it has branches. A branch is a run of entries by seq: it
begins after an entry of its parent (`fork_seq`), or with the log. Of each only the ends are in memory, so that a
million entries cost nothing; one entry of it is looked up by its seq where a hash has to be compared.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from tbshare.volumes.entry import NO_HASH, At, Entry
from tbshare.wire.message import Head

HEADS_MAX: Final = 4096  # in one Vector message; beyond it the oldest samples are left out

LogKey = tuple[bytes, bytes]  # (node, incarnation)
Known = dict[int, int]  # branch -> the last of its entries, by seq, that somebody has


class Branch(msgspec.Struct):
    """A run of entries of one log, each the `prev` of the next."""

    id: int
    node: bytes
    incarnation: bytes
    parent: int  # 0 when it begins a log
    fork_seq: int  # the last entry that is its parent's
    seq: int = 0  # of the last entry, with its hash, Lamport time and arrival
    hash: bytes = NO_HASH
    lamport: int = 0
    arrival: int = 0

    def head(self) -> Head:
        """Return the last entry as a head."""
        return Head(node=self.node, incarnation=self.incarnation, seq=self.seq, hash=self.hash)

    def end(self, entry: Entry, arrival: int) -> None:
        """Make this entry the last."""
        self.seq, self.hash, self.lamport, self.arrival = entry.seq, entry.hash, entry.lamport, arrival


class Branches:
    """Every branch held; `hash_at` looks up the hash of an entry that is not the last of its branch."""

    def __init__(self, hash_at: Callable[[int, int], bytes]) -> None:
        self.by_id: dict[int, Branch] = {}
        self.lamport = 0
        self._logs: dict[LogKey, list[Branch]] = {}
        self._hash_at = hash_at

    def add(self, branch: Branch) -> None:
        """Take a branch."""
        self.by_id[branch.id] = branch
        self._logs.setdefault((branch.node, branch.incarnation), []).append(branch)
        self.lamport = max(self.lamport, branch.lamport)

    def append(self, branch: Branch, entry: Entry, arrival: int) -> None:
        """Take an entry that follows the last one of its branch."""
        branch.end(entry, arrival)
        self.lamport = max(self.lamport, entry.lamport)

    def of_log(self, node: bytes, incarnation: bytes) -> list[Branch]:
        """Return the branches of a log."""
        return self._logs.get((node, incarnation), [])

    def find(self, place: Head | At | Entry) -> Branch | None:
        """Return the branch that an entry lies in, None when we do not have it."""
        for branch in self._logs.get((place.node, place.incarnation), ()):
            if place.seq == branch.seq:
                if place.hash == branch.hash:
                    return branch
            elif branch.fork_seq < place.seq < branch.seq and self._hash_at(branch.id, place.seq) == place.hash:
                return branch
        return None

    def hash_on(self, branch: Branch, seq: int) -> bytes:
        """Return the hash of an entry of the branch, or before it in the same log."""
        while seq <= branch.fork_seq:
            branch = self.by_id[branch.parent]
        return branch.hash if seq == branch.seq else self._hash_at(branch.id, seq)

    def heads(self) -> list[Head]:
        """Return the heads of every branch that no other follows, in a fixed order."""
        followed = {(branch.parent, branch.fork_seq) for branch in self.by_id.values()}
        heads = [branch.head() for branch in self.by_id.values() if (branch.id, branch.seq) not in followed]
        return sorted(heads, key=_head_order)

    def samples(self) -> list[Head]:
        """Return the heads, and behind each the entries 1, 2, 4, 8 ... before it.

        By them a peer that does not know a head still finds where its own branch and ours part.
        """
        found = {head.hash: head for head in self.heads()}
        for branch in list(self.by_id.values()):
            distance = 1
            while branch.seq > 1 and len(found) < HEADS_MAX:
                seq = max(branch.seq - distance, 1)
                hash_ = self.hash_on(branch, seq)
                if not hash_:
                    break  # damaged: it could not be read
                found.setdefault(hash_, Head(branch.node, branch.incarnation, seq, hash_))
                distance *= 2
                if seq == 1:
                    break
        return sorted(found.values(), key=_head_order)

    def known(self, heads: Iterable[Head | At]) -> Known:
        """Return what somebody with these heads has, as far as they are known here.

        A head not known here says nothing, so that of two branches each side sends its own.
        """
        known: Known = {}
        for head in heads:
            branch, seq = self.find(head), head.seq
            while branch is not None and known.get(branch.id, 0) < seq:
                known[branch.id] = seq
                seq = branch.fork_seq
                branch = self.by_id.get(branch.parent)
        return known

    def lacking(self, known: Mapping[int, int]) -> list[tuple[Branch, int]]:
        """Return the branches of which somebody lacks entries, each with the last seq it has."""
        found = ((branch, max(known.get(branch.id, 0), branch.fork_seq)) for branch in self.by_id.values())
        return [(branch, seq) for branch, seq in found if seq < branch.seq]

    def covered(self, known: Mapping[int, int], entry: Entry | At) -> bool:
        """Say whether the entry is among these."""
        branches = self.of_log(entry.node, entry.incarnation)
        if not any(entry.seq <= known.get(branch.id, 0) for branch in branches):
            return False
        branch = branches[0] if len(branches) == 1 else self.find(entry)
        return branch is not None and entry.seq <= known.get(branch.id, 0)


def _head_order(head: Head) -> tuple[bytes, bytes, int, bytes]:
    return head.node, head.incarnation, head.seq, head.hash
