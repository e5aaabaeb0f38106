"""Real daemons for tests: started as processes, paired through the client, ended by their ids whatever happens."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from queue import SimpleQueue
from random import Random

from tbshare.client import Client
from tbshare.wire.local import PushParams
from tbshare.wire.report import AnyEvent, Code, PushReport, RefLine, StatusReport

READY_SECONDS = 20.0
UNTIL_SECONDS = 20.0
POLL_SECONDS = 0.02
LOG_SHOWN_BYTES = 6000
MIB = 1 << 20


class NotStartedError(Exception):
    """The daemon ended instead of saying that it is ready; the text is what it said."""


class Node:
    """One daemon with its own home. The port is chosen at the first start and kept."""

    def __init__(
        self,
        home: Path,
        name: str,
        config: str = "",
        *,
        host: str = "127.0.0.1",  # empty: it listens on all it has
        prefix: Sequence[str] = (),  # goes before the command
    ) -> None:
        self.home, self.name, self.port = home, name, 0
        self._host, self._prefix = host, list(prefix)
        self.process: subprocess.Popen[bytes] | None = None
        self._ready = -1
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if config:
            (home / "config.toml").write_text(config)

    def launch(self) -> None:
        """Begin to start; `wait_ready` must follow."""
        assert self.process is None
        self._ready, write = os.pipe()
        words = [
            "--home",
            str(self.home),
            "--port",
            str(self.port),
            "--listen",
            self._host,
            "--name",
            self.name,
        ]
        try:
            with open(self.home.parent / f"{self.home.name}.out", "ab") as output:
                self.process = subprocess.Popen(
                    [
                        *self._prefix,
                        sys.executable,
                        "-P",
                        "-m",
                        "tbshare.daemon",
                        *words,
                        "--ready-fd",
                        str(write),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[write],
                )
        finally:
            os.close(write)

    def wait_ready(self) -> None:
        """Wait until it serves; NotStartedError with its sentence when it does not come to that."""
        assert self.process is not None
        try:
            readable, _, _ = select.select([self._ready], [], [], READY_SECONDS)
            said = os.read(self._ready, 65536).decode() if readable else "nothing"
        finally:
            os.close(self._ready)
        if said != "ready":
            self.kill()
            raise NotStartedError(said)
        if not self.port:
            self.port = self.status().port

    def start(self) -> None:
        """Start and wait until it serves."""
        self.launch()
        self.wait_ready()

    @property
    def pid(self) -> int:
        """The process."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """End it without a chance to do anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it politely."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def client(self) -> Client:
        """Return a connection; no call may be silent for a minute."""
        return Client.connect(self.home, call_seconds=60)

    def status(self) -> StatusReport:
        """Return what the daemon says of itself."""
        with self.client() as client:
            return client.status()

    def push(
        self, path: Path, on_event: Callable[[AnyEvent], None] | None = None, **options: object
    ) -> PushReport:
        """Push and wait for all targets that are there."""
        with self.client() as client:
            return client.push(PushParams(str(path), **options), on_event)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def line(self, ref: str) -> RefLine | None:
        """Return the line of one version, by its whole text."""
        with self.client() as client:
            lines = client.ref_list(all_revs=True).refs
        return next((line for line in lines if line.ref == ref), None)

    def has(self, ref: str) -> bool:
        """Return whether a version is whole here."""
        line = self.line(ref)
        return line is not None and line.here == "whole"

    def log(self) -> str:
        """Return the end of what it logged and printed."""
        paths = (self.home / "log" / "daemon.log", self.home.parent / f"{self.home.name}.out")
        return "\n".join(path.read_text(errors="replace")[-LOG_SHOWN_BYTES:] for path in paths if path.exists())

    def connected(self) -> set[str]:
        """Return the names of the other nodes that are connected."""
        with self.client() as client:
            return {line.name for line in client.node_list().nodes if line.state == "connected"}

    def anonymous_bytes(self) -> int:
        """Return the anonymous memory of the daemon now."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

    def object_files(self) -> list[Path]:
        """Return the files of whole objects, the largest first."""
        files = [path for path in (self.home / "objects").glob("??/*") if path.is_file()]
        return sorted(files, key=lambda path: -path.stat().st_size)


def until(what: str, holds: Callable[[], bool], seconds: float = UNTIL_SECONDS) -> None:
    """Ask again and again until it holds: for what no event tells. AssertionError when it does not come about."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(POLL_SECONDS)


def open_window(node: Node, on_code: Callable[[str], None]) -> None:
    """Show a code and wait until somebody used it."""

    def told(event: AnyEvent) -> None:
        if isinstance(event, Code):
            on_code(event.code)

    with node.client() as client:
        client.pair_open(told)


def pair(member: Node, newcomer: Node, host: str = "127.0.0.1") -> None:
    """Let a node join the cluster of another, which it finds at `host`."""
    answers: SimpleQueue[str | BaseException] = SimpleQueue()

    def opened() -> None:
        try:
            open_window(member, answers.put)
        except BaseException as error:  # noqa: BLE001  handed to the test, which raises it
            answers.put(error)

    thread = threading.Thread(target=opened, daemon=True)
    thread.start()
    code = answers.get(timeout=READY_SECONDS)
    if isinstance(code, BaseException):
        raise code
    with newcomer.client() as client:
        client.pair_join(code, f"{host}:{member.port}")
    thread.join(READY_SECONDS)


def start_all(nodes: Sequence[Node]) -> None:
    """Start daemons side by side."""
    for node in nodes:
        node.launch()
    for node in nodes:
        node.wait_ready()


def until_connected(nodes: Sequence[Node]) -> None:
    """Wait until each node has a session with each."""
    names = {node.name for node in nodes}
    for node in nodes:
        until(f"{node.name} is connected", lambda node=node: node.connected() >= names - {node.name})  # type: ignore[misc]


def pair_all(nodes: Sequence[Node]) -> None:
    """Let all join the first, and wait until each is connected with each."""
    for node in nodes[1:]:
        pair(nodes[0], node)
    until_connected(nodes)


@contextlib.contextmanager
def running(*nodes: Node, paired: bool = True) -> Generator[None]:
    """Run daemons; end each that runs at the end, and show what they logged when the block fails."""
    try:
        start_all(nodes)
        if paired:
            pair_all(nodes)
        yield
    except BaseException:
        for node in nodes:
            print(f"--- {node.name}\n{node.log()}")  # noqa: T201  pytest shows it with the failure
        raise
    finally:
        for node in nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.stop()


def random_model(directory: Path, seed: int, *sizes: int, config: str = "{}") -> Path:
    """Write a directory with files of random bytes and a config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    random = Random(seed)
    for number, size in enumerate(sizes):
        (directory / f"part-{number}.weights").write_bytes(random.randbytes(size))
    (directory / "config.json").write_text(config)
    return directory
