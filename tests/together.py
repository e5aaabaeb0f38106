"""Nodes in one process, for what no command shows: real stores, logs, sockets and lanes, in one event loop."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import trio

from tbshare.content.block import ObjectId
from tbshare.daemon.config import Value, load
from tbshare.daemon.service import Service, opened
from tbshare.errors import UsageError
from tbshare.store.ingest import Ingest
from tbshare.store.source import SourceFile
from tbshare.volumes.entry import Place, Save, VolumeCreate
from tbshare.volumes.ids import Ids
from tbshare.volumes.policy import Option
from tbshare.volumes.rows import VersionRow

UNTIL_SECONDS = 20.0
_ids: dict[bytes, Ids] = {}


class Inside:
    """One node; `up` and `down` begin and end what it does, its disk stays."""

    def __init__(self, home: Path, name: str, **config: Value) -> None:
        self.home, self.name = home, name
        self.config = {key.replace("__", "."): value for key, value in config.items()}
        self.port = 0
        self._service: Service | None = None
        self._ended = trio.Event()

    @property
    def service(self) -> Service:
        """What runs."""
        assert self._service is not None
        return self._service

    @property
    def node(self) -> bytes:
        """Its id."""
        return self.service.identity.node

    def open(self) -> None:
        """Open its disk."""
        values: dict[str, Value] = {
            "node.name": self.name,
            "listen.host": "127.0.0.1",
            "listen.port": self.port,
        }
        self.home.mkdir(parents=True, exist_ok=True)
        self._service = opened(self.home, load(self.home, {**values, **self.config}))

    async def up(self, nursery: trio.Nursery) -> None:
        """Run."""
        if self._service is None:
            self.open()
        ready = trio.Event()
        self._ended = trio.Event()
        nursery.start_soon(self._run, ready)
        await ready.wait()
        self.port = self.service.port

    async def _run(self, ready: trio.Event) -> None:
        async def no_control(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()

        try:
            await self.service.run(ready=ready.set, serve_control=no_control, beside=trio.sleep_forever)
        finally:
            self.service.close()
            self._service = None
            self._ended.set()

    async def down(self) -> None:
        """End, and let go of the disk."""
        self.service.stopping.set()
        await self._ended.wait()


@asynccontextmanager
async def together(*nodes: Inside, pairs: Sequence[tuple[int, int]] | None = None) -> AsyncGenerator[trio.Nursery]:
    """Run nodes as one cluster, the first one's; each is connected with each, or only these pairs."""
    for node in nodes:
        node.open()
    first = nodes[0].service
    for node in nodes[1:]:
        first.log.add_member(node.service.identity.certificate, node.name)
    for node in nodes[1:]:
        node.service.log.join(first.log.cluster, certificate=first.identity.certificate, name=nodes[0].name)
        node.service.log.receive([entry.encoded for _, entry in first.log.entries_after(0, 100)])
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await node.up(nursery)
        for node in nodes:
            for other in nodes:
                if node is not other:
                    node.service.mesh.learn(other.node, [f"127.0.0.1:{other.port}"])
        await connected(*nodes)
        yield nursery
        nursery.cancel_scope.cancel()


async def connected(*nodes: Inside) -> None:
    """Wait until each has a session with each."""
    everybody = {node.node for node in nodes}
    for node in nodes:
        await until("connected", lambda node=node: set(node.service.mesh.peers) >= everybody - {node.node})  # type: ignore[misc]


async def until(what: str, holds: Callable[[], bool], seconds: float = UNTIL_SECONDS) -> None:
    """Ask again and again until it holds; a volume that a node does not know yet is a no."""

    def asked() -> bool:
        with contextlib.suppress(UsageError):
            return holds()
        return False

    with trio.move_on_after(seconds):
        while not await trio.to_thread.run_sync(asked):  # noqa: ASYNC110
            await trio.sleep(0.01)
        return
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


async def make_volume(node: Inside, name: str, mode: str = "media", **options: Option) -> int:
    """Make a volume; return its id."""
    log = node.service.log
    entry = await trio.to_thread.run_sync(log.append, [VolumeCreate(name, mode, options)])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await node.service.mesh.grown([entry])
    return node.service.volumes.open(name).id


def take_in(node: Inside, path: Path) -> tuple[ObjectId, int]:
    """Take a file of this machine into a node's store; return its object and size."""
    ingest = Ingest(node.service.store, workers=1, fixed=True)
    status = path.stat()
    taken = ingest.file(SourceFile((path.name.encode(),), path, status.st_size, status.st_mode & 0o777, 0))
    node.service.store.sync_records()
    return taken.object_id, taken.manifest.size


async def save(node: Inside, volume: int, files: Sequence[Path]) -> list[tuple[int, int]]:
    """Save files into the root of a volume, in one entry of the log; return (file, version) of each."""
    ids = _ids.setdefault(node.node, Ids(node.node, Random()))
    ops: list[Place | Save] = []
    pairs: list[tuple[int, int]] = []
    for path in files:
        content, size = await trio.to_thread.run_sync(take_in, node, path)
        file, version = ids.new(), ids.new()
        ops += [
            Place(volume, ids.new(), ids.new(), file, path.name.encode()),
            Save(volume, file, version, content, size=size),
        ]
        pairs.append((file, version))
    entry = await trio.to_thread.run_sync(node.service.log.append, ops)
    await node.service.mesh.grown([entry])
    return pairs


def row(node: Inside, volume: int, pair: tuple[int, int]) -> VersionRow:
    """Return a version as a node knows it."""
    found = node.service.volumes.tables(volume).version(*pair)
    assert found is not None
    return found


def holds(node: Inside, volume: int, pairs: Sequence[tuple[int, int]]) -> bool:
    """Return whether the bytes of versions are on a node, and it says so of itself."""
    tables = node.service.volumes.tables(volume)
    return all(tables.here(*pair) == 1 for pair in pairs) and set(pairs) == set(
        node.service.spread.holding.here(volume, pairs)
    )


def content_of(node: Inside, volume: int, pair: tuple[int, int]) -> bytes:
    """Return the bytes of a version from a node's own disk, each block verified."""
    store, object_id = node.service.store, ObjectId(row(node, volume, pair).content)
    found = store.manifest(object_id)
    assert found is not None
    return b"".join(map(partial(store.read_block, object_id), range(found.block_count)))
