"""Manifests and directory listings from a member that lies about them: one sentence, and nothing is kept."""

import os
from pathlib import Path

import msgspec
import pytest
import trio

from tbshare.content.block import block_id, named_hash
from tbshare.content.manifest import Manifest, of_blocks
from tbshare.content.tree import TREE_CONTEXT, Entry, Kind, Tree
from tbshare.peers.mesh import Peer
from tbshare.wire import limits
from tbshare.wire.message import AnyMessage, Progress, Record, Records, RecordsWanted
from tests.nodes import Node
from tests.peers.insider import inside

Row = tuple[bytes, int, bytes, int]


def listing(*rows: Row) -> tuple[bytes, bytes]:
    """Return id and bytes of a directory listing that no honest node would write."""
    entries: list[list[object]] = [
        [name, kind, target, size, 0o644, 0, []] for name, kind, target, size in sorted(rows)
    ]
    data = msgspec.msgpack.encode([1, entries])
    return named_hash(TREE_CONTEXT, [data]), data


CONTENT = b"12345"
FILE: Manifest = of_blocks(len(CONTENT), None, [block_id(CONTENT)])
SUB = Tree([Entry(b"inner", Kind.FILE, FILE.id, 5, 0o644, 0)])


def file_row(name: bytes, size: int = 5) -> Row:
    return name, Kind.FILE, FILE.id, size


LIES: dict[str, tuple[tuple[Row, ...], str]] = {
    "dot-dot": ((file_row(b".."),), "no name for a file"),
    "path": ((file_row(b"../../escaped"),), "no name for a file"),
    "absolute": ((file_row(b"/tmp/escaped"),), "no name for a file"),
    "nul": ((file_row(b"a\0b"),), "no name for a file"),
    "empty": ((file_row(b""),), "a name of 0 bytes"),
    "long": ((file_row(b"n" * 300),), "a name of 300 bytes"),
    "newline": ((file_row(b"a\nb"),), "control character"),
    "escape": ((file_row(b"\x1b[2J"),), "control character"),
    "not-utf8": ((file_row(b"\xff\xfe"),), "not UTF-8"),
    "twice": ((file_row(b"a"), file_row(b"a")), "twice in one directory"),
    "file-size": ((file_row(b"a", 6),), "another size than its manifest"),
    "two-sizes": ((file_row(b"a", 5), file_row(b"b", 6)), "another size"),
    "below-zero": ((file_row(b"a", -5),), "impossible size"),
    "tree-size": (((b"sub", Kind.TREE, SUB.id, 4_000_000),), "not that of what is in it"),
    "link-out": (((b"link", Kind.LINK, b"../../etc/passwd", 0),), "leaves what was pushed"),
    "link-absolute": (((b"link", Kind.LINK, b"/etc/passwd", 0),), "leaves what was pushed"),
    "link-nul": (((b"link", Kind.LINK, b"a\0b", 0),), "points nowhere"),
    "no-id": (((b"a", Kind.FILE, b"short", 5),), "something that is no id"),
    "kind": (((b"a", 7, FILE.id, 5),), "not a directory listing"),
}


def files_below(path: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(folder, name), path) for folder, _, names in os.walk(path) for name in names
    }


async def test_listings_that_lie_are_declined(victim: Node, tmp_path: Path) -> None:
    before = files_below(victim.home.parent)
    async with inside(tmp_path / "evil", victim) as insider:
        insider.records |= {FILE.id: FILE.encoded, SUB.id: SUB.encoded}
        for name, (rows, sentence) in LIES.items():
            tree, data = listing(*rows)
            insider.records[tree] = data
            await insider.publish(f"lie-{name}", tree)
            ended = await insider.outcome(tree)
            assert ended.state == "declined", name
            assert sentence in ended.reason, name
            assert "\n" not in ended.reason, name
            assert "\x1b" not in ended.reason, name
        victim_log = victim.log()
    assert "Traceback" not in victim_log
    new = files_below(victim.home.parent) - before
    assert all(path.split("/")[1] in ("log", "objects", "addresses.json") or ".db" in path for path in new), new
    with victim.client() as client:
        assert len(client.ref_list().refs) == len(LIES)
        assert {line.here for line in client.ref_list().refs} == {"no"}
        assert client.gc(now=True).held == []
        assert client.verify().corrupt == 0


async def test_an_honest_listing_is_taken(victim: Node, tmp_path: Path) -> None:
    """So that the tests above fail for the right reason: up to the blocks this one goes."""
    async with inside(tmp_path / "evil", victim) as insider:
        tree, data = listing((b"sub", Kind.TREE, SUB.id, 5), (b"link", Kind.LINK, b"sub/inner", 0))
        insider.records |= {FILE.id: FILE.encoded, SUB.id: SUB.encoded, tree: data}
        await insider.publish("honest", tree, 5)
        with trio.fail_after(10):
            while not any(isinstance(said, Progress) and said.bytes_total == 5 for said in insider.heard):
                await insider.changed.wait()


async def test_a_listing_that_never_ends_is_declined(victim: Node, tmp_path: Path) -> None:
    """Each level names the one below twice: a walk of 2^100 names."""
    bottom = Tree([])
    below = bytes(bottom.id)
    async with inside(tmp_path / "evil", victim) as insider:
        insider.records[below] = bottom.encoded
        for _ in range(100):
            below, data = listing((b"a", Kind.TREE, below, 0), (b"b", Kind.TREE, below, 0))
            insider.records[below] = data
        await insider.publish("endless", below)
        ended = await insider.outcome(below)
        assert ended.state == "declined"
        assert "names" in ended.reason
        with victim.client() as client:
            assert client.ref_list().refs[0].here == "no"


async def test_records_that_are_something_else_are_not_kept(victim: Node, tmp_path: Path) -> None:
    _, data = listing(file_row(b"a"))
    async with inside(tmp_path / "evil", victim) as insider:
        for number, wrong in enumerate((b"x" * 100, b"\xff" * 3_000_000, data[:-1], data + b"\0", SUB.encoded)):
            unknown = bytes([number]) * 32
            insider.records[unknown] = wrong
            await insider.publish(f"wrong-{number}", unknown)
            ended = await insider.outcome(unknown)
            assert ended.state == "failed"
            assert ended.reason == "1 records of it are on no node that is connected"


@pytest.mark.parametrize("kind", ["huge", "unasked", "gap", "endless", "half"])
async def test_parts_that_do_not_fit_end_the_session(victim: Node, tmp_path: Path, kind: str) -> None:
    tree = b"t" * 32
    piece = b"p" * limits.RECORD_PART_BYTES

    async def give(peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, RecordsWanted)
        parts = {
            "huge": [Record(tree, 0, limits.RECORD_BYTES_MAX + 1, piece)],
            "unasked": [Record(b"u" * 32, 0, 10, b"0123456789")],
            "gap": [Record(tree, 0, 10, b"0123"), Record(tree, 5, 10, b"56789")],
            "endless": [Record(tree, 0, 5, b"0123456789")],
            "half": [Record(tree, 0, 10, b"0123"), Record(b"u" * 32, 0, 5, b"01234")],
        }[kind]
        for part in parts:
            await peer.send(Records(message.request, [part]))

    async with inside(tmp_path / "evil", victim, own={RecordsWanted: give}) as insider:
        first = insider.peer
        await insider.publish("parts", tree)
        with trio.fail_after(10):
            while any(peer is first for peer in insider.mesh.peers.values()):  # noqa: ASYNC110
                await trio.sleep(0.02)
    assert "do not fit together" in victim.log()
    assert victim.status().node.name == "victim"


async def test_a_flood_of_records_stays_within_memory(victim: Node, tmp_path: Path) -> None:
    """Records of the right form and the largest size, one after another, none of them what it says."""
    asked = 0

    async def give(peer: Peer, message: AnyMessage) -> None:
        nonlocal asked
        assert isinstance(message, RecordsWanted)
        asked += len(message.ids)
        total = 8 * limits.RECORD_PART_BYTES
        for record_id in message.ids:
            for offset in range(0, total, limits.RECORD_PART_BYTES):
                part = Record(record_id, offset, total, bytes(limits.RECORD_PART_BYTES))
                await peer.send(Records(message.request, [part]))
        await peer.send(Records(message.request, [], done=True))

    rows = tuple((f"{number:03}".encode(), int(Kind.FILE), bytes([number]) * 32, 5) for number in range(60))
    tree, data = listing(*rows)
    async with inside(tmp_path / "evil", victim, own={RecordsWanted: give}) as insider:

        async def give_tree(peer: Peer, message: AnyMessage) -> None:
            assert isinstance(message, RecordsWanted)
            await (insider.give_records if tree in message.ids else give)(peer, message)

        insider.mesh._handlers[RecordsWanted] = give_tree  # pyright: ignore[reportPrivateUsage]
        insider.records[tree] = data
        await insider.publish("flood", tree)
        ended = await insider.outcome(tree)
    assert ended.state == "failed"
    assert asked >= 60, "half a gigabyte was sent"
    assert peak_anonymous_bytes(victim) < 300_000_000


def peak_anonymous_bytes(node: Node) -> int:
    """Return the most memory that the daemon had at once, files not counted; an upper bound of it."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{node.pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 - int(lines["RssFile"].split()[0]) * 1024
