"""Two to four logs that talk through a network which loses, doubles and mixes up what they say."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbshare.errors import DiskFull
from tbshare.peers.exchange import PART_BYTES, Exchange
from tbshare.peers.identity import Identity
from tbshare.volumes.entry import KnownOp, RefSet, Save
from tbshare.volumes.log import Log, Received
from tbshare.wire.message import Acknowledged, AnyMessage, Entries, Vector, decode, encode


def save(number: int) -> Save:
    return Save(volume=5, file=number, version=number, content=bytes(32), size=number)


def push(rev: int) -> RefSet:
    return RefSet(volume="models", name="a", rev=rev, tree=b"x" * 32, size_bytes=1, files=1)


@dataclass
class Net:
    """The nodes of a cluster, and what is under way between each two of them."""

    home: Path
    logs: dict[bytes, Log] = field(default_factory=dict[bytes, Log])
    sides: dict[bytes, Exchange] = field(default_factory=dict[bytes, Exchange])
    mail: dict[tuple[bytes, bytes], list[bytes]] = field(default_factory=dict[tuple[bytes, bytes], list[bytes]])
    said: list[AnyMessage] = field(default_factory=list[AnyMessage])
    number: int = 0

    def add(self, name: str) -> bytes:
        identity = Identity.load_or_create(self.home / f"{name}.key")
        log = Log.open(self.home / f"{name}.db", identity, clock_ns=lambda: 7)
        if not self.logs:
            log.create_cluster(name)
        else:
            first, other = next(iter(self.logs.items()))
            other.add_member(identity.certificate, name)
            sponsor = other.state().members[first]
            log.join(other.cluster, certificate=sponsor.certificate, name=sponsor.name)
        self.logs[identity.node] = log
        self.sides[identity.node] = Exchange(log)
        return identity.node

    def nodes(self) -> list[bytes]:
        return list(self.logs)

    def join(self, one: bytes, other: bytes) -> None:
        """Begin a session; one that stands is over."""
        self.part(one, other)
        for source, target in ((one, other), (other, one)):
            self.mail[source, target] = []
            self.say(source, [(target, message) for message in self.sides[source].joined(target)])

    def part(self, one: bytes, other: bytes) -> None:
        for source, target in ((one, other), (other, one)):
            self.mail.pop((source, target), None)
            self.sides[source].left(target)

    def say(self, source: bytes, said: list[tuple[bytes, AnyMessage]]) -> None:
        for target, message in said:
            self.said.append(message)
            if (source, target) in self.mail:
                self.mail[source, target].append(encode(message))

    def write(self, node: bytes, *, ref: bool = False) -> None:
        self.number += 1
        ops: list[KnownOp] = [push(self.number) if ref else save(self.number)]
        self.say(node, self.sides[node].grown([self.logs[node].append(ops)]))

    def deliver(self, source: bytes, target: bytes, place: int = 0, *, keep: bool = False) -> None:
        waiting = self.mail.get((source, target))
        if waiting:
            data = waiting[place] if keep else waiting.pop(place)
            self.say(target, self.sides[target].received(source, decode(data)))

    def settle(self) -> None:
        """Deliver everything until nobody has anything to say."""
        for _ in range(10_000):
            ways = [way for way, waiting in self.mail.items() if waiting]
            if not ways:
                return
            for way in ways:
                self.deliver(*way)
        raise AssertionError("they talk for ever")

    def close(self) -> None:
        for log in self.logs.values():
            log.close()


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    net = Net(tmp_path)
    yield net
    net.close()


def happen(net: Net, one: bytes, other: bytes, data: st.DataObject) -> None:
    """Let something befall two nodes."""
    what = data.draw(st.sampled_from(["write", "deliver", "deliver", "double", "lose", "join", "part"]))
    waiting = net.mail.get((one, other))
    if what == "write":
        net.write(one, ref=data.draw(st.booleans()))
    elif what in {"join", "part"} and one != other:
        (net.join if what == "join" else net.part)(one, other)
    elif waiting:
        place = data.draw(st.integers(0, len(waiting) - 1))
        if what == "lose":
            del waiting[place]
        else:
            net.deliver(one, other, place, keep=what == "double")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_the_network_does_all_agree_once_it_is_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    net = Net(tmp_path_factory.mktemp("net"))
    try:
        for name in ("anna", "bert", "cora", "dora")[: data.draw(st.integers(2, 4))]:
            net.add(name)
        nodes = st.sampled_from(net.nodes())
        for _ in range(data.draw(st.integers(1, 40))):
            one, other = data.draw(nodes), data.draw(nodes)
            happen(net, one, other, data)
        chain = data.draw(st.booleans())
        for place, one in enumerate(net.nodes()):
            for other in net.nodes()[place + 1 : place + 2 if chain else None]:
                net.join(one, other)
        net.settle()
        logs = list(net.logs.values())
        assert all(log.vector() == logs[0].vector() for log in logs)
        assert all(log.state() == logs[0].state() for log in logs)
        if not chain:
            last = logs[0].entries_after(logs[0].last_arrival - 1, 1)[0][1]
            assert all(log.acknowledged_by_all(last) for log in logs)
    finally:
        net.close()


def test_what_is_new_goes_to_all_and_not_back(net: Net) -> None:
    anna, bert, cora = (net.add(name) for name in ("anna", "bert", "cora"))
    for one, other in ((anna, bert), (bert, cora)):
        net.join(one, other)
    net.settle()
    net.said.clear()
    net.write(anna)
    net.settle()
    assert len([message for message in net.said if isinstance(message, Entries)]) == 2
    assert net.logs[cora].vector() == net.logs[anna].vector()
    net.write(cora, ref=True)
    net.settle()
    assert len([message for message in net.said if isinstance(message, Entries)]) == 4
    assert not [message for message in net.said if isinstance(message, Vector)]


def test_acknowledgements_are_not_repeated(net: Net) -> None:
    anna, bert = net.add("anna"), net.add("bert")
    net.join(anna, bert)
    net.settle()
    side = net.sides[anna]
    assert side.acknowledgements() == []
    for _ in range(5):
        net.logs[anna].append([save(1)])
    side.noted([])
    assert not side.urgent
    (said,) = side.acknowledgements()
    assert isinstance(said[1], Acknowledged)
    assert side.acknowledgements() == []
    side.noted([net.logs[anna].append([push(1)])])
    assert side.urgent, "a removal must be known by all soon"


def test_a_long_absence_goes_in_parts(net: Net) -> None:
    anna, bert = net.add("anna"), net.add("bert")
    for _ in range(40):
        net.logs[anna].append([save(number) for number in range(1, 1000)])
    side = net.sides[anna]
    net.sides[bert].joined(anna)
    side.joined(bert)
    assert side.due(bert) is None, "nothing before it is known what the peer has"
    side.take(bert, Vector(net.logs[bert].summary()))
    parts = 0
    while (part := side.due(bert)) is not None:
        parts += 1
        assert sum(len(entry) for entry in part.entries) <= PART_BYTES
        net.sides[bert].take(anna, part)
        net.logs[anna].append([save(1)]) if parts < 5 else None
    assert parts > 2
    assert net.logs[anna].vector() == net.logs[bert].vector(), "what grew meanwhile went along"


def test_messages_of_no_session_are_left(net: Net) -> None:
    anna, bert = net.add("anna"), net.add("bert")
    side = net.sides[anna]
    assert side.received(bert, Vector([])) == []
    assert side.received(bert, Entries([b"junk"])) == []
    assert side.due(bert) is None
    side.joined(bert)
    assert [type(message) for _, message in side.received(bert, Entries([b"junk"]))] == [Vector]
    assert side.received(bert, Entries([b"junk"])) == [], "it asks once, until something came of it"


def test_what_a_full_disk_did_not_take_is_asked_for_again(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    anna, bert = net.add("anna"), net.add("bert")
    net.join(anna, bert)
    net.settle()

    def full(_: object) -> Received:
        raise DiskFull("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(net.logs[bert], "receive", full)
        net.write(anna)
        net.settle()
    assert net.logs[bert].vector() != net.logs[anna].vector()
    net.say(bert, net.sides[bert].again())
    net.settle()
    assert net.logs[bert].vector() == net.logs[anna].vector()
    assert net.sides[bert].again() == []
