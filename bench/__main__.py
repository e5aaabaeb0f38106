"""Run rows of the benches: python -m bench [ROW ...] [--scratch DIR] [--runs N] [--quick]. See README.md."""

import argparse
import importlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.measuring import scratch_directory
from bench.rows import Options

ROWS = {
    "transfer": ("transfer", 5, "2 GB to one node: against rsync, a bare copy and mlx_lm.share"),
    "control": ("control", 3, "control round trip while 2 lanes move bulk"),
    "ingest": ("ingest", 5, "the first step of a push, per core"),
    "mesh": ("mesh", 3, "to three nodes over cables of 400 Mbit/s (root)"),
    "repush": ("repush", 1, "how much moves when a model comes again, changed"),
    "memory": ("memory", 1, "anonymous memory while 20 GB pass"),
    "cli": ("cli", 5, "CPU of the command line"),
    "run": ("mapped", 5, "the time to a usable model"),
    "ops": ("ops", 5, "durable ops per second of one user and of 32"),
    "fold": ("fold", 5, "ops of a volume folded, while it grows to 1,000,000 files"),
    "million": ("million", 5, "a volume of 1,000,000 files: memory, start, ls, one save (three minutes)"),
    "apart": ("apart", 1, "two nodes 100,000 ops apart agree (root)"),
    "visible": ("visible", 1, "a save on one node until the other sees it"),
    "cold": ("cold", 3, "files that only the other node has, over 1 Gbit/s: first byte, streaming (root)"),
    "mount_loop": ("mount_loop", 5, "our own /dev/fuse loop against the directory below and bindfs (root)"),
    "mount": ("mount", 3, "tbshare's mount: one large file read, against the file system below (root)"),
    "mount_write": ("mount_write", 3, "tbshare's mount: 1 GB written and synced, 1 MiB of 10 GB changed (root)"),
    "mount_names": ("mount_names", 3, "tbshare's mount: names, against bindfs and our own loop (root)"),
    "mount_memory": ("mount_memory", 1, "two processes map one file of a mount: one copy in memory (root)"),
    "mount_peers": ("mount_peers", 3, "tbshare's mount beside those of rclone, sshfs and GlusterFS (root)"),
    "dedup": ("dedup", 1, "where to cut: the threshold for tensors of their own"),
    "alignment": ("alignment", 1, "how many tensors can be mapped as they lie"),
}


def _end(_number: int, _frame: object) -> None:
    sys.exit(143)  # as an exception, so that all is cleaned up


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Each row: a table, its bars, one line of JSON. Exit status 1 when a bar is missed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:10} {text}" for name, (_, _, text) in ROWS.items()),
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to run; none: all")
    parser.add_argument("--scratch", type=Path, help="directory to work in (default: a new one in /tmp)")
    parser.add_argument("--runs", type=int, default=0, help="runs of each contender, in turns; 0: the row's own")
    parser.add_argument("--quick", action="store_true", help="small and short: whether it works, not how fast")
    parser.add_argument("--only", nargs="*", default=[], help="contenders to run, where a row has several")
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    signal.signal(signal.SIGTERM, _end)
    missed: list[str] = []
    for name in options.rows or ROWS:
        module, runs, text = ROWS[name]
        print(f"== {name}: {text}  ({time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC)", flush=True)
        run: Callable[[Options], bool] = importlib.import_module(f"bench.{module}").run
        runs = options.runs or (1 if options.quick else runs)
        with scratch_directory(options.scratch) as scratch:
            if not run(Options(scratch, runs, options.quick, tuple(options.only))):
                missed.append(name)
        print(flush=True)
    print(f"missed: {', '.join(missed)}" if missed else "all bars met")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
