"""Copies and restored files whose bytes no connected node has: they are made all the same, and it is said.

Such a copy is a name for the same bytes, so that it can be made while they are away; whoever made it must not
believe that it can be read now.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from tbshare.content.ref import shown
from tbshare.daemon.copies import Pair, whole_here
from tbshare.daemon.service import Service
from tbshare.errors import PathIsDirectory, PathMissing
from tbshare.volumes.item import Content, Line, Path, Saved
from tbshare.volumes.volume import Handle

NAMED_MAX = 3


@dataclass(frozen=True)
class _Wanted:
    """Contents to be found, as a version has them."""

    contents: str
    content: bytes
    file: int = 0
    version: int = 0
    size: int = 0


@dataclass(frozen=True)
class Unreachable:
    """How many files cannot be read now, and that in one line."""

    files: int = 0
    text: str = ""


async def unreachable(service: Service, handle: Handle, made: Sequence[tuple[Path, Content]]) -> Unreachable:
    """Return which of these contents no connected node has, this one included; the paths had them before."""
    missing = await trio.to_thread.run_sync(_not_here, service, handle, made)
    pairs = list(dict.fromkeys((line.file, line.version) for _, lines in missing for line in lines))
    held = set[Pair]()
    if pairs:
        held = held.union(*(await service.spread.holding.elsewhere(handle.id, pairs, any_holder=True)).values())
    lost = [
        (path, lines) for path, lines in missing if held.isdisjoint((line.file, line.version) for line in lines)
    ]
    if not lost:
        return Unreachable()
    names = [shown(f"{handle.name}:/" + b"/".join(path).decode("utf-8", "surrogateescape")) for path, _ in lost]
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    author = next((lines[-1].author for _, lines in lost if lines), b"")  # the others are copies of it
    why = await service.spread.nowhere(author)
    return Unreachable(len(lost), f"{', '.join(names[:NAMED_MAX])}{more}: {why}")


async def unreachable_of_saved(
    service: Service, handle: Handle, saved: Sequence[Saved], source: Path, target: Path
) -> Unreachable:
    """Do the same for versions that were saved below `target`, from what was below `source`."""

    def contents() -> list[tuple[Path, Content]]:
        tables = service.volumes.tables(handle.id)
        rows = [(each.path[len(target) :], tables.version(each.file, each.version)) for each in saved]
        return [((*source, *rest), Content(row.content, row.size, 0, row.kind)) for rest, row in rows if row]

    return await unreachable(service, handle, await trio.to_thread.run_sync(contents))


def _not_here(
    service: Service, handle: Handle, made: Sequence[tuple[Path, Content]]
) -> list[tuple[Path, list[Line]]]:
    """Return the paths whose content is not here, each with the versions that have it."""
    here = whole_here(service.store, [_Wanted(content.kind, content.content) for _, content in made])
    missing: list[tuple[Path, list[Line]]] = []
    for (path, content), is_here in zip(made, here, strict=True):
        if not is_here:
            try:
                lines = handle.history(path)
            except (PathMissing, PathIsDirectory):
                lines = []
            missing.append((path, [line for line in lines if line.content == content.content]))
    return missing
