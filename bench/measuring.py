"""How the benches measure: CPU by wait4, warm pages, contenders taken in turns, medians, ratios.

What is compared runs in one session, in turns, because the same code varies by a quarter between sessions. A
ratio within 20 % of its limit is noise, not a finding. The column *others* says how many cores did something else.

CPU of a contender is user + system time of its processes as the kernel charged them, children included. Work the
kernel does in threads of its own (writing back, softirqs on another core) is not in it; `system_cpu_seconds` has
that too, and whatever else the machine did.
"""

import argparse
import contextlib
import gc
import json
import mmap
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 1024**3
GB = 1e9
OTHERS_CORES_MAX = 0.4  # kernel threads alone (writing back) take up to about a third of a core
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What one run took; `bytes` is what it moved."""

    bytes: int
    wall_seconds: float
    cpu_seconds: float
    system_cpu_seconds: float = 0.0

    @property
    def cpu_seconds_per_gb(self) -> float:
        return self.cpu_seconds / (self.bytes / GB)

    @property
    def gb_per_second(self) -> float:
        return self.bytes / GB / self.wall_seconds

    @property
    def others_cores(self) -> float:
        """How many cores were busy with something else: kernel threads, other programs."""
        return max(self.system_cpu_seconds - self.cpu_seconds, 0.0) / self.wall_seconds


class ContenderError(RuntimeError):
    """A process of a contender ended with an error."""


def run_forked(parts: Sequence[Callable[[], None]]) -> tuple[float, float]:
    """Run each part in a forked child at the same time; return (wall seconds, CPU seconds of all).

    Forked, not started anew, so that starting an interpreter is not measured. The clock runs from before the
    first fork until the last child was waited for.
    """
    sys.stdout.flush()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page it looks at
    started = time.perf_counter()
    pids = [_fork(part) for part in parts]
    cpu, failed = 0.0, 0
    for pid in pids:
        _, status, used = os.wait4(pid, 0)
        cpu += used.ru_utime + used.ru_stime
        failed += status != 0
    wall = time.perf_counter() - started
    gc.unfreeze()
    if failed:
        raise ContenderError(f"{failed} of {len(pids)} processes failed")
    return wall, cpu


def _fork(part: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        part()
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def cpu_of(pid: int, *, with_children: bool = True) -> float:
    """CPU seconds a living process has used, and those of the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = fields[11:15] if with_children else fields[11:13]
    return sum(map(int, ticks)) / _TICKS_PER_SECOND


def system_cpu() -> float:
    """CPU seconds the whole machine has been busy since it started (0.0 where there is no /proc)."""
    try:
        with open("/proc/stat") as stat:
            values = list(map(int, stat.readline().split()[1:9]))
    except FileNotFoundError:
        return 0.0
    idle = values[3] + values[4]
    return (sum(values) - idle) / _TICKS_PER_SECOND


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process now (RssAnon)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ContenderError(f"process {pid} has no RssAnon")


def warm_pages(gib: float) -> None:
    """Touch and free memory, so that the pages a run will get are backed by the host.

    On a virtual machine with free-page reporting a page that was free for two seconds costs a host fault when it
    is used again, up to 2.4 CPU seconds a GB, charged to whoever touches it.
    """
    if gib <= 0:
        return
    with mmap.mmap(-1, int(gib * GIB), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for offset in range(0, len(pages), mmap.PAGESIZE):
            pages[offset] = 1


def make_random_file(path: Path, size: int) -> None:
    """Write `size` bytes that neither compress nor repeat, and leave them in the page cache, synced."""
    with path.open("wb") as file:
        left = size
        while left:
            left -= file.write(os.urandom(min(left, 16 * 1024 * 1024)))
        file.flush()
        os.fsync(file.fileno())


def take_turns(
    contenders: Mapping[str, Callable[[], Usage]], runs: int, *, warm_gib: float
) -> dict[str, list[Usage]]:
    """Run every contender once, then all again, `runs` times, with warm pages before each run.

    What the one before left unwritten is written first, or it would be written at the cost of the next.
    """
    results: dict[str, list[Usage]] = {name: [] for name in contenders}
    for turn in range(runs):
        for name, contender in contenders.items():
            os.sync()
            warm_pages(warm_gib)
            busy = system_cpu()
            usage = contender()
            usage = Usage(usage.bytes, usage.wall_seconds, usage.cpu_seconds, system_cpu() - busy)
            results[name].append(usage)
            print(
                f"  run {turn + 1}/{runs}  {name:24} {usage.cpu_seconds_per_gb:6.2f} CPU s/GB"
                f"  {usage.gb_per_second:6.2f} GB/s",
                file=sys.stderr,
                flush=True,
            )
    return results


@dataclass(frozen=True)
class Median:
    """Medians over the runs of one contender, and the extremes of the CPU time."""

    cpu_seconds_per_gb: float
    cpu_least: float
    cpu_most: float
    gb_per_second: float
    wall_seconds: float
    others_cores: float


def median_of(usages: Sequence[Usage]) -> Median:
    """Return the medians; each column by itself."""
    cpu = [usage.cpu_seconds_per_gb for usage in usages]
    return Median(
        statistics.median(cpu),
        min(cpu),
        max(cpu),
        statistics.median(usage.gb_per_second for usage in usages),
        statistics.median(usage.wall_seconds for usage in usages),
        statistics.median(usage.others_cores for usage in usages),
    )


def print_table(medians: Mapping[str, Median], baselines: Sequence[str]) -> None:
    """Print one line a contender; for each baseline that ran, CPU and speed as a multiple of it."""
    present = [name for name in baselines if name in medians]
    head = f"{'':24} {'CPU s/GB':>9} {'(least-most)':>13} {'GB/s':>6} {'wall s':>7} {'others':>7}"
    busiest = max((row.others_cores for row in medians.values()), default=0.0)
    if busiest > OTHERS_CORES_MAX:
        print(
            f"the machine was not quiet: other work took {busiest:.1f} cores; take the figures for what they are"
        )
    print(head + "".join(f"  {'CPU/' + name:>14} {'speed/' + name:>16}" for name in present))
    for name, row in medians.items():
        line = (
            f"{name:24} {row.cpu_seconds_per_gb:9.2f} {f'({row.cpu_least:.2f}-{row.cpu_most:.2f})':>13}"
            f" {row.gb_per_second:6.2f} {row.wall_seconds:7.2f} {row.others_cores:7.2f}"
        )
        for baseline in present:
            other = medians[baseline]
            cpu = row.cpu_seconds_per_gb / other.cpu_seconds_per_gb
            speed = row.gb_per_second / other.gb_per_second
            line += f"  {cpu:13.2f}x {speed:15.2f}x"
        print(line)


@dataclass(frozen=True)
class Demand:
    """One limit a bench holds: `value` must be at most, or at least, `limit`."""

    what: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def print_verdict(bench: str, demands: Sequence[Demand], medians: Mapping[str, Median]) -> bool:
    """Print each demand with whether it was met, then one line of JSON; return whether all were."""
    for demand in demands:
        sign = "<=" if demand.at_most else ">="
        print(f"{'met   ' if demand.met else 'MISSED'}  {demand.what}: {demand.value:.2f} {sign} {demand.limit:g}")
    record = {
        "bench": bench,
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs",
        "medians": {name: vars(row) for name, row in medians.items()},
        "demands": {
            demand.what: {"value": demand.value, "limit": demand.limit, "met": demand.met} for demand in demands
        },
    }
    print(json.dumps(record))
    return all(demand.met for demand in demands)


def add_options(parser: argparse.ArgumentParser, *, size_gib: float, runs: int = 5) -> None:
    """Add the options every bench has."""
    parser.add_argument("--size", type=float, default=size_gib, help="GiB that one run moves")
    parser.add_argument("--runs", type=int, default=runs, help="runs of each contender, in turns")
    parser.add_argument("--warm", type=float, default=4.0, help="GiB to touch and free before each run")
    parser.add_argument("--scratch", type=Path, help="directory to work in (default: a new one in /tmp)")


@contextlib.contextmanager
def scratch_directory(parent: Path | None) -> Generator[Path]:
    """Make a directory for the bench, and remove it with all in it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="tbshare-bench-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
