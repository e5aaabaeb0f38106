"""tbshare's mount beside what else shows files of another machine as a directory: one tree, one cable.

    python -m bench mount_peers [--only tbshare rclone sshfs]

Root; two namespaces with a cable of 10 Gbit/s. The files are on one side: `tbshare`, `rclone` (full cache) and
`sshfs` (both by an own sshd) mount them on the other. `tbshare, here` mounts where the files are, and stands
against GlusterFS, whose two copies are both in the namespace of its client. Every run is of a new mount and of
files nobody has read yet. Everything is a rate: more is better.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

from bench.cold import ON_DEMAND
from bench.measuring import Demand, make_random_file
from bench.mesh import cabled
from bench.mount import in_turns
from bench.mounted import (
    MB,
    Row,
    anywhere,
    blocks,
    change_names,
    make_names,
    mapped_blocks,
    mounted,
    read_name,
    seconds,
    volume_of,
    write_synced,
)
from bench.nodes import Node, pair_all, running, wait_until
from bench.peers import Gluster, Sshd, lacking
from bench.rows import Options, say, table, verdict
from tbshare.errors import TbshareError
from tbshare.wire.where import Where

BYTES, BYTES_QUICK = 256 << 20, 16 << 20
FILES, FILES_QUICK = 500, 50
PIECES, PIECES_QUICK = 200, 20
MBIT_PER_SECOND = 10_000
AHEAD_OF = {"rclone": "tbshare", "sshfs": "tbshare", "GlusterFS": "tbshare, here"}


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    if os.geteuid():
        say("left out: it takes root")
        return True
    for name in lacking():
        say(f"left out: {name}")
    tree = options.scratch / "tree"
    make_tree(tree, options)
    with ExitStack() as stack:
        medians = in_turns(contenders(options, tree, stack), options.runs)
    heads = list(next(iter(medians.values())))
    table(
        ["a second", *heads],
        [[name, *(f"{row[head]:,.0f}" for head in heads)] for name, row in medians.items()],
    )
    demands = [
        Demand(f"{head}, {mine} to {other}", medians[mine][head] / medians[other][head], 1.0, at_most=False)
        for other, mine in AHEAD_OF.items()
        if other in medians and mine in medians
        for head in heads
    ]
    return verdict("mount_peers", demands, medians, quick=options.quick)


def make_tree(tree: Path, options: Options) -> None:
    """Make for each run three large files and a directory of small ones."""
    for turn in range(options.runs):
        make_names(tree / f"take {turn}" / "names", int(options.pick(FILES, FILES_QUICK)))
        for name in ("read", "mapped", "anywhere"):
            make_random_file(tree / f"take {turn}" / name, int(options.pick(BYTES, BYTES_QUICK)))


def contenders(options: Options, tree: Path, stack: ExitStack) -> Mapping[str, Callable[[], Row]]:
    """Set up each that is wanted and can be; return how one run of each is done."""
    missing, target = " ".join(lacking()), options.scratch / "mount"
    net = stack.enter_context(cabled(2, MBIT_PER_SECOND))
    wanted = set(options.only or ("tbshare", *AHEAD_OF, *AHEAD_OF.values()))
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {}
    if wanted & {"tbshare", "tbshare, here"}:
        nodes = [
            Node(
                options.scratch / name,
                name,
                host=net.address(number, 1 - number),
                listen="",
                prefix=net.prefix(number),
                config=config,
            )
            for number, (name, config) in enumerate([("ada", ""), ("grace", ON_DEMAND)])
        ]
        stack.enter_context(running(nodes))
        pair_all(nodes, lambda node: net.address(0, 1))
        volume_of(nodes[0], "film", tree)
        wait_until("the other node knows the files", lambda: _knows(nodes[1], options.runs))
        ways["tbshare"] = lambda: mounted(nodes[1], "film", target)
        ways["tbshare, here"] = lambda: mounted(nodes[0], "film", target)
    if wanted & {"rclone", "sshfs"} and "sshd" not in missing:
        sshd = Sshd(options.scratch, net)
        stack.enter_context(sshd.running())
        for name, serve in (("rclone", sshd.rclone), ("sshfs", sshd.sshfs)):
            if name not in missing:
                ways[name] = partial(serve, tree, target)
    if "GlusterFS" in wanted and "GlusterFS" not in missing:
        gluster = Gluster(options.scratch, net)
        stack.enter_context(gluster.running())
        with gluster.mounted(target):
            shutil.copytree(tree, target, dirs_exist_ok=True)
        ways["GlusterFS"] = lambda: gluster.mounted(target)
    turns = dict.fromkeys(ways, 0)

    def once(name: str) -> Row:
        turns[name] += 1
        with ways[name]():
            return measure(target / f"take {turns[name] - 1}")

    return {name: partial(once, name) for name in ways if name in wanted}


def measure(directory: Path) -> Row:
    """Return what one client gets of a new mount, of files that nobody has read."""
    names = sorted(str(path) for path in (directory / "names").iterdir())
    size = (directory / "read").stat().st_size
    row = {
        "stat": len(names) / seconds(lambda: [os.stat(name) for name in names]),
        "open-read-close": len(names) / seconds(lambda: [read_name(name) for name in names]),
        "read cold MB/s": size / MB / _opened(directory / "read", blocks),
        "read again MB/s": size / MB / _opened(directory / "read", blocks),
        "mmap cold MB/s": size / MB / _opened(directory / "mapped", mapped_blocks),
        "mmap again MB/s": size / MB / _opened(directory / "mapped", mapped_blocks),
        "4 KiB cold": PIECES / _opened(directory / "anywhere", _pieces),
        "4 KiB again": PIECES / _opened(directory / "anywhere", _pieces),
        "write+fsync MB/s": size / MB / write_synced(directory / "written", size),
    }
    (directory / "written").unlink()
    return {**row, **change_names(directory / "names", len(names))}


def _opened(path: Path, read: Callable[[int], None]) -> float:
    """Return the seconds from before a file is opened until it is closed."""

    def whole() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        read(descriptor)
        os.close(descriptor)

    return seconds(whole)


def _pieces(descriptor: int) -> None:
    anywhere(descriptor, PIECES)


def _knows(node: Node, takes: int) -> bool:
    try:
        with node.client() as client:
            return len(client.file_list(Where("film", f"take {takes - 1}/names".encode())).items) > 0
    except TbshareError:
        return False
