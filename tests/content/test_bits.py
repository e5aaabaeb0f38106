"""Sets as integers against Python's own sets."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content import bits
from tbshare.errors import FormatInvalid

NUMBERS = st.sets(st.integers(0, 400) | st.integers(0, 20_000))


@given(NUMBERS)
def test_members_come_back(numbers: set[int]) -> None:
    number_bits = bits.of(numbers)
    assert list(bits.members(number_bits)) == sorted(numbers)
    assert list(bits.ascending(number_bits)) == sorted(numbers)
    assert list(bits.descending(number_bits)) == sorted(numbers, reverse=True)
    assert number_bits.bit_count() == len(numbers)


@given(NUMBERS, st.integers(0, 400))
def test_contains(numbers: set[int], number: int) -> None:
    assert bits.contains(bits.of(numbers), number) == (number in numbers)


@given(NUMBERS.filter(bool))
def test_lowest(numbers: set[int]) -> None:
    assert bits.lowest(bits.of(numbers)) == min(numbers)


def test_the_lowest_of_nothing_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        bits.lowest(0)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 2047, 2048, 2049, 4096])
def test_full(count: int) -> None:
    assert list(bits.members(bits.full(count))) == list(range(count))
    assert list(bits.ascending(bits.full(count))) == list(range(count))
    assert list(bits.descending(bits.full(count))) == list(range(count))[::-1]


@given(NUMBERS)
def test_runs_are_maximal_ordered_and_apart(numbers: set[int]) -> None:
    runs = list(bits.runs(bits.of(numbers)))
    assert [number for start, end in runs for number in range(start, end)] == sorted(numbers)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(runs))


@given(NUMBERS)
def test_the_encoding_as_runs_comes_back(numbers: set[int]) -> None:
    encoded = bits.to_runs(bits.of(numbers))
    assert bits.from_runs(encoded, max(numbers, default=-1) + 1) == bits.of(numbers)
    if numbers:
        with pytest.raises(FormatInvalid):
            bits.from_runs(encoded, max(numbers))


@given(st.lists(st.tuples(st.integers(-2, 30), st.integers(-2, 10)), max_size=5), st.integers(0, 40))
def test_runs_from_outside_are_refused_or_are_the_one_encoding(encoded: list[tuple[int, int]], count: int) -> None:
    try:
        number_bits = bits.from_runs(encoded, count)
    except FormatInvalid:
        ordered = all(one[0] + one[1] < other[0] for one, other in itertools.pairwise(encoded))
        within = all(start >= 0 and length >= 1 and start + length <= count for start, length in encoded)
        assert not (ordered and within)
    else:
        assert number_bits >> count == 0
        assert bits.to_runs(number_bits) == encoded


@pytest.mark.parametrize(
    "encoded", [[(0, 0)], [(-1, 2)], [(3, 1), (1, 1)], [(0, 2), (1, 1)], [(0, 1), (1, 1)], [(9, 2)]]
)
def test_wrong_runs_are_refused(encoded: list[tuple[int, int]]) -> None:
    with pytest.raises(FormatInvalid, match="out of order or beyond 10"):
        bits.from_runs(encoded, 10)


@given(st.integers(1, 50), st.data(), st.integers(0, 1000))
def test_periodic(period: int, data: st.DataObject, count: int) -> None:
    pattern = data.draw(st.integers(0, bits.full(period)))
    expected = {number for number in range(count) if pattern >> number % period & 1}
    assert bits.periodic(pattern, period, count) == bits.of(expected)


def test_a_pattern_longer_than_its_period_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        bits.periodic(0b100, 2, 10)


SETS = st.lists(st.sets(st.integers(0, 60)), max_size=9)


@given(SETS)
def test_planes_count(sets: list[set[int]]) -> None:
    digits = bits.planes(bits.of(one) for one in sets)
    for number in range(61):
        counted = sum((digit >> number & 1) << place for place, digit in enumerate(digits))
        assert counted == sum(number in one for one in sets)
    assert all(digits[-1:])  # no digit that no number needs


@given(SETS, st.sets(st.integers(0, 60)))
def test_by_count_splits_the_rarest_first(sets: list[set[int]], asked: set[int]) -> None:
    parts = list(bits.by_count(bits.of(asked), bits.planes(bits.of(one) for one in sets)))
    expected: dict[int, set[int]] = {}
    for number in asked:
        expected.setdefault(sum(number in one for one in sets), set()).add(number)
    assert parts == [bits.of(expected[count]) for count in sorted(expected)]
