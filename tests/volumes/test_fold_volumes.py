"""Volumes, their options, roles and snapshots, as the cluster's fold gives them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbshare.errors import UsageError
from tbshare.volumes.catalogue import MODELS_ID, volume_id
from tbshare.volumes.entry import (
    At,
    Entry,
    FileOp,
    Heard,
    MemberRemove,
    Mode,
    Place,
    RefSet,
    Role,
    RoleSet,
    SnapshotCreate,
    SnapshotRemove,
    VolumeCreate,
    VolumeSet,
)
from tbshare.volumes.fold import fold
from tbshare.volumes.membership import before_among, concerns_cluster
from tbshare.volumes.policy import Option
from tests.volumes.test_fold import Lab, Writer, push, refs

MODES: list[Mode] = ["models", "media", "owner"]


class Films(Lab):
    """A lab with everybody in it and one volume."""

    def __init__(self, mode: Mode = "media", roles: tuple[Role, ...] = ("admin", "write", "read")) -> None:
        super().__init__()
        for writer, name, role in zip(self.writers[1:], ("bert", "cora", "dora"), roles, strict=False):
            self.add(self.anna, writer, name, role=role)
        self.film = self.make(self.anna, "film", mode)
        self.meet()

    def make(self, by: Writer, name: str, mode: Mode = "media", **options: Option) -> int:
        return volume_id(by.write(VolumeCreate(name=name, mode=mode, options=options)).hash, 0)

    def set(self, by: Writer, **options: Option) -> Entry:
        return by.write(VolumeSet(volume=self.film, options=options))

    def give(self, by: Writer, who: Writer, role: Role | str) -> Entry:
        return by.write(RoleSet(volume=self.film, node=who.node, role=role))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def touch(self, by: Writer) -> Entry:
        return by.write(Place(volume=self.film, id=5, place=6, file=7, name=b"a"))

    def meet(self) -> None:
        for writer in self.writers:
            writer.hear(*self.writers)

    def may(self, who: Writer, entry: Entry) -> bool:
        assert entry.node == who.node
        return self.state().is_valid(self.film, entry)

    def tell(self, to: Writer, *others: Writer) -> None:
        """Let a node hear of what others know, and answer as a log does."""
        before = fold(to.seen.values(), self.cluster)
        to.hear(*others)
        state = fold(to.seen.values(), self.cluster)
        own = state.members.get(to.node)
        for node in before.members.keys() & state.removed_members.keys() if own else ():
            until = to.until(node)
            if own and own.role == "admin":
                to.write(MemberRemove(node=node, cluster=self.cluster, until=until))
            else:
                heads = tuple(At(node, place.incarnation, place.seq, place.hash) for place in until)
                to.write(Heard(entries=(self.cluster,), until=heads))
        head = to.head
        at = At(head.node, head.incarnation, head.seq, head.hash) if head else None
        if entries := fold(to.seen.values(), self.cluster).unheard(to.node, at):
            to.write(Heard(entries=tuple(entries)))


def test_a_volume_is_what_its_ops_say() -> None:
    lab = Films()
    state = lab.state()
    volume = state.volume_named("FILM")
    assert (volume.id, volume.name, volume.mode, volume.author) == (lab.film, "film", "media", lab.anna.node)
    assert state.volume_by_id(lab.film) == volume
    assert state.volume_by_id(12345) is None
    assert state.volume_named("models").id == MODELS_ID
    with pytest.raises(UsageError, match="nearest: film") as caught:
        state.volume_named("flim")
    assert caught.value.cure
    with pytest.raises(UsageError, match="the volumes are: film, models"):
        state.volume_named("\x1b[31mzzz")


def test_two_volumes_of_one_name_are_both_kept() -> None:
    lab = Films()
    first = lab.make(lab.anna, "Audio")
    second = lab.make(lab.bert, "audio")
    third = lab.make(lab.bert, "audio")
    own = lab.make(lab.bert, "models")
    state = lab.state()
    shown = {volume.id: volume.name for volume in state.volumes.values()}
    assert {shown[first], shown[second], shown[third]} in (
        {"Audio", "audio.bert", "audio.bert-2"},
        {"Audio.anna", "audio", "audio.bert"},
    )
    assert shown[own] == "models.bert"
    assert shown[MODELS_ID] == "models"


def test_the_later_of_two_options_holds_each_by_itself() -> None:
    lab = Films()
    lab.anna.write(VolumeSet(volume=lab.film, options={"replicate": 2, "quota_bytes": 7}), lamport=50)
    lab.bert.write(VolumeSet(volume=lab.film, options={"replicate": 3, "history_days": 9}), lamport=60)
    policy = lab.state().volume_named("film").policy
    assert (policy.replicate, policy.quota_bytes, policy.history_days) == (3, 7, 9)


def test_options_of_newer_versions_are_kept_and_mean_nothing() -> None:
    lab = Films()
    lab.set(lab.anna, colour="red", replicate="smart", case="sensitive")
    volume = lab.state().volume_named("film")
    assert ("colour", "red") in volume.options
    assert (volume.policy.replicate, volume.policy.case) == ("everywhere", "insensitive")


def test_who_may_set_options_and_roles() -> None:
    lab = Films()
    lab.set(lab.cora, replicate=2)
    lab.give(lab.cora, lab.cora, "admin")
    lab.set(lab.dora, replicate=2)
    lab.meet()
    assert lab.state().volume_named("film").policy.replicate == "everywhere"
    lab.give(lab.bert, lab.dora, "admin")
    lab.dora.hear(lab.bert)
    lab.set(lab.dora, replicate=2)
    lab.give(lab.dora, lab.cora, "none")
    state = lab.state()
    assert state.volume_named("film").policy.replicate == 2, "admin of this volume alone"
    assert state.role(lab.cora.node, lab.film) == "none"
    assert state.administers(lab.dora.node, lab.film)
    assert not state.administers(lab.dora.node, MODELS_ID)
    lab.meet()
    lab.give(lab.dora, lab.anna, "none")
    lab.meet()
    lab.give(lab.anna, lab.anna, "")
    assert lab.state().role(lab.anna.node, lab.film) == "admin", "an admin of the cluster is never locked out"


def test_roles() -> None:
    lab = Films()
    state = lab.state()
    assert [state.may_write(lab.film, who.node) for who in lab.writers] == [True, True, True, False, False]
    assert [state.may_read(who.node, lab.film) for who in lab.writers] == [True, True, True, True, False]
    assert not state.may_write(MODELS_ID, lab.anna.node), "no files are changed there"
    assert not state.may_write(77, lab.anna.node)
    lab.give(lab.anna, lab.cora, "read")
    lab.give(lab.anna, lab.dora, "write")
    lab.give(lab.anna, lab.bert, "none")
    state = lab.state()
    assert [state.may_write(lab.film, who.node) for who in lab.writers] == [True, False, False, True, False]
    assert [state.may_read(who.node, lab.film) for who in lab.writers] == [True, False, True, True, False]
    assert state.may_read(lab.bert.node, MODELS_ID), "in this volume only"
    lab.give(lab.anna, lab.bert, "")
    assert lab.state().role(lab.bert.node, lab.film) == "admin"


def test_a_role_taken_away_makes_void_what_is_written_knowing_of_it_and_nothing_else() -> None:
    lab = Films()
    before = lab.touch(lab.cora)
    lab.meet()
    lab.give(lab.anna, lab.cora, "read")
    lab.tell(lab.cora, lab.anna)
    after = lab.touch(lab.cora)
    lab.meet()
    lab.give(lab.anna, lab.cora, "write")
    lab.meet()
    again = lab.touch(lab.cora)
    assert [lab.may(lab.cora, entry) for entry in (before, after, again)] == [True, False, True]


def test_a_removed_member_s_files_count_up_to_what_was_seen() -> None:
    lab = Films()
    before = lab.touch(lab.cora)
    lab.anna.hear(lab.cora)
    lab.remove(lab.anna, lab.cora)
    after = lab.touch(lab.cora)
    assert [lab.may(lab.cora, entry) for entry in (before, after)] == [True, False]
    state = lab.state()
    assert not state.may_write(lab.film, lab.cora.node)
    assert not state.may_read(lab.cora.node, lab.film)


def test_only_the_owner_writes_and_ownership_goes_over_in_order() -> None:
    lab = Films("owner")
    first = lab.touch(lab.anna)
    foreign = lab.touch(lab.bert)
    lab.meet()
    lab.set(lab.anna, owner=lab.cora.node.hex())
    lab.tell(lab.cora, lab.anna)
    second, late = lab.touch(lab.cora), lab.touch(lab.anna)
    assert [lab.may(lab.anna, first), lab.may(lab.bert, foreign)] == [True, False]
    assert [lab.may(lab.cora, second), lab.may(lab.anna, late)] == [True, False]
    lab.set(lab.bert, owner="nobody")
    assert lab.state().may_write(lab.film, lab.cora.node), "what is no node changes nothing"


def test_a_removed_volume_is_kept_and_its_name_is_free() -> None:
    lab = Films()
    lab.set(lab.anna, removed=True)
    lab.meet()
    new = lab.make(lab.bert, "film")
    lab.meet()
    state = lab.state()
    assert state.volume_named("film").id == new
    old = state.volume_by_id(lab.film)
    assert old is not None
    assert (old.removed, old.name) == (True, "film.anna")
    assert state.volume_named("film.anna", removed=True) == old
    with pytest.raises(UsageError):
        state.volume_named("film.anna")
    assert not state.may_write(lab.film, lab.anna.node)
    assert lab.may(lab.cora, lab.touch(lab.cora)), "what was saved meanwhile is there when it comes back"
    lab.set(lab.anna, removed=False)
    assert lab.state().volume_named("film").id == lab.film


def test_no_ref_goes_into_a_volume_of_files() -> None:
    lab = Films()
    for volume in ("film", "FILM", "nowhere"):
        lab.anna.write(replace_volume(push("a", 1, b"x"), volume))
    assert set(lab.state().refs) == {("nowhere", "a")}


def replace_volume(op: RefSet, volume: str) -> RefSet:
    return RefSet(volume=volume, name=op.name, rev=op.rev, tree=op.tree, size_bytes=1, files=1)


def test_refs_go_with_their_volume_and_come_back_with_it() -> None:
    lab = Films("models")
    lab.cora.write(replace_volume(push("a", 1, b"x"), "film"))
    lab.dora.write(replace_volume(push("b", 1, b"y"), "film"))
    lab.meet()
    assert refs(lab.state()) == {"film:a@1": b"x"}
    lab.set(lab.anna, removed=True)
    lab.meet()
    state = lab.state()
    assert not state.refs
    assert [str(gone.version) for gone in state.refs_removed] == ["film:a@1"]
    lab.set(lab.anna, removed=False)
    assert refs(lab.state()) == {"film:a@1": b"x"}
    assert not lab.state().refs_removed
    lab.give(lab.anna, lab.cora, "read")
    lab.cora.write(replace_volume(push("a", 2, b"z"), "film"), lamport=500)
    assert set(refs(lab.state())) == {"film:a@1", "film:a@2"}, "it had not heard of it"
    lab.tell(lab.cora, lab.anna)
    lab.cora.write(replace_volume(push("a", 3, b"z"), "film"))
    assert set(refs(lab.state())) == {"film:a@1", "film:a@2"}


def test_snapshots() -> None:
    lab = Films()
    heads = (At(lab.anna.node, b"i" * 32, 1, lab.cluster),)
    made = lab.anna.write(SnapshotCreate(volume=lab.film, name="cut", heads=heads))
    lab.cora.write(SnapshotCreate(volume=lab.film, name="Cut", heads=heads))
    lab.dora.write(SnapshotCreate(volume=lab.film, name="no", heads=heads))
    lab.meet()
    names = [snapshot.name for snapshot in lab.state().snapshots(lab.film)]
    assert len(names) == 2
    assert set(names) in ({"cut", "Cut.cora"}, {"Cut", "cut.anna"})
    lab.cora.write(SnapshotRemove(volume=lab.film, name="cut", entry=made.hash))
    assert len(lab.state().snapshots(lab.film)) == 2, "it is another's"
    lab.bert.write(SnapshotRemove(volume=lab.film, name="cut", entry=made.hash))
    (left,) = lab.state().snapshots(lab.film)
    assert (left.author, left.heads) == (lab.cora.node, heads)
    assert lab.state().snapshots(99) == ()


# ---- what verdicts rest on --------------------------------------------------------------------------------


def test_rules_change_only_when_a_verdict_could() -> None:
    lab = Films()
    for _ in range(3):
        lab.touch(lab.cora)
    old = lab.touch(lab.cora)
    authors = {lab.cora.node: old.stamp(), lab.anna.node: old.stamp()}
    lab.meet()

    def rules() -> bytes:
        return lab.state().rules(lab.film, authors)

    start = rules()
    lab.give(lab.anna, lab.cora, "read")
    lab.add(lab.anna, lab.emil, "emil")
    lab.set(lab.anna, replicate=2)
    assert rules() == start, "later in the order, or of others"
    lab.give(replace(lab.bert, head=None, incarnation=b"j" * 32), lab.cora, "write")
    assert rules() == start
    dated = replace(lab.bert, head=None, incarnation=b"k" * 32)
    for role, changes in (("read", False), ("write", True)):
        early = dated.write(RoleSet(volume=lab.film, node=lab.cora.node, role=role), lamport=old.lamport - 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        changed = fold([*lab.all(), early], lab.cluster)
        assert (changed.rules(lab.film, authors) != start) is changes, "only what is given is given at a place"
        assert changed.is_valid(lab.film, old)
    lab.remove(lab.anna, lab.cora)
    assert rules() != start


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Entry], bytes, int]:  # noqa: C901  a table of what may happen
    """Return what nodes did with volumes, much of it without knowing of each other."""
    lab = Films(draw(st.sampled_from(MODES)), draw(st.tuples(*[st.sampled_from(["admin", "write", "read"])] * 3)))
    heads = (At(lab.anna.node, b"i" * 32, 1, lab.cluster),)
    for _ in range(draw(st.integers(0, 14))):
        writer, other = draw(st.sampled_from(lab.writers)), draw(st.sampled_from(lab.writers))
        match draw(st.sampled_from([0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11])):
            case 0:
                lab.make(
                    writer,
                    draw(st.sampled_from(["film", "Film", "models", "sound"])),
                    draw(st.sampled_from(MODES)),
                )
            case 1:
                lab.set(writer, replicate=draw(st.integers(1, 3)), removed=draw(st.booleans()))
                lab.set(writer, owner=draw(st.sampled_from([writer, other])).node.hex())
            case 3:
                lab.give(writer, other, draw(st.sampled_from(["admin", "write", "read", "none", ""])))
            case 4:
                writer.hear(other)
            case 5:
                lab.touch(writer)
            case 6:
                made = writer.write(SnapshotCreate(volume=lab.film, name="cut", heads=heads))
                other.hear(writer)
                other.write(SnapshotRemove(volume=lab.film, name="cut", entry=made.hash))
            case 7:
                writer.write(
                    replace_volume(
                        push("a", draw(st.integers(1, 2)), b"x"), draw(st.sampled_from(["film", "sound"]))
                    )
                )
            case 8:
                lab.remove(writer, other)
            case 10:
                lab.tell(writer, other)
            case 11:
                known = [entry.hash for entry in other.seen.values()]
                said = draw(st.lists(st.sampled_from([*known, b"?" * 32]), min_size=1))
                writer.write(Heard(entries=tuple(said)))
                lab.touch(writer)
            case _:
                fork = replace(writer, seen=dict(writer.seen))
                lab.touch(fork)
                other.hear(fork)
    return lab.all(), lab.cluster, lab.film


@given(histories(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_order_and_any_duplicates_give_the_same_volumes(
    history: tuple[list[Entry], bytes, int], data: st.DataObject
) -> None:
    entries, cluster, film = history
    whole = fold(entries, cluster)
    mixed = data.draw(st.permutations([*entries, *data.draw(st.lists(st.sampled_from(entries), max_size=4))]))
    again = fold(mixed, cluster)
    assert again == whole
    cut = data.draw(st.integers(0, len(mixed)))
    assert fold(mixed[:cut], cluster).extended(mixed[cut:]) == whole
    for entry in entries:
        assert again.is_valid(film, entry) == whole.is_valid(film, entry)


@given(histories())
@settings(max_examples=150, deadline=None)
def test_entries_with_files_alone_need_not_be_given(history: tuple[list[Entry], bytes, int]) -> None:
    entries, cluster, film = history
    whole = fold(entries, cluster)
    part = fold([entry for entry in entries if concerns_cluster(entry)], cluster, before_among(entries))
    assert all(isinstance(op, FileOp) for entry in entries if entry not in part.entries for op in entry.ops)
    for entry in entries:
        assert part.who.counts(entry) == whole.who.counts(entry)
        assert part.is_valid(film, entry) == whole.is_valid(film, entry)
    assert replace(part, entries=whole.entries, lamport=whole.lamport) == whole


@given(histories(), st.data())
@settings(max_examples=200, deadline=None)
def test_while_the_rules_stay_so_do_the_verdicts(
    history: tuple[list[Entry], bytes, int], data: st.DataObject
) -> None:
    entries, cluster, film = history
    mixed = as_logs_are(data.draw(st.permutations(entries)))
    judged = mixed[: data.draw(st.integers(0, len(mixed)))]
    first, then = fold(judged, cluster), fold(mixed, cluster)
    authors: dict[bytes, bytes] = {}
    for entry in judged:
        authors[entry.node] = max(authors.get(entry.node, b""), entry.stamp())
    if first.rules(film, authors) == then.rules(film, authors):
        for entry in judged:
            assert first.is_valid(film, entry) == then.is_valid(film, entry)


def as_logs_are(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries in this order as far as no log lacks what is before an entry."""
    ordered: dict[bytes, Entry] = {}
    by_hash = {entry.hash: entry for entry in entries}
    for entry in entries:
        chain = [entry]
        while chain[-1].prev in by_hash and chain[-1].prev not in ordered:
            chain.append(by_hash[chain[-1].prev])
        ordered.update({one.hash: one for one in reversed(chain)})
    return list(ordered.values())


def test_awaited_tells_when_to_fold_again() -> None:
    """The removal is here, the last entry that counts is not yet."""
    lab = Films()
    first, last = lab.touch(lab.cora), lab.touch(lab.cora)
    lab.anna.hear(lab.cora)
    lab.remove(lab.anna, lab.cora)
    entries = [entry for entry in lab.all() if entry is not last]
    state = fold(entries, lab.cluster)
    assert state.who.awaited == {last.hash}
    assert not state.who.counts(first)
    again = state.extended([last])
    assert not again.who.awaited
    assert again.who.counts(first)
    judged = (lab.film, {lab.cora.node: first.stamp()})
    assert state.rules(*judged) != again.rules(*judged)
