"""The entries of all logs in memory: chains, branches and heads, and what a peer lacks of them. Pure."""

from collections.abc import Iterable, Sequence
from typing import Final

from tbshare.volumes.entry import Entry
from tbshare.wire.message import Head

HEADS_MAX: Final = 4096  # in one Vector message; beyond it the oldest samples are left out

LogKey = tuple[bytes, bytes]  # (node, incarnation)


def head_of(entry: Entry) -> Head:
    """Return the entry as a head."""
    return Head(node=entry.node, incarnation=entry.incarnation, seq=entry.seq, hash=entry.hash)


class Chains:
    """Every entry held, in the order they came; an entry's `prev` is always there before it."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}  # by hash, in order of arrival
        self._heads: dict[LogKey, dict[bytes, Entry]] = {}
        self.lamport = 0

    def add(self, entry: Entry) -> None:
        """Take an entry whose `prev` is here, or which starts a log."""
        if entry.hash in self.entries:
            return
        heads = self._heads.setdefault((entry.node, entry.incarnation), {})
        heads.pop(entry.prev, None)
        heads[entry.hash] = entry  # its `prev` came first, so nothing here can follow it
        self.entries[entry.hash] = entry
        self.lamport = max(self.lamport, entry.lamport)

    def branches(self, node: bytes, incarnation: bytes) -> list[Entry]:
        """Return the last entry of each branch of a log."""
        return list(self._heads.get((node, incarnation), {}).values())

    def heads(self) -> list[Head]:
        """Return the heads of every branch of every log, in a fixed order."""
        heads = [head_of(entry) for heads in self._heads.values() for entry in heads.values()]
        return sorted(heads, key=_head_order)

    def heads_of(self, node: bytes) -> list[Head]:
        """Return the heads of one node's logs."""
        return [head for head in self.heads() if head.node == node]

    def samples(self) -> list[Head]:
        """Return the heads, and behind each the entries 1, 2, 4, 8 ... before it.

        By them a peer that does not know a head still finds where its own branch and ours part.
        """
        found: dict[bytes, Head] = {head.hash: head for head in self.heads()}
        for head in list(found.values()):
            entry, distance, wanted = self.entries.get(head.hash), 0, 1
            while entry is not None and len(found) < HEADS_MAX:
                if distance == wanted or entry.seq == 1:
                    found.setdefault(entry.hash, head_of(entry))
                    wanted *= 2 if distance == wanted else 1
                entry, distance = self.entries.get(entry.prev), distance + 1
        return sorted(found.values(), key=_head_order)

    def covered(self, heads: Iterable[Head]) -> set[bytes]:
        """Return the hashes of the entries at and before these heads, as far as they are known here."""
        known: set[bytes] = set()
        for head in heads:
            entry = self.entries.get(head.hash)
            while entry is not None and entry.hash not in known:
                known.add(entry.hash)
                entry = self.entries.get(entry.prev)
        return known

    def missing_for(self, heads: Sequence[Head], limit_bytes: int, *, skip: int = 0) -> list[bytes]:
        """Return entries that somebody with these heads may lack, in order of arrival, without the first `skip`.

        One at least, if any is left; then no more than `limit_bytes` together. A head not known here says
        nothing, so that of two branches each side sends its own.
        """
        known = self.covered(heads)
        missing: list[bytes] = []
        total = 0
        for entry in self.entries.values():
            if entry.hash in known:
                continue
            if skip:
                skip -= 1
                continue
            total += len(entry.encoded)
            if missing and total > limit_bytes:
                break
            missing.append(entry.encoded)
        return missing

    def holds(self, heads: Iterable[Head], entry: Entry) -> bool:
        """Say whether one of these heads is the entry or comes after it in the same log."""
        same = [
            head
            for head in heads
            if head.node == entry.node and head.incarnation == entry.incarnation and head.seq >= entry.seq
        ]
        return entry.hash in self.covered(same)


def _head_order(head: Head) -> tuple[bytes, bytes, int, bytes]:
    return head.node, head.incarnation, head.seq, head.hash
