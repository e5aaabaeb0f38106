"""Two daemons that are parted and meet again: every save that was acknowledged is there, on both."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from random import Random

import pytest

from tbshare.errors import DaemonUnreachable, TbshareError
from tbshare.wire.report import AnyEvent
from tbshare.wire.volume import Changed
from tests.nodes import MIB, Node, running, until, until_connected
from tests.volume_nodes import copy, create, names, place, read, stat, write

Make = Callable[..., Node]


def knows(node: Node, text: str, data: bytes) -> bool:
    """Whether a node reads these bytes at a path by now."""
    try:
        return read(node, text) == data
    except TbshareError:
        return False


def contents(node: Node, text: str) -> dict[str, bytes]:
    """Return name -> bytes of the files in a directory."""
    return {name: read(node, f"{text}{name}") for name in names(node, text)}


def part(ada: Node, grace: Node) -> None:
    """Leave ada alone."""
    grace.stop()
    until("grace has left", lambda: not ada.connected())


def swap(ada: Node, grace: Node) -> None:
    """Leave grace alone."""
    ada.stop()
    grace.start()


def meet(ada: Node, grace: Node) -> None:
    """Let both be there again."""
    ada.start()
    until_connected((ada, grace))


def test_what_one_saves_the_other_reads(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    data = Random(1).randbytes(5 * MIB)
    with running(ada, grace):
        create(ada, "film")
        write(ada, "film:/a.mov", data, tmp_path)
        until("grace has it", lambda: knows(grace, "film:/a.mov", data))
        until("ada knows", lambda: stat(ada, "film:/a.mov").copies == "everywhere")
        write(grace, "film:/a.mov", b"hers", tmp_path)
        until("ada has it", lambda: knows(ada, "film:/a.mov", b"hers"))
        assert names(ada, "film:/") == names(grace, "film:/") == ["a.mov"]
        with ada.client() as client:
            assert [line.author for line in client.history(place("film:/a.mov")).lines] == ["grace", "ada"]


def test_saves_on_both_sides_are_both_kept_and_shown(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace):
        create(ada, "film")
        write(ada, "film:/cut.txt", b"first", tmp_path)
        until("grace has it", lambda: knows(grace, "film:/cut.txt", b"first"))
        part(ada, grace)
        write(ada, "film:/cut.txt", b"ada's", tmp_path)
        swap(ada, grace)
        write(grace, "film:/cut.txt", b"grace's", tmp_path)
        meet(ada, grace)
        both = {b"ada's", b"grace's"}
        for node in (ada, grace):
            until("both are shown", lambda node=node: set(contents(node, "film:/").values()) == both)  # type: ignore[misc]
        assert contents(ada, "film:/") == contents(grace, "film:/")
        assert "cut.txt" in names(ada, "film:/")
        (other,) = set(names(ada, "film:/")) - {"cut.txt"}
        assert other.startswith("cut (from ")
        attention = [line for line in ada.status().attention if line.kind == "conflict"]
        assert attention
        assert "tbshare conflicts" in attention[0].cure
        with ada.client() as client:
            (conflict,) = client.conflicts("film").conflicts
            assert {line.author for line in conflict.shown} == {"ada", "grace"}
            client.resolve(place("film:/cut.txt"), b"grace")
        for node in (ada, grace):
            until("one is left", lambda node=node: contents(node, "film:/") == {"cut.txt": b"grace's"})  # type: ignore[misc]
        with grace.client() as client:
            lines = client.history(place("film:/cut.txt")).lines
            assert {read(grace, "film:/cut.txt", version=line.version) for line in lines} >= both
            assert client.conflicts("film").conflicts == []


def test_an_edit_beats_a_removal(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace):
        create(ada, "film")
        write(ada, "film:/a", b"first", tmp_path)
        until("grace has it", lambda: knows(grace, "film:/a", b"first"))
        part(ada, grace)
        with ada.client() as client:
            client.file_remove([place("film:/a")])
        assert names(ada, "film:/") == []
        swap(ada, grace)
        write(grace, "film:/a", b"edited", tmp_path)
        meet(ada, grace)
        for node in (ada, grace):
            until("the edit is there", lambda node=node: knows(node, "film:/a", b"edited"))  # type: ignore[misc]


def test_a_bundle_forks_as_a_whole(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    film = tmp_path / "Film.fcpbundle"
    film.mkdir()
    (film / "one").write_bytes(b"one")
    (film / "two").write_bytes(b"two")
    with running(ada, grace):
        create(ada, "film")
        copy(ada, film, "film:/", recursive=True)
        until("grace has it", lambda: knows(grace, "film:/Film.fcpbundle/one", b"one"))
        part(ada, grace)
        write(ada, "film:/Film.fcpbundle/one", b"one of ada", tmp_path)
        swap(ada, grace)
        write(grace, "film:/Film.fcpbundle/two", b"two of grace", tmp_path)
        meet(ada, grace)
        sides = [
            {"one": b"one of ada", "two": b"two"},
            {"one": b"one", "two": b"two of grace"},
        ]
        for node in (ada, grace):
            until("both are shown", lambda node=node: len(names(node, "film:/")) == 2)  # type: ignore[misc]
            shown = [contents(node, f"film:/{name}/") for name in names(node, "film:/")]
            assert sorted(shown, key=str) == sorted(sides, key=str)
        (other,) = set(names(ada, "film:/")) - {"Film.fcpbundle"}
        assert other.startswith("Film (from ")
        assert other.endswith(").fcpbundle")


def test_watch_tells_of_a_change_elsewhere_at_once(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    seen: SimpleQueue[AnyEvent] = SimpleQueue()
    with running(ada, grace), contextlib.ExitStack() as stack:
        create(ada, "film")
        write(ada, "film:/reels", b"x", tmp_path)
        until("grace has it", lambda: knows(grace, "film:/reels", b"x"))
        client = stack.enter_context(grace.client())

        def follow() -> None:
            with contextlib.suppress(TbshareError, OSError, ValueError):  # until it is closed
                client.watch(place("film:/"), seen.put)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        random = Random(3)

        def is_told() -> bool:
            write(ada, "film:/tick", random.randbytes(9), tmp_path)
            return not seen.empty()

        until("it watches", is_told)
        write(ada, "film:/new.mov", b"new", tmp_path)
        found: list[Changed] = []
        while not any(event.where.path == b"new.mov" for event in found):
            event = seen.get(timeout=30)
            assert isinstance(event, Changed)
            found.append(event)
        assert [(event.what, event.author, event.here) for event in found if event.where.path == b"new.mov"] == [
            ("created", "ada", False)
        ]

        def next_of(what: str) -> tuple[object, ...]:
            while True:
                event = seen.get(timeout=30)
                assert isinstance(event, Changed)
                if event.where.path != b"tick":
                    assert event.what == what
                    before = event.before.path if event.before is not None else None
                    return event.where.path, before, event.kind, event.author

        with ada.client() as other:  # one after the other: of what comes together only the end is told
            other.file_mkdir(place("film:/done"))
            assert next_of("created") == (b"done", None, "directory", "ada")
            other.file_move(place("film:/new.mov"), place("film:/done/old.mov"))
            assert next_of("moved") == (b"done/old.mov", b"new.mov", "file", "ada")
            other.file_move(place("film:/done"), place("film:/kept"))
            assert next_of("moved") == (b"kept", b"done", "directory", "ada")
            other.file_remove([place("film:/kept")], recursive=True)
            assert next_of("removed") == (b"kept", None, "directory", "ada")  # and then what is in it


@pytest.mark.timeout(240)
def test_kills_during_copies_lose_nothing_acknowledged(make_node: Make, tmp_path: Path) -> None:
    ada = make_node("ada")
    random = Random(5)
    acknowledged: dict[str, bytes] = {}
    with running(ada):
        create(ada, "film")
        for number in range(12):
            source = tmp_path / f"d{number}"
            source.mkdir()
            for each in range(40):
                (source / f"f{each}").write_bytes(random.randbytes(random.choice([100, 70_000, 900_000])))
            moment = random.uniform(0, 0.4)
            killer = threading.Timer(moment, ada.kill)
            killer.start()
            try:
                copy(ada, source, "film:/", recursive=True)
                acknowledged |= {f"d{number}/{path.name}": path.read_bytes() for path in source.iterdir()}
            except (DaemonUnreachable, OSError):
                pass
            finally:
                killer.join()
            ada.start()
            for path, data in acknowledged.items():
                assert knows(ada, f"film:/{path}", data), path
            if f"d{number}" in names(ada, "film:/"):
                for name in names(ada, f"film:/d{number}"):
                    assert read(ada, f"film:/d{number}/{name}") == (source / name).read_bytes()
        assert ada.status().attention == []
        with ada.client() as client:
            assert client.verify().corrupt == 0
