"""Cuts against a slow oracle that looks at every byte."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content import cut
from tbshare.content.block import BLOCK_BYTES
from tbshare.content.cut import FIXED, TENSOR_BYTES_MIN, TENSORS, lengths, rule_for, tensor_lengths
from tbshare.content.weights import Header, Tensor
from tbshare.errors import FormatInvalid
from tests.store.weights_files import blocks_of, header_of, manifest_of, random_bytes, safetensors_file

_SIZES = st.sampled_from([0, 1, 7, 100, TENSOR_BYTES_MIN - 1, TENSOR_BYTES_MIN, TENSOR_BYTES_MIN + 1, 300_000])
_ANY = _SIZES | st.integers(0, 2 * BLOCK_BYTES + 5)
LAYOUTS = st.tuples(st.integers(0, 70_000), st.lists(st.tuples(_SIZES, _ANY), max_size=8), _SIZES)


def placed(data_start: int, rows: list[tuple[int, int]], tail: int) -> tuple[int, list[Tensor]]:
    """Return the size of a file and its tensors: rows of (gap before, bytes)."""
    tensors: list[Tensor] = []
    position = data_start
    for number, (gap, length) in enumerate(rows):
        position += gap
        tensors.append(Tensor(str(number), "U8", (length,), position, position + length))
        position += length
    return position + tail, tensors


def oracle(size: int, data_start: int, tensors: list[Tensor], least: int) -> list[int]:
    """Return the starts of the blocks: every byte that must start one, and every 4 MiB after the last such."""
    restarts = {0, data_start}
    for tensor in tensors:
        if tensor.end - tensor.start >= least:
            restarts |= {tensor.start, tensor.end}
    starts: set[int] = set()
    ordered = [*sorted(restarts), size]
    for start, end in pairwise(ordered):
        starts |= set(range(start, end, BLOCK_BYTES))
    return sorted(start for start in starts if start < size)


def starts_of(block_lengths: list[int]) -> list[int]:
    return [sum(block_lengths[:number]) for number in range(len(block_lengths))]


@given(LAYOUTS, st.sampled_from([1, 1000, TENSOR_BYTES_MIN, 1 << 20]))
def test_tensors_against_the_oracle(layout: tuple[int, list[tuple[int, int]], int], least: int) -> None:
    data_start, rows, tail = layout
    size, tensors = placed(data_start, rows, tail)
    found = tensor_lengths(size, data_start, tensors, least)
    assert sum(found) == size
    assert all(0 < length <= BLOCK_BYTES for length in found)
    assert starts_of(found) == oracle(size, data_start, tensors, least)
    assert lengths(TENSORS, size, data_start, tensors) == tensor_lengths(
        size, data_start, tensors, TENSOR_BYTES_MIN
    )


@given(st.integers(0, 40 * BLOCK_BYTES) | st.sampled_from([0, 1, BLOCK_BYTES, BLOCK_BYTES + 1]))
def test_fixed(size: int) -> None:
    found = lengths(FIXED, size)
    assert sum(found) == size
    assert all(length == BLOCK_BYTES for length in found[:-1])
    assert all(0 < length <= BLOCK_BYTES for length in found)


@given(st.text().filter(lambda text: text not in (FIXED, TENSORS)))
def test_an_unknown_rule(name: str) -> None:
    with pytest.raises(FormatInvalid):
        lengths(name, 100)


def test_the_rule_of_a_new_object() -> None:
    assert rule_for(None) == FIXED
    assert rule_for(Header("gguf", 0, ())) == TENSORS


def blocks_by_tensor(data: bytes) -> dict[str, list[bytes]]:
    """Return, for each tensor that has blocks of its own, their ids."""
    found = manifest_of("a.safetensors", data)
    header = header_of("a.safetensors", data)
    assert header is not None
    result: dict[str, list[bytes]] = {}
    for tensor in header.tensors:
        if tensor.end - tensor.start >= TENSOR_BYTES_MIN:
            numbers = range(found.offsets.index(tensor.start), found.offsets.index(tensor.end))
            result[tensor.name] = [found.block(number) for number in numbers]
    return result


@pytest.mark.parametrize("bytes_of_tensor", [TENSOR_BYTES_MIN, 100_000, BLOCK_BYTES + 17])
def test_the_same_tensor_has_the_same_blocks_wherever_it_stands(bytes_of_tensor: int) -> None:
    """Behind a longer header, behind other tensors, in a file of another writer, alone."""
    wanted = random_bytes("wanted", bytes_of_tensor)
    tensor = ("wanted", "U8", [bytes_of_tensor], wanted)
    other = ("other", "U8", [70_001], random_bytes("other", 70_001))
    small = ("small", "U8", [333], random_bytes("small", 333))
    files = [
        safetensors_file([tensor]),
        safetensors_file([tensor], metadata="x" * 777, pad=8),
        safetensors_file([small, other, tensor, small]),
        safetensors_file([other, small, tensor, other], pad=4096),
    ]
    found = [blocks_by_tensor(data)["wanted"] for data in files]
    assert all(blocks == found[0] for blocks in found)
    assert len(found[0]) == -(-bytes_of_tensor // BLOCK_BYTES)


def test_neighbours_below_the_threshold_share_a_block() -> None:
    tensors = [(f"bias.{number}", "U8", [1000], random_bytes(number, 1000)) for number in range(30)]
    assert manifest_of("a.safetensors", safetensors_file(tensors)).block_count == 2  # the header, and one


def test_a_manifest_gives_back_the_file() -> None:
    data = safetensors_file([("a", "U8", [90_000], random_bytes(1, 90_000)), ("b", "U8", [9], bytes(9))])
    found = manifest_of("a.safetensors", data)
    assert b"".join(blocks_of(found, data)) == data
    assert cut.lengths(found.cut, found.size, found.header.data_start if found.header else 0) != found.lengths
