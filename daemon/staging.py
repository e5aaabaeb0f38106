"""What programs write through mounts: working files are staged, cut into versions, and recovered.

A working file belongs to the mount's process. When that is gone, whatever it was told in fsync, and what it wrote
in this boot of the machine, becomes a version: as soon as no process has the file open any more (the kernel lets
programs write to it even when their mount is dead), and once before, if they were promised something. After a loss
of power, what nobody called fsync for goes into quarantine.
"""

import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path as LocalPath
from typing import TypeVar

import msgspec
import trio

from tbshare.daemon.mount_changes import item_of
from tbshare.daemon.mounts import Mounts
from tbshare.daemon.service import Service, boot_id
from tbshare.daemon.stage_saving import Kept, save, save_new
from tbshare.errors import (
    Locked,
    ObjectMissing,
    QuotaExceeded,
    StageMissing,
    TargetsPending,
    TbshareError,
    VolumeReadOnly,
    errno_of,
)
from tbshare.store import disk
from tbshare.store.cutting import Cut
from tbshare.store.staging import Row, Staging
from tbshare.volumes.item import Attributes
from tbshare.volumes.volume import Handle
from tbshare.wire import mount as wire

SPARES_MAX = 256  # at once
RECOVER_SECONDS = 2.0  # until working files of mounts that are gone are looked at again
COPIES_SECONDS = 0.5  # until the other nodes are asked again what they have

_log = logging.getLogger("tbshare.daemon.staging")
_T = TypeVar("_T")


def process_of(pid: int) -> str:
    """Return what tells a running process from every other of this boot; "" when it is gone."""
    with contextlib.suppress(OSError, IndexError):
        text = LocalPath(f"/proc/{pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return f"{pid} {fields[19]}" if fields[0] != "Z" else ""  # 19: when it was started
    return ""


class Stages:
    """Answers mounts that write."""

    def __init__(self, service: Service, mounts: Mounts) -> None:
        self.service, self.mounts = service, mounts
        self.staging = Staging(service.store)
        self._boot = boot_id()
        self._locks: dict[int, trio.Lock] = {}
        self._leases: dict[int, trio.Event] = {}  # of working files: set when it is no longer written to
        self._looked: dict[int, int] = {}  # of those whose mount is gone -> ctime_ns when they were saved
        self._troubled: set[int] = set()  # of which it was said that they cannot be saved
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Recover what mounts that are gone left, and own the leases; for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await self.recover()
                await trio.sleep(RECOVER_SECONDS)

    async def recover(self) -> None:
        """Save what mounts that are gone left. A new mount must not show the files as they were before that."""
        for number in self.staging.rows():
            await self._look_after(number)

    # what mounts ask ---------------------------------------------------------------------------------------------

    async def stage(self, params: wire.MountStageParams) -> wire.MountStaged:
        """Make a working file. Locked, VolumeReadOnly, ObjectMissing, DiskFull, QuotaExceeded."""
        handle = await trio.to_thread.run_sync(self._handle, params.volume)
        await trio.to_thread.run_sync(self._check, handle)
        if params.file:
            self._refuse_locked(handle, params.file)
        row = Row(
            params.volume,
            params.path,
            params.file,
            params.version,
            params.content,
            params.mode,
            process_of(params.pid),
            self._boot,
        )
        work = partial(self.staging.make, row, empty=params.truncate, mtime_ns=params.mtime_ns)
        async with self.service.taking_in():  # what is cloned is not collected meanwhile
            try:
                number = await trio.to_thread.run_sync(work)
            except ObjectMissing:
                await self.service.spread.need(params.volume, params.file, params.version)
                number = await trio.to_thread.run_sync(work)
        if params.file and self._nursery is not None:
            self._leases[number] = trio.Event()
            self._nursery.start_soon(self._hold_lease, handle, params, self._leases[number])
        return self._staged(number)

    def _staged(self, number: int) -> wire.MountStaged:
        return wire.MountStaged(number, os.fsencode(self.staging.path(number)), self.staging.clones)

    async def cut(self, params: wire.MountCutParams) -> wire.MountCut:
        """Save what a working file holds now. The errors of a save: then the working file stays as it is."""
        attributes = _attributes(params)
        async with self._alone(params.stage):
            row = self.staging.row(params.stage)
            if not params.path:
                if params.last:
                    await self._drop(params.stage)
                return wire.MountCut()
            if not row.file and params.mode is None:
                attributes = msgspec.structs.replace(attributes, mode=row.mode)
            row = msgspec.structs.replace(row, path=params.path)
            if params.file:
                row = msgspec.structs.replace(row, file=params.file, version=params.version)
            made, kept = await self._save(params.stage, row, attributes, params)
        return _told(made, kept)

    async def spare(self, params: wire.MountSpareParams) -> wire.MountSpares:
        """Make empty working files for files to come. VolumeReadOnly, DiskFull."""
        row = Row(params.volume, (), owner=process_of(params.pid), boot=self._boot)

        def make() -> list[wire.MountStaged]:
            self._check(self._handle(params.volume))
            numbers = [self.staging.make(row) for _ in range(min(params.count, SPARES_MAX))]
            return [self._staged(number) for number in numbers]

        return wire.MountSpares(await trio.to_thread.run_sync(make))

    async def cuts(self, params: wire.MountCutsParams) -> wire.MountCuts:
        """Save several working files for good, those that are new files in one entry of the log if that can be."""
        answers: dict[int, wire.MountCutAnswer] = {}
        async with contextlib.AsyncExitStack() as stack:
            for number in sorted({each.stage for each in params.cuts}):
                await stack.enter_async_context(self._alone(number))
            handle = await trio.to_thread.run_sync(self._handle, params.volume)
            async with self.service.taking_in():
                saved = await trio.to_thread.run_sync(self._cut_together, handle, params)
            if saved:
                await self.service.spread.took(
                    params.volume, [(kept.file, kept.version) for _, kept in saved.values()]
                )
            for number, (made, kept) in saved.items():
                await self._drop(number)
                answers[number] = wire.MountCutAnswer(0, _told(made, kept))
        for each in params.cuts:
            if each.stage not in answers:
                answers[each.stage] = await self._cut_alone(each)
        return wire.MountCuts([answers[each.stage] for each in params.cuts])

    async def _cut_alone(self, params: wire.MountCutParams) -> wire.MountCutAnswer:
        try:
            return wire.MountCutAnswer(0, await self.cut(params))
        except TbshareError as error:
            return wire.MountCutAnswer(errno_of(error))

    def _cut_together(self, handle: Handle, params: wire.MountCutsParams) -> dict[int, tuple[Cut, Kept]]:
        """Save what can be saved together; what is left out has to be saved alone."""
        made: list[tuple[wire.MountCutParams, Cut]] = []
        rows = self.staging.rows()
        try:
            for each in params.cuts:
                row = rows.get(each.stage)
                if row is not None and each.last and each.path and not each.file and not row.file:
                    made.append((each, self.staging.cut(each.stage, last=True)))
            self.service.store.sync_records()
            kept = self.mounts.commit_of(
                params.attached,
                params.volume,
                lambda: save_new(handle, [(each.path, cut, _attributes(each)) for each, cut in made]),
                lambda kept: all(each.item is not None for each in kept),
            )
        except (TbshareError, OSError):
            for each, cut in made:
                self.staging.uncut(each.stage, cut)
            return {}
        return {each.stage: (cut, one) for (each, cut), one in zip(made, kept, strict=True)}

    async def sync(self, params: wire.MountSyncParams) -> None:
        """Make a promise of what a mount has synced: from now on it survives anything."""
        async with self._alone(params.stage):
            row = self.staging.row(params.stage)
            row = msgspec.structs.replace(row, path=params.path, committed=row.committed or params.promised)
            if params.mode is not None:
                row = msgspec.structs.replace(row, mode=params.mode)
            if row != self.staging.row(params.stage):
                await trio.to_thread.run_sync(self._check_quota, params.stage, row)
                await trio.to_thread.run_sync(self.staging.keep, params.stage, row)
            if params.copies <= 1 or not params.path:
                return
            attributes = Attributes(mode=None if row.file else row.mode)
            cut = wire.MountCutParams(params.stage, row.path)
            _, kept = await self._save(params.stage, row, attributes, cut)
        await self._wait_for_copies(row.volume, (kept.file, kept.version), params)

    async def unstage(self, params: wire.MountUnstageParams) -> None:
        """Forget a working file."""
        async with self._alone(params.stage):
            with contextlib.suppress(StageMissing):
                self.staging.row(params.stage)
                await self._drop(params.stage)

    # saving ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _alone(self, number: int) -> AsyncGenerator[None, None]:
        """Do one thing at a time with a working file, and all of it, even if the asker goes away."""
        lock = self._locks.setdefault(number, trio.Lock())
        async with lock:
            with trio.CancelScope(shield=True):
                yield
        if not lock.statistics().tasks_waiting and number not in self.staging.rows():
            self._locks.pop(number, None)

    async def _save(
        self,
        number: int,
        row: Row,
        attributes: Attributes,
        params: wire.MountCutParams,
    ) -> tuple[Cut, Kept]:
        """Cut a working file and save what was cut; it is gone then if that was the last time."""
        service = self.service
        handle = await trio.to_thread.run_sync(self._handle, row.volume)

        def cut() -> Cut:
            made = self.staging.cut(number, params.changed, last=params.last)
            service.store.sync_records()
            return made

        def commit(under: Handle, made: Cut) -> Kept:
            mtime_ns = made.mtime_ns if params.mtime_ns is None else params.mtime_ns
            try:
                return self.mounts.commit_of(
                    params.attached,
                    row.volume,
                    lambda: save(under, row, row.path, made, mtime_ns, attributes),
                    lambda kept: kept.item is not None and kept.item.name == row.path[-1],
                )
            except BaseException:
                self.staging.uncut(number, made)
                raise

        async with service.taking_in():
            made = await trio.to_thread.run_sync(cut)
            kept = await self._leased(handle, row, lambda under: commit(under, made))
        if kept.is_new:
            await service.spread.took(row.volume, [(kept.file, kept.version)])
        if params.last:
            await self._drop(number)
        else:
            path = row.path if kept.item is None else (*row.path[:-1], kept.item.name)
            now = msgspec.structs.replace(
                row, path=path, file=kept.file, version=kept.version, content=made.object_id
            )
            await trio.to_thread.run_sync(self.staging.keep, number, now)
        return made, kept

    async def _leased(self, handle: Handle, row: Row, work: Callable[[Handle], _T]) -> _T:
        """Do something in a thread under the file's lease; without one if another node has it."""
        async with contextlib.AsyncExitStack() as stack:
            under = handle
            if row.file:
                with contextlib.suppress(Locked, VolumeReadOnly):
                    under = await stack.enter_async_context(self.service.locks.held(handle, [row.path]))
            return await trio.to_thread.run_sync(work, under)

    async def _drop(self, number: int) -> None:
        await trio.to_thread.run_sync(self.staging.drop, number)
        lease = self._leases.pop(number, None)
        if lease is not None:
            lease.set()

    async def _hold_lease(self, handle: Handle, params: wire.MountStageParams, ended: trio.Event) -> None:
        """Hold the lease of a file for as long as it is open for writing; nothing rests on having it."""
        with contextlib.suppress(TbshareError):
            async with self.service.locks.held(handle, [params.path]):
                await ended.wait()

    # checks ------------------------------------------------------------------------------------------------------

    def _handle(self, volume: int) -> Handle:
        return self.mounts.handle(volume)

    @staticmethod
    def _check(handle: Handle) -> None:
        why = handle.why_read_only
        if why:
            raise VolumeReadOnly(why, cure="tbshare volume ls")

    def _refuse_locked(self, handle: Handle, file: int) -> None:
        """Raise what somebody meets who opens for writing what another node, which can be reached, has locked."""
        me = self.service.identity.node
        holder = self.service.locks.holders(handle.id).get(file, me)
        if holder == me or holder not in self.service.mesh.peers:
            return
        state = self.service.log.state()
        member, volume = state.members.get(holder), state.volume_by_id(handle.id)
        who = member.name if member is not None else holder[:4].hex()
        if volume is not None and volume.policy.locked == "read-only":
            raise VolumeReadOnly(f"it can only be read now: {who} has it open for writing", cure="tbshare locks")
        raise Locked(f"it is locked: {who} has it open for writing", cure="tbshare locks")

    def _check_quota(self, number: int, row: Row) -> None:
        """Raise QuotaExceeded where nothing may be promised, as it could not be saved."""
        totals = self._handle(row.volume).totals()
        before = self.service.store.row(row.content) if row.content else None  # type: ignore[arg-type]
        grown = self.staging.path(number).stat().st_size - (before.size if before is not None else 0)
        if totals.quota_bytes and totals.size_bytes + grown > totals.quota_bytes:
            raise QuotaExceeded("the quota of the volume is used up", cure="tbshare volume set NAME --quota SIZE")

    async def _wait_for_copies(self, volume: int, pair: tuple[int, int], params: wire.MountSyncParams) -> None:
        """Wait until so many nodes have a version, synced. TargetsPending."""
        with trio.move_on_after(params.seconds):
            while True:
                grew = self.service.spread.grew
                nodes = (await self.service.spread.copies(volume, [pair]))[pair]
                if len(nodes) >= params.copies:
                    return
                with trio.move_on_after(COPIES_SECONDS):
                    await grew.wait()
        raise TargetsPending(
            f"fewer than {params.copies} nodes have it after {params.seconds:.0f} s; it is safe on this one",
            cure="tbshare node ls",
        )

    # recovery ----------------------------------------------------------------------------------------------------

    async def _look_after(self, number: int) -> None:
        """Save a working file whose mount is gone."""
        with contextlib.suppress(StageMissing):
            async with self._alone(number):
                row = self.staging.row(number)
                if row.owner and row.boot == self._boot and process_of(int(row.owner.split()[0])) == row.owner:
                    return
                try:
                    await self._recover(number, row)
                except (TbshareError, OSError) as error:
                    if number not in self._troubled:
                        _log.warning(
                            "what was written to %s is not saved yet: %s", _shown(row), disk.as_ours(error)
                        )
                    self._troubled.add(number)

    async def _recover(self, number: int, row: Row) -> None:
        status = await trio.to_thread.run_sync(os.stat, self.staging.path(number))
        if not row.path or (not row.committed and not row.file and status.st_size == 0):
            await self._drop(number)
            return
        if row.boot != self._boot and not row.committed:
            _log.warning("%s was never synced; what the power left of it is in quarantine", _shown(row))
            await trio.to_thread.run_sync(self.staging.put_aside, number)
            return
        is_open = await trio.to_thread.run_sync(self.staging.is_open, number)
        if is_open and (not row.committed or self._looked.get(number) == status.st_ctime_ns):
            return
        attributes = Attributes(mode=None if row.file else row.mode)
        _, kept = await self._save(
            number, row, attributes, wire.MountCutParams(number, row.path, last=not is_open)
        )
        self._looked[number] = status.st_ctime_ns
        if kept.is_new:
            _log.info("what was written to %s before its mount was gone is saved", _shown(row))


def _attributes(params: wire.MountCutParams) -> Attributes:
    return Attributes(
        mode=params.mode,
        uid=params.uid,
        gid=params.gid,
        birthtime_ns=params.birthtime_ns,
        xattrs=params.xattrs,
    )


def _told(made: Cut, kept: Kept) -> wire.MountCut:
    item = item_of(kept.item) if kept.item is not None else None
    return wire.MountCut(item, kept.file, kept.version, made.bytes_written, made.bytes_hashed)


def _shown(row: Row) -> str:
    return os.fsdecode(b"/".join(row.path)).encode("utf-8", "backslashreplace").decode()
