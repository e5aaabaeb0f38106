"""Mounts for the benches, of tbshare and of what it is compared with, and what one client does in them.

    python -m bench.mounted ...          # a mount of tbshare whose kernel has no passthrough

Every mount is new, so that nothing of it is in a cache, and is unmounted whatever happens.
"""

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from random import Random

from bench.nodes import BenchError, Node, environment, wait_until
from tbshare.fuse import front
from tbshare.fuse.__main__ import main
from tbshare.fuse.negotiation import Wishes
from tbshare.fuse.own_front import OwnFront

MB = 1e6
PIECE_BYTES = 4096
KIND = b"scene 12, take 3"
ENDED_SECONDS = 60.0
FRONTS: dict[str, tuple[str, list[str]]] = {
    "own loop": ("tbshare.fuse", []),
    "own loop, cached": ("bench.mounted", []),
    "pyfuse3": ("tbshare.fuse", ["--front=pyfuse3"]),
}

Row = Mapping[str, float]


@contextlib.contextmanager
def mounted(
    node: Node, volume: str, directory: Path, *, way: str = "own loop", words: Sequence[str] = ()
) -> Generator["subprocess.Popen[bytes]"]:
    """Mount a volume of a node, in one of the ways of FRONTS; empty: all volumes."""
    directory.mkdir(exist_ok=True)
    module, more = FRONTS[way]
    ready, told = os.pipe()
    command = [sys.executable, "-m", module, "--home", str(node.home), "--volume", volume, *more, *words]
    process = subprocess.Popen(
        [*command, "--ready-fd", str(told), str(directory)], pass_fds=[told], env=environment()
    )
    os.close(told)
    try:
        with open(ready, encoding="utf-8") as pipe:
            said = pipe.readline()
        if said != "ready\n":
            raise BenchError(f"the mount said {said!r}")
        yield process
    finally:
        ended(process, directory)


def ended(process: "subprocess.Popen[bytes]", directory: Path) -> None:
    """Unmount, and wait until the process has ended."""
    subprocess.run(["umount", "--lazy", str(directory)], capture_output=True, check=False)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(ENDED_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def served(command: Sequence[str], directory: Path, *, seconds: float = 20.0) -> Generator[None]:
    """Mount by a command that stays in the foreground."""
    directory.mkdir(exist_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(f"{command[0]} mounts", lambda: os.path.ismount(directory), seconds=seconds)
        yield
    finally:
        ended(process, directory)


def bindfs(source: Path, directory: Path) -> contextlib.AbstractContextManager[None]:
    """Serve a directory by bindfs."""
    return served(["bindfs", "-f", str(source), str(directory)], directory)


@contextlib.contextmanager
def plain(source: Path, directory: Path) -> Generator[None]:
    """Serve a directory by our own loop, with operations that do nothing but call the system."""
    command = [sys.executable, "-m", "bench.plain_directory", str(source), str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            ended(process, directory)


# what a client does --------------------------------------------------------------------------------------------


def seconds(do: Callable[[], object]) -> float:
    """Return how long it takes."""
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def read_ways(path: Path, pieces: int, *, evict: bool) -> Row:
    """Read one file in each way. `evict`: the mount's cache is emptied before each; the disk's below is not."""
    size = path.stat().st_size
    buffer = bytearray(b"x") * size  # memory that is there

    def opened(read: Callable[[int], None]) -> float:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if evict:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            return seconds(lambda: read(descriptor))
        finally:
            os.close(descriptor)

    return {
        "1 MiB MB/s": size / MB / opened(blocks),
        "to memory MB/s": size / MB / opened(lambda descriptor: _into(descriptor, buffer)),
        "mmap MB/s": size / MB / opened(mapped_blocks),
        "4 KiB/s": pieces / opened(lambda descriptor: anywhere(descriptor, pieces)),
    }


def blocks(descriptor: int) -> None:
    """Read a file from its start to its end, in pieces of 1 MiB."""
    buffer = bytearray(1 << 20)
    os.lseek(descriptor, 0, os.SEEK_SET)
    while os.readv(descriptor, [buffer]):
        pass


def _into(descriptor: int, buffer: bytearray) -> None:
    view, done = memoryview(buffer), 0
    while got := os.readv(descriptor, [view[done : done + (1 << 20)]]):
        done += got


def mapped_blocks(descriptor: int) -> None:
    """Read a file from its start to its end by a map of it."""
    buffer = memoryview(bytearray(1 << 20))
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
        for offset in range(0, len(view) - len(buffer) + 1, len(buffer)):
            buffer[:] = view[offset : offset + len(buffer)]


def anywhere(descriptor: int, count: int, seed: int = 1) -> None:
    """Read pieces of 4 KiB anywhere in a file."""
    random, pages = Random(seed), os.fstat(descriptor).st_size // PIECE_BYTES
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(count):
        os.pread(descriptor, PIECE_BYTES, random.randrange(pages) * PIECE_BYTES)


def write_synced(path: Path, size: int) -> float:
    """Write a new file in pieces of 1 MiB and sync it; return the seconds."""
    piece = os.urandom(1 << 20)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:

        def write() -> None:
            for _ in range(size >> 20):
                os.write(descriptor, piece)
            os.fsync(descriptor)

        return seconds(write)
    finally:
        os.close(descriptor)


def make_names(directory: Path, count: int, *, content: bytes = b"x" * 512) -> None:
    """Make small files that have an extended attribute."""
    directory.mkdir(parents=True)
    for number in range(count):
        path = directory / f"file {number}"
        path.write_bytes(content + str(number).encode())
        os.setxattr(path, "user.kind", KIND)


def list_long(directory: Path) -> None:
    """List as `ls -l` does, with the extended attributes."""
    with os.scandir(directory) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            for name in os.listxattr(entry.path, follow_symlinks=False):
                os.getxattr(entry.path, name, follow_symlinks=False)


def use_names(directory: Path, count: int) -> Row:
    """Return what of each a client does in a second: with files that are there, then with its own."""
    names = [str(directory / f"file {number}") for number in range(count)]
    row = {
        "stat": count / seconds(lambda: [os.stat(name) for name in names]),
        "open-read-close": count / seconds(lambda: [read_name(name) for name in names]),
    }
    return {**row, **change_names(directory, count)}


def change_names(directory: Path, count: int) -> Row:
    """Return how many files a client creates, renames and removes in a second."""
    mine = [str(directory / f"mine {number}") for number in range(count)]
    return {
        "create": count / seconds(lambda: _each(_write, mine)),
        "rename": count / seconds(lambda: _each(lambda name: os.rename(name, name + " again"), mine)),
        "unlink": count / seconds(lambda: _each(lambda name: os.unlink(name + " again"), mine)),
    }


def _each(do: Callable[[str], object], names: Sequence[str]) -> None:
    for name in names:
        do(name)


def read_name(name: str) -> bytes:
    """Open a small file, read it and close it."""
    descriptor = os.open(name, os.O_RDONLY)
    data = os.read(descriptor, 4096)
    os.close(descriptor)
    return data


def _write(name: str) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, b"x" * 512)
    os.close(descriptor)


def volume_of(node: Node, name: str, directory: Path) -> None:
    """Make a volume of a directory's files."""
    node.command("volume", "create", name, "--from", str(directory))


if __name__ == "__main__":
    choice = front.Choice(OwnFront(Wishes(passthrough=False)), ())
    front.choose = lambda only="": choice
    sys.exit(main())
