"""What the header of a weights file says, whatever its format.

Formats: `safetensors.py` and `gguf.py`; both give a `Header` or raise `HeaderInvalid`, and neither trusts a
number it read: counts and lengths are checked against the file's size before anything is allocated.
"""

from dataclasses import dataclass

from tbshare.errors import HeaderInvalid

HEADER_BYTES_MAX = 25 * 1000 * 1000  # 100,000 tensors of 250 bytes; the safetensors library stops at 100 MB
TENSORS_MAX = 200_000
DIMENSIONS_MAX = 16

# Bits of one element, by the dtype's name in safetensors.
ELEMENT_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: bytes [start, end) of the file, counted from its first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a weights file, ordered by where they start, and the byte where the data starts."""

    format: str  # "safetensors" or "gguf"
    data_start: int
    tensors: tuple[Tensor, ...]


class HeaderShort(Exception):  # noqa: N818 - a request for more, not a failure
    """More bytes of the file are needed to read the header: at least `needed` from its start."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"the header needs {needed} bytes")
        self.needed = needed


def element_bytes(dtype: str) -> int:
    """Return the alignment an element of this dtype wants, in bytes; 1 for packed and unknown dtypes."""
    return max(1, ELEMENT_BITS.get(dtype, 8) // 8)


def checked(format_name: str, data_start: int, tensors: list[Tensor], file_size: int) -> Header:
    """Return the header after the checks both formats share: bounds, order, no overlap."""
    if len(tensors) > TENSORS_MAX:
        raise HeaderInvalid(f"{len(tensors)} tensors; {TENSORS_MAX} is the most this program believes")
    ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.end))
    position, before = data_start, ""
    for tensor in ordered:
        if tensor.start > tensor.end or tensor.start < data_start:
            raise HeaderInvalid(f"tensor {tensor.name!r} starts or ends where there is no data")
        if tensor.end > file_size:
            missing = tensor.end - file_size
            raise HeaderInvalid(f"tensor {tensor.name!r} ends {missing} bytes after the end of the file")
        if tensor.start < position and tensor.start != tensor.end:
            raise HeaderInvalid(f"tensors {before!r} and {tensor.name!r} overlap")
        if tensor.end > position:
            position, before = tensor.end, tensor.name
    return Header(format_name, data_start, tuple(ordered))
