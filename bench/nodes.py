"""Daemons for the benches: started by the command line, paired, measured from outside, and always stopped.

What a daemon does is read from /proc, so that measuring costs it nothing: CPU seconds from `stat`, the bytes it
has written to files from `io`. A block is written after it was verified: "all written" is "all verified".
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from bench.measuring import cpu_of
from tbshare.client import Client
from tbshare.store.disk import file_system_kind
from tbshare.wire.report import AnyEvent, Code

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 20.0
POLL_SECONDS = 0.005


class BenchError(RuntimeError):
    """A bench could not be run."""


def environment() -> dict[str, str]:
    """Return the environment in which a child finds this checkout's tbshare."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


class Node:
    """One daemon with its own home; `prefix` goes before its command (ip netns exec NAME)."""

    def __init__(
        self,
        home: Path,
        name: str,
        *,
        host: str = "127.0.0.1",
        listen: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        config: str = "",
    ) -> None:
        self.home, self.name, self.host, self.listen = home, name, host, listen
        self.prefix = list(prefix)
        self.pid, self.port = 0, 0
        home.mkdir(mode=0o700, parents=True)
        self._on_tmpfs = file_system_kind(home) == "tmpfs"
        (home / "config.toml").write_text(config, encoding="utf-8")

    def command(self, *words: str) -> str:
        """Run the command line for this node; return what it printed."""
        whole = [*self.prefix, sys.executable, "-m", "tbshare.cli", "--home", str(self.home), *words]
        done = subprocess.run(whole, capture_output=True, text=True, env=environment(), check=False)
        if done.returncode:
            raise BenchError(
                f"{self.name}: tbshare {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout

    def up(self) -> None:
        """Start the daemon, again with the port it had."""
        listen = ["--listen", self.listen] if self.listen else []
        self.command("up", "--port", str(self.port), "--name", self.name, *listen)
        with self.client() as client:
            state = client.status()
        self.pid, self.port = state.pid, state.port

    def down(self) -> None:
        """Stop the daemon, by force if need be."""
        with contextlib.suppress(BenchError):
            self.command("down")
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.pid = 0

    def client(self) -> Client:
        """Return a connection to the daemon."""
        return Client.connect(self.home)

    def connected(self) -> int:
        """Return how many other nodes are connected."""
        with self.client() as client:
            return sum(line.state == "connected" for line in client.node_list().nodes)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the daemon, all its threads and waited-for children."""
        return cpu_of(self.pid)

    def written_bytes(self) -> int:
        """Return how many bytes of files the daemon has written since it started.

        Counted when a page becomes dirty, so not on tmpfs; there it is what went through system calls that write,
        and `sendfile` is one of them: right for a node that sends nothing.
        """
        name = "wchar:" if self._on_tmpfs else "write_bytes:"
        with open(f"/proc/{self.pid}/io") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(name))

    def free(self, *refs: str) -> None:
        """Evict refs here."""
        with self.client() as client:
            for ref in refs:
                client.unpin(ref)  # a pull pins
                client.evict(ref)


def pair(member: Node, newcomer: Node, *, host: str = "") -> None:
    """Let a node join; `host` is the member's address as the newcomer sees it."""
    codes = SimpleQueue[str | BaseException]()

    def told(event: AnyEvent) -> None:
        if isinstance(event, Code):
            codes.put(event.code)

    def opened() -> None:
        try:
            with member.client() as client:
                client.pair_open(told)
        except BaseException as error:
            codes.put(error)
            raise

    thread = threading.Thread(target=opened, daemon=True)
    thread.start()
    code = codes.get(timeout=READY_SECONDS)
    if isinstance(code, BaseException):
        raise code
    with newcomer.client() as client:
        client.pair_join(code, f"{host or member.host}:{member.port}")
    thread.join(READY_SECONDS)


def wait_until(what: str, ready: Callable[[], bool], *, seconds: float = READY_SECONDS) -> None:
    """Poll until it is so; BenchError when it does not come about."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


@contextlib.contextmanager
def running(nodes: Sequence[Node]) -> Generator[None]:
    """Start the daemons, and stop each of them at the end, whatever happens."""
    try:
        for node in nodes:
            node.up()
        yield
    finally:
        for node in nodes:
            node.down()


def pair_all(nodes: Sequence[Node], host_seen_by: Callable[[Node], str] | None = None) -> None:
    """Let all nodes join the first, and wait until each is connected to each."""
    for node in nodes[1:]:
        pair(nodes[0], node, host=host_seen_by(node) if host_seen_by else "")
    wait_until(
        "the nodes connect to each other", lambda: all(node.connected() == len(nodes) - 1 for node in nodes)
    )


@dataclass
class Moment:
    """When something was seen, and the CPU seconds the watched daemons had used until then."""

    when: float
    cpu_seconds: float


class ArrivalWatch:
    """Notes when a node has written so many bytes since the watch began, and then when `named` is there.

    A file of the store gets its name once it is durable. A context manager: it ends its thread.
    """

    def __init__(
        self, node: Node, byte_count: int, *, named: Path | None = None, cpu_nodes: Sequence[Node] = ()
    ) -> None:
        self.written: Moment | None = None
        self.durable: Moment | None = None
        self._node, self._bytes, self._cpu_nodes = node, byte_count, cpu_nodes
        self.named = named
        self._start_bytes = node.written_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.is_set() and self._node.written_bytes() - self._start_bytes < self._bytes:
            self._stop.wait(POLL_SECONDS)
        self.written = self._now()
        while self.named is not None and not self._stop.is_set():
            if self.named.exists():
                self.durable = self._now()
                return
            self._stop.wait(POLL_SECONDS)

    def _now(self) -> Moment | None:
        if self._stop.is_set():
            return None
        return Moment(time.perf_counter(), sum(node.cpu_seconds() for node in self._cpu_nodes))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
