"""The store: one object for all that a node keeps. Every method may be called from any thread.

Shared state: the index, the packs and the open files (each with its own lock), `_arriving` (one lock here).
Invariants: an id in `_arriving` is `partial` in the index and has no file in objects/ of which the index knows;
an object becomes `whole` only after its bytes, its name and its manifest are synced.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from tbshare.content import bits
from tbshare.content.bits import Bits
from tbshare.content.block import BlockId, ObjectId, block_id
from tbshare.content.layout import PAGE_BYTES
from tbshare.content.manifest import Manifest
from tbshare.content.safetensors import padded
from tbshare.errors import BlockCorrupt, DiskFull, ObjectInUse, ObjectMissing, StoreUnusable
from tbshare.store import disk
from tbshare.store.arriving import SMALL_BYTES, Arriving
from tbshare.store.home import open_home, sweep_temporary
from tbshare.store.index import Index, Row
from tbshare.store.open_files import BlockBytes, OpenFiles
from tbshare.store.pack import Kind, Packs, Place
from tbshare.store.records import Records
from tbshare.store.recover import open_index, recover


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes [start, end) of an object lie in `path` from `offset` on."""

    start: int
    end: int
    path: Path
    offset: int


class Store(Records):
    """Objects, manifests and trees of one node."""

    def __init__(self, root: Path, *, expected_id: str = "", keep_free_bytes: int = 0, max_bytes: int = 0) -> None:
        """Open or make the store at `root`. StoreUnusable when it cannot be used."""
        self.home, self.store_id, self._lock_descriptor = open_home(root, expected_id=expected_id)
        self.keep_free_bytes = keep_free_bytes
        self.max_bytes = max_bytes
        super().__init__()
        self._lock = RLock()
        self._arriving: dict[ObjectId, Arriving] = {}
        self._open_files = OpenFiles()
        self.notices: list[str] = []  # what recovery found, for `status`
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._lock_descriptor)
            sweep_temporary(self.home)
            # A directory that was there already may have been made just before a kill, and never synced.
            disk.sync_directory(self.home.folder("objects"))
            self.packs = Packs(self.home.folder("objects"))
            undo.callback(self.packs.close)
            self.index: Index = open_index(self.home, self.notices)
            undo.callback(self.index.close)
            recover(self)
            undo.pop_all()

    # whole objects ---------------------------------------------------------------------------------------------

    def row(self, object_id: ObjectId) -> Row | None:
        """Return what the index knows of an object."""
        return self.index.object(object_id)

    def is_whole(self, object_id: ObjectId) -> bool:
        """Whether all bytes of the object are here, synced."""
        row = self.index.object(object_id)
        return row is not None and row.whole and self.index.record(Kind.MANIFEST, object_id) is not None

    def held(self, object_id: ObjectId) -> Bits:
        """Return the blocks of an object that can be served now."""
        with self._lock:
            arriving = self._arriving.get(object_id)
        if arriving is not None:
            return arriving.readable
        row = self.index.object(object_id)
        if row is None:
            return 0
        found = self.manifest(object_id) if row.whole else None
        return bits.full(found.block_count) if found else row.present

    def extents(self, object_id: ObjectId) -> list[Extent]:
        """Return where the bytes of a whole object lie, in order. ObjectMissing when it is not whole here."""
        row = self.index.object(object_id)
        if row is None or not row.whole:
            raise ObjectMissing(
                f"object {object_id.hex()[:12]} is not complete on this node", cure="tbshare pull REF"
            )
        return self._extents(row)

    def _extents(self, row: Row) -> list[Extent]:
        if row.place == "packed":
            place = self._place(Kind.CONTENT, row.id)
            return [Extent(0, row.size, self.packs.path(place.pack), place.offset)]
        path = self.home.object(row.id, row.place)
        if row.place == "exact":
            return [Extent(0, row.size, path, 0)]
        body = self._body(row)
        place = self._place(Kind.HEADER, row.id)
        return [Extent(0, body.start, self.packs.path(place.pack), place.offset), body]

    def _body(self, row: Row) -> Extent:
        """Return where all but the header of a shifted object lies."""
        found = self.manifest(row.id)
        assert found is not None
        assert found.header is not None
        start = found.header.data_start
        return Extent(start, row.size, self.home.object(row.id, row.place), start + -start % PAGE_BYTES)

    def _place(self, kind: Kind, object_id: ObjectId) -> Place:
        place = self.index.record(kind, object_id)
        if place is None:
            raise ObjectMissing(
                f"the bytes of object {object_id.hex()[:12]} are gone", cure="tbshare verify --repair"
            )
        return place

    # reading blocks --------------------------------------------------------------------------------------------

    def open_block(self, object_id: ObjectId, number: int) -> BlockBytes | None:
        """Return where a block can be read, or None when it is not here. It was verified when it came in."""
        with self._lock:
            arriving = self._arriving.get(object_id)
            if arriving is not None and not arriving.small:
                header = arriving.manifest.header
                readable = arriving.readable >> number & 1  # not, too, what a peer made up: there is no such block
                offset = arriving.file_offset(number) if readable else 0
                padded_now = arriving.sealed and arriving.layout.shift and header and offset < header.data_start
                if not readable or padded_now:
                    return None
                with contextlib.suppress(FileNotFoundError):  # it has got its final name in this moment
                    return self._open_files.use(arriving.path, offset, arriving.manifest.lengths[number])
                return None
        row = self.index.object(object_id)
        found = self.manifest(object_id)
        if row is None or not row.whole or found is None or number >= found.block_count:
            return None
        start, length = found.offsets[number], found.lengths[number]
        body = [self._body(row)] if row.place == "shifted" else []  # there even if the header is lost
        for _ in range(2):  # a pack may be compacted between the two lines that follow
            for extent in body if body and start >= body[0].start else self._extents(row):
                if extent.start <= start < extent.end:
                    with contextlib.suppress(FileNotFoundError):
                        return self._open_files.use(extent.path, extent.offset + start - extent.start, length)
        return None

    def forget_path(self, path: Path) -> None:
        """Close a file that is about to go; who reads from it now may finish."""
        self._open_files.forget(path)

    def read_block(self, object_id: ObjectId, number: int) -> bytes:
        """Return a block's bytes, verified. ObjectMissing or BlockCorrupt."""
        place = self.open_block(object_id, number)
        found = self.manifest(object_id)
        if place is None or found is None:
            raise ObjectMissing(f"block {number} of object {object_id.hex()[:12]} is not on this node")
        try:
            data = os.pread(place.descriptor, place.length, place.offset)
        finally:
            place.release()
        if len(data) != place.length or block_id(data) != found.block(number):
            raise BlockCorrupt(
                f"block {number} of object {object_id.hex()[:12]} is corrupt on disk",
                cure="tbshare verify --repair",
            )
        return data

    def find_block(self, block: BlockId) -> tuple[ObjectId, int] | None:
        """Return an object that holds a block, and its number there."""
        found = self.index.holders(block)
        return next(((at, number) for at, number, whole in found if whole or self.held(at) >> number & 1), None)

    # arriving objects ------------------------------------------------------------------------------------------

    def begin(self, found: Manifest) -> Arriving | None:
        """Return the arriving object to bring in all of, or None when it is whole already.

        It is the caller's until `finish` or `abandon`. ObjectInUse while it is somebody else's; DiskFull.
        """
        with self._lock:
            arriving = self._arriving.get(found.id)
            if arriving is not None and arriving.owned:
                raise ObjectInUse(f"object {found.id.hex()[:12]} is arriving already")
            if arriving is None:
                arriving = self._open_arriving(found, reserved=True)
            elif not arriving.complete:
                self.check_room(max(0, found.size - _allocated_bytes(arriving.path)))
                arriving.reserve()
            if arriving is not None:
                arriving.owned = True
            return arriving

    def share(self, found: Manifest) -> Arriving | None:
        """Return an arriving object to bring in some of, or None when it is whole already.

        Any number of readers may share one, beside whoever brings in all of it; no space is reserved for them. It
        is the caller's until `unshare`, and may be closed before, when it becomes whole or is thrown away.
        """
        with self._lock:
            arriving = self._arriving.get(found.id) or self._open_arriving(found, reserved=False)
            if arriving is not None:
                arriving.readers += 1
            return arriving

    def unshare(self, arriving: Arriving) -> None:
        """Let go of an arriving object that was shared; the last one closes it. What is present of it stays."""
        with self._lock:
            arriving.readers -= 1
            self._close_if_unused(arriving)

    def _close_if_unused(self, arriving: Arriving) -> None:
        if not arriving.owned and not arriving.readers:
            if self._arriving.get(arriving.manifest.id) is arriving:
                del self._arriving[arriving.manifest.id]
                self._open_files.forget(arriving.path)
            arriving.close()

    def _open_arriving(self, found: Manifest, *, reserved: bool) -> Arriving | None:
        row = self.index.object(found.id)
        self.add_record(Kind.MANIFEST, found.id, found.encoded)
        if row is not None and row.whole:
            return None
        partial = self.home.partial(found.id)
        present = row.present & bits.full(found.block_count) if row is not None and partial.exists() else 0
        if reserved and not present and found.size > SMALL_BYTES:  # for many small ones whoever begins looks once
            self.check_room(max(0, found.size - _allocated_bytes(partial)))
        if found.size > SMALL_BYTES:
            self.sync_records()  # a file whose manifest the power took could not be explained any more
            if row is not None and row.present != present:
                with self.index.transaction(durable=True):  # before there is an empty file it would lie about
                    self.index.set_present(found.id, present)
        arriving = Arriving(found, partial, present, reserved=reserved)
        self._mend_header(arriving)
        if row is None:
            self.index.put_object(found, whole=False, place=self._place_name(arriving))
        self._arriving[found.id] = arriving
        return arriving

    def _mend_header(self, arriving: Arriving) -> None:
        """Undo the padding of a header, if `finish` was stopped between that and the file's last name."""
        found = arriving.manifest
        if found.header is None or not arriving.layout.shift:
            return
        for number in bits.members(arriving.present):
            if found.offsets[number] >= found.header.data_start:
                break
            if block_id(arriving.read(number)) == found.block(number):
                continue
            original = None
            with contextlib.suppress(BlockCorrupt):
                original = self.record(Kind.HEADER, found.id)
            if original is None:
                arriving.forget(1 << number)
            else:
                disk.write_all(arriving.descriptor, original, 0)

    @staticmethod
    def _place_name(arriving: Arriving) -> str:
        return "packed" if arriving.small else arriving.layout.name

    def arriving(self, object_id: bytes) -> Arriving | None:
        """Return the object that is being filled now under this id."""
        with self._lock:
            return self._arriving.get(ObjectId(object_id))

    def is_arriving(self, object_id: bytes) -> bool:
        """Whether somebody is filling this object now."""
        return self.arriving(object_id) is not None

    def sync_arriving(self, batch: Iterable[Arriving]) -> None:
        """Make what was written durable and record it. OSError when a disk failed; its blocks are absent again."""
        grown: list[tuple[Arriving, Bits]] = []
        failure: OSError | None = None
        self.sync_records()
        for arriving in batch:
            try:
                arriving.sync()
            except OSError as error:
                failure = error
            if arriving.present != arriving.recorded:
                grown.append((arriving, arriving.present))
        if grown:
            with self.index.transaction(durable=True):
                for arriving, present in grown:
                    self.index.set_present(arriving.manifest.id, present)
            for arriving, present in grown:
                arriving.recorded = present
        if failure is not None:
            raise disk.translated(failure) from failure

    def finish(self, batch: Sequence[Arriving]) -> None:
        """Turn complete arriving objects into whole ones, durably, in one batch."""
        self.sync_arriving(batch)
        for arriving in batch:
            assert arriving.complete
            arriving.seal()
            if arriving.small:
                self.add_record(Kind.CONTENT, arriving.manifest.id, arriving.content())
            elif arriving.layout.shift:
                self._keep_header(arriving)
        self.sync_records()
        folders: set[Path] = set()
        for arriving in batch:
            if not arriving.small:
                folders.add(self._settle(arriving))
        for folder in folders:
            disk.sync_directory(folder)
        with self._lock, self.index.transaction():
            for arriving in batch:
                self.index.put_object(arriving.manifest, whole=True, place=self._place_name(arriving))
                self._arriving.pop(arriving.manifest.id, None)
                self._open_files.forget(arriving.path)
                arriving.close()

    def _keep_header(self, arriving: Arriving) -> None:
        """Keep the original header in a pack, before the file's own is padded."""
        found = arriving.manifest
        assert found.header is not None
        with contextlib.suppress(BlockCorrupt):
            if self.record(Kind.HEADER, found.id) is not None:
                return  # and the file's own may be padded already
        original = os.pread(arriving.descriptor, found.header.data_start, 0)
        self.add_record(Kind.HEADER, found.id, original)

    def _settle(self, arriving: Arriving) -> Path:
        """Pad the header if the layout says so, sync, and give the file its final name."""
        found, shift = arriving.manifest, arriving.layout.shift
        if shift:
            original = self.record(Kind.HEADER, found.id)
            assert original is not None
            disk.write_all(arriving.descriptor, padded(original, len(original) + shift), 0)
            disk.sync_file(arriving.descriptor)
        os.fchmod(arriving.descriptor, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        final = self.home.object(found.id, arriving.layout.name)
        disk.make_directory(final.parent)
        os.rename(arriving.path, final)
        return final.parent

    def add_small(self, found: Manifest, content: bytes) -> None:
        """Keep an object of up to 64 KiB; durable after `sync_records`."""
        assert len(content) == found.size <= SMALL_BYTES
        self.add_record(Kind.MANIFEST, found.id, found.encoded)
        self.add_record(Kind.CONTENT, found.id, content)
        self.index.put_object(found, whole=True, place="packed")

    def adopt_file(self, found: Manifest, temporary: Path, place: str) -> None:
        """Give a synced file below tmp/ its name as a whole object; an object that is whole already stays."""
        self.add_record(Kind.MANIFEST, found.id, found.encoded)
        self.sync_records()
        with self._lock:
            row = self.index.object(found.id)
            if row is not None and row.whole:
                temporary.unlink()
                return
            final = self.home.object(found.id, place)
            disk.make_directory(final.parent)
            os.chmod(temporary, 0o444)
            disk.publish(temporary, final)
            arriving = self._arriving.pop(found.id, None)
            if arriving is not None:
                self._open_files.forget(arriving.path)
                arriving.close()
            self.home.partial(found.id).unlink(missing_ok=True)
            self.index.put_object(found, whole=True, place=place)

    def abandon(self, object_id: ObjectId, only: Arriving | None = None) -> None:
        """Let go of an arriving object; what is present of it stays for the next attempt.

        With `only`, nothing happens when another one stands under this id by now; without, it is closed whoever
        reads it.
        """
        with self._lock:
            arriving = self._arriving.get(object_id)
            if arriving is None or only not in (None, arriving):
                return
            arriving.owned = False
            if only is not None:
                self._close_if_unused(arriving)
                return
            del self._arriving[object_id]
            self._open_files.forget(arriving.path)
            arriving.close()

    # room ------------------------------------------------------------------------------------------------------

    def room_bytes(self) -> int:
        """Return how many more bytes may be taken in now."""
        free, _ = disk.free_bytes(self.home.root)
        allowed = self.max_bytes - self.used_bytes() if self.max_bytes else free
        return max(0, min(free - self.keep_free_bytes, allowed))

    def used_bytes(self) -> int:
        """Return the bytes of all objects here, shared or not, and what arriving ones have been given."""
        partial = [_allocated_bytes(self.home.partial(object_id)) for object_id in self.index.partial_objects()]
        return self.index.whole_bytes() + sum(partial)

    def check_room(self, size: int) -> None:
        """DiskFull unless `size` more bytes may be taken in."""
        room = self.room_bytes()
        if size > room:
            raise DiskFull(
                f"no room for {size / 1e9:.2f} GB: {room / 1e9:.2f} GB may be used at {self.home.root}",
                cure="tbshare du; tbshare gc --now",
            )

    def close(self) -> None:
        """Sync what is written, and let go of the store; a second time does nothing."""
        with self._lock:
            if self._lock_descriptor < 0:
                return
            with contextlib.suppress(OSError, DiskFull, StoreUnusable):
                self.sync_arriving(self._arriving.values())
                self.sync_records()
                for number in self.packs.numbers():  # read again, packs would give back what was dropped
                    self.index.set_scanned(number, self.packs.path(number).stat().st_size)
            for arriving in self._arriving.values():
                arriving.close()
            self._arriving.clear()
            self._open_files.close()
            self.packs.close()
            self.index.close()
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1


def _allocated_bytes(path: Path) -> int:
    """Return the disk space a file has been given; 0 when there is none of this name."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_blocks * 512
    return 0
