"""Care for the bytes: garbage, verification and repair, what the disk holds."""

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from tbshare.content.block import ObjectId, TreeId
from tbshare.daemon.control import Emit
from tbshare.daemon.mending import log_problem
from tbshare.daemon.needed import living, living_versions, needed_trees
from tbshare.daemon.refs import Refs
from tbshare.daemon.service import Service
from tbshare.errors import Interrupted, ObjectMissing, StoreUnusable, TbshareError
from tbshare.store import care, disk
from tbshare.store.care import Damage
from tbshare.store.home import sweep_writers
from tbshare.volumes.fold import State
from tbshare.wire.local import GcParams, VerifyParams
from tbshare.wire.report import Checked, DiskUse, DuLine, GcReport, HeldLine, Problem, VerifyReport

_log = logging.getLogger("tbshare.daemon.keep")
GC_SECONDS = 3600.0
TICK_SECONDS = 300.0  # of its clock, a volume loses at most so much by a crash
REPAIR_SECONDS = 60.0  # that `verify --repair` waits for the blocks it asked for


class Keep:
    """Answers gc, verify and du, and looks after complaints of peers."""

    def __init__(self, service: Service, refs: Refs) -> None:
        self.service, self.refs = service, refs

    async def run(self) -> None:
        """Verify what peers complained of, and collect garbage from time to time; for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._again_and_again, GC_SECONDS, self._collect)
            nursery.start_soon(self._again_and_again, GC_SECONDS, self._compact)
            nursery.start_soon(self._again_and_again, TICK_SECONDS, self._tick)
            while True:
                await self.service.provider.suspected.wait()
                self.service.provider.suspected = trio.Event()
                suspects, self.service.provider.suspects = self.service.provider.suspects, []
                try:
                    await self._look_into(suspects)
                except Exception:  # noqa: BLE001 - a complaint of a peer does not end the daemon
                    _log.exception("suspected blocks could not be verified")

    async def _look_into(self, suspects: list[tuple[ObjectId, int]]) -> None:
        """Verify the blocks peers complained of; the whole object where one is wrong."""
        for object_id, number in dict.fromkeys(suspects):
            if not await trio.to_thread.run_sync(care.is_wrong, self.service.store, object_id, number):
                continue
            damage = await self._verify_object(object_id, lambda _: None, lambda: False)
            if damage is not None:
                await self._quarantine(damage)

    @staticmethod
    async def _again_and_again(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await trio.sleep(seconds)
            try:
                await work()
            except Exception:  # noqa: BLE001 - it is tried again
                _log.exception("%s failed", work.__name__)

    async def _collect(self) -> None:
        try:
            await self.gc(GcParams())
        except StoreUnusable as error:
            _log.warning("no garbage is collected: %s", error)

    async def _compact(self) -> None:
        packed = await trio.to_thread.run_sync(self.service.log.compact)
        _log.debug("%d entries of the log were packed", packed)

    async def _tick(self) -> None:
        await trio.to_thread.run_sync(self.service.volumes.tick)

    # garbage ---------------------------------------------------------------------------------------------------

    async def gc(self, params: GcParams) -> GcReport:
        """Free what no ref, pin, lease or transfer needs and every member has seen removed."""
        service = self.service
        started = time.monotonic()
        await trio.to_thread.run_sync(service.volumes.require_all)
        if service.log.lost and not params.now:
            raise StoreUnusable(
                f"{service.log.lost}: the bytes that only it named are still here, and would go",
                cure="tbshare gc --now",
            )
        await trio.to_thread.run_sync(self._expire)
        await trio.to_thread.run_sync(sweep_writers, service.store.home)
        async with service.collecting:
            while service.ingesting:  # what they took in is named by no ref yet
                await service.ingested.wait()
            state = await service.mesh.state()
            trees, waiting, held = await trio.to_thread.run_sync(
                partial(needed_trees, service, state, time.time_ns(), now=params.now)
            )
            trees |= set(service.replicator.jobs)
            live, live_trees = await trio.to_thread.run_sync(living, service, trees)
            versions = partial(living_versions, service, state, now=params.now)
            of_versions, bundles = await trio.to_thread.run_sync(versions)
            live |= of_versions
            live_trees |= bundles
            objects, freed = await trio.to_thread.run_sync(care.collect, service.store, live, live_trees)
        if service.log.lost:
            await trio.to_thread.run_sync(service.log.forget_lost)
        for tree in service.replicator.whole - trees:
            await service.replicator.note_gone(tree)
        names = {node: member.name for node, member in state.members.items()}
        lines = [
            HeldLine(names.get(node, node[:4].hex()), size, "has not seen the removal")
            for node, size in held.items()
        ]
        return GcReport(objects, freed, waiting, lines, time.monotonic() - started)

    def _expire(self) -> None:
        """Give up the versions that are beyond the history their volumes keep."""
        _, whole = disk.free_bytes(self.service.store.home.root)
        for handle in self.service.volumes.handles():
            try:
                handle.expire(whole)
            except TbshareError as error:
                _log.warning("old versions of volume %s were not given up: %s", handle.name, error)

    # verify ----------------------------------------------------------------------------------------------------

    async def verify(self, params: VerifyParams, emit: Emit) -> VerifyReport:
        """Hash everything again; quarantine what is wrong and, if asked, wait until it is here again."""
        service = self.service
        started = time.monotonic()
        state = await service.mesh.state()
        if params.ref:
            version = state.resolve(params.ref)
            objects = await trio.to_thread.run_sync(service.store.objects_below, TreeId(version.tree))
        else:
            objects = [row.id for row in service.store.index.objects() if row.whole]
        total = sum(row.size for object_id in objects if (row := service.store.row(object_id)))
        process = service.processes.begin("verify", params.ref or "everything")
        process.bytes_total = total
        done, damages, stop = [0], list[Damage](), threading.Event()
        process.on_stop = stop.set
        with process.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._say, done, total, damages, started, emit)
                try:
                    for object_id in objects:

                        def advance(count: int) -> None:
                            done[0] += count
                            process.bytes_done = done[0]

                        if service.store.is_whole(object_id):
                            damage = await self._verify_object(object_id, advance, stop.is_set)
                            if damage is not None:
                                damages.append(damage)
                finally:
                    stop.set()
                nursery.cancel_scope.cancel()
        if process.scope.cancelled_caught:
            process.end("stopped")
            raise Interrupted("verify was stopped")
        for damage in damages:
            await self._quarantine(damage)
        repaired = await self._repair(damages) if params.repair and damages else set[bytes]()
        process.end("done")
        problems = await log_problem(service, repair=params.repair) if not params.ref else []
        problems += await trio.to_thread.run_sync(self._problems, state, damages, repaired)
        return VerifyReport(
            bytes=done[0],
            blocks=sum(found.block_count for each in objects if (found := service.store.manifest(each))),
            corrupt=sum(len(damage.blocks) for damage in damages),
            quarantined=len(damages),
            repaired=len(repaired),
            seconds=time.monotonic() - started,
            problems=problems,
        )

    async def _verify_object(
        self, object_id: ObjectId, advance: Callable[[int], None], stopped: Callable[[], bool]
    ) -> Damage | None:
        work = partial(care.verify_object, self.service.store, object_id, advance=advance, stopped=stopped)
        return await trio.to_thread.run_sync(work)

    async def _say(self, done: list[int], total: int, damages: list[Damage], started: float, emit: Emit) -> None:
        while True:
            await trio.sleep(0.25)
            await emit(Checked(done[0], total, len(damages), done[0] / (time.monotonic() - started)))

    async def _quarantine(self, damage: Damage) -> None:
        """Put a damaged object aside and let the replicator fetch what is missing."""
        service = self.service
        _log.warning("object %s: %s; it is put into quarantine", damage.object_id.hex(), damage.text)
        await trio.to_thread.run_sync(care.quarantine, service.store, damage)
        for tree in list(service.replicator.whole):
            if damage.object_id in await trio.to_thread.run_sync(service.store.objects_below, TreeId(tree)):
                await service.replicator.note_gone(tree)
        service.replicator.poke()
        await service.spread.lost(damage.object_id)

    async def _repair(self, damages: list[Damage]) -> set[bytes]:
        """Wait until the damaged objects are whole again; return those that are."""
        store = self.service.store
        with trio.move_on_after(REPAIR_SECONDS):
            while not all(store.is_whole(damage.object_id) for damage in damages):
                event = trio.Event()
                self.service.replicator.watchers.add(event)
                with trio.move_on_after(1):
                    await event.wait()
                self.service.replicator.watchers.discard(event)
        return {damage.object_id for damage in damages if store.is_whole(damage.object_id)}

    def _problems(self, state: State, damages: list[Damage], repaired: set[bytes]) -> list[Problem]:
        names: dict[bytes, tuple[str, str]] = {}
        for versions in state.refs.values():
            for version in versions:
                try:
                    files = self.service.store.files_below(TreeId(version.tree))
                except ObjectMissing:
                    continue
                for path, object_id, _ in files:
                    names[object_id] = (
                        b"/".join(path).decode("utf-8", "replace"),
                        str(version),
                    )
        return [
            Problem(
                path=names.get(damage.object_id, (damage.object_id.hex()[:12], ""))[0],
                block=" ".join(map(str, damage.blocks[:20])),
                text=damage.text,
                ref=names.get(damage.object_id, ("", ""))[1],
                repaired=damage.object_id in repaired,
            )
            for damage in damages
        ]

    # du --------------------------------------------------------------------------------------------------------

    async def du(self) -> DiskUse:
        """Count what the store takes."""
        state = await self.service.mesh.state()
        return await trio.to_thread.run_sync(self._du, state)

    def _du(self, state: State) -> DiskUse:
        service, store = self.service, self.service.store
        counted = care.disk_bytes(store)
        by_ref: list[tuple[str, bytes, int, list[ObjectId]]] = []
        for versions in state.refs.values():
            for version in versions:
                try:
                    objects = store.objects_below(TreeId(version.tree))
                except ObjectMissing:
                    objects = []
                text = str(version)
                by_ref.append((text, version.tree, version.size_bytes, objects))
        lines: list[DuLine] = []
        for text, tree, size, objects in by_ref:
            others = (each for other, _, _, kept in by_ref if other != text for each in kept)
            lines.append(
                DuLine(
                    ref=text,
                    logical_bytes=size,
                    here_bytes=self.refs.bytes_here(tree),
                    unique_bytes=care.unique_to(store, objects, others),
                    pinned=bool(service.log.pins.list(tree)),
                )
            )
        live = {object_id for *_, objects in by_ref for object_id in objects}
        reclaimable = sum(row.size for row in store.index.objects() if row.id not in live)
        free = store.room_bytes()
        return DiskUse(
            path=str(store.home.root),
            logical_bytes=counted.logical,
            unique_bytes=counted.unique,
            shared_bytes=counted.shared,
            disk_bytes=counted.disk,
            reclaimable_bytes=reclaimable,
            quarantine_bytes=counted.quarantine,
            free_bytes=free,
            keep_free_bytes=store.keep_free_bytes,
            lines=sorted(lines, key=lambda line: line.ref),
        )
