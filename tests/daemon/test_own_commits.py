"""A mount is not told of its own commits; but of those that it shares with somebody else."""

import threading
from pathlib import Path

import pytest

from tbshare.daemon.mounts import _Own  # pyright: ignore[reportPrivateUsage]
from tbshare.peers.identity import Identity
from tbshare.volumes.entry import Save
from tbshare.volumes.log import Log
from tbshare.volumes.rows import Changes

ADA, BEN = 7, 8  # two mounts


def save(number: int) -> Save:
    return Save(volume=5, file=number, version=number, content=number.to_bytes(32, "big"), size=number)


def test_the_log_says_whose_ops_it_commits(tmp_path: Path) -> None:
    one, two = (
        Log.open(tmp_path / f"{name}.db", Identity.load_or_create(tmp_path / f"{name}.key")) for name in ("a", "b")
    )
    genesis = one.create_cluster("a")
    entries = [genesis, one.add_member(Identity.load_or_create(tmp_path / "b.key").certificate, "b")]
    two.join(one.cluster, certificate=Identity.load_or_create(tmp_path / "a.key").certificate, name="a")
    two.receive([entry.encoded for entry in entries])
    seen: dict[int, frozenset[int]] = {}
    one.on_commit.append(
        lambda arrived: seen.update(
            {op.file: one.committing for _, entry in arrived for op in entry.ops if isinstance(op, Save)}
        )
    )
    mine: dict[int, int] = {}

    def work(start: int) -> None:
        for number in range(start, start + 40):
            mine[number] = threading.get_ident()
            one.append([save(number)])

    threads = [threading.Thread(target=work, args=(1 + 100 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine[number] in seen[number] for number in mine)
    assert all(committing <= set(mine.values()) for committing in seen.values())
    one.receive([two.append([save(10_000)]).encoded])
    assert seen[10_000] == frozenset(), "of another node"
    one.close()
    two.close()


@pytest.mark.parametrize(
    ("committing", "told"),
    [({ADA}, ADA), ({ADA, BEN}, 0), (set[int](), 0), ({ADA, 0}, 0)],
)
def test_what_is_shared_is_told(committing: set[int], told: int) -> None:
    own, changes = _Own(), Changes(files={1})
    threads: dict[int, int] = {0: 0}  # of somebody who commits for no mount
    gathered: dict[int, list[Changes]] = {}
    ready, done = threading.Barrier(3), threading.Event()

    def commit(mount: int) -> None:
        with own.of(mount) as mine:
            threads[mount], gathered[mount] = threading.get_ident(), mine
            ready.wait()
            done.wait()

    running = [threading.Thread(target=commit, args=(mount,)) for mount in (ADA, BEN)]
    for thread in running:
        thread.start()
    ready.wait()
    try:
        assert own.take(frozenset(threads[each] for each in committing), changes) == told
        assert gathered == {mount: [changes] if mount == told else [] for mount in (ADA, BEN)}
    finally:
        done.set()
        for thread in running:
            thread.join()
    assert own.take(frozenset(threads[each] for each in committing), changes) == 0
