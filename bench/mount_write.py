"""Writing through tbshare's mount: a new file of 1 GB, and 1 MiB in the middle of one of 10 GB.

    python -m bench mount_write [--only new changed]

Root. *new*: pieces of 1 MiB, then fsync, of which the program waits; on XFS (a loop mount), where the kernel
writes the working file by itself, and on the disk of --scratch, where each write is a message; beside each the
same on the file system below. *changed*: a volume on XFS whose file of 10 GB a second node has, too. Of 1 MiB
written in its middle: the time from close to the version in the log, what the disk was given to write meanwhile
(sectors of the loop device, the file's own bytes and the file system's log included), and what the cable carried
to the peer.
"""

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.ingest import xfs
from bench.measuring import Demand
from bench.mesh import Net, cabled
from bench.mount import in_turns
from bench.mounted import MB, Row, mounted, seconds, volume_of, write_synced
from bench.nodes import BenchError, Node, pair_all, running, wait_until
from bench.rows import Options, say, table, verdict
from tbshare.errors import TbshareError
from tbshare.wire.volume import VolumeCreateParams
from tbshare.wire.where import Where

BYTES, BYTES_QUICK = 1 << 30, 64 << 20
LARGE_BYTES, LARGE_BYTES_QUICK = 10_000 << 20, 256 << 20
CHANGE_BYTES = 1 << 20
SECTOR_BYTES = 512
MBIT_PER_SECOND = 10_000
SHARE_CLONED, SHARE = 0.7, 0.3
COMMIT_SECONDS_MAX, WRITTEN_MIB_MAX, SENT_MIB_MAX = 0.5, 16, 8
COMMIT_SECONDS_GIVEN_UP = 60.0
NAME = "A001.mov"


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    if os.geteuid():
        say("left out: it takes root")
        return True
    figures: dict[str, Row] = {}
    demands: list[Demand] = []
    for name, measure in (("new", new), ("changed", changed)):
        if not options.only or name in options.only:
            demands += measure(options, figures)
    return verdict("mount_write", demands, figures, quick=options.quick)


# a new file ----------------------------------------------------------------------------------------------------


def new(options: Options, figures: dict[str, Row]) -> list[Demand]:
    """Measure writing a new file."""
    size = int(options.pick(BYTES, BYTES_QUICK))
    ways: dict[str, Callable[[], Row]] = {}
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(xfs(options.scratch, 6 * size + (1 << 30)))
        places = {"XFS": disk, "the disk of --scratch": options.scratch}
        nodes = {name: Node(place / "node", "ada") for name, place in places.items()}
        stack.enter_context(running(list(nodes.values())))
        for name, place in places.items():
            with nodes[name].client() as client:
                client.volume_create(VolumeCreateParams("film"))
            target = options.scratch / f"mount-{len(ways)}"
            stack.enter_context(mounted(nodes[name], "film", target))
            ways[name] = partial(written, place, size)
            ways[f"mount, {name}"] = partial(written, target, size)
        medians = in_turns(ways, options.runs)
    figures |= medians
    table([f"{size / MB:.0f} MB", "MB/s"], [[name, f"{row['MB/s']:,.0f}"] for name, row in medians.items()])
    return [
        Demand(f"write + fsync, {name}", medians[f"mount, {name}"]["MB/s"] / medians[name]["MB/s"], share, False)
        for name, share in zip(places, (SHARE_CLONED, SHARE), strict=True)
    ]


def written(directory: Path, size: int) -> Row:
    """Write a new file, sync it, remove it."""
    os.sync()
    path = directory / f"new {time.monotonic_ns()}"
    rate = size / MB / write_synced(path, size)
    path.unlink()
    os.sync()
    return {"MB/s": rate}


# a large file changed ------------------------------------------------------------------------------------------


def changed(options: Options, figures: dict[str, Row]) -> list[Demand]:
    """Measure a change in the middle of a large file."""
    size = int(options.pick(LARGE_BYTES, LARGE_BYTES_QUICK))
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        disks: list[Path] = []
        for name in ("ada", "grace"):
            (options.scratch / name).mkdir()
            disks.append(stack.enter_context(xfs(options.scratch / name, 3 * size + (2 << 30))))
        net = stack.enter_context(cabled(2, MBIT_PER_SECOND))
        nodes = [
            Node(
                disk / "node",
                disk.parent.name,
                host=net.address(number, 1 - number),
                listen="",
                prefix=net.prefix(number),
            )
            for number, disk in enumerate(disks)
        ]
        stack.enter_context(running(nodes))
        pair_all(nodes, lambda node: net.address(0, 1))
        began = time.perf_counter()
        (disks[0] / "take").mkdir()
        make_large(disks[0] / "take" / NAME, size)
        volume_of(nodes[0], "film", disks[0] / "take")
        wait_until("the peer has the file", lambda: here(nodes[1]) == nodes_version(nodes[0]), seconds=150)
        say(f"{size / 1e9:.1f} GB are on both nodes after {time.perf_counter() - began:.0f} s")
        target = options.scratch / "mount"
        stack.enter_context(mounted(nodes[0], "film", target))
        for number in range(options.runs):
            rows.append(change(target / NAME, size // 2 + number * 3 * CHANGE_BYTES, disks[0], nodes, net))
            say(", ".join(f"{what} {value:.3f}" for what, value in rows[-1].items()))
    medians = {what: statistics.median(row[what] for row in rows) for what in rows[0]}
    figures["changed"] = medians
    table([f"1 MiB of {size / 1e9:.1f} GB", *medians], [["", *(f"{value:.3f}" for value in medians.values())]])
    limits = (COMMIT_SECONDS_MAX, WRITTEN_MIB_MAX, SENT_MIB_MAX)
    whats = ("close to commit, s", "written, MiB", "to the peer, MiB")
    return [Demand(what, medians[what], limit) for what, limit in zip(whats, limits, strict=True)]


def change(path: Path, offset: int, disk: Path, nodes: list[Node], net: Net) -> Row:
    """Change 1 MiB of a file; return what became of it."""
    before = nodes_version(nodes[0])
    subprocess.run(["sync", "-f", str(disk)], check=True)
    sectors, sent = _sectors(disk), _sent(net)
    data, descriptor = os.urandom(CHANGE_BYTES), os.open(path, os.O_RDWR)
    written_seconds = seconds(lambda: os.pwrite(descriptor, data, offset))
    closing = time.perf_counter()
    os.close(descriptor)
    closed = time.perf_counter()
    while nodes_version(nodes[0]) == before:
        if time.perf_counter() - closing > COMMIT_SECONDS_GIVEN_UP:
            raise BenchError("what was written is no version")
        time.sleep(0.002)
    committed = time.perf_counter()
    subprocess.run(["sync", "-f", str(disk)], check=True)
    written = (_sectors(disk) - sectors) * SECTOR_BYTES
    now = nodes_version(nodes[0])
    wait_until("the peer has the version", lambda: here(nodes[1]) == now, seconds=60)
    return {
        "close to commit, s": committed - closing,
        "written, MiB": written / (1 << 20),
        "to the peer, MiB": (_sent(net) - sent) / (1 << 20),
        "write, s": written_seconds,
        "close, s": closed - closing,
        "to the peer, s": time.perf_counter() - closing,
    }


def make_large(path: Path, size: int) -> None:
    """Write bytes of which no 4 KiB are alike, quicker than random ones come."""
    pages = 64 << 8
    piece = bytearray(os.urandom(pages * 4096))
    with path.open("wb") as file:
        for number in range(-(-size // len(piece))):
            for page in range(pages):
                piece[page * 4096 : page * 4096 + 8] = (number * pages + page).to_bytes(8, "big")
            file.write(memoryview(piece)[: size - number * len(piece)])


def nodes_version(node: Node) -> str:
    """Return the version of the file that a node shows."""
    with node.client() as client:
        return client.file_stat(Where("film", NAME.encode()), details=False).item.version


def here(node: Node) -> str:
    """Return the version of the file that a node has all bytes of; none: an empty text."""
    try:
        with node.client() as client:
            item = client.file_stat(Where("film", NAME.encode())).item
    except TbshareError:
        return ""
    return item.version if item.here == "whole" else ""


def _sectors(disk: Path) -> int:
    """Return the sectors that a mounted disk was told to write."""
    device = os.stat(disk).st_dev
    fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    return int(fields[6])


def _sent(net: Net) -> int:
    """Return the bytes that the first node put on its cable to the second."""
    said = subprocess.run(
        [*net.prefix(0), "cat", f"/sys/class/net/{net.device(0, 1)}/statistics/tx_bytes"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(said.stdout)
