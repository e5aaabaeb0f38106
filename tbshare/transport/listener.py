"""One TCP port for everything: the first bytes say what a connection is.

A connection is a stranger's until its handler says `admitted()`: it has `limits.HANDSHAKE_SECONDS` for all of
that, and there are at most `limits.STRANGERS_MAX` at once, half of them from one address, so that one machine
which opens connections and says nothing keeps no member out. What fits no kind is closed at once, without a
word.
"""

import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import Final, cast

import trio

from tbshare.errors import TbshareError, UsageError
from tbshare.wire import limits

STRANGERS_PER_ADDRESS_MAX: Final = limits.STRANGERS_MAX // 2
BACKLOG: Final = 128
_POLL_SECONDS: Final = (
    0.02  # between looks at a first word that is not whole; such a sender is rare and slow anyway
)

_logger = logging.getLogger(__name__)


class Kind(Enum):
    """What a connection is, by its first bytes."""

    CONTROL = b"\x16"  # a TLS record
    LANE = b"TBLANE1\n"
    PAIRING = b"TBPAIR1\n"


# Called with the raw stream (nothing consumed) and with `admitted`, to be called once it is known who that is.
Handler = Callable[[trio.SocketStream, Callable[[], None]], Awaitable[None]]

_WORD_BYTES: Final = max(len(kind.value) for kind in Kind)


def kind_of(start: bytes) -> Kind | None:
    """Return what a connection that starts with these bytes is; None while it could still be several.

    ValueError when it is nothing we know.
    """
    for kind in Kind:
        if start.startswith(kind.value):
            return kind
    if not any(kind.value.startswith(start) for kind in Kind):
        raise ValueError("unknown first bytes")
    return None


class _Port:
    """The strangers of one port, and what to do with connections."""

    def __init__(self, handlers: Mapping[Kind, Handler]) -> None:
        self._handlers = handlers
        self._strangers: Counter[str] = Counter()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Take one connection to its end. What a stranger does wrong ends that connection only."""
        address = _address_of(stream)
        full = self._strangers.total() >= limits.STRANGERS_MAX
        if full or self._strangers[address] >= STRANGERS_PER_ADDRESS_MAX:
            await trio.aclose_forcefully(stream)
            return
        self._strangers[address] += 1
        released = False

        def admitted() -> None:
            nonlocal released
            scope.deadline = float("inf")
            if not released:
                released = True
                self._strangers[address] -= 1
                self._strangers += Counter()  # forgets addresses at zero

        with trio.CancelScope(deadline=trio.current_time() + limits.HANDSHAKE_SECONDS) as scope:
            try:
                await self._hand_over(stream, admitted)
            except* (TbshareError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as group:
                for error in _leaves(group):
                    _logger.info("connection from %s ended: %s", address, error)
            except* Exception:
                _logger.exception("the connection from %s failed", address)
            finally:
                admitted()
                await trio.aclose_forcefully(stream)

    async def _hand_over(self, stream: trio.SocketStream, admitted: Callable[[], None]) -> None:
        kind = await _look(stream)
        handler = self._handlers.get(kind) if kind else None
        if handler is not None:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await handler(stream, admitted)


def _leaves(group: BaseExceptionGroup[Exception]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _address_of(stream: trio.SocketStream) -> str:
    try:
        return str(cast("tuple[object, ...]", stream.socket.getpeername())[0])
    except OSError:
        return "gone"


async def _look(stream: trio.SocketStream) -> Kind | None:
    """Return the kind of a connection, its bytes left where they are; None when it is none of ours."""
    while True:
        start = await stream.socket.recv(_WORD_BYTES, socket.MSG_PEEK)
        if not start:
            return None
        try:
            kind = kind_of(start)
        except ValueError:
            return None
        if kind is not None:
            return kind
        await trio.sleep(_POLL_SECONDS)


async def listen(
    port: int,
    handlers: Mapping[Kind, Handler],
    *,
    host: str | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the port for ever; started with the port that was bound (port 0 chooses one).

    `host` None means every address, IPv4 and IPv6. UsageError when the port cannot be had.
    """
    try:
        listeners = await _open(port, host)
    except OSError as error:
        raise UsageError(
            f"port {port} cannot be used: {error.strerror or error}",
            cure="stop what uses it, or: tbshare config set port NUMBER",
        ) from error
    served = _Port(handlers)
    async with trio.open_nursery() as nursery:
        bound = cast("tuple[str, int]", listeners[0].socket.getsockname())[1]
        await nursery.start(trio.serve_listeners, served.serve, listeners)
        task_status.started(bound)


async def _open(port: int, host: str | None) -> Sequence[trio.SocketListener]:
    if host is not None or port != 0:
        return await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    # With port 0 each address family would get another port: let one choose and the other follow.
    first = (await trio.open_tcp_listeners(0, host="0.0.0.0", backlog=BACKLOG))[0]
    chosen = cast("tuple[str, int]", first.socket.getsockname())[1]
    try:
        return [first, *await trio.open_tcp_listeners(chosen, host="::", backlog=BACKLOG)]
    except OSError:
        return [first]  # no IPv6 here, or that port is taken there
