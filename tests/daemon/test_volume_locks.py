"""Locks between two nodes, as their users meet them."""

from pathlib import Path

import pytest
import trio

from tbshare.daemon import locks
from tbshare.daemon.handlers import NodeHandlers
from tbshare.errors import Locked, VolumeReadOnly
from tbshare.volumes import leases
from tbshare.wire.files import FileCopyParams, FileMoveParams, FileStatParams, HistoryParams
from tbshare.wire.report import AnyEvent
from tbshare.wire.volume import LocksParams
from tbshare.wire.where import Where
from tests.together import Inside, make_volume, together, until


async def emit(_: AnyEvent) -> None:
    await trio.lowlevel.checkpoint()


async def write(handlers: NodeHandlers, source: Path, text: bytes) -> None:
    source.write_bytes(text)  # noqa: ASYNC240  (a few bytes)
    await handlers.file_copy(FileCopyParams([Where(path=bytes(source))], Where("film", b"cut")), emit)


@pytest.mark.parametrize("policy", ["refuse", "read-only"])
def test_what_another_has_open_is_refused_and_says_who_has_it(tmp_path: Path, policy: str) -> None:
    ada, grace = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace")

    async def check() -> None:
        async with together(ada, grace):
            volume = await make_volume(ada, "film", locked=policy)
            at_ada, at_grace = NodeHandlers(ada.service), NodeHandlers(grace.service)
            await write(at_ada, tmp_path / "source", b"first")
            await until("grace knows it", lambda: grace.service.volumes.open("film").find((b"cut",)) is not None)
            file = grace.service.volumes.open("film").lookup((b"cut",)).file
            grant = await grace.service.leasing.take(volume, file)
            for handlers in (at_ada, at_grace):
                await told(handlers)
            with pytest.raises(VolumeReadOnly if policy == "read-only" else Locked, match="grace"):
                await write(at_ada, tmp_path / "source", b"second")
            with pytest.raises(VolumeReadOnly if policy == "read-only" else Locked, match="grace"):
                await at_ada.file_move(FileMoveParams(Where("film", b"cut"), Where("film", b"moved")), emit)
            item = (await at_ada.file_stat(FileStatParams(Where("film", b"cut")), emit)).item
            assert item.locked_by == "grace"
            await write(at_grace, tmp_path / "source", b"hers")  # she has the lock
            await grace.service.leasing.release(volume, file)
            await until("ada knows hers", lambda: len(ada.service.volumes.open("film").history((b"cut",))) == 2)
            await write(at_ada, tmp_path / "source", b"third")
            lines = (await at_ada.history(HistoryParams(Where("film", b"cut")), emit)).lines
            assert [line.author for line in lines] == ["ada", "grace", "ada"]
            rows = ada.service.volumes.tables(volume).versions(file)
            assert [row.epoch > 0 for row in rows] == [True, True, False], "a new file is locked by nobody"
            assert rows[1].epoch == grant.epoch
            assert rows[0].epoch > rows[1].epoch

    trio.run(check)


def test_nobody_waits_for_a_node_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "DECIDED_SECONDS", float("inf"))
    monkeypatch.setattr(leases, "TERM_SECONDS", 1000.0)  # for which a granter gives nothing after its start
    ada, grace = Inside(tmp_path / "a", "ada"), Inside(tmp_path / "g", "grace")

    async def check() -> None:
        async with together(ada, grace) as nursery:
            await make_volume(ada, "film")
            await write(NodeHandlers(ada.service), tmp_path / "source", b"first")
            away = grace.node
            await grace.down()
            await ada.down()
            await ada.up(nursery)
            await until("nobody answers there", lambda: away in ada.service.mesh.absent)
            await write(NodeHandlers(ada.service), tmp_path / "source", b"second")
            await grace.up(nursery)
            ada.service.mesh.learn(grace.node, [f"127.0.0.1:{grace.port}"])
            await until("grace is back", lambda: away in ada.service.mesh.peers)
            assert not ada.service.mesh.absent

    trio.run(check)


async def told(handlers: NodeHandlers) -> None:
    """Wait until a node lists the lock."""
    with trio.fail_after(5):
        while not (lines := (await handlers.locks(LocksParams(), emit)).locks):  # noqa: ASYNC110
            await trio.sleep(0.01)
    (line,) = lines
    assert (str(line.where), line.node, line.kind) == ("film:/cut", "grace", "file")
