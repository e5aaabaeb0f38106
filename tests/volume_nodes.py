"""What tests of volumes ask of real daemons, in few words."""

from collections.abc import Callable
from pathlib import Path

from tbshare.wire.files import CopyReport, FileCopyParams, FileReadParams, Item
from tbshare.wire.report import AnyEvent
from tbshare.wire.volume import VolumeCreateParams, VolumeMade
from tbshare.wire.where import Where, parse_where
from tests.nodes import Node


def place(text: str | Path) -> Where:
    """Return what a user means by `film:/a`, or by a path of this machine."""
    if isinstance(text, Path):
        return Where(path=bytes(text))
    where = parse_where(text)
    assert where is not None
    return where


def create(node: Node, name: str, **options: object) -> VolumeMade:
    """Make a volume."""
    with node.client() as client:
        return client.volume_create(VolumeCreateParams(name, **options))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def copy(
    node: Node,
    *paths: str | Path,
    on_event: Callable[[AnyEvent], None] | None = None,
    recursive: bool = False,
    move: bool = False,
) -> CopyReport:
    """Copy all but the last path to the last."""
    *sources, target = [place(path) for path in paths]
    with node.client() as client:
        return client.file_copy(FileCopyParams(sources, target, recursive, move=move), on_event)


def names(node: Node, text: str) -> list[str]:
    """Return the names in a directory, as shown."""
    with node.client() as client:
        return [item.name.decode() for item in client.file_list(place(text)).items]


def stat(node: Node, text: str) -> Item:
    """Return one item."""
    with node.client() as client:
        return client.file_stat(place(text)).item


def read(node: Node, text: str, **options: object) -> bytes:
    """Return a file's bytes, or a range of them."""
    parts = bytearray()
    with node.client() as client:
        client.file_read(FileReadParams(place(text), **options), parts.extend)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return bytes(parts)


def write(node: Node, text: str, data: bytes, scratch: Path) -> CopyReport:
    """Save bytes as a file of a volume."""
    scratch.mkdir(parents=True, exist_ok=True)
    local = scratch / "saved"
    local.write_bytes(data)
    return copy(node, local, text)
