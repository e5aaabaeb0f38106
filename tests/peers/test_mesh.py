"""A member that speaks nonsense, floods, or is no member any more: its session ends, the daemon goes on."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tbshare.errors import PeerError, PeerUnreachable
from tbshare.peers.mesh import KEEPS_MAX, Peer, split_address
from tbshare.transport import control
from tbshare.volumes.entry import MemberRemove
from tbshare.wire.message import (
    AnyMessage,
    Entries,
    Fetch,
    Have,
    Head,
    Hello,
    Holding,
    Introduce,
    Introduced,
    Keeps,
    LaneOpen,
    Pong,
    Progress,
    RecordsWanted,
    Vector,
    Want,
    Wanted,
)
from tests.nodes import Node, random_model, until
from tests.peers.insider import Insider, inside


def test_addresses() -> None:
    assert split_address("host") == ("host", 7347)
    assert split_address("host:1") == ("host", 1)
    assert split_address("10.0.0.1:99") == ("10.0.0.1", 99)
    assert split_address("[fe80::1%en5]:12") == ("fe80::1%en5", 12)
    assert split_address("fe80::1") == ("fe80::1", 7347)


async def until_over(insider: Insider, peer: Peer) -> None:
    """Wait until a session has ended."""
    with trio.fail_after(10):
        while peer in insider.mesh.peers.values():  # noqa: ASYNC110
            await trio.sleep(0.02)


def raw(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


GARBAGE = {
    "random": raw(b"\xc1" * 300),
    "huge": b"\xff\xff\xff\xff" + bytes(1000),
    "nothing": bytes(4),
    "unknown-kind": raw(b"\x81\xa1t\xa7no-such"),
    "wrong-field": raw(b"\x82\xa1t\xa4want\xa4tree\x01"),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_ends_the_session_and_no_more(victim: Node, tmp_path: Path, kind: str) -> None:
    async with inside(tmp_path / "evil", victim) as insider:
        first = insider.peer
        await first.session._stream.send_all(GARBAGE[kind])  # pyright: ignore[reportPrivateUsage]
        await until_over(insider, first)
        with trio.fail_after(15):
            while not insider.mesh.peers:  # noqa: ASYNC110  it may come back and behave
                await trio.sleep(0.02)
    assert "Traceback" not in victim.log()
    assert victim.status().node.name == "victim"


NODE, TREE = b"n" * 32, b"t" * 32
TOO_MUCH: dict[str, Callable[[], list[AnyMessage]]] = {
    "keeps": lambda: [
        Keeps([(batch << 32 | number).to_bytes(32, "big") for number in range(50_000)])
        for batch in range(KEEPS_MAX // 50_000 + 1)
    ],
    "records": lambda: [RecordsWanted(1, [os.urandom(32) for _ in range(300)])],
    "lanes": lambda: [LaneOpen(number, False) for number in range(9)],
    "one-lane-twice": lambda: [LaneOpen(1, False), LaneOpen(1, False)],
    "second-greeting": lambda: [Hello(1, NODE, "x", "1", NODE, 1)],
    "blocks": lambda: [LaneOpen(1, False), Fetch(1, TREE, [Wanted(number, TREE, 0) for number in range(100)])],
}


@pytest.mark.parametrize("kind", TOO_MUCH)
async def test_too_much_ends_the_session(victim: Node, tmp_path: Path, kind: str) -> None:
    async with inside(tmp_path / "evil", victim) as insider:
        first = insider.peer
        for message in TOO_MUCH[kind]():
            await first.send(message)
        await until_over(insider, first)
    assert "Traceback" not in victim.log()
    assert victim.status().node.name == "victim"


async def test_odd_messages_are_taken_calmly(victim: Node, tmp_path: Path) -> None:
    """Nothing that is well formed makes the daemon fall over, or grow."""
    odd: list[AnyMessage] = [
        Pong(99),
        Have(TREE, whole=True, holdings=[Holding(TREE, [(0, 1 << 62), (5, 0)])]),
        Progress(TREE, 1 << 60, 1 << 61, 0, 0, state="strange\x1b", reason="r" * 100_000),
        Vector([Head(NODE, NODE, 7, NODE)]),
        Entries([b"", b"x", os.urandom(1000)]),
        Fetch(12345, TREE, [Wanted(1, TREE, 1 << 60)]),
        Want(TREE, "films"),
        Introduce([Introduced(os.urandom(32), ["x" * 5000, "nowhere:99999999"]) for _ in range(300)]),
    ]
    async with inside(tmp_path / "evil", victim) as insider:
        for _ in range(50):
            for message in odd:
                await insider.peer.send(message)
        await insider.peer.send(RecordsWanted(7, []))
        await insider.until_heard(type(odd[1]))  # the answer to Want
        assert insider.peer
        saved = (victim.home / "addresses.json").read_text() if (victim.home / "addresses.json").exists() else ""
        assert len(saved) < 200_000
    assert "Traceback" not in victim.log()
    assert victim.status().attention == []


async def test_a_removed_member_is_refused(victim: Node, tmp_path: Path) -> None:
    async with inside(tmp_path / "evil", victim) as insider:
        peer = insider.peer
        name, port, certificate = peer.node, victim.port, insider.log.trusted()[peer.node]
        await insider.publish("before", TREE)
        entry = insider.log.append([MemberRemove(node=insider.identity.node, cluster=insider.log.cluster)])
        await peer.send(Entries([entry.encoded]))
        await until_over(insider, peer)
        with pytest.raises((PeerError, PeerUnreachable)):
            await control.dial("127.0.0.1", port, insider.identity, peer=name, certificate=certificate)
    until("it is not listed", lambda: victim.status().nodes == [])
    assert "is no longer a member" in victim.log()


async def test_a_ref_of_nobody_is_not_given(victim: Node, tmp_path: Path) -> None:
    """A hash opens nothing: blocks are only given for a tree that a ref names."""
    await trio.to_thread.run_sync(lambda: victim.push(random_model(tmp_path / "m", 1, 100_000), name="real"))
    with victim.client() as client:
        tree = bytes.fromhex(client.ref_list().refs[0].tree)
        client.remove("real", yes=True)
    async with inside(tmp_path / "evil", victim) as insider:
        await insider.peer.send(Want(tree, "models"))
        said = await insider.until_heard(Have)
        assert isinstance(said, Have)
        assert (said.whole, said.holdings) == (False, [])
