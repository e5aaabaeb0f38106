"""Push and pull: a path becomes a ref, the ref comes to the nodes, and the user watches."""

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tbshare.content.block import TreeId
from tbshare.content.ref import Ref, folded, name_from_directory, parse_ref
from tbshare.content.tree import Entry, Tree
from tbshare.content.tree import Kind as EntryKind
from tbshare.daemon.control import Emit
from tbshare.daemon.processes import Process
from tbshare.daemon.service import MODELS, Service
from tbshare.errors import (
    InputRefused,
    Interrupted,
    NotPermitted,
    TbshareError,
    UsageError,
)
from tbshare.store import adopt, ingest
from tbshare.store.source import Choice, Source, hub_cache_path, scan
from tbshare.volumes.entry import RefSet
from tbshare.volumes.fold import RefVersion, State
from tbshare.wire.local import PullParams, PushParams
from tbshare.wire.message import Progress
from tbshare.wire.report import (
    Ingest,
    NodeProgress,
    Nodes,
    Noted,
    Published,
    PushReport,
    SourceLine,
    SpaceLine,
    Started,
    Warned,
)

WATCH_SECONDS = 0.25
AWAY_SECONDS = 5.0  # a target that is not connected for this long is left pending
FINAL = {"durable", "failed", "declined", "away"}


@dataclass
class _Taken:
    """What ingest gave."""

    source: Source
    tree: TreeId
    seconds: float
    warnings: list[str] = field(default_factory=list[str])
    blocks: int = 0
    bytes_unique: int = 0
    adopted: list[adopt.Adopted] = field(default_factory=list[adopt.Adopted])


class Pushes:
    """Answers push and pull."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.nursery: trio.Nursery | None = None

    async def push(self, params: PushParams, emit: Emit) -> PushReport:
        """Take a path in, publish it, and watch until every target that is there has it."""
        if params.undo:
            return await self._undo(params)
        source = await self._scan(params, emit)
        state = await self.service.mesh.state()
        ref = self._ref(params, source)
        targets = [state.member_named(text).node for text in params.to]
        reason = state.why_read_only(ref.volume)
        if reason:
            raise NotPermitted(reason, cure="upgrade tbshare on this node")
        self._check_volume(state, ref)
        await self._space(state, targets, source.size, emit)
        if params.dry_run:
            return PushReport(str(ref), "", source.size, len(source.files), dry_run=True)
        process = self.service.processes.begin("push", str(ref))
        await emit(Started(process.id))
        try:
            with process.scope, self.service.limited(params.limit_bytes_per_second):
                return await self._push(process, params, ref, targets, source, emit)
            raise Interrupted(f"{process.id} was stopped", cure="push again: it goes on where it was")
        except BaseException as error:
            if not process.finished.is_set():
                process.end("stopped" if isinstance(error, Interrupted | trio.Cancelled) else "failed", str(error))
            raise

    # the steps -------------------------------------------------------------------------------------------------

    async def _scan(self, params: PushParams, emit: Emit) -> Source:
        path = Path(params.path)
        if params.path.startswith("hf://"):
            hub_id = params.path.removeprefix("hf://")
            raise UsageError(
                "fetching from the hub is not part of this version",
                cure=f"hf download {hub_id.split('@')[0]}; tbshare push --from-hf-cache {hub_id}",
            )
        if params.hf_cache:
            hub_id, _, revision = params.hf_cache.partition("@")
            environment = (
                {"HF_HUB_CACHE": params.hf_cache_directory} if params.hf_cache_directory else dict(os.environ)
            )
            path = hub_cache_path(hub_id, environment)
            if revision:
                path = path / "snapshots" / revision
        choice = Choice(params.include, params.exclude, params.follow_links)
        source = await trio.to_thread.run_sync(scan, path, choice)
        if not source.files and not source.links:
            raise InputRefused(
                f"{path} holds no file that would be pushed", cure="check the path, --include and --exclude"
            )
        if source.excluded:
            names = ", ".join(source.excluded[:5]) + (" …" if len(source.excluded) > 5 else "")
            await emit(Noted(f"left out: {names}"))
        return source

    def _ref(self, params: PushParams, source: Source) -> Ref:
        if params.name:
            ref = parse_ref(params.name)
            if ref.rev:
                raise UsageError("a push makes the next rev itself", cure=f"--name {ref.name}")
            return Ref(ref.name, params.volume or ref.volume)
        name = source.name or name_from_directory(str(source.root if source.root.is_dir() else source.root.stem))
        return Ref(name, params.volume or MODELS)

    @staticmethod
    def _check_volume(state: State, ref: Ref) -> None:
        volume = state.volumes.get(folded(ref.volume))
        if volume is None:
            names = ", ".join(sorted(volume.name for volume in state.volumes.values()))
            raise UsageError(f"there is no volume {ref.volume!r}; there are: {names}", cure="tbshare volume ls")

    async def _space(self, state: State, targets: list[bytes], size: int, emit: Emit) -> None:
        """Say of each target whether it has room."""
        service = self.service
        for node in targets or [node for node in state.members if node != service.identity.node]:
            member, peer = state.members[node], service.mesh.peers.get(node)
            if node == service.identity.node:
                free, accept = service.store.room_bytes(), "all"
            elif peer is None:
                await emit(SpaceLine(member.name, "away now; it gets it when it is back"))
                continue
            else:
                free, accept = peer.hello.store_free_bytes, peer.hello.accept
            if accept != "all" and not targets:
                await emit(SpaceLine(member.name, f"accepts {accept}: fetches it when it is asked for"))
            elif size > free:
                text = f"needs {size / 1e9:.2f} GB at most, {free / 1e9:.2f} GB free"
                await emit(SpaceLine(member.name, text, fits=False))

    async def _push(
        self, process: Process, params: PushParams, ref: Ref, targets: list[bytes], source: Source, emit: Emit
    ) -> PushReport:
        service = self.service
        async with service.taking_in():
            taken = await self._ingest(process, params, source, emit)
            for text in taken.warnings:
                await emit(Warned(text))
            try:
                version, same = await self._published(ref, targets, taken)
            except BaseException:
                await trio.to_thread.run_sync(adopt.roll_back, service.store, taken.adopted)
                raise
        await emit(Published(str(version), version.tree.hex(), already=same))
        service.evicted.discard(version.tree)
        service.replicator.stopped.discard(version.tree)
        if await service.replicator.is_whole(TreeId(version.tree)):
            await service.replicator.note_whole(version.tree)
        moved = 0
        if params.move:
            note = f"{adopt.NOTE}{taken.source.root}"
            await trio.to_thread.run_sync(lambda: service.log.pins.add(version.tree, note=note))
            moved = await trio.to_thread.run_sync(adopt.leave_links, service.store, taken.adopted)
        if params.detach:
            assert self.nursery is not None
            limit = params.limit_bytes_per_second
            self.nursery.start_soon(self._finish_detached, process, version, taken, same, limit)
            return PushReport(
                str(ref), version.tree.hex(), source.size, len(source.files), already=same, id=process.id
            )
        return await self._watch(process, version, taken, emit, already=same, moved=moved)

    async def _published(self, ref: Ref, targets: list[bytes], taken: _Taken) -> tuple[RefVersion, bool]:
        """Return the version that names the tree: a new one, or the newest if that has the same content."""
        state = await self.service.mesh.state()
        newest = state.newest(ref.volume, ref.name)
        if newest is not None:
            same = await trio.to_thread.run_sync(self._same_content, newest.tree, taken.tree)
            if same and (not newest.to or (targets and set(targets) <= set(newest.to))):
                return newest, True
        return await self._publish(state, ref, targets, taken), False

    async def _finish_detached(
        self, process: Process, version: RefVersion, taken: _Taken, already: bool, limit: int
    ) -> None:
        async def silent(_: object) -> None:
            await trio.lowlevel.checkpoint()

        try:
            with process.scope, self.service.limited(limit):
                await self._watch(process, version, taken, silent, already=already, moved=0)
            if not process.finished.is_set():
                process.end("stopped")
        except TbshareError as error:
            process.end("failed", str(error))

    async def _ingest(self, process: Process, params: PushParams, source: Source, emit: Emit) -> _Taken:
        """Take the files in, in threads, and say how far it is."""
        service = self.service
        stop = threading.Event()
        done = _Counter()
        workers = max(1, min(4, os.cpu_count() or 1))
        if params.move and source.hub_cache:
            raise InputRefused("--move would break the Hugging Face cache", cure="push without --move")
        work = ingest.Ingest(service.store, workers=workers, stop=stop, advance=done.add, move=params.move)
        started = time.monotonic()
        process.bytes_total = source.size
        process.state = "reading"
        result: list[TreeId] = []

        async def take() -> None:
            result.append(await trio.to_thread.run_sync(work.source, source, abandon_on_cancel=False))
            nursery.cancel_scope.cancel()

        async def say() -> None:
            while True:
                await trio.sleep(WATCH_SECONDS)
                seconds = time.monotonic() - started
                process.bytes_done, process.rate = done.total, done.total / seconds
                await emit(Ingest(done.total, source.size, 0, len(source.files), "", process.rate))

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say)
                with _stop_on_cancel(stop):
                    nursery.start_soon(take)
                    await trio.sleep_forever()
        except* TbshareError as group:
            await trio.to_thread.run_sync(adopt.roll_back, service.store, work.adopted)
            raise _inner(group) from None
        tree = result[0]
        seconds = time.monotonic() - started
        await emit(
            Ingest(
                source.size,
                source.size,
                len(source.files),
                len(source.files),
                "",
                source.size / max(seconds, 1e-6),
            )
        )
        blocks, unique = await trio.to_thread.run_sync(self._count, tree)
        return _Taken(source, tree, seconds, work.warnings, blocks, unique, work.adopted)

    def _count(self, tree: TreeId) -> tuple[int, int]:
        """Return the number of blocks of a tree, and its bytes without repeats."""
        store, blocks, seen = self.service.store, 0, dict[bytes, int]()
        for object_id in store.objects_below(tree):
            found = store.manifest(object_id)
            assert found is not None
            blocks += found.block_count
            for number, length in enumerate(found.lengths):
                seen[found.block(number)] = length
        return blocks, sum(seen.values())

    def _same_content(self, one: bytes, other: bytes) -> bool:
        """Return whether two trees name the same bytes by the same names; times do not count."""
        if one == other:
            return True
        try:
            return self._plain(TreeId(one)) == self._plain(TreeId(other))
        except TbshareError:
            return False

    def _plain(self, tree: TreeId) -> bytes:
        listing = self.service.store.tree(tree)
        if listing is None:
            raise InputRefused("not here")
        entries = [
            Entry(
                entry.name,
                entry.kind,
                self._plain(TreeId(entry.target)) if entry.kind == EntryKind.TREE else entry.target,
                entry.size,
                entry.mode,
                0,
            )
            for entry in listing.entries
        ]
        return Tree(entries).id

    async def _publish(self, state: State, ref: Ref, targets: list[bytes], taken: _Taken) -> RefVersion:
        """Write the ref into the log."""
        service = self.service
        existing = state.newest(ref.volume, ref.name)
        op = RefSet(
            volume=existing.volume if existing else ref.volume,
            name=existing.name if existing else ref.name,
            rev=state.next_rev(ref.volume, ref.name),
            tree=taken.tree,
            size_bytes=taken.source.size,
            files=len(taken.source.files),
            to=tuple(targets),
            label=taken.source.revision,
            origin=str(taken.source.root)[:1024],
        )
        entry = await trio.to_thread.run_sync(service.log.append, [op])
        await service.mesh.grown([entry])
        state = await service.mesh.state()
        return next(version for version in state.versions(ref.volume, ref.name) if entry.hash in version.entries)

    # watching --------------------------------------------------------------------------------------------------

    async def _watch(
        self, process: Process, version: RefVersion, taken: _Taken | None, emit: Emit, *, already: bool, moved: int
    ) -> PushReport:
        """Follow the targets until each is durable, failed, or away for a while."""
        service = self.service
        process.state = "moving"
        started = time.monotonic()
        best_rate = 0.0
        event = trio.Event()
        watcher = _Watcher(service, version)
        while True:
            service.replicator.watchers.discard(event)
            event = trio.Event()
            service.replicator.watchers.add(event)
            nodes = await watcher.look()
            process.nodes = nodes
            process.bytes_total = sum(node.bytes_total for node in nodes)
            process.bytes_done = sum(node.bytes_present for node in nodes)
            process.rate = sum(node.rate for node in nodes)
            best_rate = max([best_rate, *(source.rate for node in nodes for source in node.sources)])
            await emit(Nodes(nodes))
            if all(node.state in FINAL for node in nodes):
                break
            await trio.sleep(WATCH_SECONDS / 5)
            with trio.move_on_after(WATCH_SECONDS):
                await event.wait()
        service.replicator.watchers.discard(event)
        seconds = time.monotonic() - started
        report = PushReport(
            ref=str(version),
            tree=version.tree.hex(),
            bytes=version.size_bytes,
            files=version.files,
            already=already,
            id=process.id,
            seconds=time.time() - process.started,
            seconds_ingest=taken.seconds if taken else 0.0,
            seconds_moving=seconds,
            rate_best=best_rate,
            nodes=nodes,
            blocks_total=taken.blocks if taken else 0,
            bytes_unique=taken.bytes_unique if taken else 0,
            pending=[node.name for node in nodes if node.state == "away"],
            failed=[node.name for node in nodes if node.state in ("failed", "declined")],
            files_moved=moved,
        )
        process.report = report
        process.end("pending" if report.pending or report.failed else "done")
        return report

    async def pull(self, params: PullParams, emit: Emit) -> PushReport:
        """Fetch a ref to this node and pin it."""
        service = self.service
        state = await service.mesh.state()
        version = state.resolve(params.ref)
        await trio.to_thread.run_sync(lambda: service.log.pins.add(version.tree, note=params.ref))
        service.evicted.discard(version.tree)
        service.replicator.stopped.discard(version.tree)
        service.replicator.limits[version.tree] = params.limit_bytes_per_second
        service.replicator.poke()
        process = service.processes.begin("pull", params.ref)
        await emit(Started(process.id))
        watcher_only_here = PullView(self, version)
        return await watcher_only_here.run(process, emit, detach=params.detach)

    async def _undo(self, params: PushParams) -> PushReport:
        """Put files that were moved into the store back; the pins that kept them go with the last one."""
        service = self.service
        root = Path(params.path)
        moved = await trio.to_thread.run_sync(adopt.undo, service.store, root)
        for pin in service.log.pins.list():
            if pin.note == f"{adopt.NOTE}{root}":
                await trio.to_thread.run_sync(service.log.pins.remove, pin.id)
        return PushReport(params.path, "", files_moved=moved)


class PullView:
    """Follows one tree's way to this node."""

    def __init__(self, pushes: Pushes, version: RefVersion) -> None:
        self.pushes, self.version = pushes, version

    async def run(self, process: Process, emit: Emit, *, detach: bool) -> PushReport:
        """Watch until it is here or has failed."""
        service, tree = self.pushes.service, self.version.tree
        watcher = _Watcher(service, self.version, only={service.identity.node})
        started = time.monotonic()
        with process.scope:
            while True:
                nodes = await watcher.look()
                process.nodes = nodes
                await emit(Nodes(nodes))
                if nodes[0].state in FINAL or detach:
                    break
                await trio.sleep(WATCH_SECONDS)
        if process.scope.cancelled_caught:
            service.replicator.stopped.add(tree)
            service.replicator.poke()
            process.end("stopped")
            raise Interrupted(f"{process.id} was stopped", cure="tbshare pull again: it goes on where it was")
        failed = nodes[0].state == "failed"
        report = PushReport(
            ref=str(self.version),
            tree=tree.hex(),
            bytes=self.version.size_bytes,
            files=self.version.files,
            id=process.id,
            seconds=time.monotonic() - started,
            seconds_moving=time.monotonic() - started,
            nodes=nodes,
            failed=[nodes[0].name] if failed else [],
        )
        process.report = report
        process.end("failed" if failed else "done", nodes[0].reason)
        return report


class _Watcher:
    """Looks at how far each target of a version is."""

    def __init__(self, service: Service, version: RefVersion, only: set[bytes] | None = None) -> None:
        self.service, self.version, self.only = service, version, only
        self.missing_since: dict[bytes, float] = {}
        # What these have was there before: an earlier push's count of moved bytes is not this one's.
        self.whole_before = {peer.node for peer in service.mesh.peers.values() if version.tree in peer.keeps}

    async def look(self) -> list[NodeProgress]:
        """Return one line for each target, this node left out unless it is the only one."""
        state = await self.service.mesh.state()
        me = self.service.identity.node
        if self.only is not None:
            targets = list(self.only)
        elif self.version.to:
            targets = [node for node in self.version.to if node in state.members and node != me]
        else:
            targets = [node for node in state.members if node != me]
        lines = [self._line(node, state.members[node].name) for node in targets]
        if not self.version.to and self.only is None:
            lines = [line for line in lines if line.state != "on-demand"]
        return sorted(lines, key=lambda line: line.name)

    def _line(self, node: bytes, name: str) -> NodeProgress:
        return self._own_line(node, name) if node == self.service.identity.node else self._peer_line(node, name)

    def _own_line(self, node: bytes, name: str) -> NodeProgress:
        service, tree, total = self.service, self.version.tree, self.version.size_bytes
        job = service.replicator.jobs.get(tree)
        if tree in service.replicator.whole:
            return NodeProgress(name, node.hex(), "durable", total, total)
        if job is None:
            return NodeProgress(name, node.hex(), "waiting", total)
        return self._moving(node, name, job.fetch.progress(), failed=job.failures > 1)

    def _peer_line(self, node: bytes, name: str) -> NodeProgress:
        service, tree, total = self.service, self.version.tree, self.version.size_bytes
        peer = service.mesh.peers.get(node)
        if peer is None:
            since = self.missing_since.setdefault(node, time.monotonic())
            away = time.monotonic() - since > AWAY_SECONDS or node not in service.mesh.seen
            return NodeProgress(name, node.hex(), "away" if away else "waiting", total, reason="not connected")
        self.missing_since.pop(node, None)
        message = service.replicator.others.get((tree, node))
        whole = tree in peer.keeps
        if message is not None and not (whole and node in self.whole_before):
            return self._moving(node, name, message, state="durable" if whole else "")
        if whole:
            return NodeProgress(name, node.hex(), "durable", total, total, 0, total)
        on_demand = not self.version.to and peer.hello.accept != "all"
        return NodeProgress(name, node.hex(), "on-demand" if on_demand else "waiting", total)

    def _moving(
        self, node: bytes, name: str, message: Progress, *, state: str = "", failed: bool = True
    ) -> NodeProgress:
        names = {peer.node: peer.hello.name for peer in self.service.mesh.peers.values()}
        names[self.service.identity.node] = self.service.name()
        sources = [
            SourceLine(names.get(source.node, source.node[:4].hex()), source.rate, source.bytes)
            for source in message.sources
        ]
        rate = sum(source.rate for source in sources)
        left = message.bytes_total - message.bytes_present
        shown = state or message.state
        if shown == "failed" and not failed:
            shown = "waiting"
        return NodeProgress(
            name=name,
            id=node.hex(),
            state=shown,
            bytes_total=message.bytes_total or self.version.size_bytes,
            bytes_present=message.bytes_present,
            bytes_moved=message.bytes_moved,
            bytes_reused=message.bytes_reused,
            rate=rate if shown == "fetching" else 0.0,
            eta_seconds=left / rate if rate > 0 and shown == "fetching" else None,
            sources=sources,
            reason=message.reason,
        )


class _Counter:
    """A sum that worker threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0

    def add(self, count: int) -> None:
        """Add."""
        with self._lock:
            self.total += count


class _stop_on_cancel:  # noqa: N801 - used as a statement
    """Set an event when the block is left by an exception: a cancellation reaches the threads so."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._stop.set()


def _inner(group: BaseExceptionGroup[TbshareError]) -> TbshareError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, TbshareError)
    return error
