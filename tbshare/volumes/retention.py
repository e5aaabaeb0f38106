"""Which versions' bytes a node gives up: a pure decision. The versions themselves stay in the log.

Ages are counted on a clock that runs only while the daemon does, so that neither a wrong clock nor a node that was
switched off for a month makes history vanish.
"""

from collections.abc import Iterable, Sequence

import msgspec

from tbshare.volumes.policy import Policy

DAY_SECONDS = 24 * 60 * 60


class Past(msgspec.Struct, frozen=True):
    """A version whose bytes are on this node."""

    file: int
    version: int
    stamp: bytes  # its place in the order of ops
    content: bytes
    size: int
    age_seconds: float = 0  # since another version, or the removal of the last name, took its place
    needed: bool = False  # a head of a file that has a name, or named by a snapshot
    keeps_history: bool = True  # its path is not one of the volume's `no_history`


def budget_bytes(policy: Policy, disk_bytes: int) -> int | None:
    """Return how many bytes of a disk the history of a volume may take; None when there is no limit."""
    limits = [disk_bytes * policy.history_percent // 100] if policy.history_percent else []
    limits += [policy.history_bytes] if policy.history_bytes else []
    return min(limits, default=None)


def expired(versions: Iterable[Past], policy: Policy, disk_bytes: int) -> list[tuple[int, int]]:
    """Return (file, version) of what goes: without history, too old, then the oldest of what is over the budget.

    A version that is needed never goes. Bytes that several versions have in common are counted once, and not at
    all when one that is needed has them: giving those up would free nothing.
    """
    everything = list(versions)
    free = {past.content for past in everything if past.needed}
    history = sorted([past for past in everything if not past.needed], key=lambda past: past.stamp)
    limit_seconds = policy.history_days * DAY_SECONDS
    going = [past for past in history if not past.keeps_history or past.age_seconds > limit_seconds]
    gone = {(past.file, past.version) for past in going}
    staying = [past for past in history if (past.file, past.version) not in gone]
    over = _over_budget(staying, free, budget_bytes(policy, disk_bytes))
    return [(past.file, past.version) for past in (*going, *over)]


def _over_budget(staying: Sequence[Past], free: set[bytes], budget: int | None) -> Sequence[Past]:
    """Return the oldest of these without which the others fit."""
    if budget is None:
        return ()
    total = 0
    for number in range(len(staying) - 1, -1, -1):  # the newest come first to their place
        past = staying[number]
        if past.content in free:
            continue
        total += past.size
        if total > budget:
            return staying[: number + 1]
        free.add(past.content)
    return ()
