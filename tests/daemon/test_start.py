"""Starting and stopping: what a daemon refuses to start on, and what it says then."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nodes import Node, NotStartedError, running

Make = Callable[..., Node]


def refusal(node: Node) -> str:
    """Return what a daemon says that does not start: one sentence and a cure, no traceback."""
    with pytest.raises(NotStartedError) as caught:
        node.start()
    said = str(caught.value)
    assert "Traceback" not in said + (node.home.parent / f"{node.home.name}.out").read_text()
    assert len(said.splitlines()) == 2
    assert said.splitlines()[1].startswith("  try: ")
    return said


def test_two_daemons_on_one_home(make_node: Make) -> None:
    ada = make_node("ada")
    second = Node(ada.home, "second")
    with running(ada):
        assert "another daemon has the store" in refusal(second)
        assert ada.status().node.name == "ada"


def test_a_port_that_is_taken(make_node: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ada = make_node("ada")
        ada.port = taken.getsockname()[1]
        assert f"port {ada.port}" in refusal(ada)


def test_a_store_of_a_newer_format(make_node: Make) -> None:
    ada = make_node("ada")
    with running(ada):
        pass
    path = ada.home / "FORMAT"
    path.write_text(path.read_text().replace("level 1", "level 9"))
    assert "has format 9; this version of tbshare reads up to 1" in refusal(ada)


def test_a_store_that_is_gone_is_not_begun_anew(make_node: Make, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    ada = make_node("ada", f'[store]\npath = "{disk}"\n')
    with running(ada):
        pass
    disk.rename(tmp_path / "away")
    assert "is its disk mounted?" in refusal(ada)
    (tmp_path / "away").rename(disk)
    with running(ada):
        assert ada.status().store_path == str(disk)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[store]\nacept = "all"\n', "did you mean store.accept?"),
        ('[store]\naccept = "some"\n', "is one of all, on-demand, none"),
        ('[links]\nlimit = "fast"\n', "is no size"),
        ("[store\n", "config.toml"),
    ],
)
def test_a_config_that_is_wrong(make_node: Make, text: str, said: str) -> None:
    assert said in refusal(make_node("ada", text))


@pytest.mark.parametrize("name", ["device.key", "FORMAT"])
def test_damaged_files(make_node: Make, name: str) -> None:
    ada = make_node("ada")
    with running(ada):
        pass
    (ada.home / name).write_bytes(os.urandom(3000))
    assert name in refusal(ada)


def test_a_damaged_log_is_kept_and_said(make_node: Make) -> None:
    """The node starts: its bytes are there, and what the log lost comes from the others once it is paired."""
    ada = make_node("ada")
    with running(ada):
        pass
    junk = os.urandom(3000)
    (ada.home / "log.db").write_bytes(junk)
    with running(ada):
        (line,) = [each.text for each in ada.status().attention if "log.db" in each.text]
    assert "damaged" in line
    assert "log.db.damaged-1" in line
    assert (ada.home / "log.db.damaged-1").read_bytes() == junk


def test_a_daemon_ends_politely_and_leaves_no_socket(make_node: Make) -> None:
    ada = make_node("ada")
    with running(ada):
        process = ada.process
        assert process is not None
        with ada.client() as client:
            client.shutdown()
            client.wait_closed(10)
        assert process.wait(10) == 0
        ada.process = None
    assert not (ada.home / "run" / "control.sock").exists()
    ada.start()
    ada.stop()


def test_the_home_is_private(make_node: Make) -> None:
    ada = make_node("ada")
    with running(ada):
        for path in (ada.home, ada.home / "run", ada.home / "objects"):
            assert path.stat().st_mode & 0o077 == 0
        assert (ada.home / "device.key").stat().st_mode & 0o777 == 0o600
        assert (
            subprocess.run(["ls", ada.home / "run"], check=True, capture_output=True).stdout == b"control.sock\n"
        )
