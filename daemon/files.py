"""Files of volumes: what is listed, told, moved, removed, brought back. Copies have a module of their own."""

import os
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import trio

from tbshare.content.ref import shown
from tbshare.daemon.control import Emit
from tbshare.daemon.file_lines import FileLines
from tbshare.daemon.lazy import Reading
from tbshare.daemon.reading import puts_of
from tbshare.daemon.ref_files import RefFiles
from tbshare.daemon.service import Service
from tbshare.daemon.unreachable import unreachable_of_saved
from tbshare.errors import (
    CrossesVolumes,
    DirectoryNotEmpty,
    NotPermitted,
    ObjectMissing,
    PathIsDirectory,
    PathMissing,
    PathNotDirectory,
    UsageError,
    VolumeReadOnly,
)
from tbshare.volumes.fold import State
from tbshare.volumes.item import Item, Path, Saved
from tbshare.volumes.volume import Handle
from tbshare.wire import files as wire
from tbshare.wire.volume import (
    ConflictLine,
    ConflictList,
    ConflictsParams,
    LockLine,
    LockList,
    LocksParams,
    Resolved,
    ResolveParams,
    Snapshot,
    SnapshotLine,
    SnapshotList,
    SnapshotListParams,
    SnapshotParams,
)
from tbshare.wire.where import ID_DIGITS, Where, id_number, id_text

CONFLICTS_MAX = 1000
LINKS_MAX = 16  # followed one after another
_T = TypeVar("_T")


@dataclass(frozen=True)
class Readable:
    """A version of a file, and how its bytes are read."""

    version: int
    content: bytes  # the object
    size: int
    reading: Reading


class Files:
    """Answers about files."""

    def __init__(self, service: Service) -> None:
        self.service = service

    # where it is -----------------------------------------------------------------------------------------------

    async def open(self, where: Where, *, writing: bool = False) -> tuple[State, Handle]:
        """Return the volume of a place, as of its snapshot if it names one. NotPermitted, VolumeReadOnly."""
        state = await self.service.mesh.state()
        if not where.volume:
            raise UsageError(f"{where} is no place in a volume", cure="write it as VOLUME:/path")
        if writing and where.snapshot:
            raise VolumeReadOnly(f"{where}: a snapshot stays as it is", cure=f"tbshare restore {where}")
        volume = state.volume_named(where.volume)
        if writing and volume.mode == "models":
            raise VolumeReadOnly(f"{where}: models are published, not written", cure="tbshare push PATH")
        if not state.may_read(self.service.identity.node, volume.id):
            raise NotPermitted(f"this node may not read volume {volume.name}", cure="tbshare volume ls")

        def opened() -> Handle:
            handle = self.service.volumes.open_id(volume.id)
            return handle.as_of(where.snapshot) if where.snapshot else handle

        return state, await trio.to_thread.run_sync(opened)

    async def look(self, handle: Handle, path: Path, work: Callable[[], _T]) -> _T:
        """Do something with a path in a thread; what leads into a bundle that is away fetches it first."""
        try:
            return await trio.to_thread.run_sync(work)
        except ObjectMissing:
            for depth in range(1, len(path) + 1):
                item = await trio.to_thread.run_sync(handle.find, path[:depth])
                if item is None:
                    break
                if item.kind == "bundle":
                    await self.service.spread.need(handle.id, item.file, item.version)
                    return await trio.to_thread.run_sync(work)
            raise

    async def _stat(self, where: Where, found: Callable[[Handle], Item], *, details: bool = True) -> wire.FileStat:
        state, handle = await self.open(where)
        lines = FileLines(self.service, state, handle)
        item = await self.look(handle, where.parts, lambda: found(handle))
        line = lines.item(item, xattrs=True, whole=True)
        return wire.FileStat((await lines.detailed([item], [line]))[0] if details else line)

    # reading ---------------------------------------------------------------------------------------------------

    async def file_list(self, params: wire.FileListParams) -> wire.FileList:
        """Return an item and, of a directory or bundle, what is in it."""
        if (published := await RefFiles.at(self.service, params.where)) is not None:
            return wire.FileList(*await published.told(params.where.parts, listed=True))
        state, handle = await self.open(params.where)
        lines = FileLines(self.service, state, handle)

        def collect() -> tuple[list[Item], list[wire.Item]]:
            item = handle.lookup(params.where.parts)
            items = [item, *(handle.list(params.where.parts) if item.is_directory else [])]
            return items, [lines.item(each, xattrs=params.xattrs) for each in items]

        items, told = await self.look(handle, params.where.parts, collect)
        if params.details:
            told = await lines.detailed(items, told)
        return wire.FileList(told[0], told[1:])

    async def file_stat(self, params: wire.FileStatParams) -> wire.FileStat:
        """Return one item with everything about it."""
        if (published := await RefFiles.at(self.service, params.where)) is not None:
            return wire.FileStat((await published.told(params.where.parts, listed=False))[0])
        path = params.where.parts
        return await self._stat(params.where, lambda handle: handle.lookup(path), details=params.details)

    async def file_show(self, params: wire.FileStatParams) -> wire.FileReport:
        """Return one item, its history and who holds it."""
        state, handle = await self.open(params.where)
        lines, path = FileLines(self.service, state, handle), params.where.parts
        item = (await self.file_stat(params)).item
        if item.kind == "directory":
            totals = await trio.to_thread.run_sync(lambda: below(handle, path))
            item = msgspec.structs.replace(item, size_bytes=totals[2])
            return wire.FileReport(params.where, item, files=totals[0])
        history = await trio.to_thread.run_sync(handle.history, path)
        found = await trio.to_thread.run_sync(handle.lookup, path)
        pair = (found.file, found.version)
        nodes = (await self.service.spread.copies(handle.id, [pair])).get(pair, set())
        holders = [wire.Holder(lines.name(node), node.hex()) for node in sorted(nodes, key=lines.name)]
        return wire.FileReport(
            params.where,
            item,
            versions=await lines.versions(history),
            versions_total=len(history),
            holders=holders,
            bytes_here=item.size_bytes if item.here == "whole" else 0,
        )

    async def found(self, where: Where, version: str = "") -> "Readable":
        """Return the version of a file that is to be read, links followed: the one shown, unless it is given."""
        path, service = where.parts, self.service
        if (published := await RefFiles.at(service, where)) is not None:
            item = await published.readable(path, id_number(version) if version else 0)
            reading = Reading(published.volume.id, 0, 0, item.content)
            return Readable(item.version, item.content, item.size, reading)
        _, handle = await self.open(where)
        number, content, size, file = await self.look(handle, path, lambda: _readable(handle, path, version))
        return Readable(number, content, size, Reading(handle.id, file, number, content))

    async def file_read(self, params: wire.FileReadParams, emit: Emit) -> wire.FileRead:
        """Send the bytes of a file, or a range of them, fetching what is not here."""
        found = await self.found(params.where, params.version)
        version, size = found.version, found.size
        end = size if params.length is None else min(size, params.offset + params.length)
        sent = 0
        async with aclosing(self.service.lazy.pieces(found.reading, params.offset, end)) as pieces:
            async for piece in pieces:
                for start in range(0, len(piece), wire.CHUNK_BYTES_MAX):
                    part = piece[start : start + wire.CHUNK_BYTES_MAX]
                    await emit(wire.Chunk(params.offset + sent, part))
                    sent += len(part)
        return wire.FileRead(id_text(version), size, sent)

    # changing --------------------------------------------------------------------------------------------------

    async def _write(self, handle: Handle, paths: Sequence[Path], work: Callable[[Handle], _T]) -> _T:
        """Do something with the volume in a thread while the locks on what is at these paths are held."""
        for path in paths:
            await self.look(handle, path[:-1], lambda path=path: handle.find(path))  # type: ignore[misc]
        async with self.service.locks.held(handle, paths) as under:
            return await trio.to_thread.run_sync(work, under)

    async def file_mkdir(self, params: wire.FileMkdirParams) -> wire.FileStat:
        """Make a directory."""
        _, handle = await self.open(params.where, writing=True)
        path = params.where.parts
        if path or not params.parents:
            await trio.to_thread.run_sync(lambda: handle.mkdir(path, parents=params.parents))
        return await self._stat(params.where, lambda handle: handle.lookup(path))

    async def file_move(self, params: wire.FileMoveParams) -> wire.FileStat:
        """Rename inside one volume."""
        _, handle = await self.open(params.source, writing=True)
        _, other = await self.open(params.target, writing=True)
        if handle.id != other.id:
            raise CrossesVolumes(
                f"{params.source} and {params.target} are in two volumes",
                cure=f"tbshare cp -r {params.source} {params.target}; tbshare rm -r {params.source}",
            )
        source = params.source.parts
        target = await trio.to_thread.run_sync(_under, handle, source, params.target.parts, params.into)
        await self._write(handle, [source, target], lambda under: under.rename(source, target))
        where = Where(params.target.volume, b"/".join(target))
        return await self._stat(where, lambda handle: handle.lookup(target))

    async def file_remove(self, params: wire.FileRemoveParams) -> wire.FileRemoved:
        """Take names away; all of them, or none when one is not there or may not go."""
        places = [(*await self.open(where, writing=True), where.parts) for where in params.wheres]
        files = directories = size = 0
        for _, handle, path in places:
            item = await trio.to_thread.run_sync(handle.lookup, path)
            if not path:
                cure = f"tbshare volume rm {handle.name}"
                raise UsageError(f"that is all of volume {handle.name}", cure=cure)
            if item.kind == "directory" and not params.recursive:
                listed = await trio.to_thread.run_sync(handle.list, path)
                cure = f"tbshare rm -r {_place(handle, path)}"
                if not listed and params.empty:
                    continue
                if listed:
                    names = "1 name" if len(listed) == 1 else f"{len(listed)} names"
                    raise DirectoryNotEmpty(f"{_text(path)} has {names} in it", cure=cure)
                raise PathIsDirectory(f"{_text(path)} is a directory", cure=cure)
        for _, handle, path in places:
            counted = await trio.to_thread.run_sync(below, handle, path)
            remove = Handle.rmdir if params.empty else Handle.remove_tree
            await self._write(handle, [path], lambda under, path=path, remove=remove: remove(under, path))  # type: ignore[misc]
            files, directories, size = files + counted[0], directories + counted[1], size + counted[2]
        return wire.FileRemoved(files, directories, size)

    # history ---------------------------------------------------------------------------------------------------

    async def history(self, params: wire.HistoryParams) -> wire.History:
        """Return the versions of a path, newest first."""
        state, handle = await self.open(params.where)
        lines = await trio.to_thread.run_sync(handle.history, params.where.parts)
        return wire.History(params.where, await FileLines(self.service, state, handle).versions(lines))

    async def restore(self, params: wire.RestoreParams) -> wire.Restored:
        """Make an older state the newest."""
        where = params.where
        state, handle = await self.open(Where(where.volume, where.path), writing=True)
        target = params.target or Where(where.volume, where.path)
        if target.volume and state.volume_named(target.volume).id != handle.id:
            raise CrossesVolumes(f"{target} is in another volume", cure="tbshare cp")
        path, to = where.parts, target.parts
        snapshot = params.snapshot or where.snapshot

        def work(under: Handle) -> tuple[list[Saved], bool]:
            if snapshot:
                return _put_back(under, under.as_of(snapshot), path, to), False
            version = id_number(params.version) if params.version else 0
            if not version and not params.before_ns:
                version = _before_shown(under, path)
            there = under.find(to)
            saved = under.restore(
                path, version=version, before_ns=params.before_ns or None, target=to if params.target else None
            )
            same = there is not None and not saved
            return saved, same

        saved, same = await self._write(handle, [to], work)
        item = await trio.to_thread.run_sync(handle.find, to)
        then = await trio.to_thread.run_sync(handle.as_of, snapshot) if snapshot else handle
        missing = await unreachable_of_saved(self.service, then, saved, path, to)
        return wire.Restored(
            Where(where.volume, b"/".join(to)),
            version=id_text(item.version) if item is not None else "",
            when_ns=item.mtime_ns if item is not None else 0,
            files=len(saved),
            same=same,
            files_away=missing.files,
            text=missing.text,
        )

    async def conflicts(self, params: ConflictsParams) -> ConflictList:
        """Return what is shown under another name than its own."""
        state = await self.service.mesh.state()
        if params.volume:
            handles = [(await self.open(Where(params.volume)))[1]]
        else:
            handles = await trio.to_thread.run_sync(self.service.volumes.handles)
        lines: list[ConflictLine] = []
        for handle in handles:
            told = FileLines(self.service, state, handle)
            found = await trio.to_thread.run_sync(handle.conflicts, CONFLICTS_MAX)
            for each in found:
                copies = await told.copies([(item.file, item.version) for item in each.items])
                lines.append(
                    ConflictLine(
                        Where(handle.name, b"/".join(each.path)),
                        each.kind,
                        [told.item_version(item, copies) for item in each.items],
                    )
                )
        return ConflictList(lines, len(lines))

    async def resolve(self, params: ResolveParams) -> Resolved:
        """Let one of the versions shown side by side have the name."""
        state, handle = await self.open(params.where, writing=True)
        path = params.where.parts
        told = FileLines(self.service, state, handle)
        versions = await trio.to_thread.run_sync(_heads, handle, path)
        keep = _chosen(versions, params.keep, told)
        saved = await self._write(handle, [path], lambda under: under.resolve(path, keep.version))
        return Resolved(params.where, id_text(saved.version), told.name(keep.author), len(versions) - 1)

    # locks and snapshots ---------------------------------------------------------------------------------------

    async def lock_list(self, params: LocksParams) -> LockList:
        """Return the leases this node knows of."""
        state = await self.service.mesh.state()
        only = state.volume_named(params.volume).id if params.volume else None
        now, lines = trio.current_time(), list[LockLine]()
        for grant in self.service.leasing.listed():
            volume = state.volume_by_id(grant.volume)
            if volume is None or only not in (None, grant.volume):
                continue
            handle = await trio.to_thread.run_sync(self.service.volumes.open_id, grant.volume)
            told = FileLines(self.service, state, handle)
            paths = await trio.to_thread.run_sync(handle.paths, grant.id)
            lines.append(
                LockLine(
                    Where(volume.name, b"/".join(paths[0]) if paths else b""),
                    told.name(grant.node),
                    grant.kind,
                    max(0.0, grant.expires - now),
                    told.name(grant.granter) if grant.granter else "",
                    here=grant.node == self.service.identity.node,
                )
            )
        return LockList(lines)

    async def snapshot_create(self, params: SnapshotParams) -> Snapshot:
        """Name the state of a volume."""
        state, handle = await self.open(Where(params.volume), writing=True)
        called = params.name or time.strftime("%Y-%m-%d-%H%M%S")
        made = await trio.to_thread.run_sync(handle.snapshot_create, called)
        name = FileLines(self.service, state, handle).name(made.author)
        return Snapshot(SnapshotLine(handle.name, made.name, name, made.time_ns))

    async def snapshot_list(self, params: SnapshotListParams) -> SnapshotList:
        """Return the snapshots, newest first."""
        state, handle = await self.open(Where(params.volume))
        told = FileLines(self.service, state, handle)
        found = await trio.to_thread.run_sync(handle.snapshots)
        return SnapshotList(
            [SnapshotLine(handle.name, each.name, told.name(each.author), each.time_ns) for each in found[::-1]]
        )

    async def snapshot_remove(self, params: SnapshotParams) -> Snapshot:
        """Forget a snapshot."""
        listed = await self.snapshot_list(SnapshotListParams(params.volume))
        _, handle = await self.open(Where(params.volume), writing=True)
        await trio.to_thread.run_sync(handle.snapshot_remove, params.name)
        line = next((each for each in listed.snapshots if each.name.lower() == params.name.lower()), None)
        return Snapshot(line or SnapshotLine(handle.name, params.name, "", 0))


def _text(path: Path) -> str:
    return shown("/" + b"/".join(path).decode("utf-8", "surrogateescape"))


def _place(handle: Handle, path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(Where(handle.name, b"/".join(path))))


def _history(handle: Handle, path: Path) -> str:
    return f"tbshare history {_place(handle, path)}"


def below(handle: Handle, path: Path) -> tuple[int, int, int]:
    """Return the files, directories and bytes of what is at a path and below it."""
    item = handle.lookup(path)
    if item.kind != "directory":
        return 1, 0, item.size
    files = directories = size = 0
    stack = [path]
    while stack:
        here = stack.pop()
        directories += 1
        for each in handle.list(here):
            if each.kind == "directory":
                stack.append((*here, each.name))
            else:
                files, size = files + 1, size + each.size
    return files, directories, size


def _under(handle: Handle, source: Path, target: Path, into: bool) -> Path:
    """Return where `mv` puts the source: below the target when that is a directory."""
    there = handle.find(target)
    if there is not None and there.kind == "directory":
        return (*target, source[-1]) if source else target
    if into:
        raise PathNotDirectory(f"{_text(target)} is no directory", cure="tbshare mkdir VOLUME:/path")
    return target


def _readable(handle: Handle, path: Path, version: str) -> tuple[int, bytes, int, int]:
    """Return version, object, size and file of what is to be read; links are followed inside the volume."""
    if version:
        wanted = id_number(version)
        for line in handle.history(path):
            if line.version == wanted and line.kind == "file":
                return line.version, line.content, line.size, line.file
        raise PathMissing(f"{_text(path)} has no version {version}", cure=_history(handle, path))
    for _ in range(LINKS_MAX):
        item = handle.lookup(path)
        if item.is_directory:
            raise PathIsDirectory(f"{_text(path)} is a {item.kind}", cure=f"tbshare ls {_place(handle, path)}")
        if item.kind == "file":
            return item.version, item.content, item.size, item.file
        path = _followed(path, item.content)
    raise PathMissing(f"{_text(path)}: links lead in a circle")


def _followed(path: Path, target: bytes) -> Path:
    if target.startswith(b"/"):
        raise PathMissing(f"{_text(path)} is a link to {shown(os.fsdecode(target))}, outside of the volume")
    parts = list(path[:-1])
    for part in target.split(b"/"):
        if part == b"..":
            if not parts:
                raise PathMissing(f"{_text(path)} is a link that leaves the volume")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return tuple(parts)


def _before_shown(handle: Handle, path: Path) -> int:
    """Return the version before the one shown; 0 for a directory, and for what is removed: the last there was."""
    item = handle.find(path)
    if item is None or item.kind == "directory":
        return 0
    lines = handle.history(path)
    shown_now = next((line for line in lines if line.version == item.version), None)
    for line in lines:
        if shown_now is not None and line.version in shown_now.parents:
            return line.version
    raise PathMissing(f"{_text(path)} has no earlier version", cure=_history(handle, path))


def _put_back(handle: Handle, then: Handle, path: Path, to: Path) -> list[Saved]:
    """Save what a path was in a snapshot, with all below it."""
    return [saved for part in puts_of(then, path, to) for saved in handle.put_many(part)]


def _heads(handle: Handle, path: Path) -> list[Item]:
    """Return what is shown side by side at a path."""
    item = handle.lookup(path)
    for conflict in handle.conflicts(CONFLICTS_MAX):
        if conflict.kind == "versions" and any(each.file == item.file for each in conflict.items):
            return list(conflict.items)
    raise PathMissing(f"{_text(path)} has no conflict", cure=f"tbshare conflicts {handle.name}")


def _chosen(items: Sequence[Item], keep: bytes, told: FileLines) -> Item:
    """Return the head that a node's name or key prefix, a version's id, or a shown name means. UsageError."""
    text = keep.decode("utf-8", "replace")
    for each in items:
        if keep == each.name or (len(text) == ID_DIGITS and text.lower() == id_text(each.version)):
            return each
    by_node = [each for each in items if told.name(each.author).lower() == text.lower()]
    if not by_node and len(text) >= 4:
        by_node = [each for each in items if each.author.hex().startswith(text.lower())]
    if len(by_node) == 1:
        return by_node[0]
    names = ", ".join(f"{told.name(each.author)} ({id_text(each.version)})" for each in items)
    what = f"{shown(text)} names none of the versions, or several; they are by: {names}"
    raise UsageError(what, cure="tbshare conflicts")
