"""What every row of the benches has: its options, and the words in which it says how it went."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measuring import Demand


@dataclass(frozen=True)
class Options:
    """What the command line said. `scratch` exists and is the row's own; it is removed afterwards."""

    scratch: Path
    runs: int
    quick: bool
    only: tuple[str, ...] = ()

    def pick(self, whole: float, quick: float) -> float:
        """Return the first value, or with --quick the second."""
        return quick if self.quick else whole


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    rows = [list(head), *[list(line) for line in lines]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)],
        ]
        print("  ".join(cells).rstrip())


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"  {text}", file=sys.stderr, flush=True)


def verdict(row: str, demands: Sequence[Demand], figures: Mapping[str, Any], *, quick: bool) -> bool:
    """Print each demand with whether it was met, then one line of JSON; return whether all were."""
    for demand in demands:
        sign = "<=" if demand.at_most else ">="
        print(f"{'met   ' if demand.met else 'MISSED'}  {demand.what}: {demand.value:.3g} {sign} {demand.limit:g}")
    record = {
        "bench": row,
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs",
        "quick": quick,
        "figures": dict(figures),
        "demands": {
            demand.what: {"value": round(demand.value, 5), "limit": demand.limit, "met": demand.met}
            for demand in demands
        },
    }
    print(json.dumps(record))
    return all(demand.met for demand in demands)
