"""Bytes that are not here: what is read comes, and only that, before anything else and from whoever has it."""

import contextlib
import os
import signal
import threading
from pathlib import Path
from random import Random

import pytest
import trio

from tbshare.content.block import BLOCK_BYTES, LEAF_BYTES, ObjectId
from tbshare.daemon.lazy import Reading
from tbshare.errors import ObjectMissing
from tbshare.store.readable import read_range, readable
from tbshare.wire import limits
from tests.nodes import Node, running
from tests.nodes import until as until_so
from tests.store.weights_files import weights
from tests.together import Inside, connected, holds, make_volume, row, save, together, until
from tests.volume_nodes import create, names, read, stat, write

MIB = 1024 * 1024
ON_DEMAND = '[store]\naccept = "on-demand"\n'


def random_file(path: Path, size: int, seed: int = 1) -> bytes:
    data = Random(seed).randbytes(size)
    path.write_bytes(data)
    return data


async def known(node: Inside, volume: int, pair: tuple[int, int]) -> Reading:
    """Wait until a node knows a version; return how it reads it."""
    await until("known", lambda: node.service.volumes.tables(volume).version(*pair) is not None)
    return Reading(volume, *pair, row(node, volume, pair).content)


def bytes_here(node: Inside, reading: Reading, start: int, end: int) -> bytes:
    """Return bytes of an object that were said to be readable on a node."""
    found = node.service.store.manifest(reading.object)
    assert found is not None
    return read_range(readable(node.service.store, found, start, end).extents, start, end)


def moved_bytes(*nodes: Inside) -> int:
    """Return how many bytes nodes have served."""
    return sum(node.service.provider.bytes_served for node in nodes)


async def test_only_what_is_read_moves(tmp_path: Path) -> None:
    data = random_file(tmp_path / "film", 40 * MIB + 12_345)
    ada, grace = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace", store__accept="on-demand")
    async with together(ada, grace):
        volume = await make_volume(ada, "films")
        (pair,) = await save(ada, volume, [tmp_path / "film"])
        reading = await known(grace, volume, pair)
        lazy = grace.service.lazy
        opened = await lazy.open(reading, len(data))
        assert (opened.size, opened.whole) == (len(data), False)
        for start, length in ((17 * MIB + 5, 10), (40 * MIB, 12_345), (4 * MIB - 3, 6)):
            opened = await lazy.need(reading, start, length)
            assert not opened.whole
            assert bytes_here(grace, reading, start, start + length) == data[start : start + length]
        leaves = 4  # the third range begins in one block and ends in the next
        assert moved_bytes(ada) <= leaves * LEAF_BYTES
        assert grace.service.volumes.tables(volume).here(*pair) != 1
        parts = [part async for part in lazy.pieces(reading, 0, len(data))]
        assert b"".join(parts) == data
        await until("whole", lambda: holds(grace, volume, [pair]))
        assert moved_bytes(ada) <= len(data) + 2 * BLOCK_BYTES
        assert grace.service.store.is_whole(ObjectId(reading.content))


async def test_many_who_wait_for_the_same_are_one_flight(tmp_path: Path) -> None:
    data = random_file(tmp_path / "film", 12 * MIB)
    ada, grace = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace", store__accept="on-demand")
    async with together(ada, grace):
        volume = await make_volume(ada, "films")
        (pair,) = await save(ada, volume, [tmp_path / "film"])
        reading = await known(grace, volume, pair)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(grace.service.lazy.need, reading, 5 * MIB + number, 100 + 50_000 * number)
        end = 5 * MIB + 19 + 100 + 50_000 * 19
        assert bytes_here(grace, reading, 5 * MIB, end) == data[5 * MIB : end]
        assert moved_bytes(ada) == 4 * LEAF_BYTES


async def test_what_is_here_in_another_file_is_not_fetched(tmp_path: Path) -> None:
    data = random_file(tmp_path / "one", 12 * MIB)
    (tmp_path / "two").write_bytes(data[: 8 * MIB] + b"changed" + data[8 * MIB + 7 :])
    ada, grace = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace", store__accept="on-demand")
    async with together(ada, grace):
        volume = await make_volume(ada, "films")
        one, two = await save(ada, volume, [tmp_path / "one", tmp_path / "two"])
        await known(grace, volume, one)
        await grace.service.spread.need(volume, *one)
        before = moved_bytes(ada)
        reading = await known(grace, volume, two)
        await grace.service.lazy.need(reading, 3 * MIB, 2 * MIB)
        assert moved_bytes(ada) == before
        await grace.service.lazy.need(reading, 8 * MIB, 10)
        assert bytes_here(grace, reading, 8 * MIB, 8 * MIB + 7) == b"changed"
        assert moved_bytes(ada) == before + LEAF_BYTES


async def test_leaves_that_are_wrong_are_refused_and_come_from_another(tmp_path: Path) -> None:
    data = random_file(tmp_path / "film", 9 * MIB)
    ada, hopper = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "h", "hopper")
    grace = Inside(tmp_path / "g", "grace", store__accept="on-demand")
    async with together(ada, hopper, grace) as nursery:
        volume = await make_volume(ada, "films")
        (pair,) = await save(ada, volume, [tmp_path / "film"])
        await until("hopper has it", lambda: holds(hopper, volume, [pair]))
        reading = await known(grace, volume, pair)
        await hopper.down()
        lazy = grace.service.lazy
        await lazy.need(reading, 0, 10)  # from here on ada knows the row of the first block by heart
        wrong_at = 7 * LEAF_BYTES + 99
        (extent,) = ada.service.store.extents(reading.object)
        extent.path.chmod(0o600)
        with extent.path.open("r+b") as file:
            os.pwrite(file.fileno(), bytes([data[wrong_at] ^ 1]), wrong_at)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(lazy.need, reading, wrong_at, 1)
            await until("ada is told", lambda: (reading.object, 0) in told_of(ada))
            found = grace.service.store.manifest(reading.object)
            assert found is not None
            assert not readable(grace.service.store, found, wrong_at, wrong_at + 1).covers(wrong_at, wrong_at + 1)
            await hopper.up(nursery)
            await connected(hopper, grace)
        assert bytes_here(grace, reading, wrong_at, wrong_at + 1) == data[wrong_at : wrong_at + 1]


def told_of(node: Inside) -> set[tuple[ObjectId, int]]:
    """Return the blocks that others complained of."""
    return set(node.service.provider.suspects)


async def test_what_has_come_is_there_after_a_restart_and_a_fetch_takes_only_the_rest(tmp_path: Path) -> None:
    data = random_file(tmp_path / "film", 40 * MIB)
    ada, grace = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace", store__accept="on-demand")
    async with together(ada, grace) as nursery:
        volume = await make_volume(ada, "films")
        (pair,) = await save(ada, volume, [tmp_path / "film"])
        reading = await known(grace, volume, pair)
        await grace.service.lazy.need(reading, 0, 20 * MIB)
        assert (await grace.service.lazy.open(reading, 0)).extents[0].length == 20 * MIB
        await grace.down()
        await grace.up(nursery)
        await connected(ada, grace)
        opened = await grace.service.lazy.open(reading, 0)
        assert [(extent.start, extent.length) for extent in opened.extents] == [(0, 20 * MIB)]
        before = moved_bytes(ada)
        async with trio.open_nursery() as both:  # the same partial file is filled from two sides
            both.start_soon(grace.service.spread.need, volume, *pair)
            for start in range(39 * MIB, 21 * MIB, -3 * MIB):
                both.start_soon(grace.service.lazy.need, reading, start, 1000)
        assert holds(grace, volume, [pair])
        assert moved_bytes(ada) - before <= 20 * MIB + 7 * (BLOCK_BYTES + LEAF_BYTES)
        assert b"".join([part async for part in grace.service.lazy.pieces(reading, 0, len(data))]) == data


async def test_a_reader_finishes_what_a_fetch_gave_up(tmp_path: Path) -> None:
    """The fetch and the readers have the file open together; who is left goes on."""
    data = random_file(tmp_path / "film", 16 * MIB)
    ada, grace = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace", store__accept="on-demand")
    async with together(ada, grace):
        volume = await make_volume(ada, "films")
        (pair,) = await save(ada, volume, [tmp_path / "film"])
        reading = await known(grace, volume, pair)
        lazy, store = grace.service.lazy, grace.service.store
        await lazy.need(reading, 0, 10)
        found = store.manifest(reading.object)
        assert found is not None
        owned = store.begin(found)
        assert owned is store.arriving(reading.object)
        await lazy.need(reading, 9 * MIB, 10)
        store.abandon(found.id, owned)
        assert b"".join([part async for part in lazy.pieces(reading, 0, len(data))]) == data
        await until("whole", lambda: holds(grace, volume, [pair]))


async def test_nobody_has_it(tmp_path: Path) -> None:
    """Whoever can wait waits as long as he said; a command says at once who might have it."""
    random_file(tmp_path / "film", 9 * MIB)
    ada, grace = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace", store__accept="on-demand")
    async with together(ada, grace) as nursery:
        volume = await make_volume(ada, "films")
        (pair,) = await save(ada, volume, [tmp_path / "film"])
        reading = await known(grace, volume, pair)
        await grace.service.lazy.need(reading, 0, 10)
        await ada.down()
        with pytest.raises(ObjectMissing, match="ada saved it"):
            await grace.service.lazy.need(reading, 5 * MIB, 10, seconds=0.3)
        pieces = grace.service.lazy.pieces(reading, 5 * MIB, 6 * MIB)
        with pytest.raises(ObjectMissing, match="not connected: ada"):
            await anext(pieces)
        assert await grace.service.lazy.need(reading, 0, 20, seconds=0.3)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(grace.service.lazy.need, reading, 5 * MIB, 10)
            await ada.up(nursery)


async def test_an_object_of_a_published_tree_is_read_where_its_header_is_moved(tmp_path: Path) -> None:
    """While it arrives the header is read from elsewhere; who has the file open reads on when it is whole."""
    weights_of_odd = odd_weights()
    ada, grace = Node(tmp_path / "ada", "ada"), Node(tmp_path / "grace", "grace", ON_DEMAND)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(weights_of_odd)

    def run() -> None:
        with running(ada, grace):
            ada.push(model, name="odd", to=["ada"])
            until_so("grace knows it", lambda: grace.line("odd@1") is not None)
            place = "models:/odd/model.safetensors"
            size = len(weights_of_odd)
            assert read(grace, place, offset=size - 10, length=10) == weights_of_odd[-10:]
            assert read(grace, place, offset=0, length=300) == weights_of_odd[:300]
            assert not list((grace.home / "objects").glob("??/*"))
            (partial,) = (grace.home / "partial").iterdir()
            with partial.open("rb") as file:
                assert read(grace, place) == weights_of_odd
                until_so("it is whole", lambda: any((grace.home / "objects").glob("??/*.shifted")))
                assert read(grace, place) == weights_of_odd
                assert file.read()[-10:] == weights_of_odd[-10:]

    await trio.to_thread.run_sync(run)


def odd_weights() -> bytes:
    """Return a file whose data starts where it cannot be mapped."""
    return weights("w", [3_000_000, 7, 900_000], odd=True)


def test_a_peer_that_is_stuck_holds_up_nothing_else(tmp_path: Path) -> None:
    ada, hopper = Node(tmp_path / "ada", "ada"), Node(tmp_path / "hopper", "hopper")
    grace = Node(tmp_path / "grace", "grace", ON_DEMAND)
    with running(ada, hopper, grace):
        create(ada, "film", options={"replicate": "on-demand"})
        data = Random(1).randbytes(24 * MIB)
        for node, name in ((ada, "of-ada"), (hopper, "of-hopper"), (ada, "of-both")):
            until_so("it knows the volume", lambda node=node: names(node, "film:/") is not None)  # type: ignore[misc]
            write(node, f"film:/{name}", data + name.encode(), tmp_path / "s")
        until_so("all is shown", lambda: len(names(hopper, "film:/")) == 3)
        assert read(hopper, "film:/of-both") == data + b"of-both"
        until_so("hopper has it", lambda: stat(hopper, "film:/of-both").here == "whole")
        until_so("all is shown", lambda: len(names(grace, "film:/")) == 3)
        assert read(grace, "film:/of-ada", offset=0, length=10) == data[:10]
        assert ada.process is not None
        ada.process.send_signal(signal.SIGSTOP)

        def wait_for_ada() -> None:
            with contextlib.suppress(ObjectMissing):  # she is taken for gone after a while
                read(grace, "film:/of-ada", offset=20 * MIB, length=10)

        reader = threading.Thread(target=wait_for_ada)
        try:
            reader.start()
            assert stat(grace, "film:/of-ada").size_bytes == len(data) + 6
            assert read(grace, "film:/of-both") == data + b"of-both"
            assert read(grace, "film:/of-hopper") == data + b"of-hopper"
        finally:
            ada.process.send_signal(signal.SIGCONT)
        reader.join()


async def test_a_peer_that_trickles_is_not_waited_for(tmp_path: Path) -> None:
    data = random_file(tmp_path / "film", 9 * MIB)
    ada, hopper = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "h", "hopper")
    grace = Inside(tmp_path / "g", "grace", store__accept="on-demand")
    async with together(ada, hopper, grace) as nursery:
        volume = await make_volume(ada, "films")
        (pair,) = await save(ada, volume, [tmp_path / "film"])
        await until("hopper has it", lambda: holds(hopper, volume, [pair]))
        reading = await known(grace, volume, pair)
        await hopper.down()
        await grace.service.lazy.need(reading, 0, 10)
        ada.service.limit.set_rate(15_000)  # a leaf takes 17 s, and bytes come all the time
        async with trio.open_nursery() as waiting:
            waiting.start_soon(grace.service.lazy.need, reading, 5 * MIB, 10)
            await until("it is asked of ada", lambda: moved_bytes(ada) > LEAF_BYTES)
            await hopper.up(nursery)
        assert bytes_here(grace, reading, 5 * MIB, 5 * MIB + 10) == data[5 * MIB : 5 * MIB + 10]
        assert moved_bytes(hopper) in (LEAF_BYTES, 0)  # 0: ada had sent it all before she was slowed


async def test_a_peer_of_before_gives_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEVEL_LEAVES", limits.LEVEL + 1)
    data = random_file(tmp_path / "film", 9 * MIB)
    ada, grace = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace", store__accept="on-demand")
    async with together(ada, grace):
        volume = await make_volume(ada, "films")
        (pair,) = await save(ada, volume, [tmp_path / "film"])
        reading = await known(grace, volume, pair)
        await grace.service.lazy.need(reading, 5 * MIB, 10)
        assert bytes_here(grace, reading, 5 * MIB, 5 * MIB + 10) == data[5 * MIB : 5 * MIB + 10]
        assert moved_bytes(ada) == BLOCK_BYTES
