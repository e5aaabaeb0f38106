import socket
import ssl
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from tbshare.errors import PeerError, PeerUnreachable
from tbshare.peers.identity import Identity
from tbshare.transport import control
from tbshare.transport.control import ControlSession
from tbshare.wire import limits
from tbshare.wire.envelope import seal
from tbshare.wire.message import Acknowledged, Entries, Head, Ping, Unwant, encode


@dataclass(frozen=True)
class Pair:
    anna: Identity
    bert: Identity
    eve: Identity

    def trusted(self) -> dict[bytes, bytes]:
        return {self.bert.node: self.bert.certificate}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(*[Identity.load_or_create(tmp_path / name) for name in ("anna", "bert", "eve")])


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Return two ends of a real connection."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        client = await trio.open_tcp_stream("127.0.0.1", port)
        return client, await listener.accept()


async def sessions_over(
    pair: Pair, client: trio.abc.HalfCloseableStream, server: trio.abc.HalfCloseableStream
) -> tuple[ControlSession, ControlSession]:
    made: dict[str, ControlSession] = {}

    async def serve() -> None:
        made["anna"] = await control.serve(server, pair.anna, pair.trusted())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        made["bert"] = await control.connect(
            client, pair.bert, peer=pair.anna.node, certificate=pair.anna.certificate
        )
    return made["bert"], made["anna"]


@asynccontextmanager
async def running(*sessions: ControlSession) -> AsyncGenerator[trio.Nursery, None]:
    async with trio.open_nursery() as nursery:
        for session in sessions:
            nursery.start_soon(session.run)
        yield nursery
        nursery.cancel_scope.cancel()


def tree(number: int) -> Unwant:
    return Unwant(tree=number.to_bytes(32, "big"))


async def test_messages_both_ways_over_tcp(pair: Pair) -> None:
    bert, anna = await sessions_over(pair, *await tcp_pair())
    async with running(bert, anna):
        for number in range(300):
            await bert.send(tree(number))
            await anna.send(tree(number + 1000))
        assert [await anna.receive() for _ in range(300)] == [tree(number) for number in range(300)]
        assert [await bert.receive() for _ in range(300)] == [tree(number + 1000) for number in range(300)]
    assert (bert.node, anna.node) == (pair.anna.node, pair.bert.node)
    assert (bert.certificate, anna.certificate) == (pair.anna.certificate, pair.bert.certificate)
    assert bert.remote_address == anna.local_address == "127.0.0.1"


async def test_dial_a_port(pair: Pair) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    async def answer() -> None:
        session = await control.serve(await listener.accept(), pair.anna, pair.trusted())
        with trio.CancelScope() as scope:
            async with running(session):
                await session.send(await session.receive())
                await session.aclose()
                scope.cancel()

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        session = await control.dial(
            "127.0.0.1", port, pair.bert, peer=pair.anna.node, certificate=pair.anna.certificate
        )
        async with running(session):
            await session.send(tree(7))
            assert await session.receive() == tree(7)
            with pytest.raises(PeerUnreachable, match="closed"):
                await session.receive()
    with pytest.raises(PeerUnreachable, match="does not answer"):
        await control.dial("127.0.0.1", port, pair.bert, peer=pair.anna.node, certificate=pair.anna.certificate)


async def test_what_was_sent_last_arrives_when_the_dialling_side_closes(pair: Pair) -> None:
    """Unread session tickets would make the client's kernel reset the connection and lose the tail."""
    large = Entries(entries=[bytes([n]) * 200_000 for n in range(8)])
    for _ in range(5):
        bert, anna = await sessions_over(pair, *await tcp_pair())
        async with running(bert, anna) as nursery:
            await anna.send(tree(1))  # never read by bert
            for _ in range(3):
                await bert.send(large)
            nursery.start_soon(bert.aclose)
            for _ in range(3):
                assert await anna.receive() == large
            with pytest.raises(PeerUnreachable, match="closed the session"):
                await anna.receive()


def test_tickets_are_off_and_tls_is_1_3(pair: Pair) -> None:
    context = control._context(ssl.PROTOCOL_TLS_SERVER, pair.anna, [])  # pyright: ignore[reportPrivateUsage]
    assert context.num_tickets == 0
    assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode == ssl.CERT_REQUIRED


# ---- strangers --------------------------------------------------------------------------------------------


async def outcome(
    pair: Pair,
    client: Identity,
    *,
    expects: Identity,
    server: Identity | None = None,
    trusted: dict[bytes, bytes] | None = None,
) -> tuple[BaseException | None, BaseException | None]:
    """Let `client` dial `server`, expecting `expects`; return what each side raised."""
    raised: list[BaseException | None] = [None, None]
    left, right = await tcp_pair()

    async def dialling() -> None:
        try:
            await control.connect(left, client, peer=expects.node, certificate=expects.certificate)
        except (PeerError, PeerUnreachable) as error:
            raised[0] = error

    async def answering() -> None:
        try:
            await control.serve(right, server or pair.anna, pair.trusted() if trusted is None else trusted)
        except (PeerError, PeerUnreachable) as error:
            raised[1] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialling)
        nursery.start_soon(answering)
    for stream in (left, right):
        await trio.aclose_forcefully(stream)
    return raised[0], raised[1]


async def test_members_meet(pair: Pair) -> None:
    assert await outcome(pair, pair.bert, expects=pair.anna) == (None, None)


async def test_a_stranger_is_refused_and_told_so(pair: Pair) -> None:
    dialling, answering = await outcome(pair, pair.eve, expects=pair.anna)
    assert isinstance(dialling, PeerError)
    assert dialling.cure == "tbshare pair"
    assert isinstance(answering, PeerError)


async def test_a_removed_member_is_refused(pair: Pair) -> None:
    dialling, answering = await outcome(pair, pair.bert, expects=pair.anna, trusted={})
    assert isinstance(dialling, PeerError)
    assert "removed" in str(dialling)
    assert isinstance(answering, PeerError)


async def test_a_machine_with_another_key_is_not_the_node(pair: Pair) -> None:
    dialling, answering = await outcome(
        pair, pair.bert, expects=pair.anna, server=pair.eve, trusted=pair.trusted()
    )
    assert isinstance(dialling, PeerError)
    assert "another machine" in str(dialling)
    assert isinstance(answering, PeerError)


async def test_another_member_is_not_the_node_either(pair: Pair) -> None:
    """The pinned certificate is compared, not only its chain: of two trusted nodes one is meant."""
    trusted = pair.trusted() | {pair.eve.node: pair.eve.certificate}
    assert await outcome(pair, pair.eve, expects=pair.anna, trusted=trusted) == (None, None)
    dialling, _ = await outcome(pair, pair.bert, expects=pair.eve, trusted=trusted)
    assert isinstance(dialling, PeerError)


async def test_the_pin_holds_when_the_chain_is_trusted_too(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = control._context  # pyright: ignore[reportPrivateUsage]
    everyone = [pair.anna.certificate, pair.bert.certificate, pair.eve.certificate]

    def trusting(side: int, own: Identity, _: object) -> ssl.SSLContext:
        return whole(side, own, everyone)

    monkeypatch.setattr(control, "_context", trusting)
    _, answering = await outcome(pair, pair.eve, expects=pair.anna)
    assert isinstance(answering, PeerError), "the answering side compares"
    trusted = {pair.eve.node: pair.eve.certificate}
    dialling, _ = await outcome(pair, pair.eve, expects=pair.bert, trusted=trusted)
    assert isinstance(dialling, PeerError), "and the dialling side does"
    assert "another machine" in str(dialling)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_stranger_learns_the_public_key_and_nothing_else(
    pair: Pair, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    left, right = await tcp_pair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = version
    stranger = trio.SSLStream(left, context)
    got = b""
    certificate: bytes | None = None

    async def answering() -> None:
        with pytest.raises(PeerError):
            await control.serve(right, pair.anna, pair.trusted())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answering)
        try:
            await stranger.do_handshake()
            certificate = cast("bytes | None", stranger.getpeercert(binary_form=True))
            while data := await stranger.receive_some():
                got += data
        except trio.BrokenResourceError:
            pass
    await trio.aclose_forcefully(stranger)
    assert got == b""
    assert certificate == (pair.anna.certificate if version is ssl.TLSVersion.TLSv1_3 else None)


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 2000, bytes(100)])
async def test_junk_instead_of_a_handshake(pair: Pair, junk: bytes) -> None:
    left, right = await tcp_pair()
    await left.send_all(junk)
    with trio.fail_after(3):
        with pytest.raises(PeerError):
            await control.serve(right, pair.anna, pair.trusted())
    await trio.aclose_forcefully(left)


async def test_a_slow_handshake_ends(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    left, right = trio.testing.memory_stream_pair()

    async def drip() -> None:
        with suppress(trio.BrokenResourceError):  # the other side closes
            for byte in b"\x16\x03\x01\x02\x00" + b"\x01" * 500:
                await left.send_all(bytes([byte]))
                await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        start = trio.current_time()
        with pytest.raises(PeerError, match="too long"):
            await control.serve(right, pair.anna, pair.trusted())
        assert trio.current_time() - start == pytest.approx(limits.HANDSHAKE_SECONDS)
        nursery.cancel_scope.cancel()


async def test_a_node_that_does_not_answer_the_handshake(
    pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    left, _right = trio.testing.memory_stream_pair()
    with pytest.raises(PeerUnreachable, match="too long"):
        await control.connect(left, pair.bert, peer=pair.anna.node, certificate=pair.anna.certificate)


async def test_one_unreadable_certificate_locks_nobody_out(pair: Pair) -> None:
    trusted = {b"x" * 32: b"junk"} | pair.trusted()
    assert await outcome(pair, pair.bert, expects=pair.anna, trusted=trusted) == (None, None)


# ---- members that misbehave -------------------------------------------------------------------------------


async def raw_peer(pair: Pair) -> tuple[trio.SSLStream[trio.SocketStream], ControlSession]:
    """Return a TLS stream on which a member can say anything, and the session it talks to."""
    left, right = await tcp_pair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(pair.bert.path)
    raw = trio.SSLStream(left, context)
    made: list[ControlSession] = []

    async def answering() -> None:
        made.append(await control.serve(right, pair.anna, pair.trusted()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answering)
        await raw.do_handshake()
    return raw, made[0]


@pytest.mark.parametrize(
    "junk",
    [
        struct.pack(">I", limits.ENVELOPE_BYTES_MAX + 1),
        b"\xff\xff\xff\xff",
        bytes(4),
        seal(b"\xc1 no message"),
        seal(b"\x91" * 100_000),
    ],
)
async def test_garbage_ends_the_session_as_the_peer_s_fault(pair: Pair, junk: bytes) -> None:
    raw, anna = await raw_peer(pair)
    async with running(anna):
        await raw.send_all(seal(encode(tree(1))) + junk)
        assert await anna.receive() == tree(1), "what came before counts"
        with pytest.raises(PeerError):
            await anna.receive()
        with pytest.raises(PeerError):
            await anna.send(tree(2))
    await trio.aclose_forcefully(raw)


async def test_a_peer_that_sends_too_much_is_stopped_not_stored(pair: Pair) -> None:
    raw, anna = await raw_peer(pair)
    message = Entries(entries=[bytes(900_000)])
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await raw.send_all(seal(encode(message)))
            sent += 1

    async with running(anna) as nursery:
        nursery.start_soon(flood)
        with trio.move_on_after(2):
            while True:
                before = sent
                await trio.sleep(0.3)
                if sent == before:
                    break
        assert anna._incoming_bytes < control.QUEUE_BYTES_MAX + 2**20  # pyright: ignore[reportPrivateUsage]
        stuck = sent
        assert stuck < 40, "the peer has to wait"
        for _ in range(10):
            assert await anna.receive() == message
        await trio.sleep(0.2)
        assert sent > stuck, "and goes on when somebody takes"
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(raw)


async def test_a_flood_of_pings_is_answered_by_few_pongs(pair: Pair) -> None:
    raw, anna = await raw_peer(pair)
    ping = seal(encode(Ping(number=1)))
    async with running(anna) as nursery:
        with trio.move_on_after(1):
            for _ in range(50):
                await raw.send_all(ping * 1000)
        assert anna._outgoing_bytes < 1000  # pyright: ignore[reportPrivateUsage]
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(raw)


async def test_heartbeats_keep_an_idle_session(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    bert, anna = await sessions_over(pair, *trio.testing.memory_stream_pair())
    async with running(bert, anna):
        await trio.sleep(600)
        await bert.send(tree(1))
        assert await anna.receive() == tree(1)
        assert bert.rtt_seconds < 0.01


async def test_a_silent_node_is_gone_after_three_seconds(
    pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    bert, anna = await sessions_over(pair, *trio.testing.memory_stream_pair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(anna.run)
        silenced = trio.CancelScope()

        async def until_silenced() -> None:
            with silenced:
                await bert._read()  # pyright: ignore[reportPrivateUsage]

        nursery.start_soon(until_silenced)  # reads and says nothing
        start = trio.current_time()
        with pytest.raises(PeerUnreachable, match="said nothing") as caught:
            await anna.receive()
        silent = trio.current_time() - start
        assert limits.NODE_GONE_SECONDS <= silent <= limits.NODE_GONE_SECONDS + 2 * limits.HEARTBEAT_SECONDS
        assert caught.value.cure
        nursery.cancel_scope.cancel()


async def test_a_message_that_drips_in_is_cut_off(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    bert, anna = await sessions_over(pair, *trio.testing.memory_stream_pair())
    stream = bert._stream  # pyright: ignore[reportPrivateUsage]

    async def drip() -> None:
        with suppress(trio.BrokenResourceError):  # the other side closes
            await stream.send_all(struct.pack(">I", 1000))
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.4)

    async with running(anna) as nursery:
        nursery.start_soon(drip)
        start = trio.current_time()
        with pytest.raises(PeerError, match="one message"):
            await anna.receive()
        assert trio.current_time() - start == pytest.approx(control.ENVELOPE_SECONDS, abs=1)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_send_harms_nothing(pair: Pair) -> None:
    raw, anna = await raw_peer(pair)
    large = Acknowledged(heads=[Head(node=b"n" * 32, incarnation=b"i" * 32, seq=1, hash=b"h" * 32)] * 10_000)
    async with running(anna):
        with trio.move_on_after(0.5) as scope:
            for _ in range(50):
                await anna.send(large)  # the peer reads nothing yet
        assert scope.cancelled_caught, "send waits"
        got = b""
        with trio.move_on_after(1):
            while True:
                got += await raw.receive_some()
    await trio.aclose_forcefully(raw)
    envelope = seal(encode(large))
    assert got.count(envelope) >= 3
    position = 0
    while position + 4 <= len(got):  # whole envelopes, one after another
        position += 4 + int.from_bytes(got[position : position + 4], "big")
    assert position >= len(got)


async def test_a_broken_connection_ends_both_sides(pair: Pair) -> None:
    left, right = await tcp_pair()
    bert, anna = await sessions_over(pair, left, right)
    async with running(bert, anna):
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left.socket.close()  # as kill -9 and a reset
        for session in (bert, anna):
            with trio.fail_after(5):
                with pytest.raises(PeerUnreachable):
                    await session.receive()


async def test_closing_twice_and_before_it_ran(pair: Pair) -> None:
    bert, anna = await sessions_over(pair, *await tcp_pair())
    await bert.aclose()
    await bert.aclose()
    with pytest.raises(PeerUnreachable):
        await bert.send(tree(1))
    async with running(anna):
        with pytest.raises(PeerUnreachable):
            await anna.receive()
        await anna.aclose()
