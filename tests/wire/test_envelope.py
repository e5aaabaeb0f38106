import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.errors import PeerError
from tbshare.wire import limits
from tbshare.wire.envelope import Opener, seal


def opened(opener: Opener, data: bytes) -> list[bytes]:
    opener.feed(data)
    payloads: list[bytes] = []
    while (payload := opener.take()) is not None:
        payloads.append(payload)
    return payloads


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.data())
def test_the_split_does_not_matter(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(seal(payload) for payload in payloads)
    opener, got = Opener(), list[bytes]()
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        got += opened(opener, stream[:count])
        stream = stream[count:]
    assert got == payloads
    assert opener.pending_bytes == 0


@given(st.one_of(st.just(0), st.integers(limits.ENVELOPE_BYTES_MAX + 1, (1 << 32) - 1)), st.binary(max_size=50))
def test_a_length_that_is_not_allowed_is_refused_before_a_byte_of_it_comes(length: int, rest: bytes) -> None:
    opener = Opener()
    opener.feed(seal(b"before") + length.to_bytes(4, "big"))
    assert opener.take() == b"before"
    with pytest.raises(PeerError):
        opener.take()
    opener.feed(rest)
    with pytest.raises(PeerError):  # and there is no way on
        opener.take()


def test_the_largest_envelope_passes() -> None:
    payload = bytes(limits.ENVELOPE_BYTES_MAX)
    assert opened(Opener(), seal(payload)) == [payload]


@given(st.binary(max_size=500))
def test_junk_is_payloads_or_the_peer_s_fault(junk: bytes) -> None:
    opener = Opener()
    try:
        payloads = opened(opener, junk)
    except PeerError:
        return
    assert sum(4 + len(payload) for payload in payloads) + opener.pending_bytes == len(junk)
