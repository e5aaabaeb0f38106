"""Moments as people write them."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.cli.moment import minute, parse_moment, second
from tbshare.errors import UsageError

NS = 10**9
NOW_NS = 1_795_000_000 * NS  # 2026-11-18 12:06:40 in Berlin


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A zone with summer time."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 1_795_000_000 - 7200),
        ("30 min ago", 1_795_000_000 - 1800),
        ("3d", 1_795_000_000 - 3 * 86400),
        ("2026-11-18 12:06:40", 1_795_000_000),
        ("2026-11-18T12:06:40+01:00", 1_795_000_000),
        ("2026-11-18 11:06:40Z", 1_795_000_000),
        ("12:06:40", 1_795_000_000),
        ("12:06", 1_795_000_000 - 40),
        ("2026-07-01 12:00", 1_782_900_000),  # summer: 10:00 UTC
        ("2026-11-18", 1_795_000_000 - 40 - 6 * 60 - 12 * 3600),
    ],
)
def test_moments(text: str, seconds: int) -> None:
    assert parse_moment(text, NOW_NS) == seconds * NS


@pytest.mark.parametrize(
    "text", ["", "soon", "25:00", "12:60", "2026-13-01", "1969-01-01", "999999w", "-2h", "2h3m", "0001-01-01"]
)
def test_no_moment(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        parse_moment(text, NOW_NS)


@given(st.text(max_size=12))
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_moment(text, NOW_NS) > 0


def test_written() -> None:
    assert minute(NOW_NS) == "2026-11-18 12:06"
    assert second(1_782_900_000 * NS) == "2026-07-01 12:00:00"


@given(st.integers(-(1 << 70), 1 << 70))
def test_any_moment_can_be_written(when_ns: int) -> None:
    """A disk may say anything."""
    assert minute(when_ns)
