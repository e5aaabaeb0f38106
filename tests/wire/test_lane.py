import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tbshare.content.block import BLOCK_BYTES
from tbshare.errors import PeerError
from tbshare.wire.lane import (
    GREETING_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    Header,
    Opener,
    Sealer,
    Tokens,
    greeting,
    parse_header,
)

numbers = st.integers(0, 2**64 - 1)
tokens = st.binary(min_size=32, max_size=32)
payloads = st.binary(min_size=1, max_size=600)
headers = st.builds(Header, numbers, st.integers(1, BLOCK_BYTES), st.booleans()) | st.builds(
    Header, numbers, st.just(0), st.booleans(), st.just(True)
)


def sealed(sealer: Sealer, request: int, payload: bytes) -> tuple[Header, bytearray]:
    header = Header(request, len(payload), sealed=True)
    frame = bytearray(payload + bytes(TAG_BYTES))
    sealer.seal(header, memoryview(frame))
    return header, frame


@given(numbers, tokens)
def test_a_greeting_opens_its_lane_once(lane: int, token: bytes) -> None:
    provider = Tokens()
    provider.issue(lane, token)
    data = greeting(lane, token)
    assert len(data) == GREETING_BYTES
    assert provider.redeem(data) == lane
    with pytest.raises(PeerError):
        provider.redeem(data)


@given(numbers, tokens, st.integers(0, GREETING_BYTES * 8 - 1))
def test_a_greeting_with_one_bit_changed_opens_nothing_and_uses_nothing_up(
    lane: int, token: bytes, bit: int
) -> None:
    provider = Tokens()
    provider.issue(lane, token)
    data = greeting(lane, token)
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerError):
        provider.redeem(bytes(changed))
    assert provider.redeem(data) == lane


@given(numbers, tokens, tokens)
def test_another_token_opens_nothing(lane: int, token: bytes, other: bytes) -> None:
    provider = Tokens()
    provider.issue(lane, token)
    if token != other:
        with pytest.raises(PeerError):
            provider.redeem(greeting(lane, other))


@given(numbers)
def test_a_lane_that_was_never_offered_or_was_revoked_stays_shut(lane: int) -> None:
    provider = Tokens()
    # The comparison for an unknown lane uses an all-zero token: that must not be a way in.
    with pytest.raises(PeerError):
        provider.redeem(greeting(lane, bytes(32)))
    provider.issue(lane, b"t" * 32)
    provider.revoke(lane)
    with pytest.raises(PeerError):
        provider.redeem(greeting(lane, b"t" * 32))


@given(st.binary(max_size=100))
def test_garbage_is_no_greeting(data: bytes) -> None:
    provider = Tokens()
    provider.issue(1, b"t" * 32)
    with pytest.raises(PeerError):
        provider.redeem(data)


@given(headers)
def test_headers_come_back(header: Header) -> None:
    data = header.encode()
    assert len(data) == HEADER_BYTES
    assert parse_header(data, sealed=header.sealed) == header
    with pytest.raises(PeerError):  # a lane does not change its mind about sealing
        parse_header(data, sealed=not header.sealed)


@given(
    st.builds(struct.Struct(">QII").pack, numbers, st.integers(0, BLOCK_BYTES + 40), st.integers(0, 9))
    | st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES),
    st.booleans(),
)
@example(struct.pack(">QII", 1, BLOCK_BYTES + 1, 0), False)
@example(struct.pack(">QII", 1, 0, 0), False)
@example(struct.pack(">QII", 1, TAG_BYTES, 1), True)
@example(struct.pack(">QII", 1, 15, 1), True)
@example(struct.pack(">QII", 1, 1, 2), False)
def test_sixteen_bytes_are_one_header_or_the_peers_fault(data: bytes, is_sealed: bool) -> None:
    try:
        header = parse_header(data, sealed=is_sealed)
    except PeerError:
        return
    assert header.encode() == data
    assert header.sealed == is_sealed
    assert header.payload_bytes == 0 if header.goodbye else 1 <= header.payload_bytes <= BLOCK_BYTES


@given(tokens, st.lists(st.tuples(numbers, payloads), min_size=1, max_size=5))
def test_what_was_sealed_opens_in_its_place(key: bytes, blocks: list[tuple[int, bytes]]) -> None:
    sealer, opener = Sealer(key), Opener(key)
    for number, (request, payload) in enumerate(blocks):
        header, frame = sealed(sealer, request, payload)
        assert len(payload) < 8 or bytes(frame[:-TAG_BYTES]) != payload
        assert opener.open(number, header, memoryview(frame)) == payload


def test_a_whole_block_is_sealed_and_opened_in_place() -> None:
    payload = bytes(range(256)) * (BLOCK_BYTES // 256)
    header, frame = sealed(Sealer(b"k" * 32), 7, payload)
    assert Opener(b"k" * 32).open(0, header, memoryview(frame)) == payload
    assert bytes(frame[:-TAG_BYTES]) == payload, "opened in place"


@given(tokens, payloads, st.data())
def test_one_bit_changed_does_not_open(key: bytes, payload: bytes, data: st.DataObject) -> None:
    header, frame = sealed(Sealer(key), 7, payload)
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerError):
        Opener(key).open(0, header, memoryview(frame))


@given(tokens, payloads, payloads)
def test_moved_repeated_or_relabelled_blocks_do_not_open(key: bytes, first: bytes, second: bytes) -> None:
    sealer, opener = Sealer(key), Opener(key)
    header_one, one = sealed(sealer, 1, first)
    header_two, two = sealed(sealer, 2, second)
    with pytest.raises(PeerError):
        opener.open(0, header_two, memoryview(bytearray(two)))
    with pytest.raises(PeerError):
        opener.open(1, header_one, memoryview(bytearray(one)))
    with pytest.raises(PeerError):
        opener.open(0, Header(2, len(first), sealed=True), memoryview(bytearray(one)))
    with pytest.raises(PeerError):
        Opener(bytes(32) if key != bytes(32) else b"k" * 32).open(0, header_one, memoryview(bytearray(one)))
    assert opener.open(1, header_two, memoryview(two)) == second


@given(tokens, payloads)
def test_no_two_blocks_share_a_nonce(key: bytes, payload: bytes) -> None:
    sealer = Sealer(key)
    assert sealed(sealer, 1, payload)[1] != sealed(sealer, 1, payload)[1]
