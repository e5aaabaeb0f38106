"""To three nodes: a network namespace per node, a cable of 400 Mbit/s each way per pair, 0.54 GB to each. Root.

    sudo python -m bench mesh [--runs 3] [--only tbshare libtorrent rsync]

The bound is M / (3 cables x 50 MB/s): the seed cannot send faster than its three cables, so no schedule is
quicker. Time is from the publication of the ref to the last node's last verified block; to durable stands beside
it. rsync takes the file to one node after another, each over its own cable; libtorrent
(if it is installed) to all at once.
"""

import contextlib
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from bench.measuring import Demand, make_random_file
from bench.nodes import ArrivalWatch, BenchError, Node, environment, pair_all, running, wait_until
from bench.rows import Options, say, table, verdict
from tbshare.wire.local import PushParams
from tbshare.wire.report import AnyEvent, Published

MEMBERS = 4
MBIT_PER_SECOND = 400
BYTES = 540_000_000
TIMES_BOUND_MAX = 1.3
RSYNC_PORT = 8730
TORRENT_SECONDS_MAX = 120.0


@dataclass(frozen=True)
class Net:
    """The namespaces, and the addresses on the cables between them."""

    tag: str

    def namespace(self, number: int) -> str:
        return f"tbb{self.tag}-{number}"

    def prefix(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", self.namespace(number)]

    @staticmethod
    def address(number: int, other: int) -> str:
        """Return the address of `number` on its cable to `other`."""
        low, high = sorted((number, other))
        return f"10.79.{16 * low + high}.{1 if number == low else 2}"

    def device(self, number: int, other: int) -> str:
        return f"tb{self.tag}{number}{other}"


def _root(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def cabled(members: int, mbit: int) -> Generator[Net]:
    """Make the namespaces and cables; remove them, and every process in them, at the end."""
    net = Net(f"{os.getpid() % 100_000}")
    made: list[int] = []
    try:
        for number in range(members):
            _root("ip", "netns", "add", net.namespace(number))
            made.append(number)
            _root("ip", "-n", net.namespace(number), "link", "set", "lo", "up")
        for low, high in combinations(range(members), 2):
            ends = [(low, high), (high, low)]
            names = [net.device(*end) for end in ends]
            _root("ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1])
            for (number, other), name in zip(ends, names, strict=True):
                space = net.namespace(number)
                _root("ip", "link", "set", name, "netns", space)
                _root("ip", "-n", space, "addr", "add", f"{net.address(number, other)}/30", "dev", name)
                _root("ip", "-n", space, "link", "set", name, "up")
                shape = f"root tbf rate {mbit}mbit burst 256kb latency 50ms".split()
                _root("tc", "-n", space, "qdisc", "add", "dev", name, *shape)
        yield net
    finally:
        for number in made:
            space = net.namespace(number)
            left = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
            for pid in left.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            subprocess.run(["ip", "netns", "del", space], check=False)


def _large(home: Path) -> set[Path]:
    objects = home / "objects"
    return {path for path in objects.rglob("*") if path.is_file() and path.stat().st_size > 1 << 22}


def push(nodes: list[Node], model: Path, name: str) -> tuple[float, float, float]:
    """Push to all; return seconds to verified everywhere, to durable everywhere, and CPU of all daemons."""
    size = sum(path.stat().st_size for path in model.iterdir())
    seed, others = nodes[0], nodes[1:]
    before = _large(seed.home)
    published, cpu = 0.0, 0.0
    with contextlib.ExitStack() as stack:
        watches = [stack.enter_context(ArrivalWatch(node, size)) for node in others]

        def heard(event: AnyEvent) -> None:
            nonlocal published, cpu
            if isinstance(event, Published):
                published = time.perf_counter()
                cpu = sum(node.cpu_seconds() for node in nodes)
                (new,) = _large(seed.home) - before
                for node, watch in zip(others, watches, strict=True):
                    watch.named = node.home / new.relative_to(seed.home)

        with seed.client() as client:
            report = client.push(PushParams(str(model), name=name), heard)
        wait_until("the durable objects are seen", lambda: all(watch.durable for watch in watches), seconds=5)
    if report.failed or report.pending:
        raise BenchError(f"the push ended with {report.nodes}")
    cpu = sum(node.cpu_seconds() for node in nodes) - cpu
    moved = [line.bytes_moved for line in report.nodes]
    if min(moved) < size:
        raise BenchError(f"bytes moved: {moved}")
    written = max(watch.written.when for watch in watches if watch.written) - published
    durable = max(watch.durable.when for watch in watches if watch.durable) - published
    return written, durable, cpu


def rsync(net: Net, model: Path, size: int, scratch: Path) -> float:
    """Take new content to one node after another with rsync; return the seconds."""
    make_random_file(model / "weights.bin", size)
    config = scratch / "rsyncd.conf"
    config.write_text(f"use chroot = no\n[module]\npath = {model}\nread only = yes\n")
    command = ["rsync", "--daemon", "--no-detach", f"--port={RSYNC_PORT}", f"--config={config}"]
    daemon = subprocess.Popen([*net.prefix(0), *command])
    try:
        time.sleep(0.5)
        started = time.perf_counter()
        for number in range(1, MEMBERS):
            source = f"rsync://{net.address(0, number)}:{RSYNC_PORT}/module/"
            destination = scratch / f"rsync-{number}"
            subprocess.run(
                [*net.prefix(number), "rsync", "-a", "--whole-file", source, str(destination)], check=True
            )
        wall = time.perf_counter() - started
    finally:
        daemon.terminate()
        daemon.wait()
    for number in range(1, MEMBERS):
        shutil.rmtree(scratch / f"rsync-{number}")
    return wall


def torrent(net: Net, model: Path, scratch: Path) -> float:
    """Take the model to all nodes at once with libtorrent; return the seconds until the last has it."""
    program = [sys.executable, "-m", "bench.torrent"]
    file = scratch / "model.torrent"
    subprocess.run([*program, "make", str(model), str(file)], check=True, env=environment())
    children: list[subprocess.Popen[str]] = []

    def end() -> None:
        for child in children:
            child.kill()

    late = threading.Timer(TORRENT_SECONDS_MAX, end)
    late.start()
    try:
        for number in range(MEMBERS):
            role, directory = ("fetch", scratch / f"torrent-{number}") if number else ("seed", model.parent)
            directory.mkdir(exist_ok=True)
            listen = ",".join(net.address(number, other) for other in range(MEMBERS) if other != number)
            peers = ",".join(net.address(other, number) for other in range(number))
            command = [*net.prefix(number), *program, role, str(directory), str(file)]
            child = subprocess.Popen(
                [*command, "--listen", listen, "--peers", peers],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            children.append(child)
        for child in children:
            _expect(child, "ready")
        started = time.perf_counter()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children[1:]:
            _expect(child, "done")
        return time.perf_counter() - started
    finally:
        late.cancel()
        end()
        for child in children:
            child.wait()
        for number in range(1, MEMBERS):
            shutil.rmtree(scratch / f"torrent-{number}", ignore_errors=True)


def _expect(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdout is not None
    said = child.stdout.readline().strip()
    if said != word:
        raise BenchError(f"a peer of libtorrent said {said!r}, not {word!r}")


def _pushes(net: Net, model: Path, size: int, options: Options) -> list[tuple[float, float, float]]:
    """Push new content once a run; return what `push` does, for each."""
    results: list[tuple[float, float, float]] = []
    config = '[links]\ndirect = ["10.79.0.0/16"]\n'
    nodes = [
        Node(options.scratch / f"n{number}", f"n{number}", listen="", prefix=net.prefix(number), config=config)
        for number in range(MEMBERS)
    ]
    with running(nodes):
        seen = {id(node): net.address(0, number) for number, node in enumerate(nodes) if number}
        pair_all(nodes, lambda node: seen[id(node)])
        for number in range(options.runs):
            make_random_file(model / "weights.bin", size)
            written, durable, cpu = push(nodes, model, f"mesh-{number}")
            results.append((written, durable, cpu))
            say(f"run {number + 1}/{options.runs}: verified {written:.2f} s, durable {durable:.2f} s")
            with nodes[0].client() as client:
                client.remove(f"mesh-{number}", yes=True)
            for node in nodes:
                node.command("gc", "--now")
    return results


def _torrents(net: Net, model: Path, size: int, options: Options) -> list[float]:
    if importlib.util.find_spec("libtorrent") is None:
        say("libtorrent is not installed: skipped (pip install libtorrent)")
        return []
    walls: list[float] = []
    for _ in range(options.runs):
        make_random_file(model / "weights.bin", size)
        walls.append(torrent(net, model, options.scratch))
        say(f"libtorrent: {walls[-1]:.2f} s")
    return walls


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    if os.geteuid() != 0:
        print("skipped: network namespaces need root")
        return False
    size = int(options.pick(BYTES, BYTES / 10))
    bound = size * 8 / ((MEMBERS - 1) * MBIT_PER_SECOND * 1e6)
    model = options.scratch / "model"
    model.mkdir()
    chosen = options.only or ("tbshare", "libtorrent", "rsync")
    with cabled(MEMBERS, MBIT_PER_SECOND) as net:
        results = _pushes(net, model, size, options) if "tbshare" in chosen else []
        torrents = _torrents(net, model, size, options) if "libtorrent" in chosen else []
        alone = [rsync(net, model, size, options.scratch)] if "rsync" in chosen else []
    figures: dict[str, float] = {"bytes": size, "bound_seconds": bound}
    lines: list[list[str]] = []
    demands: list[Demand] = []

    def line(name: str, walls: Sequence[float]) -> None:
        if walls:
            middle = figures[f"{name}, seconds"] = statistics.median(walls)
            spread = f"({min(walls):.2f}-{max(walls):.2f})"
            lines.append([name, f"{middle:.2f}", spread, f"{middle / bound:.2f}x"])

    line("tbshare, verified", [row[0] for row in results])
    line("tbshare, durable", [row[1] for row in results])
    line("libtorrent", torrents)
    line("rsync, one after another", alone)
    if results:
        cpu = statistics.median(row[2] for row in results)
        figures["CPU s/GB, all daemons"] = cpu / (size * (MEMBERS - 1) / 1e9)
        times = figures["tbshare, verified, seconds"] / bound
        demands.append(Demand("to three nodes, as a multiple of the bound", times, TIMES_BOUND_MAX))
    table([f"{size / 1e9:.2f} GB to 3, bound {bound:.2f} s", "seconds", "(least-most)", "of the bound"], lines)
    return verdict("mesh", demands, figures, quick=options.quick)
