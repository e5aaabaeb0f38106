"""What goes on in this daemon, with ids for `ps`, `stop` and `wait`."""

import contextlib
import itertools
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import trio

from tbshare.errors import Interrupted, UsageError, innermost
from tbshare.wire.report import NodeProgress, ProcessLine, PushReport, WaitReport

KEPT_FINISHED = 50  # so that `wait` can still be asked a little later


@dataclass(eq=False)
class Process:
    """One push, pull, run or verify."""

    id: str
    kind: str
    what: str
    scope: trio.CancelScope
    state: str = "running"
    started: float = field(default_factory=time.time)
    bytes_done: int = 0
    bytes_total: int = 0
    rate: float = 0.0
    nodes: list[NodeProgress] = field(default_factory=list[NodeProgress])
    text: str = ""
    report: PushReport | None = None
    finished: trio.Event = field(default_factory=trio.Event)
    finished_at: float = 0.0
    on_stop: Callable[[], None] | None = None  # may refuse, by an error
    handed_over: bool = False  # the call that began it has ended, and it goes on

    def line(self) -> ProcessLine:
        """Return what `ps` shows."""
        left = self.bytes_total - self.bytes_done
        eta = left / self.rate if self.rate > 0 and left > 0 else None
        return ProcessLine(
            id=self.id,
            kind=self.kind,
            what=self.what,
            state=self.state,
            started_seconds=self.started,
            bytes_done=self.bytes_done,
            bytes_total=self.bytes_total,
            rate=self.rate,
            eta_seconds=eta,
            nodes=self.nodes,
            text=self.text,
        )

    def end(self, state: str, text: str = "") -> None:
        """Note how it ended."""
        self.state, self.text = state, text
        self.finished_at = time.time()
        self.finished.set()

    @contextlib.contextmanager
    def ending(self, *, unless: Callable[[], bool] = lambda: False) -> Generator[None, None, None]:
        """Note an end by an error; an end without one is noted inside, or later where `unless` says so."""
        try:
            yield
        except BaseException as error:
            if not self.finished.is_set() and not unless():
                stopped = isinstance(error, Interrupted | trio.Cancelled)
                self.end("stopped" if stopped else "failed", str(innermost(error)))
            raise

    def waited(self) -> WaitReport:
        """Return what `wait` answers."""
        seconds = (self.finished_at or time.time()) - self.started
        return WaitReport(self.id, self.kind, self.what, self.state, seconds, self.text, self.report)


class Processes:
    """All processes of this daemon."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._all: dict[str, Process] = {}

    def begin(self, kind: str, what: str) -> Process:
        """Add a process."""
        process = Process(f"{kind}-{next(self._numbers)}", kind, what, trio.CancelScope())
        self._all[process.id] = process
        finished = [other.id for other in self._all.values() if other.finished.is_set()]
        for process_id in finished[:-KEPT_FINISHED]:
            del self._all[process_id]
        return process

    def running(self) -> list[Process]:
        """Return those that go on, oldest first."""
        return [process for process in self._all.values() if not process.finished.is_set()]

    def get(self, process_id: str) -> Process:
        """Return the process of this id. UsageError when there is none."""
        process = self._all.get(process_id)
        if process is None:
            raise UsageError(f"nothing here has the id {process_id!r}", cure="tbshare ps")
        return process

    def stop(self, process_id: str) -> Process:
        """End a process."""
        process = self.get(process_id)
        if process.on_stop is not None:
            process.on_stop()
        process.scope.cancel()
        return process
