"""`tbshare mount` and `tbshare unmount`, as typed."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tbshare.cli.lifecycle import gone
from tbshare.errors import MountFailed
from tbshare.fuse import mounting
from tests.fuse.mounts import another, needs_mounting, said, tell
from tests.nodes import Node, running, until
from tests.volume_nodes import create, write

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Generator[Node]:
    needs_mounting()
    if os.geteuid():
        pytest.skip("mount(2) takes root")
    node = Node(tmp_path_factory.mktemp("node") / "home", "studio")
    with running(node):
        create(node, "film")
        write(node, "film:/a", b"hello", tmp_path_factory.mktemp("scratch"))
        yield node


@pytest.fixture
def home(tmp_path: Path) -> Generator[Path]:
    """A user's home directory; what is mounted in it is unmounted."""
    path = tmp_path / "user"
    path.mkdir()
    yield path
    for point in mounting.mount_points():
        if Path(point.directory).is_relative_to(path):
            with contextlib.suppress(MountFailed):
                mounting.unmount(point.directory, lazily=True)


def run(node: Node, home: Path, *words: str | Path, status: int = 0) -> str:
    """Run a command line; return what it printed, or the error."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tbshare.cli", "--home", node.home, *words],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout if not status else done.stderr


def test_every_volume_on_the_default_path(node: Node, home: Path) -> None:
    where = home / "tbshare"
    assert str(where) in run(node, home, "mount")
    assert {"film", "models"} <= set(os.listdir(where))
    assert (where / "film" / "a").read_bytes() == b"hello"
    assert "is mounted already" in run(node, home, "mount")
    (line,) = json.loads(run(node, home, "status", "--json"))["mounts"]
    assert line["directory"] == str(where)
    assert line["volumes"] == []
    assert f"mount    {where}: every volume, own loop" in run(node, home, "status")
    assert run(node, home, "umount") == f"{where} is unmounted\n"
    assert os.listdir(where) == []
    assert gone(line["pid"])


def test_one_volume_and_who_uses_it(node: Node, home: Path) -> None:
    where = home / "film"
    where.mkdir()
    told = json.loads(run(node, home, "mount", "film", where, "--json"))
    assert (told["directory"], told["volumes"]) == (str(where), ["film"])
    holding = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.readline()"
    with another(holding, where / "a") as process:
        assert said(process) == "open"
        refused = run(node, home, "unmount", where, status=1)
        assert f"process {process.pid}" in refused
        assert str(where / "a") in refused
        tell(process)
        process.wait()
    assert json.loads(run(node, home, "unmount", where, "--json"))["unmounted"]


def test_what_cannot_be(node: Node, home: Path) -> None:
    assert "no volume 'flim'" in run(node, home, "mount", "flim", home / "film", status=2)
    assert "is not there" in run(node, home, "mount", "film", home / "none", status=1)
    assert "nothing of tbshare is mounted" in run(node, home, "unmount", home, status=1)
    assert "no front is called nfs" in run(node, home, "mount", "film", home, "--front", "nfs", status=2)
    assert "--owners" in run(node, home, "mount", "film", home, "--owners", "his", status=2)


def test_after_a_kill_nothing_broken_is_left(node: Node, home: Path) -> None:
    where = home / "film"
    where.mkdir()
    first = json.loads(run(node, home, "mount", "film", where, "--json"))["pid"]
    os.kill(first, 9)
    until("it is unmounted", lambda: mounting.mounted_at(str(where)) is None)
    until("the daemon knows", lambda: not json.loads(run(node, home, "status", "--json"))["mounts"])
    run(node, home, "mount", "film", where)
    assert (where / "a").read_bytes() == b"hello"
    run(node, home, "unmount", where)
