"""Copies into a volume that end before their time: a full disk, a stop, a user who leaves; garbage beside them."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio

from tbshare.daemon import taking
from tbshare.daemon.copying import Copies
from tbshare.daemon.files import Files
from tbshare.daemon.keep import Keep
from tbshare.daemon.refs import Refs
from tbshare.errors import DiskFull, Interrupted
from tbshare.wire.files import Copying, CopyReport, FileCopyParams, RestoreParams
from tbshare.wire.local import GcParams
from tbshare.wire.report import AnyEvent, Started, Warned
from tbshare.wire.where import Where, id_text
from tests.daemon.test_full_disk import fill, small_disk
from tests.nodes import MIB, Node, running
from tests.nodes import until as until_seen
from tests.together import Inside, make_volume, together, until
from tests.volume_nodes import copy, create, names, place, read

Make = Callable[..., Node]
__all__ = ["small_disk"]


def footage(root: Path, files: int, size: int) -> Path:
    random = Random(files)
    root.mkdir()
    for number in range(files):
        (root / f"{number:03}.mov").write_bytes(random.randbytes(size))
    return root


def is_whole(node: Node, source: Path, text: str) -> list[str]:
    """Return the names below a place; each has the bytes of the file it was copied from."""
    found = names(node, text) if source.name in names(node, text.rpartition("/")[0] + "/") else []
    for name in found:
        assert read(node, f"{text}/{name}") == (source / name).read_bytes()
    return found


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_full_in_mid_copy(tmp_path: Path, small_disk: Path) -> None:
    ada = Node(small_disk / "a", "ada", '[store]\nkeep_free = "0MB"\n')
    source = footage(tmp_path / "reels", 12, 2 * MIB)
    with running(ada):
        create(ada, "film")
        copy(ada, source / "000.mov", "film:/before.mov")
        filler = fill(small_disk, 10 * MIB)
        with pytest.raises(DiskFull) as caught:
            copy(ada, source, "film:/", recursive=True)
        assert caught.value.cure
        assert ada.status().processes == 0
        assert len(is_whole(ada, source, "film:/reels")) < 12
        assert read(ada, "film:/before.mov") == (source / "000.mov").read_bytes()
        filler.unlink()
        copy(ada, source, "film:/", recursive=True)
        assert len(is_whole(ada, source, "film:/reels")) == 12
        with ada.client() as client:
            assert client.verify().corrupt == 0
        ada.kill()
        ada.start()
        assert len(is_whole(ada, source, "film:/reels")) == 12


@pytest.mark.parametrize("how", ["stop", "leave"])
def test_a_copy_that_is_stopped_ends_soon_and_is_taken_up_again(make_node: Make, tmp_path: Path, how: str) -> None:
    ada = make_node("ada")
    source = footage(tmp_path / "reels", 40, 8 * MIB)
    long = source / "999.mov"
    long.touch()
    os.truncate(long, 8 << 30)  # holes; seconds of work, and the last to be taken
    with running(ada):
        create(ada, "film")
        started: list[str] = []

        def told(event: AnyEvent) -> None:
            """End the call from within."""
            if isinstance(event, Started):
                started.append(event.id)
            if isinstance(event, Copying) and event.files_done and how == "leave":
                raise ConnectionAbortedError
            if isinstance(event, Copying) and event.files_done and started:
                with ada.client() as other:
                    other.stop(started.pop())

        with ada.client() as client, pytest.raises(Interrupted if how == "stop" else ConnectionAbortedError):
            client.file_copy(FileCopyParams([place(source)], place("film:/"), recursive=True), told)
        until_seen("it has ended", lambda: ada.status().processes == 0, 10)
        long.unlink()
        taken = is_whole(ada, source, "film:/reels")
        assert len(taken) <= 40
        copy(ada, source, "film:/", recursive=True)
        assert len(is_whole(ada, source, "film:/reels")) == 40


def test_garbage_is_collected_while_a_copy_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "BATCH_PATHS", 5)
    ada = Inside(tmp_path / "a", "ada")
    source = footage(tmp_path / "reels", 200, 70_000)

    async def emit(_: AnyEvent) -> None:
        await trio.lowlevel.checkpoint()

    async def check() -> None:
        async with together(ada):
            await make_volume(ada, "film")
            copies, keep = Copies(ada.service, Files(ada.service)), Keep(ada.service, Refs(ada.service))
            collected = 0

            async def collect() -> None:
                nonlocal collected
                while True:
                    await keep.gc(GcParams(now=True))
                    collected += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(collect)
                params = FileCopyParams([Where(path=bytes(source))], Where("film"), recursive=True)
                await copies.file_copy(params, emit)
                nursery.cancel_scope.cancel()
            assert collected >= 5
            handle = ada.service.volumes.open("film")
            items = handle.list((b"reels",))
            assert len(items) == 200
            assert all(ada.service.store.is_whole(item.content) for item in items)  # type: ignore[arg-type]

    trio.run(check)


async def copied(
    node: Inside, source: Where, target: Where, events: list[AnyEvent], *, recursive: bool = False
) -> CopyReport:
    async def emit(event: AnyEvent) -> None:
        events.append(event)
        await trio.lowlevel.checkpoint()

    return await Copies(node.service, Files(node.service)).file_copy(
        FileCopyParams([source], target, recursive=recursive), emit
    )


def knows(node: Inside, files: int) -> bool:
    handle = node.service.volumes.open("film")
    return handle.find((b"in",)) is not None and len(handle.list((b"in",))) == files


def test_what_is_fetched_for_a_copy_is_counted_while_it_comes(tmp_path: Path) -> None:
    ada = Inside(tmp_path / "a", "ada", links__limit="12MB")  # more than a second, in three blocks
    grace = Inside(tmp_path / "g", "grace")
    source = footage(tmp_path / "in", 2, 12 * MIB)
    before: list[Copying] = []

    async def check() -> None:
        async with together(ada, grace):
            await make_volume(ada, "film", replicate="on-demand")
            await copied(ada, Where(path=bytes(source)), Where("film"), [], recursive=True)
            await until("grace knows", lambda: knows(grace, 2))

            async def emit(event: AnyEvent) -> None:
                if isinstance(event, Copying) and not (tmp_path / "out" / "000.mov").exists():
                    before.append(event)
                await trio.lowlevel.checkpoint()

            params = FileCopyParams([Where("film", b"in")], Where(path=bytes(tmp_path / "out")), recursive=True)
            report = await Copies(grace.service, Files(grace.service)).file_copy(params, emit)
            assert report.size_bytes == 24 * MIB
            assert 0 < max(event.bytes_done for event in before) <= 12 * MIB

    trio.run(check)


def test_copies_of_bytes_that_nobody_has_say_so(tmp_path: Path) -> None:
    ada, grace = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace")
    source = footage(tmp_path / "in", 5, 100_000)

    async def check() -> None:
        async with together(ada, grace) as nursery:
            volume = await make_volume(ada, "film", replicate="on-demand")
            files = Files(grace.service)
            for number in (0, 1):
                await copied(ada, Where(path=bytes(source / f"00{number}.mov")), Where("film", b"clip"), [])
            await copied(ada, Where(path=bytes(source)), Where("film"), [], recursive=True)
            await until("grace knows", lambda: knows(grace, 5))
            handle = grace.service.volumes.open("film")
            events: list[AnyEvent] = []
            assert not (await copied(grace, Where("film", b"clip"), Where("film", b"early"), events)).files_away
            await ada.down()
            await until("ada has left", lambda: not grace.service.mesh.peers)
            report = await copied(grace, Where("film", b"in"), Where("film", b"new"), events, recursive=True)
            assert report.files_away == report.files == 5
            (warned,) = [event.text for event in events if isinstance(event, Warned)]
            assert warned.startswith(
                "'film:/in/000.mov', 'film:/in/001.mov', 'film:/in/002.mov' and 2 more: its bytes"
            )
            assert warned.endswith("ada saved it (not connected: ada)")
            first = id_text(handle.history((b"clip",))[1].version)
            restored = await files.restore(RestoreParams(Where("film", b"clip"), version=first))
            assert restored.files_away == 1
            assert restored.text == "'film:/clip': " + warned.partition(": ")[2]
            await ada.up(nursery)
            grace.service.mesh.learn(ada.node, [f"127.0.0.1:{ada.port}"])
            for path in ((b"new", b"000.mov"), (b"clip",)):
                item = handle.lookup(path)
                tables = ada.service.volumes.tables(volume)
                await until("ada knows", lambda item=item, tables=tables: tables.version(item.file, item.version))  # type: ignore[misc]
                await grace.service.spread.need(volume, item.file, item.version)
            again = await copied(grace, Where("film", b"new"), Where("film", b"newer"), events, recursive=True)
            assert not again.files_away

    trio.run(check)
