"""Leases while messages are late or lost, and over restarts: one holder at a time while nothing is cut."""

from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tbshare.volumes.leases import (
    RENEW_SECONDS,
    TERM_SECONDS,
    Grant,
    Grants,
    Held,
    Known,
    Refusal,
    Request,
    conflicts,
    granter,
    granters,
)

NODES = [bytes([number]) * 32 for number in range(1, 4)]
GRANTER = b"g" * 32
PATHS: dict[int, tuple[int, ...]] = {5: (), 6: (5,), 7: (5, 6), 8: (5,), 9: ()}  # id -> directories above it
DIRECTORIES = {5, 6}


def request(id_: int, node: bytes, **more: object) -> Request:
    kind = "directory" if id_ in DIRECTORIES else "file"
    return replace(Request(1, id_, kind, node, PATHS[id_]), **more)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def granted(answer: Grant | Refusal) -> Grant:
    assert isinstance(answer, Grant)
    return answer


def awake() -> Grants:
    grants = Grants(GRANTER, 0.0)
    grants.all_told()
    return grants


@dataclass
class Asked:
    """A request on its way, and then its answer."""

    request: Request
    asked: float
    answer: Grant | Refusal | None = None


class OneGranter(RuleBasedStateMachine):
    """Any delay, loss and order of messages; the granter may forget everything, the holders may too."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.grants = Grants(GRANTER, self.now)
        self.held = {node: Held() for node in NODES}
        self.on_the_way: list[Asked] = []
        self.epochs: dict[int, int] = {}
        self.given: set[tuple[int, bytes, int]] = set()

    @rule(node=st.sampled_from(NODES), id_=st.sampled_from(list(PATHS)))
    def ask(self, node: bytes, id_: int) -> None:
        self.on_the_way.append(Asked(request(id_, node), self.now))

    @rule(node=st.sampled_from(NODES))
    def renew(self, node: bytes) -> None:
        for grant in self.held[node].due(self.now):
            self.held[node].asking(grant.key, self.now)
            wanted = request(grant.id, node, epoch=grant.epoch, renews=True)
            self.on_the_way.append(Asked(wanted, self.now))

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        waiting = [each for each in self.on_the_way if each.answer is None]
        if not waiting:
            return
        asked = data.draw(st.sampled_from(waiting))
        asked.answer = self.grants.ask(asked.request, self.now)
        if isinstance(asked.answer, Grant):
            grant = asked.answer
            name = (grant.id, grant.node, grant.epoch)
            if name not in self.given:
                assert grant.epoch > self.epochs.get(grant.id, 0), "an epoch came again"
                self.epochs[grant.id] = grant.epoch
            self.given.add(name)

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        answered = [each for each in self.on_the_way if each.answer is not None]
        if not answered:
            return
        asked = data.draw(st.sampled_from(answered))
        self.on_the_way.remove(asked)
        held = self.held[asked.request.node]
        if isinstance(asked.answer, Grant):
            if asked.request.renews:
                held.renewed(asked.answer.key, asked.answer.epoch, asked.asked)
            else:
                held.took(asked.answer, asked.asked, self.now)
        elif asked.request.renews:
            held.drop(asked.request.key, asked.request.epoch)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if self.on_the_way:
            self.on_the_way.remove(data.draw(st.sampled_from(self.on_the_way)))

    @rule(node=st.sampled_from(NODES), id_=st.sampled_from(list(PATHS)))
    def release(self, node: bytes, id_: int) -> None:
        grant = self.held[node].drop((1, id_))
        if grant is not None:
            self.grants.release(1, id_, node, grant.epoch)

    @rule(seconds=st.sampled_from([0.1, 1.0, RENEW_SECONDS, TERM_SECONDS / 2, TERM_SECONDS]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for held in self.held.values():
            held.lost(self.now)

    @rule()
    def granter_restarts(self) -> None:
        self.grants = Grants(GRANTER, self.now)
        self.epochs.clear()  # what it has forgotten it may give again, after a term in which nobody holds it
        self.given = {
            (each.id, each.node, each.epoch) for held in self.held.values() for each in held.all(self.now)
        }

    @rule(node=st.sampled_from(NODES))
    def holder_restarts(self, node: bytes) -> None:
        self.held[node] = Held()
        self.on_the_way = [each for each in self.on_the_way if each.request.node != node]

    @invariant()
    def nobody_holds_what_another_holds(self) -> None:
        if not hasattr(self, "held"):
            return
        everything = [grant for held in self.held.values() for grant in held.all(self.now)]
        for one in everything:
            for other in everything:
                assert not conflicts(one, other), f"{one} and {other}"


OneGranter.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestOneGranter = OneGranter.TestCase


def test_after_the_end_somebody_else_gets_it_with_a_higher_epoch() -> None:
    grants = awake()
    first = granted(grants.ask(request(9, NODES[0]), 0.0))
    refused = grants.ask(request(9, NODES[1]), TERM_SECONDS - 0.1)
    assert isinstance(refused, Refusal)
    assert refused.held == first
    second = granted(grants.ask(request(9, NODES[1]), TERM_SECONDS))
    assert second.epoch > first.epoch
    late = grants.ask(request(9, NODES[0], epoch=first.epoch, renews=True), TERM_SECONDS + 1)
    assert isinstance(late, Refusal)
    after = grants.ask(request(9, NODES[0], epoch=first.epoch, renews=True), 3 * TERM_SECONDS)
    assert isinstance(after, Refusal), "somebody else had it since: what is saved now is a fork"
    assert granted(grants.ask(request(9, NODES[0]), 3 * TERM_SECONDS)).epoch > second.epoch


def test_a_release_lets_the_next_one_in_at_once() -> None:
    grants = awake()
    first = granted(grants.ask(request(9, NODES[0]), 0.0))
    assert not grants.release(1, 9, NODES[1], first.epoch)
    assert not grants.release(1, 9, NODES[0], first.epoch - 1)
    assert grants.release(1, 9, NODES[0], first.epoch)
    assert granted(grants.ask(request(9, NODES[1]), 0.1))


def test_a_directory_covers_everything_below_it_and_nothing_else() -> None:
    grants = awake()
    granted(grants.ask(request(6, NODES[0]), 0.0))
    assert isinstance(grants.ask(request(7, NODES[1]), 1.0), Refusal), "a file in it"
    assert isinstance(grants.ask(request(5, NODES[1]), 1.0), Refusal), "the directory above"
    assert granted(grants.ask(request(8, NODES[1]), 1.0)), "a file beside it"
    assert granted(grants.ask(request(7, NODES[0]), 1.0)), "its holder's own"
    assert granted(grants.ask(replace(request(7, NODES[1]), volume=2), 1.0)), "another volume"


def test_a_granter_that_has_just_started_gives_nothing_new() -> None:
    before = awake()
    first = granted(before.ask(request(9, NODES[0]), 0.0))
    grants = Grants(GRANTER, 1.0)
    refused = grants.ask(request(9, NODES[1]), 2.0)
    assert isinstance(refused, Refusal)
    assert (refused.held, refused.wait_seconds) == (None, TERM_SECONDS - 1.0)
    renewed = granted(grants.ask(request(9, NODES[0], epoch=first.epoch, renews=True), 3.0))
    assert renewed.epoch == first.epoch
    grants.all_told()
    assert isinstance(grants.ask(request(9, NODES[1]), 3.0), Refusal)
    assert granted(grants.ask(request(8, NODES[1]), 3.0)).epoch > first.epoch


def test_a_late_answer_is_no_lease() -> None:
    held = Held()
    grant = granted(awake().ask(request(9, NODES[0]), 9.0))
    assert not held.took(grant, 0.0, TERM_SECONDS)
    assert held.took(grant, 0.0, 9.5)
    assert held.get(grant.key, 9.9)
    assert held.get(grant.key, TERM_SECONDS) is None, "the holder counts from when it asked"
    assert held.lost(TERM_SECONDS) == [replace(grant, expires=TERM_SECONDS)]
    held.renewed(grant.key, grant.epoch, 9.9)
    assert held.get(grant.key, 10.0) is None, "what is over stays over"


def test_what_is_due() -> None:
    held = Held()
    assert held.next_due() == float("inf")
    grant = granted(awake().ask(request(9, NODES[0]), 0.0))
    held.took(grant, 0.0, 0.1)
    assert held.next_due() == RENEW_SECONDS
    assert held.due(RENEW_SECONDS - 0.1) == []
    assert [each.key for each in held.due(RENEW_SECONDS)] == [grant.key]
    held.asking(grant.key, RENEW_SECONDS)
    assert held.due(RENEW_SECONDS) == []


def test_nobody_is_believed_about_the_far_future() -> None:
    known = Known()
    known.heard([Grant(1, 9, "file", NODES[0], 1, expires=1e9)], 0.0)
    assert known.against(request(9, NODES[1]), 1.0)
    assert known.holders(1, {9}, TERM_SECONDS) == []
    known.heard([Grant(1, 9, "file", NODES[0], 1, expires=30.0)], 20.0)
    known.ended([(1, 9)], NODES[1])
    assert known.holders(1, {9}, 21.0)
    known.forget(NODES[0])
    assert known.all(21.0) == []
    grants = awake()
    grants.ask(request(9, NODES[0], epoch=(1 << 63) - 1), 0.0)
    assert granted(grants.ask(request(8, NODES[0]), 0.0)).epoch < 10


@given(st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 63) - 1), st.permutations(NODES))
def test_all_agree_who_grants_and_few_change(volume: int, id_: int, nodes: list[bytes]) -> None:
    chosen = granter(volume, id_, nodes)
    assert chosen == granter(volume, id_, sorted(nodes))
    for gone in nodes:
        if gone != chosen:
            assert granter(volume, id_, [node for node in nodes if node != gone]) == chosen
    assert granters(volume, id_, "file", nodes) == (chosen,)
    assert set(granters(volume, id_, "directory", nodes)) == set(nodes)


def test_granting_is_spread_over_the_nodes() -> None:
    shares = Counter(granter(1, id_, NODES) for id_ in range(3000))
    assert all(800 < share < 1200 for share in shares.values())
