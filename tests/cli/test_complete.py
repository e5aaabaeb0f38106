"""Completion as the shells ask for it."""

import os
import subprocess
import sys

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
    assert completed(cli, "push", "x", "--to", "studio-1,studio") == ["studio-1,studio-1", "studio-1,studio-2"]
    assert completed(cli, "stop", "p") == ["p1"]
    assert completed(cli, "un") == ["unpin"]
    assert completed(cli, "config", "get", "store.keep") == ["store.keep_free"]


@pytest.mark.parametrize("words", [["show", "lla"], ["push", "x", "--to", "s"], ["stop", ""]])
def test_without_a_daemon_there_is_quietly_nothing(cli: Cli, words: list[str]) -> None:
    assert completed(cli, *words) == []
