"""One method for each request of the control socket; the work is done in the modules named here."""

# ruff: noqa: D102  (what each method does stands in client.py)

import logging

import msgspec
import trio

from tbshare.daemon.changes import Watching
from tbshare.daemon.cluster import Cluster
from tbshare.daemon.control import Emit
from tbshare.daemon.copying import Copies
from tbshare.daemon.drain import Drain
from tbshare.daemon.files import Files
from tbshare.daemon.keep import Keep
from tbshare.daemon.kept_files import KeptFiles
from tbshare.daemon.mounts import Mounts
from tbshare.daemon.pushes import Pushes
from tbshare.daemon.refs import Refs
from tbshare.daemon.runs import Runs
from tbshare.daemon.service import Service
from tbshare.daemon.staging import Stages
from tbshare.daemon.volumes import VolumesOfNode
from tbshare.daemon.writing import Writes
from tbshare.wire import files, local, mount, report, volume


class NodeHandlers:
    """The daemon's side of `wire/local.METHODS`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.cluster = Cluster(service)
        self.pushes = Pushes(service)
        self.refs = Refs(service)
        self.keep = Keep(service, self.refs)
        self.runs = Runs(service, self.refs)
        self.volumes = VolumesOfNode(service)
        self.files = Files(service)
        self.copies = Copies(service, self.files)
        self.writes = Writes(service, self.files)
        self.watching = Watching(service, self.files)
        self.kept_files = KeptFiles(service, self.files)
        self.drains = Drain(service)
        self.mounts = Mounts(service)
        self.stages = Stages(service, self.mounts)

    async def run_tasks(self) -> None:
        """Own the tasks that outlive a request; for ever."""
        async with trio.open_nursery() as nursery:
            self.pushes.nursery = nursery
            nursery.start_soon(self.keep.run)
            nursery.start_soon(self.stages.run)

    async def status(self, params: local.StatusParams, emit: Emit) -> report.StatusReport:
        return msgspec.structs.replace(await self.cluster.status(), mounts=self.mounts.lines())

    async def node_list(self, params: local.NodeListParams, emit: Emit) -> report.NodeList:
        return await self.cluster.node_list()

    async def node_rename(self, params: local.NodeRenameParams, emit: Emit) -> report.Done:
        return report.Done(await self.cluster.rename(params.node, params.name))

    async def pair_open(self, params: local.PairOpenParams, emit: Emit) -> report.Paired:
        return await self.cluster.open_window(emit)

    async def pair_join(self, params: local.PairJoinParams, emit: Emit) -> report.Paired:
        return await self.cluster.join(params)

    async def push(self, params: local.PushParams, emit: Emit) -> report.PushReport:
        return await self.pushes.push(params, emit)

    async def pull(self, params: local.PullParams, emit: Emit) -> report.PushReport:
        return await self.pushes.pull(params, emit)

    async def ref_list(self, params: local.RefListParams, emit: Emit) -> report.RefList:
        return await self.refs.ref_list(params)

    async def show(self, params: local.ShowParams, emit: Emit) -> report.ShowReport:
        return await self.refs.show(params)

    async def path(self, params: local.PathParams, emit: Emit) -> report.PathReport:
        return await self.refs.path(params)

    async def remove(self, params: local.RemoveParams, emit: Emit) -> report.RemoveReport:
        return await self.refs.remove(params)

    async def pin(self, params: local.RefParams, emit: Emit) -> report.KeepReport:
        if params.where is not None:
            return await self.kept_files.pin(params.where)
        return await self.refs.pin(params.ref)

    async def unpin(self, params: local.RefParams, emit: Emit) -> report.KeepReport:
        if params.where is not None:
            return await self.kept_files.unpin(params.where)
        return await self.refs.unpin(params.ref)

    async def evict(self, params: local.RefParams, emit: Emit) -> report.KeepReport:
        if params.where is not None:
            return await self.kept_files.evict(params.where)
        return await self.refs.evict(params.ref)

    async def gc(self, params: local.GcParams, emit: Emit) -> report.GcReport:
        return await self.keep.gc(params)

    async def verify(self, params: local.VerifyParams, emit: Emit) -> report.VerifyReport:
        return await self.keep.verify(params, emit)

    async def du(self, params: local.DuParams, emit: Emit) -> report.DiskUse:
        return await self.keep.du()

    async def processes(self, params: local.ProcessesParams, emit: Emit) -> report.ProcessList:
        return report.ProcessList([process.line() for process in self.service.processes.running()])

    async def stop(self, params: local.IdParams, emit: Emit) -> report.Done:
        return report.Done(f"{self.service.processes.stop(params.id).id} is ending")

    async def wait(self, params: local.IdParams, emit: Emit) -> report.WaitReport:
        process = self.service.processes.get(params.id)
        await process.finished.wait()
        return process.waited()

    async def run(self, params: local.RunParams, emit: Emit) -> report.RunReport:
        return await self.runs.run(params, emit)

    async def shutdown(self, params: local.ShutdownParams, emit: Emit) -> report.Done:
        self.service.stopping.set()
        return report.Done("stopping")

    async def log_level(self, params: local.LogLevelParams, emit: Emit) -> report.Done:
        logging.getLogger("tbshare").setLevel(params.level.upper())
        return report.Done(params.level)

    async def volume_list(self, params: volume.VolumeListParams, emit: Emit) -> volume.VolumeList:
        return await self.volumes.listed(params)

    async def volume_show(self, params: volume.VolumeNameParams, emit: Emit) -> volume.VolumeReport:
        return await self.volumes.show(params.name)

    async def volume_create(self, params: volume.VolumeCreateParams, emit: Emit) -> volume.VolumeMade:
        if params.source:
            self.copies.check_source(params.source)
        made, already = await self.volumes.create(params)
        copied = None
        if params.source:
            copied = await self.copies.take_in(made.name, params.source, move=params.move, emit=emit)
        return volume.VolumeMade((await self.volumes.show(made.name)).volume, already, copied)

    async def volume_set(self, params: volume.VolumeSetParams, emit: Emit) -> volume.VolumeReport:
        return await self.volumes.set(params)

    async def volume_remove(self, params: volume.VolumeRemoveParams, emit: Emit) -> volume.VolumeRemoved:
        return await self.volumes.remove(params)

    async def volume_restore(self, params: volume.VolumeNameParams, emit: Emit) -> volume.VolumeReport:
        return await self.volumes.restore(params.name)

    async def file_list(self, params: files.FileListParams, emit: Emit) -> files.FileList:
        return await self.files.file_list(params)

    async def file_stat(self, params: files.FileStatParams, emit: Emit) -> files.FileStat:
        return await self.files.file_stat(params)

    async def file_show(self, params: files.FileStatParams, emit: Emit) -> files.FileReport:
        return await self.files.file_show(params)

    async def file_read(self, params: files.FileReadParams, emit: Emit) -> files.FileRead:
        return await self.files.file_read(params, emit)

    async def file_extents(self, params: files.FileExtentsParams, emit: Emit) -> files.FileExtents:
        return await self.writes.extents(params)

    async def file_stage(self, params: files.FileStageParams, emit: Emit) -> files.Staging:
        return await self.writes.stage(params)

    async def file_commit(self, params: files.FileCommitParams, emit: Emit) -> files.FileCommitted:
        return await self.writes.commit(params)

    async def file_copy(self, params: files.FileCopyParams, emit: Emit) -> files.CopyReport:
        return await self.copies.file_copy(params, emit)

    async def file_move(self, params: files.FileMoveParams, emit: Emit) -> files.FileStat:
        return await self.files.file_move(params)

    async def file_remove(self, params: files.FileRemoveParams, emit: Emit) -> files.FileRemoved:
        return await self.files.file_remove(params)

    async def file_mkdir(self, params: files.FileMkdirParams, emit: Emit) -> files.FileStat:
        return await self.files.file_mkdir(params)

    async def history(self, params: files.HistoryParams, emit: Emit) -> files.History:
        return await self.files.history(params)

    async def restore(self, params: files.RestoreParams, emit: Emit) -> files.Restored:
        return await self.files.restore(params)

    async def conflicts(self, params: volume.ConflictsParams, emit: Emit) -> volume.ConflictList:
        return await self.files.conflicts(params)

    async def resolve(self, params: volume.ResolveParams, emit: Emit) -> volume.Resolved:
        return await self.files.resolve(params)

    async def locks(self, params: volume.LocksParams, emit: Emit) -> volume.LockList:
        return await self.files.lock_list(params)

    async def snapshot_create(self, params: volume.SnapshotParams, emit: Emit) -> volume.Snapshot:
        return await self.files.snapshot_create(params)

    async def snapshot_list(self, params: volume.SnapshotListParams, emit: Emit) -> volume.SnapshotList:
        return await self.files.snapshot_list(params)

    async def snapshot_remove(self, params: volume.SnapshotParams, emit: Emit) -> volume.Snapshot:
        return await self.files.snapshot_remove(params)

    async def watch(self, params: volume.WatchParams, emit: Emit) -> report.Done:
        return await self.watching.watch(params, emit)

    async def drain(self, params: volume.DrainParams, emit: Emit) -> volume.DrainReport:
        return await self.drains.drain(emit, wait=params.wait)

    async def undrain(self, params: volume.UndrainParams, emit: Emit) -> report.Done:
        was = await self.drains.undrain()
        return report.Done("takes part as before" if was else "it was not drained")

    async def mount_attach(self, params: mount.MountAttachParams, emit: Emit) -> report.Done:
        return await self.mounts.attach(params, emit)

    async def mount_volumes(self, params: mount.MountVolumesParams, emit: Emit) -> mount.MountVolumeList:
        if params.begins:
            await self.stages.recover()
        return await self.mounts.volumes()

    async def mount_list(self, params: mount.MountListParams, emit: Emit) -> mount.MountListing:
        return await self.mounts.listed(params, emit)

    async def mount_lookup(self, params: mount.MountListParams, emit: Emit) -> mount.MountListing:
        return await self.mounts.lookup(params)

    async def mount_change(self, params: mount.MountChangeParams, emit: Emit) -> mount.MountChangeResult:
        return await self.mounts.change(params)

    async def mount_open(self, params: mount.MountOpenParams, emit: Emit) -> mount.MountOpened:
        return await self.mounts.open(params)

    async def mount_need(self, params: mount.MountNeedParams, emit: Emit) -> mount.MountOpened:
        return await self.mounts.need(params)

    async def mount_stage(self, params: mount.MountStageParams, emit: Emit) -> mount.MountStaged:
        return await self.stages.stage(params)

    async def mount_cut(self, params: mount.MountCutParams, emit: Emit) -> mount.MountCut:
        return await self.stages.cut(params)

    async def mount_cuts(self, params: mount.MountCutsParams, emit: Emit) -> mount.MountCuts:
        return await self.stages.cuts(params)

    async def mount_spare(self, params: mount.MountSpareParams, emit: Emit) -> mount.MountSpares:
        return await self.stages.spare(params)

    async def mount_sync(self, params: mount.MountSyncParams, emit: Emit) -> report.Done:
        await self.stages.sync(params)
        return report.Done("synced")

    async def mount_unstage(self, params: mount.MountUnstageParams, emit: Emit) -> report.Done:
        await self.stages.unstage(params)
        return report.Done("forgotten")
