"""The window of a reader: what any sequence of reads makes of it."""

from hypothesis import given
from hypothesis import strategies as st

from tbshare.content.read_ahead import GAP_BYTES_MAX, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN, ReadAhead

READS = st.lists(st.tuples(st.integers(0, 1 << 36), st.integers(1, 1 << 22)), max_size=12)
SIZE = st.integers(4096, 1 << 22)


def after_all(reads: list[tuple[int, int]]) -> ReadAhead:
    seen = ReadAhead()
    for read in reads:
        seen = seen.after(*read)
    return seen


@given(READS)
def test_the_window_is_bounded(reads: list[tuple[int, int]]) -> None:
    window = after_all(reads).window
    assert window == 0 or WINDOW_BYTES_MIN <= window <= WINDOW_BYTES_MAX


@given(READS, st.integers(1, 1 << 22))
def test_a_jump_closes_it(reads: list[tuple[int, int]], size: int) -> None:
    seen = after_all(reads)
    assert seen.after(seen.end + GAP_BYTES_MAX + 1, size).window == 0


@given(READS, SIZE)
def test_reading_on_opens_it_all_the_way(reads: list[tuple[int, int]], size: int) -> None:
    seen = after_all(reads)
    windows = [seen.window]
    while seen.window < WINDOW_BYTES_MAX:
        seen = seen.after(seen.end, size)
        windows.append(seen.window)
        assert len(windows) < 100_000
    assert windows == sorted(windows)
    assert seen.after(seen.end, size).window == WINDOW_BYTES_MAX


@given(READS, SIZE, st.integers(0, 50))
def test_the_same_again_changes_nothing(reads: list[tuple[int, int]], size: int, times: int) -> None:
    seen = after_all(reads)
    for _ in range(times + 2):
        seen = seen.after(seen.end, size)
    assert seen.after(seen.end - size, size).window == seen.window


def test_the_first_read_of_a_file_says_nothing() -> None:
    assert ReadAhead().after(0, 4096).window == 0
