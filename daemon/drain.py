"""Before a node is unplugged: everything that is only here goes to other nodes, and then it says so."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import trio

from tbshare.daemon.control import Emit
from tbshare.daemon.copies import Pair
from tbshare.daemon.service import Service
from tbshare.daemon.spread import DRAINED_FILE
from tbshare.daemon.wanted import chosen
from tbshare.peers.mesh import Peer
from tbshare.store import disk
from tbshare.volumes.fold import State
from tbshare.volumes.rows import VersionRow
from tbshare.volumes.tables import Here
from tbshare.wire import limits, message
from tbshare.wire.volume import Draining, DrainReport

LOOK_SECONDS: Final = 1.0  # between looks, unless a peer says that it has more
PATIENCE_SECONDS: Final = 60.0  # without any progress; then it is given up, and said what it waits for
ALONE_SECONDS: Final = 10.0  # the same, when there is nobody to give anything to
PART: Final = 1000  # versions looked at in one go
NAMED_MAX: Final = 3  # of what is stuck


@dataclass
class _Left:
    """What is nowhere else."""

    versions: dict[int, dict[Pair, VersionRow]] = field(default_factory=dict[int, dict[Pair, VersionRow]])
    trees: dict[bytes, tuple[str, int]] = field(default_factory=dict[bytes, tuple[str, int]])  # -> (ref, bytes)
    entries: int = 0  # of the log

    @property
    def count(self) -> int:
        """Versions and trees of refs."""
        return sum(len(rows) for rows in self.versions.values()) + len(self.trees)

    @property
    def bytes(self) -> int:
        """How many bytes these are."""
        files = sum(row.size for rows in self.versions.values() for row in rows.values())
        return files + sum(size for _, size in self.trees.values())

    def __bool__(self) -> bool:
        return bool(self.count or self.entries)


class Drain:
    """Drains this node, and takes that back."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def undrain(self) -> bool:
        """Take part as before; return whether it was draining."""
        was = self.service.spread.draining
        await self._tell(False)
        return was

    async def _tell(self, on: bool) -> None:
        spread = self.service.spread
        await trio.to_thread.run_sync(self._remember, on)
        spread.draining = on
        for peer in self._peers():
            await peer.send(message.Draining(on))
        spread.poke()

    def _remember(self, on: bool) -> None:
        """Let it stay so when the daemon starts again: a copy counted here would be unplugged with the node."""
        file = self.service.home / DRAINED_FILE
        if on:
            disk.write_durably(file, b"", temporary=file.with_suffix(".new"))
        elif file.exists():
            file.unlink()
            disk.sync_directory(file.parent)

    async def drain(self, emit: Emit, *, wait: bool = True) -> DrainReport:
        """Give away what is only here; return whether this node may be unplugged.

        Without `wait` it looks once. With it the call ends when there is nothing left, or when for a while nothing
        went on: then the report says what is stuck. Either way the node stays one that is to be unplugged.
        """
        await self._tell(True)
        everything = await self._left(None)
        left, started, rounds = everything, time.monotonic(), 0
        moved_at, least, bytes_first = started, (left.count, left.bytes, left.entries), left.bytes
        while wait and left:
            now = time.monotonic()
            await emit(await self._event(left, bytes_first, now - started))
            patience = PATIENCE_SECONDS if self._takers(await self.service.mesh.state(), None) else ALONE_SECONDS
            if now - moved_at > patience:
                break
            await self._offer(left, rounds)
            await self._until_news()
            left = await self._left(left)
            if not left:
                left = await self._left(None)  # what was saved meanwhile
            rounds += 1
            if (left.count, left.bytes, left.entries) < least:
                least, moved_at = (left.count, left.bytes, left.entries), time.monotonic()
                rounds = 0
        return await self._report(left)

    async def _until_news(self) -> None:
        with trio.move_on_after(LOOK_SECONDS):
            await self.service.spread.grew.wait()

    # what is left ----------------------------------------------------------------------------------------------

    async def _left(self, before: _Left | None) -> _Left:
        """Return what no other node holds that stays: of what was left before, or of everything.

        StoreUnusable when damage hides some of it.
        """
        await trio.to_thread.run_sync(self.service.volumes.require_all)
        state = await self.service.mesh.state()
        left = _Left()
        for handle in self.service.volumes.handles():
            tables = self.service.volumes.tables(handle.id)
            enough = max(1, min(_copies(state, handle.id), len(self._takers(state, handle.id))))
            if before is None:
                rows = tables.all_versions(Here.WANTED, Here.HERE)  # a save of this moment is not marked yet
            else:
                rows = iter(list(before.versions.get(handle.id, {}).values()))
            while part := await trio.to_thread.run_sync(_some, rows):
                found = await self._only_here(handle.id, part, enough)
                if found:
                    left.versions.setdefault(handle.id, {}).update(found)
        left.trees = self._trees_only_here(state)
        left.entries = await trio.to_thread.run_sync(self._entries_only_here)
        return left

    async def _only_here(self, volume: int, rows: list[VersionRow], enough: int) -> dict[Pair, VersionRow]:
        copies = self.service.spread.holding
        by_pair = {(row.file, row.version): row for row in rows if row.contents != "link"}
        here = await trio.to_thread.run_sync(copies.here, volume, list(by_pair))
        by_pair = {pair: row for pair, row in by_pair.items() if pair in here}
        held = await copies.elsewhere(volume, list(by_pair))
        staying = [pairs for node, pairs in held.items() if node not in copies.draining]
        return {pair: row for pair, row in by_pair.items() if sum(pair in pairs for pairs in staying) < enough}

    def _trees_only_here(self, state: State) -> dict[bytes, tuple[str, int]]:
        kept = set[bytes]().union(*(peer.keeps for peer in self._peers()))
        return {
            version.tree: (str(version), version.size_bytes)
            for versions in state.refs.values()
            for version in versions
            if version.tree in self.service.replicator.whole - kept
        }

    def _entries_only_here(self) -> int:
        """Return how many entries of the log the connected node that is nearest to having all does not have."""
        log = self.service.log
        heads = log.vector()
        behind: list[int] = []
        for peer in self._peers():
            acknowledged = log.acknowledged(peer.node)
            if not log.part_for(log.known(acknowledged), 1):
                return 0
            has = {(head.node, head.incarnation): head.seq for head in acknowledged}
            behind.append(sum(max(0, head.seq - has.get((head.node, head.incarnation), 0)) for head in heads))
        return max(1, min(behind, default=sum(head.seq for head in heads)))

    # giving it away --------------------------------------------------------------------------------------------

    def _peers(self) -> list[Peer]:
        """Return the connected nodes that know of volumes and are not to be unplugged themselves."""
        service = self.service
        return [
            peer
            for peer in service.mesh.peers.values()
            if peer.hello.level >= limits.LEVEL_VOLUMES and peer.node not in service.spread.holding.draining
        ]

    def _takers(self, state: State, volume: int | None) -> list[Peer]:
        """Return the nodes that may be asked to take copies: of a volume, or at all."""
        return [
            peer
            for peer in self._peers()
            if peer.hello.accept != "none" and (volume is None or state.may_read(peer.node, volume))
        ]

    async def _offer(self, left: _Left, rounds: int) -> None:
        """Ask others to take what is left; the longer nothing comes of it, the more of them."""
        state = await self.service.mesh.state()
        for volume, rows in left.versions.items():
            takers = {peer.node: peer for peer in self._takers(state, volume)}
            count = max(1, _copies(state, volume)) + rounds // 3
            offers: dict[bytes, list[Pair]] = {}
            for pair, row in rows.items():
                for node in chosen(row.content, takers, count):
                    offers.setdefault(node, []).append(pair)
            for node, pairs in offers.items():
                for start in range(0, len(pairs), PART):
                    await takers[node].send(message.Offer(volume, pairs[start : start + PART]))
        everybody = {peer.node: peer for peer in self._takers(state, None)}
        for tree in left.trees:
            for node in chosen(tree, everybody, 1 + rounds // 3):
                await everybody[node].send(message.Offer(0, trees=[tree]))

    # what is said ----------------------------------------------------------------------------------------------

    async def _event(self, left: _Left, bytes_first: int, seconds: float) -> Draining:
        rate = max(0, bytes_first - left.bytes) / seconds if seconds > 0 else 0.0
        return Draining(
            versions_left=left.count,
            bytes_left=left.bytes,
            entries_left=left.entries,
            rate=rate,
            eta_seconds=left.bytes / rate if rate > 0 else None,
            text=await self._waits_for(left),
        )

    async def _report(self, left: _Left) -> DrainReport:
        state = await self.service.mesh.state()
        names = sorted(state.members[peer.node].name for peer in self._peers() if peer.node in state.members)
        return DrainReport(
            safe=not left,
            versions_left=left.count,
            bytes_left=left.bytes,
            entries_left=left.entries,
            holders=names,
            text=await self._waits_for(left) if left else "this node may be unplugged",
        )

    async def _waits_for(self, left: _Left) -> str:
        """Return what stands in the way, in one line."""
        state = await self.service.mesh.state()
        if not self._peers():
            return "no other node is connected"
        if left.count and not self._takers(state, None):
            return "no connected node accepts copies (store.accept)"
        stuck = [ref for ref, _ in left.trees.values()]
        for volume, rows in left.versions.items():
            handle = self.service.volumes.open_id(volume)
            if not self._takers(state, volume):
                return f"no connected node may read volume {handle.name}"
            for file, _ in list(rows)[:NAMED_MAX]:
                paths = await trio.to_thread.run_sync(handle.paths, file)
                shown = b"/".join(paths[0]).decode("utf-8", "replace") if paths else "a removed file"
                stuck.append(f"{handle.name}:/{shown}")
        if not stuck:
            return "the log is being sent" if left.entries else ""
        more = f" and {left.count - NAMED_MAX} more" if left.count > NAMED_MAX else ""
        return f"not yet elsewhere: {', '.join(stuck[:NAMED_MAX])}{more}{self._no_room(state, left)}"

    def _no_room(self, state: State, left: _Left) -> str:
        """Return which nodes take copies and have too little room for these, as far as they have said."""
        full = [peer for peer in self._takers(state, None) if peer.hello.store_free_bytes < left.bytes]
        said = [f"{peer.hello.name} had {peer.hello.store_free_bytes / 1e6:.1f} MB free" for peer in full]
        return f" ({', '.join(said[:NAMED_MAX])})" if said else ""


def _copies(state: State, volume: int) -> int:
    known = state.volume_by_id(volume)
    return known.policy.copies if known is not None else 0


def _some(rows: Iterable[VersionRow]) -> list[VersionRow]:
    return list(islice(rows, PART))
