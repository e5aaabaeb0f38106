"""What a node gives of the files of a volume: to who may read them, and nothing to any other member."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from tbshare.content.block import LEAF_BYTES, ObjectId, block_id
from tbshare.peers.goal import goal_of
from tbshare.transport.listener import Kind, listen
from tbshare.volumes.entry import RoleSet
from tbshare.wire.lane import HEADER_BYTES, Opener, greeting, parse_header
from tbshare.wire.message import (
    Ask,
    Fetch,
    Have,
    Held,
    LaneOpen,
    LaneReady,
    Message,
    Records,
    RecordsWanted,
    Refused,
    Want,
    Wanted,
)
from tests.peers.insider import Insider
from tests.together import Inside, make_volume, row, save, together, until

SIZE = 100_000


@asynccontextmanager
async def inside(home: Path, node: Inside) -> AsyncGenerator[Insider]:
    """Run a member that is connected with a node of this process."""
    insider = Insider(home)
    service = node.service
    await service.mesh.grown([service.log.add_member(insider.identity.certificate, "mallory")])
    insider.log.join(service.log.cluster, certificate=service.identity.certificate, name=node.name)
    insider.log.receive([entry.encoded for _, entry in service.log.entries_after(0, 1000)])
    try:
        async with trio.open_nursery() as nursery:
            handlers = {Kind.CONTROL: insider.mesh.accept}
            insider.port = int(str(await nursery.start(partial(listen, host="127.0.0.1"), 0, handlers)))
            insider.mesh.learn(node.node, [f"127.0.0.1:{node.port}"])
            nursery.start_soon(insider.mesh.run)
            await until("connected", lambda: bool(insider.mesh.peers))
            yield insider
            nursery.cancel_scope.cancel()
    finally:
        insider.log.close()


async def answer(insider: Insider, message: Message, kind: type[Message]) -> Message:
    insider.heard.clear()
    await insider.peer.send(message)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return await insider.until_heard(kind)


async def all_records(insider: Insider, message: RecordsWanted) -> tuple[set[bytes], set[bytes]]:
    """Return which records were given and which were not."""
    insider.heard.clear()
    await insider.peer.send(message)
    with trio.fail_after(10):
        while True:
            heard = [said for said in insider.heard if isinstance(said, Records)]
            if heard and heard[-1].done:
                return {part.id for said in heard for part in said.parts}, set(heard[-1].missing)
            await insider.changed.wait()


async def refuse_to(node: Inside, insider: Insider, volume: int) -> None:
    """Take the role of the insider in a volume away."""
    entry = node.service.log.append([RoleSet(volume, insider.identity.node, "none")])
    await node.service.mesh.grown([entry])


async def test_who_may_not_read_gets_neither_records_nor_blocks_nor_a_word(tmp_path: Path) -> None:
    ada = Inside(tmp_path / "ada", "ada")
    path = tmp_path / "secret.mov"
    path.write_bytes(bytes(range(250)) * (SIZE // 250))
    async with together(ada):
        volume = await make_volume(ada, "secret")
        (pair,) = await save(ada, volume, [path])
        version = row(ada, volume, pair)
        goal = goal_of("secret", volume, [version])
        async with inside(tmp_path / "evil", ada) as insider:
            # So that what follows fails for the right reason: while it may read, all of it is given.
            have = await answer(insider, goal.want(), Have)
            assert have == Have(goal.tree, whole=True)
            assert await all_records(insider, RecordsWanted(1, [version.content], goal.tree)) == (
                {version.content},
                set(),
            )
            assert await answer(insider, Ask(1, volume, [pair, (1, 1)]), Held) == Held(1, [(0, 1)])
            ready = await answer(insider, LaneOpen(1, True), LaneReady)
            assert isinstance(ready, LaneReady)
            stream = await trio.open_tcp_stream("127.0.0.1", ready.port)
            await stream.send_all(greeting(ready.admission, ready.token))
            await insider.peer.send(Fetch(1, goal.tree, [Wanted(7, version.content, 0)]))
            assert await one_block(stream, ready.key) == block_id(path.read_bytes())

            await refuse_to(ada, insider, volume)
            refused = await answer(insider, Fetch(1, goal.tree, [Wanted(8, version.content, 0)]), Refused)
            assert refused == Refused(1, [8], "not here")
            assert await answer(insider, goal.want(), Have) == Have(goal.tree)
            refused = await answer(insider, Fetch(1, goal.tree, [Wanted(9, version.content, 0)]), Refused)
            assert refused == Refused(1, [9], "not here")
            for tree in (goal.tree, b"", version.content):
                assert await all_records(insider, RecordsWanted(2, [version.content], tree)) == (
                    set(),
                    {version.content},
                )
            assert await answer(insider, Ask(2, volume, [pair]), Held) == Held(2, [])
            await stream.aclose()


async def one_block(stream: trio.SocketStream, key: bytes) -> bytes:
    """Return the id of the block that comes on a sealed lane."""
    data = b""
    header = None
    with trio.fail_after(10):
        while header is None or len(data) < HEADER_BYTES + header.wire_bytes:
            part = await stream.receive_some(1 << 16)
            assert part
            data += part
            if header is None and len(data) >= HEADER_BYTES:
                header = parse_header(data[:HEADER_BYTES], sealed=True)
    return block_id(Opener(key).open(0, header, memoryview(bytearray(data[HEADER_BYTES:]))))


async def test_leaves_are_given_as_whole_blocks_are_and_absurd_ones_to_nobody(tmp_path: Path) -> None:
    ada = Inside(tmp_path / "ada", "ada")
    path = tmp_path / "secret.mov"
    path.write_bytes(os.urandom(4 * LEAF_BYTES - 5))
    async with together(ada):
        volume = await make_volume(ada, "secret")
        (pair,) = await save(ada, volume, [path])
        content, goal = row(ada, volume, pair).content, goal_of("secret", volume, [row(ada, volume, pair)])
        async with inside(tmp_path / "evil", ada) as insider:
            await answer(insider, goal.want(), Have)
            ready = await answer(insider, LaneOpen(1, True), LaneReady)
            assert isinstance(ready, LaneReady)
            stream = await trio.open_tcp_stream("127.0.0.1", ready.port)
            await stream.send_all(greeting(ready.admission, ready.token))
            most = (1 << 63) - 1
            absurd = [(0, 3, 2), (0, 4, 1), (0, most, most), (0, most, 1), (0, 0, most), (0, 0, 4), (most, 0, 1)]
            odd = [Wanted(number, content, *place) for number, place in enumerate(absurd)]
            refused = await answer(insider, Fetch(1, goal.tree, odd), Refused)
            assert refused == Refused(1, list(range(len(odd))), "not here")
            await insider.peer.send(Fetch(1, goal.tree, [Wanted(70, content, 0, 3, 1)]))
            with trio.fail_after(10):
                assert await stream.receive_some(1)

            await refuse_to(ada, insider, volume)
            refused = await answer(insider, Fetch(1, goal.tree, [Wanted(71, content, 0, 1, 1)]), Refused)
            assert refused == Refused(1, [71], "not here")
            await stream.aclose()


async def test_what_the_asker_makes_up_opens_nothing(tmp_path: Path) -> None:
    """The asker chooses the name and the versions; what they consist of is looked up here."""
    ada = Inside(tmp_path / "ada", "ada")
    path = tmp_path / "secret.mov"
    path.write_bytes(b"s" * SIZE)
    async with together(ada):
        secret, open_to_all = await make_volume(ada, "secret"), await make_volume(ada, "public")
        (pair,) = await save(ada, secret, [path])
        content = row(ada, secret, pair).content
        async with inside(tmp_path / "evil", ada) as insider:
            await refuse_to(ada, insider, secret)
            await until("it is told", lambda: not ada.service.log.state().may_read(insider.identity.node, secret))
            tree = b"t" * 32
            for want in (
                Want(tree, "public", open_to_all, [pair]),  # a version of another volume
                Want(tree, "public", open_to_all, [(1, 2)]),
                Want(tree, "nowhere", 12345, [pair]),
                Want(tree, "models", 0, [pair]),
                Want(content, "secret", 0),
            ):
                assert await answer(insider, want, Have) == Have(want.tree)
                got, missing = await all_records(insider, RecordsWanted(3, [content], want.tree))
                assert (got, missing) == (set(), {content})
            assert ada.service.store.is_whole(ObjectId(content))


async def test_a_volume_is_not_given_on_a_lane_without_a_seal(tmp_path: Path) -> None:
    """On a direct cable, as the loopback is one, models may go plain; files of other volumes never do."""
    ada = Inside(tmp_path / "ada", "ada")
    path = tmp_path / "a.mov"
    path.write_bytes(b"a" * SIZE)
    async with together(ada):
        volume = await make_volume(ada, "film")
        (pair,) = await save(ada, volume, [path])
        goal = goal_of("film", volume, [row(ada, volume, pair)])
        async with inside(tmp_path / "evil", ada) as insider:
            assert await answer(insider, goal.want(), Have) == Have(goal.tree, whole=True)
            await answer(insider, LaneOpen(1, False), LaneReady)
            content = row(ada, volume, pair).content
            refused = await answer(insider, Fetch(1, goal.tree, [Wanted(1, content, 0)]), Refused)
            assert refused == Refused(1, [1], "not here")
