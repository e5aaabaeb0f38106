"""push --move: the user's files become the objects, links stand in their place, and everything can go back."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tbshare.errors import InputRefused, ObjectInUse
from tbshare.wire.local import PushParams
from tests.nodes import MIB, Node, random_model, running, until

Make = Callable[..., Node]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_move_and_undo(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    model = random_model(tmp_path / "m", 1, 5 * MIB, 300_000)
    before = contents(model)
    inodes = {path.name: path.stat().st_ino for path in model.iterdir()}
    with running(ada, grace):
        report = ada.push(model, name="moved", move=True)
        assert report.files_moved == 2
        assert {line.state for line in report.nodes} == {"durable"}
        assert {path.name for path in model.iterdir() if path.is_symlink()} == {"part-0.weights", "part-1.weights"}
        assert contents(model) == before
        (first, second) = ada.object_files()
        assert {first.stat().st_ino, second.stat().st_ino} == {inodes["part-0.weights"], inodes["part-1.weights"]}
        assert not os.access(first, os.W_OK) or os.geteuid() == 0
        assert first.stat().st_mode & 0o222 == 0
        with ada.client() as client:
            assert client.verify("moved").corrupt == 0
            with pytest.raises(ObjectInUse):
                client.evict("moved")
            with pytest.raises(ObjectInUse):
                client.unpin("moved")
            with pytest.raises(ObjectInUse) as caught:
                client.remove("moved", yes=True)
            assert caught.value.cure == f"tbshare push --move --undo {model}"
            with grace.client() as other:
                other.remove("moved", yes=True)
            until("ada knows", lambda: ada.line("moved@1") is None)
            client.gc(now=True)
            assert contents(model) == before, "what was moved in stays until it is moved out"
            back = client.push(PushParams(str(model), undo=True))
            assert back.files_moved == 2
        assert contents(model) == before
        assert not any(path.is_symlink() for path in model.iterdir())
        assert all(path.stat().st_mode & 0o200 for path in model.iterdir())
        with ada.client() as client, pytest.raises(InputRefused, match="nothing below"):
            client.push(PushParams(str(model), undo=True))


def test_move_refuses_what_somebody_else_has(make_node: Make, tmp_path: Path) -> None:
    ada = make_node("ada")
    with running(ada):
        linked = random_model(tmp_path / "linked", 2, MIB)
        os.link(linked / "part-0.weights", tmp_path / "elsewhere")
        with pytest.raises(InputRefused, match="hard link"):
            ada.push(linked, name="linked", move=True)
        assert not (linked / "part-0.weights").is_symlink()
        with open(linked / "part-0.weights", "r+b"):
            written = random_model(tmp_path / "written", 3, MIB)
            with open(written / "part-0.weights", "r+b"), pytest.raises(InputRefused):
                ada.push(written, name="written", move=True)
        assert not (written / "part-0.weights").is_symlink()
        assert len(contents(written)["part-0.weights"]) == MIB
