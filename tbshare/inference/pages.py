"""Where a tensor lies in one array over a whole file: rows of 16 KiB, and a slice of them. Pure arithmetic.

On Metal a file becomes one array of bytes, `[pages, 16384]` (flat it could not be above 2 GiB: MLX counts a
dimension in 32 bits), and each tensor is a slice and a view of it, which share its memory. To keep every step's
dimensions small, the bytes are first viewed as the widest unit that divides the tensor's place and its rows.
"""

import math
from dataclasses import dataclass

PAGE_BYTES = 16384  # a page of Apple silicon; what Metal wants a buffer's address and length to be multiples of
DIMENSION_MAX = (1 << 31) - 1
UNIT_BYTES = (8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class PageSlice:
    """A tensor as rows [first_row, end_row) viewed in units, of those units [first_unit, end_unit), and a shape.

    `unit_shape` is the tensor's shape counted in units: its last dimension has another length than the tensor's
    where the unit is not the element.
    """

    first_row: int
    end_row: int
    unit_bytes: int
    first_unit: int
    end_unit: int
    unit_shape: tuple[int, ...]


def whole_pages(size: int) -> int:
    """Return how many pages hold `size` bytes."""
    return -(-size // PAGE_BYTES)


def page_slice(start: int, shape: tuple[int, ...], element_bytes: int) -> PageSlice | None:
    """Return where the tensor at byte `start` lies; None if it must be copied.

    That is when `start` is no multiple of the element, or when it has more units than a dimension can count.
    """
    if start % element_bytes:
        return None
    lengths = shape or (1,)
    row_bytes = lengths[-1] * element_bytes
    unit = next(unit for unit in UNIT_BYTES if start % unit == 0 and row_bytes % unit == 0)
    end = start + math.prod(lengths) * element_bytes
    first_row, end_row = start // PAGE_BYTES, whole_pages(end)
    if (end_row - first_row) * (PAGE_BYTES // unit) > DIMENSION_MAX:
        return None
    first_byte = first_row * PAGE_BYTES
    return PageSlice(
        first_row,
        end_row,
        unit,
        (start - first_byte) // unit,
        (end - first_byte) // unit,
        (*lengths[:-1], row_bytes // unit),
    )
