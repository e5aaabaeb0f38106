"""The control session: TLS 1.3 between two nodes that know each other's certificate, and messages on it.

Both sides trust exactly the certificates they are given, and after the handshake compare the peer's, byte for
byte, with the one that belongs to the node. Whoever has none of them sees our certificate, that is our public
key, and then the end. There is no resumption and no session ticket: each session is checked anew, and a client
that closes has nothing unread, which would make the kernel reset the connection and lose what was sent last.

Shared state and invariants of a session:
- `run` owns three tasks: the reader, the writer and the heartbeat. Only the writer touches the sending half, so a
  cancelled `send` never leaves half a TLS record behind.
- What is queued is bounded both ways: `send` waits above QUEUE_BYTES_MAX, and the reader stops reading, which
  stops the peer. Heartbeats pass both queues; one Pong at most waits, so a peer that only pings fills nothing.
- `_error` is set once; from then on `send` raises it, and `receive` when the messages read before are taken.
"""

import ssl
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, Protocol, cast

import trio

from tbshare.errors import PeerError, PeerUnreachable, TbshareError
from tbshare.wire import limits
from tbshare.wire.envelope import Opener, seal
from tbshare.wire.message import AnyMessage, Ping, Pong, decode, encode

QUEUE_BYTES_MAX: Final = 2 * limits.ENVELOPE_BYTES_MAX  # each way, beyond the message in hand
WRITE_BYTES: Final = 256 * 1024  # one write: small enough that a stall shows
READ_BYTES: Final = 64 * 1024
STALL_SECONDS: Final = 10.0  # for one write; a peer that reads nothing is as good as gone
ENVELOPE_SECONDS: Final = 30.0  # for one message from its first byte to its last
CLOSE_SECONDS: Final = 1.0


class Credentials(Protocol):
    """What TLS needs of us (peers.identity.Identity is one)."""

    @property
    def path(self) -> Path:
        """PEM file with the private key and the certificate."""
        ...

    @property
    def certificate(self) -> bytes:
        """Our certificate, DER."""
        ...


class _Gentle(trio.abc.HalfCloseableStream):
    """A stream whose close says goodbye and reads to the end, so that the peer gets what was sent last."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._stream = stream

    @property
    def socket(self) -> trio.socket.SocketType | None:
        """The TCP socket below, if there is one."""
        return self._stream.socket if isinstance(self._stream, trio.SocketStream) else None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        try:
            with trio.move_on_after(CLOSE_SECONDS):
                await self._stream.send_eof()
                while await self._stream.receive_some(READ_BYTES):
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer was quicker
        finally:
            await trio.aclose_forcefully(self._stream)


def _context(side: int, own: Credentials, trusted: Collection[bytes]) -> ssl.SSLContext:
    """Return a context that knows our key and trusts exactly these certificates."""
    context = ssl.SSLContext(side)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a node is known by its key; it has no name
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(own.path)
    for certificate in trusted:
        try:
            context.load_verify_locations(cadata=certificate)
        except ssl.SSLError:
            continue  # one unreadable certificate in the member list must not lock out the other members
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


class ControlSession:
    """One control session. `run` must run in a nursery of the caller's; it returns when the session is over.

    `send` and `receive` raise PeerUnreachable (closed, silent) or PeerError (broke the protocol).
    """

    def __init__(self, stream: trio.SSLStream[trio.abc.HalfCloseableStream], *, node: bytes) -> None:
        """Use `dial`, `connect` or `serve`."""
        self.node = node  # the peer's id
        self.rtt_seconds = float("inf")  # of the last answered ping
        self.certificate = _peer_certificate(stream)  # DER
        self.local_address, self.remote_address = _addresses(stream)  # IP addresses; empty when not over TCP
        self._stream = stream
        self._opener = Opener()
        self._incoming: deque[tuple[AnyMessage, int]] = deque()
        self._incoming_bytes = 0
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._pong: Pong | None = None
        self._writing = False
        self._changed = trio.Condition()
        self._error: TbshareError | None = None
        self._closing = False
        self._over = trio.Event()
        self._scope = trio.CancelScope()
        self._started = False
        self._pings: dict[int, float] = {}
        self._ping_number = 0
        self._heard = trio.current_time()
        self._reading_stopped = False

    # ---- for the user of a session --------------------------------------------------------------------

    async def send(self, message: AnyMessage) -> None:
        """Queue a message; waits while much is queued. A cancelled send either queued it or did not."""
        envelope = seal(encode(message))
        async with self._changed:
            while self._outgoing_bytes > QUEUE_BYTES_MAX and not self._ended():
                await self._changed.wait()
            self._raise_if_ended()
            self._outgoing.append(envelope)
            self._outgoing_bytes += len(envelope)
            self._changed.notify_all()

    async def receive(self) -> AnyMessage:
        """Return the next message that is not a heartbeat."""
        async with self._changed:
            while not self._incoming:
                self._raise_if_ended()
                await self._changed.wait()
            message, size = self._incoming.popleft()
            self._incoming_bytes -= size
            self._changed.notify_all()
            return message

    async def aclose(self) -> None:
        """Send what is queued, say goodbye, close; bounded in time. `run` returns after it."""
        self._closing = True
        if not self._started:
            await self._shut(PeerUnreachable("the session is closed"))
            self._over.set()
            return
        with trio.move_on_after(CLOSE_SECONDS):
            async with self._changed:
                self._changed.notify_all()
                while (self._outgoing or self._pong or self._writing) and not self._error:
                    await self._changed.wait()
        self._scope.cancel()
        await self._over.wait()

    def _ended(self) -> bool:
        return self._closing or self._error is not None

    def _raise_if_ended(self) -> None:
        if self._error is not None:
            raise type(self._error)(str(self._error), cure=self._error.cure)
        if self._closing:
            raise PeerUnreachable("the session is closed")

    # ---- the first word: shows each side that the other has accepted its certificate ---------------------

    async def say_first(self) -> None:
        """As the answering side: send the first Ping. In TLS 1.3 the client would not know else."""
        self._pings[0] = trio.current_time()
        await self._stream.send_all(seal(encode(Ping(number=0))))

    async def hear_first(self) -> None:
        """As the dialling side: wait for the first Ping; PeerError when something else comes."""
        while (payload := self._opener.take()) is None:
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                raise trio.BrokenResourceError("closed")
            self._opener.feed(data)
        first = decode(payload)
        if not isinstance(first, Ping):
            raise PeerError(f"the peer began with {type(first).__name__}, not with Ping")
        self._pong = Pong(number=first.number)

    # ---- the tasks ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read, write and keep the heartbeat until the session ends; never raises for the peer's faults."""
        assert not self._started, "a session runs once"
        self._started = True
        self._heard = trio.current_time()
        error: TbshareError = PeerUnreachable("the session is closed")
        try:
            with self._scope:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._read)
                        nursery.start_soon(self._write)
                        nursery.start_soon(self._beat)
                except* TbshareError as group:
                    error = _first(group)
        finally:
            await self._shut(error)
            self._over.set()

    async def _shut(self, error: TbshareError) -> None:
        """Record what ended the session and close the stream, whatever is being cancelled around us."""
        if self._error is None:
            self._error = error
        with trio.CancelScope(shield=True):
            async with self._changed:
                self._outgoing.clear()
                self._pong = None
                self._changed.notify_all()
            with trio.move_on_after(2 * CLOSE_SECONDS):
                try:
                    await self._stream.aclose()
                except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                    await trio.aclose_forcefully(self._stream.transport_stream)

    async def _read(self) -> None:
        began: float | None = None  # when the first byte of a message that is not whole came
        while True:
            payload = self._opener.take()
            if payload is not None:
                began = None
                await self._take(payload)
                await self._wait_for_room()
                continue
            if not self._opener.pending_bytes:
                began = None
            elif began is None:
                began = trio.current_time()
            deadline = float("inf") if began is None else began + ENVELOPE_SECONDS
            with trio.CancelScope(deadline=deadline) as scope:
                await self._read_some()
            if scope.cancelled_caught:
                raise PeerError(f"the peer took more than {ENVELOPE_SECONDS:.0f} s for one message")

    async def _read_some(self) -> None:
        try:
            data = await self._stream.receive_some(READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerUnreachable("the connection to the peer broke", cure="tbshare node ls") from error
        if not data:
            raise PeerUnreachable("the peer closed the session", cure="tbshare status")
        self._heard = trio.current_time()
        self._opener.feed(data)

    async def _wait_for_room(self) -> None:
        """Wait until the user took messages; the peer is not to blame for what it cannot send meanwhile."""
        async with self._changed:
            if self._incoming_bytes <= QUEUE_BYTES_MAX:
                return
            self._reading_stopped = True
            while self._incoming_bytes > QUEUE_BYTES_MAX:
                await self._changed.wait()
            self._reading_stopped = False
            self._heard = trio.current_time()

    async def _take(self, payload: bytes) -> None:
        message = decode(payload)
        match message:
            case Ping():
                async with self._changed:
                    self._pong = Pong(number=message.number)
                    self._changed.notify_all()
            case Pong():
                sent = self._pings.pop(message.number, None)
                if sent is not None:
                    self.rtt_seconds = max(trio.current_time() - sent, 0.0)
            case _:
                async with self._changed:
                    self._incoming.append((message, len(payload)))
                    self._incoming_bytes += len(payload)
                    self._changed.notify_all()

    async def _write(self) -> None:
        while True:
            data = await self._next_write()
            view = memoryview(data)
            for start in range(0, len(view), WRITE_BYTES):
                with trio.move_on_after(STALL_SECONDS) as scope:
                    try:
                        await self._stream.send_all(view[start : start + WRITE_BYTES])
                    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                        raise PeerUnreachable("the connection to the peer broke") from error
                if scope.cancelled_caught:
                    raise PeerUnreachable(f"the peer took nothing for {STALL_SECONDS:.0f} s")
            self._writing = False

    async def _next_write(self) -> bytes:
        """Wait for something to send and return all of it, up to about WRITE_BYTES, a Pong first."""
        async with self._changed:
            self._changed.notify_all()  # `aclose` waits for the last write
            while not self._outgoing and self._pong is None:
                await self._changed.wait()
            parts: list[bytes] = []
            if self._pong is not None:
                parts.append(seal(encode(self._pong)))
                self._pong = None
            size = 0
            while self._outgoing and size < WRITE_BYTES:
                parts.append(self._outgoing.popleft())
                size += len(parts[-1])
            self._outgoing_bytes -= size
            self._writing = True
            self._changed.notify_all()
            return b"".join(parts)

    async def _beat(self) -> None:
        while True:
            now = trio.current_time()
            silent = now - self._heard
            if silent > limits.NODE_GONE_SECONDS and not self._reading_stopped:
                raise PeerUnreachable(
                    f"node {self.node[:4].hex()} has said nothing for {silent:.1f} s", cure="tbshare node ls"
                )
            self._ping_number += 1
            self._pings = {number: sent for number, sent in self._pings.items() if now - sent < 60}
            self._pings[self._ping_number] = now
            ping = seal(encode(Ping(number=self._ping_number)))
            async with self._changed:
                if self._outgoing_bytes <= QUEUE_BYTES_MAX:  # else there is enough under way to be heard by
                    self._outgoing.appendleft(ping)
                    self._outgoing_bytes += len(ping)
                    self._changed.notify_all()
            await trio.sleep(limits.HEARTBEAT_SECONDS)


def _first(group: BaseExceptionGroup[TbshareError]) -> TbshareError:
    """Return what ended the session: a broken protocol before a broken connection."""
    leaves = [_first(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    return min(leaves, key=lambda error: not isinstance(error, PeerError))


def _peer_certificate(stream: trio.SSLStream[trio.abc.HalfCloseableStream]) -> bytes:
    return cast("bytes | None", stream.getpeercert(binary_form=True)) or b""


def _addresses(stream: trio.SSLStream[trio.abc.HalfCloseableStream]) -> tuple[str, str]:
    gentle = stream.transport_stream
    socket = gentle.socket if isinstance(gentle, _Gentle) else None
    if socket is None:
        return "", ""
    try:
        return str(socket.getsockname()[0]), str(socket.getpeername()[0])
    except OSError:
        return "", ""


async def dial(host: str, port: int, own: Credentials, *, peer: bytes, certificate: bytes) -> ControlSession:
    """Connect to the node `peer` at an address; PeerUnreachable, or PeerError when it is another or refuses us."""
    name = peer[:4].hex()
    try:
        with trio.fail_after(limits.HANDSHAKE_SECONDS):
            stream = await trio.open_tcp_stream(host, port)
    except (OSError, trio.TooSlowError) as error:
        raise PeerUnreachable(
            f"node {name} does not answer at {host}:{port}", cure="tbshare up (there), or tbshare node ls"
        ) from error
    return await connect(stream, own, peer=peer, certificate=certificate)


async def connect(
    stream: trio.abc.HalfCloseableStream, own: Credentials, *, peer: bytes, certificate: bytes
) -> ControlSession:
    """Make a session as the dialling side over a connected stream, which is closed when that fails."""
    name = peer[:4].hex()
    secured = _secured(stream, _context(ssl.PROTOCOL_TLS_CLIENT, own, [certificate]), server_side=False)
    met = False
    try:
        with trio.fail_after(limits.HANDSHAKE_SECONDS):
            await secured.do_handshake()
            if _peer_certificate(secured) != certificate:
                raise PeerError(f"another machine than node {name} answers there", cure="tbshare node ls")
            met = True
            session = ControlSession(secured, node=peer)
            await session.hear_first()
            return session
    except BaseException as error:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
        told = _told(error, name, met)
        if told is None:
            raise
        raise told from error


def _told(error: BaseException, name: str, met: bool) -> TbshareError | None:
    """Return what the user is told when a session could not be made; `met`: the peer showed the right key.

    None when the error says it itself.
    """
    if isinstance(error, trio.TooSlowError):
        return PeerUnreachable(f"node {name} took too long to answer", cure="tbshare node ls")
    if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
        if met:
            return PeerError(
                f"node {name} does not accept this node: it was removed there, or never paired",
                cure="tbshare pair",
            )
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            return PeerError(f"another machine than node {name} answers there", cure="tbshare node ls")
        return PeerUnreachable(f"node {name} broke off the handshake", cure="tbshare status")
    return None


async def serve(
    stream: trio.abc.HalfCloseableStream, own: Credentials, trusted: Mapping[bytes, bytes]
) -> ControlSession:
    """Make a session as the answering side; `trusted` is node id -> certificate (DER).

    PeerError for strangers and for whoever is slow; the stream is closed then.
    """
    secured = _secured(stream, _context(ssl.PROTOCOL_TLS_SERVER, own, trusted.values()), server_side=True)
    try:
        with trio.fail_after(limits.HANDSHAKE_SECONDS):
            await secured.do_handshake()
            shown = _peer_certificate(secured)
            nodes = [node for node, certificate in trusted.items() if certificate == shown]
            if len(nodes) != 1 or not shown:
                raise PeerError("a machine that is not in the cluster asked for a session")
            session = ControlSession(secured, node=nodes[0])
            await session.say_first()
            return session
    except BaseException as error:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
        if isinstance(error, trio.TooSlowError):
            raise PeerError("a machine took too long over the TLS handshake") from error
        if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
            raise PeerError("a machine that is not in the cluster asked for a session") from error
        raise


def _secured(
    stream: trio.abc.HalfCloseableStream, context: ssl.SSLContext, *, server_side: bool
) -> trio.SSLStream[trio.abc.HalfCloseableStream]:
    return trio.SSLStream(_Gentle(stream), context, server_side=server_side)
