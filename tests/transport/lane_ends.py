"""Both ends of a lane of any kind, and what stands behind them in tests."""

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tbshare.content.block import BLOCK_BYTES, LEAF_BYTES, block_id
from tbshare.transport.lane_receive import FileWrite, ReceiveLane
from tbshare.transport.lane_send import SendLane
from tbshare.transport.link import Item, Late, Origin, ReceiveEnd, SendEnd, Sink, Target
from tbshare.transport.pool import BufferPool
from tbshare.transport.rate import RateLimit

SECONDS = 20  # far more than anything here takes
SIZES = [1, LEAF_BYTES, LEAF_BYTES + 1, BLOCK_BYTES, 3 * LEAF_BYTES + 5, BLOCK_BYTES, 77, BLOCK_BYTES - 1]


@dataclass
class Kind:
    """How to make the two ends of one kind of lane; `send` may be called once, and `receive` once."""

    send: Callable[[Origin, RateLimit | None], SendEnd]
    receive: Callable[[Sink, BufferPool], ReceiveEnd]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fetcher = socket.create_connection(listener.getsockname())
        return listener.accept()[0], fetcher


def over_sockets(pair: Callable[[], tuple[socket.socket, socket.socket]], key: bytes) -> Kind:
    provider, fetcher = pair()
    return Kind(
        lambda origin, limit: SendLane(provider, origin, key=key, limit=limit),
        lambda sink, pool: ReceiveLane(fetcher, sink, pool, key=key),
    )


KINDS: dict[str, Callable[[], Kind]] = {
    "tcp": lambda: over_sockets(tcp_pair, b""),
    "tcp-sealed": lambda: over_sockets(tcp_pair, b"k" * 32),
    "unix": lambda: over_sockets(socket.socketpair, b""),
    "unix-sealed": lambda: over_sockets(socket.socketpair, b"k" * 32),
}


class Fetcher:
    """A sink that knows what it expects and remembers what it was told."""

    def __init__(self, targets: dict[int, Target | Late]) -> None:
        self.targets = targets
        self.asked = threading.Event()
        self.gate: threading.Event | None = None  # until it is set, `target` does not return
        self.blocks: list[tuple[int, bytes]] = []
        self.failures: list[tuple[int, OSError]] = []
        self.ends: list[BaseException | None] = []

    def target(self, request: int) -> Target | Late | None:
        self.asked.set()
        if self.gate is not None:
            assert self.gate.wait(SECONDS)
        return self.targets.pop(request, None)

    def delivered(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        assert not self.ends
        assert blocks
        self.blocks.extend(blocks)

    def failed(self, request: int, error: OSError) -> None:
        assert not self.ends
        self.failures.append((request, error))

    def ended(self, error: BaseException | None) -> None:
        self.ends.append(error)


class Provider:
    """An origin that remembers what it was told, and how often each item was released."""

    def __init__(self) -> None:
        self.released: dict[int, int] = {}
        self.refusals: list[tuple[int, OSError]] = []
        self.ends: list[BaseException | None] = []

    def release(self, request: int) -> Callable[[], None]:
        self.released[request] = 0

        def count() -> None:
            self.released[request] += 1

        return count

    def refused(self, request: int, error: OSError) -> None:
        assert not self.ends
        self.refusals.append((request, error))

    def ended(self, error: BaseException | None) -> None:
        self.ends.append(error)

    def released_all_once(self) -> bool:
        return set(self.released.values()) <= {1}


class Case:
    """A source file of blocks with the given sizes, a destination, and what goes between."""

    def __init__(self, directory: Path, sizes: Sequence[int]) -> None:
        self.data = [os.urandom(size) for size in sizes]
        self.offsets = [sum(sizes[:index]) for index in range(len(sizes))]
        (directory / "source").write_bytes(b"".join(self.data))
        self.source = os.open(directory / "source", os.O_RDWR)
        self.destination = os.open(directory / "destination", os.O_RDWR | os.O_CREAT)
        self.provider = Provider()
        self.fetcher = Fetcher({number: self.target(number) for number in range(len(sizes))})
        self.pool = BufferPool(4)

    def target(self, number: int) -> Target:
        data = self.data[number]
        return Target(block_id(data), len(data), FileWrite(self.destination, self.offsets[number]))

    def items(self, numbers: Sequence[int]) -> list[Item]:
        return [
            Item(number, self.source, self.offsets[number], len(self.data[number]), self.provider.release(number))
            for number in numbers
        ]

    def all_items(self) -> list[Item]:
        return self.items(range(len(self.data)))

    def arrived(self, number: int) -> bool:
        data = self.data[number]
        return os.pread(self.destination, len(data), self.offsets[number]) == data

    def destination_bytes(self) -> int:
        return os.fstat(self.destination).st_size

    def has_arrived(self, count: int) -> bool:
        return len(self.fetcher.blocks) == count

    def corrupt(self, number: int) -> None:
        os.pwrite(
            self.source, bytes([self.data[number][-1] ^ 1]), self.offsets[number] + len(self.data[number]) - 1
        )

    def joined(self, sending: SendEnd, receiving: ReceiveEnd) -> tuple[BaseException | None, BaseException | None]:
        """Wait for both ends; return why each ended, having checked what is true however it ended."""
        assert sending.join(SECONDS)
        assert receiving.join(SECONDS)
        assert len(self.provider.ends) == len(self.fetcher.ends) == 1
        assert self.provider.released_all_once()
        assert self.pool.in_use == 0
        return self.provider.ends[0], self.fetcher.ends[0]


CaseOf = Callable[[Sequence[int]], Case]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    never = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        never.wait(0.001)
