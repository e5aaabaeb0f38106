"""Weights files written by hand, so that a test decides on every byte of their headers."""

import json
import struct
from random import Random

from tbshare.content import cut, gguf, safetensors
from tbshare.content.block import block_id
from tbshare.content.manifest import Manifest, of_blocks
from tbshare.content.weights import Header
from tbshare.errors import HeaderInvalid

ELEMENT = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "I64": 8}


def random_bytes(seed: int | str, size: int) -> bytes:
    """Return bytes that do not compress, the same for the same seed."""
    return Random(seed).randbytes(size)


def safetensors_file(
    tensors: list[tuple[str, str, list[int], bytes]], *, metadata: str = "", pad: int = 0
) -> bytes:
    """Return a file of (name, dtype, shape, bytes); the header is padded to a multiple of `pad`."""
    header: dict[str, object] = {"__metadata__": {"format": metadata}} if metadata else {}
    position = 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header).encode()
    if pad:
        text += b" " * (-(8 + len(text)) % pad)
    return struct.pack("<Q", len(text)) + text + b"".join(data for *_, data in tensors)


def weights(seed: int | str, counts: list[int], *, dtype: str = "F32", odd: bool = False) -> bytes:
    """Return a safetensors file of tensors with these many elements; `odd`: its data starts on an odd byte."""
    size = ELEMENT[dtype]
    tensors = [
        (f"layer.{number}.weight", dtype, [count], random_bytes(f"{seed}-{number}", count * size))
        for number, count in enumerate(counts)
    ]
    data = safetensors_file(tensors, pad=8)
    if not odd:
        return data
    length = int.from_bytes(data[:8], "little")
    return struct.pack("<Q", length + 1) + data[8 : 8 + length] + b" " + data[8 + length :]


def header_of(name: str, data: bytes) -> Header | None:
    """Return the header, by the name's suffix; None when there is none, or it does not hold together."""
    try:
        if name.endswith(".safetensors"):
            return safetensors.parse(data, len(data))
        return gguf.parse(data, len(data)) if name.endswith(".gguf") else None
    except HeaderInvalid:
        return None


def manifest_of(name: str, data: bytes) -> Manifest:
    """Return the manifest of a file, worked out in the simplest way."""
    header = header_of(name, data)
    if header is None:
        lengths = cut.lengths(cut.FIXED, len(data))
    else:
        lengths = cut.lengths(cut.TENSORS, len(data), header.data_start, header.tensors)
    blocks: list[bytes] = []
    position = 0
    for length in lengths:
        blocks.append(block_id(data[position : position + length]))
        position += length
    return of_blocks(len(data), header, blocks)


def blocks_of(found: Manifest, data: bytes) -> list[bytes]:
    """Return the bytes of each block."""
    return [data[start : start + length] for start, length in zip(found.offsets, found.lengths, strict=False)]


def gguf_text(text: str) -> bytes:
    """Return a GGUF string."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_file(
    tensors: list[tuple[str, tuple[int, ...], int, bytes]],
    values: list[bytes],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """Return a GGUF file of (name, dimensions, ggml type, bytes); `values` are encoded key-values."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join(values)
    position, body = 0, b""
    for name, dimensions, kind, data in tensors:
        head += gguf_text(name) + struct.pack("<I", len(dimensions))
        head += b"".join(struct.pack("<Q", length) for length in dimensions)
        head += struct.pack("<IQ", kind, position)
        padding = bytes(-len(data) % alignment)
        body += data + padding
        position += len(data) + len(padding)
    return head + bytes(-len(head) % alignment) + body
