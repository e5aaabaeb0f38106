"""Ops that wait to be committed: who waits at the same time shares a commit and, as far as they fit, an entry."""

from collections.abc import Callable, Sequence
from threading import Lock, get_ident
from typing import Final

from tbshare.errors import InputRefused
from tbshare.volumes.entry import OPS_MAX, AnyOp, Entry, encode_op
from tbshare.wire import limits

OPS_BYTES_MAX: Final = limits.ENTRY_BYTES_MAX - 4096  # the rest of an entry is below 300 bytes


class Batch:
    """The ops of one caller, and what became of them.

    FormatInvalid or InputRefused when they could never be an entry, before anyone else is drawn in.
    """

    def __init__(self, ops: Sequence[AnyOp]) -> None:
        if not ops or len(ops) > OPS_MAX:
            raise InputRefused(f"{len(ops)} ops do not make one entry; {OPS_MAX} are allowed")
        self.ops = tuple(ops)
        self.raw_ops = [encode_op(op) for op in ops]
        self.bytes = sum([len(raw) for raw in self.raw_ops])
        self.entry: Entry | None = None
        self.error: BaseException | None = None
        self.leads = False
        self.thread = get_ident()  # whose ops they are
        self._done = Lock()
        self._done.acquire()
        if self.bytes > OPS_BYTES_MAX:
            raise InputRefused(f"{len(ops)} ops of {self.bytes} bytes do not make one entry")

    def wait(self) -> None:
        """Wait until it is committed, or `leads`."""
        self._done.acquire()

    def wake(self) -> None:
        """End the wait."""
        self._done.release()


class Queue:
    """The callers that wait: the first commits for all, then the first of those that came meanwhile."""

    def __init__(self, commit: Callable[[Sequence[Batch]], None]) -> None:
        """`commit` gives every batch an entry or an error."""
        self._commit = commit
        self._lock = Lock()
        self._waiting: list[Batch] = []
        self._led = False

    def put(self, batch: Batch) -> None:
        """Return when the batch was committed, by us or by another thread."""
        with self._lock:
            self._waiting.append(batch)
            batch.leads = not self._led
            self._led = True
        if not batch.leads:
            batch.wait()
        if batch.leads:
            self._lead(batch)

    def _lead(self, own: Batch) -> None:
        with self._lock:
            batches, self._waiting = self._waiting, []
        try:
            self._commit(batches)
        finally:
            for batch in batches:
                if batch is not own:
                    batch.wake()
            with self._lock:
                self._led = bool(self._waiting)
                if self._led:
                    self._waiting[0].leads = True
                    self._waiting[0].wake()


def groups_of(batches: Sequence[Batch]) -> list[list[Batch]]:
    """Return the batches in order, in groups that each fit one entry."""
    groups: list[list[Batch]] = []
    ops = size = 0
    for batch in batches:
        if not groups or ops + len(batch.ops) > OPS_MAX or size + batch.bytes > OPS_BYTES_MAX:
            groups.append([])
            ops = size = 0
        groups[-1].append(batch)
        ops += len(batch.ops)
        size += batch.bytes
    return groups
