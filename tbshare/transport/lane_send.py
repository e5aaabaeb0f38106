"""The provider's end of a TCP lane: a queue of blocks, and one thread that sends them.

Not sealed: header and `sendfile`, the bytes never enter this process. Sealed: read, encrypt in place, send, all
in one buffer of one block that lives as long as the lane.

Invariants, all under `_changed`: an item is in `_queue`, or it is the one being sent, or it was released.
`_over` is set once, and from then on the queue stays empty.
"""

import contextlib
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from threading import Event, Lock, Thread

from tbshare.content.block import BLOCK_BYTES
from tbshare.errors import BlockCorrupt, PeerError, PeerUnreachable, TbshareError
from tbshare.transport.lane import (
    hold_little,
    lower_priority,
    outgoing_bytes,
    prepare,
    round_trip_seconds,
    shut,
    wait_readable,
)
from tbshare.transport.link import Item, Origin
from tbshare.transport.pool import make_buffer
from tbshare.transport.precedence import BULK_SECONDS, SLICE_BYTES_MIN, Precedence, slice_bytes
from tbshare.transport.rate import RateLimit
from tbshare.wire.lane import HEADER_BYTES, TAG_BYTES, Header, Sealer

DRAIN_STEPS_MAX = 20  # of BULK_SECONDS: a lane that sends nothing for longer is taken for dead
QUEUE_ITEMS_MAX = 1024  # 4 GiB asked for and not sent; a fetcher that plans has a few dozen outstanding

# What sendfile says where it cannot do this file or this socket (macOS: TCP only).
_NO_SENDFILE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTSOCK}
_COPY_BYTES = 256 * 1024


class _FileShortError(OSError):
    """The file ended before the block did."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the file is shorter than the block")


def _read_into(fd: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.preadv(fd, [view], offset)
        if count == 0:
            raise _FileShortError
        view, offset = view[count:], offset + count


class SendLane:
    """One lane, from an accepted and greeted socket, which it owns from here on; see `link.SendEnd`.

    `key` is what `LaneReady` carried (32 bytes), or empty for a lane that is not sealed. With `precedence` the
    lane sends bulk: it goes out in slices, before each of which it gives way, and little waits in the socket.
    `urgent`: somebody waits for what is sent, so its thread is not made nice.
    """

    def __init__(
        self,
        connection: socket.socket,
        origin: Origin,
        *,
        key: bytes = b"",
        limit: RateLimit | None = None,
        precedence: Precedence | None = None,
        urgent: bool = False,
        name: str = "lane-send",
    ) -> None:
        self.bytes_sent = 0
        self._connection = connection
        self._origin = origin
        self._sealer = Sealer(key) if key else None
        self._buffer = make_buffer() if key else None
        self._limit = limit
        self._precedence = precedence  # None: nothing goes before what is sent here
        self._urgent = urgent
        self._rate = 0.0  # bytes per second the link takes; 0 while unknown
        self._slice_bytes = slice_bytes(0) if precedence is not None else BLOCK_BYTES
        self._sendfile = True
        self._blocks_sent = 0
        self._changed = Lock()
        self._queue: deque[Item] = deque()
        self._idle = self._finishing = self._over = False
        self._stop = Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_out.setblocking(False)
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, items: Sequence[Item]) -> None:
        """Queue blocks; see `link.SendEnd`."""
        with self._changed:
            if len(self._queue) + len(items) > QUEUE_ITEMS_MAX:
                raise PeerError(f"the peer asked for more than {QUEUE_ITEMS_MAX} blocks at once on one lane")
            over = self._over
            if not over:
                self._queue.extend(items)
            self._wake()
        if over:
            _release(items)

    def cancel(self, requests: Sequence[int]) -> None:
        """Drop what is queued for these requests; see `link.SendEnd`."""
        unwanted = set(requests)
        with self._changed:
            dropped = [item for item in self._queue if item.request in unwanted]
            if dropped:
                kept = [item for item in self._queue if item.request not in unwanted]
                self._queue = deque(kept)
        _release(dropped)

    def finish(self) -> None:
        """Send what is queued, then goodbye; see `link.SendEnd`."""
        with self._changed:
            self._finishing = True
            self._wake()

    def close(self) -> None:
        """End now; see `link.SendEnd`."""
        with self._changed:
            self._stop.set()
            if not self._over:
                shut(self._connection)
            self._wake()

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the lane's thread is gone."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _wake(self) -> None:
        """Wake the thread if it waits for work; the caller holds `_changed`."""
        if self._idle:
            self._idle = False
            self._wake_out.send(b"\0")

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            if not self._urgent:
                lower_priority()
            prepare(self._connection)
            self._serve()
        except TbshareError as ours:
            error = ours
        except OSError as broken:
            error = PeerUnreachable(f"the lane was cut by the fetcher: {broken}")
        except BaseException as bug:  # whoever waits must hear of our own bugs too
            error = bug
            raise
        finally:
            self._end(None if self._stop.is_set() else error)

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._over = True
            self._idle = False
            left, self._queue = self._queue, deque()
        self._connection.close()
        self._wake_in.close()
        self._wake_out.close()
        self._buffer = None
        _release(left)
        self._origin.ended(error)

    def _serve(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._send(item)
            finally:
                item.release()
        if self._finishing and not self._stop.is_set():
            self._say_goodbye()

    def _next(self) -> Item | None:
        """Wait for an item; None when there will be none: finished, closed, or the fetcher has left."""
        while not self._stop.is_set():
            with self._changed:
                if self._queue:
                    return self._queue.popleft()
                if self._finishing:
                    return None
                self._idle = True
            ready = wait_readable(self._wake_in, self._connection)
            if self._wake_in.fileno() in ready:
                self._wake_in.recv(16)
            if self._connection.fileno() in ready and not self._stop.is_set():
                if self._connection.recv(1):
                    raise PeerError("the fetcher sent bytes on a lane after its greeting")
                return None  # it has left, and nothing was owed
        return None

    def _send(self, item: Item) -> None:
        header = Header(item.request, len(item.row) + item.length, sealed=self._sealer is not None)
        began_at = time.monotonic()
        try:
            if self._sealer is not None:
                frame = self._sealed_frame(self._sealer, header, item)
            elif os.fstat(item.fd).st_size < item.offset + item.length:
                raise _FileShortError  # known before the header is out, while the block can still be refused
            else:
                frame = None
        except OSError as error:
            self._origin.refused(item.request, error)
            return
        if frame is None:
            # Without MSG_MORE: with it, a block off a page boundary waited 200 ms for its last bytes.
            self._connection.sendall(header.encode() + item.row)
            self._send_file(item)
        else:
            self._send_bytes(frame)
        self._blocks_sent += 1
        if self._precedence is not None and item.length == BLOCK_BYTES:
            self._note_rate(item.length / max(time.monotonic() - began_at, 1e-6))

    def _sealed_frame(self, sealer: Sealer, header: Header, item: Item) -> memoryview:
        buffer = self._buffer
        assert buffer is not None
        # The header goes out with the payload in one call; a block and its tag leave room for it in the buffer.
        frame = buffer[: HEADER_BYTES + header.wire_bytes]
        payload = frame[HEADER_BYTES:-TAG_BYTES]
        payload[: len(item.row)] = item.row
        _read_into(item.fd, payload[len(item.row) :], item.offset)
        sealer.seal(header, frame[HEADER_BYTES:])
        frame[:HEADER_BYTES] = header.encode()
        return frame

    def _send_bytes(self, frame: memoryview) -> None:
        start = 0
        while start < len(frame):
            part = frame[start : start + self._next_slice()]
            self._connection.sendall(part)
            start += len(part)
            self._spent(len(part))

    def _send_file(self, item: Item) -> None:
        offset, end = item.offset, item.offset + item.length
        while offset < end:
            count = self._send_some(item.fd, offset, min(self._next_slice(), end - offset))
            if count == 0:
                raise BlockCorrupt(f"request {item.request}: the file became shorter while it was sent")
            offset += count
            self._spent(count)

    def _send_some(self, fd: int, offset: int, count: int) -> int:
        if self._sendfile:
            try:
                return os.sendfile(self._connection.fileno(), fd, offset, count)
            except OSError as error:
                if error.errno == errno.EIO:  # the disk's; after the header there is no way to refuse a block
                    raise BlockCorrupt(f"a block could not be read from disk: {error}") from error
                if error.errno not in _NO_SENDFILE:
                    raise
                self._sendfile = False
        data = os.pread(fd, min(count, _COPY_BYTES), offset)
        self._connection.sendall(data)
        return len(data)

    def _next_slice(self) -> int:
        """Return how many bytes to send next, after what goes first."""
        if self._precedence is not None:
            self._precedence.give_way(self._stop)
            if self._precedence.is_likely:
                self._let_drain()
        return min(self._slice_bytes, self._limit.slice_bytes) if self._limit else self._slice_bytes

    def _let_drain(self) -> None:
        """Wait until no more is on its way than the link takes in BULK_SECONDS, beyond what a round trip needs.

        Else the queues between here and there fill up, and what goes first stands behind all that is in them.
        """
        if not self._rate:
            return
        seconds = BULK_SECONDS + round_trip_seconds(self._connection)
        allowed = max(int(self._rate * seconds), 2 * SLICE_BYTES_MIN)
        for _ in range(DRAIN_STEPS_MAX):
            excess = outgoing_bytes(self._connection) - allowed
            if excess <= 0 or self._stop.wait(min(excess / self._rate, BULK_SECONDS)):
                return

    def _note_rate(self, bytes_per_second: float) -> None:
        """Let no more wait in the socket than the link takes in a moment."""
        self._rate = 0.7 * self._rate + 0.3 * bytes_per_second if self._rate else bytes_per_second
        size = slice_bytes(self._rate)
        if not self._slice_bytes / 2 < size < self._slice_bytes * 2:
            self._slice_bytes = size
            hold_little(self._connection, size)

    def _spent(self, count: int) -> None:
        self.bytes_sent += count
        if self._limit is not None:
            pause = self._limit.spend(count, time.monotonic())
            if pause > 0 and self._stop.wait(pause):
                raise PeerUnreachable("the lane was closed")

    def _say_goodbye(self) -> None:
        sealed = self._sealer is not None
        header = Header(self._blocks_sent, 0, sealed=sealed, goodbye=True)
        frame = bytearray(header.encode() + bytes(header.wire_bytes))
        if self._sealer is not None:
            self._sealer.seal(header, memoryview(frame)[HEADER_BYTES:])
        self._connection.sendall(frame)
        with contextlib.suppress(OSError):  # the fetcher may hang up as soon as it has read the goodbye
            self._connection.shutdown(socket.SHUT_WR)


def _release(items: Sequence[Item] | deque[Item]) -> None:
    for item in items:
        item.release()
