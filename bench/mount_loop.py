"""What our own /dev/fuse loop costs: over a plain directory, against that directory itself and against bindfs (C).

    python -m bench mount_loop

Root. Each run is of a new mount, so that nothing of it is in a cache; the directory below is in the page cache.
First names, then one large file: read, mapped, and read in pieces of 4 KiB anywhere. *cached* is the loop as on a
kernel without passthrough. The client is forked, in every contender alike.
"""

import mmap
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from random import Random

from bench.measuring import Demand, make_random_file
from bench.rows import Options, say, table, verdict
from tbshare.fuse import mounting

FILES, FILES_QUICK = 2000, 200
BIG_BYTES, BIG_BYTES_QUICK = 1 << 30, 32 << 20
PIECES, PIECE_BYTES = 5000, 4096
MB = 1e6

Row = Mapping[str, float]


@contextmanager
def own(source: Path, target: Path, *words: str) -> Generator[None]:
    """Serve by our own loop, in a process of its own."""
    command = [sys.executable, "-m", "bench.plain_directory", str(source), str(target), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            mounting.unmount(str(target))
            process.wait()


@contextmanager
def bindfs(source: Path, target: Path) -> Generator[None]:
    """Serve by bindfs."""
    with subprocess.Popen(["bindfs", "-f", str(source), str(target)]) as process:
        while not os.path.ismount(target):
            time.sleep(0.01)
        try:
            yield
        finally:
            subprocess.run(["umount", str(target)], check=True)
            process.wait()


def measure(directory: Path, files: int) -> Row:
    """Return what one client gets, by name."""
    names = [str(directory / "names" / f"file {number}") for number in range(files)]
    big = directory / "big"
    size = big.stat().st_size
    return {
        "stat": files / _seconds(lambda: [os.stat(name) for name in names]),
        "open-read-close": files / _seconds(lambda: [_read(name) for name in names]),
        "again": files / _seconds(lambda: [_read(name) for name in names]),
        "readdir": files / _seconds(lambda: os.listdir(directory / "names")),
        "ls -l": files / _seconds(lambda: [item.stat() for item in os.scandir(directory / "names")]),
        "1 MiB MB/s": size / MB / _cold(big, _whole),
        "mmap MB/s": size / MB / _cold(big, _mapped),
        "4 KiB/s": PIECES / _cold(big, _pieces),
    }


def _seconds(do: Callable[[], object]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def _read(name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY)
    data = os.read(descriptor, 4096)
    os.close(descriptor)
    return data


def _cold(path: Path, read: Callable[[int], None]) -> float:
    """Read a file of which the mount has nothing in its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    if os.path.ismount(path.parent):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    seconds = _seconds(lambda: read(descriptor))
    os.close(descriptor)
    return seconds


def _whole(descriptor: int) -> None:
    buffer = bytearray(1 << 20)
    while os.readv(descriptor, [buffer]):
        pass


def _mapped(descriptor: int) -> None:
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
        for offset in range(0, len(mapped), mmap.PAGESIZE):
            mapped[offset]


def _pieces(descriptor: int) -> None:
    random, pages = Random(1), os.fstat(descriptor).st_size // PIECE_BYTES
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(PIECES):
        os.pread(descriptor, PIECE_BYTES, random.randrange(pages) * PIECE_BYTES)


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    if os.geteuid():
        say("left out: it takes root")
        return True
    source, target = options.scratch / "source", options.scratch / "mount"
    (source / "names").mkdir(parents=True)
    target.mkdir()
    files = int(options.pick(FILES, FILES_QUICK))
    for number in range(files):
        (source / "names" / f"file {number}").write_bytes(b"x" * 512)
    make_random_file(source / "big", int(options.pick(BIG_BYTES, BIG_BYTES_QUICK)))
    ways: dict[str, Callable[[], Row]] = {"native": lambda: measure(source, files)}

    def through(serve: Callable[[], AbstractContextManager[None]]) -> Row:
        with serve():
            return measure(target, files)

    ways["own loop"] = lambda: through(lambda: own(source, target))
    ways["own loop, cached"] = lambda: through(lambda: own(source, target, "--cached"))
    if shutil.which("bindfs"):
        ways["bindfs"] = lambda: through(lambda: bindfs(source, target))
    rows: dict[str, list[Row]] = {name: [] for name in ways}
    for turn in range(options.runs):
        for name, way in ways.items():
            rows[name].append(way())
        say(f"run {turn + 1} of {options.runs}")
    medians = {
        name: {what: statistics.median(row[what] for row in many) for what in many[0]}
        for name, many in rows.items()
    }
    heads = list(medians["native"])
    table(
        ["a second", *heads], [[name, *(f"{row[what]:,.0f}" for what in heads)] for name, row in medians.items()]
    )
    return verdict("mount_loop", _demands(medians), medians, quick=options.quick)


def _demands(medians: Mapping[str, Row]) -> Sequence[Demand]:
    native, passing, cached = medians["native"], medians["own loop"], medians["own loop, cached"]

    def least(what: str, row: Row, other: Row, limit: float) -> Demand:
        return Demand(what, row[what.split(",")[0]] / other[what.split(",")[0]], limit, at_most=False)

    demands = [
        least("1 MiB MB/s, own loop to native", passing, native, 0.9),
        least("mmap MB/s, own loop to native", passing, native, 0.9),
        least("4 KiB/s, own loop to native", passing, native, 0.8),
        least("1 MiB MB/s, cached to native", cached, native, 0.3),
        Demand("readdir, names a second", passing["readdir"], 100_000, at_most=False),
    ]
    if "bindfs" in medians:
        bars = [f"{what}, own loop to bindfs" for what in ("stat", "open-read-close")]
        demands += [least(what, passing, medians["bindfs"], 0.5) for what in bars]
    return demands
