"""What mounts of this node ask: listings, changes of names, where bytes are, and what to forget.

A mount keeps listings for as long as nobody tells it otherwise. So it is told whatever a commit touched, its own
commits excepted: those it mends itself, from the answer.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TypeVar

import msgspec
import trio

from tbshare.content.block import ObjectId, TreeId
from tbshare.content.ref import folded
from tbshare.daemon.control import Emit
from tbshare.daemon.lazy import Reading
from tbshare.daemon.mount_changes import MountChanges, item_of, published_item_of, runs_of
from tbshare.daemon.ref_files import RefFiles
from tbshare.daemon.service import Service
from tbshare.errors import BlockCorrupt, NotPermitted, ObjectMissing, PathMissing, UsageError, VolumeUnknown
from tbshare.store import disk
from tbshare.store.views import runs_code
from tbshare.volumes.fold import State
from tbshare.volumes.fold import Volume as VolumeState
from tbshare.volumes.item import Item, Path
from tbshare.volumes.rows import Changes
from tbshare.volumes.tables import Tables
from tbshare.volumes.volume import Handle
from tbshare.wire import mount as wire
from tbshare.wire.report import Done, MountLine

ITEMS_AT_ONCE = 2000  # in one event of a listing; with the largest attributes they are told apart
ITEMS_BYTES_AT_ONCE = 512 * 1024
WAITING_MAX = 4096  # commits that a mount may be behind before it is told to forget everything
IDS_MAX = 4096  # in one event
SIDE_BY_SIDE = 24  # changes of one batch
SMALL_MAX = 256  # objects whose bytes are told with the answer to an open
SMALL_BYTES = 16 * 1024  # of one of them
_T = TypeVar("_T")


class Mounts:
    """Answers mounts."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.attached: dict[int, _Attached] = {}
        self._own = _Own()
        self._side_by_side = trio.CapacityLimiter(SIDE_BY_SIDE)
        self._changes = MountChanges(service)
        self._told: object = None
        self._refs_told: dict[int, object] = {}
        service.volumes.changes.append(self._changed)
        service.mesh.on_state(self._state_changed)

    def lines(self) -> list[MountLine]:
        """Return the mounts there are, for `status`."""
        return [
            MountLine(
                each.params.directory, each.params.pid, each.params.front, each.params.lacking, each.params.volumes
            )
            for each in self.attached.values()
        ]

    # attaching -------------------------------------------------------------------------------------------------

    async def attach(self, params: wire.MountAttachParams, emit: Emit) -> Done:
        """Tell a mount what to forget, for as long as it lasts."""
        number = secrets.randbits(62)  # another daemon's mounts are none of ours
        attached = _Attached(params, trio.lowlevel.current_trio_token())
        self.attached[number] = attached
        try:
            await emit(wire.MountVolumesChanged(number))
            while True:
                await attached.filled.wait()
                attached.filled = trio.Event()
                waiting, lost = attached.take()
                if attached.take_volumes_changed():
                    await emit(wire.MountVolumesChanged(number))
                for volume, changes in waiting.items():
                    event = await trio.to_thread.run_sync(self._forget, volume, changes)
                    await emit(event)
                if lost:
                    for volume in lost:
                        await emit(wire.MountForget(volume))
        finally:
            del self.attached[number]

    def _forget(self, volume: int, changes: Changes) -> wire.MountForget:
        """Return what a mount has to ask for again after a fold."""
        if changes.anew or len(changes.files) + len(changes.directories) > IDS_MAX:
            return wire.MountForget(volume)
        try:
            tables = self.service.volumes.tables(volume)
        except UsageError:
            return wire.MountForget(volume)
        directories = set(changes.directories)
        for file in changes.files:
            directories |= {name.parent for name in tables.names_of(file)}
        directories |= set(_above(tables, changes.directories))
        return wire.MountForget(volume, sorted(directories), sorted(changes.files | changes.directories))

    def _changed(self, volume: int, changes: Changes) -> None:
        """Note what a fold touched, for all mounts; called by whatever thread commits."""
        own = self._own.take(self.service.log.committing, changes)
        for number, attached in list(self.attached.items()):
            if number != own:
                attached.put(volume, changes)

    async def _state_changed(self, state: State) -> None:
        told = [(each.id, each.name, each.policy, each.removed) for each in state.volumes_by_id.values()]
        told_now = (told, state.rights, state.members, state.read_only)
        if self._told is not None and told_now != self._told:
            for attached in list(self.attached.values()):
                attached.note_volumes_changed()
        self._told = told_now
        for volume in state.volumes.values():
            if volume.mode != "models":
                continue
            key = folded(volume.name)
            refs = {name: versions for (where, name), versions in state.refs.items() if where == key}
            if self._refs_told.get(volume.id, refs) != refs:
                for attached in list(self.attached.values()):
                    attached.put(volume.id, Changes(anew=True))
            self._refs_told[volume.id] = refs

    # what there is ---------------------------------------------------------------------------------------------

    async def volumes(self) -> wire.MountVolumeList:
        """Return the volumes, and what room there is."""
        return await trio.to_thread.run_sync(self._volumes)

    def _volumes(self) -> wire.MountVolumeList:
        service = self.service
        state, node = service.log.state(), service.identity.node
        lines = [
            self._volume(state, volume) for volume in state.volumes.values() if state.may_read(node, volume.id)
        ]
        free, whole = disk.free_bytes(service.store.home.root)
        room = min(service.store.room_bytes(), free)
        return wire.MountVolumeList(lines, whole, room)

    def _volume(self, state: State, volume: VolumeState) -> wire.MountVolume:
        if volume.mode == "models":
            versions = [
                each for (name, _), known in state.refs.items() if name == folded(volume.name) for each in known
            ]
            return wire.MountVolume(
                volume.id,
                volume.name,
                volume.mode,
                f"{volume.name} holds refs, which are pushed",
                True,
                sum(each.files for each in versions),
                sum(each.size_bytes for each in versions),
            )
        handle = self.service.volumes.open_id(volume.id)
        totals = handle.totals()
        return wire.MountVolume(
            volume.id,
            volume.name,
            volume.mode,
            handle.why_read_only,
            volume.policy.case == "sensitive",
            totals.files,
            totals.size_bytes,
            totals.quota_bytes,
        )

    def handle(self, volume: int) -> Handle:
        """Return a volume that has files; VolumeUnknown, NotPermitted. Touches the disk."""
        state = self._check(volume)
        if state.volumes_by_id[volume].removed:
            raise VolumeUnknown(f"volume {state.volumes_by_id[volume].name} was removed", cure="tbshare volume ls")
        return self.service.volumes.open_id(volume)

    def _check(self, volume: int) -> State:
        state = self.service.log.state()
        known = state.volume_by_id(volume)
        if known is None:
            raise VolumeUnknown(f"there is no volume {volume:016x}", cure="tbshare volume ls")
        if not state.may_read(self.service.identity.node, volume):
            raise NotPermitted(f"this node may not read volume {known.name}", cure="tbshare volume ls")
        return state

    # listing ---------------------------------------------------------------------------------------------------

    async def listed(self, params: wire.MountListParams, emit: Emit) -> wire.MountListing:
        """Return a directory and what is in it."""
        listing = await self._look(params, listed=True)
        items = listing.items
        while len(items) > ITEMS_AT_ONCE or _weight(items) > ITEMS_BYTES_AT_ONCE:
            count = _fitting(items)
            await emit(wire.MountItems(items[:count]))
            items = items[count:]
        return wire.MountListing(listing.item, items)

    async def lookup(self, params: wire.MountListParams) -> wire.MountListing:
        """Return what has a path."""
        return await self._look(params, listed=False)

    async def _look(self, params: wire.MountListParams, *, listed: bool) -> wire.MountListing:
        """Look in a thread; the listing of a bundle or a ref that is away is fetched first."""
        try:
            return await trio.to_thread.run_sync(self._found, params, listed)
        except ObjectMissing:
            if not await self._fetch_listing(params.volume, params.path):
                raise
        return await trio.to_thread.run_sync(self._found, params, listed)

    async def _fetch_listing(self, volume: int, path: Path) -> bool:
        """Fetch what says what is in a bundle or a ref; False when there is nothing to fetch."""
        state = await trio.to_thread.run_sync(self._check, volume)
        known = state.volumes_by_id[volume]
        if known.mode == "models":
            version = RefFiles(self.service, state, known).version_at(path)
            if version is None:
                return False
            await self.service.records.tree(TreeId(version.tree), version.volume)
            return True
        handle = self.service.volumes.open_id(volume)
        for depth in range(1, len(path) + 1):
            item = await trio.to_thread.run_sync(handle.find, path[:depth])
            if item is None:
                return False
            if item.kind == "bundle":
                await self.service.spread.need(volume, item.file, item.version)
                return True
        return False

    def _found(self, params: wire.MountListParams, listed: bool) -> wire.MountListing:
        state = self._check(params.volume)
        volume, path = state.volumes_by_id[params.volume], params.path
        if volume.mode == "models":
            return self._published(RefFiles(self.service, state, volume), params, listed)
        handle = self.handle(params.volume)
        item = handle.lookup(path)
        items: Sequence[Item] = handle.list(path) if listed and item.is_directory else ()
        return wire.MountListing(item_of(item), [item_of(each) for each in items])

    def _published(self, refs: RefFiles, params: wire.MountListParams, listed: bool) -> wire.MountListing:
        item = refs.lookup(params.path)
        if item.kind != "directory" and runs_code(item.name) and not params.allow_code:
            raise PathMissing(f"{os.fsdecode(item.name)} runs code", cure="tbshare mount --allow-code")
        items = refs.children(params.path) if listed and item.kind == "directory" else ()
        told = [
            published_item_of(each)
            for each in items
            if each.kind == "directory" or params.allow_code or not runs_code(each.name)
        ]
        return wire.MountListing(published_item_of(item), told)

    # changing --------------------------------------------------------------------------------------------------

    async def change(self, params: wire.MountChangeParams) -> wire.MountChangeResult:
        """Do what a mount was asked for: in order where that matters, side by side where it does not.

        What is done side by side shares commits, and so waits for the disk once.
        """
        locked = self.service.locks.holders(params.volume)
        changed = [wire.MountChanged()] * len(params.changes)
        touched: list[Changes] = []

        async def one(place: int) -> None:
            changed[place], own = await trio.to_thread.run_sync(
                self._change, params, place, locked, limiter=self._side_by_side
            )
            touched.extend(own)

        for run in runs_of(params.changes):
            async with trio.open_nursery() as nursery:
                for place in run:
                    nursery.start_soon(one, place)
        known = {*params.known, *(each.item.file for each in changed if each.item is not None)}
        attached = self.attached.get(params.attached)
        for each in touched:
            left = Changes(each.files - known, each.directories - known, anew=each.anew)
            if attached is not None and (left or left.anew):
                attached.put(params.volume, left)
        return wire.MountChangeResult(changed)

    def _change(
        self, params: wire.MountChangeParams, place: int, locked: Mapping[int, bytes]
    ) -> tuple[wire.MountChanged, list[Changes]]:
        handle = self.handle(params.volume)
        with self._own.of(params.attached) as own:
            return self._changes.done(handle, params.changes[place], locked), own

    def commit_of(self, attached: int, volume: int, work: Callable[[], _T], mended: Callable[[_T], bool]) -> _T:
        """Commit something for a mount, which is told of it only if it does not mend itself. In a thread."""
        with self._own.of(attached) as own:
            result = work()
        there = self.attached.get(attached)
        if there is not None and not mended(result):
            for each in own:
                there.put(volume, each)
        return result

    # reading ---------------------------------------------------------------------------------------------------

    async def open(self, params: wire.MountOpenParams) -> wire.MountOpened:
        """Say where the bytes of a version are that can be read now."""
        await trio.to_thread.run_sync(self._check, params.volume)
        reading = Reading(params.volume, params.file, params.version, params.content)
        opened = await self.service.lazy.open(reading, params.size, prepare=not params.also)
        if not params.also:
            return opened
        return msgspec.structs.replace(opened, also=await trio.to_thread.run_sync(self._small, params.also))

    def _small(self, objects: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the bytes of those of these small objects that are here."""
        store, found = self.service.store, dict[bytes, bytes]()
        for content in objects[:SMALL_MAX]:
            with contextlib.suppress(ObjectMissing, BlockCorrupt):  # who opens it is told
                manifest = store.manifest(ObjectId(content))
                if manifest is not None and manifest.size <= SMALL_BYTES and manifest.block_count == 1:
                    found[content] = store.read_block(ObjectId(content), 0)
        return found

    async def need(self, params: wire.MountNeedParams) -> wire.MountOpened:
        """Have bytes of a version here."""
        await trio.to_thread.run_sync(self._check, params.volume)
        reading = Reading(params.volume, params.file, params.version, params.content)
        also = params.also[:SMALL_MAX]
        if also:
            pairs = [(params.file, params.version), *[(file, version) for file, version, _ in also]]
            with trio.move_on_after(params.seconds):
                await self.service.spread.bring(params.volume, pairs)
        opened = await self.service.lazy.need(
            reading,
            params.start,
            params.length,
            ahead=params.ahead,
            waiting=params.waiting,
            seconds=params.seconds,
        )
        if not also:
            return opened
        objects = [content for _, _, content in also]
        return msgspec.structs.replace(opened, also=await trio.to_thread.run_sync(self._small, objects))


class _Attached:
    """One mount. What it has to be told is put in by any thread, and taken out by its task."""

    def __init__(self, params: wire.MountAttachParams, token: trio.lowlevel.TrioToken) -> None:
        self.params = params
        self.filled = trio.Event()
        self._token = token
        self._lock = threading.Lock()
        self._waiting: dict[int, Changes] = {}
        self._count = 0
        self._lost: set[int] = set()
        self._volumes_changed = False

    def put(self, volume: int, changes: Changes) -> None:
        """Add what was touched."""
        with self._lock:
            self._count += 1
            if volume in self._lost:
                return
            if changes.anew or self._count > WAITING_MAX:
                self._lost.add(volume)
                self._waiting.pop(volume, None)
            else:
                known = self._waiting.setdefault(volume, Changes())
                known.files |= changes.files
                known.directories |= changes.directories
        self._wake()

    def take(self) -> tuple[dict[int, Changes], set[int]]:
        """Return what was touched since the last call, and the volumes of which all is to be forgotten."""
        with self._lock:
            waiting, self._waiting, self._count = self._waiting, {}, 0
            lost, self._lost = self._lost, set()
            return waiting, lost

    def note_volumes_changed(self) -> None:
        """Have it told that it must ask for the volumes again."""
        self._volumes_changed = True
        self._wake()

    def take_volumes_changed(self) -> bool:
        """Return whether it must."""
        changed, self._volumes_changed = self._volumes_changed, False
        return changed

    def _wake(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # the daemon ends
            self._token.run_sync_soon(lambda: self.filled.set())


class _Own:
    """For which mount a thread commits, and what was touched. Threads that wait for the log share a commit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_thread: dict[int, tuple[int, list[Changes]]] = {}

    @contextlib.contextmanager
    def of(self, attached: int) -> Generator[list[Changes], None, None]:
        """Gather what is touched for this thread inside the block; it is told to the other mounts only."""
        thread, changes = threading.get_ident(), list[Changes]()
        with self._lock:
            self._by_thread[thread] = attached, changes
        try:
            yield changes
        finally:
            with self._lock:
                del self._by_thread[thread]

    def take(self, threads: frozenset[int], changes: Changes) -> int:
        """Note what a commit of these threads touched; return the mount that all of it is of, else 0."""
        with self._lock:
            found = [self._by_thread[thread] for thread in threads if thread in self._by_thread]
        numbers = {number for number, _ in found}
        if len(found) < len(threads) or len(numbers) != 1:
            return 0
        for _, gathered in found:
            gathered.append(changes)
        return numbers.pop()


def _above(tables: Tables, directories: set[int]) -> Generator[int, None, None]:
    for number in directories:
        row = tables.directory(number)
        if row is not None:
            yield row.parent


def _weight(items: Sequence[wire.MountItem]) -> int:
    return sum(sum(map(len, item.xattrs.values())) for item in items if item.xattrs)


def _fitting(items: Sequence[wire.MountItem]) -> int:
    """Return how many of the first items go into one event."""
    size = 0
    for count, item in enumerate(items[:ITEMS_AT_ONCE]):
        size += sum(map(len, item.xattrs.values())) if item.xattrs else 0
        if size > ITEMS_BYTES_AT_ONCE:
            return max(count, 1)
    return min(len(items), ITEMS_AT_ONCE)
