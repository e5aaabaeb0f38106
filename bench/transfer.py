"""2 GB to one node over loopback: tbshare's daemons, sealed and not, against a bare copy, rsync and mlx_lm.share.

    python -m bench transfer [--runs 5] [--only tbshare rsync ...]

One file of random bytes, in the page cache everywhere, taken in by node `a`. Before each run the receiver's copy
is evicted and memory is warmed (why: `measuring.warm_pages`). The clock stops twice: when the last block is
verified and written, which is what rsync and the bare copy do, and when it is durable; `rsync --fsync` stands
beside that. CPU seconds are those of both daemons until the pull has ended, syncs included.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

from bench.lane import Bench
from bench.measuring import GIB, Demand, Usage, cpu_of, median_of, print_table, take_turns
from bench.nodes import ArrivalWatch, BenchError, Node, environment, pair_all, running, wait_until
from bench.rows import Options, verdict
from tbshare.transport.lane import NICE
from tbshare.wire.local import PullParams, PushParams

REF = "transfer"


class Transfer:
    """The contenders that need more than `lane.Bench` has."""

    def __init__(self, bench: Bench, nodes: dict[str, Node]) -> None:
        self.bench, self.nodes = bench, nodes
        self.durable: dict[str, list[Usage]] = {}

    def push(self) -> None:
        """Take the source in at node a; the others get it when they pull."""
        with self.nodes["a"].client() as client:
            report = client.push(PushParams(str(self.bench.source.parent), name=REF, to=["b"]))
        if report.failed or report.pending:
            raise BenchError(f"the push ended with {report.nodes}")
        self.nodes["b"].free(REF)

    def pull(self, to: str) -> Usage:
        """Fetch it from a; return the time to the last verified block, and note that to durability."""
        provider, fetcher = self.nodes["a"], self.nodes[to]
        both = (provider, fetcher)
        (here,) = _objects(provider)
        named = fetcher.home / here.relative_to(provider.home)
        with (
            fetcher.client() as client,
            ArrivalWatch(fetcher, self.bench.size, named=named, cpu_nodes=both) as watch,
        ):
            cpu = sum(node.cpu_seconds() for node in both)
            started = time.perf_counter()
            report = client.pull(PullParams(REF))
            wait_until("the durable object is seen", lambda: watch.durable is not None, seconds=5)
        cpu = sum(node.cpu_seconds() for node in both) - cpu
        if report.nodes[0].state != "durable" or watch.written is None or watch.durable is None:
            raise BenchError(f"the pull ended with {report.nodes}")
        durable = watch.durable.when - started
        fetcher.free(REF)
        wait_until("the space is freed", lambda: not _objects(fetcher))
        size = self.bench.size
        self.durable.setdefault(f"tbshare{'' if to == 'b' else ', sealed'}", []).append(Usage(size, durable, cpu))
        return Usage(size, watch.written.when - started, cpu)

    def rsync(self, port: int, daemon: int, *, fsync: bool) -> Usage:
        """Take the file from the running daemon of rsync."""
        destination = self.bench.destination
        source = f"rsync://127.0.0.1:{port}/module/source"
        command = ["nice", f"-{NICE}", "rsync", "-a", "--whole-file", *(["--fsync"] if fsync else [])]
        before = cpu_of(daemon)
        started = time.perf_counter()
        client = subprocess.Popen([*command, source, str(destination)])
        _, status, used = os.wait4(client.pid, 0)
        wall = time.perf_counter() - started
        client.returncode = status
        if status:
            raise BenchError(f"rsync failed ({status})")
        wait_until("rsync's daemon waits for its child", lambda: cpu_of(daemon) - before > 0.02 or wall < 0.1)
        self.bench.check()
        return Usage(self.bench.size, wall, used.ru_utime + used.ru_stime + cpu_of(daemon) - before)

    def share(self, scratch: Path) -> Usage:
        """Send it with mlx_lm.share from one rank of a ring to another."""
        ports = [_free_port(), _free_port()]
        hosts = scratch / "hosts.json"
        hosts.write_text(str([[f"127.0.0.1:{port}"] for port in ports]).replace("'", '"'))
        command = [sys.executable, "-m", "mlx_lm", "share", "--path", str(self.bench.source.parent)]
        received = scratch / "received"
        children: list[subprocess.Popen[bytes]] = []
        started = time.perf_counter()
        try:
            for rank in range(2):
                more = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
                place = self.bench.source.parent if rank == 0 else received
                words = [*command, "--dst", str(place), "--tmpdir", str(scratch)]
                if rank:
                    words[words.index("--path") + 1] = str(received)
                child = subprocess.Popen(
                    words, env=environment() | more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                children.append(child)
            cpu, failed = 0.0, 0
            for child in children:
                _, status, used = os.wait4(child.pid, 0)
                child.returncode = os.waitstatus_to_exitcode(status)
                cpu += used.ru_utime + used.ru_stime
                failed |= status
        finally:
            for child in children:
                if child.returncode is None:
                    child.kill()
                    child.wait()
        wall = time.perf_counter() - started
        arrived = received / self.bench.source.name
        if failed or not arrived.is_file() or arrived.stat().st_size != self.bench.size:
            raise BenchError("mlx_lm.share failed")
        arrived.rename(self.bench.destination)
        self.bench.check()
        shutil.rmtree(received)
        return Usage(self.bench.size, wall, cpu)


def _objects(node: Node) -> list[Path]:
    """Return the large files of a node's store."""
    return [
        path for path in (node.home / "objects").rglob("*") if path.is_file() and path.stat().st_size > 1 << 22
    ]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def rsync_daemon(directory: Path, module: Path) -> Generator[tuple[int, int]]:
    """Run an rsync daemon that offers `module`; yield its port and process id."""
    port = _free_port()
    config = directory / "rsyncd-bench.conf"
    config.write_text(f"use chroot = no\n[module]\npath = {module}\nread only = yes\n")
    command = ["nice", f"-{NICE}", "rsync", "--daemon", "--no-detach", f"--port={port}", f"--config={config}"]
    daemon = subprocess.Popen(command)
    try:

        def answers() -> bool:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                return True
            return False

        wait_until("rsync's daemon starts", answers)
        yield port, daemon.pid
    finally:
        daemon.terminate()
        daemon.wait()


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    size = int(options.pick(2, 0.125) * GIB)
    warm_gib = options.pick(4, 0)
    bench = Bench(options.scratch, size)
    nodes = {
        "a": Node(options.scratch / "a", "a"),
        "b": Node(options.scratch / "b", "b", config='[links]\nseal = "never"\n'),
        "c": Node(options.scratch / "c", "c", config='[links]\nseal = "always"\n'),
    }
    with running(list(nodes.values())):
        pair_all(list(nodes.values()))
        transfer = Transfer(bench, nodes)
        transfer.push()
        with rsync_daemon(options.scratch, bench.source.parent) as (port, daemon):
            contenders: dict[str, Callable[[], Usage]] = {
                "bare": bench.bare,
                "tbshare": lambda: transfer.pull("b"),
                "tbshare, sealed": lambda: transfer.pull("c"),
                "rsync": lambda: transfer.rsync(port, daemon, fsync=False),
                "rsync --fsync": lambda: transfer.rsync(port, daemon, fsync=True),
                "mlx_lm.share": lambda: transfer.share(options.scratch),
            }
            if options.only:
                contenders = {name: run for name, run in contenders.items() if name in options.only}
            # Last and by itself: it touches and frees many gigabytes, and whoever came next in its turn would pay
            # for cold pages (README, "Warm pages").
            share = {name: run for name, run in contenders.items() if name == "mlx_lm.share"}
            others = {name: run for name, run in contenders.items() if name not in share}
            results = take_turns(others, options.runs, warm_gib=warm_gib) if others else {}
            if share:
                results |= take_turns(share, min(options.runs, 3), warm_gib=warm_gib)
    medians = {name: median_of(usages) for name, usages in results.items()}
    durable = {f"{name}, durable": median_of(usages) for name, usages in transfer.durable.items()}
    print_table(medians | durable, ["bare", "rsync", "rsync --fsync"])
    rows = {
        name: {key: round(value, 4) for key, value in vars(row).items()}
        for name, row in (medians | durable).items()
    }
    return verdict("transfer", _demands(results), {"bytes": size, "medians": rows}, quick=options.quick)


def _demands(results: dict[str, list[Usage]]) -> list[Demand]:
    demands: list[Demand] = []
    medians = {name: median_of(usages) for name, usages in results.items()}
    own, sealed = medians.get("tbshare"), medians.get("tbshare, sealed")
    rsync, bare, share = medians.get("rsync"), medians.get("bare"), medians.get("mlx_lm.share")
    if own is not None:
        demands.append(Demand("CPU s/GB, both daemons", own.cpu_seconds_per_gb, 1.0))
        if rsync is not None:
            ratio = own.cpu_seconds_per_gb / rsync.cpu_seconds_per_gb
            demands.append(Demand("CPU as a multiple of rsync's", ratio, 0.8))
            ratio = own.gb_per_second / rsync.gb_per_second
            demands.append(Demand("speed as a multiple of rsync's", ratio, 1.25, at_most=False))
        if bare is not None:
            ratio = own.gb_per_second / bare.gb_per_second
            demands.append(Demand("speed as a multiple of the bare copy's", ratio, 0.85, at_most=False))
        if share is not None:
            ratio = own.gb_per_second / share.gb_per_second
            demands.append(Demand("speed as a multiple of mlx_lm.share's", ratio, 10, at_most=False))
    if sealed is not None:
        demands.append(Demand("sealed: CPU s/GB, both daemons", sealed.cpu_seconds_per_gb, 1.5))
        demands.append(Demand("sealed: GB/s", sealed.gb_per_second, 1.0, at_most=False))
    return demands
