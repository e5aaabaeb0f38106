"""Memory of a file that two processes map through tbshare's mount: how much more of it is used.

    python -m bench mount_memory

Root (passthrough). The store's file is first put out of the page cache. Each process maps the file, reads all of
it and stays. *In the page cache* is what cachestat says of the store's own file and of the file in the mount;
*proportional* is the sum of Pss of both processes, in which a page that both have mapped counts once; *memory
used* is what Cached and anonymous pages of the machine grew by, neighbours included.
"""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

from bench.measuring import Demand, make_random_file
from bench.mount import largest
from bench.mounted import mounted
from bench.nodes import BenchError, Node, running
from bench.rows import Options, say, table, verdict

BYTES, BYTES_QUICK = 2 << 30, 128 << 20
COPIES_MAX = 1.1
CACHESTAT = 451  # the number of the system call, on every processor but the oldest
CLIENT = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    total = sum(mapped[offset] for offset in range(0, len(mapped), mmap.PAGESIZE))
    print(total, flush=True)
    sys.stdin.readline()
"""


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    if os.geteuid():
        say("left out: it takes root")
        return True
    size = int(options.pick(BYTES, BYTES_QUICK))
    node, model, directory = (
        Node(options.scratch / "node", "ada"),
        options.scratch / "model",
        options.scratch / "mount",
    )
    model.mkdir()
    make_random_file(model / "weights.bin", size)
    with running([node]):
        node.command("push", str(model), "--name", "big")
        stored = largest(node.home, size)
        (model / "weights.bin").unlink()
        os.sync()
        _forget(stored)
        with mounted(node, "models", directory):
            figures = measure(directory / "big" / "weights.bin", stored, size)
    table(["of one copy", *figures], [["two processes", *(f"{value:.3f}" for value in figures.values())]])
    demands = [
        Demand("in the page cache, both files together, copies", figures["stored"] + figures["mount"], COPIES_MAX),
        Demand("proportional memory of both processes, copies", figures["proportional"], COPIES_MAX),
        Demand("memory used, copies", figures["memory used"], COPIES_MAX),
    ]
    return verdict("mount_memory", demands, figures, quick=options.quick)


def measure(path: Path, stored: Path, size: int) -> dict[str, float]:
    """Return what is used while two processes have the file mapped, in copies of it."""
    before = _used()
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        totals = {_line(client) for client in clients}
        if len(totals) != 1:
            raise BenchError(f"the two read different bytes: {totals}")
        return {
            "stored": _resident(stored) / size,
            "mount": _resident(path) / size,
            "proportional": sum(_proportional(client.pid) for client in clients) / size,
            "memory used": (_used() - before) / size,
        }
    finally:
        for client in clients:
            client.kill()
            client.communicate()


def _line(client: "subprocess.Popen[str]") -> str:
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line:
        raise BenchError("a process that maps the file ended")
    return line


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    left = _resident(path)
    if left:
        say(f"{left / 1e6:.0f} MB of the store's file stay in the page cache")


def _resident(path: Path) -> int:
    """Return how many bytes of a file are in its own page cache."""
    libc, whole, noted = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 5)()
    with path.open("rb") as file:
        given = ctypes.byref(whole), ctypes.byref(noted)
        if libc.syscall(CACHESTAT, file.fileno(), *given, 0):
            raise BenchError(f"cachestat: {os.strerror(ctypes.get_errno())}; it takes Linux 6.5")
    return noted[0] * mmap.PAGESIZE


def _proportional(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {pid} has no Pss")


def _used() -> int:
    """Return the bytes of the page cache and of anonymous memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return (values["Cached"] + values["AnonPages"]) * 1024
