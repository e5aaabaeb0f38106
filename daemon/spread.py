"""The bytes of files come to the nodes that should hold them: which versions, from whom, and when again.

Each volume has two tasks: one goes through all that is wanted and not here (at the start, when a peer joins, after
a failure), one follows what was saved just now, so that a save does not wait behind a terabyte. Versions are
fetched in batches of small ones, a large one alone: nodes that fetch it at the same time then help each other.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from tbshare.daemon.copies import Copies, Pair, rows_of, whole_here
from tbshare.daemon.replicate import Replicator
from tbshare.daemon.wanted import Rule, batches
from tbshare.errors import DiskFull, FormatInvalid, ObjectMissing, TbshareError
from tbshare.peers.fetch import TreeFetch
from tbshare.peers.goal import Goal, goal_of
from tbshare.peers.mesh import Mesh, Peer
from tbshare.store.store import Store
from tbshare.volumes.fold import State
from tbshare.volumes.policy import Policy
from tbshare.volumes.rows import VersionRow
from tbshare.volumes.tables import Here
from tbshare.volumes.volumes import Changes, Volumes
from tbshare.wire import limits
from tbshare.wire.message import AnyMessage, Draining, Grown, Offer

_log = logging.getLogger("tbshare.daemon.spread")
RETRY_SECONDS_MIN: Final = 0.5
RETRY_SECONDS_MAX: Final = 30.0
SCAN_VERSIONS: Final = 4000  # looked at in one go
NEW_MAX: Final = 20_000  # saves that are remembered singly; of more the whole volume is looked through
TOGETHER_SECONDS: Final = 0.01  # what is saved within this time is fetched together
SLOTS: Final = 3  # batches at once, of what was here before and of what is saved now, each
DRAINED_FILE: Final = "drained"  # in the home while this node is to be unplugged


@dataclass
class _Followed:
    """One volume. `new` and `crowded` are filled by whoever commits; all else belongs to the trio thread."""

    id: int
    new: deque[VersionRow] = field(default_factory=deque[VersionRow])
    crowded: bool = False  # more was saved than `new` holds
    saved: trio.Event = field(default_factory=trio.Event)
    again: trio.Event = field(default_factory=trio.Event)
    lacking: bool = False  # something that should be here did not come
    failures: int = 0  # times in a row that all was looked through and something was lacking
    busy: set[Pair] = field(default_factory=set[Pair])  # being fetched


@dataclass
class _Job:
    """One fetch under way."""

    fetch: TreeFetch
    versions: list[VersionRow]
    ended: trio.Event = field(default_factory=trio.Event)


class Spread:
    """Sees to it that this node holds what it should; in the trio thread."""

    def __init__(
        self,
        store: Store,
        mesh: Mesh,
        volumes: Volumes,
        replicator: Replicator,
        *,
        accept: Callable[[], str],
        make_fetch: Callable[[Goal], TreeFetch],
        pins: Callable[[], Iterable[bytes]],
    ) -> None:
        self.store, self.mesh, self.volumes, self.replicator = store, mesh, volumes, replicator
        self.accept, self.make_fetch, self.pins = accept, make_fetch, pins
        self.holding = Copies(store, mesh, volumes)
        self.draining = False  # this node is to be unplugged
        self.grew = trio.Event()  # some peer holds more than before; a new one each time
        self.refused: set[tuple[int, Pair]] = set()  # (volume, version) that are not what they should be
        self._offered: dict[int, set[Pair]] = {}
        self._accepts: dict[bytes, str] = {}  # node -> what it last said
        self._followed: dict[int, _Followed] = {}
        self._jobs: dict[bytes, _Job] = {}
        self._old_slots, self._new_slots = trio.CapacityLimiter(SLOTS), trio.CapacityLimiter(SLOTS)
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        volumes.changes.append(self._on_changes)
        mesh.on_joined(self._on_joined)
        mesh.on_state(self._on_state)
        mesh.on(Grown, self._on_grown)
        mesh.on(Offer, self._on_offer)

    async def run(self) -> None:
        """Follow all volumes, for ever."""
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self._follow_all()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # others may still tell of new volumes

    # what happens elsewhere ------------------------------------------------------------------------------------

    def _on_changes(self, volume: int, changes: Changes) -> None:
        """Take note of saves; in the thread that commits, under the log's lock."""
        followed = self._followed.get(volume)
        if followed is None or self._token is None:
            return  # it is looked through as a whole when it is followed
        if len(followed.new) + len(changes.versions) > NEW_MAX:
            followed.crowded = True
        else:
            followed.new.extend(changes.versions)
        try:
            self._token.run_sync_soon(followed.saved.set, idempotent=True)
        except trio.RunFinishedError:
            return

    async def _on_joined(self, peer: Peer) -> None:
        self._accepts[peer.node] = peer.hello.accept
        if peer.hello.level >= limits.LEVEL_VOLUMES:
            await peer.send(Draining(self.draining))
        self.poke()

    async def _on_state(self, _: State) -> None:
        self._follow_all()
        self.poke()

    async def _on_grown(self, _peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Grown)
        self.grew.set()
        self.grew = trio.Event()
        followed = self._followed.get(message.volume_id)
        if followed is not None and followed.failures:
            followed.again.set()

    async def _on_offer(self, peer: Peer, message: AnyMessage) -> None:
        """Take copies for a node that is to be unplugged, if this one takes any and has the room."""
        assert isinstance(message, Offer)
        if self.accept() == "none" or self.draining:
            return
        state = await self.mesh.state()
        self.replicator.offered |= set(message.trees) & {ref.tree for refs in state.refs.values() for ref in refs}
        self.replicator.poke()
        volume = message.volume_id
        followed = self._followed.get(volume)
        if followed is not None and message.files and state.may_read(peer.node, volume):
            rows = await trio.to_thread.run_sync(rows_of, self.volumes, volume, message.files)
            known = [(row.file, row.version) for row in rows]  # what is not yet is offered again
            self._offered.setdefault(volume, set()).update(known)
            await trio.to_thread.run_sync(self._want_again, volume, known)
            followed.again.set()

    def _want_again(self, volume: int, pairs: Sequence[Pair]) -> None:
        """Look again for versions whose bytes this node gave back; those of others are looked for anyway."""
        tables = self.volumes.tables(volume)
        gone = [pair for pair in pairs if tables.here(*pair) in (Here.EVICTED, Here.EXPIRED)]
        if gone:
            tables.mark(gone, Here.WANTED)

    def poke(self) -> None:
        """Look through everything again."""
        for followed in self._followed.values():
            followed.failures = 0
            followed.again.set()

    def _follow_all(self) -> None:
        if self._nursery is None:
            return
        for handle in self.volumes.handles():
            if handle.id not in self._followed:
                followed = self._followed[handle.id] = _Followed(handle.id)
                self._nursery.start_soon(self._follow, followed)

    # one volume ------------------------------------------------------------------------------------------------

    async def _follow(self, followed: _Followed) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_looking, followed)
            nursery.start_soon(self._keep_up, followed, nursery)

    async def _keep_looking(self, followed: _Followed) -> None:
        """Go through all that is wanted and not here, and again when there is a reason to."""
        while True:
            followed.again, followed.lacking = trio.Event(), False
            try:
                await self._look_through(followed)
            except TbshareError as error:
                _log.warning("volume %016x could not be looked through: %s", followed.id, error)
                followed.lacking = True
            followed.failures = followed.failures + 1 if followed.lacking else 0
            pause = min(RETRY_SECONDS_MIN * 2 ** min(followed.failures, 10), RETRY_SECONDS_MAX)
            with trio.move_on_after(pause if followed.lacking else float("inf")):
                await followed.again.wait()

    async def _look_through(self, followed: _Followed) -> None:
        after = (-1, 0)
        while True:
            tables = self.volumes.tables(followed.id)
            rows = await trio.to_thread.run_sync(tables.wanted, SCAN_VERSIONS, after)
            if not rows:
                return
            after = rows[-1].file, rows[-1].version
            missing = await self._sift(followed, rows)
            async with trio.open_nursery() as nursery:
                await self._begin(followed, missing, self._old_slots, nursery)

    async def _keep_up(self, followed: _Followed, nursery: trio.Nursery) -> None:
        """Fetch what is saved now."""
        while True:
            await followed.saved.wait()
            followed.saved = trio.Event()
            await trio.sleep(TOGETHER_SECONDS)
            rows = [followed.new.popleft() for _ in range(len(followed.new))]
            if followed.crowded:
                followed.crowded = False
                followed.again.set()
            try:
                missing = await self._sift(followed, rows)
            except TbshareError as error:
                _log.warning("volume %016x could not be followed: %s", followed.id, error)
                followed.again.set()
                continue
            await self._begin(followed, missing, self._new_slots, nursery)

    async def _sift(self, followed: _Followed, rows: list[VersionRow]) -> list[VersionRow]:
        rule = await self.rule(followed.id)
        return await trio.to_thread.run_sync(self._missing, followed, rule, rows)

    async def _begin(
        self,
        followed: _Followed,
        missing: list[VersionRow],
        slots: trio.CapacityLimiter,
        nursery: trio.Nursery,
    ) -> None:
        """Begin to fetch versions, as many at once as there are slots."""
        for batch in batches(missing):
            borrower = object()
            await slots.acquire_on_behalf_of(borrower)
            followed.busy.update((row.file, row.version) for row in batch)
            nursery.start_soon(self._bring, followed, batch, partial(slots.release_on_behalf_of, borrower))

    def _missing(self, followed: _Followed, rule: Rule, rows: list[VersionRow]) -> list[VersionRow]:
        """Return what should be here and is not, the newest first; of what is here it is noted."""
        here = whole_here(self.store, rows)
        found = [(row.file, row.version) for row, is_here in zip(rows, here, strict=True) if is_here]
        if found:
            self.volumes.tables(followed.id).mark(found, Here.HERE)
        missing: list[VersionRow] = []
        for row, is_here in zip(rows, here, strict=True):
            pair = (row.file, row.version)
            known = is_here or pair in followed.busy or (followed.id, pair) in self.refused
            if not known and rule.wants(followed.id, row):
                missing.append(row)
        return sorted(missing, key=lambda row: row.stamp, reverse=True)

    async def rule(self, volume: int) -> Rule:
        """Return what decides about the versions of a volume now."""
        state = await self.mesh.state()
        known = state.volume_by_id(volume)
        me = self.mesh.identity.node
        accepts = self._accepts | {me: "none" if self.draining else self.accept()}
        return Rule(
            me=me,
            policy=known.policy if known is not None else Policy(),
            accept="none" if self.draining else self.accept(),
            may_read=known is not None and not known.removed and state.may_read(me, volume),
            nodes=frozenset(
                node
                for node in state.members
                if state.may_read(node, volume)
                and accepts.get(node, "all") == "all"
                and node not in self.holding.draining
            ),
            pinned=frozenset(self.pins()),
            offered=frozenset(self._offered.get(volume, ())),
        )

    # fetching --------------------------------------------------------------------------------------------------

    async def _bring(self, followed: _Followed, rows: list[VersionRow], release: Callable[[], None]) -> None:
        """Fetch versions from whoever holds them; what nobody does is looked for again later."""
        pairs = [(row.file, row.version) for row in rows]
        came = False
        try:
            holders = await self.holding.elsewhere(followed.id, pairs, any_holder=True)
            held = set[Pair]().union(*holders.values())
            there = [row for row in rows if (row.file, row.version) in held]
            came = (not there or await self._fetch(followed.id, there)) and len(there) == len(rows)
        except DiskFull as error:
            _log.warning("versions of volume %016x are not taken in: %s", followed.id, error)
            followed.failures = max(followed.failures, 5)
        except TbshareError as error:
            _log.info("versions of volume %016x are not here yet: %s", followed.id, error)
        except Exception:  # noqa: BLE001 - a bug that one version meets does not end the daemon
            _log.exception("versions of volume %016x could not be fetched", followed.id)
        finally:
            release()
            followed.busy.difference_update(pairs)
        if not came:
            followed.lacking = True
            if not followed.failures:  # else it is looked for again in any case
                followed.again.set()

    async def _fetch(self, volume: int, rows: list[VersionRow], *, urgent: bool = False) -> bool:
        """Fetch versions, all at once; return whether they are here then. DiskFull, ObjectMissing."""
        try:
            goal = goal_of(self.volumes.open_id(volume).name, volume, rows)
            await self._run(goal, rows, urgent=urgent)
        except FormatInvalid as error:
            return await self._fetch_apart(volume, rows, error, urgent=urgent)
        return await self._told_here(volume, rows) == len(rows)

    async def came(self, volume: int, versions: Sequence[Pair]) -> None:
        """Note versions of which the last bytes may have come."""
        await self._told_here(volume, await trio.to_thread.run_sync(rows_of, self.volumes, volume, versions))

    async def _told_here(self, volume: int, rows: list[VersionRow]) -> int:
        """Note which versions are here, and tell; return how many are."""
        here = await trio.to_thread.run_sync(self._note_here, volume, rows)
        for peer in list(self.mesh.peers.values()):
            if here and peer.hello.level >= limits.LEVEL_VOLUMES:
                await peer.send(Grown(volume))
        return here

    async def _fetch_apart(
        self, volume: int, rows: list[VersionRow], error: FormatInvalid, *, urgent: bool
    ) -> bool:
        """Find out which of several versions is not what it should be; the others are fetched."""
        if len(rows) == 1:
            _log.warning("a version of volume %016x is not taken in: %s", volume, error)
            self.refused.add((volume, (rows[0].file, rows[0].version)))
            return True
        middle = len(rows) // 2
        came = [await self._fetch(volume, part, urgent=urgent) for part in (rows[:middle], rows[middle:])]
        return all(came)

    async def _run(self, goal: Goal, rows: list[VersionRow], *, urgent: bool) -> None:
        """Run a fetch, or wait for the one that is under way for the same contents."""
        job = self._jobs.get(goal.tree)
        if job is not None:
            job.fetch.urgent |= urgent
            await job.ended.wait()
            return
        job = self._jobs[goal.tree] = _Job(self.make_fetch(goal), rows)
        job.fetch.urgent = urgent
        self.replicator.beside[goal.tree] = job.fetch
        try:
            await job.fetch.run()
        finally:
            del self._jobs[goal.tree], self.replicator.beside[goal.tree]
            job.ended.set()

    def _note_here(self, volume: int, rows: list[VersionRow]) -> int:
        here = whole_here(self.store, rows)
        found = [(row.file, row.version) for row, is_here in zip(rows, here, strict=True) if is_here]
        self.volumes.tables(volume).mark(found, Here.HERE)
        return len(found)

    async def need(self, volume: int, file: int, version: int) -> None:
        """Have one version here, now: somebody waits for it. ObjectMissing says who might have it; DiskFull."""
        rows = await trio.to_thread.run_sync(rows_of, self.volumes, volume, [(file, version)])
        if not rows:
            raise ObjectMissing("this version is not known on this node", cure="tbshare node ls")
        while not await trio.to_thread.run_sync(self._note_here, volume, rows):
            job = next((job for job in self._jobs.values() if rows[0] in job.versions), None)
            if job is not None:
                job.fetch.urgent = True
                await job.ended.wait()
                if await trio.to_thread.run_sync(self._note_here, volume, rows):
                    return
            holders = await self.holding.elsewhere(volume, [(file, version)], any_holder=True)
            came = any(holders.values()) and await self._fetch(volume, rows, urgent=True)
            if not came or (volume, (file, version)) in self.refused:
                raise ObjectMissing(await self.nowhere(rows[0].author), cure="tbshare node ls")

    async def bring(self, volume: int, pairs: Sequence[Pair]) -> None:
        """Have several small versions here in one fetch, as far as they come: somebody reads them in turn."""
        rows = await trio.to_thread.run_sync(rows_of, self.volumes, volume, pairs)
        here = await trio.to_thread.run_sync(whole_here, self.store, rows)
        missing = [row for row, is_here in zip(rows, here, strict=True) if not is_here]
        missing = [row for row in missing if (volume, (row.file, row.version)) not in self.refused]
        if not missing:
            return
        try:
            asked = [(row.file, row.version) for row in missing]
            holders = await self.holding.elsewhere(volume, asked, any_holder=True)
            held = set[Pair]().union(*holders.values())
            there = [row for row in missing if (row.file, row.version) in held]
            if there:
                await self._fetch(volume, there, urgent=True)
        except TbshareError as error:
            _log.info("versions of volume %016x are not here yet: %s", volume, error)

    def fetched_bytes(self, file: int, version: int) -> int:
        """Return how much has come of what is being fetched together with a version; 0 when nothing is."""
        for job in self._jobs.values():
            if any((row.file, row.version) == (file, version) for row in job.versions):
                return job.fetch.progress().bytes_present
        return 0

    async def nowhere(self, author: bytes) -> str:
        """Return why the bytes of a version cannot be had; `author` is how the key of who saved it begins."""
        state = await self.mesh.state()
        members = [*state.members.values(), *state.removed_members.values()]
        name = next((member.name for member in members if member.node.startswith(author)), author[:4].hex())
        away = sorted(
            member.name
            for member in state.members.values()
            if member.node not in self.mesh.peers and member.node != self.mesh.identity.node
        )
        missing = f"not connected: {', '.join(away)}" if away else "every node is connected"
        return f"its bytes are on no node that is connected; {name} saved it ({missing})"

    # what others ask of it -------------------------------------------------------------------------------------

    async def copies(self, volume: int, versions: Sequence[Pair]) -> dict[Pair, set[bytes]]:
        """Return which nodes hold each version, whole and synced: this one, and those that are connected."""
        return await self.holding.of(volume, versions)

    def pinned_files(self, volume: int) -> set[int]:
        """Return the files of a volume that are pinned on this node."""
        start = volume.to_bytes(8, "big")
        return {int.from_bytes(pin[8:], "big") for pin in self.pins() if len(pin) == 16 and pin.startswith(start)}

    def under_way(self) -> list[VersionRow]:
        """Return the versions that are being fetched: garbage collection leaves them alone."""
        return [row for job in self._jobs.values() for row in job.versions]

    async def took(self, volume: int, versions: Sequence[Pair]) -> None:
        """Note that the bytes of versions saved here are here."""
        await trio.to_thread.run_sync(self.volumes.tables(volume).mark, versions, Here.HERE)

    async def lost(self, object_id: bytes) -> None:
        """Fetch again whatever consisted of an object that was damaged here."""
        if await trio.to_thread.run_sync(self._mark_lost, object_id):
            self.poke()

    def _mark_lost(self, object_id: bytes) -> int:
        count = 0
        for handle in self.volumes.handles():
            tables = self.volumes.tables(handle.id)
            lost = [
                (row.file, row.version)
                for row in tables.all_versions(Here.HERE)
                if row.content == object_id or (row.contents == "bundle" and not whole_here(self.store, [row])[0])
            ]
            if lost:
                tables.mark(lost, Here.WANTED)
            count += len(lost)
        return count
