"""Connections to the daemon that threads take in turn, and its errors as Python's own.

fsspec makes a file system for each thread; the connections are shared by all of a process. A child that was forked
makes its own.
"""

import atexit
import errno
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from tbshare.client import Client
from tbshare.errors import DaemonUnreachable, TbshareError, UsageError, VolumeReadOnly, VolumeUnknown, errno_of
from tbshare.wire.where import Where, path_parts

CONNECTIONS_MAX = 12  # the daemon takes 64 from all programs of this machine
_T = TypeVar("_T")
_pools: dict[tuple[int, str], "Connections"] = {}
_pools_lock = threading.Lock()


class Access:
    """What the files of a file system need of the daemon: calls about a path, whose errors are Python's own."""

    def __init__(self, home: str) -> None:
        self.home = home

    def ask(self, path: str, call: Callable[[Client], _T]) -> _T:
        """Make a call about a path."""
        with translated(path), Connections.of(self.home).client() as client:
            return call(client)

    def where(self, path: str) -> Where:
        """Return the place that a path is, `VOLUME[@SNAPSHOT]/path`; OSError for one that leaves the volume."""
        first, _, rest = path.partition("/")
        volume, _, snapshot = first.partition("@")
        with translated(path):
            parts = path_parts(rest.encode("utf-8", "surrogateescape"))
        return Where(volume, b"/".join(parts), snapshot)


class Connections:
    """Connections to the daemon of one home. Thread-safe; a call has one for itself while it lasts."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._idle: list[Client] = []  # appended and popped whole, so that no lock is needed

    @classmethod
    def of(cls, home: str) -> "Connections":
        """Return those of this process to the daemon of a home."""
        with _pools_lock:
            return _pools.setdefault((os.getpid(), home), cls(home))

    @contextmanager
    def client(self) -> Generator[Client]:
        """Lend a connection, a new one where none is idle. DaemonUnreachable."""
        with self._room:
            client = self._waiting() or Client.connect(self._home)
            try:
                yield client
            except BaseException as error:
                if isinstance(error, TbshareError) and not isinstance(error, DaemonUnreachable):
                    self._idle.append(client)  # an answer like any other
                else:
                    client.close()
                raise
            self._idle.append(client)

    def close(self) -> None:
        """Close those that are idle."""
        while self._idle:
            self._idle.pop().close()

    def _waiting(self) -> Client | None:
        while self._idle:
            client = self._idle.pop()
            if not client.hung_up:
                return client
            client.close()  # the daemon was started again since
        return None


@atexit.register
def close_all() -> None:
    """Close the connections that wait, when the process ends."""
    for (pid, _), pool in _pools.items():
        if pid == os.getpid():
            pool.close()


@contextmanager
def translated(path: str) -> Generator[None]:
    """Raise what tbshare raises as the errors that Python's own files have."""
    try:
        yield
    except TbshareError as error:
        raise python_error(error, path) from error


def python_error(error: TbshareError, path: str) -> Exception:
    """Return the error that Python's own files would raise, with the sentence and the cure of ours."""
    text = f"{error}; try: {error.cure}" if error.cure else str(error)
    if isinstance(error, UsageError) and not isinstance(error, VolumeUnknown):
        return ValueError(text)
    if isinstance(error, DaemonUnreachable):
        return ConnectionRefusedError(errno.ECONNREFUSED, text)
    if isinstance(error, VolumeReadOnly):
        return PermissionError(errno.EROFS, text, path)
    return OSError(errno_of(error), text, path)  # of the class that the number means
