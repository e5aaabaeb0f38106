"""The first step of a push: a file in the page cache becomes an object. One worker, so that figures are per core.

    python -m bench ingest [--runs 5]

On XFS (a loop mount, root) the file is cloned and the clone is hashed; on the file system of --scratch it is
copied and hashed. *BLAKE3 alone* hashes one warm buffer of 4 MiB over and over, block ids and all, in the same
run. Rates are by CPU seconds of the process, which neighbours on the machine disturb least; the wall clock is
beside it, up to the last hashed byte, and up to durable, which is the disk's speed where there is a copy.
"""

import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from bench.measuring import GB, GIB, Demand, make_random_file, warm_pages
from bench.rows import Options, say, table, verdict
from tbshare.content.block import BLOCK_BYTES, block_id
from tbshare.store.ingest import Ingest
from tbshare.store.source import Choice, scan
from tbshare.store.store import Store

FILE_SYSTEM_SPARE_BYTES = 1 << 30


@dataclass(frozen=True)
class Taken:
    """One run: GB per CPU second, GB per second to the last hash, and to durable."""

    per_cpu_second: float
    hashed: float
    durable: float


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def take(file: Path, home: Path, how: str) -> Taken:
    """Take the file into a new store below `home`; see that it was done as expected."""
    size = file.stat().st_size
    store = Store(home)
    last = 0.0

    def advance(_: int) -> None:
        nonlocal last
        last = time.perf_counter()

    try:
        source = scan(file, Choice())
        ingest = Ingest(store, workers=1, advance=advance)
        cpu, started = _cpu_seconds(), time.perf_counter()
        taken = ingest.file(source.files[0])
        store.sync_records()
        wall, cpu = time.perf_counter() - started, _cpu_seconds() - cpu
    finally:
        store.close()
        shutil.rmtree(home)
    if taken.how != how:
        raise SystemExit(f"{file} was {taken.how}, not {how}: this file system is not what the row is about")
    return Taken(size / GB / cpu, size / GB / (last - started), size / GB / wall)


def blake3_alone(size: int) -> Taken:
    """Hash one buffer again and again, `size` bytes in all."""
    buffer = bytearray(os.urandom(BLOCK_BYTES))
    cpu, started = _cpu_seconds(), time.perf_counter()
    for _ in range(size // BLOCK_BYTES):
        block_id(buffer)
    wall, cpu = time.perf_counter() - started, _cpu_seconds() - cpu
    return Taken(size / GB / cpu, size / GB / wall, size / GB / wall)


@contextlib.contextmanager
def xfs(scratch: Path, size: int) -> Generator[Path]:
    """Mount a new XFS with reflinks, from a file, and take it down again. Root."""
    image, mount = scratch / "xfs.image", scratch / "xfs"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    try:
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
        try:
            yield mount
        finally:
            subprocess.run(["umount", str(mount)], check=True)
    finally:
        image.unlink()


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    size = int(options.pick(2, 0.125) * GIB)
    runs: dict[str, list[Taken]] = {"BLAKE3 alone": [], "reflink (XFS)": [], "copy": []}
    with contextlib.ExitStack() as stack:
        places = {"copy": options.scratch / "copy"}
        if os.geteuid() == 0 and shutil.which("mkfs.xfs"):
            places["reflink (XFS)"] = stack.enter_context(xfs(options.scratch, 2 * size + FILE_SYSTEM_SPARE_BYTES))
        else:
            say("reflink is skipped: it needs root and mkfs.xfs (apt-get install xfsprogs)")
            del runs["reflink (XFS)"]
        for place in places.values():
            place.mkdir(exist_ok=True)
            make_random_file(place / "source", size)
        for number in range(options.runs):
            warm_pages(options.pick(4, 0))
            runs["BLAKE3 alone"].append(blake3_alone(size))
            for name, place in places.items():
                how = "copied" if name == "copy" else "cloned"
                (place / "source").read_bytes()  # in the page cache, and memory is warm
                runs[name].append(take(place / "source", place / "store", how))
            said = ", ".join(f"{name} {taken[-1].per_cpu_second:.2f}" for name, taken in runs.items())
            say(f"run {number + 1}/{options.runs}: {said} GB per CPU second")
    medians = {name: _median(taken) for name, taken in runs.items()}
    alone = medians["BLAKE3 alone"].per_cpu_second
    table(
        [
            f"{size / GB:.2f} GB, one worker",
            "GB/CPU s",
            "(least-most)",
            "of BLAKE3",
            "GB/s hashed",
            "GB/s durable",
        ],
        [
            [
                name,
                f"{row.per_cpu_second:.2f}",
                f"({min(one.per_cpu_second for one in runs[name]):.2f}-"
                f"{max(one.per_cpu_second for one in runs[name]):.2f})",
                f"{row.per_cpu_second / alone:.2f}x",
                f"{row.hashed:.2f}",
                f"{row.durable:.2f}",
            ]
            for name, row in medians.items()
        ],
    )
    demands = [Demand("copy, GB per CPU second", medians["copy"].per_cpu_second, 1.0, at_most=False)]
    if (clone := medians.get("reflink (XFS)")) is not None:
        demands.append(Demand("reflink, GB per CPU second", clone.per_cpu_second, 3.5, at_most=False))
        demands.append(Demand("reflink, GB/s by the clock", clone.hashed, 3.5, at_most=False))
        demands.append(Demand("reflink, of BLAKE3 alone", clone.per_cpu_second / alone, 0.6, at_most=False))
    figures = {name: vars(row) for name, row in medians.items()}
    return verdict("ingest", demands, figures, quick=options.quick)


def _median(taken: list[Taken]) -> Taken:
    columns = zip(*(vars(one).values() for one in taken), strict=True)
    return Taken(*(statistics.median(column) for column in columns))
