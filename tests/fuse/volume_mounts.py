"""Mounts of volumes for tests: real daemons, real processes, unmounted and ended whatever happens."""

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tbshare.errors import MountFailed
from tbshare.fuse import mounting
from tests.fuse.mounts import needs_mounting
from tests.nodes import Node

READY_SECONDS = 20.0
ENDED_SECONDS = 20.0


class VolumeMount:
    """A live mount of one volume, or of all."""

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path, node: Node) -> None:
        self.process, self.path, self.node = process, path, node

    @property
    def log(self) -> str:
        """What it logged."""
        path = self.node.home / "log" / "mount.log"
        return path.read_text() if path.exists() else ""

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()
        self.process.wait(ENDED_SECONDS)


def settled(directory: Path) -> Path:
    """Sync a directory: what was done in the mount so far is committed then, as any program may have it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return directory


@contextlib.contextmanager
def mounted(node: Node, path: Path, volume: str = "", *words: str) -> Generator[VolumeMount]:
    """Mount a volume, or all, on a directory; it is made if it is not there."""
    needs_mounting()
    if os.geteuid():
        pytest.skip("mount(2) takes root")
    path.mkdir(exist_ok=True)
    ready, told = os.pipe()
    command = [sys.executable, "-P", "-m", "tbshare.fuse", "--home", str(node.home), "--volume", volume, *words]
    output = node.home.parent / f"{path.name}.mount.out"
    with output.open("ab") as errors:
        process = subprocess.Popen(
            [*command, "--ready-fd", str(told), str(path)], pass_fds=[told], stdout=errors, stderr=errors
        )
    os.close(told)
    mount = VolumeMount(process, path, node)
    try:
        readable, _, _ = select.select([ready], [], [], READY_SECONDS)
        said = os.read(ready, 65536).decode() if readable else "nothing"
        if not said.startswith("ready\n"):
            pytest.fail(f"the mount said {said}\n{output.read_text()[-3000:]}")
        yield mount
    except BaseException:
        print(f"--- {path}\n{mount.log[-6000:]}\n{output.read_text()[-3000:]}")  # noqa: T201
        raise
    finally:
        os.close(ready)
        with contextlib.suppress(MountFailed):
            if mounting.mounted_at(str(path)) is not None:
                mounting.unmount(str(path), lazily=True)
        process.terminate()  # another test's mount namespace may have a copy
        try:
            process.wait(ENDED_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
