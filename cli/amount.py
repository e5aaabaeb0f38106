"""Amounts as people write and read them. Pure. 1 GB is 10^9 bytes, as on the box of a disk."""

import math
import re

from tbshare.errors import UsageError

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b|byte|bytes|bit)?(?:/s|ps)?", re.IGNORECASE)
RATE_MAX = 10**13  # bytes per second; far above any link, far below the end of a 64-bit number


def size(count: float) -> str:
    """Return bytes in three digits at most: 470 GB, 6.6 GB, 12 B."""
    value, unit = float(count), 0
    while round(value) >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    if unit == 0 or value >= 9.95:
        return f"{value:.0f} {_UNITS[unit]}"
    return f"{value:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"


def rate(bytes_per_second: float) -> str:
    """Return a speed: 6.6 GB/s."""
    return f"{size(bytes_per_second)}/s"


def duration(seconds: float) -> str:
    """Return a time: 0.4 s, 71 s, 12 min, 3 h 20 min, 7 days."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}".removesuffix(".0") + " s"
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(hours / 24)} days"


def percent(part: float, whole: float) -> str:
    """Return how much of the whole is there; 100 % only when it is all there."""
    if part >= whole:
        return "100 %"
    return f"{min(99, math.floor(100 * part / whole))} %"


def count(number: int, noun: str) -> str:
    """Return `1 file`, `3 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def parse_rate(text: str) -> int:
    """Return the bytes per second that `100M`, `1.5GB/s` or `400Mbit` mean; UsageError otherwise."""
    found = _RATE.fullmatch(text.strip())
    if found is not None:
        number, factor, binary, unit = found.groups()
        base = _FACTORS[factor.lower()]
        if binary:
            base = 1 << (10 * round(math.log10(base) / 3))
        value = float(number) * base / (8 if (unit or "").lower() == "bit" else 1)
        if 1 <= value <= RATE_MAX:
            return round(value)
    raise UsageError(f"{text!r} is no rate: write it like 100M, 1.5GB/s or 400Mbit", cure="tbshare push --help")
