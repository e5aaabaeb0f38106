"""Progress on a terminal and off it, and Ctrl-C."""

import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

import pytest

from tbshare.cli import show, watch
from tbshare.wire import report
from tests.cli.conftest import Cli, Serving, progress


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    return str(tmp_path / "model")


class Terminal:
    """A command whose stdin, stdout and stderr are one terminal."""

    def __init__(self, command: list[str]) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.text = ""

    def read_until(self, wanted: str) -> None:
        deadline = time.monotonic() + 30
        while wanted not in self.text:
            left = deadline - time.monotonic()
            assert left > 0, self.text
            assert select.select([self._master], [], [], left)[0], self.text
            try:
                data = os.read(self._master, 65536)
            except OSError as error:  # Linux says so when the other side is closed
                raise AssertionError(f"ended without {wanted!r}: {self.text}") from error
            self.text += data.decode(errors="replace")

    def rest(self) -> str:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                break
            if not data:
                break
            self.text += data.decode(errors="replace")
        return self.text

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)

    def end(self) -> int:
        self.rest()
        status = self.process.wait(30)
        os.close(self._master)
        assert "Traceback" not in self.text
        return status


def test_on_a_terminal_the_lines_are_redrawn(serving: Serving, cli: Cli, model: str) -> None:
    with Terminal(cli.command("push", model)) as terminal:
        assert terminal.end() == 0
    text = terminal.text
    assert "\x1b[1A" in text
    assert "from studio-1" in text
    assert "saved" in text
    assert "1.5 GB/s" in text
    assert text.replace("\r\n", "\n").endswith("2 GB moved\n")


def test_elsewhere_there_are_plain_lines(serving: Serving, cli: Cli, model: str) -> None:
    ended = cli.process("push", model)
    assert ended.status == 0
    assert "\x1b" not in ended.out + ended.err
    fetching = [line for line in ended.err.splitlines() if " at 1.5 GB/s" in line]
    assert fetching == ["studio-2 0% at 1.5 GB/s from studio-1, 2.7 s left".replace("0%", "0 %")]
    assert "studio-2 done" in ended.err


def test_a_dumb_terminal_gets_plain_lines(
    serving: Serving, cli: Cli, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in cli("push", model).err


@pytest.mark.parametrize(
    ("words", "wanted", "said"),
    [
        (["push", "MODEL", "--name", "hang"], " 0 %", "go on fetching it in the background"),
        (["push", "MODEL", "--name", "hang-before"], "reading", "nothing is published yet"),
        (["run", "llama-70b", "hang"], "ready in", "the run is stopped"),
    ],
)
def test_ctrl_c(serving: Serving, cli: Cli, model: str, words: list[str], wanted: str, said: str) -> None:
    with Terminal(cli.command(*[model if word == "MODEL" else word for word in words])) as terminal:
        terminal.read_until(wanted)
        os.kill(terminal.process.pid, signal.SIGINT)
        assert terminal.end() == 130
    assert said in terminal.text
    assert "  try: tbshare " in terminal.text
    deadline = time.monotonic() + 10
    while not serving.answers.cancelled:  # the daemon hears of it when the socket closes
        assert time.monotonic() < deadline
    assert serving.answers.cancelled == [words[0]]


def test_rm_asks(serving: Serving, cli: Cli) -> None:
    with Terminal(cli.command("rm", "llama-70b")) as terminal:
        terminal.read_until("[y/N] ")
        terminal.type("n\n")
        assert terminal.end() == 1
    assert "nothing was removed" in terminal.text
    with Terminal(cli.command("rm", "llama-70b")) as terminal:
        terminal.read_until("[y/N] ")
        terminal.type("yes\n")
        assert terminal.end() == 0
    assert "removed llama-70b@1" in terminal.text


class Clock:
    """Time that only moves when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_plain_lines_come_every_two_seconds_and_at_changes(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = show.Progress(clock=clock)
    for step in range(100):
        clock.seconds = step / 8
        shown.update(lambda columns: [], lambda step=step: f"step {step}", changed=step == 37)  # type: ignore[misc]
    assert capsys.readouterr().err.split("\n")[:-1] == [f"step {step}" for step in (0, 16, 32, 37, 53, 69, 85)]


def test_node_lines_fit_narrow_terminals() -> None:
    nodes = [progress("studio-2", "fetching", 10**9), progress("名前", "failed", 0)]
    for columns in (20, 40, 80, 120):
        lines = [show.clipped(line, columns) for line in watch.node_lines(nodes, columns)]
        assert all(show.width(line) <= columns for line in lines)
    assert "░" in watch.node_lines(nodes, 120)[0]
    assert "failed: disk full" in watch.node_lines(nodes, 120)[1]


def test_one_after_another_is_reckoned_from_what_was_measured() -> None:
    nodes = [
        report.NodeProgress(name=name, id=name, state="durable", bytes_moved=470 * 10**9)
        for name in ("a", "b", "c")
    ]
    ended = report.PushReport(ref="m@1", tree="", bytes=470 * 10**9, files=9, seconds_moving=71.0, nodes=nodes)
    assert watch.closing_lines(ended, 6.7e9) == [
        "m@1: 470 GB to 3 nodes in 71 s at 6.6 GB/s each; one after another: about 4 min"
    ]
    assert watch.closing_lines(ended, 0.0) == ["m@1: 470 GB to 3 nodes in 71 s at 6.6 GB/s each"]


def test_no_line_is_wider_than_said(serving: Serving, cli: Cli, model: str) -> None:
    with Terminal(cli.command("push", model)) as terminal:
        terminal.end()
    drawn = re.split(r"\x1b\[\d*[AJK]|\r|\n", terminal.text)
    assert max(show.width(line) for line in drawn) <= 120


def test_no_speed_is_said_of_what_was_there_already() -> None:
    nodes = [
        report.NodeProgress(name=name, id=name, state="durable", bytes_moved=100_000, bytes_reused=541_900_000)
        for name in ("a", "b")
    ]
    ended = report.PushReport(
        ref="m@2", tree="", bytes=542_000_000, files=7, seconds_moving=4.9, rate_best=1e9, nodes=nodes
    )
    assert watch.closing_lines(ended, 1e9) == [
        "m@2: 542 MB to 2 nodes in 4.9 s",
        "saved by dedup: 542 MB on each node were there already, 200 kB moved",
    ]
