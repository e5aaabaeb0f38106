"""What a daemon does by itself from time to time."""

import sqlite3
from pathlib import Path

import pytest
import trio

from tbshare.daemon import keep
from tbshare.daemon.keep import Keep
from tbshare.daemon.refs import Refs
from tbshare.volumes.entry import Describe
from tbshare.volumes.log import NEWEST_KEPT
from tests.together import Inside, make_volume, together, until


def test_the_log_is_packed_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "GC_SECONDS", 0.1)
    ada = Inside(tmp_path / "a", "ada")

    async def check() -> None:
        async with together(ada) as nursery:
            volume = await make_volume(ada, "film")
            log = ada.service.log
            for number in range(1, NEWEST_KEPT + 600):
                await trio.to_thread.run_sync(log.append, [Describe(volume=volume, id=number, mode=0o600)])
            nursery.start_soon(Keep(ada.service, Refs(ada.service)).run)
            await until("it is packed", lambda: segments(ada.home) > 0)

    trio.run(check)


def test_the_age_of_versions_is_kept_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "TICK_SECONDS", 0.1)
    ada = Inside(tmp_path / "a", "ada")

    async def check() -> None:
        async with together(ada) as nursery:
            volume = await make_volume(ada, "film")
            nursery.start_soon(Keep(ada.service, Refs(ada.service)).run)
            await until("the clock goes on", lambda: ada.service.volumes.tables(volume).clock > 0.1)

    trio.run(check)


def segments(home: Path) -> int:
    file = sqlite3.connect(home / "log.db")
    try:
        return int(file.execute("SELECT count(*) FROM segments").fetchone()[0])
    finally:
        file.close()
