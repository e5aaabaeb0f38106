"""Whatever is typed: an exit status of the table, and an error of two lines, never a traceback."""

import json
import tomllib
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tbshare.cli import show
from tbshare.cli.config import edited, toml
from tbshare.cli.main import COMMANDS
from tbshare.daemon.config import KEYS
from tbshare.errors import ExitStatus
from tests.cli.conftest import Cli, Serving

# these start, stop or wait for something outside the table
HARMLESS = sorted(set(COMMANDS) - {"up", "down", "restart", "config"})
OPTIONS = [
    "--json", "--to", "--to=a,,b", "--name", "--limit", "--help", "--home", "--all", "-d", "-x", "--", "-", "--=",
    "--now", "--repair", "--yes", "--max-tokens", "ls", "rename", "--include", "--temperature=nan", "--seed=1",
]  # fmt: skip
WORD = st.one_of(
    st.sampled_from(OPTIONS), st.sampled_from(["llama-70b", "p1", "/", ".", "7-a@b"]), st.text(max_size=20)
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(command=st.one_of(st.sampled_from(HARMLESS), st.text(max_size=8)), words=st.lists(WORD, max_size=5))
def test_any_words(serving: Serving, cli: Cli, command: str, words: list[str]) -> None:
    if command in ("up", "down", "restart", "config") or "--home" in words:
        return
    ended = cli(command, *words)
    assert ended.status in (0, 1, 2, 3)
    if ended.status == ExitStatus.USAGE:
        assert ended.err.splitlines()[-2].startswith("error: ")
        assert ended.err.splitlines()[-1].startswith("  try: ")
    if "--json" in words and ended.status == 0 and "--help" not in words and "--" not in words:
        for line in ended.out.splitlines():
            if command not in ("help", "completion", ""):
                json.loads(line)


@given(st.text())
def test_printable_is_one_harmless_line(text: str) -> None:
    shown = show.printable(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


@given(st.text(), st.integers(min_value=1, max_value=50))
def test_clipped_fits(text: str, columns: int) -> None:
    shown = show.clipped(show.printable(text), columns)
    assert show.width(shown) <= columns


@given(value=st.one_of(st.text(), st.integers(-(1 << 40), 1 << 40), st.lists(st.text(), max_size=3)))
def test_any_value_survives_config_toml(value: str | int | list[str]) -> None:
    if isinstance(value, str) and not _encodable(value):
        return
    assert tomllib.loads(f"x = {toml(value)}") == {"x": value}


def _encodable(text: str) -> bool:
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


@given(st.permutations(sorted(KEYS)))
def test_config_edits_add_up(order: list[str]) -> None:
    text = "# a comment\n"
    for key in order:
        text = edited(text, key, "1")
    for key in order:
        text = edited(text, key, "2")
    table = tomllib.loads(text)
    for key in order:
        section, _, name = key.rpartition(".")
        assert table[section][name] == "2"
    assert text.startswith("# a comment\n")


def test_output_that_nobody_reads_ends_quietly(serving: Serving, cli: Cli, tmp_path: Path) -> None:
    import subprocess

    command = " ".join(cli.command("ls")) + " --json | true"
    ended = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert ended.stderr == ""


def test_ascii_terminals_get_escapes(serving: Serving, cli: Cli) -> None:
    ended = cli.process(PYTHONIOENCODING="ascii:strict", LC_ALL="C")
    assert ended.status == 0
    assert "tbshare run REF" in ended.out
