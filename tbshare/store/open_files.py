"""Files of the store that are open for reading, shared by all who read from them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

OPEN_FILES_MAX = 256  # kept open while nobody reads from them; a quarter of what a process may usually have


@dataclass(slots=True)
class _OpenFile:
    descriptor: int
    users: int = 0


@dataclass(frozen=True, slots=True)
class BlockBytes:
    """Where a block can be read now. `release` must be called when the descriptor is no longer needed."""

    descriptor: int
    offset: int
    length: int
    release: Callable[[], None]


class OpenFiles:
    """Descriptors by path. Thread-safe. A file that is forgotten is closed when its last reader is done."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[Path, _OpenFile] = {}

    def use(self, path: Path, offset: int, length: int) -> BlockBytes:
        """Open a file, or share the one that is open. FileNotFoundError when it is gone."""
        with self._lock:
            opened = self._open.get(path)
            if opened is None:
                self._close_idle()
                opened = _OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                self._open[path] = opened
            opened.users += 1

        def release() -> None:
            with self._lock:
                opened.users -= 1
                if opened.users == 0 and self._open.get(path) is not opened:
                    os.close(opened.descriptor)

        return BlockBytes(opened.descriptor, offset, length, release)

    def _close_idle(self) -> None:
        if len(self._open) >= OPEN_FILES_MAX:
            for path in [path for path, opened in self._open.items() if opened.users == 0]:
                os.close(self._open.pop(path).descriptor)

    def forget(self, path: Path) -> None:
        """Close a file that is about to go or to get another name; who reads from it now may finish."""
        with self._lock:
            opened = self._open.pop(path, None)
            if opened is not None and opened.users == 0:
                os.close(opened.descriptor)

    def close(self) -> None:
        """Close all files that nobody reads from."""
        with self._lock:
            paths = list(self._open)
        for path in paths:
            self.forget(path)
