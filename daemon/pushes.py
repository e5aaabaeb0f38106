"""Push and pull: a path becomes a ref, the ref comes to the nodes, and the user watches."""

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from tbshare.content.block import TreeId
from tbshare.content.ref import Ref, folded, name_from_directory, parse_ref
from tbshare.content.tree import Entry, Tree
from tbshare.content.tree import Kind as EntryKind
from tbshare.daemon.control import Emit
from tbshare.daemon.processes import Process
from tbshare.daemon.service import MODELS, Service
from tbshare.daemon.watching import PushExtra, Watcher, silent
from tbshare.errors import (
    InputRefused,
    Interrupted,
    NotPermitted,
    TbshareError,
    UsageError,
    innermost,
)
from tbshare.store import adopt, ingest
from tbshare.store.source import Choice, Source, clashes, hub_cache_path, scan
from tbshare.volumes.catalogue import MODELS_ID, WRITERS
from tbshare.volumes.entry import RefSet
from tbshare.volumes.fold import RefVersion, State
from tbshare.wire.local import PullParams, PushParams
from tbshare.wire.report import (
    Ingest,
    Noted,
    Published,
    PushReport,
    SpaceLine,
    Started,
    Warned,
)

CLASHES_SHOWN = 5
SAY_SECONDS = 0.25  # between two events about how far ingest is


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
        me, volume = self.service.identity.node, state.volumes.get(folded(ref.volume))
        role = state.role(me, volume.id if volume is not None else MODELS_ID)
        if me in state.members and role not in WRITERS:
            raise NotPermitted(f"this node may only {role}", cure="push from a node that may publish")
        reason = state.why_read_only(ref.volume)
        if reason:
            raise NotPermitted(reason, cure="upgrade tbshare on this node")
        self._check_volume(state, ref)
        await self._space(state, targets, source.size, emit)
        if params.dry_run:
            return PushReport(str(ref), "", source.size, len(source.files), dry_run=True)
        process = self.service.processes.begin("push", str(ref))
        await emit(Started(process.id))
        with process.ending(unless=lambda: process.handed_over):
            with process.scope, self.service.limited(params.limit_bytes_per_second):
                return await self._push(process, params, ref, targets, source, emit)
            raise Interrupted(f"{process.id} was stopped", cure="push again: it goes on where it was")

    # the steps -------------------------------------------------------------------------------------------------

    async def _scan(self, params: PushParams, emit: Emit) -> Source:
        path = Path(params.path)
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
        for text in (await trio.to_thread.run_sync(clashes, source))[:CLASHES_SHOWN]:
            await emit(Warned(f"{text} are one name to a Mac: it will show only one of them"))
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
        if volume.mode != "models":
            raise UsageError(
                f"volume {volume.name} holds files, no published trees", cure=f"tbshare cp -r PATH {volume.name}:/"
            )

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
                await self._roll_back(taken.adopted)
                raise
        watcher = Watcher(service, version)
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
        extra = PushExtra(same, taken.seconds, taken.blocks, taken.bytes_unique, moved)
        process.state = "moving"
        process.on_stop = partial(_refuse_stop, version)
        limit = params.limit_bytes_per_second
        if params.detach:
            self._hand_over(process, watcher, extra, limit)
            return PushReport(
                str(version), version.tree.hex(), source.size, len(source.files), already=same, id=process.id
            )
        try:
            return await watcher.follow(process, emit, extra)
        except trio.Cancelled:  # the terminal was left; the ref is published, and its targets go on
            if not process.finished.is_set():
                self._hand_over(process, watcher, extra, limit)
            raise

    def _hand_over(self, process: Process, watcher: Watcher, extra: PushExtra, limit: int) -> None:
        """Let a push whose ref is published go on without the call that began it."""
        assert self.nursery is not None
        process.handed_over = True
        process.scope = trio.CancelScope()  # that of the call ends with it
        self.nursery.start_soon(self._push_detached, process, watcher, extra, limit)

    async def _published(self, ref: Ref, targets: list[bytes], taken: _Taken) -> tuple[RefVersion, bool]:
        """Return the version that names the tree: a new one, or the newest if that has the same content."""
        state = await self.service.mesh.state()
        newest = state.newest(ref.volume, ref.name)
        if newest is not None:
            same = await trio.to_thread.run_sync(self._same_content, newest.tree, taken.tree)
            if same and (not newest.to or (targets and set(targets) <= set(newest.to))):
                return newest, True
        return await self._publish(state, ref, targets, taken), False

    async def _push_detached(self, process: Process, watcher: Watcher, extra: PushExtra, limit: int) -> None:
        with contextlib.suppress(TbshareError), process.ending():
            with process.scope, self.service.limited(limit):
                await watcher.follow(process, silent, extra)
                return
            raise Interrupted(f"{process.id} was stopped")

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
            result.append(await trio.to_thread.run_sync(work.source, source))
            nursery.cancel_scope.cancel()

        async def say() -> None:
            while True:
                await trio.sleep(SAY_SECONDS)
                seconds = time.monotonic() - started
                process.bytes_done, process.rate = done.total, done.total / seconds
                await emit(Ingest(done.total, source.size, 0, len(source.files), "", process.rate))

        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say)
                nursery.start_soon(take)
                try:
                    await trio.sleep_forever()
                finally:
                    stop.set()  # a cancellation reaches the threads so
        except* TbshareError as group:
            failure = innermost(group)
        finally:
            if not result:
                await self._roll_back(work.adopted)
        if failure is not None:
            raise failure
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

    async def _roll_back(self, adopted: list[adopt.Adopted]) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(adopt.roll_back, self.service.store, adopted)

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
            origin=os.fsencode(taken.source.root).decode("utf-8", "backslashreplace")[:1024],
        )
        entry = await trio.to_thread.run_sync(service.log.append, [op])
        await service.mesh.grown([entry])
        state = await service.mesh.state()
        return next(version for version in state.versions(ref.volume, ref.name) if entry.hash in version.entries)

    async def pull(self, params: PullParams, emit: Emit) -> PushReport:
        """Fetch a ref to this node and pin it."""
        service = self.service
        state = await service.mesh.state()
        version = state.resolve(params.ref)
        tree, text = version.tree, str(version)
        if not any(pin.note == text for pin in service.log.pins.list(tree)):
            await trio.to_thread.run_sync(lambda: service.log.pins.add(tree, note=text))
        service.evicted.discard(tree)
        service.replicator.stopped.discard(tree)
        service.replicator.limits[tree] = params.limit_bytes_per_second
        watcher = Watcher(service, version, only=service.identity.node)
        service.replicator.poke()
        process = service.processes.begin("pull", text)
        await emit(Started(process.id))
        if params.detach:
            assert self.nursery is not None
            self.nursery.start_soon(self._pull_detached, process, watcher)
            return PushReport(text, tree.hex(), version.size_bytes, version.files, id=process.id)
        return await self._pull(process, watcher, emit)

    async def _pull(self, process: Process, watcher: Watcher, emit: Emit) -> PushReport:
        with process.ending():
            with process.scope:
                return await watcher.follow(process, emit)
            self.service.replicator.stopped.add(watcher.version.tree)
            self.service.replicator.poke()
            raise Interrupted(f"{process.id} was stopped", cure="tbshare pull again: it goes on where it was")

    async def _pull_detached(self, process: Process, watcher: Watcher) -> None:
        with contextlib.suppress(TbshareError):  # whoever waits for it hears of it
            await self._pull(process, watcher, silent)

    async def _undo(self, params: PushParams) -> PushReport:
        """Put files that were moved into the store back; the pins that kept them go with the last one."""
        service = self.service
        root = Path(params.path.replace("\0", ""))
        moved = await trio.to_thread.run_sync(adopt.undo, service.store, root)
        for pin in service.log.pins.list():
            if pin.note == f"{adopt.NOTE}{root}":
                await trio.to_thread.run_sync(service.log.pins.remove, pin.id)
        return PushReport(params.path, "", files_moved=moved)


def _refuse_stop(version: RefVersion) -> None:
    raise UsageError(
        f"{version} is published: its targets fetch it from whoever has it, and go on",
        cure=f"tbshare rm {version} takes it back everywhere",
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
