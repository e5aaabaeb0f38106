"""What this room uses of MLX's arrays, declared: MLX's own stubs leave much unknown, and it need not be installed.

This file does not import MLX; the files that do get it as `Any` and give these types back.
"""

from typing import Protocol


class Dtype(Protocol):
    """The kind of an array's elements; `size` in bytes."""

    @property
    def size(self) -> int:
        """Bytes of one element."""
        ...


class Array(Protocol):
    """An `mlx.core.array`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the dimensions."""
        ...

    @property
    def dtype(self) -> Dtype:
        """The kind of the elements."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        ...

    def view(self, dtype: Dtype) -> "Array":
        """Return the same bytes as elements of another kind; the last dimension changes."""
        ...

    def reshape(self, shape: tuple[int, ...]) -> "Array":
        """Return the same elements in another shape; one length may be -1."""
        ...

    def item(self) -> complex | bool:
        """Return the only element."""
        ...

    def __getitem__(self, rows: slice) -> "Array": ...
