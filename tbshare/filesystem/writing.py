"""Files that are written: to a file on the store's disk, which a commit makes a version."""

import atexit
import contextlib
import fcntl
import io
import os
import secrets
import threading
from collections.abc import Sequence
from typing import Any

from fsspec.transaction import Transaction

from tbshare.errors import CrossesVolumes
from tbshare.filesystem.connections import Access, python_error
from tbshare.filesystem.reading import fetched, located
from tbshare.wire.files import Commit

BUFFER_BYTES = 256 * 1024
COPY_BYTES = 8 * 1024 * 1024
PREFIX = "writer-"  # the daemon sweeps directories of this name that nobody has locked
MODES = ("wb", "xb", "ab", "r+b", "w+b", "x+b", "a+b")


_Untyped: Any = Transaction  # fsspec says nothing of types


class WriterDirectory:
    """Where this process writes what is not committed yet. It is locked for as long as the process lives."""

    _known: "dict[tuple[int, bytes], WriterDirectory]" = {}  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self, staging: bytes) -> None:
        while True:
            self.path = os.path.join(staging, PREFIX.encode() + secrets.token_hex(8).encode())
            os.mkdir(self.path, 0o700)
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):  # swept between the two
                os.stat(self.path)
                return
            os.close(self._descriptor)

    @classmethod
    def below(cls, staging: bytes) -> "WriterDirectory":
        """Return the one of this process, a new one if there is none."""
        key = (os.getpid(), staging)
        with cls._lock:
            known = cls._known.get(key)
            if known is None or not os.path.isdir(known.path):
                known = cls._known[key] = cls(staging)
                atexit.register(known.leave, os.getpid())
            return known

    def leave(self, pid: int) -> None:
        """Take it away when the process ends; what is left in it is swept."""
        if os.getpid() == pid:
            with contextlib.suppress(OSError):
                os.rmdir(self.path)

    def new_file(self) -> bytes:
        """Return a name that no file has."""
        return os.path.join(self.path, secrets.token_hex(8).encode())


class _Raw(io.FileIO):
    """The staged file; one that is left to the garbage collector is committed like any of fsspec's, in silence."""

    def _dealloc_warn(self, source: object) -> None:
        pass


class StagedFile(io.BufferedRandom):
    """A file being written; `close` makes it a version, unless a transaction does.

    An exception that leaves its `with` block makes it nothing.
    """

    def __init__(self, fs: Any, path: str, mode: str, *, autocommit: bool) -> None:
        self.fs, self.path, self.autocommit, self._mode = fs, path, autocommit, mode
        self._access: Access = fs.access
        self._is_new = mode.startswith("x")
        self._base: list[str] | None = None
        where = self._access.where(path)
        staging = self._access.ask(path, lambda client: client.file_stage(where, new=self._is_new)).directory
        self._staged = WriterDirectory.below(staging).new_file()
        super().__init__(_Raw(os.fsdecode(self._staged), "x+"), BUFFER_BYTES)
        try:
            if mode.startswith(("a", "r")):
                self._begin_with_what_is_there()
        except BaseException:
            self.autocommit = False
            self.close()
            self.discard()
            raise

    def _begin_with_what_is_there(self) -> None:
        """Copy the version that is shown; where somebody saves meanwhile, both are kept."""
        try:
            found, stored = located(self._access, self.path)
        except FileNotFoundError:
            if self._mode.startswith("r"):
                raise
            self._base = []
            return
        self._base = [found.version]
        target = self.fileno()
        position = 0
        try:
            while position < found.size_bytes:
                length = min(COPY_BYTES, found.size_bytes - position)
                if stored is not None:
                    data = stored.read(position, length)
                else:
                    data = fetched(self._access, self.path, found.version, position, length)
                os.pwrite(target, data, position)
                position += len(data)
        finally:
            if stored is not None:
                stored.close()
        self.seek(found.size_bytes if self._mode.startswith("a") else 0)

    @property
    def mode(self) -> str:  # type: ignore[override]
        """How it is open."""
        return self._mode

    @property
    def name(self) -> str:
        """Its path."""
        return self.path

    @property
    def full_name(self) -> str:
        """Its URL."""
        return str(self.fs.unstrip_protocol(self.path))

    @property
    def commit_line(self) -> Commit:
        """What the daemon is told of it."""
        return Commit(self._access.where(self.path), self._staged, self._base, self._is_new)

    def close(self) -> None:
        """Write what is in the buffer and, outside of a transaction, make it a version."""
        if self.closed:
            return
        try:
            super().close()
        except BaseException:
            self.discard()
            raise
        if self.autocommit:
            self.commit()

    def commit(self) -> None:
        """Make it a version; durable on return."""
        commit_together(self._access, [self])

    def discard(self) -> None:
        """Forget what was written."""
        self.autocommit = False
        if not self.closed:
            self.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._staged)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class TogetherTransaction(_Untyped):  # type: ignore[misc]
    """What is written in it becomes visible in one entry of the log."""

    def complete(self, commit: bool = True) -> None:
        """Commit all files, or discard them."""
        files: list[StagedFile] = list(self.files)
        access: Access = self.fs.access
        self.files.clear()
        untyped: Any = super()
        untyped.complete(commit)  # which ends the transaction whatever happens
        if commit:
            commit_together(access, files)
        else:
            for file in files:
                file.discard()


def commit_together(access: Access, files: Sequence[StagedFile]) -> None:
    """Commit files, of those with one path the last; all of them or none."""
    try:
        for file in files:
            file.autocommit = False
            file.close()
        last = {file.path: file for file in files}
        volumes = {access.where(path).volume for path in last}
        if len(volumes) > 1:
            names = " and ".join(sorted(volumes))
            error = CrossesVolumes(f"{names} are several volumes: a transaction is in one", cure="one for each")
            raise python_error(error, files[0].path)
        if last:
            lines = [file.commit_line for file in last.values()]
            access.ask(files[0].path, lambda client: client.file_commit(lines))
    finally:
        for file in files:
            file.discard()
