"""Reading through tbshare's mount: one large file that is here, against the file system below it.

    python -m bench mount

Root. A file of `models` on the disk of --scratch, and one of a volume that may be written on XFS (a loop mount):
there a reader gets a working clone, so that is the file below; a clone has pages of its own, so what the first
reading from the disk gives, and one after the file was closed and opened again, stands beside. The mount's cache
is emptied before each reading, the disk's is warm. *to memory* reads into memory that is kept, as whoever loads
weights does; the 1 MiB of the other column stays in the processor's cache. *cached* is the own loop as on a
kernel without passthrough.
"""

import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.ingest import xfs
from bench.measuring import Demand, make_random_file, warm_pages
from bench.mounted import MB, Row, blocks, mounted, read_ways, seconds, volume_of
from bench.nodes import Node, running
from bench.rows import Options, say, table, verdict

BYTES, BYTES_QUICK = 1 << 30, 128 << 20
PIECES, PIECES_QUICK = 5000, 500
WAYS = ("own loop", "own loop, cached", "pyfuse3")
SHARE, SHARE_ANYWHERE, SHARE_CACHED = 0.9, 0.8, 0.3


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    if os.geteuid():
        say("left out: it takes root")
        return True
    size, pieces = int(options.pick(BYTES, BYTES_QUICK)), int(options.pick(PIECES, PIECES_QUICK))
    medians = dict(of_models(options, size, pieces))
    demands = [demand for name in WAYS if name in medians for demand in _demands(name, medians, "file below")]
    if shutil.which("mkfs.xfs"):
        medians |= of_volume(options, size, pieces)
        demands += _demands("volume, own loop", medians, "clone below")
    else:
        say("the volume on XFS is left out: apt-get install xfsprogs")
    heads = list(dict.fromkeys(head for row in medians.values() for head in row))
    table(
        ["cold mount, warm disk", *heads],
        [[name, *(f"{row[head]:,.0f}" if head in row else "" for head in heads)] for name, row in medians.items()],
    )
    return verdict("mount", demands, medians, quick=options.quick)


def of_models(options: Options, size: int, pieces: int) -> Mapping[str, Row]:
    """Measure a file of `models`."""
    node, model = Node(options.scratch / "node", "ada"), options.scratch / "model"
    model.mkdir()
    make_random_file(model / "weights.bin", size)
    with running([node]):
        node.command("push", str(model), "--name", "big")
        native = largest(node.home, size)

        def through(way: str) -> Row:
            directory = options.scratch / "models"
            with mounted(node, "models", directory, way=way):
                path = directory / "big" / "weights.bin"
                with path.open("rb", buffering=0) as file:
                    blocks(file.fileno())  # now the store's file is in the page cache
                return read_ways(path, pieces, evict=True)

        ways: dict[str, Callable[[], Row]] = {"file below": lambda: read_ways(native, pieces, evict=False)}
        ways |= {way: partial(through, way) for way in WAYS if not options.only or way in options.only}
        return in_turns(ways, options.runs)


def of_volume(options: Options, size: int, pieces: int) -> Mapping[str, Row]:
    """Measure a file of a volume that may be written, on XFS."""
    with xfs(options.scratch, 3 * size + (1 << 30)) as disk:
        take = disk / "take"
        take.mkdir()
        make_random_file(take / "A001.mov", size)
        node = Node(disk / "node", "ada")
        with running([node]):
            volume_of(node, "film", take)
            before = set(files_of(node.home, size))

            rows: dict[str, list[Row]] = {"clone below": [], "volume, own loop": []}
            for turn in range(options.runs):
                directory = options.scratch / "film"
                with mounted(node, "film", directory), (directory / "A001.mov").open("rb", buffering=0) as file:
                    opened = {"first open MB/s": size / MB / seconds(lambda: blocks(file.fileno()))}
                    (clone,) = set(files_of(node.home, size)) - before
                    rows["clone below"].append(read_ways(clone, pieces, evict=False))
                    # Passed through, so the mount has no cache.
                    row = read_ways(directory / "A001.mov", pieces, evict=False)
                    rows["volume, own loop"].append({**row, **opened})
                    file.close()
                    with (directory / "A001.mov").open("rb", buffering=0) as again:
                        opened["opened again MB/s"] = size / MB / seconds(lambda: blocks(again.fileno()))
                    rows["volume, own loop"][-1] = {**row, **opened}
                say(f"run {turn + 1} of {options.runs}: {said(rows['volume, own loop'][-1])}")
            return medians_of(rows)


def files_of(home: Path, size: int) -> Iterator[Path]:
    """Return the files of a node that are so large."""
    return (path for path in home.rglob("*") if path.is_file() and path.stat().st_size == size)


def largest(home: Path, size: int) -> Path:
    """Return the one file of a node that is so large."""
    (path,) = files_of(home, size)
    return path


def in_turns(ways: Mapping[str, Callable[[], Row]], runs: int) -> dict[str, Row]:
    """Measure each way, then all again; return medians."""
    rows: dict[str, list[Row]] = {name: [] for name in ways}
    for turn in range(runs):
        for name, way in ways.items():
            warm_pages(2)
            rows[name].append(way())
            say(f"run {turn + 1} of {runs}: {name}: " + said(rows[name][-1]))
    return medians_of(rows)


def medians_of(rows: Mapping[str, Sequence[Row]]) -> dict[str, Row]:
    """Return the median of each figure."""
    return {
        name: {what: statistics.median(row[what] for row in many) for what in many[0]}
        for name, many in rows.items()
    }


def said(row: Row) -> str:
    """Return the figures of one run."""
    return ", ".join(f"{what} {value:,.3g}" for what, value in row.items())


def _demands(name: str, medians: Mapping[str, Row], native: str) -> list[Demand]:
    def least(what: str, limit: float) -> Demand:
        share = medians[name][what] / medians[native][what]
        return Demand(f"{name}: {what}, of the {native}", share, limit, at_most=False)

    if name == "pyfuse3":
        return []  # portable, not quick: it stands beside
    if name == "own loop, cached":
        return [least("1 MiB MB/s", SHARE_CACHED), least("to memory MB/s", SHARE_CACHED)]
    return [
        least("1 MiB MB/s", SHARE),
        least("to memory MB/s", SHARE),
        least("mmap MB/s", SHARE),
        least("4 KiB/s", SHARE_ANYWHERE),
    ]
