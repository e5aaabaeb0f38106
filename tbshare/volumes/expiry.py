"""Giving up old versions of a volume on this node: what `retention` decides, from the tables and to them."""

from tbshare.volumes import past, seeing
from tbshare.volumes.opened import Opened
from tbshare.volumes.policy import keeps_history
from tbshare.volumes.retention import Past, expired
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
    for one in opened.tables.superseded():
        if one.here == Here.EXPIRED:
            continue
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
                needed=_in_snapshot(opened, row.file, row.version),
                keeps_history=kept[row.file],
            )
        )
    going = expired(pasts, opened.policy, disk_bytes)
    opened.tables.mark(going, Here.EXPIRED)
    return going


def _in_snapshot(opened: Opened, file: int, version: int) -> bool:
    """Say whether a snapshot shows this version."""
    for snapshot in opened.shared.state.snapshots(opened.id):
        row = past.as_of(opened, snapshot.name).tables.file(file)
        if row is not None and row.alive and any(head.version == version for head in row.heads):
            return True
    return False
