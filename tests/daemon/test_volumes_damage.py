"""Files of the daemon's own that were damaged between two runs: it comes up, says so, and is mended."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tbshare.errors import StoreUnusable, VolumeReadOnly
from tests.nodes import Node, running, until, until_connected
from tests.volume_nodes import create, names, read, write

Make = Callable[..., Node]


def damage(path: Path, start: int = 0, length: int = 1 << 30) -> None:
    """Overwrite a part of a database, from its middle on unless told."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(start or min(4096, size // 2))
        file.write(os.urandom(max(1, min(length, size - file.tell()))))
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


@pytest.mark.parametrize("start", [0, 1])
def test_tables_of_a_volume_are_made_again(make_node: Make, tmp_path: Path, start: int) -> None:
    ada = make_node("ada")
    with running(ada):
        create(ada, "film")
        for number in range(30):
            write(ada, f"film:/{number}", str(number).encode(), tmp_path)
        before = names(ada, "film:/")
        ada.stop()
        for path in (ada.home / "namespace").glob("*.db"):
            damage(path, start)
        ada.start()
        assert names(ada, "film:/") == before
        assert read(ada, "film:/7") == b"7"
        write(ada, "film:/7", b"again", tmp_path)
        assert ada.status().attention == []


def test_a_lost_index_is_made_again(make_node: Make, tmp_path: Path) -> None:
    ada = make_node("ada")
    with running(ada):
        create(ada, "film")
        write(ada, "film:/a", b"a" * 200_000, tmp_path)
        write(ada, "film:/b", b"b", tmp_path)
        ada.stop()
        damage(ada.home / "index.db")
        ada.start()
        assert read(ada, "film:/a") == b"a" * 200_000
        assert read(ada, "film:/b") == b"b"


def test_a_damaged_log_is_read_only_until_it_is_mended_from_a_peer(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace):
        create(ada, "film")
        for number in range(60):
            write(ada, f"film:/{number}", str(number).encode(), tmp_path)
        until("grace has all", lambda: names(grace, "film:/") == names(ada, "film:/"))
        before = names(ada, "film:/")
        until("grace has the bytes", lambda: read(grace, "film:/59") == b"59")
        ada.stop()
        grace.stop()
        log = ada.home / "log.db"
        damage(log, start=log.stat().st_size * 2 // 3 // 4096 * 4096, length=16384)
        ada.start()
        with ada.client() as client:
            assert [problem.path for problem in client.verify().problems] == ["log.db"]
        ada.stop()
        ada.start()
        assert [line for line in ada.status().attention if "log.db was damaged" in line.text]
        with pytest.raises((VolumeReadOnly, StoreUnusable)):
            write(ada, "film:/new", b"new", tmp_path)
        grace.start()
        until_connected((ada, grace))
        with ada.client() as client:
            report = client.verify(repair=True)
        assert [problem for problem in report.problems if not problem.repaired] == []
        until("all is back", lambda: names(ada, "film:/") == before)
        write(ada, "film:/new", b"new", tmp_path)
        until("grace has it", lambda: "new" in names(grace, "film:/"))
        assert not [line for line in ada.status().attention if "damaged" in line.text and line.kind == "volume"]


def test_nothing_is_collected_while_the_log_is_damaged(make_node: Make, tmp_path: Path) -> None:
    """The entries that were lost come back from peers; bytes that are on this node alone would not."""
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace):
        create(ada, "film", options={"replicate": "on-demand"})
        for number in range(60):
            write(ada, f"film:/{number}", str(number).encode(), tmp_path)
        until("grace knows all", lambda: names(grace, "film:/") == names(ada, "film:/"))
        ada.stop()
        grace.stop()
        log = ada.home / "log.db"
        damage(log, start=log.stat().st_size // 3 // 4096 * 4096)
        ada.start()
        with ada.client() as client, pytest.raises(StoreUnusable, match="damaged"):
            client.gc(now=True)
        with ada.client() as client, pytest.raises(StoreUnusable, match="only here"):
            client.drain(wait=False)  # it would say that the node may be unplugged
        grace.start()
        until_connected((ada, grace))
        with ada.client() as client:
            assert all(problem.repaired for problem in client.verify(repair=True).problems)
            client.gc(now=True)
        assert [read(ada, f"film:/{number}") for number in range(60)] == [b"%d" % number for number in range(60)]


def test_bytes_that_only_a_lost_log_named_stay_until_somebody_lets_them_go(
    make_node: Make, tmp_path: Path
) -> None:
    ada = make_node("ada")
    with running(ada):
        create(ada, "film")
        write(ada, "film:/a", b"a" * 300_000, tmp_path)
        ada.stop()
        (ada.home / "log.db").write_bytes(b"nothing of it is left" * 1000)
        for ending in ("-wal", "-shm"):
            (ada.home / f"log.db{ending}").unlink(missing_ok=True)
        ada.start()
        with ada.client() as client:
            assert [problem.repaired for problem in client.verify(repair=True).problems] == [True]
            with pytest.raises(StoreUnusable, match="still here"):
                client.gc()
            assert ada.object_files()
            client.gc(now=True)
            assert not ada.object_files()
            client.gc()


def test_a_node_whose_log_names_nobody_any_more_finds_its_peers(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace):
        create(ada, "film")
        for number in range(20):
            write(grace, f"film:/{number}", str(number).encode(), tmp_path)
        until("ada has all", lambda: len(names(ada, "film:/")) == 20)
        cluster = grace.status().cluster
        grace.stop()
        log = grace.home / "log.db"
        log.write_bytes(os.urandom(log.stat().st_size))
        for ending in ("-wal", "-shm"):
            log.with_name(log.name + ending).unlink(missing_ok=True)
        grace.start()
        assert grace.status().cluster == cluster
        until_connected((ada, grace))
        with grace.client() as client:
            assert all(problem.repaired for problem in client.verify(repair=True).problems)
        until("all is back", lambda: names(grace, "film:/") == names(ada, "film:/"))
        assert read(grace, "film:/7") == b"7"
        write(grace, "film:/new", b"new", tmp_path)
        until("ada has it", lambda: "new" in names(ada, "film:/"))
