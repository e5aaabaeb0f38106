"""Promise 1: what was acknowledged survives power loss. A store and a log are recorded at work, system call by
system call, and the power is cut after every one of them, in thousands of ways.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.disk_model import CALLS
from tests.store.power_loss_workload import SABOTAGE, write_sources

STATES = 10_000
SOAK_STATES = 300_000
_FOLDER = Path(__file__).parent
_ROOT = _FOLDER.parent.parent
_SHARDS = min(4, os.cpu_count() or 1)

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed (Debian package: strace)"
)


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory in memory, where there is one: thousands of stores are made in it."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="power-loss-", dir=memory if os.access(memory, os.W_OK) else None)
    yield Path(folder).resolve()
    shutil.rmtree(folder)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT)}


def record(root: Path, sabotage: str = "") -> None:
    """Run the workload below strace; SKIP where tracing is forbidden."""
    (root / "disk").mkdir()
    write_sources(root)
    for phase, expected in (("1", 9), ("2", 0)):
        trace = [
            "strace",
            "-y",
            "-xx",
            "-s",
            "10000000",
            "-e",
            f"trace={CALLS}",
            "-o",
            str(root / f"trace.{phase}"),
        ]
        workload = [sys.executable, str(_FOLDER / "power_loss_workload.py"), str(root), phase, sabotage]
        done = subprocess.run([*trace, *workload], env=environment(), capture_output=True, text=True, check=False)
        if "PTRACE" in done.stderr or "ptrace" in done.stderr:
            pytest.skip(f"this machine forbids tracing: {done.stderr.splitlines()[0]}")
        assert done.returncode == expected, done.stderr


def check(root: Path, states: int) -> tuple[int, str]:
    """Return how many states were found good, and what was wrong with the first that was not."""
    command = [sys.executable, str(_FOLDER / "power_loss_check.py"), str(root), str(-(-states // _SHARDS))]
    shards = [
        subprocess.Popen(
            [*command, str(shard), str(_SHARDS)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for shard in range(_SHARDS)
    ]
    good, wrong = 0, ""
    for shard in shards:
        output, errors = shard.communicate()
        if shard.returncode:
            wrong = wrong or errors
        else:
            counted = json.loads(output)
            good += counted["states"]
    return good, wrong


@needs_strace
@pytest.mark.timeout(900)
def test_what_was_acknowledged_survives_power_loss(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(root)
    good, wrong = check(root, STATES)
    with capsys.disabled():
        print(f" [power cut in {good:,} different states]", end=" ")  # noqa: T201
    assert not wrong, wrong
    assert good >= STATES


@needs_strace
@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_what_was_acknowledged_survives_power_loss_soak(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(root)
    good, wrong = check(root, SOAK_STATES)
    with capsys.disabled():
        print(f" [power cut in {good:,} different states]", end=" ")  # noqa: T201
    assert not wrong, wrong
    assert good >= SOAK_STATES


@needs_strace
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sabotage", [name for name in SABOTAGE if name])
def test_a_store_that_does_not_sync_is_found_out(root: Path, sabotage: str) -> None:
    record(root, sabotage)
    _, wrong = check(root, 4000)
    assert wrong, f"{sabotage}: and no state showed it"
