"""Names in tbshare's mount: many small files of a volume, beside bindfs and our own loop over the same directory.

    python -m bench mount_names

Root. Each run is of a new mount, so that listing is cold. *ls -l* is one client that stats each file and reads its
extended attributes; `ls` itself stands beside. Create, rename and unlink are each an op in the log of the volume,
and are compared with our own loop over a plain directory, which only calls the system.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from bench.measuring import Demand
from bench.mount import in_turns
from bench.mounted import Row, bindfs, list_long, make_names, mounted, plain, seconds, use_names, volume_of
from bench.nodes import Node, running
from bench.rows import Options, say, table, verdict

FILES, FILES_QUICK = 2000, 200
MANY, MANY_QUICK = 20_000, 1000
LONG_SECONDS_MAX, NAMES_PER_SECOND_MIN, SHARE = 0.15, 100_000, 0.5


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    if os.geteuid():
        say("left out: it takes root")
        return True
    files, many = int(options.pick(FILES, FILES_QUICK)), int(options.pick(MANY, MANY_QUICK))
    source, target = options.scratch / "source", options.scratch / "mount"
    make_names(source / "names", files)
    (source / "many").mkdir()
    for number in range(many):
        (source / "many" / f"frame {number:06}.exr").touch()
    node = Node(options.scratch / "node", "ada")
    with running([node]):
        volume_of(node, "film", source)

        def through(serve: Callable[[], AbstractContextManager[object]]) -> Row:
            with serve():
                return measure(target, files, many)

        ways: dict[str, Callable[[], Row]] = {
            "tbshare": lambda: through(lambda: mounted(node, "film", target)),
            "own loop, plain": lambda: through(lambda: plain(source, target)),
            "directory": lambda: measure(source, files, many),
        }
        if shutil.which("bindfs"):
            ways["bindfs"] = lambda: through(lambda: bindfs(source, target))
        ways = {name: way for name, way in ways.items() if not options.only or name in options.only}
        medians = in_turns(ways, options.runs)
    heads = list(medians["tbshare"])
    table(
        ["seconds, or a second", *heads],
        [
            [name, *(f"{row[head]:.3f}" if "," in head else f"{row[head]:,.0f}" for head in heads)]
            for name, row in medians.items()
        ],
    )
    return verdict("mount_names", _demands(medians), medians, quick=options.quick)


def measure(directory: Path, files: int, many: int) -> Row:
    """Return what one client gets of a new mount."""
    names = directory / "names"
    row = {
        "ls -l, s": seconds(lambda: list_long(names)),
        "ls again, s": seconds(lambda: subprocess.run(["ls", "-l", str(names)], stdout=subprocess.DEVNULL)),
        "readdir, cold": many / seconds(lambda: os.listdir(directory / "many")),
        "readdir": many / seconds(lambda: os.listdir(directory / "many")),
    }
    return {**row, **use_names(names, files)}


def _demands(medians: Mapping[str, Row]) -> Sequence[Demand]:
    mine = medians["tbshare"]
    demands = [
        Demand("ls -l with xattrs, cold, s", mine["ls -l, s"], LONG_SECONDS_MAX),
        Demand("readdir, cold, names a second", mine["readdir, cold"], NAMES_PER_SECOND_MIN, at_most=False),
        Demand("readdir, names a second", mine["readdir"], NAMES_PER_SECOND_MIN, at_most=False),
    ]
    others = {"bindfs": ("stat", "open-read-close"), "own loop, plain": ("create", "rename", "unlink")}
    for name, heads in others.items():
        if name in medians:
            demands += [
                Demand(f"{head}, of {name}", mine[head] / medians[name][head], SHARE, at_most=False)
                for head in heads
            ]
    return demands
