"""What somebody waits for goes before bulk."""

from threading import Event, Thread

from hypothesis import given
from hypothesis import strategies as st

from tbshare.transport.precedence import BULK_SECONDS, SLICE_BYTES_MAX, SLICE_BYTES_MIN, Precedence, slice_bytes

SECONDS = 20.0


class Clock:
    """Notes whether bulk went on."""

    def __init__(self, precedence: Precedence) -> None:
        self.went_on, self.stopped = Event(), Event()
        self._precedence = precedence
        self.thread = Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self._precedence.give_way(self.stopped)
        self.went_on.set()


def nothing() -> None:
    """Release nothing."""


def test_bulk_goes_on_when_nobody_waits() -> None:
    precedence = Precedence()
    clock = Clock(precedence)
    assert clock.went_on.wait(SECONDS)
    assert not precedence.is_likely


def test_bulk_gives_way_and_goes_on_when_the_last_one_was_sent() -> None:
    precedence, released = Precedence(), list[int]()
    sent = [precedence.goes_first(lambda number=number: released.append(number)) for number in range(2)]  # type: ignore[misc]
    assert precedence.is_likely
    clock = Clock(precedence)
    for each in sent:
        each()
    clock.thread.join(SECONDS)
    assert clock.went_on.is_set()
    assert released == [0, 1]


def test_bulk_goes_on_after_a_while_whatever_happens() -> None:
    precedence = Precedence()
    precedence.goes_first(nothing)
    assert Clock(precedence).went_on.wait(SECONDS)


@given(st.floats(0, 1e12, allow_nan=False))
def test_a_slice_is_a_moment_of_the_link(rate: float) -> None:
    size = slice_bytes(rate)
    assert SLICE_BYTES_MIN <= size <= SLICE_BYTES_MAX
    assert size <= max(SLICE_BYTES_MIN, rate * BULK_SECONDS)
