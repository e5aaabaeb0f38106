"""The bytes of saved files come to the nodes that should hold them, and to no others."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content.block import ObjectId
from tbshare.content.tree import Entry, Kind, Tree
from tbshare.daemon.copies import durability
from tbshare.daemon.drain import Drain
from tbshare.daemon.keep import Keep
from tbshare.daemon.keeping import FileKeeping
from tbshare.daemon.refs import Refs
from tbshare.daemon.volume_attention import volume_attention
from tbshare.daemon.wanted import ALONE_BYTES, BATCH_BYTES, BATCH_VERSIONS, Rule, batches, chosen, pin_of
from tbshare.errors import ObjectInUse, ObjectMissing
from tbshare.store.pack import Kind as RecordKind
from tbshare.volumes.entry import Place, Save
from tbshare.volumes.ids import Ids
from tbshare.volumes.policy import Policy
from tbshare.volumes.rows import VersionRow
from tbshare.volumes.tables import Here
from tbshare.wire.local import GcParams
from tbshare.wire.report import AnyEvent
from tests.nodes import MIB
from tests.together import Inside, content_of, holds, make_volume, row, save, take_in, together, until

NODES = [bytes([number]) * 32 for number in range(8)]


def version(content: bytes = b"c" * 32, size: int = 1, author: bytes = b"a" * 8, number: int = 1) -> VersionRow:
    stamp = bytes(8) + author + bytes(18)
    return VersionRow(number, number, (), "file", content, size, 0, 0, stamp, 0)


def files(directory: Path, seed: int, *sizes: int) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    source = random.Random(seed)
    paths = [directory / f"{seed}-{number}.mov" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(source.randbytes(size))
    return paths


def known(node: Inside, volume: int, pairs: Sequence[tuple[int, int]]) -> bool:
    tables = node.service.volumes.tables(volume)
    return all(tables.version(*pair) is not None for pair in pairs)


# ---- what is decided ----------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.permutations(NODES), st.integers(1, 8))
def test_all_nodes_choose_the_same_and_few_choices_change(content: bytes, nodes: list[bytes], count: int) -> None:
    holders = chosen(content, nodes, count)
    assert len(set(holders)) == count
    assert holders == chosen(content, NODES, count)
    without = chosen(content, [node for node in nodes if node != holders[0]], count)
    assert set(holders[1:]) <= set(without)


@given(st.lists(st.one_of(st.integers(0, 5000), st.integers(MIB, 2 * ALONE_BYTES)), max_size=3000))
def test_batches_hold_each_version_once_and_are_bounded(sizes: list[int]) -> None:
    rows = [version(size=size, number=number + 1) for number, size in enumerate(sizes)]
    parts = batches(rows)
    assert sorted(row.file for part in parts for row in part) == [row.file for row in rows]
    for part in parts:
        assert len(part) <= BATCH_VERSIONS
        assert sum(row.size for row in part) <= BATCH_BYTES
        assert len(part) == 1 or all(row.size < ALONE_BYTES for row in part)


@pytest.mark.parametrize(
    ("policy", "accept", "wanted"),
    [
        (Policy(), "all", True),
        (Policy(), "on-demand", False),
        (Policy(), "none", False),
        (Policy(replicate="on-demand"), "all", False),
        (Policy(replicate=8), "all", True),
    ],
)
def test_what_a_node_wants(policy: Policy, accept: str, wanted: bool) -> None:
    rule = Rule(NODES[0], policy, accept, True, frozenset(NODES))
    assert rule.wants(1, version()) == wanted
    assert rule.wants(1, version(author=NODES[0][:8])), "what it saved itself"
    pinned = Rule(NODES[0], policy, accept, True, frozenset(NODES), pinned=frozenset({pin_of(1, 1)}))
    assert pinned.wants(1, version())
    offered = Rule(NODES[0], policy, accept, True, frozenset(NODES), offered=frozenset({(1, 1)}))
    assert offered.wants(1, version())
    assert not Rule(NODES[0], policy, accept, False, frozenset(NODES)).wants(1, version()), "it may not read"


def test_the_copies_are_dealt_out_evenly() -> None:
    counts = dict.fromkeys(NODES, 0)
    for number in range(4000):
        for node in chosen(number.to_bytes(32, "big"), NODES, 2):
            counts[node] += 1
    assert all(900 < count < 1100 for count in counts.values())


def test_the_words_for_how_safe_a_version_is() -> None:
    me, other, third = NODES[:3]
    assert durability({me}, [me, other], me) == "local"
    assert durability({me, other}, [me, other, third], me) == "2 copies"
    assert durability({me, other, third}, [me, other, third], me) == "everywhere"
    assert durability({other}, [me, other], me) == "1 copy"
    assert durability(set(), [me, other], me) == "no copy connected"
    assert durability({me}, [me], me) == "local"


# ---- what comes ---------------------------------------------------------------------------------------------


async def test_a_save_comes_to_every_node_byte_for_byte(tmp_path: Path) -> None:
    ada, grace, edith = (Inside(tmp_path / name, name) for name in ("ada", "grace", "edith"))
    async with together(ada, grace, edith):
        volume = await make_volume(ada, "film")
        paths = files(tmp_path / "f", 1, 0, 1, 2000, 70_000, 9 * MIB + 17)
        pairs = await save(ada, volume, paths)
        for node in (ada, grace, edith):
            await until("all is here", lambda node=node: holds(node, volume, pairs))  # type: ignore[misc]
            for path, pair in zip(paths, pairs, strict=True):
                assert content_of(node, volume, pair) == path.read_bytes()
        copies = await edith.service.spread.holding.of(volume, pairs)
        assert all(nodes == {ada.node, grace.node, edith.node} for nodes in copies.values())


async def test_on_demand_waits_until_it_is_needed(tmp_path: Path) -> None:
    ada, grace = Inside(tmp_path / "ada", "ada"), Inside(tmp_path / "grace", "grace")
    async with together(ada, grace) as nursery:
        volume = await make_volume(ada, "film", replicate="on-demand")
        paths = files(tmp_path / "f", 2, 3 * MIB, 5000)
        first, second = await save(ada, volume, paths)
        await until("the names are here", lambda: known(grace, volume, [second]))
        await grace.service.spread.need(volume, *first)
        assert content_of(grace, volume, first) == paths[0].read_bytes()
        assert holds(grace, volume, [first])
        assert grace.service.volumes.tables(volume).here(*second) == Here.WANTED
        grace_node = grace.node
        await ada.down()
        await until("ada has left", lambda: not grace.service.mesh.peers)
        with pytest.raises(ObjectMissing, match=r"ada saved it \(not connected: ada\)"):
            await grace.service.spread.need(volume, *second)
        await ada.up(nursery)
        await until("ada is back", lambda: bool(grace.service.mesh.peers))
        await grace.service.spread.need(volume, *second)
        assert (await ada.service.spread.holding.of(volume, [second]))[second] == {ada.node, grace_node}


async def test_as_many_copies_as_the_volume_says(tmp_path: Path) -> None:
    nodes = [Inside(tmp_path / name, name) for name in ("ada", "grace", "edith", "joan")]
    async with together(*nodes):
        volume = await make_volume(nodes[0], "film", replicate=2)
        pairs = await save(nodes[0], volume, files(tmp_path / "f", 3, *[3000] * 24))
        ids = [node.node for node in nodes]
        for node in nodes:
            own = [
                pair
                for pair in pairs
                if node is nodes[0] or node.node in chosen(row(nodes[0], volume, pair).content, ids, 2)
            ]
            await until("its share is here", lambda node=node, own=own: holds(node, volume, own))  # type: ignore[misc]
            others = set(pairs) - set(own)
            assert not node.service.spread.holding.here(volume, sorted(others))


async def test_a_node_that_was_away_gets_what_it_missed(tmp_path: Path) -> None:
    ada, grace, edith = (Inside(tmp_path / name, name) for name in ("ada", "grace", "edith"))
    async with together(ada, grace, edith) as nursery:
        volume = await make_volume(ada, "film")
        await until("edith knows it", lambda: bool(edith.service.volumes.handles()))
        await edith.down()
        pairs = await save(ada, volume, files(tmp_path / "f", 4, 100_000, 2000))
        await until("grace has it", lambda: holds(grace, volume, pairs))
        await ada.down()
        await edith.up(nursery)  # from grace alone it must come then
        await until("edith has it", lambda: holds(edith, volume, pairs))


async def test_nothing_moves_for_bytes_that_are_here_already(tmp_path: Path) -> None:
    ada, grace = Inside(tmp_path / "ada", "ada"), Inside(tmp_path / "grace", "grace")
    async with together(ada, grace):
        volume = await make_volume(ada, "film")
        paths = files(tmp_path / "f", 5, 5 * MIB)
        first = await save(ada, volume, paths)
        await until("it is there", lambda: holds(grace, volume, first))
        served = ada.service.provider.bytes_served
        again = await save(ada, volume, paths)
        await until("the copy is there", lambda: holds(grace, volume, again))
        assert ada.service.provider.bytes_served == served


async def test_a_version_that_lies_keeps_no_other_away(tmp_path: Path) -> None:
    ada, grace = Inside(tmp_path / "ada", "ada"), Inside(tmp_path / "grace", "grace")
    async with together(ada, grace):
        volume = await make_volume(ada, "film")
        paths = files(tmp_path / "f", 6, *[3000] * 9)
        contents = [(await trio.to_thread.run_sync(take_in, ada, path))[0] for path in paths]
        sizes = [3000, 3000, 2999, 3000, 3000, 3000, 3001, 3000, 3000]
        ids = Ids(ada.node, random.Random(6))
        ops = [
            Save(volume, ids.new(), ids.new(), content, size=size)
            for content, size in zip(contents, sizes, strict=True)
        ]
        entry = await trio.to_thread.run_sync(ada.service.log.append, ops)
        await ada.service.mesh.grown([entry])
        good = [(op.file, op.version) for op in ops if op.size == 3000]
        await until("the good ones are there", lambda: holds(grace, volume, good))
        assert len(grace.service.spread.refused) == 2


async def test_a_bundle_comes_as_a_whole(tmp_path: Path) -> None:
    ada, grace = Inside(tmp_path / "ada", "ada"), Inside(tmp_path / "grace", "grace")
    async with together(ada, grace):
        volume = await make_volume(ada, "film", replicate="on-demand")
        inner = await save(ada, volume, files(tmp_path / "f", 8, 3000, 2 * MIB))
        rows = [row(ada, volume, pair) for pair in inner]
        below = Tree([Entry(b"clip", Kind.FILE, rows[1].content, rows[1].size, 0o644, 0)])
        tree = Tree(
            [
                Entry(b"project", Kind.FILE, rows[0].content, rows[0].size, 0o644, 0),
                Entry(b"media", Kind.TREE, below.id, below.size, 0o755, 0),
            ]
        )
        for each in (below, tree):
            ada.service.store.add_record(RecordKind.TREE, each.id, each.encoded)
        ada.service.store.sync_records()
        file, number = inner[0][0] + 100, inner[0][1] + 100
        save_op = Save(volume, file, number, tree.id, size=tree.size, contents="bundle")
        entry = ada.service.log.append([Place(volume, file + 1, file + 2, file, b"A.fcpbundle"), save_op])
        await ada.service.mesh.grown([entry])
        await until("it is known", lambda: known(grace, volume, [(file, number)]))
        await grace.service.spread.need(volume, file, number)
        found = {path: object_id for path, object_id, _ in grace.service.store.files_below(tree.id)}
        assert found == {(b"project",): rows[0].content, (b"media", b"clip"): rows[1].content}
        assert all(grace.service.store.is_whole(ObjectId(row.content)) for row in rows)


# ---- what stays ---------------------------------------------------------------------------------------------


async def collected(node: Inside) -> int:
    keep = Keep(node.service, Refs(node.service))
    return (await keep.gc(GcParams(now=True))).bytes_freed


async def test_garbage_is_what_no_version_kept_consists_of(tmp_path: Path) -> None:
    ada = Inside(tmp_path / "ada", "ada")
    async with together(ada):
        volume = await make_volume(ada, "film")
        kept, old = await save(ada, volume, files(tmp_path / "f", 9, 300_000, 400_000))
        await until("it is marked", lambda: holds(ada, volume, [kept, old]))
        assert await collected(ada) == 0
        ada.service.volumes.tables(volume).mark([old], Here.EXPIRED)
        assert await collected(ada) == 400_000
        assert holds(ada, volume, [kept])


async def test_the_last_copy_is_never_evicted(tmp_path: Path) -> None:
    ada, grace = Inside(tmp_path / "ada", "ada"), Inside(tmp_path / "grace", "grace")
    async with together(ada, grace):
        volume = await make_volume(ada, "film", replicate="on-demand")
        (pair,) = await save(ada, volume, files(tmp_path / "f", 10, 2 * MIB))
        await until("it is known", lambda: known(grace, volume, [pair]))
        with pytest.raises(ObjectInUse, match="last copy"):
            await FileKeeping(ada.service).evict(volume, [pair])
        await grace.service.spread.need(volume, *pair)
        await FileKeeping(ada.service).pin(volume, [pair[0]])
        with pytest.raises(ObjectInUse, match="pinned"):
            await FileKeeping(ada.service).evict(volume, [pair])
        await FileKeeping(ada.service).unpin(volume, [pair[0]])
        report = await FileKeeping(ada.service).evict(volume, [pair])
        assert report.bytes_freed == 2 * MIB
        assert not ada.service.spread.holding.here(volume, [pair])
        with pytest.raises(ObjectInUse, match="last copy"):
            await FileKeeping(grace.service).evict(volume, [pair])
        await FileKeeping(ada.service).pin(volume, [pair[0]])
        await until("what is pinned comes back", lambda: holds(ada, volume, [pair]))


async def test_two_that_evict_at_once_keep_a_copy(tmp_path: Path) -> None:
    ada, grace = Inside(tmp_path / "ada", "ada"), Inside(tmp_path / "grace", "grace")
    async with together(ada, grace):
        volume = await make_volume(ada, "film")
        pairs = await save(ada, volume, files(tmp_path / "f", 11, *[100_000] * 12))
        await until("both have all", lambda: holds(grace, volume, pairs))

        async def evict(node: Inside, pair: tuple[int, int]) -> None:
            try:
                await FileKeeping(node.service).evict(volume, [pair])
            except ObjectInUse:
                return

        for pair in pairs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(evict, ada, pair)
                nursery.start_soon(evict, grace, pair)
            assert (await ada.service.spread.holding.of(volume, [pair]))[pair], "one of the two still has it"


async def test_a_damaged_object_comes_again(tmp_path: Path) -> None:
    ada, grace = Inside(tmp_path / "ada", "ada"), Inside(tmp_path / "grace", "grace")
    async with together(ada, grace):
        volume = await make_volume(ada, "film")
        paths = files(tmp_path / "f", 12, 5 * MIB)
        (pair,) = await save(ada, volume, paths)
        await until("it is there", lambda: holds(grace, volume, [pair]))
        content = ObjectId(row(grace, volume, pair).content)
        broken = grace.service.store.home.object(content, "exact")
        os.chmod(broken, 0o600)
        with broken.open("r+b") as file:
            file.seek(MIB)
            file.write(b"rot")
        keep = Keep(grace.service, Refs(grace.service))
        await keep._look_into([(content, 0)])  # pyright: ignore[reportPrivateUsage]
        await until("it is whole again", lambda: holds(grace, volume, [pair]))
        assert content_of(grace, volume, pair) == paths[0].read_bytes()


async def test_a_volume_that_is_heard_of_at_the_very_end_ends_nothing(tmp_path: Path) -> None:
    ada = Inside(tmp_path / "ada", "ada")
    ada.open()
    spread = ada.service.spread
    with trio.move_on_after(0):
        await spread.run()
    await make_volume(ada, "film")
    await spread._on_state(await ada.service.mesh.state())  # pyright: ignore[reportPrivateUsage]
    ada.service.close()


# ---- drain --------------------------------------------------------------------------------------------------


async def drained(node: Inside, *, wait: bool = True) -> tuple[bool, str, list[AnyEvent]]:
    events: list[AnyEvent] = []

    async def emit(event: AnyEvent) -> None:
        events.append(event)

    report = await Drain(node.service).drain(emit, wait=wait)
    return report.safe, report.text, events


async def test_drain_ends_when_all_is_elsewhere(tmp_path: Path) -> None:
    ada = Inside(tmp_path / "ada", "ada")
    grace = Inside(tmp_path / "grace", "grace", store__accept="on-demand")
    async with together(ada, grace):
        volume = await make_volume(ada, "film", replicate="on-demand")
        pairs = await save(ada, volume, files(tmp_path / "f", 13, 2 * MIB, *[2000] * 20))
        safe, text, _ = await drained(ada, wait=False)
        assert not safe
        assert text.startswith("not yet elsewhere: film:/13-")
        safe, text, events = await drained(ada)
        assert safe, text
        assert events
        assert holds(grace, volume, pairs)
        assert ada.node in grace.service.spread.holding.draining
        await Drain(ada.service).undrain()
        await until("grace is told", lambda: ada.node not in grace.service.spread.holding.draining)


async def test_drain_brings_back_what_was_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbshare.daemon.drain.PATIENCE_SECONDS", 5.0)
    ada, grace = Inside(tmp_path / "ada", "ada"), Inside(tmp_path / "grace", "grace")
    async with together(ada, grace):
        volume = await make_volume(ada, "film")
        pairs = await save(ada, volume, files(tmp_path / "f", 15, 100_000))
        await until("both have it", lambda: holds(grace, volume, pairs))
        await FileKeeping(grace.service).evict(volume, pairs)
        assert not grace.service.spread.holding.here(volume, pairs)
        safe, text, _ = await drained(ada)
        assert safe, text
        assert holds(grace, volume, pairs)


async def test_a_drained_node_stays_so_until_it_is_undrained(tmp_path: Path) -> None:
    ada, grace = Inside(tmp_path / "ada", "ada"), Inside(tmp_path / "grace", "grace")
    async with together(ada, grace) as nursery:
        await drained(ada)
        for drains in (True, False):
            node = ada.node
            await ada.down()
            await until("ada has left", lambda: not grace.service.mesh.peers)
            grace.service.spread.holding.draining.clear()
            await ada.up(nursery)
            ada.service.mesh.learn(grace.node, [f"127.0.0.1:{grace.port}"])
            await until("they are connected", lambda node=node: node in grace.service.mesh.peers)  # type: ignore[misc]
            assert ada.service.spread.draining == drains
            assert [line.cure for line in volume_attention(ada.service)] == ["tbshare undrain"] * drains
            if drains:
                await until("grace is told", lambda node=node: node in grace.service.spread.holding.draining)  # type: ignore[misc]
                await Drain(ada.service).undrain()


@pytest.mark.parametrize("others", [1, 2])
async def test_drain_passes_over_a_node_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    if others == 1:
        monkeypatch.setattr("tbshare.daemon.drain.PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr("tbshare.daemon.drain.LOOK_SECONDS", 0.1)
    ada = Inside(tmp_path / "ada", "ada")
    full = Inside(tmp_path / "grace", "grace", store__accept="on-demand", store__max_bytes="1MB")
    roomy = Inside(tmp_path / "edith", "edith", store__accept="on-demand")
    async with together(*[ada, full, roomy][: others + 1]):
        volume = await make_volume(ada, "film", replicate="on-demand")
        pairs = await save(ada, volume, files(tmp_path / "f", 16, *[2 * MIB] * 4))
        safe, text, _ = await drained(ada)
        assert safe == (others == 2), text
        if others == 2:
            assert holds(roomy, volume, pairs)
        else:
            assert "not yet elsewhere: film:/16-" in text
            assert "grace had 1.0 MB free" in text


async def test_drain_says_why_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbshare.daemon.drain.ALONE_SECONDS", 0.2)
    monkeypatch.setattr("tbshare.daemon.drain.LOOK_SECONDS", 0.1)
    ada = Inside(tmp_path / "ada", "ada")
    grace = Inside(tmp_path / "grace", "grace", store__accept="none")
    async with together(ada, grace):
        volume = await make_volume(ada, "film", replicate="on-demand")
        await save(ada, volume, files(tmp_path / "f", 14, 2000))
        safe, text, _ = await drained(ada)
        assert not safe
        assert text == "no connected node accepts copies (store.accept)"
        await grace.down()
        await until("grace has left", lambda: not ada.service.mesh.peers)
        safe, text, _ = await drained(ada)
        assert not safe
        assert text == "no other node is connected"
