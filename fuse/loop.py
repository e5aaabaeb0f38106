"""Our own /dev/fuse loop, on trio: reads messages, calls the `Operations`, writes answers. Linux only.

One task reads the device. What the Operations answer at once is written at once, by that task; what must wait
becomes a task of its own (`_finish`); INTERRUPT cancels it if it waits for a lock or the asker is being killed: a
signal that a program catches makes no call fail. After an answer the loop lingers on the device for
a moment before it gives the thread back: the asker's next request is mostly there within microseconds, and a turn
of trio's scheduler costs more than the request. It never lingers while other requests wait for something.

Whatever a message holds and whatever a handler does, the loop goes on: the asker gets an errno. It ends when the
file system is unmounted.
"""

import errno
import logging
import os
import select
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import trio

from tbshare.fuse import negotiation, protocol, replies
from tbshare.fuse.backing import Backings
from tbshare.fuse.calls import Calls, Reply
from tbshare.fuse.failures import number_of
from tbshare.fuse.negotiation import Wishes
from tbshare.fuse.notices import Notices
from tbshare.fuse.operations import Answer, Capabilities, Operations, Session
from tbshare.fuse.protocol import Malformed, Opcode, Request
from tbshare.fuse.signals import is_dying

_log = logging.getLogger(__name__)

WAITING_MAX: Final = 4096  # requests that wait at a time; the kernel keeps what comes on top
LINGER_SECONDS: Final = 0.0001
TURN_SECONDS: Final = 0.002  # other tasks get their turn this often
BUFFERS_KEPT_MAX: Final = 8
SIGNALLED_SECONDS: Final = 0.2  # until an asker that had a signal is looked at again: is it being killed?
SELECT_DESCRIPTOR_MAX: Final = 1023  # FD_SETSIZE
_GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EPIPE})
_AGAIN: Final = frozenset({errno.EINTR, errno.ENOENT})


class Unmounted(Exception):  # noqa: N818 - not an error
    """The kernel has closed the connection."""


class _Waiting(NamedTuple):
    """A request that waits: the task's scope, and the thread that asked."""

    scope: trio.CancelScope
    thread: int
    for_lock: bool


class Loop(Session):
    """One mount: the descriptor of /dev/fuse, and the `Operations` behind it."""

    def __init__(self, operations: Operations, device: int, wishes: Wishes) -> None:
        self._operations = operations
        self._device = device
        self._wishes = wishes
        self._backings = Backings(device)
        self._calls = Calls(operations, self._backings).table
        self._notices = Notices()
        self._capabilities = Capabilities(name="own loop")
        self._waiting: dict[int, _Waiting] = {}
        self._closing: set[int] = set()  # those of them that nobody waits for, and that are not to be cut off
        self._room = trio.Event()
        size_bytes = max(negotiation.MAX_PAGES * negotiation.PAGE_BYTES, protocol.BUFFER_BYTES_MIN)
        self._buffer_bytes = size_bytes + protocol.HEADER_ROOM_BYTES
        self._buffer = memoryview(bytearray(self._buffer_bytes))
        self._buffers: list[memoryview] = []
        os.set_blocking(device, False)

    # --- the session, as the Operations see it ----------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """What was agreed with this kernel."""
        return self._capabilities

    def invalidate_inode(self, inode: int, offset: int = 0, length: int = 0) -> None:
        """Drop attributes and the pages of a range."""
        self._notify(replies.invalidate_inode(inode, offset, length))

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Forget a name."""
        self._notify(replies.invalidate_entry(parent, name))

    def expire_entry(self, parent: int, name: bytes) -> None:
        """Have a name looked up again."""
        only = self._capabilities.expire_entry
        self._notify(replies.invalidate_entry(parent, name, expire_only=only))

    def delete_entry(self, parent: int, child: int, name: bytes) -> None:
        """Say that a name was removed."""
        self._notify(replies.delete_entry(parent, child, name))

    def store(self, inode: int, offset: int, data: bytes) -> None:
        """Put bytes into the page cache."""
        self._notify(replies.store(inode, offset, data))

    def _notify(self, notice: bytes) -> None:
        self._notices.add(partial(os.write, self._device, notice))

    async def settled(self) -> None:
        """Wait until all notices were taken."""
        await self._notices.settled()

    def io_mode(self, inode: int) -> str:
        """Return how handles of the inode are open."""
        return self._backings.mode(inode)

    # --- the loop ---------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until unmounted; started once the kernel and we have agreed."""
        async with trio.open_nursery() as notifying:
            notifying.start_soon(self._notices.run)
            async with trio.open_nursery() as nursery:
                try:
                    await self._greet()
                    self._operations.started(self)
                    task_status.started(self)
                    await self._serve(nursery)
                except Unmounted:
                    _log.debug("unmounted")
                # Nobody is left who waits for an answer; but what closing a file has begun is brought to its end.
                for unique, waiting in self._waiting.items():
                    if unique not in self._closing:
                        waiting.scope.cancel()
            notifying.cancel_scope.cancel()

    async def _greet(self) -> None:
        """Answer INIT, which is the first message."""
        while True:
            length = self._receive()
            if length is None:
                await self._wait_readable()
                continue
            request = self._parsed(self._buffer[:length])
            if request is None:
                continue
            if request.opcode != Opcode.INIT:
                self._send_failure(request.unique, errno.EIO)
                continue
            try:
                agreed = negotiation.negotiate(negotiation.offer(request.body), self._wishes)
            except Malformed:
                self._send_failure(request.unique, errno.EPROTO)
                raise
            self._capabilities = agreed.capabilities
            self._backings.allowed = agreed.capabilities.passthrough
            os.writev(self._device, [replies.header(request.unique, len(agreed.reply)), agreed.reply])
            return

    async def _serve(self, nursery: trio.Nursery) -> None:
        turn_ends = 0.0
        while True:
            length = self._receive()
            if length is None:
                await self._wait_readable()
                turn_ends = time.monotonic() + TURN_SECONDS
                continue
            self._handle(self._buffer[:length], nursery)
            if len(self._waiting) >= WAITING_MAX:
                self._room = trio.Event()
                await self._room.wait()
            elif time.monotonic() > turn_ends:
                await trio.lowlevel.checkpoint()
                turn_ends = time.monotonic() + TURN_SECONDS
            elif not self._waiting:
                self._linger()

    def _receive(self) -> int | None:
        """Read one message into the buffer, and return its length; None if there is none yet."""
        while True:
            try:
                length = os.readv(self._device, [self._buffer])
                if not length:  # a socket that stands for the device was closed
                    raise Unmounted
                return length
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in _GONE:
                    raise Unmounted from error
                if error.errno not in _AGAIN:
                    raise

    def _linger(self) -> None:
        if self._device <= SELECT_DESCRIPTOR_MAX:
            select.select([self._device], [], [], LINGER_SECONDS)

    async def _wait_readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._device)
        except trio.ClosedResourceError as error:
            raise Unmounted from error

    def _handle(self, message: memoryview, nursery: trio.Nursery) -> None:
        """Answer one message, or start the task that will."""
        request = self._parsed(message)
        if request is None:
            return
        if request.opcode in protocol.UNANSWERED:
            self._take_note(request, nursery)
            return
        call = self._calls.get(request.opcode)
        if call is None:
            self._send_failure(request.unique, 0 if request.opcode == Opcode.DESTROY else errno.ENOSYS)
            return
        try:
            answer, encode = call(request)
            if hasattr(answer, "__await__"):
                self._start(request, answer, encode, nursery)
                return
            reply = encode(answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, the asker gets an errno and the loop goes on
            self._send_failure(request.unique, number_of(error, f"opcode {request.opcode}"))
            return
        self._send(request.unique, reply)

    def _parsed(self, message: memoryview) -> Request | None:
        try:
            return protocol.parse(message)
        except Malformed as error:
            _log.error("not understood: %s", error)
            return None

    def _take_note(self, request: Request, nursery: trio.Nursery) -> None:
        """Do what has no answer: forgets and interrupts."""
        try:
            if request.opcode == Opcode.INTERRUPT:
                (unique,) = protocol.unpack(protocol.INTERRUPT_IN, request.body)
                waiting = self._waiting.get(unique)
                if waiting is None:
                    return  # it was answered in the meantime
                if waiting.for_lock or is_dying(waiting.thread):
                    waiting.scope.cancel()
                else:
                    nursery.start_soon(self._cancel_if_killed, unique, waiting)
                return
            self._operations.forget(protocol.forgets(request))
        except Exception as error:  # noqa: BLE001 - as above
            number_of(error, f"opcode {request.opcode}")

    # --- requests that wait -----------------------------------------------------------------------------------

    async def _cancel_if_killed(self, unique: int, waiting: _Waiting) -> None:
        """Look after an asker that had a signal: the kernel tells of one only, and the next may be the last."""
        while self._waiting.get(unique) is waiting:
            if is_dying(waiting.thread):
                waiting.scope.cancel()
                return
            await trio.sleep(SIGNALLED_SECONDS)

    def _start(
        self, request: Request, answer: Answer[Any], encode: Callable[[Any], Reply], nursery: trio.Nursery
    ) -> None:
        scope = trio.CancelScope()
        for_lock = request.opcode == Opcode.SETLKW
        self._waiting[request.unique] = _Waiting(scope, request.pid, for_lock)
        if request.opcode in (Opcode.RELEASE, Opcode.RELEASEDIR):
            self._closing.add(request.unique)
        lent = None
        if request.opcode == Opcode.WRITE:  # its bytes lie in the buffer: the task gets it, the loop takes another
            lent = self._buffer
            self._buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(self._buffer_bytes))
        nursery.start_soon(self._finish, request, answer, encode, scope, lent)

    async def _finish(
        self,
        request: Request,
        answer: Any,
        encode: Callable[[Any], Reply],
        scope: trio.CancelScope,
        lent: memoryview | None,
    ) -> None:
        """Wait for an answer and send it."""
        reply: Reply | None = None
        number = errno.EINTR
        try:
            with scope:
                reply = encode(await answer)
        except Exception as error:  # noqa: BLE001 - as in _handle
            number = number_of(error, f"opcode {request.opcode}")
        finally:
            del self._waiting[request.unique]
            self._closing.discard(request.unique)
            self._room.set()
            if lent is not None and len(self._buffers) < BUFFERS_KEPT_MAX:
                self._buffers.append(lent)
        try:
            if reply is None:
                self._send_failure(request.unique, number)
            else:
                self._send(request.unique, reply)
        except Unmounted:
            _log.debug("unmounted while request %d waited", request.unique)  # the loop sees it too, and ends

    # --- answers ----------------------------------------------------------------------------------------------

    def _send(self, unique: int, reply: Reply) -> None:
        buffers: Sequence[Any] = [reply] if isinstance(reply, bytes | bytearray | memoryview) else reply
        size_bytes = sum(len(buffer) for buffer in buffers)
        try:
            os.writev(self._device, [replies.header(unique, size_bytes), *buffers])
        except OSError as error:
            self._not_sent(unique, error)

    def _send_failure(self, unique: int, number: int) -> None:
        try:
            os.write(self._device, replies.failure(unique, number))
        except OSError as error:
            self._not_sent(unique, error, last=True)

    def _not_sent(self, unique: int, error: OSError, *, last: bool = False) -> None:
        """See why the kernel did not take an answer. EFAULT: a mapped file shrank under the bytes to be sent."""
        if error.errno in _GONE:
            raise Unmounted from error
        if error.errno == errno.ENOENT:
            return  # the asker was killed: the request is no more
        _log.error("an answer could not be sent: %s", error)
        if not last:
            self._send_failure(unique, errno.EIO)
