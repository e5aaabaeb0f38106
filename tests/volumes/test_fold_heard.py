"""A right that is taken away binds a node from where its own log says that it has heard of it.

What a node acknowledged, rightly as far as it could know, counts for good, whatever arrives later.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbshare.errors import FormatInvalid
from tbshare.volumes.catalogue import MODELS_ID, WRITERS
from tbshare.volumes.entry import HEARD_MAX, At, Entry, Heard, MemberAdd, Mode, Role, RoleSet
from tbshare.volumes.fold import State, fold
from tbshare.volumes.membership import before_among, concerns_cluster
from tests.volumes.test_fold import Writer, add, names, push, refs
from tests.volumes.test_fold_volumes import Films, as_logs_are, replace_volume

EXAMPLES = int(os.environ.get("HEARD_EXAMPLES", "150"))


def heard(*entries: Entry) -> Heard:
    return Heard(entries=tuple(entry.hash for entry in entries))


def late(writer: Writer) -> int:
    """Return a Lamport time far behind all that is taken away meanwhile."""
    return 100 + len(writer.seen)


# ---- one thing after the other ----------------------------------------------------------------------------


def test_what_is_saved_on_the_other_side_of_a_cut_counts_though_the_role_was_taken_before_it() -> None:
    lab = Films()
    lab.give(lab.anna, lab.cora, "read")
    away = [lab.cora.write(*lab.touch(lab.cora).ops, lamport=late(lab.cora) + more) for more in (0, 1)]
    assert [lab.may(lab.cora, entry) for entry in away] == [True, True]
    lab.tell(lab.cora, lab.anna)
    assert not lab.may(lab.cora, lab.touch(lab.cora))
    assert [lab.may(lab.cora, entry) for entry in away] == [True, True]


def test_two_owners_by_two_changes_at_once_and_nobody_s_saves_are_lost() -> None:
    lab = Films("owner")
    lab.set(lab.anna, owner=lab.cora.node.hex())
    lab.tell(lab.cora, lab.anna)
    lab.tell(lab.bert, lab.cora)
    lab.set(lab.bert, owner=lab.bert.node.hex())
    both = [lab.touch(lab.bert), lab.cora.write(*lab.touch(lab.cora).ops, lamport=late(lab.cora))]
    lab.tell(lab.cora, lab.bert)
    lab.tell(lab.anna, lab.bert, lab.cora)
    assert [lab.may(lab.bert, both[0]), lab.may(lab.cora, both[1])] == [True, True]
    assert not lab.may(lab.cora, lab.touch(lab.cora))
    assert not lab.may(lab.anna, lab.touch(lab.anna))
    assert lab.may(lab.bert, lab.touch(lab.bert))


def test_who_never_had_the_right_needs_to_hear_of_nothing() -> None:
    for mode in ("media", "owner"):
        lab = Films(mode)
        assert not lab.may(lab.dora, lab.touch(lab.dora)), "it reads only"
        lab.give(lab.anna, lab.dora, "none")
        assert not lab.may(lab.dora, lab.touch(lab.dora))
        assert lab.state().unheard(lab.dora.node, None) == []
        assert not lab.may(lab.emil, lab.touch(lab.emil)), "a stranger"
    assert not lab.may(lab.cora, lab.touch(lab.cora)), "it never was the owner"
    assert lab.state().unheard(lab.cora.node, None) == []


def test_a_role_given_again_holds_from_its_place_on() -> None:
    lab = Films()
    taken = lab.give(lab.anna, lab.cora, "none")
    lab.tell(lab.cora, lab.anna)
    void = lab.touch(lab.cora)
    lab.tell(lab.anna, lab.cora)
    lab.give(lab.anna, lab.cora, "write")
    lab.tell(lab.cora, lab.anna)
    again = lab.touch(lab.cora)
    assert [lab.may(lab.cora, entry) for entry in (void, again)] == [False, True]
    assert lab.state().unheard(lab.cora.node, None) == []
    assert taken.hash not in lab.state().unheard(lab.cora.node, None)


def test_a_new_log_of_the_same_node_has_to_say_it_again() -> None:
    """A store that was restored does not know what it said; nor does the log of the new incarnation."""
    lab = Films()
    taken = lab.give(lab.anna, lab.cora, "read")
    lab.tell(lab.cora, lab.anna)
    restored = replace(lab.cora, incarnation=b"r" * 32, head=None, seen={})
    saved = restored.write(*lab.touch(lab.cora).ops, lamport=late(lab.cora))
    entries = [*lab.all(), saved]
    assert fold(entries, lab.cluster).is_valid(lab.film, saved), "it was acknowledged by who knew of nothing"
    assert fold(entries, lab.cluster).unheard(lab.cora.node, at(restored)) == [taken.hash]
    restored.write(heard(taken))
    void = restored.write(*lab.touch(lab.cora).ops)
    state = fold([*entries, *restored.seen.values()], lab.cluster)
    assert [state.is_valid(lab.film, entry) for entry in (saved, void)] == [True, False]
    assert state.unheard(lab.cora.node, at(restored)) == []


def at(writer: Writer) -> At | None:
    head = writer.head
    return At(head.node, head.incarnation, head.seq, head.hash) if head else None


def test_each_branch_of_a_cloned_log_by_what_it_says_itself() -> None:
    lab = Films()
    taken = lab.give(lab.anna, lab.cora, "read")
    clone = replace(lab.cora, seen=dict(lab.cora.seen))
    lab.cora.write(heard(taken))
    bound = lab.touch(lab.cora)
    free = lab.touch(clone)
    entries = [*lab.all(), *clone.seen.values()]
    assert [fold(entries, lab.cluster).is_valid(lab.film, entry) for entry in (bound, free)] == [False, True]


def test_what_is_heard_of_waits_until_it_is_here() -> None:
    lab = Films()
    taken = lab.give(lab.anna, lab.cora, "read")
    lab.tell(lab.cora, lab.anna)
    saved = lab.touch(lab.cora)
    before = fold([entry for entry in lab.all() if entry is not taken], lab.cluster)
    assert before.is_valid(lab.film, saved), "nothing is known that takes its role away"
    authors = {lab.cora.node: saved.stamp()}
    after = before.extended([taken])
    assert not after.is_valid(lab.film, saved)
    assert before.rules(lab.film, authors) != after.rules(lab.film, authors), "so that tables are made anew"


def test_taking_a_role_away_makes_no_tables_anew() -> None:
    lab = Films()
    saved = lab.cora.write(*lab.touch(lab.cora).ops, lamport=late(lab.cora))
    authors = {lab.cora.node: saved.stamp()}
    start = lab.state().rules(lab.film, authors)
    lab.give(lab.anna, lab.cora, "read")
    assert lab.state().rules(lab.film, authors) == start
    lab.tell(lab.cora, lab.anna)
    assert lab.state().rules(lab.film, authors) == start


def test_a_role_that_an_admin_of_the_volume_gave_stays_though_its_own_was_taken_meanwhile() -> None:
    lab = Films()
    lab.give(lab.anna, lab.cora, "admin")
    lab.tell(lab.cora, lab.anna)
    lab.give(lab.anna, lab.cora, "write")
    lab.cora.write(RoleSet(volume=lab.film, node=lab.dora.node, role="write"), lamport=late(lab.cora))
    lab.tell(lab.dora, lab.cora)
    saved = lab.touch(lab.dora)
    assert lab.may(lab.dora, saved)
    lab.tell(lab.cora, lab.anna)
    lab.give(lab.cora, lab.dora, "read")
    assert lab.state().role(lab.dora.node, lab.film) == "write", "it had heard that it is no admin any more"


def test_what_one_published_before_it_heard_counts() -> None:
    lab = Films("models")
    lab.give(lab.anna, lab.cora, "read")
    lab.cora.write(replace_volume(push("a", 1, b"x"), "film"), lamport=late(lab.cora))
    lab.tell(lab.cora, lab.anna)
    lab.cora.write(replace_volume(push("a", 2, b"y"), "film"))
    assert refs(lab.state()) == {"film:a@1": b"x"}


def test_who_takes_its_own_role_away_has_heard_of_it() -> None:
    lab = Films("owner")
    lab.set(lab.anna, owner=lab.bert.node.hex())
    assert lab.state().unheard(lab.anna.node, at(lab.anna)) == []
    assert not lab.may(lab.anna, lab.touch(lab.anna))


def test_of_two_admins_that_add_one_node_the_higher_role_holds() -> None:
    """Else what it saved by the role that one of them gave would be void when the other's word arrives."""
    orders: list[tuple[Role, Role]] = [("read", "write"), ("write", "read")]
    for roles in orders:
        lab = Films()
        clone = replace(lab.bert, seen=dict(lab.bert.seen))
        lab.anna.write(add(lab.emil, "emil", cluster=lab.cluster, role=roles[0]))
        clone.write(add(lab.emil, "other", cluster=lab.cluster, role=roles[1]), lamport=40)
        lab.emil.hear(clone)
        saved = lab.touch(lab.emil)
        state = fold([*lab.all(), *clone.seen.values()], lab.cluster)
        assert state.is_valid(lab.film, saved)
        assert names(state)[-1] == "emil"


# ---- removed nodes ----------------------------------------------------------------------------------------


def test_what_any_member_had_of_a_removed_node_s_log_counts_for_files() -> None:
    lab = Films()
    theirs = lab.touch(lab.bert)
    volume = lab.make(lab.bert, "sound")
    lab.bert.write(MemberAdd(node=lab.emil.node, certificate=lab.emil.certificate, name="emil", role="admin",
                             cluster=lab.cluster))  # fmt: skip
    lab.cora.hear(lab.bert)
    lab.remove(lab.anna, lab.bert)
    assert not lab.may(lab.bert, theirs)
    lab.tell(lab.cora, lab.anna)
    after = lab.touch(lab.bert)
    lab.meet()
    state = lab.state()
    assert state.is_valid(lab.film, theirs), "cora has it, and may have built upon it"
    assert state.volume_by_id(volume) is not None
    assert not state.is_valid(lab.film, after), "what it went on to write nobody has named"
    assert names(state) == ["anna", "cora", "dora"], "who is a member only admins say"


def test_a_stranger_s_word_for_a_removed_node_counts_for_nothing() -> None:
    lab = Films()
    theirs = lab.touch(lab.bert)
    lab.remove(lab.anna, lab.bert)
    until = tuple(At(lab.bert.node, one.incarnation, one.seq, one.hash) for one in lab.bert.until(lab.bert.node))
    for who in (lab.emil, lab.bert):
        who.write(Heard(entries=(lab.cluster,), until=until))
    assert not lab.may(lab.bert, theirs)


def test_a_removed_node_s_word_for_another_counts_as_far_as_it_counts_itself() -> None:
    lab = Films()
    theirs = lab.touch(lab.bert)
    lab.cora.hear(lab.bert)
    lab.remove(lab.anna, lab.bert)
    lab.tell(lab.cora, lab.anna)
    lab.anna.hear(
        *[replace(lab.cora, seen={e.hash: e for e in lab.cora.seen.values() if e.node == lab.cora.node})]
    )
    lab.remove(lab.anna, lab.cora)
    assert lab.may(lab.bert, theirs)


def test_an_absurd_number_of_names_is_refused() -> None:
    lab = Films()
    hashes = [bytes([number % 256, number // 256]) * 16 for number in range(HEARD_MAX + 1)]
    for entries in ((), tuple(hashes)):
        with pytest.raises(FormatInvalid):
            lab.cora.write(Heard(entries=entries))
    lab.cora.write(Heard(entries=tuple(hashes[1:])))


# ---- whatever happens -------------------------------------------------------------------------------------


@dataclass
class Honest:
    """Nodes that do what they may, as far as they know, in whatever order they hear of each other."""

    lab: Films
    acknowledged: list[tuple[Writer, int, Entry]] = field(default_factory=list[tuple[Writer, int, Entry]])
    seen: dict[tuple[bytes, bytes], set[tuple[int, bytes]]] = field(  # by log: what counted there
        default_factory=dict[tuple[bytes, bytes], set[tuple[int, bytes]]]
    )

    def state(self, writer: Writer) -> State:
        return fold(writer.seen.values(), self.lab.cluster)

    def save(self, writer: Writer, pick: Callable[[list[int]], int]) -> None:
        state = self.state(writer)
        volumes = list(state.volumes_by_id)[1:]  # without models
        volume = pick(volumes) if volumes else MODELS_ID
        if not state.may_write(volume, writer.node):
            return
        self.lab.film, film = volume, self.lab.film
        entry = self.lab.touch(writer)
        self.lab.film = film
        state = self.state(writer)
        assert state.is_valid(volume, entry), "what is acknowledged counts"
        self.acknowledged.append((writer, volume, entry))
        mine = self.seen.setdefault((writer.node, writer.incarnation), set())
        for known in writer.seen.values():
            mine |= {(id_, known.hash) for id_ in state.volumes_by_id if state.is_valid(id_, known)}

    def give(self, writer: Writer, other: Writer, role: str) -> None:
        if self.state(writer).administers(writer.node, self.lab.film):
            self.lab.give(writer, other, role)

    def set_owner(self, writer: Writer, other: Writer) -> None:
        if self.state(writer).administers(writer.node, self.lab.film):
            self.lab.set(writer, owner=other.node.hex())

    def make(self, writer: Writer) -> None:
        if self.state(writer).role(writer.node, MODELS_ID) in WRITERS:
            self.lab.make(writer, "more")

    def remove(self, writer: Writer, other: Writer) -> None:
        state = self.state(writer)
        member = state.members.get(writer.node)
        if member and member.role == "admin" and other.node in state.members:
            self.lab.remove(writer, other)


MODES: list[Mode] = ["media", "owner"]
ROLES = ["admin", "write", "read", "none", ""]


@st.composite
def honest(draw: st.DrawFn) -> tuple[Honest, list[Entry]]:
    """Return what honest nodes did on the sides of many cuts; some are cloned, some put an old disk back."""
    lab = Films(draw(st.sampled_from(MODES)), draw(st.tuples(*[st.sampled_from(["admin", "write", "read"])] * 3)))
    them = Honest(lab)
    writers = lab.writers[:4]
    for _ in range(draw(st.integers(1, 18))):
        writer, other = draw(st.sampled_from(writers)), draw(st.sampled_from(writers))
        match draw(st.sampled_from("ssssssrrrotttttvcbxxx")):
            case "s":
                them.save(writer, lambda ids: draw(st.sampled_from(ids)))
            case "r":
                them.give(writer, other, draw(st.sampled_from(ROLES)))
            case "o":
                them.set_owner(writer, other)
            case "t":
                lab.tell(writer, other)
            case "v":
                them.make(writer)
            case "c":
                writers.append(replace(writer, seen=dict(writer.seen)))
            case "b":
                writers.append(restored(writer, draw(st.integers(1, len(writer.seen))), len(writers)))
            case _:
                them.remove(writer, other)
    for writer in [*writers, *writers]:  # in the end all are on one side; who hears of a removal says what it had
        lab.tell(writer, *writers)
    return them, list({entry.hash: entry for writer in writers for entry in writer.seen.values()}.values())


def restored(writer: Writer, entries: int, number: int) -> Writer:
    """Return a node on an old disk: what it wrote since is with others, or gone."""
    kept = as_logs_are(list(writer.seen.values()))[:entries]
    seen = {entry.hash: entry for entry in kept}
    return replace(writer, incarnation=bytes([number]) * 32, head=None, seen=seen)


@given(honest(), st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_what_an_honest_node_acknowledged_and_what_it_built_upon_counts_for_good(
    history: tuple[Honest, list[Entry]], data: st.DataObject
) -> None:
    them, entries = history
    mixed = data.draw(st.permutations([*entries, *data.draw(st.lists(st.sampled_from(entries), max_size=3))]))
    state = fold(mixed, them.lab.cluster)
    assert state == fold(entries, them.lab.cluster)
    by_hash = {entry.hash: entry for entry in entries}
    for writer, volume, entry in them.acknowledged:
        if writer.node in state.members:
            assert state.is_valid(volume, entry)
    for (node, _), counted in them.seen.items():
        for volume, known in counted if node in state.members else ():
            assert state.is_valid(volume, by_hash[known])


@given(honest(), st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_in_steps_it_is_the_same(history: tuple[Honest, list[Entry]], data: st.DataObject) -> None:
    them, entries = history
    mixed = as_logs_are(data.draw(st.permutations(entries)))
    cut = data.draw(st.integers(0, len(mixed)))
    concerning = [entry for entry in mixed[cut:] if concerns_cluster(entry)]
    steps = fold(mixed[:cut], them.lab.cluster, before_among(entries)).extended(concerning)
    whole = fold(entries, them.lab.cluster)
    assert steps.rights == whole.rights
    for entry in entries:
        for volume in whole.volumes_by_id:
            assert steps.is_valid(volume, entry) == whole.is_valid(volume, entry)
