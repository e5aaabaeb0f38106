"""How a file's bytes lie in the store: `exact`, or `shifted` so that its tensors can be mapped.

A mapped tensor must start on a multiple of its element's size. safetensors' own writer sees to that; MLX's does
not pad its header, so the data starts anywhere. `shifted` pads that header with spaces until the data starts on
16 KiB: still a valid safetensors file, its body verbatim. The original's bytes are then composed of two extents:
the kept header, and the body.
"""

from dataclasses import dataclass

from tbshare.content.weights import Header, element_bytes

PAGE_BYTES = 16 * 1024  # of Apple silicon; a multiple of every other page size in use


@dataclass(frozen=True, slots=True)
class Layout:
    """By how many bytes the body stands further back in the store's file than in the original; 0 is exact."""

    shift: int = 0

    @property
    def name(self) -> str:
        """`exact` or `shifted`."""
        return "shifted" if self.shift else "exact"


EXACT = Layout()


def aligned_count(header: Header, shift: int = 0) -> int:
    """Return how many tensors start on a multiple of their element's size when the body is moved by `shift`."""
    return sum((tensor.start + shift) % element_bytes(tensor.dtype) == 0 for tensor in header.tensors)


def shift_to_page(header: Header) -> int:
    """Return how far the body must move for the data to start on a page."""
    return -header.data_start % PAGE_BYTES


def choose(header: Header | None) -> Layout:
    """Return the layout that makes most tensors mappable; exact when shifting gains nothing.

    GGUF pads its data itself, so only safetensors are ever shifted.
    """
    if header is None or header.format != "safetensors":
        return EXACT
    shift = shift_to_page(header)
    return Layout(shift) if aligned_count(header, shift) > aligned_count(header) else EXACT
