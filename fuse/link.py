"""A mount's connection to the daemon: many calls at once, and it outlives the daemon.

    link = Link(home)
    nursery.start_soon(link.run)
    listing = await link.call("mount_list", MountListParams(volume, path), MountListing)

A call waits while no daemon answers, and is sent again when the connection ends under it; `resent` tells those
whom a second time would surprise. Errors of the daemon are raised as what they were there.
"""

import logging
import os
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
import trio

from tbshare import __version__
from tbshare.client import raised, socket_path
from tbshare.errors import DaemonUnreachable, PeerError, TbshareError, UsageError
from tbshare.wire import local
from tbshare.wire.envelope import Opener, seal
from tbshare.wire.limits import ENVELOPE_BYTES_MAX
from tbshare.wire.parts import Params, Result
from tbshare.wire.report import AnyEvent, HelloReport

CALLS_AT_ONCE: Final = 30  # a daemon takes 32 of one connection, and attach lasts
RECEIVE_BYTES: Final = 1 << 18
HELLO_SECONDS: Final = 10.0
AGAIN_SECONDS: Final = (0.02, 0.05, 0.1, 0.2, 0.5)  # until the next try to connect; then always the last

_R = TypeVar("_R", bound=Result)
OnEvent = Callable[[AnyEvent], None]

_log = logging.getLogger(__name__)
_encoder = msgspec.msgpack.Encoder()
_answers: msgspec.msgpack.Decoder[local.Answer] = msgspec.msgpack.Decoder(local.Answer)


class _Lost(Exception):  # noqa: N818  (not an error: the call is made again)
    """The connection ended before the answer came."""


class _Call:
    """One call that waits for its answer."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self.on_event = on_event
        self.ended = trio.Event()
        self.parts = bytearray()
        self.result: bytes | None = None
        self.error: Exception | None = None

    def take(self, answer: local.Answer) -> bool:
        """Take an answer; say whether it was the last."""
        if answer.error is not None:
            self.error = raised(answer.error)
        elif answer.part:
            self.parts += answer.part
            return False
        elif answer.event is not None:
            if self.on_event is not None:
                self.on_event(answer.event)
            return False
        else:
            self.result = bytes(answer.result or self.parts)
        self.ended.set()
        return True

    def lose(self) -> None:
        """Let whoever waits know that no answer comes."""
        self.error = _Lost()
        self.ended.set()


class _Connection:
    """One connection, from hello to its end."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._sending = trio.Lock()
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self.lost = False

    async def call(self, method: str, params: Params, on_event: OnEvent | None) -> bytes:
        """Send a request and return the encoded result; _Lost when the connection ends first."""
        self._number += 1
        number = self._number
        request = local.Request(number, method, msgspec.Raw(_encoder.encode(params)))
        data = _encoder.encode(request)
        if len(data) > ENVELOPE_BYTES_MAX:
            raise UsageError(f"what {method} is asked for is too long: {len(data)} bytes")
        call = _Call(on_event)
        if self.lost:
            raise _Lost
        self._calls[number] = call
        try:
            with trio.CancelScope(shield=True):  # half an envelope would end the connection for everybody
                async with self._sending:
                    await self._stream.send_all(seal(data))
            await call.ended.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _Lost from error
        finally:
            self._calls.pop(number, None)
        if call.error is not None:
            raise call.error
        assert call.result is not None
        return call.result

    async def receive(self) -> None:
        """Hand answers to those who wait, until the connection ends."""
        opener = Opener()
        try:
            while data := await self._stream.receive_some(RECEIVE_BYTES):
                opener.feed(data)
                while (payload := opener.take()) is not None:
                    answer = _answers.decode(payload)
                    call = self._calls.get(answer.id)
                    if call is not None and call.take(answer):
                        self._calls.pop(answer.id, None)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            return
        except (msgspec.DecodeError, PeerError):
            _log.exception("the daemon's answers cannot be read")
        finally:
            self.lost = True
            for call in list(self._calls.values()):
                call.lose()
            self._calls.clear()


class Link:
    """The connection to the daemon of a home, made again whenever it ends. `run` must run."""

    def __init__(self, home: str, *, on_connected: Callable[[], None] | None = None) -> None:
        """`on_connected` is called each time there is a connection."""
        self.home = home
        self._on_connected = on_connected
        self._connection: _Connection | None = None
        self._changed = trio.Event()
        self._room = trio.Semaphore(CALLS_AT_ONCE)

    @property
    def connected(self) -> bool:
        """Whether a daemon answers now."""
        return self._connection is not None and not self._connection.lost

    async def run(self) -> None:
        """Connect, and again when the connection ends; for ever."""
        tries = 0
        while True:
            try:
                if await self._session():
                    tries = 0
            except (OSError, DaemonUnreachable) as error:
                _log.debug("no daemon: %s", error)
            await trio.sleep(AGAIN_SECONDS[min(tries, len(AGAIN_SECONDS) - 1)])
            tries += 1

    async def _session(self) -> bool:
        """Use one connection as long as it lasts; DaemonUnreachable when the daemon is of another level."""
        stream = await _connect(socket_path(self.home))
        async with stream:
            connection = _Connection(stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.receive)
                greeted = False
                with trio.move_on_after(HELLO_SECONDS):
                    try:
                        await _greet(connection)
                        greeted = True
                    except _Lost:
                        pass
                if greeted:
                    self._set(connection)
                    if self._on_connected is not None:
                        self._on_connected()
                else:
                    nursery.cancel_scope.cancel()
            self._set(None)
        return greeted

    def _set(self, connection: _Connection | None) -> None:
        self._connection = connection
        self._changed.set()
        self._changed = trio.Event()

    async def call(
        self,
        method: str,
        params: Params,
        kind: type[_R],
        *,
        on_event: OnEvent | None = None,
        resent: Callable[[], None] | None = None,
    ) -> _R:
        """Ask the daemon, as soon as there is one, and return what it says.

        `resent` is called before the same is asked again: whoever asked first may have done it before it ended.
        """
        async with self._room:
            return await self.call_lasting(method, params, kind, on_event=on_event, resent=resent)

    async def call_lasting(
        self,
        method: str,
        params: Params,
        kind: type[_R],
        *,
        on_event: OnEvent | None = None,
        resent: Callable[[], None] | None = None,
    ) -> _R:
        """Do the same for a call that lasts: it takes no room from the others."""
        while True:
            connection = await self._wait_connected()
            try:
                result = await connection.call(method, params, on_event)
            except _Lost:
                if resent is not None:
                    resent()
                continue
            try:
                return msgspec.msgpack.decode(result, type=kind)
            except msgspec.DecodeError as error:
                raise TbshareError(
                    f"the daemon's answer to {method} cannot be read", cure="tbshare restart"
                ) from error

    async def _wait_connected(self) -> _Connection:
        while True:
            connection = self._connection
            if connection is not None and not connection.lost:
                return connection
            await self._changed.wait()  # one that was lost is put away, which is a change


async def _connect(path: str) -> trio.SocketStream:
    """Connect to the control socket; OSError."""
    connection = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        await connection.connect(os.fspath(path))
    except BaseException:
        connection.close()
        raise
    return trio.SocketStream(connection)


async def _greet(connection: _Connection) -> None:
    asked = local.HelloParams(level=local.LEVEL, version=__version__)
    hello = msgspec.msgpack.decode(await connection.call("hello", asked, None), type=HelloReport)
    if hello.level != local.LEVEL:
        raise DaemonUnreachable(
            f"the daemon is tbshare {hello.version}, this is {__version__}", cure="tbshare restart"
        )
