"""How long after a save on one node a user of another node sees it. Two daemons on one machine.

    python -m bench visible

Ada saves a new file, over and over, from 4 KiB to 256 KiB, through the control socket; Grace has a `watch` of the
volume open. *From the call* counts from before the file is read on Ada's side, so that taking it in, both syncs
and the way back of the answer are in it; *from the answer* counts from when Ada's user is told that it is saved (0
when Grace sees it before). Meanwhile another user of each node saves a file every 50 ms and lists the volume.
"""

import statistics
import threading
import time
from pathlib import Path
from random import Random

from bench.measuring import Demand
from bench.nodes import Node, pair_all, running, wait_until
from bench.rows import Options, say, table, verdict
from tbshare.errors import TbshareError
from tbshare.wire.files import FileCopyParams
from tbshare.wire.report import AnyEvent
from tbshare.wire.volume import Changed, VolumeCreateParams
from tbshare.wire.where import Where

SAVES, LOAD_SECONDS = 300, 0.05
PAUSE_SECONDS = 0.03  # between two saves
BYTES_LEAST, BYTES_MOST = 4096, 256 * 1024
SEEN_SECONDS_MAX = 20.0
MEDIAN_MAX, P99_MAX = 0.2, 1.0
NAME = "film"


class Watched:
    """Notes when a node's user hears of each path."""

    def __init__(self, node: Node) -> None:
        self.when: dict[bytes, float] = {}
        self._node = node
        self._client = node.client()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._client.watch(Where(NAME), self._heard)
        except TbshareError:
            return  # the daemon ends

    def _heard(self, event: AnyEvent) -> None:
        if isinstance(event, Changed):
            self.when.setdefault(event.where.path, time.perf_counter())


def save(node: Node, scratch: Path, name: str, data: bytes) -> tuple[float, float]:
    """Save bytes; return when the call began and when it was answered."""
    local = scratch / name
    local.write_bytes(data)
    with node.client() as client:
        started = time.perf_counter()
        client.file_copy(FileCopyParams([Where(path=bytes(local))], Where(NAME, name.encode())))
        answered = time.perf_counter()
    local.unlink()
    return started, answered


def load(node: Node, scratch: Path, over: threading.Event) -> None:
    """Save and list, as another user of this node does, until it is over."""
    random, number = Random(node.name), 0
    while not over.wait(LOAD_SECONDS):
        number += 1
        save(node, scratch, f"load {node.name} {number}", random.randbytes(BYTES_LEAST))
        if number % 4 == 0:
            with node.client() as client:
                client.file_list(Where(NAME))


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    nodes = [Node(options.scratch / name, name) for name in ("ada", "grace")]
    ada, grace = nodes
    random, saves = Random(1), int(options.pick(SAVES, 20))
    called, answered = list[float](), list[float]()
    with running(nodes):
        pair_all(nodes)
        with ada.client() as client:
            client.volume_create(VolumeCreateParams(NAME))
        wait_until("grace knows the volume", lambda: _knows(grace))
        watched = Watched(grace)
        over = threading.Event()
        loads = [threading.Thread(target=load, args=[node, options.scratch, over]) for node in nodes]
        for thread in loads:
            thread.start()
        try:
            times: dict[bytes, tuple[float, float]] = {}
            for number in range(saves):
                name = f"A001_C{number:06d}.mov"
                data = random.randbytes(random.randrange(BYTES_LEAST, BYTES_MOST))
                times[name.encode()] = save(ada, options.scratch, name, data)
                time.sleep(PAUSE_SECONDS)
            wait_until("all is seen", lambda: times.keys() <= watched.when.keys(), seconds=SEEN_SECONDS_MAX)
        finally:
            over.set()
            for thread in loads:
                thread.join()
        for path, (began, ended) in times.items():
            called.append(watched.when[path] - began)
            answered.append(max(watched.when[path] - ended, 0.0))
        say(f"{len(watched.when)} paths heard of, {saves} of them measured")
    ways = {"from the call": called, "from the answer": answered}
    cuts = {name: statistics.quantiles(values, n=100) for name, values in ways.items()}
    table(
        [f"seconds, {saves} saves", "median", "p99", "most"],
        [
            [name, f"{cuts[name][49]:.4f}", f"{cuts[name][98]:.4f}", f"{max(values):.4f}"]
            for name, values in ways.items()
        ],
    )
    demands = [
        Demand("a save is seen on the peer, median s from the call", cuts["from the call"][49], MEDIAN_MAX),
        Demand("a save is seen on the peer, p99 s from the call", cuts["from the call"][98], P99_MAX),
    ]
    figures = {name: {"median": cuts[name][49], "p99": cuts[name][98]} for name in ways}
    return verdict("visible", demands, figures, quick=options.quick)


def _knows(node: Node) -> bool:
    with node.client() as client:
        return any(volume.name == NAME for volume in client.volume_list().volumes)
