import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.cli import amount
from tbshare.errors import UsageError


def test_size_as_on_the_box_of_a_disk() -> None:
    said = {
        0: "0 B",
        999: "999 B",
        1000: "1 kB",
        9_949: "9.9 kB",
        9_960: "10 kB",
        999_499: "999 kB",
        999_500: "1 MB",
        6_600_000_000: "6.6 GB",
        470_000_000_000: "470 GB",
        1_200_000_000_000: "1.2 TB",
    }
    assert {number: amount.size(number) for number in said} == said


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_size_is_short_and_near(number: int) -> None:
    text = amount.size(number)
    value, unit = text.split()
    assert re.fullmatch(r"\d{1,3}(\.\d)?", value)
    meant = float(value) * 1000 ** ("B", "kB", "MB", "GB", "TB", "PB", "EB").index(unit)
    assert abs(meant - number) <= 0.06 * number


@given(st.floats(min_value=0, max_value=1e9))
def test_duration_is_near(seconds: float) -> None:
    text = amount.duration(seconds)
    units = {"s": 1, "min": 60, "h": 3600, "days": 86400}
    words = text.split()
    meant = sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(meant - seconds) <= max(0.05, 0.26 * seconds)


def test_durations() -> None:
    said = {0.42: "0.4 s", 71: "71 s", 130: "2 min", 12_000: "3 h 20 min", 604_800: "7 days"}
    assert {number: amount.duration(number) for number in said} == said
    assert amount.duration(float("inf")) == "unknown time"
    assert amount.duration(-1) == "0 s"


def test_percent_is_100_only_when_whole() -> None:
    assert amount.percent(999_999, 1_000_000) == "99 %"
    assert amount.percent(5, 5) == "100 %"
    assert amount.percent(0, 0) == "100 %"


def test_rates_as_people_write_them() -> None:
    said = {
        "100": 100,
        "100M": 10**8,
        "1.5GB/s": 1_500_000_000,
        "400Mbit": 50_000_000,
        "10 Gbit/s": 1_250_000_000,
        "1GiB/s": 1 << 30,
    }
    assert {text: amount.parse_rate(text) for text in said} == said


@pytest.mark.parametrize("text", ["", "fast", "-1M", "0", "1e999", "nan", "9" * 400, "1 PB", "100Mbitt", "1.M"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UsageError):
        amount.parse_rate(text)


@given(st.text())
def test_any_text_is_a_rate_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert 1 <= amount.parse_rate(text) <= amount.RATE_MAX
