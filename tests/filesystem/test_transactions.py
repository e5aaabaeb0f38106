"""What is written in a transaction becomes visible in one moment, or not at all."""

import errno
from pathlib import Path
from typing import Any

import pytest

from tbshare.filesystem import TbshareFileSystem
from tests.nodes import MIB, Node
from tests.volume_nodes import create, place


def write_together(fs: Any, paths: list[str]) -> None:
    with fs.transaction:
        for path in paths:
            fs.pipe_file(path, b"x")


def test_a_transaction_becomes_visible_at_once(fs: Any, film: str, ada: Node, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"p" * 100_000)
    with fs.transaction:
        fs.pipe_file(f"{film}/t/a", b"a")
        fs.pipe_file(f"{film}/t/a", b"again")
        fs.put_file(str(tmp_path / "local"), f"{film}/t/b")
        with fs.open(f"{film}/t/c", "wb") as file:
            file.write(b"c" * MIB)
        assert not fs.exists(f"{film}/t")
    assert fs.cat_file(f"{film}/t/a") == b"again"
    assert {name: fs.size(name) for name in fs.find(f"{film}/t")} == {
        f"{film}/t/a": 5, f"{film}/t/b": 100_000, f"{film}/t/c": MIB
    }  # fmt: skip
    with ada.client() as client:
        times = {client.history(place(f"{film}:/t/{name}")).lines[0].when_ns for name in "abc"}
    assert len(times) == 1, "one entry has one time"
    fs.pipe_file(f"{film}/after", b"at once")
    assert fs.exists(f"{film}/after")


def test_a_transaction_that_fails_is_nothing(fs: Any, film: str) -> None:
    other: Any = TbshareFileSystem(home=fs.home, skip_instance_cache=True)

    def interrupted() -> None:
        with fs.transaction:
            fs.pipe_file(f"{film}/a", b"a")
            raise ZeroDivisionError

    def too_late() -> None:
        with fs.transaction:
            fs.pipe_file(f"{film}/b", b"b")
            with fs.open(f"{film}/there", "xb") as file:
                file.write(b"c")
            other.pipe_file(f"{film}/there", b"there")

    with pytest.raises(ZeroDivisionError):
        interrupted()
    with pytest.raises(FileExistsError):
        too_late()
    assert fs.ls(film, detail=False) == [f"{film}/there"]
    assert fs.cat_file(f"{film}/there") == b"there"


def test_a_transaction_is_in_one_volume(fs: Any, film: str, ada: Node) -> None:
    create(ada, f"{film}-two")
    with pytest.raises(OSError, match="in one") as caught:
        write_together(fs, [f"{film}/a", f"{film}-two/a"])
    assert caught.value.errno == errno.EXDEV
    assert fs.ls(film) == fs.ls(f"{film}-two") == []


def test_too_much_for_one_moment_is_nothing(fs: Any, film: str) -> None:
    with pytest.raises(OSError, match="at most") as caught:
        write_together(fs, [f"{film}/{number}" for number in range(2050)])
    assert caught.value.errno == errno.E2BIG
    assert fs.ls(film) == []
