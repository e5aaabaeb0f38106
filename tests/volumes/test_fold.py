import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tbshare.errors import RefUnknown, UsageError
from tbshare.peers.identity import certificate_of
from tbshare.volumes.entry import (
    AnyOp,
    Entry,
    Genesis,
    MemberAdd,
    MemberRemove,
    MemberRename,
    RefRemove,
    RefSet,
    Role,
    UnknownOp,
    Until,
    VolumeCreate,
    make_entry,
)
from tbshare.volumes.fold import State, fold

INCARNATION = b"i" * 32
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 6)]
CERTIFICATES = [certificate_of(key) for key in KEYS]


@dataclass
class Writer:
    """One node as it writes: it has seen what it was told, and nothing else."""

    key: Ed25519PrivateKey
    certificate: bytes
    incarnation: bytes = INCARNATION
    head: Entry | None = None
    seen: dict[bytes, Entry] = field(default_factory=dict[bytes, Entry])

    @property
    def node(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)

    def write(self, *ops: AnyOp, lamport: int | None = None) -> Entry:
        seen = max((entry.lamport for entry in self.seen.values()), default=0)
        entry = make_entry(
            self,
            incarnation=self.incarnation,
            previous=self.head,
            lamport=lamport or seen + 1,
            time_ns=0,
            ops=ops,
        )
        self.head = entry
        self.seen[entry.hash] = entry
        return entry

    def hear(self, *others: "Writer") -> None:
        for other in others:
            self.seen.update(other.seen)

    def until(self, node: bytes) -> tuple[Until, ...]:
        """Return the ends of a node's logs, as far as they were seen."""
        theirs = [entry for entry in self.seen.values() if entry.node == node]
        inner = {entry.prev for entry in theirs}
        return tuple(
            Until(entry.incarnation, entry.seq, entry.hash) for entry in theirs if entry.hash not in inner
        )


class Lab:
    """Anna starts a cluster; the others are let in by `add`."""

    def __init__(self) -> None:
        self.writers = [Writer(key, certificate) for key, certificate in zip(KEYS, CERTIFICATES, strict=True)]
        self.anna, self.bert, self.cora, self.dora, self.emil = self.writers
        genesis = self.anna.write(Genesis(name="lab", nonce=b"n" * 32), add(self.anna, "anna", cluster=b""))
        self.cluster = genesis.hash

    def add(self, by: Writer, who: Writer, name: str, role: Role = "admin") -> Entry:
        entry = by.write(add(who, name, role=role, cluster=self.cluster))
        who.hear(by)
        return entry

    def remove(self, by: Writer, who: Writer, *, lamport: int | None = None) -> Entry:
        op = MemberRemove(node=who.node, cluster=self.cluster, until=by.until(who.node))
        return by.write(op, lamport=lamport)

    def all(self) -> list[Entry]:
        return list({hash_: entry for writer in self.writers for hash_, entry in writer.seen.items()}.values())

    def state(self) -> State:
        return fold(self.all(), self.cluster)


def add(who: Writer, name: str, *, cluster: bytes, role: Role = "admin") -> MemberAdd:
    return MemberAdd(node=who.node, certificate=who.certificate, name=name, role=role, cluster=cluster)


def push(name: str, rev: int, tree: bytes, *, to: Sequence[bytes] = (), label: str = "") -> RefSet:
    return RefSet(
        volume="models", name=name, rev=rev, tree=tree * 32, size_bytes=1, files=1, to=tuple(to), label=label
    )


def names(state: State) -> list[str]:
    return [member.name for member in state.members.values()]


def refs(state: State) -> dict[str, bytes]:
    return {str(v): v.tree[:1] for versions in state.refs.values() for v in versions}


# ---- any order, any duplicates ----------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Entry], bytes]:
    """Return what a few nodes wrote, some of it without knowing of each other, forks and junk included."""
    lab = Lab()
    for who, name in ((lab.bert, "bert"), (lab.cora, "BERT"), (lab.dora, "dora")):
        lab.add(lab.anna, who, name, role=draw(st.sampled_from(["admin", "admin", "write", "read"])))
    for _ in range(draw(st.integers(0, 12))):
        writer = draw(st.sampled_from(lab.writers))
        other = draw(st.sampled_from(lab.writers))
        name = draw(st.sampled_from(["a", "A", "org/b"]))
        match draw(st.integers(0, 9)):
            case 0 | 1 | 2:
                writer.write(push(name, draw(st.integers(1, 3)), draw(st.sampled_from([b"x", b"y"]))))
            case 3:
                writer.hear(other)
            case 4:
                lab.remove(writer, other)
            case 5:
                writer.write(MemberRename(node=other.node, cluster=lab.cluster, name="studio"))
            case 6:
                seen = [e.hash for e in writer.seen.values() if any(isinstance(op, RefSet) for op in e.ops)]
                writer.write(RefRemove(volume="models", name=name, seen=tuple(seen or [b"x" * 32])))
            case 7:
                lab.add(writer, other, "late")
            case 8:
                fork = replace(writer, seen=dict(writer.seen))
                fork.write(push(name, 1, b"f"))
                writer.hear(fork)
            case _:
                writer.write(UnknownOp(msgspec.msgpack.encode({"kind": "lease"}), "lease", ""))
    return lab.all(), lab.cluster


@given(histories(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_order_and_any_duplicates_give_the_same_state(
    history: tuple[list[Entry], bytes], data: st.DataObject
) -> None:
    entries, cluster = history
    whole = fold(entries, cluster)
    mixed = data.draw(st.permutations([*entries, *data.draw(st.lists(st.sampled_from(entries), max_size=4))]))
    assert fold(mixed, cluster) == whole


@given(histories(), st.data())
@settings(max_examples=150, deadline=None)
def test_extended_is_the_full_fold(history: tuple[list[Entry], bytes], data: st.DataObject) -> None:
    entries, cluster = history
    mixed = data.draw(st.permutations(entries))
    cut = data.draw(st.integers(0, len(mixed)))
    assert fold(mixed[:cut], cluster).extended(mixed[cut:]) == fold(entries, cluster)


@given(histories())
@settings(max_examples=150, deadline=None)
def test_what_must_hold_of_every_state(history: tuple[list[Entry], bytes]) -> None:
    entries, cluster = history
    state = fold(entries, cluster)
    lowered = [name.lower() for name in names(state)]
    assert len(set(lowered)) == len(lowered), "names are unique"
    assert not set(state.members) & set(state.removed_members)
    for versions in state.refs.values():
        assert len({version.rev.lower() for version in versions}) == len(versions), "a rev means one tree"
        assert [version.number for version in versions] == sorted(version.number for version in versions)
        for version in versions:
            assert state.resolve(str(version)) == version
    pushed = {entry.hash for entry in entries if any(isinstance(op, RefSet) for op in entry.ops)}
    shown = {e for versions in state.refs.values() for version in versions for e in version.entries}
    gone = {e for removed in state.refs_removed for e in removed.version.entries}
    assert shown | gone <= pushed


# ---- members ----------------------------------------------------------------------------------------------


def test_a_stranger_s_words_count_for_nothing() -> None:
    lab = Lab()
    lab.bert.hear(lab.anna)
    lab.bert.write(push("a", 1, b"x"), add(lab.bert, "bert", cluster=lab.cluster))
    state = lab.state()
    assert names(state) == ["anna"]
    assert not state.refs


def test_only_admins_add_and_only_for_this_cluster() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert", role="publish")
    lab.add(lab.bert, lab.cora, "cora")
    lab.anna.write(add(lab.dora, "dora", cluster=b"o" * 32))
    lab.anna.write(add(lab.dora, "dora", cluster=b""))  # empty means "this entry's genesis", and here is none
    assert names(lab.state()) == ["anna", "bert"]


def test_what_a_node_pushed_before_it_joined_counts_afterwards() -> None:
    lab = Lab()
    alone = lab.bert.write(Genesis(name="own", nonce=b"m" * 32), add(lab.bert, "bert", cluster=b""))
    lab.bert.write(push("old", 1, b"o"), add(lab.emil, "emil", cluster=alone.hash))
    assert not lab.state().refs
    lab.add(lab.anna, lab.bert, "bert")
    state = lab.state()
    assert refs(state) == {"old@1": b"o"}
    assert names(state) == ["anna", "bert"], "but not those it had let into its own cluster"


def test_names_that_clash() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "Studio")
    lab.add(lab.anna, lab.cora, "studio")
    lab.anna.write(MemberRename(node=lab.anna.node, cluster=lab.cluster, name="STUDIO"))
    assert names(lab.state()) == ["STUDIO", "Studio-2", "studio-3"]
    lab.anna.write(MemberRename(node=lab.anna.node, cluster=lab.cluster, name="mac"))
    lab.remove(lab.anna, lab.bert)
    assert names(lab.state()) == ["mac", "studio"]


def test_a_removed_node_s_entries_count_up_to_what_was_seen() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert")
    lab.bert.write(push("before", 1, b"b"))
    lab.anna.hear(lab.bert)
    lab.remove(lab.anna, lab.bert)
    lab.bert.write(push("after", 1, b"a"))
    lab.bert.write(add(lab.cora, "cora", cluster=lab.cluster))
    state = lab.state()
    assert refs(state) == {"before@1": b"b"}
    assert names(state) == ["anna"]
    assert [member.name for member in state.removed_members.values()] == ["bert"]
    assert lab.bert.node not in state.certificates()


def test_a_removed_node_cannot_date_back_or_start_a_new_log() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert")
    lab.bert.write(push("a", 1, b"b"))
    lab.anna.hear(lab.bert)
    thief = replace(lab.bert, seen=dict(lab.bert.seen))
    for _ in range(5):
        lab.anna.write(push("later", 1, b"l"))
    lab.remove(lab.anna, lab.bert)
    first = lab.bert.head
    assert first is not None
    thief.write(push("forged", 1, b"f"), lamport=first.lamport + 1)
    thief.write(MemberRemove(node=lab.anna.node, cluster=lab.cluster), lamport=first.lamport + 2)
    fresh = replace(lab.bert, incarnation=b"j" * 32, head=None, seen={})
    fresh.write(push("forged", 2, b"f"), lamport=1)
    state = fold([*lab.all(), *thief.seen.values(), *fresh.seen.values()], lab.cluster)
    assert names(state) == ["anna"]
    assert refs(state) == {"a@1": b"b", "later@1": b"l"}


def test_removal_is_for_good() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert")
    lab.remove(lab.anna, lab.bert)
    lab.add(lab.anna, lab.bert, "bert-again")
    assert names(lab.state()) == ["anna"]


def test_two_admins_remove_each_other_and_the_elder_stays() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert")
    lab.add(lab.anna, lab.cora, "cora")
    lab.bert.hear(lab.cora)
    lab.cora.hear(lab.bert)
    lab.remove(lab.cora, lab.bert, lamport=10)
    lab.remove(lab.bert, lab.cora, lamport=20)  # later in the order, but by the elder
    assert names(lab.state()) == ["anna", "bert"]


def test_nobody_saws_off_the_branch_it_sits_on() -> None:
    """Cora removes Bert, who let Cora in, as if Bert had never written that."""
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert")
    lab.add(lab.bert, lab.cora, "cora")
    lab.cora.write(MemberRemove(node=lab.bert.node, cluster=lab.cluster))
    assert names(lab.state()) == ["anna", "bert", "cora"]


def test_two_removals_add_up() -> None:
    lab = Lab()
    for who, name in ((lab.bert, "bert"), (lab.cora, "cora")):
        lab.add(lab.anna, who, name)
    lab.cora.write(push("a", 1, b"x"))
    lab.bert.hear(lab.cora)
    lab.remove(lab.anna, lab.cora)  # has not seen the push
    lab.remove(lab.bert, lab.cora)  # has
    assert refs(lab.state()) == {"a@1": b"x"}


def test_two_removals_add_up_the_other_way() -> None:
    lab = Lab()
    for who, name in ((lab.bert, "bert"), (lab.cora, "cora")):
        lab.add(lab.anna, who, name)
    lab.bert.hear(lab.anna)
    lab.cora.write(push("a", 1, b"x"))
    lab.anna.hear(lab.cora)
    lab.remove(lab.anna, lab.cora)
    lab.remove(lab.bert, lab.cora)
    assert refs(lab.state()) == {"a@1": b"x"}
    assert names(lab.state()) == ["anna", "bert"]


def test_a_node_may_leave_and_keeps_what_it_published() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert", role="write")
    lab.bert.write(push("a", 1, b"x"))
    lab.remove(lab.bert, lab.bert)
    assert names(lab.state()) == ["anna"]
    assert refs(lab.state()) == {"a@1": b"x"}


# ---- refs -------------------------------------------------------------------------------------------------


def test_two_pushes_of_one_number_are_both_kept() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "studio-2")
    lab.add(lab.anna, lab.cora, "cora")
    lab.bert.hear(lab.anna)
    lab.anna.write(push("llama", 3, b"a"))
    lab.anna.write(push("llama", 4, b"c"))
    lab.bert.write(push("llama", 3, b"b"), lamport=90)
    state = lab.state()
    assert refs(state) == {"llama@3": b"a", "llama@3.studio-2": b"b", "llama@4": b"c"}
    newest = state.newest("models", "LLAMA")
    assert newest is not None
    assert newest.tree[:1] == b"c"
    assert state.next_rev("models", "llama") == 5
    lab.bert.write(push("llama", 3, b"d"))
    assert set(refs(lab.state())) == {"llama@3", "llama@3.studio-2", "llama@3.studio-2-2", "llama@4"}


def test_the_same_push_twice_is_one_version_until_both_are_removed() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert")
    one = lab.anna.write(push("a", 1, b"x", to=[lab.bert.node]))
    lab.bert.write(push("a", 1, b"x", to=[lab.cora.node]))
    (version,) = lab.state().versions("models", "a")
    assert set(version.to) == {lab.bert.node, lab.cora.node}
    lab.anna.write(RefRemove(volume="models", name="a", seen=(one.hash,)))
    assert refs(lab.state()) == {"a@1": b"x"}, "the other push had not been seen"
    lab.anna.hear(lab.bert)
    (version,) = lab.state().versions("models", "a")
    lab.anna.write(RefRemove(volume="models", name="a", seen=version.entries))
    state = lab.state()
    assert not refs(state)
    assert [str(removed.version) for removed in state.refs_removed] == ["a@1"]
    assert state.next_rev("models", "a") == 2, "a number never means two things"


def test_a_removal_does_not_touch_a_push_it_had_not_seen() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert")
    one = lab.anna.write(push("a", 1, b"x"))
    lab.bert.write(push("a", 2, b"y"), lamport=3)
    lab.anna.write(RefRemove(volume="models", name="a", seen=(one.hash,)), lamport=50)
    assert refs(lab.state()) == {"a@2": b"y"}


def test_one_rev_is_removed() -> None:
    lab = Lab()
    entry = lab.anna.write(push("a", 1, b"x"), push("a", 2, b"y"))
    lab.anna.write(RefRemove(volume="models", name="A", seen=(entry.hash,), rev="1"))
    assert refs(lab.state()) == {"a@2": b"y"}


def test_a_reader_publishes_nothing() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert", role="read")
    entry = lab.anna.write(push("a", 1, b"x"))
    lab.bert.hear(lab.anna)
    lab.bert.write(push("b", 1, b"y"), RefRemove(volume="models", name="a", seen=(entry.hash,)))
    assert refs(lab.state()) == {"a@1": b"x"}


def test_an_unknown_op_makes_its_volume_read_only() -> None:
    lab = Lab()
    lab.anna.write(VolumeCreate(name="Media", mode="media", options={"copies": 2}))
    lab.anna.write(VolumeCreate(name="media", mode="owner"))
    assert lab.state().volumes["media"].mode == "media", "the first one holds"
    assert lab.state().volumes["models"].mode == "models"
    lab.anna.write(UnknownOp(msgspec.msgpack.encode({"kind": "x", "volume": "MEDIA"}), "x", "MEDIA"))
    state = lab.state()
    assert "upgrade" in state.why_read_only("media")
    assert state.why_read_only("models") == ""
    lab.anna.write(UnknownOp(msgspec.msgpack.encode({"kind": "y"}), "y", ""))
    assert lab.state().why_read_only("models")
    lab.bert.write(UnknownOp(msgspec.msgpack.encode({"kind": "z", "volume": "other"}), "z", "other"))
    assert "other" not in lab.state().read_only, "a stranger locks nothing"


def test_resolve() -> None:
    lab = Lab()
    lab.anna.write(push("org/Llama", 1, b"a", label="0123456789abcdef"))
    lab.anna.write(push("org/Llama", 2, b"b", label="main"))
    state = lab.state()
    for text, tree in (
        ("org/llama", b"b"), ("ORG/LLAMA@1", b"a"), ("org/Llama@0123456", b"a"), ("models:org/Llama@Main", b"b"),
    ):  # fmt: skip
        assert state.resolve(text).tree[:1] == tree
    for text, hint in (
        ("org/lama", "org/Llama"), ("Llama", "org/Llama"), ("org/Llama@3", "it has 1, 2"),
        ("org/Llama@012345", "no rev"), ("media:x", "no volume media"),
    ):  # fmt: skip
        with pytest.raises(RefUnknown, match=hint) as caught:
            state.resolve(text)
        assert caught.value.cure
    with pytest.raises(UsageError):
        state.resolve("a/b/c")


def test_member_named() -> None:
    lab = Lab()
    lab.add(lab.anna, lab.bert, "bert")
    state = lab.state()
    assert state.member_named("BERT").node == lab.bert.node
    assert state.member_named(lab.bert.node.hex()[:8]).node == lab.bert.node
    for text in ("nobody", "", lab.bert.node.hex()[:2]):
        with pytest.raises(UsageError, match="anna, bert"):
            state.member_named(text)


def test_ten_thousand_ops_fold_quickly() -> None:
    """The design re-folds everything when an entry comes; that is only right while it is quick."""
    lab = Lab()
    for number in range(100):
        lab.anna.write(*[push(f"m{number}", rev, bytes([rev])) for rev in range(1, 101)])
    entries = lab.all()
    took = min(_seconds(entries, lab.cluster) for _ in range(3))
    assert took < 0.3, f"{took:.3f} s"


def _seconds(entries: list[Entry], cluster: bytes) -> float:
    start = time.process_time()
    fold(entries, cluster)
    return time.process_time() - start


def test_without_the_genesis_nothing_holds() -> None:
    lab = Lab()
    lab.anna.write(push("a", 1, b"x"))
    state = fold(lab.all(), b"z" * 32)
    assert not state.members
    assert not state.refs
    assert list(state.volumes) == ["models"]
