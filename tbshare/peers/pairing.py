r"""Pairing: a one-time code makes a machine a member.

    newcomer                                            member that offers the code
    b"TBPAIR1\n", frame(certificate, SPAKE2 message)  ->
                                                     <- frame(certificate, SPAKE2 message)
    frame(proof of the key)                          ->
                                                     <- frame(tries left, proof of the key, or none)
    frame(sealed: name)                              ->
                                                     <- frame(sealed: name, cluster), when it is a member

A frame is a 2-byte length and that many bytes. The SPAKE2 key is bound to both certificates, the proofs and
the sealing keys to everything said so far, so that whoever changes a byte between the two, or puts in a
certificate of its own, makes the code a wrong one. Before both have proved that they know it, a stranger has
learnt a public key.

The code has 21 bits and an attempt tests one value: three tries, two minutes, one use.
"""

import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Final, Protocol, TypeVar, cast

import msgspec
import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

from tbshare.content.block import HASH_BYTES, named_hash
from tbshare.content.ref import PART_PATTERN, shown
from tbshare.errors import FormatInvalid, PairingFailed
from tbshare.peers.words import WORDS
from tbshare.volumes.entry import CERTIFICATE_BYTES_MAX, node_of_certificate
from tbshare.wire import limits

MAGIC: Final = b"TBPAIR1\n"
TRIES: Final = 3
OPEN_SECONDS: Final = 120.0
NUMBERS: Final = 9
FRAME_BYTES_MAX: Final = 4096
SPAKE_BYTES: Final = 33  # the side, and a point on the curve
EXCHANGE_SECONDS: Final = limits.HANDSHAKE_SECONDS  # all of it; nobody types anything meanwhile
_CONTEXT: Final = "tbshare 2026-11-23 pairing "
_NONCE: Final = bytes(12)  # each sealing key seals one message

assert NUMBERS * len(WORDS) ** 2 >= 1 << 20


class Party(Protocol):
    """What pairing needs of an identity."""

    @property
    def node(self) -> bytes:
        """Node id."""
        ...

    @property
    def certificate(self) -> bytes:
        """Certificate, DER."""
        ...


@dataclass(frozen=True)
class Newcomer:
    """The node that typed the right code."""

    node: bytes
    certificate: bytes
    name: str


@dataclass(frozen=True)
class Invitation:
    """What the newcomer learns from the node that offered the code."""

    node: bytes
    certificate: bytes
    name: str
    cluster: bytes


# ---- the code and its window (pure but for the choice of the code) ------------------------------------------


def new_code() -> str:
    """Return a fresh code such as `7-copper-lantern`."""
    return f"{1 + secrets.randbelow(NUMBERS)}-{secrets.choice(WORDS)}-{secrets.choice(WORDS)}"


def normal_code(text: str) -> str:
    """Return a typed code in its one form; PairingFailed with the nearest words when it can be none.

    Capital letters, blanks for hyphens and blanks around do not matter. No try is used up.
    """
    parts = text[:200].lower().replace("-", " ").replace("_", " ").split()
    if len(parts) != 3 or not parts[0].isascii() or not parts[0].isdigit():
        raise PairingFailed(
            f"{shown(text)} is no code: a code is a number and two words, such as 7-copper-lantern",
            cure="tbshare pair (on a node of the cluster) shows one",
        )
    for word in parts[1:]:
        if word not in WORDS:
            near = get_close_matches(word, WORDS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise PairingFailed(f"{shown(word)} is in no code{hint}", cure="type the code again; this used no try")
    return f"{int(parts[0])}-{parts[1]}-{parts[2]}"


class Window:
    """The time in which a code may be used: three tries, two minutes, once.

    Pure: `now` is handed in, in monotonic seconds. A try counts from its start, so that attempts at the same time
    cannot be more than three either.
    """

    def __init__(self, code: str, now: float) -> None:
        self.code = code
        self._ends = now + OPEN_SECONDS
        self._tries_left = TRIES
        self._closed = ""
        self._used = False

    @property
    def tries_left(self) -> int:
        """How many attempts may still begin."""
        return 0 if self._closed else self._tries_left

    def is_open(self, now: float) -> bool:
        """Say whether an attempt may begin."""
        return not self.why_closed(now)

    def seconds_left(self, now: float) -> float:
        """Return how long it stays open."""
        return max(self._ends - now, 0.0) if self.is_open(now) else 0.0

    def why_closed(self, now: float) -> str:
        """Return why no attempt may begin, or ""."""
        if self._closed:
            return self._closed
        if now >= self._ends:
            return "the two minutes for this code are over"
        return "" if self._tries_left else "this code was typed wrong three times"

    def begin(self, now: float) -> None:
        """Count an attempt that begins; PairingFailed when none may."""
        reason = self.why_closed(now)
        if reason:
            raise PairingFailed(reason, cure="tbshare pair shows a new code")
        self._tries_left -= 1

    def succeed(self, now: float) -> None:
        """Use the code up; PairingFailed when another attempt was quicker or the time is over."""
        if self._closed or now >= self._ends:
            raise PairingFailed(self.why_closed(now) or "the code is used", cure="tbshare pair shows a new code")
        self._used = True
        self._closed = "this code is used; a code lets one machine in"

    def close(self) -> None:
        """Close it for good."""
        self._closed = self._closed or "the offer was taken back"


# ---- what is said -------------------------------------------------------------------------------------------


class _Opening(msgspec.Struct, frozen=True, array_like=True):
    certificate: Annotated[bytes, msgspec.Meta(max_length=CERTIFICATE_BYTES_MAX)]
    spake: Annotated[bytes, msgspec.Meta(min_length=SPAKE_BYTES, max_length=SPAKE_BYTES)]


class _Verdict(msgspec.Struct, frozen=True, array_like=True):
    tries_left: Annotated[int, msgspec.Meta(ge=0, le=TRIES)]
    proof: Annotated[bytes, msgspec.Meta(max_length=HASH_BYTES)]  # empty: the code was wrong


class _Name(msgspec.Struct, frozen=True, array_like=True):
    name: Annotated[str, msgspec.Meta(pattern=PART_PATTERN)]


class _Welcome(msgspec.Struct, frozen=True, array_like=True):
    name: Annotated[str, msgspec.Meta(pattern=PART_PATTERN)]
    cluster: Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]


_Said = TypeVar("_Said", bound=msgspec.Struct)


def _read(data: bytes, kind: type[_Said]) -> _Said:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise PairingFailed(
            "the other machine sent something that is not pairing", cure="tbshare version"
        ) from error


async def _send(stream: trio.abc.Stream, data: bytes, *, before: bytes = b"") -> None:
    assert len(data) <= FRAME_BYTES_MAX
    await stream.send_all(before + len(data).to_bytes(2, "big") + data)


async def _exactly(stream: trio.abc.Stream, count: int) -> bytes:
    """Return `count` bytes and read none beyond them."""
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise trio.BrokenResourceError("closed")
        data += more
    return data


async def _receive(stream: trio.abc.Stream) -> bytes:
    length = int.from_bytes(await _exactly(stream, 2), "big")
    if not 0 < length <= FRAME_BYTES_MAX:
        raise PairingFailed("the other machine sent something that is not pairing", cure="tbshare version")
    return await _exactly(stream, length)


class _Exchange(Protocol):
    """One side of SPAKE2; the package has no types."""

    def start(self) -> bytes: ...

    def finish(self, inbound: bytes) -> bytes: ...


class _Keys:
    """What both sides derive from the code, both certificates and everything said in the open."""

    def __init__(self, spake: _Exchange, inbound: bytes, transcript: list[bytes]) -> None:
        try:
            secret = spake.finish(inbound)
        except (SPAKEError, NotOnCurve, ValueError, AssertionError) as error:
            raise PairingFailed("the other machine sent something that is not pairing") from error
        lengths = [len(part).to_bytes(8, "big") for part in transcript]
        seen = [part for pair in zip(lengths, transcript, strict=True) for part in pair]

        def derive(purpose: str) -> bytes:
            return named_hash(_CONTEXT + purpose, [secret, *seen])

        self.proof_newcomer = derive("proof of the newcomer")
        self.proof_member = derive("proof of the member")
        self.name = ChaCha20Poly1305(derive("seal of the name"))
        self.welcome = ChaCha20Poly1305(derive("seal of the welcome"))


def _opened(seal: ChaCha20Poly1305, data: bytes) -> bytes:
    try:
        return seal.decrypt(_NONCE, data, MAGIC)
    except InvalidTag as error:
        raise PairingFailed("somebody changed what the two machines said", cure="tbshare pair again") from error


def _sealed(seal: ChaCha20Poly1305, message: msgspec.Struct) -> bytes:
    return seal.encrypt(_NONCE, msgspec.msgpack.encode(message), MAGIC)


def _stranger(certificate: bytes, own: Party) -> bytes:
    """Return the node id of the other side's certificate; PairingFailed when it is none, or ours."""
    try:
        node = node_of_certificate(certificate)
    except FormatInvalid as error:
        raise PairingFailed(f"the other machine sent no certificate of a node: {error}") from error
    if node == own.node:
        raise PairingFailed(
            "this machine cannot pair with itself, or with a copy of itself",
            cure="on a cloned machine remove device.key, then pair",
        )
    return node


async def offer(
    stream: trio.abc.Stream,
    window: Window,
    own: Party,
    *,
    name: str,
    cluster: bytes,
    admit: Callable[[Newcomer], Awaitable[None]],
) -> Newcomer:
    """Answer one attempt to pair and return who came in.

    `admit` makes the newcomer a member, durably; only then it is told. PairingFailed for anything else; the
    stream is the caller's to close. MAGIC is still unread.
    """
    try:
        with trio.fail_after(EXCHANGE_SECONDS):
            return await _offer(stream, window, own, _Welcome(name=name, cluster=cluster), admit)
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
        raise PairingFailed("the other machine broke off, or was too slow", cure="try again") from error


async def _offer(
    stream: trio.abc.Stream,
    window: Window,
    own: Party,
    welcome: _Welcome,
    admit: Callable[[Newcomer], Awaitable[None]],
) -> Newcomer:
    if await _exactly(stream, len(MAGIC)) != MAGIC:
        raise PairingFailed("the other machine sent something that is not pairing", cure="tbshare version")
    theirs = await _receive(stream)
    opening = _read(theirs, _Opening)
    node = _stranger(opening.certificate, own)
    window.begin(trio.current_time())
    spake = cast("_Exchange", SPAKE2_B(window.code.encode(), idA=opening.certificate, idB=own.certificate))
    ours = msgspec.msgpack.encode(_Opening(certificate=own.certificate, spake=spake.start()))
    await _send(stream, ours)
    keys = _Keys(spake, opening.spake, [MAGIC, theirs, ours])
    proof = await _receive(stream)
    if not hmac.compare_digest(proof, keys.proof_newcomer):
        verdict = _Verdict(tries_left=window.tries_left, proof=b"")
        await _send(stream, msgspec.msgpack.encode(verdict))
        raise PairingFailed(
            f"somebody typed a wrong code, {window.tries_left} tries left",
            cure="tbshare pair shows a new code when none is left",
        )
    window.succeed(trio.current_time())
    await _send(stream, msgspec.msgpack.encode(_Verdict(tries_left=0, proof=keys.proof_member)))
    name = _read(_opened(keys.name, await _receive(stream)), _Name).name
    newcomer = Newcomer(node=node, certificate=opening.certificate, name=name)
    await admit(newcomer)
    await _send(stream, _sealed(keys.welcome, welcome))
    return newcomer


async def join(stream: trio.abc.Stream, code: str, own: Party, *, name: str) -> Invitation:
    """Try a code on a connected stream and return who let us in, and into which cluster.

    PairingFailed when the code is wrong, or nothing is offered there; the stream is the caller's to close.
    """
    code = normal_code(code)
    try:
        with trio.fail_after(EXCHANGE_SECONDS):
            return await _join(stream, code, own, _Name(name=name))
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise PairingFailed(
            "the other machine broke off: it offers no code now, or its time is over",
            cure="tbshare pair (there) shows a new code",
        ) from error
    except trio.TooSlowError as error:
        raise PairingFailed("the other machine was too slow", cure="try again") from error


async def _join(stream: trio.abc.Stream, code: str, own: Party, name: _Name) -> Invitation:
    side = SPAKE2_A(code.encode(), idA=own.certificate)
    spake = cast("_Exchange", side)
    ours = msgspec.msgpack.encode(_Opening(certificate=own.certificate, spake=spake.start()))
    await _send(stream, ours, before=MAGIC)
    theirs = await _receive(stream)
    opening = _read(theirs, _Opening)
    node = _stranger(opening.certificate, own)
    side.idB = opening.certificate  # enters the key only in `finish`
    keys = _Keys(spake, opening.spake, [MAGIC, ours, theirs])
    await _send(stream, keys.proof_newcomer)
    verdict = _read(await _receive(stream), _Verdict)
    if not verdict.proof:
        left = verdict.tries_left
        raise PairingFailed(
            f"wrong code, {left} {'try' if left == 1 else 'tries'} left",
            cure="tbshare pair CODE" if left else "tbshare pair (there) shows a new code",
        )
    if not hmac.compare_digest(verdict.proof, keys.proof_member):
        raise PairingFailed(
            "the other machine does not know the code: it may be another than you think",
            cure="tbshare pair (there) shows a new code; check the address",
        )
    await _send(stream, _sealed(keys.name, name))
    welcome = _read(_opened(keys.welcome, await _receive(stream)), _Welcome)
    return Invitation(node=node, certificate=opening.certificate, name=welcome.name, cluster=welcome.cluster)
