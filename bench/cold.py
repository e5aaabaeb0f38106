"""What is not here is read from the node that has it: two namespaces, a cable of 1 Gbit/s between them. Root.

    sudo python -m bench cold [--runs 5] [--only first stream]

*first*: from open(2) until the first 4 KiB are there, at random places of files that only the other node has, each
read for the first time, through the mount; the cable is idle, or saturated by a push of a model from the same
node. *stream*: such a file read from start to end through the mount, against `pull` of one of that size, in
turns; each is new. A pull ends when all is durable, a read with the last byte.
"""

import contextlib
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

from bench.measuring import Demand, make_random_file
from bench.mesh import Net, cabled
from bench.nodes import Node, environment, pair_all, running, wait_until
from bench.rows import Options, say, table, verdict
from tbshare.errors import TbshareError
from tbshare.wire.files import FileCopyParams
from tbshare.wire.local import PullParams, PushParams
from tbshare.wire.report import AnyEvent, Published
from tbshare.wire.volume import VolumeCreateParams
from tbshare.wire.where import Where

MBIT_PER_SECOND = 1000
FILES, FILE_BYTES = 24, 64_000_000
BULK_BYTES = 1_500_000_000
STREAM_BYTES = 500_000_000
ON_DEMAND = '[store]\naccept = "on-demand"\n'
FIRST_SECONDS_MAX, STREAM_OF_PULL = 0.05, 0.8
VOLUME = "films"


def two_nodes(net: Net, scratch: Path) -> list[Node]:
    """Return a node that has all, and one that holds what it is asked to."""
    nodes: list[Node] = []
    for number, (name, config) in enumerate([("ada", ""), ("grace", ON_DEMAND)]):
        host, prefix = net.address(number, 1 - number), net.prefix(number)
        nodes.append(Node(scratch / name, name, host=host, listen="", prefix=prefix, config=config))
    return nodes


def save_files(ada: Node, scratch: Path, names: list[str]) -> None:
    """Save random files on one node."""
    with ada.client() as client:
        for name in names:
            local = scratch / name
            make_random_file(local, FILE_BYTES)
            client.file_copy(FileCopyParams([Where(path=bytes(local))], Where(VOLUME, name.encode())))
            local.unlink()


@contextlib.contextmanager
def mounted(node: Node, volume: str, directory: Path) -> Generator[Path]:
    """Mount a volume of a node. Outside its namespace, where it can be seen: a mount talks to its daemon only."""
    directory.mkdir()
    words = [sys.executable, "-m", "tbshare.cli", "--home", str(node.home)]
    subprocess.run([*words, "mount", volume, str(directory)], check=True, capture_output=True, env=environment())
    try:
        yield directory
    finally:
        subprocess.run([*words, "unmount", str(directory)], check=True, capture_output=True, env=environment())


def first_bytes(directory: Path, names: list[str]) -> list[float]:
    """Return the seconds to the first bytes at a random place of each file, from before it is opened."""
    taken: list[float] = []
    for name in names:
        offset = random.randrange(FILE_BYTES - 4096)
        began = time.perf_counter()
        descriptor = os.open(directory / name, os.O_RDONLY)
        try:
            assert len(os.pread(descriptor, 4096, offset)) == 4096
            taken.append(time.perf_counter() - began)
        finally:
            os.close(descriptor)
        time.sleep(random.random() / 20)
    return taken


def under_load(nodes: list[Node], directory: Path, names: list[str], model: Path, size: int) -> list[float]:
    """Do the same while a model is pushed from the node that has the files."""
    ada, grace = nodes
    make_random_file(model / "weights.bin", size)
    published = threading.Event()

    def heard(event: AnyEvent) -> None:
        if isinstance(event, Published):
            published.set()

    def push() -> None:
        try:
            with ada.client() as client:
                client.push(PushParams(str(model), name="bulk", to=["grace"]), heard)
        except TbshareError:
            return

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    published.wait()
    before = grace.written_bytes()
    wait_until("the push fills the cable", lambda: grace.written_bytes() - before > size / 30)
    taken = first_bytes(directory, names)
    if not thread.is_alive():
        say("the push ended before the last read: the last figures are of an idle cable")
    thread.join()
    return taken


def first(options: Options, nodes: list[Node], figures: dict[str, float]) -> list[Demand]:
    """Measure the first byte."""
    ada, grace = nodes
    names = [f"A{number:03d}.mov" for number in range(2 * FILES)]
    with ada.client() as client:
        client.volume_create(VolumeCreateParams(VOLUME))
    save_files(ada, options.scratch, names)
    wait_until("grace knows the files", lambda: _knows(grace, len(names)))
    model = options.scratch / "bulk"
    model.mkdir()
    bulk = int(options.pick(BULK_BYTES, BULK_BYTES / 3))
    with mounted(grace, VOLUME, options.scratch / "films") as directory:
        idle = first_bytes(directory, names[:FILES])
        loaded = under_load(nodes, directory, names[FILES:], model, bulk)
    lines: list[list[str]] = []
    for name, taken in (("idle", idle), ("saturated by a push", loaded)):
        figures[f"first byte, {name}, s"] = statistics.median(taken)
        shown = (statistics.median(taken), min(taken), max(taken))
        lines.append([name, *[f"{value * 1000:.1f}" for value in shown]])
    table([f"first 4 KiB of {FILES} cold files, ms", "median", "least", "most"], lines)
    return [Demand("first byte, the cable saturated, median s", statistics.median(loaded), FIRST_SECONDS_MAX)]


def _knows(node: Node, count: int) -> bool:
    try:
        with node.client() as client:
            return len(client.file_list(Where(VOLUME)).items) == count
    except TbshareError:
        return False


def stream(options: Options, nodes: list[Node], figures: dict[str, float]) -> list[Demand]:
    """Measure a whole read against a pull."""
    ada, grace = nodes
    size = int(options.pick(STREAM_BYTES, STREAM_BYTES / 5))
    model = options.scratch / "model"
    model.mkdir()
    pulls, reads = list[float](), list[float]()
    with mounted(grace, "models", options.scratch / "models") as directory:
        for number in range(2 * options.runs):
            make_random_file(model / "weights.bin", size)
            name = f"weights-{number}"
            with ada.client() as client:
                client.push(PushParams(str(model), name=name, to=["ada"]))
            path = directory / name / "weights.bin"
            wait_until("grace knows the model", path.exists)
            began = time.perf_counter()
            if number % 2:
                with grace.client() as client:
                    client.pull(PullParams(name))
                pulls.append(time.perf_counter() - began)
            else:
                read_all(path, size)
                reads.append(time.perf_counter() - began)
    rates = {name: size / statistics.median(taken) / 1e6 for name, taken in (("read", reads), ("pull", pulls))}
    figures |= {f"{name}, MB/s": rate for name, rate in rates.items()}
    table([f"{size / 1e6:.0f} MB, MB/s", "median"], [[name, f"{rate:.1f}"] for name, rate in rates.items()])
    ratio = rates["read"] / rates["pull"]
    return [Demand("a streaming read, of the speed of pull", ratio, STREAM_OF_PULL, at_most=False)]


def read_all(path: Path, size: int) -> None:
    """Read a file from its start to its end."""
    buffer, count = bytearray(1 << 20), 0
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            count += got
    assert count == size


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    figures: dict[str, float] = {}
    demands: list[Demand] = []
    chosen = options.only or ("first", "stream")
    with cabled(2, MBIT_PER_SECOND) as net:
        nodes = two_nodes(net, options.scratch)
        with running(nodes):
            pair_all(nodes, lambda node: net.address(0, 1))
            for name, measure in (("first", first), ("stream", stream)):
                if name in chosen:
                    demands += measure(options, nodes, figures)
    return verdict("cold", demands, figures, quick=options.quick)
