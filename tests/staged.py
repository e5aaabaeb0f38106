"""A mount that writes, as far as the daemon can tell: a process, and what it asks on the control socket."""

import json
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from tbshare.wire import mount as wire
from tbshare.wire.local import METHODS
from tbshare.wire.parts import Params, Result
from tbshare.wire.report import Done
from tests.nodes import Node
from tests.volume_nodes import stat


class Writer:
    """What a mount does for one program that writes. Its process ends when the test says so."""

    def __init__(self, node: Node, volume: int) -> None:
        self.node, self.volume = node, volume
        self.process = subprocess.Popen(["sleep", "1000"])

    def die(self) -> None:
        """End as by kill -9."""
        self.process.kill()
        self.process.wait()

    def ask(self, params: Params, result: type[Result]) -> Result:
        """Ask the daemon."""
        name = next(name for name, (kind, _) in METHODS.items() if kind is type(params))
        with self.node.client() as client:
            return client._call(name, params, result)  # pyright: ignore[reportPrivateUsage]

    def stage(self, path: str, **options: object) -> wire.MountStaged:
        """Open a file for writing: a new one, or what is there."""
        params = wire.MountStageParams(self.volume, _parts(path), self.process.pid, **options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        result = self.ask(params, wire.MountStaged)
        assert isinstance(result, wire.MountStaged)
        return result

    def again(self, item: wire.MountItem | None, path: str, **options: object) -> wire.MountStaged:
        """Open a file that is there."""
        assert item is not None
        return self.stage(path, file=item.file, version=item.version, content=item.content, **options)

    def cut(self, staged: wire.MountStaged, path: str, **options: object) -> wire.MountCut:
        """Cut."""
        result = self.ask(wire.MountCutParams(staged.id, _parts(path), **options), wire.MountCut)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert isinstance(result, wire.MountCut)
        return result

    def sync(self, staged: wire.MountStaged, path: str, **options: object) -> None:
        """Do what fsync does."""
        descriptor = os.open(staged.path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self.ask(wire.MountSyncParams(staged.id, _parts(path), **options), Done)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def unstage(self, staged: wire.MountStaged) -> None:
        """Forget."""
        self.ask(wire.MountUnstageParams(staged.id), Done)


@contextmanager
def writer(node: Node, volume: int) -> Generator[Writer]:
    """Return a mount that ends with the block."""
    made = Writer(node, volume)
    try:
        yield made
    finally:
        made.die()


def put(staged: wire.MountStaged, data: bytes, offset: int = 0) -> None:
    """Write to a working file."""
    descriptor = os.open(staged.path, os.O_RDWR)
    try:
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)


def left(node: Node) -> list[Path]:
    """Return what is in a node's staging directory, but for empty files that wait for a file to be created."""
    folder = node.home / "staging"
    spare = {row.stem for row in folder.glob("*.row") if not _path_of(row) and not _size_of(row.with_suffix(""))}
    return [path for path in folder.iterdir() if path.stem not in spare]


def _size_of(working: Path) -> int:
    with suppress(FileNotFoundError):
        return working.stat().st_size
    return 0


def _path_of(row: Path) -> list[str]:
    with suppress(FileNotFoundError):
        with suppress(json.JSONDecodeError):
            path: list[str] = json.loads(row.read_text())["path"]
            return path
        return ["?"]  # just being written
    return []


def versions(node: Node, text: str) -> int:
    """Return how many versions a path has had."""
    from tests.volume_nodes import place

    with node.client() as client:
        return len(client.history(place(text)).lines)


def heads(node: Node, text: str) -> int:
    """Return how many versions of a file are shown."""
    return stat(node, text).heads


def _parts(path: str) -> tuple[bytes, ...]:
    return tuple(os.fsencode(part) for part in path.split("/") if part)
