"""Changes of names and attributes that a mount asks for, one operation of a volume each."""

from collections.abc import Mapping, Sequence

import msgspec

from tbshare.daemon.service import Service
from tbshare.errors import Locked, PathMissing, PathNotDirectory, TbshareError, VolumeReadOnly, errno_of
from tbshare.store import disk
from tbshare.store.ingest import Ingest
from tbshare.store.source import SourceFile
from tbshare.volumes.item import Attributes, Item, Large, Path
from tbshare.volumes.shown import clash_key
from tbshare.volumes.volume import Handle
from tbshare.wire import mount as wire

XATTR_INLINE_BYTES_MAX = 4096  # a longer value is an object


def item_of(item: Item) -> wire.MountItem:
    """Return an item as a mount is told of it."""
    large = {name: (value.object, value.size) for name, value in item.large_xattrs.items()}
    return wire.MountItem(
        item.name,
        item.id,
        item.file,
        item.kind,
        item.version,
        item.content,
        item.size,
        item.mode,
        item.uid,
        item.gid,
        item.mtime_ns,
        item.ctime_ns,
        item.birthtime_ns,
        dict(item.xattrs),
        large,
        item.links,
        item.fork,
        item.inside,
    )


def published_item_of(item: Item) -> wire.MountItem:
    """Return a file of a ref, or a directory above or in it: it is known by its content alone."""
    return msgspec.structs.replace(item_of(item), file=0, version=0)


def runs_of(changes: Sequence[wire.MountChange]) -> list[list[int]]:
    """Return which changes may be done side by side, by place: none touches what another one's path needs."""
    runs: list[list[int]] = []
    taken: set[Path] = set()
    above: set[Path] = set()
    for place, change in enumerate(changes):
        paths = [tuple(_key(name) for name in path) for path in _paths(change)]
        starts = {path[:depth] for path in paths for depth in range(len(path))}
        if not runs or any(path in taken or path in above for path in paths) or not starts.isdisjoint(taken):
            runs.append([])
            taken, above = set[Path](), set[Path]()
        runs[-1].append(place)
        taken.update(paths)
        above |= starts
    return runs


def _paths(change: wire.MountChange) -> list[Path]:
    match change:
        case wire.Rename():
            return [change.source, change.target]
        case wire.Link():
            return [change.source, change.path]
        case _:
            return [change.path]


def _key(name: bytes) -> bytes:
    return name.lower() if name.isascii() else clash_key(name)


class MountChanges:
    """Does changes. In worker threads."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def done(self, handle: Handle, change: wire.MountChange, locked: Mapping[int, bytes]) -> wire.MountChanged:
        """Do one change and say what became of it; `locked` says which files which nodes have leases on."""
        try:
            if locked and isinstance(change, wire.Rename | wire.Unlink):
                paths = [change.source, change.target] if isinstance(change, wire.Rename) else [change.path]
                self._refuse_locked(handle, paths, locked)
            item = self._do(handle, change)
        except TbshareError as error:
            return wire.MountChanged(errno_of(error), str(error))
        return wire.MountChanged(item=item_of(item) if item is not None else None)

    def _do(self, handle: Handle, change: wire.MountChange) -> Item | None:
        match change:
            case wire.Mkdir():
                attributes = Attributes(mode=change.mode, uid=change.uid, gid=change.gid)
                return handle.mkdir(change.path, attributes=attributes)
            case wire.Symlink():
                handle.symlink(change.path, change.target)
                return handle.describe(change.path, Attributes(uid=change.uid, gid=change.gid))
            case wire.Link():
                return handle.link(change.source, change.path)
            case wire.Rename():
                return handle.rename(
                    change.source, change.target, exchange=change.exchange, replace=change.replace
                )
            case wire.Unlink():
                handle.remove(change.path)
            case wire.Rmdir():
                handle.rmdir(change.path)
            case wire.Describe():
                return handle.describe(change.path, self._attributes(change))
        return None

    def _refuse_locked(self, handle: Handle, paths: Sequence[Path], locked: Mapping[int, bytes]) -> None:
        """Raise Locked when another node, which can be reached, has what is at a path open for writing."""
        me = self._service.identity.node
        for path in paths:
            try:
                item = handle.find(path)
            except (PathMissing, PathNotDirectory):
                continue
            holder = locked.get(item.file, me) if item is not None and item.kind != "directory" else me
            if item is None or holder == me or holder not in self._service.mesh.peers:
                continue
            state = self._service.log.state()
            member, volume = state.members.get(holder), state.volume_by_id(handle.id)
            who = member.name if member is not None else holder[:4].hex()
            what = item.name.decode("utf-8", "backslashreplace")
            if volume is not None and volume.policy.locked == "read-only":
                raise VolumeReadOnly(f"{what} can only be read now: {who} has it open", cure="tbshare locks")
            raise Locked(f"{what} is locked: {who} has it open for writing", cure="tbshare locks")

    def _attributes(self, change: wire.Describe) -> Attributes:
        xattrs: dict[bytes, bytes | Large | None] = {}
        for name, value in change.xattrs.items():
            large = value is not None and len(value) > XATTR_INLINE_BYTES_MAX
            xattrs[name] = self._large(name, value) if large and value is not None else value
        return Attributes(
            mode=change.mode,
            uid=change.uid,
            gid=change.gid,
            mtime_ns=change.mtime_ns,
            birthtime_ns=change.birthtime_ns,
            xattrs=xattrs,
        )

    def _large(self, name: bytes, value: bytes) -> Large:
        """Make the value of an extended attribute an object, as a file's bytes are."""
        store = self._service.store
        temporary = store.home.temporary("xattr")
        with self._service.taking_in_thread():
            try:
                disk.write_new(temporary, value, 0o600)
                taken = Ingest(store, workers=1, fixed=True).file(
                    SourceFile((name,), temporary, len(value), 0o600, 0)
                )
                store.sync_records()
                return Large(taken.object_id, len(value))
            except OSError as error:
                raise disk.translated(error) from error
            finally:
                temporary.unlink(missing_ok=True)
