"""Manifests: one encoding, and nothing but FormatInvalid for all other bytes."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content import cut, manifest
from tbshare.content.block import BLOCK_BYTES, HASH_BYTES
from tbshare.content.manifest import Manifest, decode, of_blocks
from tbshare.content.weights import Header, Tensor, checked
from tbshare.errors import FormatInvalid

NAMES = st.text(max_size=12)


@st.composite
def headers(draw: st.DrawFn) -> tuple[int, Header]:
    """Return the size of a file and its header."""
    data_start = draw(st.integers(0, 100_000))
    position = data_start
    tensors: list[Tensor] = []
    for _ in range(draw(st.integers(0, 6))):
        start = position + draw(st.integers(0, 3000))
        position = start + draw(st.sampled_from([0, 5, 70_000, 65_536]) | st.integers(0, 5 * BLOCK_BYTES))
        shape = tuple(draw(st.lists(st.integers(0, 1 << 60), max_size=4)))
        tensors.append(Tensor(draw(NAMES), draw(NAMES), shape, start, position))
    size = position + draw(st.integers(0, 5000))
    return size, checked(draw(st.sampled_from(["safetensors", "gguf"])), data_start, tensors, size)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Return any manifest a file can have."""
    if draw(st.booleans()):
        size, header = draw(headers())
        count = len(cut.lengths(cut.TENSORS, size, header.data_start, header.tensors))
        return of_blocks(size, header, [draw(st.binary(min_size=32, max_size=32))] * count)
    size = draw(st.integers(0, 12 * BLOCK_BYTES))
    count = len(cut.lengths(cut.FIXED, size))
    return of_blocks(size, None, [bytes([number]) * HASH_BYTES for number in range(count)])


@given(manifests())
def test_round_trip(found: Manifest) -> None:
    again = decode(found.encoded)
    assert again == found
    assert again.id == found.id
    assert (again.size, again.cut, again.blocks, again.header) == (
        found.size,
        found.cut,
        found.blocks,
        found.header,
    )
    assert again.lengths == found.lengths
    assert again.offsets == [sum(found.lengths[:number]) for number in range(found.block_count + 1)]
    assert hash(again) == hash(found)


@given(manifests(), st.data())
def test_any_flipped_bit_is_refused_or_has_another_id(found: Manifest, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(0, 8 * len(found.encoded) - 1))
    flipped = bytearray(found.encoded)
    flipped[place // 8] ^= 1 << place % 8
    try:
        other = decode(bytes(flipped))
    except FormatInvalid:
        return
    assert other != found
    assert other.encoded == bytes(flipped)


@given(manifests(), st.data())
def test_cut_short_or_longer(found: Manifest, draw: st.DataObject) -> None:
    with pytest.raises(FormatInvalid):
        decode(found.encoded[: draw.draw(st.integers(0, len(found.encoded) - 1))])
    with pytest.raises(FormatInvalid):
        decode(found.encoded + draw.draw(st.binary(min_size=1, max_size=9)))


@given(st.binary(max_size=300))
def test_junk(data: bytes) -> None:
    with pytest.raises(FormatInvalid):
        decode(data)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.binary(max_size=40)
    | NAMES,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
_FIELDS = st.tuples(
    st.just(1) | _VALUES,
    st.integers(-5, 1 << 60) | _VALUES,
    st.sampled_from(["fixed-1", "tensors-1"]) | _VALUES,
    st.sampled_from(["", "gguf", "safetensors"]) | _VALUES,
    st.integers(-5, 1 << 60) | _VALUES,
    st.binary(max_size=3).map(lambda text: text * 32) | _VALUES,
    st.lists(st.tuples(NAMES, NAMES, st.lists(st.integers()), st.integers(-9, 1 << 62), st.integers()), max_size=3)
    | _VALUES,
)


@given(_FIELDS)
def test_structured_junk(fields: tuple[object, ...]) -> None:
    try:
        data = msgspec.msgpack.encode(fields)
    except (OverflowError, msgspec.MsgspecError):
        return
    with contextlib.suppress(FormatInvalid):
        assert decode(data).encoded == data


def encode(*fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    "data",
    [
        encode(2, 0, "fixed-1", "", 0, b"", []),  # a newer level
        encode(1, 0, "fixed-2", "", 0, b"", []),  # a newer cut
        encode(1, 1 << 60, "fixed-1", "", 0, b"", []),  # impossible size
        encode(1, 1 << 49, "fixed-1", "", 0, b"", []),  # 134 million blocks in 20 bytes
        encode(1, 1 << 49, "tensors-1", "gguf", 1 << 49, b"", []),
        encode(1, 10, "fixed-1", "", 0, b"x" * 64, []),  # a block too many
        encode(1, 10, "fixed-1", "", 0, b"x" * 33, []),
        encode(1, 10, "fixed-1", "gguf", 0, b"x" * 32, []),  # a format without a cut by tensors
        encode(1, 10, "tensors-1", "gguf", 11, b"x" * 32, []),  # data starts behind the end
        encode(1, 10, "tensors-1", "gguf", 0, b"x" * 32, [["a", "U8", [1], 0, 11]]),  # a tensor behind the end
        encode(1, 10, "tensors-1", "gguf", 0, b"x" * 32, [["a", "U8", [1], 0, 6], ["b", "U8", [1], 5, 7]]),
        encode(1, 10, "tensors-1", "gguf", 0, b"x" * 32, [["b", "U8", [1], 5, 7], ["a", "U8", [1], 0, 5]]),
        encode(1, 10, "tensors-1", "", 0, b"x" * 32, [["a", "U8", [1 << 63], 0, -1]]),
        msgspec.msgpack.encode([1.0, 0, "fixed-1", "", 0, b"", []]),
        b"\x97\xcc\x01" + encode(1, 0, "fixed-1", "", 0, b"", [])[2:],  # the level in two bytes: another encoding
        b"\x91" * 100_000,  # nested a hundred thousand deep
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(FormatInvalid):
        decode(data)


def test_an_empty_file_has_no_block() -> None:
    found = of_blocks(0, None, [])
    assert found.block_count == 0
    assert found.offsets == [0]
    assert decode(found.encoded) == found


def test_ids_are_for_ever() -> None:
    """Ids of stores in the field: if this fails, the format has changed."""
    header = Header("safetensors", 8, (Tensor("w", "F32", (2, 3), 8, 32),))
    assert of_blocks(0, None, []).id.hex() == "d2dfe9dcf116e4afafce1c3e44be24bb795482c08cc1065e7b55bb506590535c"
    assert (
        of_blocks(32, header, [b"a" * 32, b"b" * 32]).id.hex()
        == "7abd8791b512b0ff1e5311f33c909db02c72a8eb1d3f36dad6ba36fb04263517"
    )
    assert manifest.LEVEL == 1


def test_wrong_count_of_blocks() -> None:
    with pytest.raises(FormatInvalid):
        of_blocks(10, None, [])
