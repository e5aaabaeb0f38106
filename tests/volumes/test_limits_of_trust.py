"""What one entry, one node or one moment must not do to what others saved."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from random import Random
from typing import Literal, cast

import msgspec
import pytest

from tbshare.errors import QuotaExceeded, VolumeReadOnly
from tbshare.volumes.asof import tables_of
from tbshare.volumes.entry import (
    Describe,
    Entry,
    Heard,
    MemberRemove,
    Place,
    RoleSet,
    Save,
    Until,
    VolumeCreate,
    VolumeSet,
    decode_op,
)
from tbshare.volumes.ids import RUN_BITS, Ids
from tbshare.volumes.opened import Shared
from tbshare.volumes.tables import Here, Tables
from tests.volumes.cluster import Cluster, Node, content, parts, texts
from tests.volumes.histories import VOLUME, Author


def test_an_unknown_op_for_one_volume_makes_only_that_one_read_only(anna: Node) -> None:
    anna.log.append([VolumeCreate(name="other", mode="media")])
    volumes = anna.volumes
    assert volumes is not None
    raw = msgspec.msgpack.encode({"kind": "reflink", "volume": volumes.open("other").id, "from": 1})
    anna.log.append([decode_op(raw, 2)])  # type: ignore[list-item]
    assert "upgrade this node" in volumes.open("other").why_read_only
    assert volumes.open("films").why_read_only == ""
    raw = msgspec.msgpack.encode({"kind": "reflink", "volume": 77})
    anna.log.append([decode_op(raw, 2)])  # type: ignore[list-item]
    assert volumes.open("films").why_read_only == ""
    raw = msgspec.msgpack.encode({"kind": "reflink", "volume": True})
    anna.log.append([decode_op(raw, 2)])  # type: ignore[list-item]
    assert volumes.open("films").why_read_only != ""


class _Repeating(Random):
    """Draws the same bits at every start, as two of 1,500 starts do by chance."""

    def getrandbits(self, k: int, /) -> int:
        self.drawn = getattr(self, "drawn", 0) + 1
        return self.drawn if k == RUN_BITS else super().getrandbits(k)


def test_no_id_is_given_twice_though_two_starts_draw_the_same_bits(anna: Node) -> None:
    given = [Ids(anna.identity.node, _Repeating(), anna.log.take_run).new() for _ in range(3)]
    anna.again()
    given.append(Ids(anna.identity.node, _Repeating(), anna.log.take_run).new())
    assert len(set(given)) == 4


def test_a_save_that_does_not_count_is_not_acknowledged(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    volume, log, append = bert.volume, bert.log, bert.log.append
    anna.log.append([RoleSet(volume=volume.id, node=bert.identity.node, role="read")])

    def late(ops: Sequence[object]) -> Entry:
        pair.tell("anna", "bert")  # between the look and the commit
        return append(ops)  # type: ignore[arg-type]

    log.append = late  # type: ignore[method-assign]
    with pytest.raises(VolumeReadOnly):
        bert.save("a", "one")


def test_what_snapshots_need_is_found_by_one_look_at_each(anna: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        anna.save("a", f"a{number}")
        anna.save("b", f"b{number}")
        anna.volume.snapshot_create(f"s{number}")
    anna.save("a", "last")
    anna.save("b", "last")
    folded: list[object] = []
    fold = tables_of

    def counting(*arguments: object, **more: object) -> Tables:
        folded.append(arguments)
        return fold(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("tbshare.volumes.past.tables_of", counting)
    anna.seconds += 400 * 86_400
    assert anna.volume.expire(1 << 30) == []
    assert len(folded) <= 6


def test_a_snapshot_that_somebody_reads_stays_open(anna: Node) -> None:
    anna.save("a", "one")
    for number in range(6):
        anna.volume.snapshot_create(f"s{number}")
    first = anna.volume.as_of("s0")
    for number in range(1, 6):
        anna.volume.as_of(f"s{number}").list(())
    assert [item.name for item in first.list(())] == [b"a"]


def test_a_snapshot_shows_no_more_than_counts(make_cluster: Callable[..., Cluster]) -> None:
    trio = make_cluster("anna", "bert", "carl")
    anna, bert = trio["anna"], trio["bert"]
    anna.save("a", "one")
    trio.settle()
    until = [Until(at.incarnation, at.seq, at.hash) for at in anna.log.at() if at.node == bert.identity.node]
    bert.save("late", "two")
    trio.settle()
    anna.volume.snapshot_create("then")
    assert [item.name for item in anna.volume.as_of("then").list(())] == [b"a", b"late"]
    anna.log.append([MemberRemove(node=bert.identity.node, cluster=anna.log.cluster, until=tuple(until))])
    assert anna.names() == ["a"]
    assert [item.name for item in anna.volume.as_of("then").list(())] == [b"a"]


def mark_of(node: Node, version: int, file: str = "a") -> Here | None:
    assert node.volumes is not None
    return node.volumes.tables(node.volume.id).here(node.item(file).file, version)


def test_what_no_log_says_stays_when_tables_are_made_anew(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    first = anna.save("a", "one")
    gone = anna.save("a", "two")
    anna.save("a", "three")
    bert.save("b", "b")
    pair.settle()
    assert anna.volumes is not None
    tables, file = anna.volumes.tables(anna.volume.id), anna.item("a").file
    tables.mark([(file, first)], Here.EXPIRED)
    tables.mark([(file, gone)], Here.EVICTED)
    anna.seconds += 1000
    anna.volume.expire(1 << 40)
    anna.log.remove_member(bert.identity.node)
    anew = anna.volumes.tables(anna.volume.id)
    assert anew is not tables
    assert anew.clock == tables.clock >= 1000
    assert (mark_of(anna, first), mark_of(anna, gone)) == (Here.EXPIRED, Here.EVICTED)
    assert [(one.row.version, one.since) for one in anew.superseded()] == [(first, 0.0), (gone, 0.0)]


def test_what_was_given_up_for_good_is_wanted_again_when_it_is_shown_again(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    version = anna.save("a", "one")
    pair.settle()
    file = anna.item("a").file
    anna.volume.remove(parts("a"))
    assert anna.volumes is not None
    anna.volumes.tables(anna.volume.id).mark([(file, version)], Here.EXPIRED)
    bert.volume.rename(parts("a"), parts("b"))  # was away all the time: a rename beats a removal
    assert pair.agree() == {"b": "one"}
    assert mark_of(anna, version, "b") == Here.WANTED


def test_a_shown_version_is_not_left_out_when_what_followed_it_counts_no_more(
    make_cluster: Callable[..., Cluster],
) -> None:
    trio = make_cluster("anna", "bert")
    anna, bert = trio["anna"], trio["bert"]
    version = anna.save("a", "one")
    trio.settle()
    until = [Until(at.incarnation, at.seq, at.hash) for at in anna.log.at() if at.node == bert.identity.node]
    bert.save("a", "two")
    trio.settle()
    hear(trio)
    anna.seconds += 1000 * 86_400
    assert len(anna.volume.expire(1 << 40)) == 1
    anna.log.append([MemberRemove(node=bert.identity.node, cluster=anna.log.cluster, until=tuple(until))])
    assert anna.reads("a") == "one"
    assert mark_of(anna, version) == Here.WANTED


def test_a_save_is_told_of_though_its_directory_moves_at_that_moment(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    bert.volume.mkdir(parts("d"))
    pair.settle()
    anna.volume.rename(parts("d"), parts("e"))
    log, append = bert.log, bert.log.append

    def and_then(ops: Sequence[object]) -> Entry:
        entry = append(ops)  # type: ignore[arg-type]
        pair.tell("anna", "bert")  # between the commit and the answer
        return entry

    log.append = and_then  # type: ignore[method-assign]
    saved = bert.volume.save(parts("d/a"), content("one"))
    assert bert.all() == {"e/": "", "e/a": "one"}
    assert (bert.item("e/a").file, bert.item("e/a").version) == (saved.file, saved.version)
    anna.volume.rename(parts("e"), parts("f"))
    assert bert.volume.copy(parts("e/a"), parts("e/b")).path == parts("f/b")


def test_a_directory_is_copied_out_of_a_bundle(anna: Node) -> None:
    anna.volume.mkdir(parts("Film.drp/d"), parents=True)
    anna.save("Film.drp/d/a", "one")
    anna.volume.copy(parts("Film.drp/d"), parts("d"))
    assert anna.reads("d/a") == "one"


def test_a_fork_takes_room_in_the_quota(anna: Node) -> None:
    anna.log.append([VolumeSet(volume=anna.volume.id, options={"quota_bytes": 100})])
    first = anna.volume.save(parts("a"), content("one", size=40)).version
    anna.volume.save(parts("a"), content("two", size=60))
    with pytest.raises(QuotaExceeded):
        anna.volume.save(parts("a"), content("three", size=60), base=[first])
    assert anna.volume.totals().size_bytes == 60


def test_who_started_from_no_file_does_not_follow_one_that_came_meanwhile(anna: Node) -> None:
    anna.save("a", "one")
    anna.volume.save(parts("a"), content("two"), base=[])
    assert sorted(text for text in anna.all().values()) == ["one", "two"]


def test_how_long_a_volume_is_removed_is_no_matter_of_anybodys_clock(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    volume = anna.volume.id
    bert.time_ns = 0  # it starts in 1970
    bert.log.append([VolumeSet(volume=volume, options={"removed": True})])
    pair.settle()
    assert anna.volumes is not None
    assert anna.volumes.removed_seconds(volume) == 0
    anna.seconds += 50
    assert anna.volumes.removed_seconds(volume) == 50
    anna.again()  # the time it was away does not count
    anna.seconds += 7
    assert anna.volumes.removed_seconds(volume) == 57
    anna.log.append([VolumeSet(volume=volume, options={"removed": False})])
    anna.wait()
    anna.log.append([VolumeSet(volume=volume, options={"removed": True})])
    assert anna.volumes.removed_seconds(volume) == 0


def test_nothing_is_given_up_that_a_member_may_still_build_upon(make_cluster: Callable[..., Cluster]) -> None:
    trio = make_cluster("anna", "bert", "carl")
    anna, carl = trio["anna"], trio["carl"]
    anna.save("a", "one")
    trio.settle()
    hear(trio)
    anna.save("a", "two")  # carl is away
    trio.settle("anna", "bert")
    for _ in range(3):
        anna.seconds += 1000 * 86_400
        anna.save("b", "meanwhile")
        hear(trio)
        assert anna.volume.expire(1 << 40) == []
    carl.volume.copy(parts("a"), parts("c"))
    trio.settle()
    hear(trio)
    anna.save("b", "again")  # there is always something that not all have
    anna.seconds += 1000 * 86_400
    assert len(anna.volume.expire(1 << 40)) > 0


def hear(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        for other in cluster.nodes.values():
            if other is not node:
                node.log.acknowledge(other.identity.node, other.log.vector())


def test_absurd_sizes_are_counted_and_stop_nobody(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    for path in ("a", "b", "c"):
        bert.volume.save(parts(path), content(path, size=(1 << 63) - 1))
    first = bert.item("a").version
    bert.volume.save(parts("a"), content("x", size=(1 << 63) - 1))
    for text in ("y", "z"):
        bert.volume.save(parts("a"), content(text, size=(1 << 63) - 1), base=[first])
    pair.settle()
    anna.save("mine", "one")
    assert anna.reads("mine") == "one"
    assert msgspec.msgpack.encode(anna.volume.totals().size_bytes)
    anna.again()
    bert.volume.remove_tree(parts("a"))
    for path in ("b", "c"):
        bert.volume.remove(parts(path))
    pair.settle()
    for name in [name for name in anna.names() if name != "mine"]:
        anna.volume.remove(parts(name))
    assert anna.volume.totals().size_bytes == len("one")


# ---- who may write, and who heard of what -------------------------------------------------------------------


def heard_by(node: Node) -> list[Heard]:
    entries = [entry for _, entry in node.log.entries_after(0, 1 << 20) if entry.node == node.identity.node]
    return [op for entry in entries for op in entry.ops if isinstance(op, Heard)]


def test_what_comes_after_the_word_that_it_was_heard_is_void_for_all(pair: Cluster) -> None:
    """A node that writes on, though its log says that it has heard, writes for itself."""
    anna, bert = pair["anna"], pair["bert"]
    bert.save("a", "one")
    pair.settle()
    taken = anna.log.append([RoleSet(volume=anna.volume.id, node=bert.identity.node, role="read")])
    pair.settle()
    assert [op.entries for op in heard_by(bert)] == [(taken.hash,)]
    ids = Ids(bert.identity.node, Random(7))
    file, volume = ids.new(), bert.volume.id
    bert.log.append(
        [
            Save(volume=volume, file=file, version=ids.new(), content=b"x" * 32),
            Place(volume=volume, id=ids.new(), place=ids.new(), file=file, name=b"b"),
        ]
    )
    assert pair.agree() == {"a": "one"}


def test_who_writes_on_and_does_not_say_that_it_heard_is_named(
    pair: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, bert = pair["anna"], pair["bert"]
    volume = bert.volume.id
    roles: list[Literal["read", ""]] = ["read", "", "read"]
    for role in roles:
        anna.log.append([RoleSet(volume=volume, node=bert.identity.node, role=role)])
        bert.log.append([Describe(volume=volume, id=0, directory=True, mode=0o700)])  # on the other side of a cut
        pair.settle()
        hear(pair)
        assert anna.log.unheeding() == bert.log.unheeding() == []
    monkeypatch.setattr(bert.log, "_unheard", list)
    anna.log.append([RoleSet(volume=volume, node=bert.identity.node, role="none")])
    pair.settle()
    bert.log.append([Describe(volume=volume, id=0, directory=True, mode=0o755)])
    pair.settle()
    hear(pair)
    assert anna.log.unheeding() == [bert.identity.node]


def test_two_owners_for_a_while(make_cluster: Callable[..., Cluster]) -> None:
    trio = make_cluster("anna", "bert", "carl", mode="owner")
    anna, bert, carl = trio.nodes.values()
    volume = anna.volume.id
    anna.save("a", "of anna")
    trio.settle()
    bert.log.append([VolumeSet(volume=volume, options={"owner": bert.identity.node.hex()})])
    carl.log.append([VolumeSet(volume=volume, options={"owner": carl.identity.node.hex()})])
    for node in (bert, carl):
        node.save("a", f"of {node.name}")
    for number in range(5):
        anna.save("a", f"of anna {number}")
    everything = trio.agree()
    assert {"of bert", "of carl", "of anna 4"} == set(everything.values()), "three forks, and none is lost"
    owner = next(node for node in (anna, bert, carl) if not node.volume.why_read_only)
    assert owner in (bert, carl)
    assert [len(heard_by(node)) for node in (anna, bert, carl)].count(0) == 1, "the owner had to hear of nothing"
    owner.save("b", "later")
    assert trio.agree()["b"] == "later"


def test_a_restored_store_hears_of_it_again(pair: Cluster, tmp_path: FilePath) -> None:
    anna, bert = pair["anna"], pair["bert"]
    bert.save("a", "one")
    pair.settle()
    bert.close()
    shutil.copytree(tmp_path, tmp_path.parent / "backup", ignore=shutil.ignore_patterns("anna*"))
    bert.log = bert.open_log()
    bert.open()
    anna.log.append([RoleSet(volume=anna.volume.id, node=bert.identity.node, role="read")])
    pair.settle()
    bert.close()
    for path in [*tmp_path.glob("bert.db*"), tmp_path / "bert.namespace"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(tmp_path.parent / "backup", tmp_path, dirs_exist_ok=True)
    bert.log = bert.open_log()
    bert.open()
    bert.save("a", "two")
    assert pair.agree() == {"a": "two"}, "it was acknowledged by who had forgotten"
    with pytest.raises(VolumeReadOnly):
        bert.save("a", "three")


def test_what_a_node_without_say_built_on_a_removed_node_s_file_keeps_its_name(
    make_cluster: Callable[..., Cluster],
) -> None:
    trio = make_cluster("anna", "bert", "carl", roles={"bert": "write"})
    anna, bert, carl = trio.nodes.values()
    carl.volume.mkdir(parts("d"))
    carl.save("d/a", "one")
    carl.log.append([VolumeCreate(name="sound", mode="media")])
    trio.tell("carl", "bert")
    bert.save("d/a", "two")
    anna.log.remove_member(carl.identity.node)
    trio.settle("anna", "bert")
    carl.save("d/late", "x")
    trio.settle()
    assert anna.all() == bert.all() == {"d/": "", "d/a": "two"}
    assert anna.log.state().volume_named("sound").name == "sound"
    (said,) = heard_by(bert)
    assert [at.node for at in said.until] == [carl.identity.node]


# ---- a machine that was copied as it ran --------------------------------------------------------------------


def test_a_machine_copied_as_it_runs_gives_ids_twice_and_nothing_is_lost(
    pair: Cluster, tmp_path: FilePath
) -> None:
    anna, bert = pair["anna"], pair["bert"]
    bert.save("a", "first")
    pair.settle()
    bert.close()
    for path in tmp_path.glob("bert.*"):
        copy = tmp_path / path.name.replace("bert", "twin")
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    bert.log = bert.open_log()
    bert.open()
    twin = pair.nodes["twin"] = Node(pair, "twin")
    twin.open()
    running, copied = (cast("Shared", vars(node.volumes)["_shared"]).ids for node in (bert, twin))
    running.new()
    vars(copied).update({key: vars(running)[key] for key in ("_next", "_end")})
    saves = {(node.save("a", f"of {node.name}"), node.item("a").content) for node in (bert, twin)}
    assert len({version for version, _ in saves}) == 1, "one id for both"
    for order in (("twin", "anna"), ("bert", "anna")):
        pair.settle(*order)
    assert sorted(pair.agree().values()) == ["of bert", "of twin"]
    anna.volume.resolve(parts("a"), anna.item("a").version)
    assert len(pair.agree()) == 1
    assert set(texts(anna.volume.history(parts("a")))) == {"first", "of bert", "of twin"}


def test_whose_content_an_id_has_is_found_anew_when_an_earlier_one_comes_late() -> None:
    author = Author(1)
    version = author.ids.new()
    early, late = (
        author.write(lamport, Save(volume=VOLUME, file=8, version=version, content=text * 32))
        for lamport, text in ((5, b"x"), (9, b"y"))
    )
    tables = Tables.open(":memory:")
    tables.fold([late], 1, lambda _row: Here.HERE)
    tables.fold([early], 2)
    row = tables.version(8, version)
    assert row is not None
    assert (row.content[:1], tables.here(8, version)) == (b"x", Here.WANTED), "these bytes are not here"
    assert sorted(row.content[:1] for row in tables.wanted()) == [b"x", b"y"]
    assert {row.content[:1] for row in tables.versions(8)} == {b"x", b"y"}
    tables.close()
