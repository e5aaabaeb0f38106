"""Where bytes are and who has a file open, from the command line: locks, pin, evict, drain on real daemons."""

import os
import subprocess
from functools import partial
from pathlib import Path

import trio

from tbshare.daemon import control
from tbshare.daemon.handlers import NodeHandlers
from tests.cli.test_volumes_real import Shell
from tests.nodes import Node, random_model, running, until
from tests.together import Inside, make_volume, together
from tests.together import until as until_inside


def failed(shell: Shell, *words: str) -> tuple[int, str]:
    """Return the exit status and all it said on stderr."""
    ended = shell.run(*words)
    return ended.returncode, ended.stderr.decode()


def test_evict_and_pin_of_files(tmp_path: Path) -> None:
    nodes = Node(tmp_path / "a", "ada"), Node(tmp_path / "e", "edith")
    clip = os.urandom(3_000_000)
    (tmp_path / "clip.mov").write_bytes(clip)
    with running(*nodes):
        ada, edith = map(Shell, nodes)
        ada("volume", "create", "film")
        ada("mkdir", "film:/reels")
        ada("cp", str(tmp_path / "clip.mov"), "film:/reels/")
        until("edith has it", lambda: b"everywhere" in ada.run("ls", "-l", "film:/reels").stdout)
        ada("pin", "film:/reels")
        status, said = failed(ada, "evict", "film:/reels/clip.mov")
        assert (status, said.splitlines()[-1]) == (1, "  try: tbshare unpin VOLUME:/path")
        ada("unpin", "film:/reels/clip.mov")
        assert "freed 3 MB" in ada("evict", "film:/reels")
        assert "not here" in ada("ls", "-l", "film:/reels")
        status, said = failed(edith, "evict", "film:/reels/clip.mov")
        assert status == 1
        assert "the last copy is never evicted" in said
        assert ada.run("cat", "film:/reels/clip.mov").stdout == clip
        assert "not here" not in ada("ls", "-l", "film:/reels")
        edith("evict", "film:/reels/clip.mov")
        nodes[0].stop()
        status, said = failed(edith, "cat", "film:/reels/clip.mov")
        assert status == 1
        assert "ada saved it (not connected: ada)" in said


def test_a_node_with_refs_and_files_is_drained_and_stays_so(tmp_path: Path) -> None:
    ada_node = Node(tmp_path / "a", "ada")
    nodes = ada_node, Node(tmp_path / "e", "edith", '[store]\naccept = "on-demand"\n')
    model = random_model(tmp_path / "model", 3, 300_000, 70_000)
    (tmp_path / "clip.mov").write_bytes(os.urandom(200_000))
    with running(*nodes):
        ada, edith = map(Shell, nodes)
        ada("push", str(model), "--name", "llama", "--to", "ada")
        ada("volume", "create", "film", "--replicate", "on-demand")
        ada("cp", str(tmp_path / "clip.mov"), "film:/")
        status, said = ada.run("drain", "--no-wait").returncode, ada.run("drain", "--no-wait").stdout.decode()
        assert status == 3
        assert "not yet: 2 versions" in said
        assert "llama@1" in said
        assert "film:/clip.mov" in said
        assert "may be unplugged: all it has is also on edith" in ada("drain")
        ada_node.stop()
        assert edith.run("cat", "film:/clip.mov").stdout == (tmp_path / "clip.mov").read_bytes()
        there = Path(edith("path", "llama").strip())
        assert all((there / file.name).read_bytes() == file.read_bytes() for file in model.iterdir())
        ada_node.start()
        ended = ada.run("status")
        assert ended.returncode == 1
        assert b"tbshare undrain" in ended.stdout + ended.stderr
        assert "takes part" in ada("undrain")
        assert "drained" not in ada.run("status").stdout.decode()


class WithSocket(Inside):
    """A node in this process that the command line reaches."""

    async def _run(self, ready: trio.Event) -> None:
        handlers = NodeHandlers(self.service)
        serve = partial(control.serve, self.service.home / "run" / "control.sock", handlers)
        try:
            await self.service.run(ready=ready.set, serve_control=serve, beside=handlers.run_tasks)
        finally:
            self.service.close()


async def heard(node: Inside, *, locks: int) -> None:
    with trio.fail_after(10):
        while len(node.service.leasing.listed()) != locks:  # noqa: ASYNC110
            await trio.sleep(0.01)


def test_a_lock_of_another_node_is_listed_and_stands_in_the_way(tmp_path: Path) -> None:
    ada, grace = WithSocket(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace")
    (tmp_path / "cut").write_bytes(b"hers")

    async def tbshare(*words: str) -> subprocess.CompletedProcess[bytes]:
        return await trio.to_thread.run_sync(Shell(Node(ada.home, "ada")).run, *words)

    async def check() -> None:
        async with together(ada, grace):
            volume = await make_volume(ada, "film")
            assert (await tbshare("cp", str(tmp_path / "cut"), "film:/cut.prproj")).returncode == 0
            handle = ada.service.volumes.open("film")
            file = handle.lookup((b"cut.prproj",)).file
            await until_inside("grace knows", lambda: bool(grace.service.volumes.open("film").list(())))
            await grace.service.leasing.take(volume, file)
            await heard(ada, locks=1)
            listed = (await tbshare("locks", "film")).stdout.decode().splitlines()[1].split()
            assert listed[:3] == ["film:/cut.prproj", "file", "grace"]
            assert "[locked by grace]" in (await tbshare("ls", "-l", "film:/")).stdout.decode()
            (tmp_path / "cut").write_bytes(b"mine")
            for words in (["cp", str(tmp_path / "cut"), "film:/cut.prproj"], ["rm", "film:/cut.prproj"]):
                ended = await tbshare(*words)
                assert ended.returncode == 1
                assert b"cut.prproj is locked: grace has it open for writing" in ended.stderr
                assert ended.stderr.decode().splitlines()[-1] == "  try: tbshare locks"
            await grace.service.leasing.release(volume, file)
            await heard(ada, locks=0)
            assert (await tbshare("cp", str(tmp_path / "cut"), "film:/cut.prproj")).returncode == 0
            assert (await tbshare("locks")).stderr.decode() == "no locks\n"
            assert len(handle.history((b"cut.prproj",))) == 2

    trio.run(check)
