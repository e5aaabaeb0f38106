"""CPU seconds of the command line: `--help`, and `ls` against a daemon. Best of five, as the child's rusage.

python -m bench cli
"""

import os
import subprocess
import sys

from bench.measuring import Demand
from bench.nodes import BenchError, Node, environment, running
from bench.rows import Options, table, verdict

CPU_SECONDS_MAX = 0.25


def cpu_of_command(*words: str) -> float:
    """Run the command line; return user + system seconds of it and its children."""
    command = [sys.executable, "-m", "tbshare.cli", *words]
    child = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = status
    if status:
        raise BenchError(f"{' '.join(words)} failed")
    return used.ru_utime + used.ru_stime


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    model = options.scratch / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    node = Node(options.scratch / "a", "a")
    taken: dict[str, list[float]] = {"tbshare --help": [], "tbshare ls": []}
    with running([node]):
        node.command("push", str(model), "--name", "model")
        for _ in range(max(options.runs, 2)):
            taken["tbshare --help"].append(cpu_of_command("--help"))
            taken["tbshare ls"].append(cpu_of_command("--home", str(node.home), "ls"))
    table(
        ["CPU seconds", "best", "worst"],
        [[name, f"{min(values):.3f}", f"{max(values):.3f}"] for name, values in taken.items()],
    )
    demands = [Demand(f"{name}, CPU s", min(values), CPU_SECONDS_MAX) for name, values in taken.items()]
    return verdict("cli", demands, taken, quick=options.quick)
