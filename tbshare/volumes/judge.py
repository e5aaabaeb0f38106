"""Which entries of a peer may be stored: what the chain, Lamport time and membership say of them."""

from collections.abc import Callable, Sequence
from typing import Final

from tbshare.errors import FormatInvalid
from tbshare.volumes.entry import LAMPORT_MAX, NO_HASH, Entry, decode_entry, verify_entry
from tbshare.volumes.log_rows import Stored
from tbshare.volumes.membership import Membership, has_statement

LAMPORT_JUMP_MAX: Final = 1 << 48  # one entry may not use up the numbers of all others
RECEIVE_MAX: Final = 65536  # entries in one call


def readable(encoded: Sequence[bytes]) -> tuple[list[Entry], list[str]]:
    """Return the entries these bytes are, each once, and what is wrong with the others."""
    rejected = [f"more than {RECEIVE_MAX} entries at once"] * (len(encoded) > RECEIVE_MAX)
    entries: list[Entry] = []
    for data in dict.fromkeys(encoded[:RECEIVE_MAX]):
        try:
            entries.append(decode_entry(data))
        except FormatInvalid as error:
            rejected.append(str(error))
    return entries, rejected


def signed(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Return the entries whose signature holds, and what is wrong with the others."""
    good: list[Entry] = []
    rejected: list[str] = []
    for entry in entries:
        try:
            verify_entry(entry)
        except FormatInvalid as error:
            rejected.append(str(error))
        else:
            good.append(entry)
    return good, rejected


class Judge:
    """Decides over entries that came together; those it accepts are taken to be there for the later ones."""

    def __init__(
        self,
        stored: Stored,
        who: Membership,
        membership_with: Callable[[Sequence[Entry]], Membership],
        *,
        always: Sequence[bytes],
    ) -> None:
        """Nodes and hashes that are `always` taken: our own older entries, and where the cluster begins."""
        self._stored = stored
        self._who = who
        self._membership_with = membership_with
        self._always = always
        self._lamport = stored.branches.lamport
        self.accepted: dict[bytes, Entry] = {}

    def judge(self, waiting: list[Entry]) -> tuple[list[Entry], list[str]]:
        """Take what may be stored, parents first; return what cannot be yet, and what is wrong with the rest."""
        waiting.sort(key=Entry.order)
        wrong: list[str] = []
        progress = True
        while waiting and progress:
            progress, later = False, list[Entry]()
            for entry in waiting:
                if entry.hash in self.accepted:
                    continue
                if self.not_yet(entry):
                    later.append(entry)
                    continue
                reason = self._never(entry)
                if reason:
                    wrong.append(reason)
                    continue
                self.accepted[entry.hash] = entry
                self._lamport = max(self._lamport, entry.lamport)
                progress = True
                if has_statement(entry):
                    self._who = self._membership_with(list(self.accepted.values()))
            waiting = later
        return waiting, wrong

    def not_yet(self, entry: Entry) -> str:
        """Return why an entry cannot be stored before another one, or ""."""
        lone = entry.prev != NO_HASH and entry.prev not in self.accepted
        if lone and self._stored.find_previous(entry) is None:
            return f"entry {entry.seq} of node {entry.node[:4].hex()} came without the one before it"
        known = entry.node in self._who.members or entry.node in self._who.removed
        if known or entry.hash in self._always or entry.node in self._always:
            return ""
        return f"an entry of {entry.node[:4].hex()}, which is not a member"

    def _never(self, entry: Entry) -> str:
        """Return what is wrong with an entry for good, or ""."""
        name = f"entry {entry.seq} of node {entry.node[:4].hex()}"
        if entry.prev != NO_HASH and not self._follows(entry):
            return f"{name} does not follow the one before it"
        if entry.lamport > min(self._lamport + LAMPORT_JUMP_MAX, LAMPORT_MAX - LAMPORT_JUMP_MAX):
            return f"{name} jumps too far ahead in Lamport time"
        return ""

    def _follows(self, entry: Entry) -> bool:
        previous = self.accepted.get(entry.prev)
        if previous is not None:
            same_log = (previous.node, previous.incarnation) == (entry.node, entry.incarnation)
            return same_log and entry.seq == previous.seq + 1 and entry.lamport > previous.lamport
        branch = self._stored.find_previous(entry)
        if branch is None:
            return False
        if branch.seq == entry.seq - 1:
            return entry.lamport > branch.lamport
        before = self._stored.entry_of(branch.id, entry.seq - 1)
        return before is not None and entry.lamport > before.lamport
