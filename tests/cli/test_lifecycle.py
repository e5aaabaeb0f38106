"""up, down and restart, with a daemon that answers from the table."""

import sys
import threading
from pathlib import Path
from typing import cast

import pytest

from tbshare.cli import lifecycle
from tbshare.client import Client
from tbshare.errors import DaemonUnreachable, StoreUnusable, TbshareError
from tests.cli.conftest import Cli, Serving


def program(text: str) -> list[str]:
    """Return the start of a daemon that does `text`; `told` is the descriptor it is given."""
    return [sys.executable, "-c", f"import os, sys, time\ntold = int(sys.argv[-1])\n{text}"]


def test_start_waits_for_ready(home: Path) -> None:
    lifecycle.start(program("os.write(told, b'ready')"), str(home))
    assert (home / "log" / "daemon.stderr").exists()


@pytest.mark.parametrize(
    ("text", "message", "cure"),
    [
        ("os.write(told, b'the store is in use\\n  try: tbshare down')", "the store is in use", "tbshare down"),
        ("os.write(told, b'no room')", "no room", ""),
        ("raise ValueError('no such luck')", "ValueError: no such luck", "tbshare up --foreground"),
        ("os.close(told)", "it did not say why", "tbshare up --foreground"),
        ("os.write(told, b'\\xff\\x00')", "\ufffd", ""),
    ],
)
def test_start_says_what_the_daemon_says(home: Path, text: str, message: str, cure: str) -> None:
    with pytest.raises(StoreUnusable) as caught:
        lifecycle.start(program(text), str(home))
    assert message in str(caught.value)
    assert caught.value.cure == cure


def test_a_daemon_that_is_never_ready_is_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "START_SECONDS", 0.3)
    monkeypatch.setattr(lifecycle, "END_SECONDS", 0.1)
    with pytest.raises(DaemonUnreachable, match="was not ready"):
        lifecycle.start(
            program(f"open({str(home / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"), str(home)
        )


def test_a_home_that_cannot_be_made(cli: Cli, home: Path) -> None:
    home.write_text("a file")
    ended = cli("up")
    assert ended.status == 1
    assert "cannot be" in ended.err
    assert Cli(Path("/" + "x" * 120), cli.capture)("up").status == 1


def test_up_when_it_is_up(serving: Serving, cli: Cli) -> None:
    ended = cli("up")
    assert ended.status == 0
    assert "studio-1 (abababab) is up already: port 7347" in ended.out
    assert "tbshare push" in ended.out
    assert "restart" in cli("up", "--port", "7400").err
    ended = cli("up", "-f")
    assert ended.status == 1
    assert "tbshare down" in ended.err


def test_down_waits_for_the_end(serving: Serving, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def gone(process: int) -> bool:  # the daemon is a thread of this very process
        looked.append(process)
        return len(looked) > 2

    monkeypatch.setattr(lifecycle, "gone", gone)
    ended = cli("down")
    assert (ended.status, ended.out) == (0, "the daemon is stopped\n")
    assert len(looked) == 3
    with pytest.raises(DaemonUnreachable):
        Client.connect(serving.home)
    assert not (serving.home / "run" / "control.sock").exists()
    ended = cli("down")
    assert ended.status == 0
    assert ended.out.startswith("no daemon is running")


def test_down_says_when_it_does_not_end(serving: Serving, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "STOP_SECONDS", 0.3)  # this process, which is the daemon's too, does not end
    ended = cli("down")
    assert ended.status == 1
    assert "has not stopped" in ended.err
    assert "  try: kill " in ended.err


def test_a_leftover_socket_is_no_daemon(cli: Cli, home: Path) -> None:
    import socket

    (home / "run").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(home / "run" / "control.sock"))
    ended = cli("ls")
    assert ended.status == 1
    assert "no daemon is running" in ended.err
    assert cli("down").status == 0


def test_a_daemon_that_does_not_answer(home: Path) -> None:
    import socket

    (home / "run").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home / "run" / "control.sock"))
        listening.listen()
        with pytest.raises(DaemonUnreachable, match="does not answer") as caught:
            Client.connect(home, answer_seconds=0.2)
    assert caught.value.cure == "tbshare restart"


def answer_once(listening: "object", data: bytes) -> None:
    import socket

    assert isinstance(listening, socket.socket)
    connection, _ = listening.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ended while"),
        (b"\x00\x00\x00\x01\xc1", "cannot be read"),
        (b"\xff\xff\xff\xff", "cannot be read"),
        (b"\x00\x00\x00\x01", "ended while"),
        (b"\x00\x00\x00\x05\x81\xa2id\x01", "cannot be read"),
    ],
)
def test_a_daemon_that_talks_nonsense(home: Path, data: bytes, said: str) -> None:
    import socket

    (home / "run").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home / "run" / "control.sock"))
        listening.listen()
        thread = threading.Thread(target=answer_once, args=(listening, data))
        thread.start()
        with pytest.raises(TbshareError, match=said):
            Client.connect(home, answer_seconds=5)
        thread.join()


def test_another_level_is_refused_but_can_be_stopped(home: Path) -> None:
    import socket

    import msgspec

    from tbshare.wire import local, report
    from tbshare.wire.envelope import seal

    hello = report.HelloReport(level=99, version="9.9.9", pid=1)
    answer = local.Answer(1, result=msgspec.Raw(msgspec.msgpack.encode(hello)))
    (home / "run").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home / "run" / "control.sock"))
        listening.listen()
        for any_level in (False, True):
            thread = threading.Thread(target=answer_once, args=(listening, seal(msgspec.msgpack.encode(answer))))
            thread.start()
            if any_level:
                with Client.connect(home, any_level=True) as client:
                    assert client.daemon.version == "9.9.9"
            else:
                with pytest.raises(DaemonUnreachable, match=r"9\.9\.9") as caught:
                    Client.connect(home)
                assert caught.value.cure == "tbshare restart"
            thread.join()


def test_restart_keeps_what_up_was_given(home: Path) -> None:
    """A node that was told to listen on one address must not listen on all of them after an upgrade."""
    cli = Cli(home, cast("pytest.CaptureFixture[str]", None))
    assert cli.process("up", "--port", "0", "--listen", "127.0.0.1", "--name", "attic").status == 0
    try:
        assert cli.process("restart").status == 0
        with Client.connect(home) as client:
            state = client.status()
        assert state.node.name == "attic"
        assert [address.rpartition(":")[0] for address in state.node.addresses] == ["127.0.0.1"]
        assert cli.process("restart", "--name", "cellar").status == 0
        with Client.connect(home) as client:
            state = client.status()
        assert [address.rpartition(":")[0] for address in state.node.addresses] == ["127.0.0.1"]
    finally:
        assert cli.process("down").status == 0
