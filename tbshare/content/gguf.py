"""The header of a GGUF file, versions 2 and 3, little-endian.

Format (github.com/ggml-org/ggml, docs/gguf.md): magic, version u32, tensor count u64, key-value count u64, the
key-values, then a row for each tensor (name, dimensions, ggml type, offset), then the data, each tensor on a
multiple of `general.alignment` (32 when not said). Row sizes of the ggml types: ggml/src/ggml.c, type traits.
"""

import struct
from itertools import pairwise

from tbshare.content.weights import (
    DIMENSIONS_MAX,
    HEADER_BYTES_MAX,
    TENSORS_MAX,
    Header,
    HeaderShort,
    Tensor,
    checked,
)
from tbshare.errors import HeaderInvalid

MAGIC = b"GGUF"
KEY_VALUES_MAX = 100_000
NESTING_MAX = 4

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _U32 = 8, 9, 4

# ggml type -> (name, elements in a block, bytes of a block)
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}


class _Cursor:
    """Reads values one after another from the first bytes of a file."""

    def __init__(self, prefix: bytes, file_size: int) -> None:
        self.prefix = prefix
        self.file_size = file_size
        self.position = 0

    def skip(self, length: int) -> int:
        """Move on by `length` bytes and return where they started."""
        start, end = self.position, self.position + length
        if end > self.file_size:
            raise HeaderInvalid("its header runs past the end of the file")
        if end > HEADER_BYTES_MAX:
            raise HeaderInvalid(f"its header has more than {HEADER_BYTES_MAX} bytes")
        if end > len(self.prefix):
            raise HeaderShort(end)
        self.position = end
        return start

    def number(self, code: str) -> int:
        """Read one little-endian number, `code` as in `struct`."""
        size = struct.calcsize(code)
        value: int = struct.unpack_from("<" + code, self.prefix, self.skip(size))[0]
        return value

    def text(self) -> str:
        """Read a string: u64 length, UTF-8 bytes."""
        length = self.number("Q")
        start = self.skip(length)
        try:
            return self.prefix[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise HeaderInvalid("a name in its header is not UTF-8") from error

    def skip_value(self, kind: int, depth: int = 0) -> None:
        """Move past one value of a key-value type."""
        if kind in _SCALAR_BYTES:
            self.skip(_SCALAR_BYTES[kind])
        elif kind == _STRING:
            self.skip(self.number("Q"))
        elif kind == _ARRAY and depth < NESTING_MAX:
            inner, count = self.number("I"), self.number("Q")
            if inner in _SCALAR_BYTES:
                self.skip(_SCALAR_BYTES[inner] * count)
                return
            if count > self.file_size:
                raise HeaderInvalid("an array in its header is longer than the file")
            for _ in range(count):
                self.skip_value(inner, depth + 1)
        else:
            raise HeaderInvalid(f"its header has a value of unknown kind {kind}")


def parse(prefix: bytes, file_size: int) -> Header:
    """Return the header in the first bytes of a file of `file_size` bytes.

    Raises HeaderShort when `prefix` does not hold the whole header, HeaderInvalid when it makes no sense.
    """
    cursor = _Cursor(prefix, file_size)
    if prefix[: cursor.skip(4) + 4] != MAGIC:
        raise HeaderInvalid("does not start with GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        raise HeaderInvalid(f"is GGUF version {version}; 2 and 3 are understood")
    tensor_count, key_value_count = cursor.number("Q"), cursor.number("Q")
    if tensor_count > TENSORS_MAX or key_value_count > KEY_VALUES_MAX:
        raise HeaderInvalid(f"says it has {tensor_count} tensors and {key_value_count} values")
    alignment = _read_alignment(cursor, key_value_count)
    rows = [_read_row(cursor) for _ in range(tensor_count)]
    data_start = -(-cursor.position // alignment) * alignment
    return checked("gguf", min(data_start, file_size), _placed(rows, data_start, file_size), file_size)


def _read_alignment(cursor: _Cursor, count: int) -> int:
    alignment = 32
    for _ in range(count):
        key, kind = cursor.text(), cursor.number("I")
        if key == "general.alignment" and kind == _U32:
            alignment = cursor.number("I")
            if alignment < 1 or alignment > 1 << 20 or alignment & (alignment - 1):
                raise HeaderInvalid(f"wants its tensors on multiples of {alignment}")
        else:
            cursor.skip_value(kind)
    return alignment


def _read_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.text(), cursor.number("I")
    if dimensions > DIMENSIONS_MAX:
        raise HeaderInvalid(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    return name, shape, cursor.number("I"), cursor.number("Q")


def _placed(rows: list[tuple[str, tuple[int, ...], int, int]], data_start: int, file_size: int) -> list[Tensor]:
    """Return the tensors with their byte ranges; one of an unknown type reaches to the next one."""
    starts = [*sorted({data_start + offset for *_, offset in rows}), file_size]
    following = dict(pairwise(starts))
    tensors: list[Tensor] = []
    for name, shape, kind, offset in rows:
        start = data_start + offset
        known = _TYPES.get(kind)
        if known is None:
            tensors.append(Tensor(name, f"ggml-{kind}", shape, start, following.get(start, start)))
            continue
        label, block_elements, block_bytes = known
        elements = 1
        for length in shape:
            elements *= length
        if elements % block_elements:
            raise HeaderInvalid(f"tensor {name!r}: its shape is no multiple of {label}'s block")
        tensors.append(Tensor(name, label, shape, start, start + elements // block_elements * block_bytes))
    return tensors
