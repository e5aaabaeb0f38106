from hypothesis import given
from hypothesis import strategies as st

from tbshare.inference.pages import PAGE_BYTES, page_slice, whole_pages


@given(
    start=st.integers(0, 3 * PAGE_BYTES),
    shape=st.lists(st.integers(1, 40), max_size=3).map(tuple),
    element_bytes=st.sampled_from([1, 2, 4, 8]),
)
def test_slice_is_exactly_the_tensors_bytes(start: int, shape: tuple[int, ...], element_bytes: int) -> None:
    place = page_slice(start, shape, element_bytes)
    if start % element_bytes:
        assert place is None
        return
    assert place is not None
    elements = 1
    for length in shape:
        elements *= length
    first = place.first_row * PAGE_BYTES + place.first_unit * place.unit_bytes
    end = place.first_row * PAGE_BYTES + place.end_unit * place.unit_bytes
    assert (first, end) == (start, start + elements * element_bytes)
    assert place.end_unit * place.unit_bytes <= (place.end_row - place.first_row) * PAGE_BYTES
    units = 1
    for length in place.unit_shape:
        units *= length
    assert units == place.end_unit - place.first_unit
    # Viewed as the element again, only the last dimension changes, and back to the tensor's.
    assert place.unit_shape[:-1] == (shape or (1,))[:-1]
    assert place.unit_shape[-1] * place.unit_bytes == (shape or (1,))[-1] * element_bytes


def test_tensor_above_two_gigabytes_is_sliced_in_wider_units() -> None:
    place = page_slice(8, (3, 1 << 30), 1)
    assert place is not None
    assert place.unit_bytes == 8
    assert place.unit_shape == (3, 1 << 27)


def test_tensor_with_more_units_than_a_dimension_counts_is_copied() -> None:
    assert page_slice(9, (3, 1 << 30), 1) is None


def test_whole_pages_rounds_up() -> None:
    assert [whole_pages(size) for size in (0, 1, PAGE_BYTES, PAGE_BYTES + 1)] == [0, 1, 1, 2]
