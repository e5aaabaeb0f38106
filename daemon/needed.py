"""What must stay on this node: the one answer that garbage collection and eviction both go by."""

import time
from collections.abc import Iterable

from tbshare.content.block import TreeId
from tbshare.content.tree import Kind as EntryKind
from tbshare.daemon.service import Service
from tbshare.volumes.entry import RefRemove, VolumeSet
from tbshare.volumes.fold import State
from tbshare.volumes.rows import VersionRow
from tbshare.volumes.tables import Here

DAY_SECONDS = 86400
DAY_NS = DAY_SECONDS * 10**9


def needed_trees(
    service: Service, state: State, now_ns: int, *, now: bool
) -> tuple[set[bytes], int, dict[bytes, int]]:
    """Return the trees that must stay, the bytes waiting for the grace time, and who holds back how much.

    `now` does not wait for the grace time; what a member has not seen removed stays all the same.
    """
    trees = {version.tree for versions in state.refs.values() for version in versions}
    trees -= service.evicted.trees
    trees |= {pin.what for pin in service.log.pins.list()} | {lease.what for lease in service.log.leases.list()}
    grace_ns = service.config.number("store.grace_days") * DAY_NS
    waiting, held = 0, dict[bytes, int]()
    removed_by = _removals(state)
    for removed in state.refs_removed:
        removals = [hash_ for entry in removed.version.entries for hash_ in removed_by.get(entry, ())]
        behind = {node for hash_ in removals for node in service.log.unacknowledged(hash_)}
        for node in behind:
            held[node] = held.get(node, 0) + removed.version.size_bytes
        if behind or (not now and now_ns - removed.time_ns < grace_ns):
            trees.add(removed.version.tree)
            waiting += 0 if behind else removed.version.size_bytes
    return trees, waiting, held


def living(service: Service, trees: set[bytes]) -> tuple[set[bytes], set[bytes]]:
    """Return the objects and trees that these trees name, themselves included, as far as is known here."""
    live, live_trees = set[bytes](), set(trees)
    for tree in trees:
        for _, entry in service.store.walk(TreeId(tree), skip_missing=True):
            live.update(object_id for object_id, _ in entry.objects())
            if entry.kind == EntryKind.TREE:
                live_trees.add(entry.target)
    return live, live_trees


def living_versions(service: Service, state: State, *, now: bool) -> tuple[set[bytes], set[bytes]]:
    """Return the objects and trees that the versions kept here consist of, in all volumes.

    Those of a removed volume stay for the grace time, by no wall clock; `now` does not wait for it. StoreUnusable
    when not all of them are known: entries that damage took come back from peers, bytes that are only here do not.
    """
    service.volumes.require_all()
    grace_seconds = service.config.number("store.grace_days") * DAY_SECONDS
    live, bundles = set[bytes](), set[bytes]()
    _add(service.spread.under_way(), live, bundles)
    for volume in state.volumes_by_id.values():
        if volume.mode == "models":
            continue
        waits = volume.removed and not now and service.volumes.removed_seconds(volume.id) < grace_seconds
        if not volume.removed or waits or not _all_know(service, state, volume.id):
            tables = service.volumes.tables(volume.id)
            _add(tables.all_versions(Here.WANTED, Here.HERE), live, bundles)
    inside, trees = living(service, bundles)
    return live | inside, trees


def _all_know(service: Service, state: State, volume: int) -> bool:
    """Return whether every member has seen that the volume was removed."""
    removals = [
        entry.hash
        for entry in state.entries
        if any(isinstance(op, VolumeSet) and op.volume == volume and op.options.get("removed") for op in entry.ops)
    ]
    return not removals or not service.log.unacknowledged(removals[-1])


def living_now(service: Service) -> tuple[set[bytes], set[bytes]]:
    """Return the objects and trees that something needs on this node."""
    state, now_ns = service.log.state(), time.time_ns()
    trees, _, _ = needed_trees(service, state, now_ns, now=False)
    live, live_trees = living(service, trees | set(service.replicator.jobs) | service.replicator.whole)
    of_versions, bundles = living_versions(service, state, now=False)
    return live | of_versions, live_trees | bundles


def _add(versions: Iterable[VersionRow], live: set[bytes], bundles: set[bytes]) -> None:
    for version in versions:
        if version.contents == "bundle":
            bundles.add(version.content)
        elif version.contents != "link":
            live.add(version.content)


def _removals(state: State) -> dict[bytes, list[bytes]]:
    """Return entry that published -> entries that took away what it published."""
    found: dict[bytes, list[bytes]] = {}
    for entry in state.entries:
        for op in entry.ops:
            if isinstance(op, RefRemove):
                for published in op.seen:
                    found.setdefault(published, []).append(entry.hash)
    return found
