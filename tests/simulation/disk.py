"""The disk of a simulated machine: a directory of real files in memory, and what a power cut leaves of it.

The SQLite files are real; nothing is ever synced, so a crash is the copy of the files that a real one could leave:
log.db whole (every commit of it was synced) with torn bytes behind it, of a cache any prefix of its write-ahead
log, or nothing at all. Commits of log.db are also where the power is cut: just before one, or just after.
"""

import shutil
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tbshare.volumes.database import Database

LOG = "log.db"
SYNCHRONOUS_FULL = 2


class PowerCut(BaseException):
    """The machine went dark in the middle of something."""


class Power:
    """The power of one machine, and when it will be cut."""

    def __init__(self) -> None:
        self.on = True
        self._commits: int | None = None
        self._before = False

    def cut_at(self, commits: int, *, before: bool) -> None:
        """Cut the power at the commit after so many more, before it is made or just after."""
        self._commits, self._before = commits, before

    def keep(self) -> None:
        """Do not cut it after all."""
        self.on, self._commits = True, None

    def commit(self, *, before: bool) -> None:
        """A commit is about to be made, or has been made."""
        if not self.on:
            raise PowerCut
        if self._commits is None:
            return
        if self._commits <= 0 and before == self._before:
            self.on = False
            raise PowerCut
        if not before:
            self._commits -= 1


class LogDatabase(Database):
    """log.db, in which a power cut is felt."""

    def __init__(self, path: Path, power: Power) -> None:
        super().__init__(path)
        self._power = power

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection, None, None]:
        with super().transaction() as connection:
            yield connection
            self._power.commit(before=True)
        self._power.commit(before=False)

    def is_synced(self) -> bool:
        """Say whether SQLite syncs each commit: what the crash of this machine takes for granted of log.db."""
        return super().rows("PRAGMA synchronous") == [(SYNCHRONOUS_FULL,)]

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        if not getattr(self, "_power", None) or self._power.on:
            return super().rows(query, *values)
        raise PowerCut


def copy_home(source: Path, target: Path) -> None:
    """Copy what a machine has on its disk, as it lies there now, while it may be in use."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        to = target / path.relative_to(source)
        if path.is_dir():
            to.mkdir(exist_ok=True)
        elif not path.name.endswith("-shm"):  # of no use after a crash
            shutil.copyfile(path, to)


def after_power_cut(
    source: Path, target: Path, random: Random, *, kept: dict[str, int], log_synced: bool = True
) -> None:
    """Make the files that a power cut could leave; `kept` are bytes of write-ahead logs known to be synced."""
    copy_home(source, target)
    for wal in sorted(target.rglob("*-wal")):
        size = wal.stat().st_size
        if wal.name == f"{LOG}-wal" and log_synced:
            with wal.open("ab") as file:
                file.write(random.randbytes(random.randrange(0, 5000)))
            continue
        chance = random.random()
        database = wal.with_name(wal.name.removesuffix("-wal"))
        synced = min(kept.get(str(database.relative_to(target)), 0), size)
        if chance < 0.4:
            with wal.open("ab") as file:
                file.truncate(random.randint(synced, size))
        elif chance < 0.5 and not synced:
            wal.unlink()
            database.unlink()
