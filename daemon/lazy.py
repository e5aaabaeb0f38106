"""Bytes that are not here come when they are read: first what a reader waits for, then what it will read next.

What is read of one version of a file, or of one published tree, goes through one `Ranges`, which lasts until
nobody has read from it for a while; what came stays in the partial file, and is found there again.
"""

import contextlib
import itertools
import logging
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from tbshare.content.block import BLOCK_BYTES, LEAF_BYTES, ObjectId, TreeId, named_hash
from tbshare.content.manifest import Manifest
from tbshare.content.read_ahead import ReadAhead
from tbshare.content.ref import folded
from tbshare.daemon.copies import rows_of
from tbshare.daemon.reading import pieces_of
from tbshare.daemon.replicate import Replicator
from tbshare.daemon.spread import Spread
from tbshare.errors import BlockCorrupt, ObjectMissing, TbshareError, UsageError, VolumeUnknown
from tbshare.peers.lanes import Lanes
from tbshare.peers.mesh import Mesh
from tbshare.peers.ranges import Ranges
from tbshare.peers.records import RecordFetcher
from tbshare.store.arriving import SMALL_BYTES
from tbshare.store.readable import Readable, header_blocks, keep_header, read_range, readable
from tbshare.store.store import Store
from tbshare.volumes.catalogue import Volume
from tbshare.volumes.fold import State
from tbshare.volumes.rows import VersionRow
from tbshare.wire.message import Want
from tbshare.wire.mount import MountExtent, MountOpened

_log = logging.getLogger("tbshare.daemon.lazy")
LAZY_CONTEXT: Final = "tbshare 2026-11-24 versions that are read"
SECONDS: Final = 30.0  # for bytes to come
IDLE_SECONDS: Final = 600.0  # without a reader: then what is known of the peers is forgotten
ACTIVE_MAX: Final = 64  # versions and trees that are read at once; of more, idle ones are forgotten sooner
REAP_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 0.02  # between looks at what is just being finished
RETRY_SECONDS: Final = 0.25  # between questions for a manifest that nobody has
TREES_MAX: Final = 64  # published trees whose objects are remembered


@dataclass(frozen=True)
class Reading:
    """What is read: an object of a version of a file; in a volume of published trees of any of them."""

    volume: int
    file: int
    version: int
    content: bytes

    @property
    def object(self) -> ObjectId:
        """The object."""
        return ObjectId(self.content)


Key = bytes | tuple[int, int, int]  # a published tree; or volume, file and version


@dataclass(eq=False)
class _Active:
    key: Key
    ranges: Ranges
    scope: trio.CancelScope


class Lazy:
    """Has bytes here when they are asked for; in the trio thread."""

    def __init__(
        self,
        store: Store,
        mesh: Mesh,
        lanes: Lanes,
        records: RecordFetcher,
        spread: Spread,
        replicator: Replicator,
    ) -> None:
        self.store, self.mesh, self.lanes, self.records = store, mesh, lanes, records
        self.spread, self.replicator = spread, replicator
        self._active: OrderedDict[Key, _Active] = OrderedDict()
        self._numbers = itertools.count()
        self._trees: OrderedDict[bytes, frozenset[bytes]] = OrderedDict()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Own what is read, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await trio.sleep(REAP_SECONDS)
                self._reap()

    def _reap(self) -> None:
        """End what nobody reads from any more."""
        for active in list(self._active.values()):
            idle_seconds = time.monotonic() - active.ranges.used_at
            crowded = len(self._active) > ACTIVE_MAX and idle_seconds > REAP_SECONDS
            if not active.ranges.users and (crowded or idle_seconds > IDLE_SECONDS):
                self._forget(active)

    def _forget(self, active: _Active) -> None:
        active.scope.cancel()
        del self._active[active.key], self.replicator.readers[active.ranges.tree]

    # for a mount -----------------------------------------------------------------------------------------------

    async def open(self, reading: Reading, size: int, *, prepare: bool = True) -> MountOpened:
        """Return what can be read now, and prepare for reading the rest; `size` is the object's, as is said."""
        found = await trio.to_thread.run_sync(self.store.manifest, reading.object)
        if found is None:
            if prepare:
                self._prepare(reading)
            return MountOpened(size, False)
        now = await trio.to_thread.run_sync(readable, self.store, found)
        if not now.whole and prepare:
            self._prepare(reading)
        return _opened(found, now)

    def _prepare(self, reading: Reading) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._prepare_now, reading)

    async def _prepare_now(self, reading: Reading) -> None:
        """Learn who holds it, and have a lane from them, before the first read."""
        try:
            with trio.move_on_after(SECONDS):
                await (await self._ranges(reading)).need(await self._found(reading), 0, 0)
        except (TbshareError, OSError) as error:
            _log.info("%s cannot be read now: %s", reading.content.hex()[:12], error)

    async def need(
        self,
        reading: Reading,
        start: int,
        length: int,
        *,
        ahead: int = 0,
        waiting: bool = True,
        seconds: float = SECONDS,
    ) -> MountOpened:
        """Have these bytes here, verified, and return what can be read then of them and around them.

        `ahead` more are fetched and not waited for; `waiting` goes before all bulk. ObjectMissing after `seconds`.
        """
        found, now = await self._here(reading, start, start + length, ahead, waiting=waiting, seconds=seconds)
        return _opened(found, now)

    async def pieces(self, reading: Reading, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes [start, end) of an object; only these are fetched, a little ahead of who takes them.

        ObjectMissing as soon as nobody that is connected has them, or when they do not come for SECONDS.
        """
        position, seen = start, ReadAhead()
        while position < end:
            size = min(end - position, max(LEAF_BYTES, min(seen.window, BLOCK_BYTES)))
            seen = seen.after(position, size)
            ahead = min(seen.window, end - position - size)
            try:
                _, now = await self._here(reading, position, position + size, ahead, gives_up=True)
                if now.whole:
                    break
                yield await trio.to_thread.run_sync(read_range, now.extents, position, position + size)
            except FileNotFoundError:  # it has just become whole
                continue
            position += size
        if position == end:
            return
        pieces = pieces_of(self.store, reading.content, position, end)
        while (piece := await trio.to_thread.run_sync(next, pieces, None)) is not None:
            yield piece

    # how -------------------------------------------------------------------------------------------------------

    async def _here(
        self,
        reading: Reading,
        start: int,
        end: int,
        ahead: int,
        *,
        waiting: bool = True,
        gives_up: bool = False,
        seconds: float = SECONDS,
    ) -> tuple[Manifest, Readable]:
        with trio.move_on_after(seconds):
            found = await self._found(reading, gives_up=gives_up)
            start, end = _widened(found, start, end)
            asked_ahead = False
            while True:
                now = await trio.to_thread.run_sync(readable, self.store, found, start, end + ahead)
                covers = now.covers(start, end)
                if covers and (asked_ahead or not ahead or now.covers(end, min(end + ahead, found.size))):
                    return found, now
                ranges = await self._ranges(reading)
                try:
                    await ranges.need(found, start, end, ahead=ahead, urgent=waiting, gives_up=gives_up)
                except ObjectMissing as error:
                    raise await self._missing(reading) from error
                if asked_ahead and not covers:
                    await trio.sleep(AGAIN_SECONDS)
                asked_ahead = True
                arriving = self.store.arriving(found.id)
                if arriving is not None and header_blocks(found):
                    await trio.to_thread.run_sync(keep_header, self.store, arriving)
        raise await self._missing(reading)

    async def _found(self, reading: Reading, *, gives_up: bool = False) -> Manifest:
        """Return the manifest, as soon as somebody gives it."""
        while True:
            found = await trio.to_thread.run_sync(self.store.manifest, reading.object)
            if found is not None:
                return found
            ranges = await self._ranges(reading)
            size = await trio.to_thread.run_sync(self._size_of, reading)
            try:
                await self.records.manifest(TreeId(ranges.tree), reading.object, size)
            except ObjectMissing as error:
                if gives_up:
                    raise await self._missing(reading) from error
                await trio.sleep(RETRY_SECONDS)

    def _size_of(self, reading: Reading) -> int | None:
        """Return how long the log says the object is, if it says so."""
        row = self._row(reading)
        return row.size if row is not None and row.content == reading.content else None

    def _row(self, reading: Reading) -> VersionRow | None:
        with contextlib.suppress(UsageError):  # a volume of published trees has no versions
            for row in rows_of(self.spread.volumes, reading.volume, [(reading.file, reading.version)]):
                return row
        return None

    async def _ranges(self, reading: Reading) -> Ranges:
        """Return what fetches for this reading, running."""
        state = await self.mesh.state()
        volume = state.volume_by_id(reading.volume)
        if volume is None:
            raise VolumeUnknown(f"there is no volume {reading.volume:016x}", cure="tbshare volume ls")
        tree: bytes | None = None
        if volume.mode == "models":
            tree = await trio.to_thread.run_sync(self._tree_of, state, folded(volume.name), reading.object)
            if tree is None:
                raise await self._missing(reading)
        key: Key = tree or (volume.id, reading.file, reading.version)
        active = self._active.get(key)
        if active is None:
            active = self._active[key] = self._begin(key, volume)
        self._active.move_to_end(key)
        active.ranges.used_at = time.monotonic()
        await active.ranges.asked.wait()
        return active.ranges

    def _begin(self, key: Key, volume: Volume) -> _Active:
        """Begin to fetch. Peers are told by which name they know it, and why this node may have it."""
        if isinstance(key, bytes):
            want = Want(key, volume.name)
        else:  # a name of its own each time: what is said as one ends must not end the next
            parts = [number.to_bytes(9, "big", signed=True) for number in (*key, next(self._numbers))]
            want = Want(named_hash(LAZY_CONTEXT, parts), volume.name, volume.id, [key[1:]])
        came = partial(self._came, want)
        ranges = Ranges(want, store=self.store, mesh=self.mesh, lanes=self.lanes, came=came)
        active = _Active(key, ranges, trio.CancelScope())
        self.replicator.readers[want.tree] = ranges
        assert self._nursery is not None
        self._nursery.start_soon(self._run, active)
        return active

    async def _run(self, active: _Active) -> None:
        try:
            with active.scope:
                await active.ranges.run()
        except Exception:  # noqa: BLE001 - a bug that one file meets does not end the daemon
            _log.exception("what is read could not be fetched")
        finally:
            if self._active.get(active.key) is active:
                self._forget(active)

    def _tree_of(self, state: State, volume: str, object_id: ObjectId) -> bytes | None:
        """Return a published tree that an object is of."""
        for (name, _), versions in state.refs.items():
            for version in reversed(versions) if name == volume else ():
                if object_id in self._objects_of(version.tree):
                    return version.tree
        return None

    def _objects_of(self, tree: bytes) -> frozenset[bytes]:
        known = self._trees.get(tree)
        if known is None:
            try:
                known = frozenset(self.store.objects_below(TreeId(tree)))
            except (ObjectMissing, BlockCorrupt):
                return frozenset()
            self._trees[tree] = known
            if len(self._trees) > TREES_MAX:
                self._trees.popitem(last=False)
        return known

    def _came(self, want: Want, _: Manifest) -> None:
        """Note that an object became whole by being read: with it perhaps a version, or a published tree."""
        assert self._nursery is not None
        self._nursery.start_soon(self._note, want)

    async def _note(self, want: Want) -> None:
        if want.files:
            await self.spread.came(want.volume_id, want.files)
        elif await self.replicator.is_whole(TreeId(want.tree)):
            await self.replicator.note_whole(want.tree)

    async def _missing(self, reading: Reading) -> ObjectMissing:
        row = await trio.to_thread.run_sync(self._row, reading)
        if row is not None:
            return ObjectMissing(await self.spread.nowhere(row.author), cure="tbshare node ls")
        short = reading.content.hex()[:12]
        return ObjectMissing(f"bytes of object {short} are on no node that is connected", cure="tbshare node ls")


def _widened(found: Manifest, start: int, end: int) -> tuple[int, int]:
    """Return what has to be here for bytes [start, end) to be readable: a little object, a header, as a whole."""
    start, end = min(start, found.size), min(end, found.size)
    if found.size <= SMALL_BYTES:
        return 0, found.size
    numbers = header_blocks(found)
    if numbers and start < found.offsets[len(numbers)]:
        return 0, max(end, found.offsets[len(numbers)])
    return start, end


def _opened(found: Manifest, now: Readable) -> MountOpened:
    extents = [
        MountExtent(each.start, each.end - each.start, os.fsencode(each.path), each.offset) for each in now.extents
    ]
    return MountOpened(found.size, now.whole, extents)
