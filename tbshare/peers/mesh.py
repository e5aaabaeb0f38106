"""All control sessions of a node: dialling, greeting, keeping the logs equal, and handing messages on.

One session per pair of nodes. Both sides dial; when two sessions meet, the one that the node with the smaller
id dialled is kept. A message of a kind somebody registered for is handed to that handler, one at a time per peer.

Shared state, all in the trio thread: `peers` (node -> Peer). A Peer is in it from its Hello to its end.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from tbshare import __version__
from tbshare.errors import DiskFull, PeerError, PeerUnreachable, StoreUnusable
from tbshare.peers.exchange import Exchange, Said
from tbshare.peers.identity import Identity, short
from tbshare.transport import control
from tbshare.transport.control import ControlSession
from tbshare.volumes.entry import Entry
from tbshare.volumes.fold import State
from tbshare.volumes.log import Log
from tbshare.wire import limits
from tbshare.wire.message import (
    Acknowledged,
    AnyMessage,
    Entries,
    Hello,
    Introduce,
    Introduced,
    Keeps,
    Message,
    Vector,
)

_log = logging.getLogger("tbshare.peers.mesh")
REDIAL_SECONDS_MIN, REDIAL_SECONDS_MAX = 0.25, 5.0
STAGGER_SECONDS = 0.15  # between dialling one address of a peer and the next
GATHER_SECONDS = 0.005  # what is committed closer together goes in one message: the peer syncs once for it
SMALL_PART_ENTRIES = 256
ASK_AGAIN_SECONDS = 5.0
ACKNOWLEDGE_SECONDS = 0.25  # entries that come closer together are acknowledged together
ADDRESSES_MAX, ADDRESS_LETTERS_MAX = 32, 300
NODES_MAX = 256  # whose addresses are remembered
KEEPS_MAX = 200_000  # trees one peer may say it holds

Answer = TypeVar("Answer")
Handler = Callable[["Peer", AnyMessage], Awaitable[None]]


@dataclass(eq=False)
class Peer:
    """A connected node."""

    node: bytes
    hello: Hello
    session: ControlSession
    dialled: bool  # by us
    keeps: set[bytes] = field(default_factory=set[bytes])  # trees it holds whole
    due: trio.Event = field(default_factory=trio.Event)  # the log has something for it, perhaps

    async def send(self, message: AnyMessage) -> None:
        """Send a message; nothing happens when the session is over, whoever waits for an answer is told so."""
        try:
            await self.session.send(message)
        except (PeerUnreachable, PeerError):
            _log.debug("a message to %s was lost with its session", short(self.node))

    @property
    def lane_host(self) -> str:
        """Where lanes to this peer are dialled."""
        return self.session.remote_address

    @property
    def local_host(self) -> str:
        """Our end of the link."""
        return self.session.local_address


def split_address(address: str, default_port: int = limits.DEFAULT_PORT) -> tuple[str, int]:
    """Return host and port of `host`, `host:port` or `[v6]:port`."""
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        return host, int(rest[1:]) if _is_port(rest[1:]) else default_port
    host, colon, port = address.rpartition(":")
    if colon and _is_port(port) and ":" not in host:
        return host, int(port)
    return address, default_port


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < 65536


class Mesh:
    """The sessions of this node with the others of its cluster."""

    def __init__(
        self, identity: Identity, log: Log, *, name: Callable[[], str], hello: Callable[[], Hello]
    ) -> None:
        self.identity = identity
        self.log = log
        self.exchange = Exchange(log)
        self._exchanging = trio.Lock()
        self._grown: deque[Entry] = deque()  # committed here, by any thread
        self._token: trio.lowlevel.TrioToken | None = None
        self._to_acknowledge = trio.Event()
        self._to_look = trio.Event()
        log.on_commit.append(self._committed)
        self.name = name
        self._hello = hello
        self.peers: dict[bytes, Peer] = {}
        self.absent: set[bytes] = set()  # nodes that did not answer when they were last dialled
        self.addresses: dict[bytes, list[str]] = {}  # where nodes were last reached or said to be
        self.seen: dict[bytes, float] = {}  # node -> trio time of the last session's end
        self._handlers: dict[type[Message], Handler] = {}
        self._joined: list[Callable[[Peer], Awaitable[None]]] = []
        self._left: list[Callable[[Peer], Awaitable[None]]] = []
        self._state_changed: list[Callable[[State], Awaitable[None]]] = []
        self._nursery: trio.Nursery | None = None
        self._redial = trio.Event()
        self._greeting: set[bytes] = set()  # dialled, and not yet a peer
        self.keeps_here: Callable[[], Iterable[bytes]] = lambda: ()
        self.keeps_grown: Callable[[Iterable[bytes]], None] = lambda _: None
        self.addresses_changed: Callable[[], None] = lambda: None

    # registration ----------------------------------------------------------------------------------------------

    def on(self, kind: type[Message], handler: Handler) -> None:
        """Hand every message of this kind to `handler`."""
        assert kind not in self._handlers
        self._handlers[kind] = handler

    def on_joined(self, call: Callable[[Peer], Awaitable[None]]) -> None:
        """Call when a peer has connected."""
        self._joined.append(call)

    def on_left(self, call: Callable[[Peer], Awaitable[None]]) -> None:
        """Call when a peer's session has ended."""
        self._left.append(call)

    def on_state(self, call: Callable[[State], Awaitable[None]]) -> None:
        """Call when the log has grown, with the new state."""
        self._state_changed.append(call)

    # the log ---------------------------------------------------------------------------------------------------

    async def state(self) -> State:
        """Return the fold of the log."""
        return await trio.to_thread.run_sync(self.log.state)

    async def grown(self, _entries: Iterable[Entry]) -> None:
        """Tell everybody of entries just committed, and ourselves of the new state, now and not a moment later."""
        await self._spread()

    def _committed(self, arrived: Sequence[tuple[int, Entry]]) -> None:
        """Hear of entries as they are committed, in any thread."""
        self._grown.extend([entry for _, entry in arrived])
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._to_look.set, idempotent=True)

    async def _spread_grown(self) -> None:
        """Send on whatever is committed here."""
        while True:
            await self._to_look.wait()
            self._to_look = trio.Event()
            if self._grown:
                await self._spread()

    async def _spread(self) -> None:
        grown = [self._grown.popleft() for _ in range(len(self._grown))]
        self.exchange.noted(grown)
        for peer in self.peers.values():
            peer.due.set()
        self._to_acknowledge.set()
        if self.exchange.concerned:
            self.exchange.concerned = False
            await self._tell_state()

    async def _feed(self, peer: Peer) -> None:
        """Send a peer what it lacks, for as long as the session stands."""
        while True:
            await peer.due.wait()
            peer.due = trio.Event()
            try:
                while (part := await self._due(peer)) is not None:
                    await peer.send(part)
                    if len(part.entries) < SMALL_PART_ENTRIES:
                        await trio.sleep(GATHER_SECONDS)
            except (StoreUnusable, OSError) as error:
                _log.warning("entries for %s could not be read: %s", peer.hello.name, error)

    async def _due(self, peer: Peer) -> Entries | None:
        async with self._exchanging:
            if self.peers.get(peer.node) is not peer:
                return None  # a newer session with it stands: what is due, is due there
            return await trio.to_thread.run_sync(self.exchange.due, peer.node)

    async def _acknowledge(self) -> None:
        """Say how far the log here is: at once when it concerns the cluster, else now and then."""
        while True:
            await self._to_acknowledge.wait()
            self._to_acknowledge = trio.Event()
            if not self.exchange.urgent:
                with trio.move_on_after(ACKNOWLEDGE_SECONDS):
                    while not self.exchange.urgent:
                        await self._to_acknowledge.wait()
                        self._to_acknowledge = trio.Event()
            await self._say(await self._exchanged(self.exchange.acknowledgements))

    async def _ask_again(self) -> None:
        """Ask for what could not be stored: there may be room meanwhile."""
        while True:
            await trio.sleep(ASK_AGAIN_SECONDS)
            await self._say(await self._exchanged(self.exchange.again))

    async def _exchanged(self, call: Callable[..., Answer], *arguments: object) -> Answer:
        """Call into the exchange, in a thread, one at a time."""
        async with self._exchanging:
            return await trio.to_thread.run_sync(call, *arguments)

    async def _say(self, said: Said) -> None:
        for node, message in said:
            if node in self.peers:
                await self.peers[node].send(message)

    async def _tell_state(self) -> None:
        state = await self.state()
        trusted = await trio.to_thread.run_sync(self.log.trusted)
        for peer in list(self.peers.values()):
            if peer.node not in trusted:
                _log.info("%s is no longer a member", peer.hello.name)
                await peer.session.aclose()
        for call in self._state_changed:
            await call(state)
        self._redial.set()

    async def _on_log(self, peer: Peer, message: Vector | Entries | Acknowledged) -> None:
        try:
            await self._say(await self._exchanged(self.exchange.take, peer.node, message))
        except (DiskFull, StoreUnusable, OSError) as error:
            _log.warning("what %s said of its log could not be taken: %s", peer.hello.name, error)
        peer.due.set()
        if isinstance(message, Entries):
            await self._spread()

    # sessions --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Dial members that are not connected, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._token = trio.lowlevel.current_trio_token()
            nursery.start_soon(self._spread_grown)
            nursery.start_soon(self._acknowledge)
            nursery.start_soon(self._ask_again)
            dialling: set[bytes] = set()

            async def keep_dialling(node: bytes) -> None:
                pause = REDIAL_SECONDS_MIN
                try:
                    while node in await trio.to_thread.run_sync(self.log.trusted):
                        connected = node in self.peers or node in self._greeting
                        if not connected and self.addresses.get(node):
                            if await self._dial(node):
                                pause = REDIAL_SECONDS_MIN
                            else:
                                self.absent.add(node)
                                pause = min(pause * 2, REDIAL_SECONDS_MAX)
                        with trio.move_on_after(pause):
                            await self._redial.wait()
                            pause = REDIAL_SECONDS_MIN
                finally:
                    dialling.discard(node)

            while True:
                for node in await trio.to_thread.run_sync(self.log.trusted):
                    if node not in dialling:
                        dialling.add(node)
                        nursery.start_soon(keep_dialling, node)
                self._redial = trio.Event()
                await self._redial.wait()

    async def _dial(self, node: bytes) -> bool:
        """Try all addresses of a node, each a little after the one before; keep the first session that stands."""
        trusted = await trio.to_thread.run_sync(self.log.trusted)
        certificate = trusted.get(node)
        if certificate is None:
            return False
        won: list[ControlSession] = []

        async def attempt(address: str, delay: float) -> None:
            await trio.sleep(delay)
            try:
                host, port = split_address(address)
                session = await control.dial(host, port, self.identity, peer=node, certificate=certificate)
            except (PeerError, PeerUnreachable, OSError, ValueError, OverflowError) as error:
                _log.debug("no session with %s at %s: %s", short(node), address, error)
                return
            won.append(session)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for number, address in enumerate(self.addresses.get(node, [])[:ADDRESSES_MAX]):
                nursery.start_soon(attempt, address, number * STAGGER_SECONDS)
        for session in won[1:]:
            await session.aclose()
        if won and self._nursery is not None:
            self._greeting.add(node)
            self._nursery.start_soon(self._run_session, won[0], True)
        return bool(won)

    async def accept(self, stream: trio.SocketStream, admitted: Callable[[], None]) -> None:
        """Serve an incoming control connection to its end."""
        trusted = await trio.to_thread.run_sync(self.log.trusted)
        try:
            session = await control.serve(stream, self.identity, trusted)
        except (PeerError, PeerUnreachable) as error:
            _log.info("a stranger's connection was closed: %s", error)
            return
        admitted()
        await self._run_session(session, False)

    async def _run_session(self, session: ControlSession, dialled: bool) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            try:
                await self._greet_and_serve(session, dialled, nursery)
            except (PeerError, PeerUnreachable) as error:
                _log.info("the session with %s ended: %s", short(session.node), error)
            except Exception:  # noqa: BLE001 - a session that meets a bug of ours ends alone
                _log.exception("the session with %s ended by an error here", short(session.node))
            finally:
                self._greeting.discard(session.node)
                with trio.move_on_after(2, shield=True):
                    await session.aclose()
                nursery.cancel_scope.cancel()

    async def _greet_and_serve(self, session: ControlSession, dialled: bool, nursery: trio.Nursery) -> None:
        await session.send(self._hello())
        hello: AnyMessage | None = None
        with trio.move_on_after(limits.HANDSHAKE_SECONDS):
            hello = await session.receive()
        if not isinstance(hello, Hello) or hello.node != session.node:
            raise PeerError("the first message was not a greeting")
        if hello.level < limits.LEVEL_OLDEST:
            raise PeerError(
                f"{hello.name} speaks level {hello.level}, this node {limits.LEVEL}: upgrade tbshare there"
            )
        peer = Peer(session.node, hello, session, dialled)
        if not await self._admit(peer):
            return
        try:
            await self._start(peer)
            nursery.start_soon(self._feed, peer)
            while True:
                await self._handle(peer, await session.receive())
        finally:
            if self.peers.get(peer.node) is peer:
                del self.peers[peer.node]
                self.exchange.left(peer.node)
                self.seen[peer.node] = trio.current_time()
                with trio.CancelScope(shield=True):
                    for call in self._left:
                        await call(peer)
                self._redial.set()

    async def _admit(self, peer: Peer) -> bool:
        """Take the peer in unless a better session with it stands."""
        standing = self.peers.get(peer.node)
        if standing is not None:
            smaller_dialled = peer.dialled == (self.identity.node < peer.node)
            if not smaller_dialled:
                return False
        self.absent.discard(peer.node)
        self.peers[peer.node] = peer  # before anything is awaited: a third session must find it
        self._greeting.discard(peer.node)
        if standing is not None:
            for call in self._left:
                await call(standing)
            await standing.session.aclose()
        return self.peers.get(peer.node) is peer

    async def _start(self, peer: Peer) -> None:
        host = peer.lane_host
        observed = f"[{host}]:{peer.hello.listen_port}" if ":" in host else f"{host}:{peer.hello.listen_port}"
        self.learn(peer.node, [observed, *peer.hello.addresses])
        _log.info("connected with %s (%s) at %s, %s", peer.hello.name, short(peer.node), host, __version__)
        for message in await self._exchanged(self.exchange.joined, peer.node):
            await peer.send(message)
        known = [Introduced(node, where) for node, where in self.addresses.items() if node != peer.node]
        await peer.send(Introduce(known))
        for other in list(self.peers.values()):
            if other is not peer:
                await other.send(Introduce([Introduced(peer.node, self.addresses[peer.node])]))
        await peer.send(Keeps(list(self.keeps_here())))
        for call in self._joined:
            await call(peer)

    def learn(self, node: bytes, addresses: Iterable[str]) -> None:
        """Remember where a node can be dialled, the surest first."""
        given = (text for text in addresses if len(text) <= ADDRESS_LETTERS_MAX)
        merged = list(dict.fromkeys([*given, *self.addresses.get(node, [])]))[:ADDRESSES_MAX]
        if len(self.addresses) >= NODES_MAX and node not in self.addresses:
            return
        if merged != self.addresses.get(node) and node != self.identity.node:
            self.addresses[node] = merged
            self.addresses_changed()
            self._redial.set()

    async def _handle(self, peer: Peer, message: AnyMessage) -> None:
        match message:
            case Vector() | Entries() | Acknowledged():
                await self._on_log(peer, message)
            case Introduce():
                trusted = await trio.to_thread.run_sync(self.log.trusted)
                for known in message.nodes[:NODES_MAX]:
                    if known.node in trusted:
                        self.learn(known.node, [*self.addresses.get(known.node, []), *known.addresses])
            case Keeps():
                peer.keeps |= set(message.trees)
                peer.keeps -= set(message.gone)
                if len(peer.keeps) > KEEPS_MAX:
                    raise PeerError(f"{peer.hello.name} says it keeps more than {KEEPS_MAX} trees")
                self.keeps_grown(message.trees)
            case _:
                handler = self._handlers.get(type(message))
                if handler is None:
                    raise PeerError(f"{type(message).__name__} is not expected here")
                await handler(peer, message)

    async def announce_keeps(self, trees: list[bytes], gone: list[bytes]) -> None:
        """Tell everybody of trees that are whole here now, or no longer."""
        for peer in list(self.peers.values()):
            await peer.send(Keeps(trees, gone))
