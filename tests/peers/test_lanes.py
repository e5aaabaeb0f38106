"""Lanes from a member that sends something else than what was asked for, or nothing."""

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio

from tbshare.content.block import BLOCK_BYTES, block_id
from tbshare.content.manifest import Manifest, of_blocks
from tbshare.content.tree import Entry, Kind, Tree
from tbshare.peers.mesh import Peer
from tbshare.wire import lane as lane_wire
from tbshare.wire.lane import GREETING_BYTES, HEADER_BYTES, Header
from tbshare.wire.local import PushParams
from tbshare.wire.message import AnyMessage, Corrupt, Fetch, LaneOpen, LaneReady, Message, Progress, Wanted
from tests.nodes import MIB, Node, pair, random_model, until
from tests.peers.insider import Answer, Insider, inside

CONTENT = Random(5).randbytes(BLOCK_BYTES + 1000)
BLOCKS = (CONTENT[:BLOCK_BYTES], CONTENT[BLOCK_BYTES:])
FILE: Manifest = of_blocks(len(CONTENT), None, [block_id(block) for block in BLOCKS])
TREE = Tree([Entry(b"weights", Kind.FILE, FILE.id, len(CONTENT), 0o644, 0)])

Send = Callable[[trio.SocketStream, Sequence[Wanted]], Awaitable[None]]


class Crook:
    """Serves lanes as it likes: `send` is called for each dialled lane with what was asked for so far."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.asked: list[Wanted] = []
        self.came = trio.Event()
        self.lanes = 0
        self.insider: Insider | None = None

    async def on_open(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, LaneOpen)
        assert self.insider is not None
        key = bytes(32) if message.sealed else b""
        await peer.send(LaneReady(message.lane, message.lane, bytes(32), key, self.insider.port))

    async def on_fetch(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Fetch)
        self.asked += message.blocks
        self.came.set()

    async def on_lane(self, stream: trio.SocketStream) -> None:
        self.lanes += 1
        greeting = b""
        while len(greeting) < GREETING_BYTES:
            greeting += await stream.receive_some(GREETING_BYTES - len(greeting))
        assert greeting.startswith(lane_wire.MAGIC)
        await self.came.wait()
        try:
            await self.send(stream, list(self.asked))
            with trio.move_on_after(30):
                while await stream.receive_some():
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


def answer(wanted: Wanted, payload: bytes) -> bytes:
    return Header(wanted.request, len(payload)).encode() + payload


async def garbage(stream: trio.SocketStream, asked: Sequence[Wanted]) -> None:
    await stream.send_all(os.urandom(1 << 20))


async def huge(stream: trio.SocketStream, asked: Sequence[Wanted]) -> None:
    for _ in range(400):
        await stream.send_all(
            asked[-1].request.to_bytes(8, "big") + b"\xff\xff\xff\xff" + bytes(4) + bytes(1 << 20)
        )


async def unasked(stream: trio.SocketStream, asked: Sequence[Wanted]) -> None:
    await stream.send_all(answer(Wanted(10**9, FILE.id, 0), BLOCKS[0]))


async def wrong_block(stream: trio.SocketStream, asked: Sequence[Wanted]) -> None:
    for wanted in asked[-2:]:
        await stream.send_all(answer(wanted, bytes(len(BLOCKS[wanted.index]))))


async def wrong_length(stream: trio.SocketStream, asked: Sequence[Wanted]) -> None:
    for wanted in asked[-2:]:
        await stream.send_all(answer(wanted, BLOCKS[wanted.index][:-1]))


async def goodbye(stream: trio.SocketStream, asked: Sequence[Wanted]) -> None:
    await stream.send_all(Header(17, 0, goodbye=True).encode())


async def silence(stream: trio.SocketStream, asked: Sequence[Wanted]) -> None:
    await trio.sleep(60)


async def half_a_header(stream: trio.SocketStream, asked: Sequence[Wanted]) -> None:
    await stream.send_all(answer(asked[-1], BLOCKS[asked[-1].index])[: HEADER_BYTES - 3])


def nothing_was_kept(victim: Node) -> bool:
    """Whether no byte of the content is anywhere in the store."""
    paths = [
        path for folder in ("objects", "partial") for path in (victim.home / folder).rglob("*") if path.is_file()
    ]
    return not any(
        CONTENT[:64] in path.read_bytes() or bytes(64) + CONTENT[64:99] in path.read_bytes() for path in paths
    )


@pytest.mark.parametrize(
    "send",
    [garbage, huge, unasked, wrong_block, wrong_length, goodbye, silence, half_a_header],
    ids=lambda f: f.__name__,
)
async def test_a_lane_that_brings_something_else(victim: Node, tmp_path: Path, send: Send) -> None:
    """It ends in one clear sentence, in bounded time and memory; then an honest node has it, and it comes."""
    crook = Crook(send)
    own: dict[type[Message], Answer] = {LaneOpen: crook.on_open, Fetch: crook.on_fetch}
    async with inside(tmp_path / "evil", victim, own=own, lane=crook.on_lane) as insider:
        crook.insider = insider
        insider.records |= {FILE.id: FILE.encoded, TREE.id: TREE.encoded}
        await insider.publish("stolen", TREE.id, len(CONTENT))
        ended = await insider.outcome(TREE.id)
        assert ended.state == "failed"
        assert ended.reason == f"{len(CONTENT) / 1e6:.1f} MB of it come from no node that is connected"
        assert ended.bytes_moved == 0
        assert 0 < crook.lanes < 20
        assert nothing_was_kept(victim)
        if send is wrong_block:
            complaint = await insider.until_heard(Corrupt)
            assert isinstance(complaint, Corrupt)
            assert complaint.object == FILE.id
        assert victim.anonymous_bytes() < 300_000_000
        assert "Traceback" not in victim.log()
        model = tmp_path / "model"
        model.mkdir()
        (model / "weights").write_bytes(CONTENT)
        await trio.to_thread.run_sync(partial(push_here, victim, model))


def push_here(victim: Node, model: Path) -> None:
    """Push the true content on the victim itself: it needs nobody then."""
    with victim.client() as client:
        client.push(PushParams(str(model), name="stolen", detach=True))
    until("it is whole", lambda: victim.has("stolen@1"))


async def test_a_crook_does_not_stop_an_honest_node(victim: Node, tmp_path: Path) -> None:
    """Both say they have it. What the crook sends is thrown away, and all of it comes from the other."""
    crook = Crook(wrong_block)
    own: dict[type[Message], Answer] = {LaneOpen: crook.on_open, Fetch: crook.on_fetch}
    honest = Node(tmp_path / "h" / "honest", "honest")
    model = random_model(tmp_path / "model", 9, 24 * MIB)
    try:
        await trio.to_thread.run_sync(honest.start)
        await trio.to_thread.run_sync(pair, victim, honest)
        async with inside(tmp_path / "evil", victim, own=own, lane=crook.on_lane) as insider:
            crook.insider = insider
            report = await trio.to_thread.run_sync(lambda: honest.push(model, name="contested", to=["victim"]))
            assert [line.state for line in report.nodes] == ["durable"]
            (line,) = report.nodes
            assert {source.name for source in line.sources} == {"honest"}
            assert insider.heard
            assert not [said for said in insider.heard if isinstance(said, Progress) and said.state == "failed"]
        with victim.client() as client:
            assert client.verify("contested").corrupt == 0
    finally:
        await trio.to_thread.run_sync(honest.stop)
