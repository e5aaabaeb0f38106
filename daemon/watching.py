"""Following a tree on its way to its targets, for whoever watches a push or a pull."""

import time
from dataclasses import dataclass

import trio

from tbshare.daemon.control import Emit
from tbshare.daemon.processes import Process
from tbshare.daemon.service import Service
from tbshare.errors import RefUnknown
from tbshare.volumes.fold import RefVersion
from tbshare.wire.message import Progress
from tbshare.wire.report import AnyEvent, NodeProgress, Nodes, PushReport, SourceLine

WATCH_SECONDS = 0.25  # at least so often; and at every change, but not more often than LOOK_SECONDS
LOOK_SECONDS = 0.05
FAILED_SECONDS = 5.0  # that a target fails again and again, without a byte between, before it is left
AWAY_SECONDS = 5.0  # a target that was not connected for this long, or never since the start, is left pending
FINAL = {"durable", "failed", "declined", "away"}


@dataclass(frozen=True)
class PushExtra:
    """What a push knows beyond the way of its tree."""

    already: bool = False
    seconds_ingest: float = 0.0
    blocks: int = 0
    bytes_unique: int = 0
    files_moved: int = 0


async def silent(_: AnyEvent) -> None:
    """Take an event that nobody listens to."""
    await trio.lowlevel.checkpoint()


class Watcher:
    """Looks at how far each target of a version is. Make it before the work begins."""

    def __init__(self, service: Service, version: RefVersion, only: bytes = b"") -> None:
        """Take the one node that counts in `only`; else all targets but this node count."""
        self.service, self.version, self.only = service, version, only
        self._failing_since: dict[bytes, float] = {}
        self._moved: dict[bytes, int] = {}
        others = service.replicator.others
        # What these have was there before: what an earlier transfer moved is not this one's.
        self._whole_before = {peer.node for peer in service.mesh.peers.values() if version.tree in peer.keeps}
        if version.tree in service.replicator.whole:
            self._whole_before.add(service.identity.node)
        for key in [key for key, said in others.items() if key[0] == version.tree and said.state in FINAL]:
            del others[key]

    async def follow(self, process: Process, emit: Emit, extra: PushExtra | None = None) -> PushReport:
        """Emit the targets' progress until each is durable, failed, or away for a while; return the report."""
        replicator = self.service.replicator
        process.state = "moving"
        started, best_rate = time.monotonic(), 0.0
        while True:
            event = trio.Event()
            replicator.watchers.add(event)
            try:
                nodes = await self.look()
                _note(process, nodes)
                best_rate = max([best_rate, *(source.rate for node in nodes for source in node.sources)])
                await emit(Nodes(nodes))
                if all(node.state in FINAL for node in nodes):
                    break
                await trio.sleep(LOOK_SECONDS)
                with trio.move_on_after(WATCH_SECONDS):
                    await event.wait()
            finally:
                replicator.watchers.discard(event)
        report = self._report(process, nodes, time.monotonic() - started, best_rate, extra or PushExtra())
        process.report = report
        process.end("pending" if report.pending or report.failed else "done")
        return report

    def _report(
        self, process: Process, nodes: list[NodeProgress], seconds: float, best_rate: float, extra: PushExtra
    ) -> PushReport:
        version = self.version
        return PushReport(
            ref=str(version),
            tree=version.tree.hex(),
            bytes=version.size_bytes,
            files=version.files,
            already=extra.already,
            id=process.id,
            seconds=time.time() - process.started,
            seconds_ingest=extra.seconds_ingest,
            seconds_moving=seconds,
            rate_best=best_rate,
            nodes=nodes,
            blocks_total=extra.blocks,
            bytes_unique=extra.bytes_unique,
            pending=[node.name for node in nodes if node.state == "away"],
            failed=[node.name for node in nodes if node.state in ("failed", "declined")],
            files_moved=extra.files_moved,
        )

    async def look(self) -> list[NodeProgress]:
        """Return one line for each target."""
        state = await self.service.mesh.state()
        if not any(version.tree == self.version.tree for versions in state.refs.values() for version in versions):
            raise RefUnknown(f"{self.version} was removed meanwhile", cure="tbshare ls")
        me = self.service.identity.node
        if self.only:
            targets = [self.only]
        else:
            named = self.version.to or tuple(state.members)
            targets = [node for node in named if node in state.members and node != me]
        lines = [self._line(node, state.members[node].name) for node in targets]
        return sorted((line for line in lines if line.state != "on-demand"), key=lambda line: line.name)

    def _line(self, node: bytes, name: str) -> NodeProgress:
        return self._own_line(node, name) if node == self.service.identity.node else self._peer_line(node, name)

    def _own_line(self, node: bytes, name: str) -> NodeProgress:
        replicator, tree = self.service.replicator, self.version.tree
        said = replicator.others.get((tree, node))
        if tree in replicator.whole:
            return self._whole(node, name, said)
        job = replicator.jobs.get(tree)
        if job is None:
            return NodeProgress(name, node.hex(), "waiting", self.version.size_bytes)
        progress = job.fetch.progress()
        return self._moving(node, name, progress)

    def _peer_line(self, node: bytes, name: str) -> NodeProgress:
        service, tree, total = self.service, self.version.tree, self.version.size_bytes
        peer = service.mesh.peers.get(node)
        if peer is None:
            seen = service.mesh.seen.get(node)
            gone = time.time() - service.started_at if seen is None else trio.current_time() - seen
            state = "away" if gone > AWAY_SECONDS else "waiting"
            return NodeProgress(name, node.hex(), state, total, reason="not connected")
        said = service.replicator.others.get((tree, node))
        if tree in peer.keeps:
            return self._whole(node, name, said)
        if said is not None:
            return self._moving(node, name, said)
        on_demand = not self.version.to and peer.hello.accept != "all"
        return NodeProgress(name, node.hex(), "on-demand" if on_demand else "waiting", total)

    def _whole(self, node: bytes, name: str, said: Progress | None) -> NodeProgress:
        total = self.version.size_bytes
        if said is None or node in self._whole_before:
            return NodeProgress(name, node.hex(), "durable", total, total, 0, total)
        return self._moving(node, name, said, "durable")

    def _judged(self, node: bytes, said: Progress) -> str:
        """Return the state to show: a failure is tried again at once, so it counts after FAILED_SECONDS only."""
        if said.state != "failed" and said.bytes_moved > self._moved.get(node, 0):
            self._failing_since.pop(node, None)
        self._moved[node] = said.bytes_moved
        if said.state != "failed":
            return said.state
        since = self._failing_since.setdefault(node, time.monotonic())
        return "failed" if time.monotonic() - since > FAILED_SECONDS else "waiting"

    def _moving(self, node: bytes, name: str, said: Progress, state: str = "") -> NodeProgress:
        names = {peer.node: peer.hello.name for peer in self.service.mesh.peers.values()}
        names[self.service.identity.node] = self.service.name()
        sources = [
            SourceLine(names.get(source.node, source.node[:4].hex()), source.rate, source.bytes)
            for source in said.sources
        ]
        shown = state or self._judged(node, said)
        rate = sum(source.rate for source in sources) if shown == "fetching" else 0.0
        left = said.bytes_total - said.bytes_present
        return NodeProgress(
            name=name,
            id=node.hex(),
            state=shown,
            bytes_total=said.bytes_total or self.version.size_bytes,
            bytes_present=said.bytes_present,
            bytes_moved=said.bytes_moved,
            bytes_reused=said.bytes_reused,
            rate=rate,
            eta_seconds=left / rate if rate > 0 else None,
            sources=sources,
            reason=said.reason,
        )


def _note(process: Process, nodes: list[NodeProgress]) -> None:
    process.nodes = nodes
    process.bytes_total = sum(node.bytes_total for node in nodes)
    process.bytes_done = sum(node.bytes_present for node in nodes)
    process.rate = sum(node.rate for node in nodes)
