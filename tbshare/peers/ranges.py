"""Some bytes of objects under one tree come to this node, because somebody reads them.

A fetch (`fetch`) brings whole trees; this brings leaves, those first that a reader waits for. The two fill the
same partial files. A *run* of leaves is asked of one peer, on its urgent lane when a reader waits for it, else on
the lanes of bulk; it is in flight once, however many wait for it. All of it belongs to the trio thread.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import trio

from tbshare.content import bits
from tbshare.content.block import BLOCK_BYTES, LEAF_BYTES
from tbshare.content.leaves import Run, leaf_count, leaves_between, runs_of
from tbshare.content.manifest import Manifest
from tbshare.errors import ObjectInUse, ObjectMissing, TbshareError
from tbshare.peers.holders import STARVED_SECONDS, STARVED_SECONDS_MIN
from tbshare.peers.lanes import Lanes, PeerLanes
from tbshare.peers.mesh import Mesh, Peer
from tbshare.peers.parts import Flight, Part, RangeHolder, Wait
from tbshare.peers.plan import window
from tbshare.peers.reuse import copy_blocks, find_local
from tbshare.store.arriving import Arriving
from tbshare.store.disk import as_ours
from tbshare.store.store import Store
from tbshare.transport.link import Target
from tbshare.wire import limits
from tbshare.wire.message import Have, Unwant, Want

_log = logging.getLogger("tbshare.peers.ranges")
TICK_SECONDS = 0.1  # while something is waited for
WANT_AGAIN_SECONDS = 2.0  # peers say what they hold when asked, and hold more later
SYNC_SECONDS = 5.0
SEARCH_BLOCKS = 8  # looked for in this store at once
RUN_SECONDS = 0.1  # what is asked for ahead at once: on a slow link few leaves, on a fast one blocks
SLOW_SECONDS = 1.0  # for what somebody waits for, while there is another who has it
RATE_UNKNOWN = 50e6  # bytes per second
URGENT_BYTES_MAX = 8 * BLOCK_BYTES  # outstanding per peer of what is waited for
HURRY_SECONDS = 0.15  # a reader waits for what was asked for ahead; then it is asked for again, urgently


class Ranges:
    """What is read of the objects of one tree; `run` does the work, for as long as it is let."""

    def __init__(
        self, want: Want, *, store: Store, mesh: Mesh, lanes: Lanes, came: Callable[[Manifest], None]
    ) -> None:
        """`came` is called when an object has become whole by what was read of it."""
        self.want, self.tree = want, want.tree
        self._store, self._mesh, self._lanes, self._came = store, mesh, lanes, came
        self.asked = trio.Event()  # the peers were, so that they give records, too
        self.users = 0  # calls under way
        self.used_at = time.monotonic()
        self._parts: dict[bytes, Part] = {}
        self._opening = trio.Lock()
        self._flights: dict[int, Flight] = {}
        self._holders: dict[bytes, RangeHolder] = {}
        self._units = itertools.count()
        self._wanted_at = 0.0
        self._wake = trio.Event()

    # reading ---------------------------------------------------------------------------------------------------

    async def need(
        self,
        found: Manifest,
        start: int,
        end: int,
        *,
        ahead: int = 0,
        urgent: bool = True,
        gives_up: bool = False,
    ) -> None:
        """Wait until bytes [start, end) of an object are here, or its partial file is closed; look again then.

        `ahead` more are asked for behind them and not waited for. With `gives_up` ObjectMissing when nobody that
        is connected has them. DiskFull.
        """
        self.users += 1
        self.used_at = time.monotonic()
        try:
            part = await self._part(found)
            if part is None:
                return
            part.look_ahead(end, min(end + ahead, found.size))
            await self._search(part, part.absent(start, end))
            if part.arriving.closed or not part.lacks(start, end):
                self._wake.set()
                return
            now = time.monotonic()
            wait = Wait(start, end, urgent, gives_up, since=now, fed_at=now)
            part.waits.append(wait)
            self._wake.set()
            try:
                await wait.done.wait()
            finally:
                part.waits.remove(wait)
            if wait.error is not None:
                raise wait.error
        finally:
            self.users -= 1
            self.used_at = time.monotonic()

    async def _part(self, found: Manifest) -> Part | None:
        """Return what is read of an object; None when it is whole."""
        async with self._opening:
            part = self._parts.get(found.id)
            if part is not None and part.arriving.closed:
                self._let_go(part)
                part = None
            if part is None:
                arriving = await trio.to_thread.run_sync(self._share, found)
                if arriving is None:
                    return None
                part = self._parts[found.id] = Part(found, arriving)
            return part

    def _share(self, found: Manifest) -> Arriving | None:
        self._store.check_room(min(found.size, BLOCK_BYTES))  # no space is reserved for what may never be read
        return self._store.share(found)

    def _let_go(self, part: Part) -> None:
        """Forget an object; who waits for it looks again."""
        if self._parts.get(part.found.id) is part:
            del self._parts[part.found.id]
            self._store.unshare(part.arriving)
        for wait in part.waits:
            wait.done.set()

    async def _search(self, part: Part, numbers: Sequence[int]) -> None:
        """Fill blocks from other objects of this store; each is looked for once."""
        new = [number for number in numbers if not bits.contains(part.searched, number)]
        if new:
            part.searched |= bits.of(new)
            await trio.to_thread.run_sync(self._copy, part, new)
            part.tell()  # who came meanwhile took them for being on their way

    def _copy(self, part: Part, numbers: list[int]) -> None:
        units = [(part.arriving, number) for number in numbers]
        found = find_local(self._store, units, bits.full(len(units)))
        if found:
            copy_blocks(self._store, units, list(found.items()), [])

    # what others say -------------------------------------------------------------------------------------------

    def on_have(self, peer: Peer, message: Have) -> None:
        """Take in what a peer says it holds."""
        holder = self._holders.get(peer.node)
        if holder is None or holder.peer is not peer:
            holder = self._holders[peer.node] = RangeHolder(peer)
        holder.take(message)
        if message.whole or message.holdings:
            self._lanes.of(peer, self.want.volume, urgent=True)  # opened before it is needed
        self._wake.set()

    async def on_joined(self, peer: Peer) -> None:
        """Ask a peer that has just connected as well."""
        await self._ask_what_is_held(peer)

    def on_left(self, peer: Peer) -> None:
        """Forget what a peer held; what it owes comes back by `lost`."""
        holder = self._holders.get(peer.node)
        if holder is not None and holder.peer is peer:
            del self._holders[peer.node]
            self._wake.set()

    async def _ask_what_is_held(self, *peers: Peer) -> None:
        for peer in peers:
            if not self.want.files or peer.hello.level >= limits.LEVEL_VOLUMES:
                await peer.send(self.want)

    async def _ask_all(self) -> None:
        self._wanted_at = time.monotonic()
        for holder in self._holders.values():
            holder.refused.clear()
        await self._ask_what_is_held(*list(self._mesh.peers.values()))

    # what lanes say --------------------------------------------------------------------------------------------

    def arrived(self, node: bytes, unit: int) -> None:
        """Note a run that a lane has verified and written."""
        self._land(unit)
        if node in self._holders:
            self._holders[node].silent = 0

    def lost(self, node: bytes, units: Sequence[int], *, reason: str, refused: bool) -> None:
        """Note runs that will not come from a peer."""
        for unit in units:
            flight = self._land(unit)
            if flight is not None and refused and node in self._holders:
                self._holders[node].refuse(flight.part.found.id, flight.block)

    def fault(self, node: bytes, *, wrong: bool) -> None:
        """Note that a lane brought what it must not, or nothing."""
        if node in self._holders:
            self._holders[node].wrong += wrong
            self._holders[node].silent += not wrong
        self._wake.set()

    def failed(self, unit: int, error: OSError) -> None:
        """Note that this node's disk did not take a run; unless the object is whole, or gone, by now."""
        flight = self._land(unit)
        if flight is not None and not flight.part.arriving.closed and not flight.part.arriving.sealed:
            flight.part.fail(as_ours(error))

    def _land(self, unit: int) -> Flight | None:
        flight = self._flights.pop(unit, None)
        if flight is not None:
            flight.part.land(flight)
            flight.part.tell()
            self._wake.set()
        return flight

    # the work --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask for what is waited for, then for what is ahead; until cancelled. What came is synced at the end."""
        wake = self._set_wake
        self._lanes.changed.append(wake)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sync_now_and_then)
                await self._ask_all()
                self.asked.set()
                while True:
                    self._wake = trio.Event()
                    await self._look()
                    with trio.move_on_after(TICK_SECONDS if self._busy else float("inf")):
                        await self._wake.wait()
        finally:
            self._lanes.changed.remove(wake)
            self.asked.set()
            with trio.CancelScope(shield=True):
                await self._end()

    def _set_wake(self) -> None:
        self._wake.set()

    @property
    def _busy(self) -> bool:
        return bool(self._flights) or any(part.waits or part.ahead for part in self._parts.values())

    async def _end(self) -> None:
        parts = list(self._parts.values())
        self._flights.clear()
        for node in list(self._holders):
            await self._lanes.cancel(node, self)
        try:
            await self._sync(parts)
        finally:
            for part in parts:
                self._let_go(part)
        for peer in list(self._mesh.peers.values()):
            if self.want.files:  # a published tree may be fetched as well, by the same name
                await peer.send(Unwant(self.tree))

    async def _sync_now_and_then(self) -> None:
        while True:
            await trio.sleep(SYNC_SECONDS)
            await self._sync(list(self._parts.values()))

    async def _sync(self, parts: Sequence[Part]) -> None:
        """Make what came durable: else it is fetched again after the daemon has ended."""
        grown = [part.arriving for part in parts if part.arriving.written and not part.arriving.closed]
        if grown:
            try:
                await trio.to_thread.run_sync(self._store.sync_arriving, grown)
            except (TbshareError, OSError) as error:
                _log.warning("what was read could not be synced: %s", error)

    async def _look(self) -> None:
        """Finish what is complete, take back what comes late, and ask for what is missing."""
        for part in list(self._parts.values()):
            if part.arriving.closed:
                self._let_go(part)
            elif part.arriving.complete:
                await self._finish(part)
        await self._take_back()
        held = [await self._ask_for_readers(part) for part in list(self._parts.values())]
        held += [await self._ask_ahead(part) for part in list(self._parts.values())]
        if not all(held) and time.monotonic() - self._wanted_at > WANT_AGAIN_SECONDS:
            await self._ask_all()

    async def _ask_for_readers(self, part: Part) -> bool:
        """Ask for what is waited for; return whether there was somebody to ask for all of it."""
        held = True
        for wait in list(part.waits):
            if wait.urgent:
                held &= await self._ask_urgently(part, wait)
            if wait.gives_up:
                self._check_starved(part, wait)
        return held

    async def _finish(self, part: Part) -> None:
        """Make an object whole; whoever brings in all of it does so himself."""
        try:
            if await trio.to_thread.run_sync(self._finish_in_thread, part):
                self._came(part.found)
        except (TbshareError, OSError) as error:
            _log.warning("an object that was read to its end could not be finished: %s", error)
            part.fail(as_ours(error))
        if part.arriving.closed or part.arriving.owned:
            self._let_go(part)

    def _finish_in_thread(self, part: Part) -> bool:
        try:
            arriving = self._store.begin(part.found)
        except ObjectInUse:
            return False
        if arriving is None:
            return False
        try:
            self._store.finish([arriving])
        except BaseException:
            self._store.abandon(part.found.id, arriving)
            raise
        return True

    async def _take_back(self) -> None:
        """Take back what a peer owes that is stuck, or lets somebody wait too long, so that others are asked."""
        now = time.monotonic()
        for unit, flight in list(self._flights.items()):
            patience = max(SLOW_SECONDS, 4 * flight.run.size / self._rate(flight.lanes.peer))
            slow = flight.urgent and now - flight.asked_at > patience
            if (slow or flight.lanes.suspect(now)) and self._elsewhere(flight):
                await self._lanes.cancel(flight.node, self, {unit})
                self._land(unit)

    def _elsewhere(self, flight: Flight) -> bool:
        others = self._able(flight.part, flight.block, urgent=flight.urgent)
        return any(lanes is not flight.lanes and not lanes.suspect(time.monotonic()) for _, lanes in others)

    def _able(self, part: Part, block: int, *, urgent: bool) -> Iterator[tuple[RangeHolder, PeerLanes]]:
        """Yield who can be asked for a block, and on which lanes; opens those there are not."""
        for node, holder in list(self._holders.items()):
            if self._mesh.peers.get(node) is holder.peer and holder.holds(part.found, block):
                lanes = self._lanes.of(holder.peer, self.want.volume, urgent=urgent)
                if lanes.lanes:
                    yield holder, lanes

    def _rate(self, peer: Peer) -> float:
        return self._lanes.of(peer, self.want.volume).rate.bytes_per_second or RATE_UNKNOWN

    def _best(
        self, part: Part, block: int, size: int, *, urgent: bool
    ) -> tuple[RangeHolder, PeerLanes, float] | None:
        """Return of whom to ask for a run: where it is here first. None when nobody has it, or room for it."""
        now = time.monotonic()
        best: tuple[float, RangeHolder, PeerLanes, float] | None = None
        for holder, lanes in self._able(part, block, urgent=urgent):
            rate = self._rate(holder.peer)
            outstanding = lanes.outstanding_bytes
            round_trip = min(holder.peer.session.rtt_seconds, 1.0)
            room = URGENT_BYTES_MAX if urgent else window(rate, round_trip) * len(lanes.lanes)
            if outstanding and (outstanding + size > room or lanes.suspect(now)):
                continue
            seconds = round_trip + (outstanding + size) / rate + (60.0 if lanes.suspect(now) else 0.0)
            if best is None or seconds < best[0]:
                best = seconds, holder, lanes, rate
        return best[1:] if best is not None else None

    async def _ask_urgently(self, part: Part, wait: Wait) -> bool:
        """Ask for what a reader waits for; return whether there was somebody to ask for all of it."""
        now = time.monotonic()
        for number, start, end in part.blocks(wait.start, wait.end):
            flying = part.flying(number, lambda flight: not self._is_late(flight, now - wait.since))
            missing = leaves_between(start, end) & ~part.arriving.leaves(number) & ~flying
            for run in runs_of(missing, part.found.lengths[number], BLOCK_BYTES):
                best = self._best(part, number, run.size, urgent=True)
                if best is None:
                    return False
                await self._request(part, number, run, best[0], best[1])
        return True

    def _check_starved(self, part: Part, wait: Wait) -> None:
        """Give up for a reader when for a while nobody that may be asked has had what is missing."""
        now = time.monotonic()
        missing = [number for number, _, _ in part.blocks(wait.start, wait.end) if not part.flying(number)]
        holders = [self._holders.get(node) for node in self._mesh.peers]
        held = [any(holder and holder.holds(part.found, number) for holder in holders) for number in missing]
        if all(held):
            wait.fed_at = now
        all_told = all(holder is not None and holder.told for holder in holders)
        if now - wait.fed_at > (STARVED_SECONDS_MIN if all_told else STARVED_SECONDS):
            wait.error = ObjectMissing("its bytes are on no node that is connected", cure="tbshare node ls")
            wait.done.set()

    def _is_late(self, flight: Flight, waited_seconds: float) -> bool:
        """Return whether what was asked for as bulk must be asked for urgently by now."""
        expected = 4 * flight.run.size / self._rate(flight.lanes.peer)
        return not flight.urgent and waited_seconds > max(HURRY_SECONDS, expected)

    async def _ask_ahead(self, part: Part) -> bool:
        """Ask for what nobody waits for yet, while there is room in the windows."""
        try:
            return await self._ask_in_windows(part)
        except (TbshareError, OSError) as error:  # this node's disk
            part.ahead.clear()
            part.fail(as_ours(error))
            return True

    async def _ask_in_windows(self, part: Part) -> bool:
        spans = [(wait.start, wait.end) for wait in part.waits if not wait.urgent]
        part.ahead = [span for span in part.ahead if part.lacks(*span)]
        for start, end in [*spans, *part.ahead]:
            for number, first, after in part.blocks(start, end):
                if not bits.contains(part.searched, number):
                    await self._search(part, part.absent(part.found.offsets[number], end)[:SEARCH_BLOCKS])
                length = part.found.lengths[number]
                missing = leaves_between(first, after) & ~part.arriving.leaves(number) & ~part.flying(number)
                while missing:
                    best = self._best(part, number, LEAF_BYTES, urgent=False)
                    if best is None:
                        return any(True for _ in self._able(part, number, urgent=False))
                    holder, lanes, rate = best
                    run = next(runs_of(missing, length, int(max(LEAF_BYTES, rate * RUN_SECONDS))))
                    missing &= ~(bits.full(run.count) << run.first)
                    await self._request(part, number, run, holder, lanes)
        return True

    async def _request(self, part: Part, number: int, run: Run, holder: RangeHolder, lanes: PeerLanes) -> None:
        found, unit = part.found, next(self._units)
        length = found.lengths[number]
        if run.count == leaf_count(length) or holder.peer.hello.level < limits.LEVEL_LEAVES:
            run = Run(0, leaf_count(length), length)
        if run.is_part:
            write = partial(part.arriving.write_leaves, number, run.first)
            target = Target(found.block(number), run.size, write, run)
        else:
            target = Target(found.block(number), length, partial(part.arriving.write, number))
        flight = Flight(part, number, run, holder.peer.node, lanes, time.monotonic())
        self._flights[unit] = flight
        part.fly(flight)
        await self._lanes.ask(lanes, self, [(unit, found.id, number, target)])
