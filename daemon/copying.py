"""Copies: from this machine into a volume, from a volume to this machine, from one volume to another."""

import os
import shlex
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as LocalPath

import trio

from tbshare.daemon import local_tree
from tbshare.daemon.control import Emit
from tbshare.daemon.files import Files, below
from tbshare.daemon.local_tree import Attributes as LocalAttributes
from tbshare.daemon.processes import Process
from tbshare.daemon.reading import pieces_of, puts_of
from tbshare.daemon.service import Service
from tbshare.daemon.taking import Taken, Taking, first_trouble
from tbshare.daemon.unreachable import unreachable
from tbshare.errors import (
    DiskFull,
    InputRefused,
    Interrupted,
    PathIsDirectory,
    PathMissing,
    PathNotDirectory,
    TbshareError,
    UsageError,
    innermost,
)
from tbshare.store import adopt
from tbshare.volumes.item import Item, Path
from tbshare.volumes.rows import version_of_large
from tbshare.volumes.volume import Handle
from tbshare.wire.files import Copying, CopyReport, FileCopyParams
from tbshare.wire.report import Started, Warned
from tbshare.wire.where import Where

SAY_SECONDS = 0.25
WARNINGS_SHOWN = 20


@dataclass
class Progress:
    """How far a copy is, over all of its sources."""

    bytes_total: int = 0
    files_total: int = 0
    started: float = field(default_factory=time.monotonic)
    taken: Taken = field(default_factory=Taken)
    before: list[Taken] = field(default_factory=list[Taken])
    coming: Callable[[], int] = lambda: 0  # bytes that are fetched of what is written next
    _most: int = 0  # what was shown: of a file that is fetched first and then written, each byte counts once

    def event(self) -> Copying:
        """Return it as an event."""
        parts = [*self.before, self.taken]
        done = self._most = max(self._most, sum(part.bytes for part in parts) + self.coming())
        return Copying(
            done,
            self.bytes_total,
            sum(part.files for part in parts),
            self.files_total,
            os.fsencode(self.taken.path.encode("utf-8", "replace").decode()),
            done / max(time.monotonic() - self.started, 1e-6),
        )

    def next(self, taken: Taken) -> None:
        """Go on with another source."""
        self.before.append(self.taken)
        self.taken = taken

    def report(self) -> CopyReport:
        """Return what it came to."""
        parts = [*self.before, self.taken]
        return CopyReport(
            files=sum(part.files for part in parts),
            directories=sum(part.directories for part in parts),
            size_bytes=max(0, sum(part.bytes for part in parts)),
            files_same=sum(part.files_skipped for part in parts),
            files_shared=sum(part.shared for part in parts),
            files_away=sum(part.away for part in parts),
            files_moved=sum(part.moved for part in parts),
            seconds=time.monotonic() - self.started,
        )


class Copies:
    """Answers file_copy, and takes in what a new volume is made from."""

    def __init__(self, service: Service, files: Files) -> None:
        self.service, self.files = service, files

    async def file_copy(self, params: FileCopyParams, emit: Emit) -> CopyReport:
        """Copy as `cp` does."""
        if not params.sources:
            raise UsageError("nothing was named to copy", cure="tbshare cp SOURCE VOLUME:/path")
        if not params.target.volume and any(not source.volume for source in params.sources):
            raise UsageError("neither side is in a volume", cure="tbshare cp PATH VOLUME:/path")
        if params.move and (not params.target.volume or any(source.volume for source in params.sources)):
            raise UsageError("--move goes from this machine into a volume", cure="tbshare mv inside a volume")
        what = f"{params.sources[0]} to {params.target}"

        async def work(process: Process, stop: threading.Event, progress: Progress) -> None:
            if params.target.volume:
                await self._into_volume(params, stop, progress)
            else:
                await self._to_local(params, stop, progress)

        return await self._run(what, emit, work)

    async def take_in(self, volume: str, source: bytes, *, move: bool, emit: Emit) -> CopyReport:
        """Take a local directory in as the content of a volume; what is there already is not read again."""
        _, handle = await self.files.open(Where(volume), writing=True)

        async def work(process: Process, stop: threading.Event, progress: Progress) -> None:
            await self._take(handle, source, (), stop, progress, recursive=True, resume=True, move=move)

        return await self._run(f"{os.fsdecode(source)} to {volume}:/", emit, work)

    def check_source(self, source: bytes) -> None:
        """Raise InputRefused where `take_in` would: before a volume is made for nothing."""
        if not os.path.isdir(source):
            raise InputRefused(f"{os.fsdecode(source)} is not a directory", cure="tbshare volume create --help")
        self._not_our_own(source)

    # running ---------------------------------------------------------------------------------------------------

    async def _run(
        self,
        what: str,
        emit: Emit,
        work: Callable[[Process, threading.Event, Progress], Awaitable[None]],
    ) -> CopyReport:
        """Do the work as a process that can be stopped, and say how far it is."""
        process = self.service.processes.begin("copy", what)
        await emit(Started(process.id))
        stop, progress = threading.Event(), Progress()
        process.on_stop = stop.set

        async def say() -> None:
            try:
                while True:
                    event = progress.event()
                    process.bytes_done, process.bytes_total = event.bytes_done, event.bytes_total
                    process.rate = event.rate
                    await emit(event)
                    await trio.sleep(SAY_SECONDS)
            finally:
                stop.set()  # a cancellation reaches the thread so, which is waited for

        failure: BaseException | None = None
        with process.ending():
            with process.scope:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(say)
                        await work(process, stop, progress)
                        nursery.cancel_scope.cancel()
                except* TbshareError as group:
                    failure = innermost(group)
            if process.scope.cancelled_caught:
                raise Interrupted(f"{process.id} was stopped", cure="the same again")
            if failure is not None:
                raise failure
            await self._warn(progress, emit)
            process.end("done")
        await emit(progress.event())
        return progress.report()

    @staticmethod
    async def _warn(progress: Progress, emit: Emit) -> None:
        parts = [*progress.before, progress.taken]
        troubles = [text for part in parts for text in part.troubles]
        for text in [text for part in parts for text in part.warnings][:WARNINGS_SHOWN] + troubles:
            await emit(Warned(text))
        for part in parts:
            error = first_trouble(part)
            if error is not None:
                raise error

    # into a volume ---------------------------------------------------------------------------------------------

    async def _into_volume(self, params: FileCopyParams, stop: threading.Event, progress: Progress) -> None:
        _, handle = await self.files.open(params.target, writing=True)
        target = params.target.parts
        there = await self.files.look(handle, target, lambda: handle.find(target))
        inside = there is not None and there.kind == "directory"
        if not inside and (params.into or len(params.sources) > 1):
            raise PathNotDirectory(f"{params.target} is no directory", cure=f"tbshare mkdir -p {params.target}")
        if target[:-1] and there is None and await trio.to_thread.run_sync(handle.find, target[:-1]) is None:
            above = Where(params.target.volume, b"/".join(target[:-1]))
            cure = f"tbshare mkdir -p {shlex.quote(str(above))}"
            raise PathMissing(f"there is no directory {above}", cure=cure)
        for source in params.sources:
            name = os.path.basename(source.path.rstrip(b"/"))
            below_it = inside or (there is not None and there.kind == "bundle" and await self._is_file(source))
            path = (*target, name) if below_it and name else target
            if source.volume:
                await self._between(source, handle, path, stop, progress, recursive=params.recursive)
            else:
                recursive = params.recursive
                await self._take(handle, source.path, path, stop, progress, recursive=recursive, move=params.move)

    async def _is_file(self, source: Where) -> bool:
        """Whether a source is no directory: a file goes into a bundle, a directory becomes its next version."""
        if not source.volume:
            return not await trio.to_thread.run_sync(os.path.isdir, source.path)
        _, handle = await self.files.open(source)
        item = await trio.to_thread.run_sync(handle.lookup, source.parts)
        return not item.is_directory

    def _not_our_own(self, source: bytes) -> None:
        """Raise InputRefused where a source holds this node's home: its key, its log, its store."""
        path = LocalPath(os.fsdecode(source))
        real = (
            path.resolve() if path.is_dir() else path.parent.resolve() / path.name
        )  # a link to an adopted file is no harm
        home = self.service.home.resolve()
        if real == home or real in home.parents or home in real.parents:
            raise InputRefused(
                f"{os.fsdecode(source)} holds this node's own store and key, or lies in it: {home}",
                cure="tbshare volume create --help",
            )

    async def _take(
        self,
        handle: Handle,
        source: bytes,
        path: Path,
        stop: threading.Event,
        progress: Progress,
        *,
        recursive: bool,
        resume: bool = False,
        move: bool = False,
    ) -> None:
        service = self.service
        self._not_our_own(source)
        note = f"{adopt.NOTE}{os.fsdecode(source)}"

        def keep(tree: bytes) -> None:
            service.log.pins.add(tree, note=note)

        def locked(paths: Sequence[Path]) -> AbstractContextManager[Handle]:
            return service.locks.held_in_thread(handle, paths)

        def work() -> None:
            files, size = local_tree.count(source)
            progress.files_total, progress.bytes_total = progress.files_total + files, progress.bytes_total + size
            taking = Taking(
                service.store,
                handle,
                locked,
                service.taking_in_thread,
                stop=stop,
                resume=resume,
                keep=keep if move else None,
            )
            progress.next(taking.taken)
            taking.tree(source, path, recursive=recursive)

        await trio.to_thread.run_sync(work)

    async def _between(
        self,
        source: Where,
        handle: Handle,
        path: Path,
        stop: threading.Event,
        progress: Progress,
        *,
        recursive: bool,
    ) -> None:
        """Copy inside this node's volumes: new names for the same bytes."""
        _, other = await self.files.open(source)
        item = await trio.to_thread.run_sync(other.lookup, source.parts)
        if item.kind == "directory" and not recursive:
            raise PathIsDirectory(f"{source} is a directory", cure="tbshare cp -r")
        itself = other.id == handle.id and path[: len(source.parts)] == source.parts and not source.snapshot
        if itself and item.kind == "directory":
            raise UsageError(f"{source} cannot be copied into itself", cure="tbshare cp --help")
        taken = Taken()
        progress.next(taken)

        def work() -> None:
            parts = puts_of(other, source.parts, path)
            while True:
                if stop.is_set():
                    raise Interrupted("stopped; what was copied so far is there", cure="the same again")
                with self.service.taking_in_thread():
                    part = next(parts, None)
                    if part is None:
                        return
                    there = [put.path for put in part if put.kind != "directory" and handle.find(put.path)]
                    with self.service.locks.held_in_thread(handle, there) as under:
                        under.put_many(part)
                made = [((*source.parts, *put.path[len(path) :]), put.content) for put in part if put.content]
                missing = trio.from_thread.run(unreachable, self.service, other, made)
                if missing.files:
                    taken.away += missing.files
                    taken.warnings.append(missing.text)
                files = [put for put in part if put.content is not None]
                taken.files += len(files)
                taken.shared += len(files)
                taken.directories += len(part) - len(files)
                taken.bytes += sum(put.content.size for put in files if put.content is not None)

        await trio.to_thread.run_sync(work)

    # to this machine -------------------------------------------------------------------------------------------

    async def _to_local(self, params: FileCopyParams, stop: threading.Event, progress: Progress) -> None:
        target = params.target.path
        inside = await trio.to_thread.run_sync(os.path.isdir, target)
        if not inside and (params.into or len(params.sources) > 1):
            cure = f"mkdir {shlex.quote(os.fsdecode(target))}"
            raise InputRefused(f"{os.fsdecode(target)} is no directory", cure=cure)
        for source in params.sources:
            _, handle = await self.files.open(source)
            parts = source.parts
            item = await self.files.look(handle, parts, lambda: handle.lookup(parts))  # noqa: B023
            if item.is_directory and not params.recursive:
                raise PathIsDirectory(f"{source} is a {item.kind}", cure="tbshare cp -r")
            name = source.parts[-1] if source.parts else b""
            real = os.path.join(target, name) if inside and name else target
            progress.next(Taken())
            if item.inside:
                await self._need(handle, item, progress)
            progress.bytes_total += (await trio.to_thread.run_sync(below, handle, parts))[2]
            await self._give(handle, source.parts, item, real, stop, progress)

    async def _give(
        self, handle: Handle, path: Path, item: Item, real: bytes, stop: threading.Event, progress: Progress
    ) -> None:
        """Write one item, and all that is in it, to this machine."""
        if stop.is_set():
            raise Interrupted("stopped; what was copied so far is there", cure="the same again")
        taken = progress.taken
        taken.path = str(LocalPath(os.fsdecode(real)))
        attributes = LocalAttributes(item.mode, item.mtime_ns, await self._xattrs(handle, item))
        if (item.version and not item.inside) or item.kind == "bundle":
            await self._need(handle, item, progress)
        if item.is_directory:
            await trio.to_thread.run_sync(local_tree.make_directory, real)
            taken.directories += 1
            for each in await trio.to_thread.run_sync(handle.list, path):
                try:
                    await self._give(
                        handle, (*path, each.name), each, os.path.join(real, each.name), stop, progress
                    )
                except DiskFull:
                    raise
                except (TbshareError, OSError) as error:
                    if isinstance(error, Interrupted):
                        raise
                    taken.trouble(f"{os.fsdecode(os.path.join(real, each.name))}: {error}")
            await trio.to_thread.run_sync(local_tree.describe_directory, real, attributes)
            return
        if item.kind == "link":
            await trio.to_thread.run_sync(local_tree.write_link, real, item.content, item.mtime_ns)
        else:
            await trio.to_thread.run_sync(partial(self._write, item, real, attributes, stop, taken))
        taken.files += 1

    async def _need(self, handle: Handle, item: Item, progress: Progress) -> None:
        """Have an item's bytes here, and say meanwhile how many have come."""
        spread = self.service.spread
        progress.coming = lambda: min(item.size, spread.fetched_bytes(item.file, item.version))
        try:
            await spread.need(handle.id, item.file, item.version)
        finally:
            progress.coming = lambda: 0

    async def _xattrs(self, handle: Handle, item: Item) -> dict[bytes, bytes]:
        """Return the extended attributes of an item, with those whose values are objects."""
        xattrs = dict(item.xattrs)
        for name, large in item.large_xattrs.items():
            if not item.inside:
                await self.service.spread.need(handle.id, item.file, version_of_large(large.object))
            pieces = pieces_of(self.service.store, large.object)
            xattrs[name] = await trio.to_thread.run_sync(b"".join, pieces)
        return xattrs

    def _write(
        self, item: Item, real: bytes, attributes: LocalAttributes, stop: threading.Event, taken: Taken
    ) -> None:
        def pieces() -> Iterator[bytes]:
            for piece in pieces_of(self.service.store, item.content):
                if stop.is_set():
                    raise Interrupted("stopped; what was copied so far is there", cure="the same again")
                yield piece
                taken.bytes += len(piece)

        local_tree.write_file(real, pieces(), attributes, size=item.size)
