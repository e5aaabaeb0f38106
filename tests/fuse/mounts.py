"""Mounts for tests: started as processes, unmounted and ended whatever happens."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import pytest

from tbshare.fuse import mounting

ROOT = Path(__file__).parent.parent.parent
ENDED_SECONDS = 60.0


class Mount:
    """A live mount of a plain directory."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", source: Path, path: Path, front: str, log: Path
    ) -> None:
        self.process, self.source, self.path, self.front = process, source, path, front
        self._log = log

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each method was asked."""
        counts: dict[str, int] = json.loads(os.getxattr(self.path, "user.counts"))
        return counts

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait(self) -> int:
        return self.process.wait(ENDED_SECONDS)


def needs_mounting() -> None:
    """Skip a test where this machine cannot mount."""
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse")


@contextlib.contextmanager
def mounted(
    folder: Path, front: str = "own", *, prefix: Sequence[str] = (), words: Sequence[str] = ()
) -> Generator[Mount]:
    """Mount `folder/source` on `folder/mount`; both are made if they are not there."""
    needs_mounting()
    source, path, log = folder / "source", folder / "mount", folder / "server.log"
    source.mkdir(exist_ok=True)
    path.mkdir(exist_ok=True)
    command = [*prefix, sys.executable, "-m", "tests.fuse.server", front, str(source), str(path), *words]
    with log.open("ab") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors)
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            pytest.fail(f"the mount did not start: {log.read_text()[-3000:]}")
        yield Mount(process, source, path, front, log)
    finally:
        if mounting.mounted_at(str(path)) is not None:
            mounting.unmount(str(path), lazily=True)
            # It ends by itself, unless a copy of the mount lives in another namespace (unshare --mount).
            process.terminate()
        try:
            process.wait(ENDED_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()


@contextlib.contextmanager
def another(text: str, *arguments: object) -> Generator["subprocess.Popen[str]"]:
    """Run Python in another process: it says by lines where it is, and is told by lines to go on."""
    words = [sys.executable, "-c", text, *[str(argument) for argument in arguments]]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        watch = threading.Timer(60, process.kill)
        watch.start()
        try:
            yield process
        finally:
            watch.cancel()
            if process.poll() is None:
                process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    """Return the next line of another process."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: "subprocess.Popen[str]", text: str = "") -> None:
    """Let another process go on."""
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()
