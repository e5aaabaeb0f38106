"""What travels on a lane: one greeting from the fetcher, then blocks from the provider, then a goodbye.

A lane is one connection on which a provider sends blocks to a fetcher; requests travel on control. All numbers
are big-endian.

    greeting, fetcher -> provider, once, 48 bytes
        b"TBLANE1" and a newline, 8 bytes
        lane number    u64
        MAC            32 bytes: BLAKE3, keyed with the one-time token, over the 16 bytes before it

    block, provider -> fetcher, any number of times
        request        u64   as in `Fetch`
        length         u32   of what follows; 1 byte to 4 MiB, and TAG_BYTES more when sealed
        flags          u32   SEALED on each header of a sealed lane; no other bit
        payload        length bytes

    goodbye, provider -> fetcher, last, a header with the flag GOODBYE
        request        u64   how many blocks went before; so a lane that was cut is never taken for one that ended
        length         u32   0, and TAG_BYTES when sealed (the tag then follows)

A sealed payload is AES-256-GCM under a key that is made for this one lane incarnation and travels on control.
The nonce is not sent: it is the number of blocks that went before, so a block that is dropped, repeated or moved
does not open. The header is the associated data.

The token admits once (`Tokens.redeem`). It names nothing that is secret afterwards: on a lane that is not sealed
whoever can change bytes on the cable can spoil a transfer but not what is stored, because the fetcher believes
nothing but block ids.
"""

import struct
from dataclasses import dataclass
from hmac import compare_digest

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tbshare.content.block import BLOCK_BYTES
from tbshare.errors import PeerError

MAGIC = b"TBLANE1\n"
TOKEN_BYTES = 32
KEY_BYTES = 32
TAG_BYTES = 16
HEADER_BYTES = 16
GREETING_BYTES = len(MAGIC) + 8 + 32

SEALED = 1
GOODBYE = 2

# One key seals at most this many blocks (16 PB): far below what 96 bits of nonce allow, and GCM's bound on the
# total under one key is not the counter but 2^64 blocks of 16 bytes.
SEALS_PER_KEY_MAX = 1 << 32

_greeting = struct.Struct(">8sQ32s")
_header = struct.Struct(">QII")
assert _greeting.size == GREETING_BYTES
assert _header.size == HEADER_BYTES


def _mac(lane: int, token: bytes) -> bytes:
    return blake3(MAGIC + lane.to_bytes(8, "big"), key=token).digest()


def greeting(lane: int, token: bytes) -> bytes:
    """Return the GREETING_BYTES with which a fetcher opens the lane; `token` is TOKEN_BYTES long."""
    return _greeting.pack(MAGIC, lane, _mac(lane, token))


class Tokens:
    """The tokens a provider has given out and that nobody has used yet."""

    def __init__(self) -> None:
        self._waiting: dict[int, bytes] = {}

    def issue(self, lane: int, token: bytes) -> None:
        """Let `token`, TOKEN_BYTES of new randomness, open the lane once; lane numbers are the provider's own."""
        assert len(token) == TOKEN_BYTES
        assert lane not in self._waiting, "a lane number is given out once"
        self._waiting[lane] = token

    def revoke(self, lane: int) -> None:
        """Forget the token of a lane that was not opened in time; nothing happens if it was."""
        self._waiting.pop(lane, None)

    def redeem(self, data: bytes) -> int:
        """Return the number of the lane that a greeting opens, and use its token up.

        Raises PeerError when it is no greeting, the token is another one, or it was used before. A wrong MAC
        does not use the token up: else a stranger who guesses lane numbers could keep a fetcher out.
        """
        if len(data) != GREETING_BYTES:
            raise PeerError("a lane was greeted with too few bytes")
        magic, lane, mac = _greeting.unpack(data)
        if magic != MAGIC:
            raise PeerError("a lane was greeted with something else")
        token = self._waiting.get(lane)
        # An unknown lane is compared too, so that how long it takes says nothing about which lanes are open.
        matches = compare_digest(_mac(lane, token or bytes(TOKEN_BYTES)), mac)
        if token is None or not matches:
            raise PeerError("a lane was greeted without the token that opens it")
        del self._waiting[lane]
        return int(lane)


@dataclass(frozen=True, slots=True)
class Header:
    """What a lane says before a block, or instead of one when `goodbye`.

    `request` is the number of the request, or of all blocks sent when `goodbye`; `payload_bytes` is the length
    of the block itself, without the tag.
    """

    request: int
    payload_bytes: int
    sealed: bool = False
    goodbye: bool = False

    @property
    def wire_bytes(self) -> int:
        """How many bytes follow the header on the lane."""
        return self.payload_bytes + (TAG_BYTES if self.sealed else 0)

    def encode(self) -> bytes:
        """Return the HEADER_BYTES."""
        flags = (SEALED if self.sealed else 0) | (GOODBYE if self.goodbye else 0)
        return _header.pack(self.request, self.wire_bytes, flags)


def parse_header(data: bytes | bytearray | memoryview, *, sealed: bool) -> Header:
    """Return the header in HEADER_BYTES of a lane that is sealed or not; PeerError when they are none."""
    request, length, flags = _header.unpack(data)
    goodbye = bool(flags & GOODBYE)
    if flags & ~GOODBYE != (SEALED if sealed else 0):
        raise PeerError(f"a lane sent a header with flags {flags:#x}")
    payload_bytes = length - (TAG_BYTES if sealed else 0)
    if goodbye and payload_bytes != 0:
        raise PeerError("a lane said goodbye and meant to go on")
    if not goodbye and not 0 < payload_bytes <= BLOCK_BYTES:
        raise PeerError(f"a lane announced a block of {payload_bytes} bytes")
    return Header(request, payload_bytes, sealed, goodbye)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


class Sealer:
    """Seals the blocks of one lane incarnation, in the order in which they are sent.

    Works in place: the tag is appended to a payload that becomes its own ciphertext. OpenSSL allows input and
    output to be the same bytes (not: to overlap otherwise), and it halves the memory each block touches.
    """

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        self._cipher = AESGCM(key)
        self._sealed = 0

    def seal(self, header: Header, payload_and_tag: memoryview) -> None:
        """Replace the payload by its ciphertext and the TAG_BYTES after it by its tag."""
        assert header.sealed
        assert len(payload_and_tag) == header.wire_bytes
        assert self._sealed < SEALS_PER_KEY_MAX, "a lane incarnation is replaced long before its nonces run out"
        nonce = _nonce(self._sealed)
        self._sealed += 1  # before the call: a nonce is spent even when sealing fails
        payload = payload_and_tag[: header.payload_bytes]
        self._cipher.encrypt_into(nonce, payload, header.encode(), payload_and_tag)


class Opener:
    """Opens what a Sealer with the same key sealed; keeps no count, so any thread may open any block."""

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        self._cipher = AESGCM(key)

    def open(self, number: int, header: Header, payload_and_tag: memoryview) -> memoryview:
        """Return the payload, opened in place; `number` blocks went before on this lane.

        Raises PeerError when the bytes, the header or the place in the order are not what was sealed.
        """
        assert len(payload_and_tag) == header.wire_bytes
        payload = payload_and_tag[: header.payload_bytes]
        try:
            self._cipher.decrypt_into(_nonce(number), payload_and_tag, header.encode(), payload)
        except InvalidTag as error:
            raise PeerError(f"block {number} of a sealed lane was changed on its way") from error
        return payload
