"""Durable ops per second of users: one, and 32 at once, beside what the disk does in the same run.

    python -m bench ops

Each client works in a directory of its own, through `Handle`, as a mount and `cp` do: of ten calls four make a
file with its attributes (three ops: Save, Place, Describe), four save a file over (one), two change attributes
(one). A call returns when its ops are durable and folded, and this node reads them. The log and the tables are on
the disk that `--scratch` is on; *fdatasync* is 4 KiB written over and synced, in turns with the clients. *At the
log* are the same threads with a Save each, straight into the log: group commit and fold, without looking up paths.
"""

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from bench.local_volume import LocalVolume, local_volume
from bench.measuring import Demand
from bench.rows import Options, say, table, verdict
from tbshare.volumes.entry import Save
from tbshare.volumes.ids import Ids
from tbshare.volumes.item import Attributes, Content, Saved
from tbshare.volumes.volume import Handle

CLIENTS = 32
WAYS = ("fdatasync", "one client", f"{CLIENTS} clients", f"{CLIENTS} at the log")
SECONDS = 3.0  # of each turn
PAGE = 4096
FILE_PAGES = 256
OF_RAW_LEAST, OPS_LEAST = 0.2, 15_000
SWITCH_SECONDS = 0.0005  # as the daemon does


class Client:
    """One user, with a directory."""

    def __init__(self, handle: Handle, number: int) -> None:
        self._handle, self._random = handle, Random(number)
        self._directory = b"user %d" % number
        if handle.find((self._directory,)) is None:
            handle.mkdir((self._directory,))
        self._names: list[bytes] = []
        self._calls = self.ops = 0

    def first(self) -> Saved:
        """Save a file of its own."""
        return self._handle.save((self._directory, b"first"), Content(bytes(32), 4))

    def call(self) -> None:
        """Do one thing and wait until it is durable."""
        kind = self._calls % 10
        self._calls += 1
        content = Content(self._random.randbytes(32), 4_000_000, time.time_ns())
        if kind % 5 < 2 or not self._names:
            name = b"A001_C%06d_%08x.mov" % (self._calls, self._random.getrandbits(32))
            self._handle.create((self._directory, name), content, attributes=Attributes(mode=0o644))
            self._names.append(name)
            self.ops += 3
            return
        path = (self._directory, self._random.choice(self._names))
        if kind % 5 < 4:
            self._handle.save(path, content)
        else:
            self._handle.describe(path, Attributes(xattrs={b"com.apple.tag": b"%d" % self._calls}))
        self.ops += 1


class Writer:
    """One who saves a file again and again without asking for its path."""

    def __init__(self, node: LocalVolume, client: Client) -> None:
        self._node, self._ids, self._random = node, Ids(node.identity.node, Random()), Random()
        saved = client.first()
        self._file, self._version, self.ops = saved.file, saved.version, 0

    def call(self) -> None:
        """Save once."""
        version, content = self._ids.new(), self._random.randbytes(32)
        parents, self._version = (self._version,), version
        save = Save(
            volume=self._node.handle.id, file=self._file, version=version, content=content, parents=parents,
            size=4, mtime_ns=time.time_ns(),
        )  # fmt: skip
        self._node.log.append([save])
        self.ops += 1


def raw_syncs(path: Path, seconds: float) -> float:
    """Return how often in a second 4 KiB can be written over and synced."""
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.pwrite(file, bytes(PAGE * FILE_PAGES), 0)
        os.fsync(file)
        started, count, page = time.perf_counter(), 0, os.urandom(PAGE)
        while time.perf_counter() - started < seconds:
            os.pwrite(file, page, PAGE * (count % FILE_PAGES))
            os.fdatasync(file)
            count += 1
        return count / (time.perf_counter() - started)
    finally:
        os.close(file)


def ops_per_second(clients: Sequence[Client | Writer], seconds: float) -> float:
    """Return the ops that these clients do in a second, all at the same time."""
    failed: list[BaseException] = []
    before, started = sum(client.ops for client in clients), time.perf_counter()

    def work(client: Client | Writer) -> None:
        try:
            while time.perf_counter() - started < seconds and not failed:
                client.call()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=[client]) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return (sum(client.ops for client in clients) - before) / (time.perf_counter() - started)


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    seconds = options.pick(SECONDS, 0.5)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    entries: list[float] = []
    with local_volume(options.scratch / "node") as node:
        one = [Client(node.handle, 0)]
        many = [Client(node.handle, 1 + number) for number in range(CLIENTS)]

        def clients() -> float:
            before, ops = node.log.last_arrival, sum(client.ops for client in many)
            speed = ops_per_second(many, seconds)
            entries.append((sum(client.ops for client in many) - ops) / (node.log.last_arrival - before))
            return speed

        writers = [Writer(node, client) for client in many]
        ways: tuple[Callable[[], float], ...] = (
            lambda: raw_syncs(options.scratch / "raw", seconds / 2),
            lambda: ops_per_second(one, seconds),
            clients,
            lambda: ops_per_second(writers, seconds),
        )
        for _ in range(options.runs):
            for name, way in zip(WAYS, ways, strict=True):
                found[name].append(way())
                say(f"{name}: {found[name][-1]:,.0f} a second")
    sys.setswitchinterval(switch)
    raw, single, together, at_log = (statistics.median(figures) for figures in found.values())
    table(
        [f"medians of {options.runs}, a second", "", "(least-most)", "of fdatasync"],
        [
            [name, f"{statistics.median(all_):,.0f}", f"({min(all_):,.0f}-{max(all_):,.0f})",
             f"{statistics.median(all_) / raw:.2f}"]
            for name, all_ in found.items()
        ],
    )  # fmt: skip
    demands = [
        Demand("durable ops of one client, of fdatasync", single / raw, OF_RAW_LEAST, at_most=False),
        Demand(f"durable ops per second of {CLIENTS} clients", together, OPS_LEAST, at_most=False),
    ]
    per_entry = statistics.median(entries)
    figures = {"fdatasync": raw, "one": single, "many": together, "at_log": at_log, "ops_an_entry": per_entry}
    return verdict("ops", demands, figures, quick=options.quick)
