"""A shared volume from the command line, with two real daemons: what the README shows."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes import Node, running, until


class Shell:
    """The command line of one node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def run(self, *words: str | bytes) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "tbshare.cli", "--home", str(self.node.home), *words]
        ended = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert b"Traceback" not in ended.stderr
        return ended

    def __call__(self, *words: str | bytes) -> str:
        ended = self.run(*words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.decode()


@pytest.fixture
def shells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, Shell]]:
    root = tmp_path_factory.mktemp("s")
    ada, edith = Node(root / "a", "ada"), Node(root / "e", "edith")
    with running(ada, edith):
        yield Shell(ada), Shell(edith)


def test_a_shared_volume(shells: tuple[Shell, Shell], tmp_path: Path) -> None:
    ada, edith = shells
    footage = tmp_path / "footage"
    (footage / "day-1").mkdir(parents=True)
    clip = os.urandom(3_000_000)
    (footage / "day-1" / "clip.mov").write_bytes(clip)
    (footage / "notes.txt").write_text("one\n")
    odd = os.fsencode(footage) + b"/odd\xff"
    with open(odd, "wb") as file:
        file.write(b"odd")
    said = ada("volume", "create", "film", "--from", str(footage))
    assert "volume film is made (media)\ncopied 3 files, 3 MB" in said
    again = ada("volume", "create", "film", "--from", str(footage))
    assert "already there: 3 files with this content, nothing was copied" in again

    until(
        "edith has it", lambda: edith.run("ls", "film:/").returncode == 0 and "notes.txt" in edith("ls", "film:/")
    )
    assert edith("ls", "film:/").splitlines() == ["day-1/", "notes.txt", "odd\\xff"]
    assert edith.run("cat", "film:/day-1/clip.mov").stdout == clip
    assert edith.run("cat", b"film:/odd\xff").stdout == b"odd"
    names = [item["name"] for item in json.loads(edith("ls", "--json", "film:/"))["items"]]
    assert os.fsencode(names[-1]) == b"odd\xff"

    (tmp_path / "two").write_text("two\n")
    assert "copied 1 file, 4 B" in edith("cp", str(tmp_path / "two"), "film:/notes.txt")
    assert "already there" in edith("cp", str(tmp_path / "two"), "film:/notes.txt")
    until("ada has it", lambda: ada("cat", "film:/notes.txt") == "two\n")
    older = ada("history", "film:/notes.txt").splitlines()[2].split()[0]
    assert ada("cat", "film:/notes.txt", "--version", older) == "one\n"
    ada("snapshot", "create", "film", "monday")
    ada("restore", "film:/notes.txt")
    assert ada("cat", "film:/notes.txt") == "one\n"
    assert ada("cat", "film@monday:/notes.txt") == "two\n"

    assert "no bytes were copied" in ada("cp", "film:/day-1/clip.mov", "film:/copy.mov")
    ada("mv", "film:/copy.mov", "film:/day-1/")
    ada("rm", "-r", "film:/day-1")
    assert ada.run("ls", "film:/day-1").returncode == 1
    ada("restore", "film:/day-1")
    ada("cp", "-r", "film:/day-1", str(tmp_path / "out"))
    assert (tmp_path / "out" / "copy.mov").read_bytes() == clip
    assert "may be unplugged: all it has is also on edith" in ada("drain")
    ada("undrain")


def test_errors_name_their_cure(shells: tuple[Shell, Shell], tmp_path: Path) -> None:
    ada, _ = shells
    ada("volume", "create", "film")
    (tmp_path / "two").write_text("two\n")
    for words, status, cure in (
        (["ls", "film:/nope"], 1, "tbshare ls film:/"),
        (["cat", "film:/a/nope"], 1, "tbshare ls film:/"),
        (["history", "film:/nope"], 1, "tbshare ls film:/"),
        (["ls", "flim:/"], 2, "tbshare volume ls"),
        (["mkdir", "film:/a/b"], 1, "tbshare ls film:/"),
        (["cp", str(tmp_path / "two"), "film@monday:/x"], 2, "tbshare ls film@monday:/x"),
        (["volume", "create", "film"], 2, "tbshare volume show film"),
        (["volume", "set", "film", "--quota", "lots"], 2, "tbshare help volume"),
        (["cp", str(tmp_path / "two"), "models:/x"], 1, "tbshare push PATH"),
    ):
        ended = ada.run(*words)
        assert ended.returncode == status, (words, ended.stderr)
        assert ended.stderr.decode().splitlines()[-1] == f"  try: {cure}", words
