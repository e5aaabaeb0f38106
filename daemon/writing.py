"""Files read and written from outside the daemon: where their bytes lie, and what was written made versions.

Who writes puts bytes into a file below the store's tmp/, on its disk, and closes it; a commit hashes that very
file and links it into the store. Nothing is copied, and what is still open for writing is refused.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path as LocalPath

import trio

from tbshare.content.block import ObjectId
from tbshare.daemon.files import Files
from tbshare.daemon.service import Service
from tbshare.errors import (
    CrossesVolumes,
    DiskFull,
    InputRefused,
    ObjectMissing,
    PathExists,
    PathIsDirectory,
    QuotaExceeded,
    VolumeReadOnly,
)
from tbshare.store.home import WRITER
from tbshare.store.ingest import Ingest
from tbshare.store.source import SourceFile, shown
from tbshare.volumes.item import Content, Put, Saved
from tbshare.volumes.volume import Handle
from tbshare.wire import files as wire
from tbshare.wire.where import Where, id_number, id_text

WORKERS_MAX = 4  # threads that hash one commit


class Writes:
    """Answers file_extents, file_stage and file_commit."""

    def __init__(self, service: Service, files: Files) -> None:
        self._service, self._files = service, files

    # reading ---------------------------------------------------------------------------------------------------

    async def extents(self, params: wire.FileExtentsParams) -> wire.FileExtents:
        """Tell where a version's bytes are, if they all are here."""
        found = await self._files.found(params.where, params.version)
        content = ObjectId(found.content)

        def look() -> wire.FileExtents:
            store = self._service.store
            whole = True
            extents: list[wire.Extent] = []
            try:
                extents = [
                    wire.Extent(each.start, each.end - each.start, os.fsencode(each.path), each.offset)
                    for each in store.extents(content)
                    if each.end > each.start
                ]
            except ObjectMissing:
                whole = False
            return wire.FileExtents(
                id_text(found.version),
                content.hex(),
                found.size,
                whole,
                extents,
                self._blocks(content) if params.blocks else [],
            )

        return await trio.to_thread.run_sync(look)

    def _blocks(self, content: ObjectId) -> list[wire.BlockLine]:
        found = self._service.store.manifest(content)
        if found is None:
            return []
        rows = enumerate(zip(found.offsets, found.lengths, strict=False))
        return [wire.BlockLine(offset, length, bytes(found.block(number))) for number, (offset, length) in rows]

    # writing ---------------------------------------------------------------------------------------------------

    async def _writable(self, where: Where) -> Handle:
        """Return the volume of a place that is to be written. VolumeReadOnly, PathIsDirectory."""
        _, handle = await self._files.open(where, writing=True)
        if handle.why_read_only:
            raise VolumeReadOnly(f"{where}: {handle.why_read_only}", cure="tbshare volume ls")
        if not where.parts:
            raise PathIsDirectory(f"{where} is a volume, and no file", cure="write it as VOLUME:/path")
        return handle

    async def stage(self, params: wire.FileStageParams) -> wire.Staging:
        """Tell where to write what is to become a file, if it may."""
        handle = await self._writable(params.where)
        path, store = params.where.parts, self._service.store
        item = await self._files.look(handle, path, lambda: handle.find(path))
        if item is not None and item.is_directory:
            raise PathIsDirectory(f"{params.where} is a {item.kind}")
        if item is not None and params.new:
            raise PathExists(f"{params.where} is there already")
        totals = await trio.to_thread.run_sync(handle.totals)
        if totals.quota_bytes and totals.size_bytes >= totals.quota_bytes and (item is None or not item.size):
            raise _over_quota(handle, totals.quota_bytes)
        await trio.to_thread.run_sync(store.check_room, 1)
        return wire.Staging(os.fsencode(store.home.folder("tmp")))

    async def commit(self, params: wire.FileCommitParams) -> wire.FileCommitted:
        """Make what was written versions, in one entry of the log."""
        if not params.commits:
            return wire.FileCommitted([])
        handles = [await self._writable(each.where) for each in params.commits]
        if len({handle.id for handle in handles}) > 1:
            names = " and ".join(sorted({handle.name for handle in handles}))
            raise CrossesVolumes(
                f"{names} are several volumes: what is saved at once is in one", cure="save apart"
            )
        handle = handles[0]
        paths = [each.where.parts for each in params.commits]
        for path in paths:
            await self._files.look(handle, path[:-1], lambda path=path: handle.find(path[:-1]))  # type: ignore[misc]
        async with self._service.taking_in(), self._service.locks.held(handle, paths) as under:
            saved = await trio.to_thread.run_sync(self._commit, under, params.commits)
        volume = params.commits[0].where.volume
        return wire.FileCommitted(
            [
                wire.SavedLine(Where(volume, b"/".join(each.path)), id_text(each.version), each.fork)
                for each in saved
                if each.version
            ]
        )

    def _commit(self, handle: Handle, commits: Sequence[wire.Commit]) -> list[Saved]:
        statuses = [self._checked(each) for each in commits]
        sizes = [status.st_size for status in statuses]
        self._check_room(handle, commits, sizes)
        store = self._service.store
        workers = max(1, min(WORKERS_MAX, os.cpu_count() or 1))
        ingest = Ingest(store, workers=workers, move=True, fixed=True)
        puts: list[Put] = []
        for each, status in zip(commits, statuses, strict=True):
            path = each.where.parts
            real = LocalPath(os.fsdecode(each.staged))
            taken = ingest.file(SourceFile(path, real, status.st_size, 0o644, status.st_mtime_ns))
            content = Content(taken.object_id, taken.manifest.size, status.st_mtime_ns)
            base = None if each.base is None else tuple([id_number(text) for text in each.base])
            puts.append(Put(path, "file", content, None, base, each.new))
        store.sync_records()
        # What was adopted stays even if nothing comes to name it: another save may have found these bytes by now.
        saved = handle.put_many(puts, together=True)
        for each in commits:
            os.unlink(each.staged)
        return saved

    def _checked(self, commit: wire.Commit) -> os.stat_result:
        """Return the status of a staged file; InputRefused when it is none of ours."""
        real = LocalPath(os.fsdecode(commit.staged))
        ours = self._service.store.home.folder("tmp")
        try:
            status = os.lstat(real)
        except (OSError, ValueError) as error:
            raise InputRefused(
                f"what was written to {commit.where} is gone: {error}", cure="write it again"
            ) from error
        inside = real.parent.parent.resolve() == ours.resolve() and real.parent.name.startswith(WRITER)
        if not inside or not stat.S_ISREG(status.st_mode):
            raise InputRefused(f"{shown((commit.staged,))} is no file below {ours}/{WRITER}…")
        return status

    def _check_room(self, handle: Handle, commits: Sequence[wire.Commit], sizes: Sequence[int]) -> None:
        """Raise what is known to come, before anything is hashed: PathExists, QuotaExceeded, DiskFull."""
        grown = sum(sizes)
        for each in commits:
            there = handle.find(each.where.parts)
            if there is not None and each.new:
                raise PathExists(f"{each.where} is there already")
            grown -= there.size if there is not None and there.kind == "file" else 0
        totals, store = handle.totals(), self._service.store
        if totals.quota_bytes and grown > max(0, totals.quota_bytes - totals.size_bytes):
            raise _over_quota(handle, totals.quota_bytes, grown)
        if store.max_bytes and sum(sizes) > store.max_bytes - store.used_bytes():
            raise DiskFull(
                f"no room for {sum(sizes) / 1e9:.2f} GB: the store may hold {store.max_bytes / 1e9:.2f} GB",
                cure="tbshare du; tbshare gc --now",
            )


def _over_quota(handle: Handle, quota: int, grown: int = 0) -> QuotaExceeded:
    more = f", and this needs {grown} more" if grown else ""
    return QuotaExceeded(
        f"volume {handle.name} has {handle.totals().size_bytes} of its {quota} bytes in use{more}",
        cure=f"tbshare volume set {handle.name} --quota SIZE",
    )
