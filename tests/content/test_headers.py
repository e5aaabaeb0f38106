"""Headers of safetensors and GGUF files: what is true is read, all else is HeaderInvalid and nothing else."""

import contextlib
import json
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content import gguf, safetensors
from tbshare.content.weights import HEADER_BYTES_MAX, Header, HeaderShort, Tensor
from tbshare.errors import HeaderInvalid
from tests.store.weights_files import gguf_file, gguf_text, random_bytes, safetensors_file

Parse = Callable[[bytes, int], Header]
TENSORS: list[tuple[str, str, list[int], bytes]] = [
    ("wte", "F32", [3, 5], random_bytes(1, 60)),
    ("wpe", "BF16", [7], random_bytes(2, 14)),
    ("empty", "F32", [0, 4], b""),
    ("odd", "U8", [], b"x"),
]


def text_file(text: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + body


def row(**changes: object) -> bytes:
    return json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}}).encode()


def test_a_true_safetensors_header() -> None:
    data = safetensors_file(TENSORS, metadata="pt")
    found = safetensors.parse(data, len(data))
    assert found.format == "safetensors"
    for name, dtype, shape, content in TENSORS:
        (tensor,) = [tensor for tensor in found.tensors if tensor.name == name]
        assert (tensor.dtype, list(tensor.shape)) == (dtype, shape)
        assert data[tensor.start : tensor.end] == content
    assert [tensor.start for tensor in found.tensors] == sorted(tensor.start for tensor in found.tensors)


def test_gaps_and_unknown_dtypes_are_accepted() -> None:
    data = text_file(row(data_offsets=[3, 7], dtype="Q9_X", shape=[99]), bytes(9))
    assert safetensors.parse(data, len(data)).tensors[0].end == len(data) - 2


@pytest.mark.parametrize("kept", range(0, 200, 7))
def test_a_safetensors_prefix_asks_for_more(kept: int) -> None:
    data = safetensors_file(TENSORS)
    length = 8 + int.from_bytes(data[:8], "little")
    if kept < 8:
        with pytest.raises(HeaderInvalid):
            safetensors.parse(data[:kept], len(data))
    elif kept < length:
        with pytest.raises(HeaderShort) as caught:
            safetensors.parse(data[:kept], len(data))
        assert caught.value.needed == length
    else:
        assert safetensors.parse(data[:kept], len(data)) == safetensors.parse(data, len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        bytes(8),
        struct.pack("<Q", 1 << 63) + b"{}",  # lying
        struct.pack("<Q", HEADER_BYTES_MAX + 1) + b"{}",
        struct.pack("<Q", 3) + b"{}",  # truncated by one
        text_file(b"not json"),
        text_file(b"[]"),
        text_file(b"null"),
        text_file(b'{"a": 1}'),
        text_file(b'{"a": []}'),
        text_file(b'{"a": {"dtype": 1, "shape": [], "data_offsets": [0, 0]}}'),
        text_file(b'{"\xff": {}}'),
        text_file(b"[" * 100_000),
        text_file(b'{"a":' * 50_000),
        text_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        text_file(b'{"__metadata__": {}, "a":' + b'{"b":' * 100_000),
        text_file(row(shape=[-4]), bytes(4)),
        text_file(row(shape=[1 << 62]), bytes(4)),
        text_file(row(shape=[1 << 40, 1 << 40, 1 << 40]), bytes(4)),
        text_file(row(shape=[2.5]), bytes(4)),
        text_file(row(shape=[5]), bytes(4)),  # shape and bytes differ
        text_file(row(shape=[1] * 17, data_offsets=[0, 1]), bytes(4)),
        text_file(row(shape=[1] * 100_000), bytes(4)),
        text_file(row(dtype="F32"), bytes(4)),
        text_file(row(data_offsets=[4, 0]), bytes(4)),
        text_file(row(data_offsets=[-4, 0]), bytes(4)),
        text_file(row(data_offsets=[1 << 63, 1 << 63]), bytes(4)),
        text_file(row(data_offsets=[0, 4, 8]), bytes(4)),
        text_file(row(data_offsets=[1, 5]), bytes(4)),  # one byte behind the end
        text_file(
            json.dumps(
                {
                    name: {"dtype": "U8", "shape": [4], "data_offsets": [2 * at, 2 * at + 4]}
                    for at, name in enumerate("ab")
                }
            ).encode(),
            bytes(8),
        ),
    ],
)
def test_safetensors_that_do_not_hold_together(data: bytes) -> None:
    with pytest.raises(HeaderInvalid):
        safetensors.parse(data, len(data))


def test_a_name_twice_is_refused() -> None:
    twice = row()[:-1] + b", " + row(data_offsets=[4, 8])[1:]
    data = text_file(twice, bytes(8))
    with pytest.raises(HeaderInvalid, match="twice"):
        safetensors.parse(data, len(data))
    hidden = row()[:-1] + b", " + row(data_offsets=[4, 8])[1:].replace(b"data_", rb"data\u005f")
    with pytest.raises(HeaderInvalid, match="twice"):
        safetensors.parse(text_file(hidden, bytes(8)), len(data) + 5)
    with pytest.raises(HeaderInvalid, match="twice"):
        safetensors.parse(text_file(b'{"__metadata__": {"data_offsets": "1", "a": "1", "a": "2"}}'), 1000)


def test_metadata_may_speak_of_offsets() -> None:
    data = text_file(row()[:-1] + b', "__metadata__": {"data_offsets": "\\"data_offsets\\" \\u00e4"}}', bytes(4))
    assert len(safetensors.parse(data, len(data)).tensors) == 1


def test_a_header_of_100_mb_is_not_read() -> None:
    with pytest.raises(HeaderInvalid):
        safetensors.header_length(struct.pack("<Q", 100_000_000), 1 << 40)


@given(st.integers(0, 3000), st.integers(0, 40))
def test_a_padded_header_heads_a_valid_file(shift: int, extra: int) -> None:
    data = safetensors_file(TENSORS)
    start = 8 + int.from_bytes(data[:8], "little")
    padded = safetensors.padded(data[:start], start + shift) + data[start:] + bytes(extra)
    found, before = safetensors.parse(padded, len(padded)), safetensors.parse(data, len(data))
    assert found.data_start == before.data_start + shift
    assert [(t.name, t.start - shift, t.end - shift) for t in found.tensors] == [
        (t.name, t.start, t.end) for t in before.tensors
    ]


# ---- GGUF -------------------------------------------------------------------------------------------------


def value(key: str, kind: int, data: bytes) -> bytes:
    return gguf_text(key) + struct.pack("<I", kind) + data


VALUES = [
    value("general.architecture", 8, gguf_text("llama")),
    value("general.file_type", 4, struct.pack("<I", 1)),
    value("a.float", 6, struct.pack("<f", 1.5)),
    value("a.bool", 7, b"\1"),
    value("a.double", 12, struct.pack("<d", 1.5)),
    value("tokens", 9, struct.pack("<IQ", 8, 2) + gguf_text("a") + gguf_text("b")),
    value("nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 4, 3) + bytes(12)),
]
GGUF_TENSORS = [
    ("blk.0.attn.weight", (32, 2), 8, random_bytes(3, 68)),  # Q8_0
    ("blk.0.norm.weight", (5,), 0, random_bytes(4, 20)),
    ("output.weight", (4, 3), 1, random_bytes(5, 24)),
]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_a_true_gguf_header(version: int, alignment: int) -> None:
    values = [*VALUES, value("general.alignment", 4, struct.pack("<I", alignment))]
    data = gguf_file(GGUF_TENSORS, values, version=version, alignment=alignment)
    found = gguf.parse(data, len(data))
    assert found.data_start % alignment == 0
    assert [tensor.name for tensor in found.tensors] == [name for name, *_ in GGUF_TENSORS]
    assert [tensor.dtype for tensor in found.tensors] == ["Q8_0", "F32", "F16"]
    assert [data[tensor.start : tensor.end] for tensor in found.tensors] == [body for *_, body in GGUF_TENSORS]


def test_a_tensor_of_an_unknown_type_reaches_to_the_next() -> None:
    data = gguf_file([("new", (9,), 99, random_bytes(3, 64)), ("old", (8,), 0, random_bytes(4, 32))], VALUES)
    found = gguf.parse(data, len(data))
    assert found.tensors[0].dtype == "ggml-99"
    assert found.tensors[0].end == found.tensors[1].start


def test_a_gguf_prefix_asks_for_more_until_it_is_enough() -> None:
    data = gguf_file(GGUF_TENSORS, VALUES)
    kept = 0
    while True:
        try:
            found = gguf.parse(data[:kept], len(data))
            break
        except HeaderShort as more:
            needed = more.needed
        assert kept < needed <= len(data)
        kept = needed
    assert found == gguf.parse(data, len(data))
    assert kept <= found.data_start


def head(tensors: int, values: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


def tensor_row(shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, name: str = "a") -> bytes:
    dimensions = struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", length) for length in shape)
    return gguf_text(name) + dimensions + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGU",
        b"GGML" + bytes(40),
        head(0, 0, version=1),
        head(0, 0, version=4),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),  # big-endian
        head(1 << 63, 0),
        head(0, 1 << 63),
        head(200_000, 0),
        head(0, 100_000),
        head(0, 1, value("a", 8, struct.pack("<Q", 1 << 63))),
        head(0, 1, value("a", 9, struct.pack("<IQ", 4, 1 << 62))),
        head(0, 1, value("a", 9, struct.pack("<IQ", 8, 1 << 62))),
        head(0, 1, value("a", 9, struct.pack("<IQ", 9, 1) * 5000)),  # nested without end
        head(0, 1, value("a", 13, b"")),
        head(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 0)),
        head(0, 1, value("general.alignment", 4, struct.pack("<I", 0))),
        head(0, 1, value("general.alignment", 4, struct.pack("<I", 33))),
        head(0, 1, value("general.alignment", 4, struct.pack("<I", 1 << 31))),
        head(1, 0, tensor_row((1,) * 17) + bytes(99)),
        head(1, 0, tensor_row((1 << 63, 1 << 63)) + bytes(99)),
        head(1, 0, tensor_row((33,), kind=8) + bytes(99)),  # no multiple of the block
        head(1, 0, tensor_row((4,), offset=1 << 62) + bytes(99)),
        head(1, 0, tensor_row((400,)) + bytes(99)),
        head(2, 0, tensor_row(offset=0) + tensor_row(offset=8) + bytes(199)),  # overlap
    ],
)
def test_gguf_that_does_not_hold_together(data: bytes) -> None:
    with pytest.raises(HeaderInvalid):
        gguf.parse(data, len(data))


# ---- both -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "data"),
    [(safetensors.parse, safetensors_file(TENSORS)), (gguf.parse, gguf_file(GGUF_TENSORS, VALUES))],
)
@given(st.data())
def test_damaged_headers(parse: Parse, data: bytes, draw: st.DataObject) -> None:
    """Any few bytes changed, any end cut off: a header whose tensors lie in the file, or HeaderInvalid."""
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 3))):
        place = draw.draw(st.integers(0, len(data) - 1))
        length = draw.draw(st.integers(1, 8))
        damaged[place : place + length] = draw.draw(st.binary(min_size=length, max_size=length))
    kept = bytes(damaged[: draw.draw(st.integers(0, len(damaged)))])
    for size in {len(kept), len(data)}:
        found, needed = None, 0
        try:
            found = parse(kept, size)
        except HeaderInvalid:
            continue
        except HeaderShort as more:
            needed = more.needed
        if found is None:
            assert len(kept) < needed <= size
            continue
        position = found.data_start
        for tensor in found.tensors:
            assert found.data_start <= tensor.start <= tensor.end <= size
            assert tensor.start >= position or tensor.start == tensor.end
            position = max(position, tensor.end)


@given(st.binary(max_size=200), st.integers(0, 1 << 40))
def test_junk(data: bytes, more: int) -> None:
    for parse in (safetensors.parse, gguf.parse):
        for prefix in (b"", b"GGUF\x03\0\0\0"):
            with contextlib.suppress(HeaderInvalid, HeaderShort):
                parse(prefix + data, len(prefix) + len(data) + more)


def test_tensors_are_values() -> None:
    assert Tensor("a", "U8", (1,), 0, 1) == Tensor("a", "U8", (1,), 0, 1)
