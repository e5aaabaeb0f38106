"""Working files: what programs write to through a mount, until it is cut into an object.

Each is a file in staging/ named by a number, and beside it NUMBER.row, which says what it is: of which volume,
path and file, begun from which version, by which process. A row is a file of its own because it has to be as
durable as its working file, and one sync of the directory makes both names so. It is written when the working file
is made, and *committed* (synced) with the first fsync of a program; until then it may go with the power, and what
is left of the working file then is put into quarantine. Nothing here is swept: a working file goes when its bytes
are in a version, or when whoever made it says that nothing was written.
"""

import contextlib
import os
import secrets
from pathlib import Path
from threading import Lock

import msgspec

from tbshare.content.block import ObjectId
from tbshare.errors import StageMissing
from tbshare.store import cutting, disk
from tbshare.store.care import drop_object
from tbshare.store.cutting import Cut, Ranges
from tbshare.store.recover import put_aside
from tbshare.store.store import Extent, Store

_SUFFIX = ".row"


class Row(msgspec.Struct, frozen=True):
    """What a working file is. `version` and `content` are what it was begun from, or was cut as last."""

    volume: int
    path: tuple[bytes, ...]  # () when it has no name any more
    file: int = 0  # 0: there is none yet
    version: int = 0
    content: bytes = b""
    mode: int = 0o644
    owner: str = ""  # the process that has it, see `same`
    boot: str = ""  # of the machine
    committed: bool = False  # a program has called fsync


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Row)


class Staging:
    """The working files of one store. Thread-safe; of one working file only one call at a time."""

    def __init__(self, store: Store) -> None:
        """Read the rows that are there."""
        self._store = store
        self._folder = store.home.folder("staging")
        self._lock = Lock()
        self._rows: dict[int, Row] = {}
        self.clones = disk.can_clone(store.home.temporary("probe"))
        self._read()

    def _read(self) -> None:
        """Take the rows in; what they do not explain is put aside if there are bytes in it."""
        for path in self._folder.glob("*" + _SUFFIX):
            with contextlib.suppress(ValueError, msgspec.DecodeError):
                number = int(path.name.removesuffix(_SUFFIX), 16)
                row = _decoder.decode(path.read_bytes())
                if self.path(number).exists():
                    self._rows[number] = row
                    continue
            path.unlink()
        for path in self._folder.iterdir():
            if path.suffix != _SUFFIX and not self._row_path_of(path).exists():
                if path.stat().st_size:
                    put_aside(self._store.home, path)
                    self._store.notices.append(
                        f"a file that was being written when the power went is in quarantine: {path.name}"
                    )
                else:
                    path.unlink()

    def path(self, number: int) -> Path:
        """Return the working file of this number."""
        return self._folder / f"{number:016x}"

    def _row_path(self, number: int) -> Path:
        return self._row_path_of(self.path(number))

    @staticmethod
    def _row_path_of(path: Path) -> Path:
        return path.with_name(path.name + _SUFFIX)

    def rows(self) -> dict[int, Row]:
        """Return all rows, by number."""
        with self._lock:
            return dict(self._rows)

    def row(self, number: int) -> Row:
        """Return a row. StageMissing."""
        with self._lock:
            row = self._rows.get(number)
        if row is None:
            raise StageMissing(f"there is no working file {number:016x}", cure="tbshare status")
        return row

    def make(self, row: Row, *, empty: bool = False, mtime_ns: int = 0) -> int:
        """Make a working file with the bytes of `row.content`, or `empty`; return its number.

        ObjectMissing when those bytes are not all here. DiskFull.
        """
        number = secrets.randbits(63)
        path = self.path(number)
        try:
            if row.content and not empty:
                self._fill(path, ObjectId(row.content))
            else:
                self._store.check_room(1)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            if mtime_ns:
                os.utime(path, ns=(mtime_ns, mtime_ns))
            self._row_path(number).write_bytes(_encoder.encode(row))
        except BaseException as error:
            path.unlink(missing_ok=True)
            self._row_path(number).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise disk.translated(error) from error
            raise
        with self._lock:
            self._rows[number] = row
        return number

    def _fill(self, path: Path, content: ObjectId) -> None:
        """Make a file with an object's bytes: a clone of its file where that can be, else a copy."""
        extents = self._store.extents(content)
        if self.clones and len(extents) == 1 and extents[0].path == self._store.home.object(content, "exact"):
            source = os.open(extents[0].path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                clone = disk.clone_file(source, path)
            finally:
                os.close(source)
            if clone is not None:
                os.close(clone)
                return
        size = extents[-1].end
        self._store.check_room(size)
        target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(target, size)
            for extent in extents:
                _copy(extent, target)
        finally:
            os.close(target)

    def keep(self, number: int, row: Row) -> None:
        """Change a row: durably once it is committed, and with it the working file's name."""
        if row == self.row(number):
            return
        path, data = self._row_path(number), _encoder.encode(row)
        temporary = self._store.home.temporary("row")
        try:
            if row.committed:
                disk.write_durably(path, data, temporary=temporary)
            else:
                temporary.write_bytes(data)
                os.rename(temporary, path)
        except OSError as error:
            raise disk.translated(error) from error
        with self._lock:
            self._rows[number] = row

    def cut(self, number: int, changed: Ranges | None = None, *, last: bool = False) -> Cut:
        """Make an object of a working file as it is now; durable after `sync_records`. See `cutting`."""
        row = self.row(number)
        return cutting.cut(self._store, self.path(number), row.content, changed, last=last, clones=self.clones)

    def uncut(self, number: int, cut: Cut) -> None:
        """Make a working file that became an object, which could not be committed, what it was."""
        if cut.linked:
            drop_object(self._store, cut.object_id)
            os.chmod(self.path(number), 0o600)

    def is_open(self, number: int) -> bool:
        """Return whether a process has the working file open; also by way of the kernel's passthrough."""
        return disk.is_open(self.path(number))

    def drop(self, number: int) -> None:
        """Forget a working file; its bytes are in a version, or nobody needs them."""
        with self._lock:
            self._rows.pop(number, None)
        self.path(number).unlink(missing_ok=True)
        self._row_path(number).unlink(missing_ok=True)  # last: a file that nothing explains would be put aside

    def put_aside(self, number: int) -> None:
        """Move a working file into quarantine: nobody was promised its bytes, and nobody may throw them away."""
        put_aside(self._store.home, self.path(number))
        self.drop(number)


def _copy(extent: Extent, target: int) -> None:
    """Copy what is no hole of an extent to where it belongs."""
    source = os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        first, end = extent.offset, extent.offset + extent.end - extent.start
        for data_start, data_end in disk.data_ranges(source, end):
            start = max(first, data_start)
            disk.copy_range(source, target, start, extent.start + start - first, data_end - start)
    finally:
        os.close(source)
