"""Kill -9 of the mount, or of the daemon, while programs write: what they synced is there, nothing is broken."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.disks import sharing_disk
from tests.fuse.posix_cases import raises
from tests.fuse.volume_mounts import VolumeMount, mounted
from tests.nodes import Node, running, until
from tests.volume_nodes import create

pytestmark = pytest.mark.mount
ROUNDS, SOAK_ROUNDS = 2, 25  # for each of two kinds of disk, or of journal
SAID_MAX = 60  # how much the writers do at most before the kill

# EXTRA: the removal of the journal is synced, too; else SQLite itself takes a transaction back after a crash.
DATABASE = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
database.execute(f"PRAGMA journal_mode={sys.argv[2]}")
database.execute("PRAGMA synchronous=EXTRA")
database.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, y BLOB)")
(number,) = database.execute("SELECT coalesce(max(n), 0) FROM t").fetchone()
while True:
    number += 1
    database.execute("INSERT INTO t VALUES (?, ?)", (number, os.urandom(1500)))
    print(number, flush=True)
"""
FILES = """
import os, sys
directory, number = sys.argv[1], int(sys.argv[2])
while True:
    number += 1
    path = f"{directory}/{number}"
    file = os.open(path + ".tmp", os.O_CREAT | os.O_WRONLY)
    os.write(file, b"%d " % number * 1000)
    os.fsync(file)
    if number % 2:
        os.close(file)
    os.rename(path + ".tmp", path)
    above = os.open(directory, os.O_RDONLY)
    os.fsync(above)
    os.close(above)
    print(number, flush=True)
    if not number % 2:
        os.close(file)
"""


class Load:
    """Two programs that write, and say what they may rely on."""

    def __init__(self, mount: Path, journal: str) -> None:
        self.mount, self.journal = mount, journal
        self.committed = self.synced = 0

    def run(self, kill: "ExitStack", random: Random) -> None:
        """Let them write until both have done something, then do what is to be done to them."""
        (self.mount / "files").mkdir(exist_ok=True)
        writers = [
            _python(DATABASE, self.mount / "a.db", self.journal),
            _python(FILES, self.mount / "files", self.synced),
        ]
        try:
            for writer in writers:
                assert writer.stdout is not None
                for _ in range(random.randrange(1, SAID_MAX)):
                    assert writer.stdout.readline(), "it ended by itself"
        finally:
            kill.close()
            for writer in writers:
                writer.kill()
            self.committed, self.synced = [
                max([before, *map(int, writer.communicate()[0].splitlines())])
                for before, writer in zip((self.committed, self.synced), writers, strict=True)
            ]

    def check(self) -> None:
        """See that all of it is there, and nothing else."""
        with contextlib.closing(sqlite3.connect(self.mount / "a.db", timeout=60)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            count, last = database.execute("SELECT count(*), coalesce(max(n), 0) FROM t").fetchone()
        assert count == last >= self.committed
        files = self.mount / "files"
        for number in range(1, self.synced + 1):
            assert (files / str(number)).read_bytes() == b"%d " % number * 1000
        names = os.listdir(files)
        assert [name for name in [*names, *os.listdir(self.mount)] if "(" in name] == []
        for name in names:
            if name.endswith(".tmp"):
                (files / name).unlink()
        self.synced = max([self.synced, *(int(name) for name in os.listdir(files))])


def _python(text: str, *arguments: object) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-c", text, *[str(argument) for argument in arguments]]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest.fixture(params=["plain", "sharing"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Node]:
    """A node whose disk can share blocks, or cannot."""
    with ExitStack() as stack:
        disk = tmp_path if request.param == "plain" else stack.enter_context(sharing_disk(tmp_path, 2000))
        node = Node(disk / "home", "studio")
        stack.enter_context(running(node))
        create(node, "film")
        yield node


def kill_mounts(node: Node, path: Path, journal: str, rounds: int) -> None:
    load, random = Load(path, journal), Random(rounds)
    for _ in range(rounds):
        with mounted(node, path, "film") as mount, ExitStack() as kill:
            kill.callback(mount.kill)
            load.run(kill, random)
            until("the dead mount is away", lambda: not os.path.ismount(path))
        with mounted(node, path, "film"):
            load.check()


def kill_daemons(node: Node, path: Path, journal: str, rounds: int) -> None:
    load, random = Load(path, journal), Random(rounds)
    with mounted(node, path, "film") as mount:
        for _ in range(rounds):
            with ExitStack() as kill:
                kill.callback(_restart, mount)
                load.run(kill, random)
            load.check()
    assert os.listdir(path) == []
    with mounted(node, path, "film"):
        load.check()


def _restart(mount: VolumeMount) -> None:
    mount.node.kill()
    mount.node.start()


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_the_mount_is_killed(node: Node, tmp_path: Path, journal: str) -> None:
    kill_mounts(node, tmp_path / "mount", journal, ROUNDS)


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_the_daemon_is_killed(node: Node, tmp_path: Path, journal: str) -> None:
    kill_daemons(node, tmp_path / "mount", journal, ROUNDS)


@pytest.mark.soak
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_mounts_are_killed_again_and_again(node: Node, tmp_path: Path, journal: str) -> None:
    kill_mounts(node, tmp_path / "mount", journal, SOAK_ROUNDS)


@pytest.mark.soak
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_daemons_are_killed_again_and_again(node: Node, tmp_path: Path, journal: str) -> None:
    kill_daemons(node, tmp_path / "mount", journal, SOAK_ROUNDS)


def test_who_uses_a_mount_that_is_killed_gets_errors_and_no_more(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "mount"
    with mounted(node, path, "film") as mount:
        with (path / "a").open("wb") as file:
            file.write(b"x")
        descriptor = os.open(path / "a", os.O_RDONLY)
        above = os.open(path, os.O_RDONLY)
        mount.kill()
        until("the dead mount is away", lambda: not os.path.ismount(path))
        with raises(107):  # ENOTCONN
            os.stat("a", dir_fd=above)
        os.close(above)
        with contextlib.suppress(OSError):
            os.close(descriptor)
        assert os.listdir(path) == []  # the directory below
    with mounted(node, path, "film"):
        assert (path / "a").read_bytes() == b"x"
