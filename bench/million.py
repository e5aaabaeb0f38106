"""A volume of 1,000,000 files on a real daemon: memory, start, a directory of 10,000, one save. Minutes.

    python -m bench million

The files (Save, Place and Describe each, in directories of 5,000, one of 10,000) are put into the node's own log
and tables while the daemon is down; that is not measured. A second volume has 1,000 files: each save goes to both
in turns, through the control socket, so that their costs can be compared in one run. *start* is `tbshare up`, the
command line and its interpreter included, until the daemon is ready. *ls* is the answer of the daemon to a client
that asks for the directory; the command line's CPU, which prints it, stands beside. Memory is all of RssAnon,
after the start and after everything.
"""

import statistics
import time
from collections.abc import Iterator
from itertools import islice
from random import Random

from bench.cli import cpu_of_command
from bench.local_volume import NAME, LocalVolume, local_volume
from bench.measuring import Demand, anonymous_bytes
from bench.nodes import BenchError, Node, running
from bench.rows import Options, say, table, verdict
from tbshare.volumes.entry import Describe, FileOp, Move, Place, Save
from tbshare.volumes.ids import Ids
from tbshare.volumes.tables import Here
from tbshare.wire.files import FileCopyParams
from tbshare.wire.volume import VolumeCreateParams
from tbshare.wire.where import Where

FILES, FILES_SMALL = 1_000_000, 1000
FILES_EACH, FILES_LISTED = 5000, 10_000
OPS_AT_ONCE = 4000  # an entry is at most 1 MiB
SAVES = 60
MEGABYTE = 1e6
MEMORY_MAX, START_MAX, LIST_MAX, GROWTH_MAX = 500.0, 2.0, 0.2, 1.5
LISTED = b"listed"


def _ops(node: LocalVolume, files: int, directory: bytes, random: Random) -> Iterator[FileOp]:
    """Yield the ops that make a directory with so many files."""
    ids, volume = Ids(node.identity.node, random), node.handle.id
    parent = ids.new()
    yield Move(volume=volume, id=parent, place=ids.new(), name=directory, parent=0)
    for number in range(files):
        file, name = ids.new(), b"A001_C%06d.mov" % number
        yield Save(
            volume=volume, file=file, version=ids.new(), content=random.randbytes(32), size=4_000_000,
            mtime_ns=time.time_ns(),
        )  # fmt: skip
        yield Describe(volume=volume, id=file, mode=0o644)
        yield Place(volume=volume, id=ids.new(), place=ids.new(), file=file, name=name, parent=parent)


def _fill(node: LocalVolume, directories: dict[bytes, int]) -> None:
    """Put files in, and say that their bytes are here."""
    random = Random(node.handle.id)

    def ops() -> Iterator[FileOp]:
        for directory, files in directories.items():
            yield from _ops(node, files, directory, random)

    left = ops()
    while some := list(islice(left, OPS_AT_ONCE)):
        node.log.append(some)
        tables = node.volumes.tables(node.handle.id)
        tables.mark([(op.file, op.version) for op in some if isinstance(op, Save)], Here.HERE)


def _grow(node: Node, files: int) -> None:
    whole = {b"reel %d" % number: FILES_EACH for number in range((files - FILES_LISTED) // FILES_EACH)}
    with local_volume(node.home) as local:
        _fill(local, {**whole, LISTED: FILES_LISTED})
        files = local.handle.totals().files
    with local_volume(node.home, "small") as local:
        _fill(local, {LISTED: FILES_SMALL})
    say(f"{files} files")


def _saves(node: Node, options: Options) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {NAME: [], "small": []}
    source = options.scratch / "saved"
    random = Random(1)
    with node.client() as client:
        for number in range(int(options.pick(SAVES, 5))):
            for name, seconds in took.items():
                source.write_bytes(random.randbytes(4096))
                target = Where(name, LISTED + b"/saved %d" % number)
                started = time.perf_counter()
                client.file_copy(FileCopyParams([Where(path=bytes(source))], target))
                seconds.append(time.perf_counter() - started)
    return took


def _lists(node: Node, runs: int) -> tuple[list[float], list[float]]:
    """Return the seconds of a listing by a client, and the CPU seconds of `tbshare ls`."""
    told, printed = list[float](), list[float]()
    with node.client() as client:
        for _ in range(runs):
            started = time.perf_counter()
            count = len(client.file_list(Where(NAME, LISTED)).items)
            told.append(time.perf_counter() - started)
            if count != FILES_LISTED:
                raise BenchError(f"{count} items listed")
    for _ in range(runs):
        printed.append(cpu_of_command("--home", str(node.home), "ls", f"{NAME}:/{LISTED.decode()}"))
    return told, printed


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    node, starts, memory = Node(options.scratch / "a", "a"), list[float](), list[float]()
    with running([node]), node.client() as client:
        for name in (NAME, "small"):
            client.volume_create(VolumeCreateParams(name))
    _grow(node, int(options.pick(FILES, 30_000)))
    try:
        for _ in range(options.runs):
            node.down()
            started = time.perf_counter()
            node.up()
            starts.append(time.perf_counter() - started)
            memory.append(anonymous_bytes(node.pid) / MEGABYTE)
        told, printed = _lists(node, options.runs)
        took = _saves(node, options)
        most = anonymous_bytes(node.pid) / MEGABYTE
    finally:
        node.down()
    start, listed = statistics.median(starts), statistics.median(told)
    large, small = (statistics.median(took[name]) for name in (NAME, "small"))
    table(
        ["medians", ""],
        [
            ["start, s", f"{start:.2f}"],
            ["memory after the start, MB", f"{statistics.median(memory):.0f}"],
            ["memory after everything, MB", f"{most:.0f}"],
            ["ls of 10,000, client, s", f"{listed:.3f} ({min(told):.3f}-{max(told):.3f})"],
            ["ls of 10,000, command line, CPU s", f"{statistics.median(printed):.3f}"],
            ["one save among 1,000 files, ms", f"{1000 * small:.1f}"],
            ["one save among 1,000,000 files, ms", f"{1000 * large:.1f}"],
        ],
    )
    demands = [
        Demand("memory of the daemon, MB", max(most, *memory), MEMORY_MAX),
        Demand("start, s", start, START_MAX),
        Demand("ls of a directory of 10,000, s", listed, LIST_MAX),
        Demand("cost of a save, among 1,000,000 files to among 1,000", large / small, GROWTH_MAX),
    ]
    figures = {
        "start": start, "memory": most, "ls": listed, "ls_least": min(told),
        "ls_cli_cpu": statistics.median(printed), "save_small": small, "save_large": large,
    }  # fmt: skip
    return verdict("million", demands, figures, quick=options.quick)
