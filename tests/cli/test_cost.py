"""A shell waits for these."""

import os
import resource
import subprocess
import sys

import pytest

from tests.cli.conftest import Cli, Serving

CPU_SECONDS_MAX = 0.25
TRIES = 3


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("words", [["--help"], ["ls"], []], ids=["--help", "ls", "alone"])
def test_cpu_of_quick_commands(serving: Serving, cli: Cli, words: list[str]) -> None:
    assert min(cpu_seconds(cli.command(*words)) for _ in range(TRIES)) < CPU_SECONDS_MAX


def test_quick_commands_load_no_slow_modules(serving: Serving, cli: Cli) -> None:
    loaded = "{name.partition('.')[0] for name in sys.modules}"
    code = (
        "import sys; from tbshare.cli.main import main\n"
        "status = main(sys.argv[1:])\n"
        f"print(sorted({loaded} & set(sys.argv[3].split('+'))), file=sys.stderr)"
    )
    for words in (["--help"], ["ls"]):
        slow = "rich+trio+asyncio+cryptography+sqlite3+mlx" + ("+typer" if words == ["--help"] else "")
        ended = subprocess.run(
            [sys.executable, "-c", code.replace("sys.argv[3]", repr(slow)), "--home", str(cli.home), *words],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ,
        )
        assert ended.stderr.splitlines()[-1] == "[]"
