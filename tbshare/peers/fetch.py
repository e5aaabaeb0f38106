"""One tree comes to this node: from its manifests to the last synced block.

Blocks are numbered over all objects of the tree in the order of a walk; such a number is a *unit*. A unit is

    here         written, or present: it may be announced
    local        its bytes are somewhere in this store and are being copied, hashed again
    copy         the same block as an earlier unit of this tree: filled from that one
    in flight    asked of a peer
    needed       none of these: what `plan` chooses from

All of it belongs to the trio thread; lanes write blocks in their own threads and report by `arrived`.
"""

import logging
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice

import trio

from tbshare.content import bits
from tbshare.content.bits import Bits
from tbshare.content.block import BlockId, ObjectId
from tbshare.errors import (
    DiskFull,
    FormatInvalid,
    ObjectInUse,
    ObjectMissing,
    TbshareError,
    innermost,
)
from tbshare.peers.goal import Goal
from tbshare.peers.holders import Holder, Holders, view_of
from tbshare.peers.lanes import Lanes, PeerLanes
from tbshare.peers.mesh import Mesh, Peer
from tbshare.peers.plan import REQUESTS_MAX, PeerView, Request, plan, steals
from tbshare.peers.provide import Provider
from tbshare.peers.records import RecordFetcher
from tbshare.peers.reuse import Unit, copy_blocks, find_local
from tbshare.store.arriving import Arriving
from tbshare.store.disk import as_ours
from tbshare.store.store import Store
from tbshare.transport.link import Target
from tbshare.wire import limits
from tbshare.wire.message import Have, Holding, Progress, Source, Unwant

_log = logging.getLogger("tbshare.peers.fetch")
SYNC_SECONDS = 1.0
SYNC_BYTES = 1024 * 1024 * 1024  # written and not synced: synced before the second is over
ANNOUNCE_SECONDS = 0.02
PROGRESS_SECONDS = 0.25
TICK_SECONDS = 0.1
REUSE_BATCH = 32
SEARCH_BATCH = 2048
REQUESTS_LOW = REQUESTS_MAX // 2  # blocks so small that this many are outstanding are asked for many at once
FOREIGN_SECONDS = 0.5  # between looks at whether the other fetch has brought in what this one needs too


class TreeFetch:
    """The fetch of one tree. `run` returns when it is whole and synced."""

    def __init__(
        self,
        goal: Goal,
        *,
        store: Store,
        mesh: Mesh,
        records: RecordFetcher,
        provider: Provider,
        lanes: Lanes,
    ) -> None:
        self.goal = goal
        self.tree: bytes = goal.tree
        self.urgent = False  # somebody waits for it
        self._store, self._mesh, self._records = store, mesh, records
        self._provider, self._lanes = provider, lanes
        self.state, self.reason = "waiting", ""
        self.bytes_total = self.bytes_moved = self.bytes_reused = self.bytes_start = 0
        self._arriving: list[Arriving] = []
        self._units: list[Unit] = []
        self._first_unit: dict[bytes, int] = {}  # object -> its first unit
        self._sizes: list[int] = []
        self._here: Bits = 0
        self._held_back: Bits = 0  # local and copies
        self._copies: dict[int, list[int]] = {}  # unit -> later units with the same block
        self._in_flight: dict[int, bytes] = {}
        self._holders = Holders()
        self._new: list[int] = []  # units to announce
        self._to_copy: list[tuple[int, int]] = []  # (from unit, to unit)
        self._unsynced_bytes = 0
        self._failure: TbshareError | None = None
        self._wake = trio.Event()
        self._begun = False
        self._unsearched: Bits = 0  # not yet looked for in this store
        self._foreign = 0  # bytes of objects that another fetch is bringing in
        self.limit = 0.0  # bytes per second to ask for at most; 0 means no limit
        self._limit_from = time.monotonic()
        self._asked_bytes = 0

    # from outside ----------------------------------------------------------------------------------------------

    def on_have(self, peer: Peer, message: Have) -> None:
        """Take in what a peer says it holds. What comes before the units are known is said again on `Want`."""
        if not self._begun:
            return
        holder = self._holders.all.setdefault(peer.node, Holder(peer))
        if holder.peer is not peer:
            holder.peer, holder.holds = peer, 0
        if message.whole:
            holder.holds = bits.full(len(self._units))
        for holding in message.holdings:
            first = self._first_unit.get(holding.object)
            arriving = self._units[first][0] if first is not None else None
            if first is not None and arriving is not None:
                holder.holds |= bits.from_runs(holding.blocks, arriving.manifest.block_count) << first
        holder.told = True
        self._wake.set()

    async def on_joined(self, peer: Peer) -> None:
        """Ask a peer that has just connected as well."""
        if not self.goal.files or peer.hello.level >= limits.LEVEL_VOLUMES:
            await peer.send(self.goal.want())

    def on_left(self, peer: Peer) -> None:
        """Forget what a peer held."""
        holder = self._holders.all.get(peer.node)
        if holder is not None and holder.peer is peer:
            holder.holds, holder.told = 0, False
            self._wake.set()

    def arrived(self, node: bytes, unit: int) -> None:
        """Note a block that a lane has verified and written."""
        self._in_flight.pop(unit, None)
        self.bytes_moved += self._sizes[unit]
        self._holders.all[node].bytes += self._sizes[unit]
        self._holders.all[node].silent = 0
        self._note_here(unit)

    def lost(self, node: bytes, units: Sequence[int], *, reason: str, refused: bool) -> None:
        """Note blocks that will not come from a peer."""
        holder = self._holders.all.get(node)
        for unit in units:
            if self._in_flight.get(unit) == node:
                del self._in_flight[unit]
            if refused and holder is not None:
                holder.holds &= ~(1 << unit)
        self._wake.set()

    def fault(self, node: bytes, *, wrong: bool) -> None:
        """Note that a lane brought what it must not, or nothing; who does so repeatedly is asked no more."""
        self._holders.fault(node, wrong=wrong)
        self._wake.set()

    def failed(self, unit: int, error: OSError) -> None:
        """Note that this node's disk did not take a block."""
        self._in_flight.pop(unit, None)
        self._fail(as_ours(error))

    def _fail(self, error: TbshareError) -> None:
        self._failure = self._failure or error
        self._wake.set()

    def progress(self) -> Progress:
        """Return how far it is, for whoever watches."""
        sources = [
            Source(node, holder.bytes, self._rate(node))
            for node, holder in self._holders.all.items()
            if holder.bytes
        ]
        present = self.bytes_start + self.bytes_moved + self.bytes_reused
        return Progress(
            self.tree,
            self.bytes_total,
            min(present, self.bytes_total),
            self.bytes_moved,
            self.bytes_start + self.bytes_reused,
            sources,
            self.state,
            self.reason,
        )

    def _rate(self, node: bytes) -> float:
        kept = [lanes.rate.bytes_per_second for key, lanes in self._lanes.by_peer.items() if key.node == node]
        return sum(kept) if self.state == "fetching" else 0.0

    # the run ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Fetch the tree. Raises what made it impossible: DiskFull, ObjectMissing, FormatInvalid."""
        self.state, self.reason = "fetching", ""
        failure: TbshareError | None = None
        try:
            async with trio.open_nursery() as nursery:
                if self.goal.files:  # from here on peers give what they consist of
                    await self._want_of_all()
                else:
                    nursery.start_soon(self._report)
                await self._records.tree(self.goal.tree, self.goal.volume, self.goal.listing)
                while not await self._pass():  # noqa: ASYNC110 - rare; the other fetch has no event for it
                    await trio.sleep(FOREIGN_SECONDS)
                nursery.cancel_scope.cancel()
            await self._provider.announce(self.tree, [], whole=True)
            self.state = "durable"
        except* (TbshareError, OSError) as group:
            failure = as_ours(innermost(group))
            # Declined: trying again changes nothing until somebody does something about it.
            self.state = "declined" if isinstance(failure, FormatInvalid | DiskFull) else "failed"
            self.reason = str(failure)
        finally:
            with trio.CancelScope(shield=True):
                await self._stop()
        if failure is not None:  # raised out here: in there Python 3.11.2 would put it into a group again
            raise failure

    async def _pass(self) -> bool:
        """Fetch the objects that no other fetch is bringing in; return whether the whole tree is here then."""
        await self._begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce)
            nursery.start_soon(self._sync)
            nursery.start_soon(self._reuse)
            self._lanes.changed.append(self._wake_up)
            try:
                await self._ask_until_done()
            finally:
                self._lanes.changed.remove(self._wake_up)
            nursery.cancel_scope.cancel()
        await self._cancel_all()
        await self._settle()
        return not self._foreign

    async def _cancel_all(self) -> None:
        self._in_flight.clear()
        for node in list(self._holders.all):
            await self._lanes.cancel(node, self)

    async def _stop(self) -> None:
        """Take back what was asked for, keep what was written, tell the watchers."""
        await self._cancel_all()
        if self._arriving:
            try:
                await trio.to_thread.run_sync(self._store.sync_arriving, self._arriving)
            except Exception as error:  # noqa: BLE001 - whatever it is, the objects must be let go
                _log.warning("what arrived last could not be synced: %s", error)
            finally:
                for arriving in self._arriving:
                    self._store.abandon(arriving.manifest.id, arriving)
        if self.state == "fetching":
            self.state = "waiting"
        message = self.progress()
        for peer in list(self._mesh.peers.values()):
            await peer.send(Unwant(self.tree))
            if not self.goal.files:
                await peer.send(message)

    async def _begin(self) -> None:
        """Open the arriving objects, number the units, and ask the peers what they hold."""
        self._begun = False  # the units get new numbers
        for holder in self._holders.all.values():
            holder.holds, holder.told = 0, False
        await trio.to_thread.run_sync(self._open)
        self._begun = True
        await self._want_of_all()

    async def _want_of_all(self) -> None:
        for peer in list(self._mesh.peers.values()):
            if not self.goal.files or peer.hello.level >= limits.LEVEL_VOLUMES:
                await peer.send(self.goal.want())

    def _open(self) -> None:
        objects = self.goal.objects(self._store)
        manifests = self._records.manifests(objects)
        self.bytes_total = sum(found.size for found in manifests)
        lacking = [found for found in manifests if not self._store.is_whole(found.id)]
        self._units, self._sizes, self._first_unit, self._copies = [], [], {}, {}
        self._here = self._held_back = self._foreign = 0
        self._to_copy = []
        new = sum(found.size for found in lacking if not self._store.home.partial(found.id).exists())
        self._store.check_room(new)
        first: dict[BlockId, int] = {}
        for found in lacking:
            try:
                arriving = self._store.begin(found)
            except ObjectInUse:  # another tree with this file is being fetched
                self._foreign += found.size
                continue
            if arriving is None:
                continue
            self._arriving.append(arriving)
            self._first_unit[found.id] = base = len(self._units)
            for number, length in enumerate(found.lengths):
                unit = len(self._units)
                self._units.append((arriving, number))
                self._sizes.append(length)
                earlier = first.setdefault(found.block(number), unit)
                if earlier != unit:
                    self._copies.setdefault(earlier, []).append(unit)
                    self._held_back |= 1 << unit
            self._here |= arriving.readable << base
        self._held_back &= ~self._here
        # None is asked for before it is known not to be here.
        self._unsearched = bits.full(len(self._units)) & ~self._here & ~self._held_back
        self._held_back |= self._unsearched
        here = self.bytes_total - self._foreign - sum(self._sizes) + self._size_of(self._here)
        self.bytes_start = here - self.bytes_moved - self.bytes_reused
        for earlier, copies in self._copies.items():
            if bits.contains(self._here, earlier):
                self._to_copy += [(earlier, copy) for copy in copies if not bits.contains(self._here, copy)]

    def _size_of(self, units: Bits) -> int:
        return sum(self._sizes[unit] for unit in bits.members(units))

    def _note_here(self, unit: int) -> None:
        self._here |= 1 << unit
        self._held_back &= ~(1 << unit)
        self._unsynced_bytes += self._sizes[unit]
        self._new.append(unit)
        for copy in self._copies.get(unit, ()):
            if not bits.contains(self._here, copy):
                self._to_copy.append((unit, copy))
        self._wake.set()

    def _wake_up(self) -> None:
        self._wake.set()

    @property
    def _complete(self) -> bool:
        return self._here == bits.full(len(self._units))

    async def _ask_until_done(self) -> None:
        self._holders.fed_at = time.monotonic()
        while not self._complete:
            if self._failure is not None:
                raise self._failure
            self._wake = trio.Event()
            await self._ask()
            with trio.move_on_after(TICK_SECONDS):
                await self._wake.wait()

    async def _ask(self) -> None:
        """Decide what to ask of whom, and ask."""
        views, usable = self._views()
        if self._in_flight and views and await self._steal(views):
            views, usable = self._views()
        self._check_starved(views)
        if self.limit and self._asked_bytes > self.limit * (time.monotonic() - self._limit_from):
            return
        wanted: dict[bytes, list[int]] = {}
        if views and min(view.in_flight_blocks for view in views) > REQUESTS_LOW:
            return
        needed = self._needed()
        urgent = needed if self.urgent else 0
        for assignment in plan(self._mesh.identity.node, needed, self._sizes, views, urgent):
            wanted.setdefault(assignment.peer, []).append(assignment.block)
        for node, units in wanted.items():
            await self._request(node, usable[node], units)

    async def _steal(self, views: Sequence[PeerView]) -> bool:
        """Ask others for what would come late; return whether there was anything."""
        requests = [Request(node, unit, self._sizes[unit]) for unit, node in self._in_flight.items()]
        moved = steals(requests, self._needed(), self._sizes, views)
        for steal in moved:
            await self._lanes.cancel(steal.loser, self, {steal.block})
            self._in_flight.pop(steal.block, None)
        usable = self._views()[1] if moved else {}  # the winner may have gone: then its block is needed again
        for steal in moved:
            if not bits.contains(self._here, steal.block) and steal.winner in usable:
                await self._request(steal.winner, usable[steal.winner], [steal.block])
        return bool(moved)

    def _check_starved(self, views: Sequence[PeerView]) -> None:
        if self._holders.starved(self._needed(), views, self._mesh.peers, busy=bool(self._in_flight)):
            size = self._size_of(self._needed())
            raise ObjectMissing(
                f"{size / 1e6:.1f} MB of it come from no node that is connected", cure="tbshare node ls"
            )

    def _needed(self) -> Bits:
        return bits.full(len(self._units)) & ~self._here & ~self._held_back & ~bits.of(self._in_flight)

    def _views(self) -> tuple[list[PeerView], dict[bytes, PeerLanes]]:
        """Return what `plan` must know of each peer that can be asked, and the lanes to ask on."""
        now = time.monotonic()
        fetchers = {self._mesh.identity.node, *self._provider.wants.get(self.tree, ())}
        views: list[PeerView] = []
        usable: dict[bytes, PeerLanes] = {}
        for node, holder in self._holders.all.items():
            if not holder.holds or holder.excluded or self._mesh.peers.get(node) is not holder.peer:
                continue
            lanes = self._lanes.of(holder.peer, self.goal.volume)
            if lanes.lanes:
                usable[node] = lanes
                views.append(view_of(holder, lanes, now, tuple(sorted(fetchers - {node}))))
        return views, usable

    async def _request(self, node: bytes, lanes: PeerLanes, units: list[int]) -> None:
        if not lanes.lanes:
            return
        wanted: list[tuple[int, bytes, int, Target]] = []
        for unit in units:
            arriving, number = self._units[unit]
            found = arriving.manifest
            if bits.contains(arriving.readable, number):  # it came for a reader, or just before it was taken back
                self.bytes_moved += self._sizes[unit]
                self._note_here(unit)
                continue
            target = Target(found.block(number), self._sizes[unit], partial(arriving.write, number))
            self._in_flight[unit] = node
            self._asked_bytes += self._sizes[unit]
            wanted.append((unit, found.id, number, target))
        await self._lanes.ask(lanes, self, wanted)

    # beside it -------------------------------------------------------------------------------------------------

    async def _reuse(self) -> None:
        """Fill blocks from other objects of this store, and copies within the tree, as they come."""
        pending: list[tuple[int, tuple[ObjectId, int]]] = []
        while self._unsearched:
            batch_units = bits.of(islice(bits.members(self._unsearched), SEARCH_BATCH))
            found = await trio.to_thread.run_sync(find_local, self._store, self._units, batch_units)
            self._unsearched &= ~batch_units
            self._held_back &= ~batch_units | bits.of(found)
            pending += found.items()
            self._wake.set()
        while True:
            while pending or self._to_copy:
                batch, pending = pending[:REUSE_BATCH], pending[REUSE_BATCH:]
                copies, self._to_copy = self._to_copy[:REUSE_BATCH], self._to_copy[REUSE_BATCH:]
                try:
                    done, wrong = await trio.to_thread.run_sync(
                        copy_blocks, self._store, self._units, batch, copies
                    )
                except DiskFull as error:
                    self._fail(error)
                    return
                for unit in done:
                    self.bytes_reused += self._sizes[unit]
                    self._note_here(unit)
                tried = {unit for unit, _ in batch} | {unit for _, unit in copies}
                self._held_back &= ~bits.of(tried)  # what could not be copied is asked for
                if wrong:
                    self._provider.suspects += wrong
                    self._provider.suspected.set()
                self._wake.set()
            await trio.sleep(ANNOUNCE_SECONDS)

    async def _announce(self) -> None:
        """Tell the other fetchers of this tree what has come in, a little at a time."""
        while True:
            await trio.sleep(ANNOUNCE_SECONDS)
            if self._new:
                new, self._new = self._new, []
                await self._provider.announce(self.tree, self._holdings(new))

    def _holdings(self, units: list[int]) -> list[Holding]:
        grouped: dict[bytes, Bits] = {}
        for unit in units:
            arriving, number = self._units[unit]
            grouped[arriving.manifest.id] = grouped.get(arriving.manifest.id, 0) | 1 << number
        return [Holding(object_id, bits.to_runs(blocks)) for object_id, blocks in grouped.items()]

    async def _sync(self) -> None:
        """Make what came durable in batches; objects are finished together, at the end of a pass."""
        while True:
            for _ in range(int(SYNC_SECONDS / TICK_SECONDS)):
                await trio.sleep(TICK_SECONDS)
                if self._unsynced_bytes > SYNC_BYTES:
                    break
            if self._unsynced_bytes:
                self._unsynced_bytes = 0
                try:
                    await trio.to_thread.run_sync(self._store.sync_arriving, self._arriving)
                except (OSError, DiskFull) as error:
                    self._fail(
                        TbshareError(f"the disk did not keep what was written: {error}", cure="tbshare status")
                    )

    async def _settle(self) -> None:
        """Turn all arriving objects into whole ones."""
        await trio.to_thread.run_sync(self._store.finish, self._arriving)
        self._arriving = []

    async def _report(self) -> None:
        while True:
            message = self.progress()
            for peer in list(self._mesh.peers.values()):
                await peer.send(message)
            await trio.sleep(PROGRESS_SECONDS)
