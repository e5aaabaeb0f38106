"""What signals mean to somebody who waits for an answer: on a disk, one that is caught interrupts no mkdir."""

from pathlib import Path
from signal import Signals
from typing import Final


def _bits(*signals: Signals) -> int:
    return sum(1 << number - 1 for number in signals)


KILL: Final = _bits(Signals.SIGKILL)
HARMLESS: Final = _bits(  # what these do by themselves ends nobody
    Signals.SIGCHLD,
    Signals.SIGCONT,
    Signals.SIGURG,
    Signals.SIGWINCH,
    Signals.SIGSTOP,
    Signals.SIGTSTP,
    Signals.SIGTTIN,
    Signals.SIGTTOU,
)


def is_dying(thread: int, processes: Path = Path("/proc")) -> bool:
    """Return whether a thread waits for an answer that it will not live to see; also of one nobody can look at."""
    try:
        text = (processes / str(thread) / "status").read_text()
    except OSError:
        return True  # gone, or in another process namespace: then an interruption is one
    masks: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
            masks[name] = int(value, 16)
    pending = masks.get("SigPnd", KILL) | masks.get("ShdPnd", 0)
    kept_off = masks.get("SigBlk", 0) | masks.get("SigIgn", 0) | masks.get("SigCgt", 0) | HARMLESS
    return bool(pending & KILL or pending & ~kept_off)
