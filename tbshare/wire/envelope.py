"""Envelopes: a 4-byte big-endian length, then one message. Pure: bytes in, payloads out."""

from typing import Final

from tbshare.errors import PeerError
from tbshare.wire import limits

PREFIX_BYTES: Final = 4


def seal(payload: bytes) -> bytes:
    """Return the envelope of a payload of 1 to ENVELOPE_BYTES_MAX bytes."""
    assert 0 < len(payload) <= limits.ENVELOPE_BYTES_MAX
    return len(payload).to_bytes(PREFIX_BYTES, "big") + payload


class Opener:
    """Cuts a byte stream into payloads.

    The length is judged before the payload is waited for, so whoever takes all payloads after each `feed` holds
    at most one envelope that is not whole.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending_bytes(self) -> int:
        """How many bytes are held."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes, split anywhere."""
        self._buffer += data

    def take(self) -> bytes | None:
        """Return the next payload, None until more bytes come; PeerError when a length is not allowed."""
        if len(self._buffer) < PREFIX_BYTES:
            return None
        length = int.from_bytes(self._buffer[:PREFIX_BYTES], "big")
        if not 0 < length <= limits.ENVELOPE_BYTES_MAX:
            raise PeerError(
                f"the peer announced a message of {length} bytes; 1 to {limits.ENVELOPE_BYTES_MAX} are allowed"
            )
        end = PREFIX_BYTES + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[PREFIX_BYTES:end])
        del self._buffer[:end]  # moves no bytes: a bytearray remembers where it starts
        return payload
