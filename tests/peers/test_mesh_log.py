"""Two nodes with a real session in one process: what one commits, in any thread, is soon on the other."""

import statistics
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
import trio.testing

from tbshare.peers.identity import Identity
from tbshare.peers.mesh import Mesh
from tbshare.transport.listener import Kind, listen
from tbshare.volumes.entry import Entry, RefRemove, RefSet, Save
from tbshare.volumes.log import Log
from tbshare.wire import limits
from tbshare.wire.message import Hello


def save(number: int) -> Save:
    return Save(volume=5, file=number, version=number, content=number.to_bytes(32, "big"), size=number)


class Side:
    """A mesh with its log, and when entries came."""

    def __init__(self, home: Path, name: str) -> None:
        self.name = name
        self.identity = Identity.load_or_create(home / f"{name}.key")
        self.log = Log.open(home / f"{name}.db", self.identity)
        self.mesh = Mesh(self.identity, self.log, name=lambda: name, hello=self.hello)
        self.port = 0
        self.came: dict[bytes, float] = {}
        self.log.on_commit.append(self.note)

    def note(self, arrived: Sequence[tuple[int, Entry]]) -> None:
        self.came |= {entry.hash: time.perf_counter() for _, entry in arrived}

    def hello(self) -> Hello:
        return Hello(
            level=limits.LEVEL,
            node=self.identity.node,
            name=self.name,
            version="0",
            cluster=self.log.cluster,
            listen_port=self.port,
            addresses=[f"127.0.0.1:{self.port}"],
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            handlers = {Kind.CONTROL: self.mesh.accept}
            self.port = int(str(await nursery.start(partial(listen, host="127.0.0.1"), 0, handlers)))
            nursery.start_soon(self.mesh.run)
            task_status.started()

    async def until_level(self, other: "Side") -> None:
        with trio.fail_after(30):
            while self.log.vector() != other.log.vector():  # noqa: ASYNC110
                await trio.sleep(0.005)


@asynccontextmanager
async def connected(home: Path) -> AsyncGenerator[tuple[Side, Side]]:
    anna, bert = Side(home, "anna"), Side(home, "bert")
    anna.log.create_cluster("anna")
    anna.log.add_member(bert.identity.certificate, "bert")
    bert.log.join(anna.log.cluster, certificate=anna.identity.certificate, name="anna")
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(anna.run)
            await nursery.start(bert.run)
            bert.mesh.learn(anna.identity.node, [f"127.0.0.1:{anna.port}"])
            await anna.until_level(bert)
            yield anna, bert
            nursery.cancel_scope.cancel()
    finally:
        anna.log.close()
        bert.log.close()


async def test_what_any_thread_commits_is_soon_on_the_other_side(tmp_path: Path) -> None:
    async with connected(tmp_path) as (anna, bert):
        states: list[object] = []

        async def state_changed(state: object) -> None:
            states.append(state)

        await trio.testing.wait_all_tasks_blocked(0.05)
        bert.mesh.on_state(state_changed)

        def write() -> list[Entry]:
            return [anna.log.append([save(number)]) for number in range(1, 400)]

        entries = await trio.to_thread.run_sync(write)
        await bert.until_level(anna)
        late = [bert.came[entry.hash] - anna.came[entry.hash] for entry in entries]
        assert statistics.median(late) < 0.2
        assert not states, "files alone do not change the state"
        op = RefSet(volume="models", name="a", rev=1, tree=b"x" * 32, size_bytes=1, files=1)
        entry = await trio.to_thread.run_sync(anna.log.append, [op])
        await bert.until_level(anna)
        with trio.fail_after(10):
            while not states:  # noqa: ASYNC110
                await trio.sleep(0.005)
        await trio.to_thread.run_sync(anna.log.append, [RefRemove(volume="models", name="a", seen=(entry.hash,))])
        last = anna.log.entries_after(anna.log.last_arrival - 1, 1)[0][1]
        with trio.fail_after(10):
            while not (anna.log.acknowledged_by_all(last) and bert.log.acknowledged_by_all(last)):  # noqa: ASYNC110
                await trio.sleep(0.005)


async def test_a_long_absence_is_made_up_for(tmp_path: Path) -> None:
    async with connected(tmp_path) as (anna, bert):
        for peer in list(anna.mesh.peers.values()):
            await peer.session.aclose()
        with trio.fail_after(10):
            while bert.mesh.peers:  # noqa: ASYNC110
                await trio.sleep(0.002)

        def write(log: Log, first: int) -> None:
            for number in range(first, first + 3000):
                log.append([save(number)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, write, anna.log, 1)
            nursery.start_soon(trio.to_thread.run_sync, write, bert.log, 10_000)
        await anna.until_level(bert)
        assert anna.log.last_arrival == bert.log.last_arrival > 6000
