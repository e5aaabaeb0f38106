"""One method for each request of the control socket; the work is done in the modules named here."""

# ruff: noqa: D102  (what each method does stands in client.py)

import logging

import trio

from tbshare.daemon.cluster import Cluster
from tbshare.daemon.control import Emit
from tbshare.daemon.keep import Keep
from tbshare.daemon.pushes import Pushes
from tbshare.daemon.refs import Refs
from tbshare.daemon.runs import Runs
from tbshare.daemon.service import Service
from tbshare.wire import local, report


class NodeHandlers:
    """The daemon's side of `wire/local.METHODS`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.cluster = Cluster(service)
        self.pushes = Pushes(service)
        self.refs = Refs(service)
        self.keep = Keep(service, self.refs)
        self.runs = Runs(service, self.refs)

    async def run_tasks(self) -> None:
        """Own the tasks that outlive a request; for ever."""
        async with trio.open_nursery() as nursery:
            self.pushes.nursery = nursery
            nursery.start_soon(self.keep.run)

    async def status(self, params: local.StatusParams, emit: Emit) -> report.StatusReport:
        return await self.cluster.status()

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
        return await self.refs.pin(params.ref)

    async def unpin(self, params: local.RefParams, emit: Emit) -> report.KeepReport:
        return await self.refs.unpin(params.ref)

    async def evict(self, params: local.RefParams, emit: Emit) -> report.KeepReport:
        return await self.refs.evict(params.ref)

    async def volume_list(self, params: local.VolumeListParams, emit: Emit) -> report.VolumeList:
        return await self.refs.volume_list()

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
