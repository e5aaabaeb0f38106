"""What must stay on this node: the one answer that garbage collection and eviction both go by."""

from tbshare.content.block import TreeId
from tbshare.content.tree import Kind as EntryKind
from tbshare.daemon.service import Service
from tbshare.volumes.entry import RefRemove
from tbshare.volumes.fold import State


def needed_trees(
    service: Service, state: State, now_ns: int, *, now: bool
) -> tuple[set[bytes], int, dict[bytes, int]]:
    """Return the trees that must stay, the bytes waiting for the grace time, and who holds back how much.

    `now` does not wait for the grace time; what a member has not seen removed stays all the same.
    """
    trees = {version.tree for versions in state.refs.values() for version in versions}
    trees -= service.evicted.trees
    trees |= {pin.what for pin in service.log.pins.list()} | {lease.what for lease in service.log.leases.list()}
    grace_ns = service.config.number("store.grace_days") * 86400 * 10**9
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
            if entry.kind == EntryKind.TREE:
                live_trees.add(entry.target)
            elif entry.kind == EntryKind.FILE:
                live.add(entry.target)
    return live, live_trees


def _removals(state: State) -> dict[bytes, list[bytes]]:
    """Return entry that published -> entries that took away what it published."""
    found: dict[bytes, list[bytes]] = {}
    for entry in state.entries:
        for op in entry.ops:
            if isinstance(op, RefRemove):
                for published in op.seen:
                    found.setdefault(published, []).append(entry.hash)
    return found
