"""What a first user met on the command line of volumes, on real daemons: refusals that say what to do instead."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_volumes_real import Shell
from tests.nodes import Node, running, until


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    root = tmp_path_factory.mktemp("w")
    node = Node(root / "a", "ada")
    (root / "one").write_text("one\n")
    bundle = root / "Film.fcpbundle"
    bundle.mkdir()
    (bundle / "db").write_text("cuts\n")
    with running(node):
        shell = Shell(node)
        shell("volume", "create", "film")
        shell("mkdir", "-p", "film:/reels/day-1")
        shell("cp", str(root / "one"), "film:/reels/notes.txt")
        shell("cp", "-r", str(bundle), "film:/")
        yield shell


def failed(shell: Shell, *words: str) -> tuple[int, list[str]]:
    """Return the exit status and what it said."""
    ended = shell.run(*words)
    return ended.returncode, ended.stderr.decode().splitlines()


def test_a_missing_path_names_what_is_nearest_and_a_directory_that_is_there(ada: Shell) -> None:
    said = ["error: nothing is called '/reels/nots.txt'; nearest: notes.txt", "  try: tbshare ls film:/reels"]
    for command in (["cat"], ["show"], ["evict"], ["pin"], ["rm"]):
        assert failed(ada, *command, "film:/reels/nots.txt") == (1, said)
    assert failed(ada, "cp", "film:/reels/nots.txt", ".") == (1, said)
    assert failed(ada, "cat", "film:/reel/day-1/a.mov")[1] == [
        "error: nothing is called '/reel'; nearest: reels",
        "  try: tbshare ls film:/",
    ]


def test_a_volume_where_a_ref_is_wanted(ada: Shell) -> None:
    for command, cure in (
        ("ls", "ls film:/"),
        ("show", "ls film:/"),
        ("rm", "volume rm film"),
        ("pin", "ls film:/"),
    ):
        status, said = failed(ada, command, "film")
        assert status == 1
        assert said[0].endswith("; film is a volume, its files are film:/PATH")
        assert said[1] == f"  try: tbshare {cure}"
    assert failed(ada, "ls", "film@:/") == (
        2,
        ["error: 'film@:/' is neither a ref nor VOLUME:/path", "  try: tbshare help volumes"],
    )


def test_the_volume_of_refs_stays_as_it_is(ada: Shell) -> None:
    assert failed(ada, "volume", "create", "models")[1][0] == "error: volume models is there already, for refs"
    assert failed(ada, "volume", "rm", "models", "--yes")[1][0] == "error: volume models stays: pushes go there"
    assert failed(ada, "volume", "set", "models", "--quota", "1G") == (
        2,
        ["error: volume models has no options: it holds refs", "  try: tbshare help volumes"],
    )


def test_a_snapshot_without_a_name_is_called_by_its_time_and_brings_directories_back(ada: Shell) -> None:
    name = ada("snapshot", "create", "film").split()[1]
    assert name.startswith("20")
    ada("rm", "-r", "film:/reels")
    ada("cp", "-r", f"film@{name}:/reels", "film:/")
    assert ada("cat", "film:/reels/notes.txt") == "one\n"
    assert failed(ada, "ls", "film@nope:/")[1][1] == "  try: tbshare snapshot ls film"
    assert failed(ada, "snapshot", "create", "film", name)[1][1] == "  try: tbshare snapshot ls film"
    assert failed(ada, "watch", f"film@{name}:") == (
        2,
        [f"error: film@{name}:/: nothing changes in a snapshot", "  try: tbshare watch film"],
    )


def test_a_bundle_is_listed_and_takes_files_in(ada: Shell, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("more\n")
    ada("cp", str(tmp_path / "more"), "film:/Film.fcpbundle")
    assert ada("ls", "film:/Film.fcpbundle").splitlines() == ["db", "more"]
    assert ada("ls", "-l", "film:/").splitlines()[1].startswith("drwx")
    assert len(json.loads(ada("history", "--json", "film:/Film.fcpbundle"))["lines"]) == 2


def test_the_home_of_the_node_is_not_taken_in(ada: Shell) -> None:
    for source in (ada.node.home, ada.node.home.parent, ada.node.home / "log"):
        for words in (
            ["cp", "-r", str(source), "film:/home"],
            ["volume", "create", "leak", "--from", str(source)],
        ):
            status, said = failed(ada, *words)
            assert status == 1
            assert "this node's own store and key" in said[-2]
    assert "leak" not in ada("volume", "ls")
    assert failed(ada, "volume", "create", "leak", "--from", str(ada.node.home / "config.toml"))[0] == 1
    assert "leak" not in ada("volume", "ls")


def test_what_was_adopted_stays_a_file_when_it_is_taken_in_again(ada: Shell, tmp_path: Path) -> None:
    footage = tmp_path / "footage"
    (footage / "Cut.fcpbundle" / "Media").mkdir(parents=True)
    clip, media = os.urandom(3_000_000), os.urandom(3_000_000)
    (footage / "clip.mov").write_bytes(clip)
    (footage / "Cut.fcpbundle" / "Media" / "m.mov").write_bytes(media)
    assert "adopted 2 files" in ada("volume", "create", "rushes", "--from", str(footage), "--move")
    assert (footage / "Cut.fcpbundle" / "Media" / "m.mov").is_symlink()
    ada("volume", "create", "rushes", "--from", str(footage), "--move")
    ada("volume", "create", "rushes", "--from", str(footage))
    ada("cp", "-r", str(footage / "clip.mov"), "rushes:/")
    ada("cp", "-r", str(footage / "Cut.fcpbundle"), "rushes:/")
    assert ada.run("cat", "rushes:/clip.mov").stdout == clip
    for path in ("clip.mov", "Cut.fcpbundle"):
        assert len(json.loads(ada("history", "--json", f"rushes:/{path}"))["lines"]) == 1
    assert ada.run("cat", "rushes:/Cut.fcpbundle/Media/m.mov").stdout == media
    assert len(json.loads(ada("history", "--json", "rushes:/clip.mov"))["lines"]) == 1


def test_case_is_no_conflict_where_case_counts(ada: Shell, tmp_path: Path) -> None:
    ada("volume", "create", "exact", "--case-sensitive")
    (tmp_path / "x").write_text("x")
    ada("cp", str(tmp_path / "x"), "exact:/a.mov")
    ada("cp", str(tmp_path / "x"), "exact:/A.mov")
    assert json.loads(ada("conflicts", "exact", "--json"))["conflicts"] == []


@pytest.mark.parametrize("way", ["in", "out"])
def test_ctrl_c_in_the_middle_of_a_copy_leaves_nothing_half_written(ada: Shell, tmp_path: Path, way: str) -> None:
    big = tmp_path / "big"
    with open(big, "wb") as file:
        os.truncate(file.fileno(), 3_000_000_000 if way == "in" else 1_500_000_000)
        file.write(b"not only zeros")
    if way == "out":
        ada("cp", str(big), "film:/big")
    out = tmp_path / "out"
    out.mkdir()
    words = ["cp", str(big), "film:/half"] if way == "in" else ["cp", "film:/big", str(out)]
    command = [sys.executable, "-m", "tbshare.cli", "--home", str(ada.node.home), *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"copying ")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().decode().splitlines()
        assert process.wait() == 130
    assert said[-2:] == [
        "error: interrupted; files that were copied whole stay, none is half-written",
        "  try: the same command again",
    ]
    until("the copy has ended", lambda: not json.loads(ada("ps", "--json"))["processes"])
    assert "half" not in ada("ls", "film:/").split()
    assert list(out.iterdir()) == []
