"""Files whose bytes are on another node: read in ranges through the daemon, and by nobody when it is gone."""

import errno
import importlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tbshare.filesystem import TbshareFileSystem, reading
from tbshare.filesystem.reading import MappedReader, RemoteReader
from tbshare.wire.local import PushParams
from tests.nodes import MIB, Node, running, until
from tests.volume_nodes import create, place, stat


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Two nodes; the second takes nothing that nobody asks it for."""
    root = tmp_path_factory.mktemp("p")
    nodes = Node(root / "a", "ada"), Node(root / "g", "grace", '[store]\naccept = "on-demand"\n')
    with running(*nodes):
        create(nodes[0], "film", options={"replicate": "on-demand"})
        until("grace hears of the volume", lambda: knows(nodes[1]))
        yield nodes


def knows(node: Node) -> bool:
    with node.client() as client:
        return any(volume.name == "film" for volume in client.volume_list().volumes)


def file_systems(pair: tuple[Node, Node]) -> tuple[Any, Any]:
    return TbshareFileSystem(home=str(pair[0].home)), TbshareFileSystem(home=str(pair[1].home))


def test_ranges_of_a_file_that_only_the_peer_has(pair: tuple[Node, Node]) -> None:
    ada, grace = file_systems(pair)
    data = Random(1).randbytes(21 * MIB)
    ada.pipe_file("film/a", data)
    until("grace hears of the file", lambda: grace.exists("film/a"))
    with grace.open("film/a") as file:
        assert isinstance(file, RemoteReader)
        file.seek(20 * MIB - 5)
        assert file.read(10) == data[20 * MIB - 5 : 20 * MIB + 5]
        file.seek(0)
        assert file.read() == data
    starts = [0, 5 * MIB, 5 * MIB + 100, 17 * MIB]
    assert grace.cat_ranges(["film/a"] * 4, starts, [start + 50 for start in starts]) == [
        data[start : start + 50] for start in starts
    ]


def test_threads_that_seek_and_read_in_one_open_file(pair: tuple[Node, Node]) -> None:
    """As DuckDB does; and, one after another, as asyncio does that has each step done by some thread."""
    ada, grace = file_systems(pair)
    data = Random(8).randbytes(12 * MIB)
    ada.pipe({"film/g": data, "film/h": data[::-1]})
    until("grace hears of the files", lambda: grace.exists("film/h"))
    wrong: list[int] = []
    with grace.open("film/g", block_size=64 * 1024, cache_type="none") as file:

        def work(seed: int) -> None:
            random = Random(seed)
            for _ in range(50):
                start = random.randrange(12 * MIB - 1000)
                file.seek(start)
                if file.read(500) + file.read(500) != data[start : start + 1000]:
                    wrong.append(start)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    assert wrong == []
    with grace.open("film/h") as file, ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert isinstance(file, RemoteReader)
        one.submit(file.seek, 0, 2).result()
        other.submit(file.seek, 100).result()
        assert one.submit(file.read, 10).result() == data[::-1][100:110]


def test_duckdb_reads_what_is_not_here(pair: tuple[Node, Node]) -> None:
    ada, grace = file_systems(pair)
    pandas: Any = importlib.import_module("pandas")
    duckdb: Any = importlib.import_module("duckdb")
    frame = pandas.DataFrame({"number": range(400_000)})
    with ada.open("film/rows.parquet", "wb") as file:
        frame.to_parquet(file, row_group_size=20_000, compression=None)
    until("grace hears of the file", lambda: grace.exists("film/rows.parquet"))
    with duckdb.connect() as connection:
        connection.register_filesystem(grace)
        query = "SELECT count(*), sum(number) FROM 'tbshare://film/rows.parquet'"
        assert connection.sql(query).fetchall() == [(400_000, sum(range(400_000)))]


def test_a_copy_needs_no_bytes(pair: tuple[Node, Node]) -> None:
    ada, grace = file_systems(pair)
    data = Random(7).randbytes(5 * MIB)
    ada.pipe_file("film/f", data)
    until("grace hears of the file", lambda: grace.exists("film/f"))
    grace.cp_file("film/f", "film/copies/f")
    assert grace.info("film/copies/f")["object"] == grace.info("film/f")["object"]
    assert stat(pair[1], "film:/f").here == "no"
    until("ada hears of the copy", lambda: ada.exists("film/copies/f"))
    assert ada.cat_file("film/copies/f") == data


def test_several_ranges_at_once_of_several_files(pair: tuple[Node, Node]) -> None:
    ada, grace = file_systems(pair)
    contents = {f"film/many/{number}": Random(number).randbytes(3 * MIB + number) for number in range(5)}
    ada.pipe(contents)
    until("grace hears of the files", lambda: len(grace.find("film/many")) == 5)
    paths = sorted(contents) * 2
    starts = [0] * 5 + [2 * MIB] * 5
    found = grace.cat_ranges(paths, starts, [start + 1000 for start in starts], on_error="raise")
    assert found == [contents[path][start : start + 1000] for path, start in zip(paths, starts, strict=True)]
    assert grace.cat("film/many/*") == contents


def test_a_pushed_file_that_only_the_peer_has(pair: tuple[Node, Node], tmp_path: Path) -> None:
    ada, grace = pair
    data = Random(3).randbytes(6 * MIB)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w.bin").write_bytes(data)
    with ada.client() as client:
        client.push(PushParams(path=str(tmp_path / "m"), name="apart", to=["ada"]))
    fs: Any = TbshareFileSystem(home=str(grace.home))
    until("grace hears of the ref", lambda: fs.exists("models/apart"))
    assert fs.cat_file("models/apart@1/w.bin", 5 * MIB, 5 * MIB + 9) == data[5 * MIB : 5 * MIB + 9]
    with fs.open("models/apart/w.bin", block_size=MIB) as file:
        assert file.read(10) == data[:10]
        (tmp_path / "m" / "w.bin").write_bytes(b"another")
        with ada.client() as client:
            client.push(PushParams(path=str(tmp_path / "m"), name="apart", to=["ada"]))
        until("grace hears of the next version", lambda: fs.exists("models/apart@1"))
        until("which is the newest", lambda: fs.size("models/apart/w.bin") == 7)
        assert file.read() == data[10:]


def test_once_complete_it_is_read_from_the_store(pair: tuple[Node, Node]) -> None:
    ada, grace = file_systems(pair)
    data = Random(4).randbytes(9 * MIB)
    ada.pipe_file("film/b", data)
    until("grace hears of the file", lambda: grace.exists("film/b"))
    with pair[1].client() as client:
        client.pin(place("film:/b"))
    until("it is complete", lambda: stat(pair[1], "film:/b").here == "whole")
    with grace.open("film/b") as file:
        assert isinstance(file, MappedReader)
        assert file.read() == data


def test_bytes_given_up_between_being_told_of_and_opened_are_fetched_again(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, grace = file_systems(pair)
    data = Random(6).randbytes(3 * MIB)
    ada.pipe_file("film/e", data)
    until("grace hears of the file", lambda: grace.exists("film/e"))
    with pair[1].client() as client:
        client.pin(place("film:/e"))
        until("it is complete", lambda: stat(pair[1], "film:/e").here == "whole")
        client.unpin(place("film:/e"))
    times: list[bytes] = []

    def open_too_late(path: bytes, flags: int) -> int:
        monkeypatch.undo()
        with pair[1].client() as client:
            client.evict(place("film:/e"))
        assert not os.path.exists(path)
        times.append(path)
        return os.open(path, flags)

    monkeypatch.setattr(reading, "open_file", open_too_late)
    with grace.open("film/e") as file:
        assert isinstance(file, RemoteReader)
        assert file.read() == data
    assert len(times) == 1


def test_bytes_that_nobody_connected_has_are_an_error(pair: tuple[Node, Node]) -> None:
    ada, grace = file_systems(pair)
    ada.pipe_file("film/gone", Random(5).randbytes(2 * MIB))
    until("grace hears of the file", lambda: grace.exists("film/gone"))
    pair[0].stop()
    try:
        assert grace.info("film/gone")["size"] == 2 * MIB
        with pytest.raises(OSError, match=r"no node that is connected.*tbshare node ls") as caught:
            grace.cat_file("film/gone")
        assert caught.value.errno == errno.EIO
    finally:
        pair[0].start()
