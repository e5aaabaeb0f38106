"""The fetcher's end of a TCP lane: one thread receives, a second verifies and writes.

    socket -> buffer of the pool -> hash every leaf -> the block asked for? -> write -> give the buffer back

Two threads because hashing and writing a block takes about as long as receiving one: measured, the same CPU for
each byte and a quarter more speed on a new file. Nothing is written before the whole block was verified.

Invariants: the receiving thread alone reads the socket, parses headers and takes buffers; the writing thread
alone opens seals, hashes, writes, calls `delivered` and `failed`, and gives buffers back once they were queued.
It outlives the receiving thread, and ends the lane.
"""

import os
import socket
import time
from collections import deque
from dataclasses import dataclass
from threading import Condition, Thread

from tbshare.errors import BlockCorrupt, PeerError, PeerUnreachable
from tbshare.transport.lane import lower_priority, prepare, shut, wait_readable
from tbshare.transport.link import SKIP, Sink, Target
from tbshare.transport.pool import BufferPool
from tbshare.wire.lane import HEADER_BYTES, Header, Opener, parse_header

BLOCKS_WAITING_MAX = 3  # received and not written, per lane: one stuck disk or lane does not take the whole pool
DELIVERED_BATCH = 8  # blocks per call of `delivered` while more are waiting; each call wakes the daemon once
# One write of 4 MiB to a new file cost 1.2 CPU s/GB here, sixteen of this size 0.5 (`bench/lane.py`).
WRITE_BYTES = 256 * 1024
_DRAIN_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A block in a buffer: the `number`-th of the lane."""

    number: int
    header: Header
    target: Target
    buffer: memoryview


class _CutError(Exception):
    """The connection ended in the middle, or was closed here."""


class ReceiveLane:
    """One lane, from a connected socket on which the greeting was sent, which it owns from here on.

    See `link.ReceiveEnd`. `key` is what `LaneReady` carried (32 bytes), or empty for a lane that is not sealed.
    `urgent`: somebody waits for what comes on it, so its threads are not made nice.
    """

    def __init__(
        self,
        connection: socket.socket,
        sink: Sink,
        pool: BufferPool,
        *,
        key: bytes = b"",
        urgent: bool = False,
        name: str = "lane",
    ) -> None:
        self.bytes_received = 0
        self.progress_at_seconds = time.monotonic()
        self.block_since_seconds: float | None = None
        self._connection = connection
        self._sink = sink
        self._pool = pool
        self._urgent = urgent
        self._opener = Opener(key) if key else None
        self._changed = Condition()
        self._arrived: deque[_Arrived] = deque()
        self._received_all = self._over = self._closing = False
        self._error: BaseException | None = None
        self._delivered: list[tuple[int, bytes]] = []
        self._receiver = Thread(target=self._receive, name=f"{name}-receive", daemon=True)
        self._writer = Thread(target=self._write, name=f"{name}-write", daemon=True)
        self._writer.start()
        self._receiver.start()

    def close(self) -> None:
        """End now; see `link.ReceiveEnd`."""
        self._stop(None)

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait until both threads are gone."""
        self._writer.join(timeout_seconds)
        return not self._writer.is_alive()

    def _stop(self, error: BaseException | None) -> None:
        """End the lane from any thread; a wrong block says more than the cut it may have come with."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._error = error or self._error
            if not self._over:
                shut(self._connection)
            self._changed.notify_all()
        self._pool.wake()

    # The receiving thread.

    def _receive(self) -> None:
        error: BaseException | None = None
        try:
            if not self._urgent:
                lower_priority()
            prepare(self._connection)
            self._receive_blocks()
        except PeerError as broken:
            error = broken
        except (OSError, _CutError) as cut:
            error = PeerUnreachable(f"the lane was cut: {cut}")
        except BaseException as bug:  # whoever waits must hear of our own bugs too
            error = bug
            raise
        finally:
            with self._changed:
                if not self._closing:  # else the error is only how closing the socket looks from here
                    self._error = error
                self._received_all = True
                self._changed.notify_all()

    def _receive_blocks(self) -> None:
        sealed = self._opener is not None
        first = memoryview(bytearray(HEADER_BYTES))
        number = 0
        while True:
            self._fill(first)
            header = parse_header(first, sealed=sealed)
            if header.goodbye:
                self._check_goodbye(header, number)
                return
            self.block_since_seconds = time.monotonic()
            target = self._sink.target(header.request)
            if target is None:
                raise PeerError(f"a lane brought a block for request {header.request}, which was not made")
            if target is SKIP:
                self._drain(header.wire_bytes)
            elif target.payload_bytes != header.payload_bytes:
                raise PeerError(
                    f"a lane brought {header.payload_bytes} bytes where {target.payload_bytes} were asked for"
                )
            else:
                self._receive_block(_Arrived(number, header, target, self._take()))
            self.block_since_seconds = None
            number += 1

    def _fill(self, view: memoryview) -> None:
        """Receive exactly as many bytes as `view` has."""
        while view:
            try:
                count = self._connection.recv_into(view, 0, socket.MSG_WAITALL)
            except BlockingIOError:  # nothing for PROGRESS_SECONDS: wait without waking up every so often
                wait_readable(self._connection)
                continue
            if count == 0:
                raise _CutError("the provider is gone")
            self.bytes_received += count
            self.progress_at_seconds = time.monotonic()
            view = view[count:]

    def _take(self) -> memoryview:
        """Wait for room: for this lane's writer first, then for a buffer."""
        with self._changed:
            while len(self._arrived) >= BLOCKS_WAITING_MAX and not self._closing:
                self._changed.wait()
        buffer = self._pool.take(lambda: self._closing)
        if buffer is None:
            raise _CutError("closed here")
        # Time spent waiting for ourselves is not the peer's silence.
        self.block_since_seconds = self.progress_at_seconds = time.monotonic()
        return buffer

    def _receive_block(self, block: _Arrived) -> None:
        try:
            self._fill(block.buffer[: block.header.wire_bytes])
        except BaseException:
            self._pool.give(block.buffer)
            raise
        with self._changed:
            self._arrived.append(block)
            self._changed.notify_all()

    def _drain(self, count: int) -> None:
        scratch = memoryview(bytearray(min(count, _DRAIN_BYTES)))
        while count:
            part = scratch[: min(count, len(scratch))]
            self._fill(part)
            count -= len(part)

    def _check_goodbye(self, header: Header, number: int) -> None:
        tag = memoryview(bytearray(header.wire_bytes))
        self._fill(tag)
        if self._opener is not None:
            self._opener.open(number, header, tag)
        if header.request != number:
            raise PeerError(f"a lane ended after {header.request} blocks and brought {number}")

    # The writing thread.

    def _write(self) -> None:
        try:
            if not self._urgent:
                lower_priority()
            while (block := self._next_arrived()) is not None:
                try:
                    self._verify_and_write(block)
                finally:
                    self._pool.give(block.buffer)
        except (BlockCorrupt, PeerError) as wrong:
            self._stop(wrong)
        except BaseException as bug:  # whoever waits must hear of our own bugs too
            self._stop(bug)
            raise
        finally:
            self._end()

    def _next_arrived(self) -> _Arrived | None:
        """Return the next block; None when there will be none. What was delivered is told before waiting."""
        while True:
            with self._changed:
                if self._closing:
                    return None
                if self._arrived and len(self._delivered) < DELIVERED_BATCH:
                    self._changed.notify_all()
                    return self._arrived.popleft()
                if not self._delivered:
                    if self._received_all:
                        return None
                    self._changed.wait()
                    continue
            self._tell_delivered()

    def _tell_delivered(self) -> None:
        if self._delivered:
            batch, self._delivered = self._delivered, []
            self._sink.delivered(batch)

    def _verify_and_write(self, block: _Arrived) -> None:
        view = block.buffer[: block.header.wire_bytes]
        if self._opener is not None:
            view = self._opener.open(block.number, block.header, view)
        proven = block.target.proven(view)
        if proven is None:
            raise BlockCorrupt(
                f"a peer sent other bytes than block {block.target.block_id.hex()[:16]}"
                f" (request {block.header.request})"
            )
        try:
            block.target.write(proven[1])
        except OSError as error:
            self._sink.failed(block.header.request, error)
            return
        self._delivered.append((block.header.request, proven[0]))

    def _end(self) -> None:
        self._receiver.join()
        with self._changed:
            self._over = True
            left, self._arrived = self._arrived, deque()
        self._connection.close()
        for block in left:
            self._pool.give(block.buffer)
        self._tell_delivered()
        self._sink.ended(self._error)


@dataclass(frozen=True, slots=True)
class FileWrite:
    """A `Target.write` for a place in an open file, which must stay open until the lane is done with it."""

    fd: int
    offset: int

    def __call__(self, view: memoryview) -> None:
        """Write all of `view`."""
        offset = self.offset
        while view:
            count = os.pwrite(self.fd, view[:WRITE_BYTES], offset)
            view, offset = view[count:], offset + count
