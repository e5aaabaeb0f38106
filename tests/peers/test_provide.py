"""What a daemon gives to another member on lanes, and what it does not."""

import contextlib
from pathlib import Path

import trio

from tbshare.content.block import block_id
from tbshare.wire.lane import HEADER_BYTES, Header, Opener, greeting, parse_header
from tbshare.wire.local import ShowParams
from tbshare.wire.message import Fetch, LaneOpen, LaneReady, Refused, Wanted
from tests.nodes import Node, random_model
from tests.peers.insider import Insider, inside

SIZE = 100_000


def pushed(victim: Node, model: Path) -> tuple[bytes, bytes]:
    """Push a model on the daemon; return the ids of its tree and of its one larger file."""
    victim.push(model, name="real")
    with victim.client() as client:
        shown = client.show(ShowParams(ref="real"))
    (file,) = [file for file in shown.files if file.size_bytes == SIZE]
    return bytes.fromhex(shown.line.tree), bytes.fromhex(file.object)


async def opened(insider: Insider, number: int, *, sealed: bool) -> tuple[LaneReady, trio.SocketStream]:
    """Open a lane as a fetcher does."""
    insider.heard.clear()
    await insider.peer.send(LaneOpen(number, sealed))
    ready = await insider.until_heard(LaneReady)
    assert isinstance(ready, LaneReady)
    stream = await trio.open_tcp_stream("127.0.0.1", ready.port)
    await stream.send_all(greeting(ready.admission, ready.token))
    return ready, stream


async def exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    with trio.fail_after(10):
        while len(data) < count:
            part = await stream.receive_some(count - len(data))
            assert part, f"the lane ended after {len(data)} of {count} bytes"
            data += part
    return data


async def received(stream: trio.SocketStream, *, sealed: bool) -> tuple[Header, bytes]:
    header = parse_header(await exactly(stream, HEADER_BYTES), sealed=sealed)
    return header, await exactly(stream, header.wire_bytes)


async def test_blocks_of_a_ref_are_given_plain_or_sealed(victim: Node, tmp_path: Path) -> None:
    model = random_model(tmp_path / "m", 1, SIZE)
    tree, file = await trio.to_thread.run_sync(pushed, victim, model)
    content = (model / "part-0.weights").read_bytes()
    async with inside(tmp_path / "evil", victim) as insider:
        for number, sealed in ((1, False), (2, True)):
            ready, stream = await opened(insider, number, sealed=sealed)
            assert bool(ready.key) == sealed
            await insider.peer.send(Fetch(number, tree, [Wanted(70 + number, file, 0)]))
            header, payload = await received(stream, sealed=sealed)
            assert header.request == 70 + number
            if sealed:
                assert content[:64] not in payload
                payload = bytes(Opener(ready.key).open(0, header, memoryview(bytearray(payload))))
            assert block_id(payload) == block_id(content)
            await stream.aclose()


async def test_a_token_opens_one_lane(victim: Node, tmp_path: Path) -> None:
    async with inside(tmp_path / "evil", victim) as insider:
        ready, stream = await opened(insider, 1, sealed=False)
        for words in (greeting(ready.admission, ready.token), greeting(ready.admission + 1, ready.token)):
            again = await trio.open_tcp_stream("127.0.0.1", ready.port)
            await again.send_all(words)
            with trio.fail_after(10):
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await again.receive_some() == b""
            await again.aclose()
        await stream.aclose()


async def test_what_is_not_of_the_tree_is_refused(victim: Node, tmp_path: Path) -> None:
    tree, file = await trio.to_thread.run_sync(pushed, victim, random_model(tmp_path / "m", 2, SIZE))
    odd = [
        Fetch(1, tree, [Wanted(1, b"o" * 32, 0)]),
        Fetch(1, tree, [Wanted(2, file, 99)]),
        Fetch(1, b"t" * 32, [Wanted(3, file, 0)]),
        Fetch(77, tree, [Wanted(4, file, 0)]),
    ]
    async with inside(tmp_path / "evil", victim) as insider:
        _, stream = await opened(insider, 1, sealed=False)
        for message in odd:
            insider.heard.clear()
            await insider.peer.send(message)
            refused = await insider.until_heard(Refused)
            assert isinstance(refused, Refused)
            assert refused.requests == [wanted.request for wanted in message.blocks]
        await insider.peer.send(Fetch(1, tree, [Wanted(5, file, 0)]))
        header, _ = await received(stream, sealed=False)
        assert header.request == 5, "the lane goes on"
        await stream.aclose()
