"""Giving up old versions of a volume on this node: what `retention` decides, from the tables and to them."""

from collections.abc import Collection
from math import inf

import msgspec

from tbshare.content.tree import large_of
from tbshare.volumes import past, seeing
from tbshare.volumes.entry import At
from tbshare.volumes.opened import Opened
from tbshare.volumes.policy import keeps_history
from tbshare.volumes.retention import Past, expired
from tbshare.volumes.rows import version_of_large
from tbshare.volumes.tables import Here


def tick(opened: Opened) -> None:
    """Let the volume's clock, by which versions grow old, go on by the time since it was last told."""
    now = opened.shared.clock()
    opened.tables.tick(max(now - opened.ticked, 0.0))
    opened.ticked = now


def expire(opened: Opened, disk_bytes: int) -> list[tuple[int, int]]:
    """Mark the versions whose bytes this node gives up, and return them as (file, version)."""
    tick(opened)
    kept: dict[int, bool] = {}
    pasts: list[Past] = []
    known_until = _known_until(opened)
    old = [one for one in opened.tables.superseded() if one.here != Here.EXPIRED and one.since < known_until]
    needed = _in_snapshots(opened, {one.row.file for one in old})
    for one in old:
        row = one.row
        if row.file not in kept:
            paths = seeing.paths(opened, row.file, dead=True)
            kept[row.file] = not paths or any(keeps_history(opened.policy, path) for path in paths)
        pasts.append(
            Past(
                file=row.file,
                version=row.version,
                stamp=row.stamp,
                content=row.content,
                size=row.size,
                age_seconds=opened.tables.clock - one.since,
                needed=(row.file, row.version) in needed,
                keeps_history=kept[row.file],
            )
        )
    going = expired(pasts, opened.policy, disk_bytes)
    opened.tables.mark(going, Here.EXPIRED)
    return going


def _known_until(opened: Opened) -> float:
    """Return the time, on the volume's clock, of which every member has seen what had been saved and removed.

    Another member may copy what it still sees, or name it in a snapshot, without having the bytes.
    """
    log, tables = opened.shared.log, opened.tables
    if log.all_have(log.at()):
        return inf
    noted = tables.fact("seen")
    seen = msgspec.msgpack.decode(noted, type=_Seen) if noted else _Seen()
    if log.all_have(seen.heads):
        seen = _Seen(seen.next, tables.clock, log.at())
        tables.note("seen", msgspec.msgpack.encode(seen))
    return seen.until


class _Seen(msgspec.Struct, frozen=True, array_like=True):
    """What all have seen, and what is waited for: when they have these heads, they have seen all until `next`."""

    until: float = 0.0
    next: float = 0.0
    heads: tuple[At, ...] = ()


def _in_snapshots(opened: Opened, files: Collection[int]) -> set[tuple[int, int]]:
    """Return the versions of these files that some snapshot shows, as (file, version)."""
    found: set[tuple[int, int]] = set()
    for snapshot in opened.shared.state.snapshots(opened.id) if files else ():
        tables = past.as_of(opened, snapshot.name).tables
        for file in files:
            row = tables.file(file)
            if row is not None and row.alive:
                found.update([(file, head.version) for head in row.heads])
                xattrs = row.attributes.living_xattrs() if row.attributes is not None else {}
                large = [large_of(name, value) for name, value in xattrs.items()]
                found.update([(file, version_of_large(each[0])) for each in large if each is not None])
    return found
