"""The header of a safetensors file.

Format (github.com/huggingface/safetensors, "Format"): 8 bytes little-endian N; N bytes of JSON, an object
`name -> {"dtype", "shape", "data_offsets": [begin, end)}` with offsets from the end of the JSON, and an
optional `"__metadata__"`; then the data. Gaps between tensors are accepted, as MLX accepts them.
"""

import json
from typing import Annotated

import msgspec

from tbshare.content.weights import (
    DIMENSIONS_MAX,
    ELEMENT_BITS,
    HEADER_BYTES_MAX,
    Header,
    HeaderShort,
    Tensor,
    checked,
)
from tbshare.errors import HeaderInvalid

LENGTH_BYTES = 8
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class _TensorInfo(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


_names = msgspec.json.Decoder(dict[str, msgspec.Raw])
_info = msgspec.json.Decoder(_TensorInfo)


def header_length(first: bytes, file_size: int) -> int:
    """Return how many bytes of the file the header takes, with the 8 of its length.

    `first` is the file's first 8 bytes. HeaderInvalid when the length cannot be true.
    """
    if len(first) < LENGTH_BYTES or file_size < LENGTH_BYTES:
        raise HeaderInvalid("shorter than the 8 bytes of a header's length")
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        raise HeaderInvalid(f"says its header has {length} bytes; {HEADER_BYTES_MAX} is the most believed")
    if LENGTH_BYTES + length > file_size:
        raise HeaderInvalid(f"says its header has {length} bytes, and the whole file has {file_size}")
    return LENGTH_BYTES + length


def parse(prefix: bytes, file_size: int) -> Header:
    """Return the header in the first bytes of a file of `file_size` bytes.

    Raises HeaderShort when `prefix` does not hold the whole header, HeaderInvalid when it makes no sense.
    """
    data_start = header_length(prefix[:LENGTH_BYTES], file_size)
    if len(prefix) < data_start:
        raise HeaderShort(data_start)
    text = prefix[LENGTH_BYTES:data_start]
    try:
        named = _names.decode(text)
        names = named.keys() - {"__metadata__"}
        # Cheap and enough for every usual file: as many ranges as names, and nothing written in escapes.
        if text.count(b'"data_offsets"') != len(names) or b"\\" in text:
            json.loads(text, object_pairs_hook=_each_once)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise HeaderInvalid(f"its header is not a JSON object: {error}") from error
    tensors = [_tensor(name, raw, data_start) for name, raw in named.items() if name != "__metadata__"]
    return checked("safetensors", data_start, tensors, file_size)


def _each_once(pairs: list[tuple[str, object]]) -> None:
    """Refuse a name that stands twice: which of them counts would differ from reader to reader."""
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise HeaderInvalid("its header has a name twice")


def _tensor(name: str, raw: msgspec.Raw, data_start: int) -> Tensor:
    try:
        info = _info.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise HeaderInvalid(f"tensor {name!r}: {error}") from error
    begin, end = info.data_offsets
    if len(info.shape) > DIMENSIONS_MAX:
        raise HeaderInvalid(f"tensor {name!r} has {len(info.shape)} dimensions")
    if begin > end:
        raise HeaderInvalid(f"tensor {name!r} ends before it starts")
    bits = ELEMENT_BITS.get(info.dtype)
    if bits is not None:
        elements = 1
        for length in info.shape:
            elements *= length
        if elements * bits != (end - begin) * 8:
            raise HeaderInvalid(f"tensor {name!r}: shape and dtype do not give its {end - begin} bytes")
    return Tensor(name, info.dtype, tuple(info.shape), data_start + begin, data_start + end)


def padded(header: bytes, data_start: int) -> bytes:
    """Return the header (its 8 length bytes included) padded with spaces to `data_start` bytes.

    The result heads a valid file whose body is the original's, verbatim.
    """
    assert len(header) <= data_start
    length = data_start - LENGTH_BYTES
    return length.to_bytes(LENGTH_BYTES, "little") + header[LENGTH_BYTES:].ljust(length, b" ")
