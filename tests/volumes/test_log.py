import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbshare.errors import (
    FormatInvalid,
    InputRefused,
    NotPermitted,
    RefUnknown,
    UsageError,
)
from tbshare.peers.identity import Identity
from tbshare.volumes.entry import (
    NO_HASH,
    Entry,
    MemberRename,
    RefSet,
    Save,
    UnknownOp,
    make_entry,
)
from tbshare.volumes.judge import LAMPORT_JUMP_MAX
from tbshare.volumes.log import Log
from tbshare.wire.message import Head


def push(name: str, rev: int = 1, tree: bytes = b"x") -> RefSet:
    return RefSet(volume="models", name=name, rev=rev, tree=tree * 32, size_bytes=1, files=1)


def save(number: int) -> Save:
    return Save(volume=5, file=number, version=number, content=bytes(32), size=number)


class Lab:
    """Logs on disk, by name; closed at the end."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.logs: dict[str, Log] = {}
        self.identities: dict[str, Identity] = {}

    def open(self, name: str, *, copy_of: str = "") -> Log:
        identity = Identity.load_or_create(self.home / f"{copy_of or name}.key")
        self.identities[name] = identity
        self.logs[name] = Log.open(self.home / f"{name}.db", identity, clock_ns=lambda: 7)
        return self.logs[name]

    def again(self, name: str) -> Log:
        self.logs[name].close()
        return self.open(name)

    def cluster(self, *names: str) -> list[Log]:
        """Return the logs of a cluster of these nodes, all of them told of each other."""
        first = self.open(names[0])
        first.create_cluster(names[0])
        for name in names[1:]:
            log = self.open(name)
            first.add_member(self.identities[name].certificate, name)
            log.join(first.cluster, certificate=self.identities[names[0]].certificate, name=names[0])
        logs = [self.logs[name] for name in names]
        settle(logs)
        return logs

    def close(self) -> None:
        for log in self.logs.values():
            log.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def tell(source: Log, target: Log, limit_bytes: int = 1 << 20, *, samples: bool = True) -> int:
    """Let one log send another what it lacks, in parts; return how many entries were accepted."""
    known = source.known(target.summary() if samples else target.vector())
    accepted = 0
    while part := source.part_for(known, limit_bytes):
        accepted += len(target.receive(part).accepted)
    return accepted


def settle(logs: Sequence[Log], limit_bytes: int = 1 << 20, *, samples: bool = True) -> None:
    """Let all logs talk until none has anything new to say."""
    for _ in range(1000):
        told = [tell(a, b, limit_bytes, samples=samples) for a in logs for b in logs if a is not b]
        if not any(told):
            return
    raise AssertionError("the logs never agree")


# ---- the life of a log ------------------------------------------------------------------------------------


def test_a_cluster_of_one_survives_a_restart(lab: Lab) -> None:
    log = lab.open("anna")
    assert not log.cluster
    with pytest.raises(UsageError):
        log.append([push("a")])
    log.create_cluster("anna", "our-lab")
    log.append([push("a"), push("b")])
    before, vector = log.state(), log.vector()
    log = lab.again("anna")
    assert log.state() == before
    assert log.vector() == vector
    assert log.state().cluster_name == "our-lab"
    assert [member.name for member in log.state().members.values()] == ["anna"]
    entry = log.append([push("c")])
    assert (entry.seq, entry.lamport) == (3, 3)
    with pytest.raises(UsageError):
        log.create_cluster("anna")


def test_one_code_joins_a_cluster_and_old_pushes_come_along(lab: Lab) -> None:
    anna, bert = lab.open("anna"), lab.open("bert")
    anna.create_cluster("anna")
    bert.create_cluster("bert")
    for number in range(5):
        bert.append([push("old", number + 1)])
    anna.add_member(lab.identities["bert"].certificate, "bert")
    bert.join(anna.cluster, certificate=lab.identities["anna"].certificate, name="anna")
    assert bert.trusted() == {lab.identities["anna"].node: lab.identities["anna"].certificate}
    bert = lab.again("bert")
    assert bert.trusted() == {lab.identities["anna"].node: lab.identities["anna"].certificate}
    settle([anna, bert])
    assert anna.state() == bert.state()
    assert len(anna.state().versions("models", "old")) == 5
    assert anna.trusted() == {lab.identities["bert"].node: lab.identities["bert"].certificate}

    cora = lab.open("cora")  # let in by bert; anna learns it from the log
    bert.add_member(lab.identities["cora"].certificate, "cora")
    cora.join(bert.cluster, certificate=lab.identities["bert"].certificate, name="bert")
    cora.append([push("mine")])
    tell(bert, cora)
    tell(bert, anna)
    settle([anna, cora])
    assert lab.identities["cora"].node in anna.trusted()
    settle([anna, bert, cora])
    assert anna.state() == bert.state() == cora.state()
    assert anna.state().resolve("mine")


def test_one_cluster_a_node(lab: Lab) -> None:
    anna, _bert = lab.cluster("anna", "bert")
    cora = lab.open("cora")
    cora.create_cluster("cora")
    with pytest.raises(UsageError, match="bert"):
        anna.join(cora.cluster, certificate=lab.identities["cora"].certificate, name="cora")
    with pytest.raises(UsageError):
        cora.join(b"short", certificate=lab.identities["anna"].certificate, name="anna")
    with pytest.raises(FormatInvalid):
        cora.join(anna.cluster, certificate=b"junk", name="anna")


def test_a_removed_member(lab: Lab) -> None:
    anna, bert, cora = lab.cluster("anna", "bert", "cora")
    node = lab.identities["bert"].node
    bert.append([push("seen")])
    settle([anna, bert])
    bert.append([push("unseen")])
    anna.remove_member(node)
    settle([anna, bert, cora])
    assert anna.state() == cora.state() == bert.state()
    assert not anna.state().is_member(node)
    assert node not in anna.trusted()
    assert anna.state().versions("models", "seen")
    assert not anna.state().versions("models", "unseen")
    with pytest.raises(NotPermitted, match="removed"):
        bert.append([push("more")])
    with pytest.raises(NotPermitted, match="for good"):
        anna.add_member(lab.identities["bert"].certificate, "bert")
    with pytest.raises(UsageError):
        anna.remove_member(node)


def test_only_an_admin_changes_members(lab: Lab) -> None:
    anna = lab.open("anna")
    anna.create_cluster("anna")
    bert = lab.open("bert")
    anna.add_member(lab.identities["bert"].certificate, "bert", role="read")
    bert.join(anna.cluster, certificate=lab.identities["anna"].certificate, name="anna")
    settle([anna, bert])
    with pytest.raises(NotPermitted):
        bert.add_member(lab.identities["anna"].certificate, "x")
    with pytest.raises(NotPermitted):
        bert.remove_member(lab.identities["anna"].node)
    with pytest.raises(NotPermitted):
        bert.rename_member(lab.identities["anna"].node, "x")
    bert.rename_member(lab.identities["bert"].node, "studio")
    settle([anna, bert])
    assert anna.state().member_named("studio").node == lab.identities["bert"].node


def test_remove_ref(lab: Lab) -> None:
    (log,) = lab.cluster("anna")
    for rev in (1, 2, 3):
        log.append([push("a", rev, bytes([rev]))])
    log.remove_ref("models", "a", "2")
    assert [version.rev for version in log.state().versions("models", "a")] == ["1", "3"]
    log.remove_ref("models", "a")
    assert not log.state().versions("models", "a")
    with pytest.raises(RefUnknown):
        log.remove_ref("models", "a")
    with pytest.raises(RefUnknown):
        log.remove_ref("models", "a", "1")


# ---- what a peer may not do -------------------------------------------------------------------------------


def chain(
    identity: Identity, *lamports: int, incarnation: bytes = b"i" * 32, prev: Entry | None = None
) -> list[Entry]:
    entries: list[Entry] = []
    for lamport in lamports:
        prev = make_entry(
            identity,
            incarnation=incarnation,
            previous=prev,
            lamport=lamport,
            time_ns=0,
            ops=[push(f"p{lamport}")],
        )
        entries.append(prev)
    return entries


def test_strangers_are_not_stored(lab: Lab) -> None:
    anna, _ = lab.cluster("anna", "bert")
    stranger = Identity.load_or_create(lab.home / "stranger.key")
    entries = chain(stranger, 5, 6)
    result = anna.receive([entry.encoded for entry in entries])
    assert not result.accepted
    assert len(result.rejected) == 2
    assert not [head for head in anna.vector() if head.node == stranger.node]
    anna.add_member(stranger.certificate, "no-stranger-now")
    assert len(anna.receive([entry.encoded for entry in reversed(entries)]).accepted) == 2


def test_forged_gapped_and_junk_entries(lab: Lab) -> None:
    anna, _ = lab.cluster("anna", "bert")
    bert = lab.identities["bert"]
    one, two, three = chain(bert, 10, 11, 12)
    body = msgspec.msgpack.decode(one.encoded)[0]
    forged = msgspec.msgpack.encode([body, bytes(64)])
    result = anna.receive([forged, b"junk", b"", three.encoded])
    assert not result.accepted
    assert len(result.rejected) == 4
    assert not anna.receive([three.encoded]).accepted
    assert [e.hash for e in anna.receive([two.encoded, forged, one.encoded, one.encoded]).accepted] == [
        one.hash,
        two.hash,
    ]
    assert anna.receive([one.encoded, two.encoded]) == anna.receive([])
    assert len(anna.receive([three.encoded]).accepted) == 1


def test_a_chain_that_does_not_hold_together(lab: Lab) -> None:
    anna, _ = lab.cluster("anna", "bert")
    bert = lab.identities["bert"]
    (one,) = chain(bert, 10)
    (back_in_time,) = chain(bert, 10, prev=one)
    (other_log,) = chain(bert, 12, prev=one, incarnation=b"j" * 32)
    result = anna.receive([one.encoded, back_in_time.encoded, other_log.encoded])
    assert [entry.hash for entry in result.accepted] == [one.hash]
    assert len(result.rejected) == 2


def test_lamport_time_cannot_be_used_up(lab: Lab) -> None:
    anna, _ = lab.cluster("anna", "bert")
    bert = lab.identities["bert"]
    highest = anna.state().lamport
    too_far, far = highest + LAMPORT_JUMP_MAX + 1, highest + LAMPORT_JUMP_MAX
    assert not anna.receive([chain(bert, too_far)[0].encoded]).accepted
    assert not anna.receive([chain(bert, (1 << 63) - 1)[0].encoded]).accepted
    assert anna.receive([chain(bert, far)[0].encoded]).accepted
    assert anna.append([push("still")]).lamport == far + 1


def test_ops_that_no_node_would_take_are_not_appended(lab: Lab) -> None:
    (log,) = lab.cluster("anna")
    before = log.vector()
    for ops, error in (
        ([], InputRefused),
        ([push("../x")], FormatInvalid),
        ([push("a", 0)], FormatInvalid),
        ([MemberRename(node=b"n" * 31, cluster=b"c" * 32, name="x")], FormatInvalid),
        ([push("a")] * 9000, InputRefused),
    ):
        with pytest.raises(error):
            log.append(ops)
    assert log.vector() == before


# ---- branches ---------------------------------------------------------------------------------------------


def copied(lab: Lab, name: str, copy: str) -> None:
    """Copy a log as a backup or a cloned disk would."""
    with (
        sqlite3.connect(lab.home / f"{name}.db") as source,
        sqlite3.connect(lab.home / f"{copy}.db") as target,
    ):
        source.backup(target)
    source.close()
    target.close()


def test_a_restored_store_starts_a_new_incarnation(lab: Lab) -> None:
    anna, bert = lab.cluster("anna", "bert")
    copied(lab, "anna", "backup")
    anna.append([push("after-the-backup")])
    settle([anna, bert])
    anna.close()
    restored = lab.open("backup", copy_of="anna")
    assert not restored.attention()
    restored.append([push("before-anyone-was-asked")])
    settle([restored, bert])
    assert restored.state() == bert.state()
    for name in ("after-the-backup", "before-anyone-was-asked"):
        assert bert.state().versions("models", name)
    heads = [head for head in bert.vector() if head.node == lab.identities["anna"].node]
    assert len(heads) == 2
    assert heads[0].seq == heads[1].seq, "one seq, two hashes: both are kept"
    (line,) = restored.attention()
    assert "restored or cloned" in line
    later = restored.append([push("later")])
    assert (later.seq, later.prev) == (1, NO_HASH)
    assert later.incarnation != heads[0].incarnation
    settle([restored, bert])
    assert restored.append([push("last")]).seq == 2
    settle([restored, bert])
    assert restored.state() == bert.state()


def test_a_clone_runs_beside_its_original(lab: Lab) -> None:
    anna, bert = lab.cluster("anna", "bert")
    copied(lab, "anna", "clone")
    clone = lab.open("clone", copy_of="anna")
    for number in range(3):
        anna.append([push("anna", number + 1, bytes([number]))])
        clone.append([push("clone", number + 1, bytes([number]))])
    settle([anna, bert])
    settle([clone, bert])
    settle([anna, bert, clone])
    assert anna.state() == bert.state() == clone.state()
    assert len(bert.state().versions("models", "anna")) == len(bert.state().versions("models", "clone")) == 3
    assert anna.attention()
    assert clone.attention()
    anna.append([push("anna", 9)])
    clone.append([push("clone", 9)])
    settle([anna, bert, clone])
    assert anna.state() == bert.state() == clone.state()


def test_others_say_when_a_log_forked(lab: Lab) -> None:
    anna, bert, cora = lab.cluster("anna", "bert", "cora")
    copied(lab, "anna", "clone")
    clone = lab.open("clone", copy_of="anna")
    anna.append([push("anna")])
    clone.append([push("clone")])
    settle([anna, bert])
    assert not bert.attention()
    settle([clone, bert])
    settle([bert, cora])
    for log in (bert, cora):
        assert log.attention() == ["node anna's log forked: it was restored or cloned; nothing was lost"]
    settle([anna, bert, cora, clone])
    assert len(bert.attention()) == 1
    assert anna.state() == bert.state() == cora.state() == clone.state()


def test_a_newer_op_is_kept_and_forwarded(lab: Lab) -> None:
    anna, bert, cora = lab.cluster("anna", "bert", "cora")
    raw = msgspec.msgpack.encode({"kind": "orbit", "volume": "models", "file": 7})
    newer = make_entry(
        lab.identities["bert"],
        incarnation=b"n" * 32,
        previous=None,
        lamport=50,
        time_ns=0,
        ops=[UnknownOp(raw, "orbit", "models")],
    )
    assert anna.receive([newer.encoded]).accepted
    anna = lab.again("anna")
    settle([anna, bert, cora])
    assert cora.state().entries[-1].encoded == newer.encoded
    assert cora.state().why_read_only("models")


# ---- exchange ---------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_nodes_that_were_apart_agree(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        logs = lab.cluster("anna", "bert", "cora")
        for _ in range(data.draw(st.integers(1, 12))):
            place = data.draw(st.integers(0, 2))
            if data.draw(st.booleans()):
                name = data.draw(st.sampled_from(["a", "b"]))
                logs[place].append([push(name, data.draw(st.integers(1, 2)), bytes([place]))])
            else:
                samples = data.draw(st.booleans())
                tell(
                    logs[place],
                    logs[data.draw(st.integers(0, 2))],
                    data.draw(st.integers(1, 900)),
                    samples=samples,
                )
        settle(logs, data.draw(st.integers(1, 2000)), samples=data.draw(st.booleans()))
        assert logs[0].state() == logs[1].state() == logs[2].state()
        assert logs[0].vector() == logs[1].vector() == logs[2].vector()
        assert logs[0].missing_for(logs[1].vector(), 1 << 20) == []
    finally:
        lab.close()


def test_a_peer_that_is_ahead_is_not_sent_everything_again(lab: Lab) -> None:
    anna, bert = lab.cluster("anna", "bert")
    for number in range(200):
        anna.append([push("a", number + 1)])
    settle([anna, bert])
    for number in range(20):
        anna.append([push("b", number + 1)])
    assert len(bert.missing_for(anna.summary(), 1 << 30)) < 100
    assert len(anna.missing_for(bert.summary(), 1 << 30)) == 20
    assert len(anna.summary()) < 40


def test_a_batch_is_at_most_its_limit_and_at_least_one(lab: Lab) -> None:
    anna, bert = lab.cluster("anna", "bert")
    for number in range(50):
        anna.append([push("a", number + 1)])
    sizes = [len(entry) for entry in anna.missing_for(bert.vector(), 1 << 30)]
    assert len(anna.missing_for(bert.vector(), 1)) == 1
    some = anna.missing_for(bert.vector(), sum(sizes[:10]))
    assert len(some) == 10
    settle([anna, bert], sum(sizes[:7]))
    assert anna.state() == bert.state()


def test_acknowledgements(lab: Lab) -> None:
    anna, bert, cora = lab.cluster("anna", "bert", "cora")
    nodes = {name: identity.node for name, identity in lab.identities.items()}
    entry = anna.append([push("a")])
    assert set(anna.unacknowledged(entry.hash)) == {nodes["bert"], nodes["cora"]}
    settle([anna, bert])
    anna.acknowledge(nodes["bert"], bert.vector())
    anna.acknowledge(nodes["cora"], cora.vector())
    assert anna.unacknowledged(entry.hash) == [nodes["cora"]]
    assert not anna.acknowledged_by_all(entry.hash)
    anna = lab.again("anna")
    assert anna.unacknowledged(entry.hash) == [nodes["cora"]]
    anna.append([push("b")])
    settle([anna, cora])
    anna.acknowledge(nodes["cora"], cora.vector())
    assert anna.acknowledged_by_all(entry.hash), "a later head covers it"
    assert not anna.acknowledged_by_all(b"z" * 32)
    fake = Head(node=entry.node, incarnation=entry.incarnation, seq=entry.seq + 5, hash=b"q" * 32)
    anna.acknowledge(nodes["cora"], [fake])
    assert not anna.acknowledged_by_all(entry.hash), "a head that we do not know proves nothing"
    anna.remove_member(nodes["cora"])
    assert anna.acknowledged_by_all(entry.hash), "a removed node holds nothing back"
