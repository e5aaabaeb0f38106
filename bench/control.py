"""The control round trip while two lanes move bulk: two processes, one TLS session, one ping every millisecond.

    python -m bench control [--runs 3]

The session and the lanes are the daemon's own (`tbshare.transport`), a process each side, over loopback. A ping is
an ordinary message that the other side's task takes and sends back, so the queues on the way are in it.
"""

import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from bench.measuring import GB, GIB, Demand, make_random_file, run_forked, warm_pages
from bench.rows import Options, say, table, verdict
from tbshare.content.block import BLOCK_BYTES, BlockId, block_id
from tbshare.daemon.__main__ import SWITCH_SECONDS
from tbshare.peers.identity import Identity
from tbshare.transport import control
from tbshare.transport.control import ControlSession
from tbshare.transport.lane import connect_lane
from tbshare.transport.lane_receive import FileWrite, ReceiveLane
from tbshare.transport.lane_send import QUEUE_ITEMS_MAX, SendLane
from tbshare.transport.link import Item, Target
from tbshare.transport.pool import BufferPool
from tbshare.wire.lane import GREETING_BYTES, TOKEN_BYTES, Tokens
from tbshare.wire.message import Unwant

PING_SECONDS = 0.001
IDLE_SECONDS = 2.0
P99_MS_MAX = 5.0


@dataclass(frozen=True)
class Lane:
    """One lane's part of the file, moved `passes` times."""

    number: int
    token: bytes
    key: bytes
    blocks: Sequence[tuple[int, int, BlockId]]


class _Sink:
    def __init__(self, blocks: Sequence[tuple[int, int, BlockId]], descriptor: int) -> None:
        self.error: BaseException | None = None
        self._blocks, self._descriptor = blocks, descriptor

    def target(self, request: int) -> Target:
        offset, length, name = self._blocks[request]
        return Target(name, length, FileWrite(self._descriptor, offset))

    def delivered(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        pass

    def failed(self, request: int, error: OSError) -> None:
        raise error

    def ended(self, error: BaseException | None) -> None:
        self.error = error


class _Origin:
    def refused(self, request: int, error: OSError) -> None:
        raise error

    def ended(self, error: BaseException | None) -> None:
        pass  # the fetcher says what went wrong


class Pair:
    """The provider's and the fetcher's process."""

    def __init__(self, scratch: Path, source: Path, lanes: Sequence[Lane]) -> None:
        self.scratch, self.source, self.lanes = scratch, source, lanes
        self.provider = Identity.load_or_create(scratch / "provider.key")
        self.fetcher = Identity.load_or_create(scratch / "fetcher.key")
        self.session_listener = socket.create_server(("127.0.0.1", 0))
        self.lane_listener = socket.create_server(("127.0.0.1", 0))
        self.result = scratch / "result.json"

    def measure(self) -> tuple[list[float], float]:
        """Return the round trips in seconds, and the GB per second of the bulk (0.0 without lanes)."""
        with self.session_listener, self.lane_listener:
            before = sys.getswitchinterval()
            sys.setswitchinterval(SWITCH_SECONDS)  # as the daemon does
            run_forked([lambda: trio.run(self._provide), lambda: trio.run(self._fetch)])
            sys.setswitchinterval(before)
        trips, rate = json.loads(self.result.read_text())
        return trips, rate

    async def _provide(self) -> None:
        tokens = Tokens()
        for lane in self.lanes:
            tokens.issue(lane.number, lane.token)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self.session_listener))
        trusted = {self.fetcher.node: self.fetcher.certificate}
        session = await control.serve(await listener.accept(), self.provider, trusted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            for _ in self.lanes:
                threading.Thread(target=self._send, args=[tokens], daemon=True).start()
            while (message := await session.receive()) != Unwant(tree=bytes(32)):
                await session.send(message)
            await session.aclose()

    def _send(self, tokens: Tokens) -> None:
        connection, _ = self.lane_listener.accept()
        number = tokens.redeem(connection.recv(GREETING_BYTES, socket.MSG_WAITALL))
        lane = next(lane for lane in self.lanes if lane.number == number)
        room = threading.Semaphore(QUEUE_ITEMS_MAX)
        with self.source.open("rb") as file:
            end = SendLane(connection, _Origin(), key=lane.key)
            for request, (offset, length, _) in enumerate(lane.blocks):
                room.acquire()
                end.submit([Item(request, file.fileno(), offset, length, room.release)])
            end.finish()
            end.join()

    async def _fetch(self) -> None:
        host, port = self.session_listener.getsockname()
        session = await control.dial(
            host, port, self.fetcher, peer=self.provider.node, certificate=self.provider.certificate
        )
        over = trio.Event()
        trips: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            nursery.start_soon(_ping, session, over, trips)
            started = time.perf_counter()
            if self.lanes:
                await trio.to_thread.run_sync(self._receive)
            else:
                await trio.sleep(IDLE_SECONDS)
            wall = time.perf_counter() - started
            over.set()
        moved = sum(length for lane in self.lanes for _, length, _ in lane.blocks)
        self.result.write_text(json.dumps([trips, moved / GB / wall]))

    def _receive(self) -> None:
        pool = BufferPool()
        destination = self.scratch / "destination"
        descriptor = os.open(destination, os.O_CREAT | os.O_RDWR, 0o600)
        os.posix_fallocate(descriptor, 0, self.source.stat().st_size)
        ends: list[tuple[ReceiveLane, _Sink]] = []
        for lane in self.lanes:
            sink = _Sink(lane.blocks, descriptor)
            connection = connect_lane(self.lane_listener.getsockname(), lane.number, lane.token)
            ends.append((ReceiveLane(connection, sink, pool, key=lane.key), sink))
        for end, sink in ends:
            end.join()
            if sink.error is not None:
                raise sink.error
        os.close(descriptor)
        destination.unlink()


async def _ping(session: ControlSession, over: trio.Event, trips: list[float]) -> None:
    number = 0
    while not over.is_set():
        number += 1
        message = Unwant(tree=number.to_bytes(32, "big"))
        started = time.perf_counter()
        await session.send(message)
        if await session.receive() != message:
            raise RuntimeError("another message came back")
        took = time.perf_counter() - started
        trips.append(took)
        await trio.sleep(max(0.0, PING_SECONDS - took))
    await session.send(Unwant(tree=bytes(32)))
    await session.aclose()


def _lanes(source: Path, count: int, passes: int, *, sealed: bool) -> list[Lane]:
    blocks: list[tuple[int, int, BlockId]] = []
    with source.open("rb") as file:
        while data := file.read(BLOCK_BYTES):
            blocks.append((len(blocks) * BLOCK_BYTES, len(data), block_id(data)))
    return [
        Lane(
            number + 1, os.urandom(TOKEN_BYTES), os.urandom(32) if sealed else b"", blocks[number::count] * passes
        )
        for number in range(count)
    ]


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    source = options.scratch / "source"
    make_random_file(source, int(options.pick(1, 0.125) * GIB))
    passes = int(options.pick(5, 2))
    ways = {"no bulk": (0, False), "2 lanes": (2, False), "2 lanes, sealed": (2, True)}
    results: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in ways}
    for _ in range(options.runs):
        for name, (count, sealed) in ways.items():
            warm_pages(options.pick(2, 0))
            lanes = _lanes(source, count, passes, sealed=sealed)
            trips, rate = Pair(options.scratch, source, lanes).measure()
            cuts = [1000 * trip for trip in statistics.quantiles(trips, n=100)]
            results[name].append((cuts[49], cuts[98], 1000 * max(trips), rate))
            say(f"{name}: {len(trips)} pings, p50 {cuts[49]:.2f}, p99 {cuts[98]:.2f} ms, {rate:.2f} GB/s")
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in results.items()
    }
    table(
        [f"medians of {options.runs}", "p50 ms", "p99 ms", "(least-most)", "max ms", "bulk GB/s"],
        [
            [
                name,
                f"{row[0]:.2f}",
                f"{row[1]:.2f}",
                f"({min(one[1] for one in results[name]):.2f}-{max(one[1] for one in results[name]):.2f})",
                f"{row[2]:.1f}",
                f"{row[3]:.2f}" if row[3] else "-",
            ]
            for name, row in medians.items()
        ],
    )
    demands = [Demand("p99 of the round trip with 2 lanes, ms", medians["2 lanes"][1], P99_MS_MAX)]
    figures = {name: dict(zip(("p50", "p99", "max", "rate"), row, strict=True)) for name, row in medians.items()}
    return verdict("control", demands, figures, quick=options.quick)
