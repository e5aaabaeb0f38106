"""Two nodes that worked alone for a month: 50,000 ops on each, until both have all. Real daemons, a cable; root.

    sudo python -m bench apart

The ops are those of users, one entry a call (see `ops`: new files with attributes, saves over, attributes), made
before the clock runs, through each node's own log and tables. The volume is `replicate on-demand`: what is
measured is the namespace, not the bytes of the files. The clock runs from when the cable gets its carrier back,
between two daemons that run already, until both say that all files are there; afterwards the logs of both are
compared, and every directory of both.
"""

import os
import shutil
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.local_volume import NAME, local_volume
from bench.measuring import Demand, run_forked
from bench.mesh import Net, cabled
from bench.nodes import BenchError, Node, pair_all, running, wait_until
from bench.ops import Client
from bench.rows import Options, say, table, verdict
from tbshare.volumes.item import Item
from tbshare.volumes.item import Path as VolumePath
from tbshare.volumes.volume import Handle
from tbshare.wire.volume import VolumeCreateParams

OPS_EACH = 50_000
CLIENTS_EACH = 20  # each with a directory
MBIT_PER_SECOND = 1000
SECONDS_MAX, WAIT_SECONDS = 30.0, 60.0
PARTS = ("log.db", "namespace", "device.key")


def _work(home: Path, first: int, ops: int) -> None:
    """Do so many ops in a volume of a node that is down."""
    with local_volume(home) as node:
        clients = [Client(node.handle, first + number) for number in range(CLIENTS_EACH)]
        done = 0
        while done < ops:
            before = [client.ops for client in clients]
            for client in clients:
                client.call()
            done += sum(client.ops for client in clients) - sum(before)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in PARTS:
        if (source / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)
            shutil.copytree(source / name, target / name)
        else:
            shutil.copy2(source / name, target / name)


def _work_alone(nodes: list[Node], ops: int) -> None:
    """Let each node do its ops, in memory, where a sync costs nothing, and put them on the disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as fast:
        homes = [Path(fast, node.name) for node in nodes]
        for node, home in zip(nodes, homes, strict=True):
            _copy(node.home, home)
        run_forked([partial(_work, home, number * CLIENTS_EACH, ops) for number, home in enumerate(homes)])
        for node, home in zip(nodes, homes, strict=True):
            _copy(home, node.home)


def _set_cable(net: Net, *, works: bool) -> None:
    for number, other in ((0, 1), (1, 0)):
        words = ["ip", "-n", net.namespace(number), "link", "set", net.device(number, other)]
        subprocess.run([*words, "up" if works else "down"], check=True)


def _files(node: Node) -> int:
    with node.client() as client:
        return next((volume.files for volume in client.volume_list().volumes if volume.name == NAME), -1)


def _everything(handle: Handle, path: VolumePath = ()) -> list[tuple[VolumePath, Item]]:
    found: list[tuple[VolumePath, Item]] = []
    for item in handle.list(path):
        found.append((path, item))
        if item.is_directory:
            found += _everything(handle, (*path, item.name))
    return found


def _check_equal(nodes: list[Node]) -> tuple[int, int]:
    """Return how many entries and items both have; BenchError when they differ."""
    vectors, shown = list[list[tuple[bytes, bytes, int, bytes]]](), list[list[tuple[VolumePath, Item]]]()
    for node in nodes:
        with local_volume(node.home) as local:
            heads = local.log.vector()
            vectors.append(sorted((head.node, head.incarnation, head.seq, head.hash) for head in heads))
            shown.append(_everything(local.handle))
    if vectors[0] != vectors[1] or shown[0] != shown[1]:
        raise BenchError("the nodes are not equal")
    return sum(head[2] for head in vectors[0]), len(shown[0])


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    if os.geteuid() != 0:
        raise BenchError("network namespaces need root")
    ops = int(options.pick(OPS_EACH, 1000))
    with cabled(2, MBIT_PER_SECOND) as net:
        nodes = [
            Node(
                options.scratch / name, name, host=net.address(number, 1 - number), listen="",
                prefix=net.prefix(number),
            )
            for number, name in enumerate(("ada", "grace"))
        ]  # fmt: skip
        with running(nodes):
            pair_all(nodes)
            with nodes[0].client() as client:
                client.volume_create(VolumeCreateParams(NAME, options={"replicate": "on-demand"}))
            wait_until("both know the volume", lambda: all(_files(node) == 0 for node in nodes))
        started = time.perf_counter()
        _work_alone(nodes, ops)
        expected = 0
        for node in nodes:
            with local_volume(node.home) as local:
                expected += local.handle.totals().files
        say(f"{ops} ops on each after {time.perf_counter() - started:.0f} s, {expected} files together")
        _set_cable(net, works=False)
        with running(nodes):
            if any(_files(node) >= expected for node in nodes):
                raise BenchError("the nodes were not apart")
            cpu = [node.cpu_seconds() for node in nodes]
            _set_cable(net, works=True)
            started = time.perf_counter()
            wait_until(
                "both have everything",
                lambda: all(_files(node) == expected for node in nodes),
                seconds=WAIT_SECONDS,
            )
            seconds = time.perf_counter() - started
            cpu = [node.cpu_seconds() - before for node, before in zip(nodes, cpu, strict=True)]
        entries, items = _check_equal(nodes)
    table(
        [f"{2 * ops} ops apart", "seconds", "CPU s, ada", "CPU s, grace", "entries", "items"],
        [["until equal", f"{seconds:.1f}", f"{cpu[0]:.1f}", f"{cpu[1]:.1f}", str(entries), str(items)]],
    )
    demands = [Demand("seconds from the cable back until both are equal", seconds, SECONDS_MAX)]
    figures = {"seconds": seconds, "cpu": cpu, "ops": 2 * ops, "entries": entries, "items": items}
    return verdict("apart", demands, figures, quick=options.quick)
