"""Moments as people write and read them, in this machine's time zone. What time it is now, is handed in."""

import re
import time
from datetime import datetime

from tbshare.errors import UsageError

_AGO = re.compile(r"(\d{1,6})\s*(s|min|m|h|d|days?|w)(?:\s+ago)?", re.IGNORECASE)
_UNIT_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "day": 86400, "days": 86400, "w": 604800}
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_NS = 10**9


def parse_moment(text: str, now_ns: int) -> int:
    """Return the ns since 1970 UTC that `2h`, `3d`, `14:05`, `2026-11-23` or `2026-11-23 14:05` mean.

    UsageError when the text means no moment, or one before 1970.
    """
    words = text.strip()
    try:
        if found := _AGO.fullmatch(words):
            moment_ns = now_ns - int(found[1]) * _UNIT_SECONDS[found[2].lower()] * _NS
        elif found := _CLOCK.fullmatch(words):
            today = datetime.fromtimestamp(now_ns // _NS).astimezone()
            clock = today.replace(hour=int(found[1]), minute=int(found[2]), second=int(found[3] or 0))
            moment_ns = _ns(clock)
        else:
            moment_ns = _ns(datetime.fromisoformat(words).astimezone())
    except (ValueError, OverflowError, OSError):
        moment_ns = 0
    if moment_ns <= 0:
        raise UsageError(
            f"{text!r} is no time: write it like 2h, 3d, 14:05 or '2026-11-23 14:05'",
            cure="tbshare restore --help",
        )
    return moment_ns


def _ns(moment: datetime) -> int:
    return round(moment.timestamp()) * _NS


def minute(when_ns: int) -> str:
    """Return a date and time, to the minute."""
    return _text(when_ns, "%Y-%m-%d %H:%M")


def second(when_ns: int) -> str:
    """Return a date and time, to the second."""
    return _text(when_ns, "%Y-%m-%d %H:%M:%S")


def _text(when_ns: int, form: str) -> str:
    try:
        return time.strftime(form, time.localtime(when_ns // _NS))
    except (ValueError, OverflowError, OSError):
        return "no date"  # a disk, or another node's clock, may say anything
