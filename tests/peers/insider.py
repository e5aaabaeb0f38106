"""A member of the cluster that does not play fair: real key, log and sessions, and answers of its own."""

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import get_args

import trio

from tbshare.peers.identity import Identity
from tbshare.peers.mesh import Mesh, Peer
from tbshare.peers.pairing import join
from tbshare.transport.listener import Kind, listen
from tbshare.volumes.entry import RefSet
from tbshare.volumes.log import Log
from tbshare.wire import limits
from tbshare.wire.message import (
    AnyMessage,
    Have,
    Hello,
    Message,
    Progress,
    Record,
    Records,
    RecordsWanted,
    Want,
)
from tests.nodes import Node, open_window

Answer = Callable[[Peer, AnyMessage], Awaitable[None]]
FINAL_SECONDS = 25.0
ENDS = ("failed", "declined", "durable")


class Insider:
    """It answers what the test gives it; `records` are given to whoever asks, `own` says who answers what else."""

    def __init__(self, home: Path, *, own: Mapping[type[Message], Answer] | None = None) -> None:
        home.mkdir(parents=True)
        self.identity = Identity.load_or_create(home / "device.key")
        self.log = Log.open(home / "log.db", self.identity)
        self.records: dict[bytes, bytes] = {}
        self.heard: list[AnyMessage] = []
        self.changed = trio.Event()
        self.port = 0
        self.mesh = Mesh(self.identity, self.log, name=lambda: "mallory", hello=self.hello)
        answers: dict[type[Message], Answer] = {
            RecordsWanted: self.give_records,
            Want: self.say_whole,
        }
        answers = {**dict.fromkeys(get_args(AnyMessage), self.note), **answers, **(own or {})}
        for kind, answer in answers.items():
            self.mesh.on(kind, answer)

    def hello(self) -> Hello:
        """Greet."""
        return Hello(
            level=limits.LEVEL,
            node=self.identity.node,
            name="mallory",
            version="0",
            cluster=self.log.cluster,
            listen_port=self.port,
            addresses=[f"127.0.0.1:{self.port}"],
        )

    async def note(self, peer: Peer, message: AnyMessage) -> None:
        """Remember what was said."""
        self.heard.append(message)
        self.changed.set()
        self.changed = trio.Event()

    async def say_whole(self, peer: Peer, message: AnyMessage) -> None:
        """Claim to have all of it."""
        assert isinstance(message, Want)
        await peer.send(Have(message.tree, whole=True))

    async def give_records(self, peer: Peer, message: AnyMessage) -> None:
        """Give what is in `records`, right or wrong."""
        assert isinstance(message, RecordsWanted)
        for record_id in message.ids:
            data = self.records.get(record_id)
            if data is not None:
                for offset in range(0, len(data), limits.RECORD_PART_BYTES):
                    part = data[offset : offset + limits.RECORD_PART_BYTES]
                    await peer.send(Records(message.request, [Record(record_id, offset, len(data), part)]))
        await peer.send(Records(message.request, [], done=True))

    async def publish(self, name: str, tree: bytes, size: int = 1) -> None:
        """Publish a ref for everybody."""
        op = RefSet(volume="models", name=name, rev=1, tree=tree, size_bytes=size, files=1)
        await self.mesh.grown([self.log.append([op])])

    async def until_heard(self, *kinds: type[Message], states: tuple[str, ...] = ()) -> AnyMessage:
        """Return the first message of these kinds; of Progress, the first in one of these states."""
        with trio.fail_after(FINAL_SECONDS):
            while True:
                for message in self.heard:
                    wanted = not states or not isinstance(message, Progress) or message.state in states
                    if isinstance(message, kinds) and wanted:
                        return message
                await self.changed.wait()

    async def outcome(self, tree: bytes) -> Progress:
        """Return how the fetch of a tree ended for the first time."""
        with trio.fail_after(FINAL_SECONDS):
            while True:
                for message in self.heard:
                    if isinstance(message, Progress) and message.tree == tree and message.state in ENDS:
                        return message
                await self.changed.wait()

    @property
    def peer(self) -> Peer:
        """The daemon it is connected with."""
        (peer,) = self.mesh.peers.values()
        return peer


async def admitted(insider: Insider, node: Node) -> None:
    """Pair with a daemon, as a user would let it."""
    codes: SimpleQueue[str] = SimpleQueue()
    thread = threading.Thread(target=open_window, args=(node, codes.put), daemon=True)
    thread.start()
    code = await trio.to_thread.run_sync(partial(codes.get, timeout=10))
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream:
        invitation = await join(stream, code, insider.identity, name="mallory")
    insider.log.join(invitation.cluster, certificate=invitation.certificate, name=invitation.name)
    insider.mesh.learn(invitation.node, [f"127.0.0.1:{node.port}"])
    await trio.to_thread.run_sync(thread.join)


@asynccontextmanager
async def inside(
    home: Path,
    node: Node,
    *,
    own: Mapping[type[Message], Answer] | None = None,
    lane: Callable[[trio.SocketStream], Awaitable[None]] | None = None,
) -> AsyncGenerator[Insider]:
    """Run a member that is connected with a daemon; `lane` serves the lanes that are dialled to it, raw."""
    insider = Insider(home, own=own)

    async def on_lane(stream: trio.SocketStream, admitted_: Callable[[], None]) -> None:
        admitted_()
        if lane is not None:
            await lane(stream)

    handlers = {Kind.CONTROL: insider.mesh.accept, Kind.LANE: on_lane}
    try:
        async with trio.open_nursery() as nursery:
            insider.port = int(str(await nursery.start(partial(listen, host="127.0.0.1"), 0, handlers)))
            nursery.start_soon(insider.mesh.run)
            await admitted(insider, node)
            with trio.fail_after(10):
                while not insider.mesh.peers or not insider.log.state().is_member(insider.identity.node):  # noqa: ASYNC110
                    await trio.sleep(0.02)
            yield insider
            nursery.cancel_scope.cancel()
    finally:
        insider.log.close()
