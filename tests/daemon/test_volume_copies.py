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
from tbshare.wire.files import Copying, FileCopyParams
from tbshare.wire.local import GcParams
from tbshare.wire.report import AnyEvent, Started
from tbshare.wire.where import Where
from tests.daemon.test_full_disk import fill, small_disk
from tests.nodes import MIB, Node, running, until
from tests.together import Inside, make_volume, together
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
        until("it has ended", lambda: ada.status().processes == 0, 10)
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
