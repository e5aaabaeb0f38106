"""Completion as the shells ask for it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Serving


def completed(cli: Cli, *words: str) -> list[str]:
    """Ask as bash does."""
    ended = subprocess.run(
        [sys.executable, "-m", "tbshare.cli"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={
            **os.environ,
            "TBSHARE_HOME": str(cli.home),
            "_TBSHARE_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["tbshare", *words]),
            "COMP_CWORD": str(len(words)),
        },
    )
    assert ended.stderr == ""
    return ended.stdout.split()


def test_completes_refs_nodes_ids_and_commands(serving: Serving, cli: Cli) -> None:
    assert completed(cli, "show", "lla") == ["llama-70b"]
    assert completed(cli, "show", "llama-70b@") == ["llama-70b@1"]
    assert completed(cli, "node", "rename", "studio") == ["studio-1", "studio-2"]
    assert completed(cli, "push", "x", "--to", "studio-1,studio") == [
        "studio-1,studio-1",
        "studio-1,studio-2",
    ]
    assert completed(cli, "stop", "p") == ["p1"]
    assert completed(cli, "unp") == ["unpin"]
    assert completed(cli, "config", "get", "store.keep") == ["store.keep_free"]


def test_completes_volumes_and_what_is_in_them(
    serving: Serving, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.mov").touch()
    assert completed(cli, "volume", "show", "f") == ["film"]
    assert completed(cli, "ls", "film") == ["film:/"]
    assert completed(cli, "cat", "film:/cut.") == ["film:/cut.prproj"]
    assert completed(cli, "history", "film:/Film") == ["film:/Film.fcpbundle/"]
    assert completed(cli, "cp", "fi") == ["file.mov", "film:/"]  # either side may be of this machine
    assert completed(cli, "snapshot", "rm", "film", "m") == ["monday"]
    assert completed(cli, "volume", "set", "film", "--role", "studio-2") == ["studio-2"]


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("tbshare ls fi", ["film:/"]),
        ("tbshare ls film:/cut.", ["/cut.prproj"]),  # what stands behind the colon: a word of its own to bash
        ("tbshare ls film:/Film", ["/Film.fcpbundle/"]),
        ("tbshare cat film:/cut\\ ", ["/cut\\ \\(from\\ studio-2\\,\\ 2026-11-23\\ 14.05\\).prproj"]),
        ("tbshare unp", ["unpin"]),
        ("tbshare show lla", ["llama-70b"]),
        ("tbshare cat 'film:/cut.pr", ["film:/cut.prproj"]),  # in quotes it does not
        ("tbshare show nothing-such", []),
    ],
)
def test_bash(serving: Serving, cli: Cli, line: str, replies: list[str]) -> None:
    """Bash itself runs the script: it cuts words at colons, and we do not."""
    script = (
        'eval "$(cli completion bash)"; COMP_LINE=$1; COMP_POINT=${#COMP_LINE}; '
        '_tbshare_completion cli; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    define = f'cli() {{ {shlex.join(cli.command())} "$@"; }}; '
    ended = subprocess.run(
        ["bash", "-c", define + script, "bash", line],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TBSHARE_HOME": str(cli.home)},
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == (replies or [""])


@pytest.mark.parametrize("words", [["show", "lla"], ["push", "x", "--to", "s"], ["stop", ""]])
def test_without_a_daemon_there_is_quietly_nothing(cli: Cli, words: list[str]) -> None:
    assert completed(cli, *words) == []
