"""Anonymous memory of each daemon while 20 GB of distinct blocks pass: RssAnon, sampled, the highest counts.

    python -m bench memory [--scratch DIR]

Models of 2 GB are made, pushed from one node to the other, removed and collected, one after another. Each holds
blocks that no other holds: random bytes, the number of the block in front.
"""

import os
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.measuring import GB, Demand, anonymous_bytes
from bench.nodes import BenchError, Node, pair_all, running
from bench.rows import Options, say, table, verdict
from tbshare.content.block import BLOCK_BYTES
from tbshare.wire.local import PushParams

SAMPLE_SECONDS = 0.02
ANONYMOUS_BYTES_MAX = 300e6


class MemoryWatch:
    """Samples the anonymous memory of daemons in a thread; a context manager."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.highest = {node.name: anonymous_bytes(node.pid) for node in nodes}
        self.idle = dict(self.highest)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            for node in self.nodes:
                self.highest[node.name] = max(self.highest[node.name], anonymous_bytes(node.pid))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def make_model(directory: Path, blocks: int, first: int) -> None:
    """Write a file of blocks that differ from one another and from those of every other model."""
    directory.mkdir()
    block = bytearray(os.urandom(BLOCK_BYTES))
    with (directory / "weights.bin").open("wb") as file:
        for number in range(first, first + blocks):
            block[:8] = number.to_bytes(8, "little")
            file.write(block)


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    total_blocks = int(options.pick(20e9, 0.6e9)) // BLOCK_BYTES + 1
    blocks = int(options.pick(2e9, 0.2e9)) // BLOCK_BYTES
    nodes = [Node(options.scratch / name, name) for name in ("a", "b")]
    moved, first = 0, 0
    started = time.monotonic()
    lines: list[list[str]] = []
    with running(nodes):
        pair_all(nodes)
        with MemoryWatch(nodes) as watch:
            while first < total_blocks:
                count = min(blocks, total_blocks - first)
                directory = options.scratch / f"model-{first}"
                make_model(directory, count, first)
                with nodes[0].client() as client:
                    report = client.push(PushParams(str(directory), name=f"model-{first}"))
                    if report.failed or report.pending:
                        raise BenchError(f"the push ended with {report.nodes}")
                    moved += report.nodes[0].bytes_moved
                    client.remove(f"model-{first}", yes=True)
                shutil.rmtree(directory)
                for node in nodes:
                    node.command("gc", "--now")
                first += count
                now = {node.name: anonymous_bytes(node.pid) for node in nodes}
                said = ", ".join(
                    f"{name} {now[name] / 1e6:.0f} MB now, {highest / 1e6:.0f} at most"
                    for name, highest in watch.highest.items()
                )
                say(f"{moved / GB:.1f} GB moved: {said}")
                lines.append([f"{moved / GB:.1f}", *(f"{now[node.name] / 1e6:.0f}" for node in nodes)])
    head = ["GB moved", *(f"{node.name}, MB after" for node in nodes)]
    table(head, lines)
    for name, highest in watch.highest.items():
        print(f"{name}: {watch.idle[name] / 1e6:.0f} MB before, {highest / 1e6:.0f} MB at most")
    demands = [
        Demand(f"anonymous MB of node {name}", highest / 1e6, ANONYMOUS_BYTES_MAX / 1e6)
        for name, highest in watch.highest.items()
    ]
    demands.append(Demand("GB moved", moved / GB, options.pick(20, 0.6), at_most=False))
    figures = {"highest_bytes": watch.highest, "idle_bytes": watch.idle, "seconds": time.monotonic() - started}
    return verdict("memory", demands, figures, quick=options.quick)
