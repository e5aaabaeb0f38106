"""kill -9 of every daemon at random points of pushes: what was acknowledged is there, what was synced stays."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tbshare.errors import DaemonUnreachable
from tbshare.wire.report import AnyEvent, Nodes, Published, PushReport, Started
from tests.nodes import MIB, Node, random_model, running, until, until_connected

KILLS = 50
KILLS_PER_PUSH = 4
ATTEMPTS_MAX = 30
SIZES = (11 * MIB + 5, 6 * MIB, 300_000)
BLOCK_BYTES = 4 * MIB


@dataclass(frozen=True)
class Kill:
    """Which node, and when: at the start, at the publication, or at a share of all bytes that must move."""

    node: Node
    moment: float

    def is_due(self, event: AnyEvent, size: int) -> bool:
        if self.moment < 0.06:
            return isinstance(event, Started)
        if self.moment < 0.12:
            return isinstance(event, Published)
        if isinstance(event, Nodes):
            return sum(line.bytes_present for line in event.nodes) >= self.moment * 2 * size
        return False


def strike(node: Node) -> None:
    """Kill a daemon and start it again; its store must open without a complaint."""
    node.kill()
    node.start()
    notices = [line.text for line in node.status().attention if line.kind == "store"]
    assert notices == []


def push_under_fire(source: Node, model: Path, name: str, size: int, kills: list[Kill]) -> tuple[PushReport, int]:
    """Push, again where need be, and kill; return the report of exit status 0 and the number of kills before."""
    kills = sorted(kills, key=lambda kill: kill.moment)
    planned = len(kills)

    def told(event: AnyEvent) -> None:
        if kills and kills[0].is_due(event, size):
            strike(kills.pop(0).node)

    for _ in range(ATTEMPTS_MAX):
        try:
            report = source.push(model, told, name=name)
        except DaemonUnreachable:
            continue  # the source was killed: the user pushes again
        if not report.pending and not report.failed:
            for kill in kills:  # it was quicker than they were: then right after it was acknowledged
                strike(kill.node)
            return report, planned - len(kills)
    raise AssertionError(f"{name} was not acknowledged in {ATTEMPTS_MAX} attempts")


@pytest.mark.timeout(240)
def test_fifty_kills_lose_nothing(make_node: Callable[..., Node], tmp_path: Path) -> None:
    config = '[links]\nlimit = "30MB"\n'
    nodes = [make_node(name, config) for name in ("ada", "grace", "edith")]
    random = Random(2026)
    kills = [Kill(nodes[number % 3], random.random()) for number in range(KILLS)]
    random.shuffle(kills)
    acknowledged: list[str] = []
    in_the_middle = 0
    with running(*nodes):
        while kills:
            batch, kills = kills[:KILLS_PER_PUSH], kills[KILLS_PER_PUSH:]
            name = f"model-{len(acknowledged)}"
            model = random_model(tmp_path / name, 1000 + len(acknowledged), *SIZES, config=name)
            source = batch[0].node
            report, before = push_under_fire(source, model, name, sum(SIZES) + len(name), batch)
            in_the_middle += before
            assert {line.state for line in report.nodes} == {"durable"}
            acknowledged.append(f"{name}@1")
        assert in_the_middle >= 0.7 * KILLS
        until_connected(nodes)
        for node in nodes:
            for ref in acknowledged:
                until(f"{node.name} has {ref}", lambda node=node, ref=ref: node.has(ref))  # type: ignore[misc]
            with node.client() as client:
                verified = client.verify()
            assert verified.corrupt == 0
            assert verified.bytes >= sum(SIZES) * len(acknowledged)
            assert [line for line in node.status().attention if line.kind in ("store", "corrupt")] == []


@pytest.mark.parametrize("victim", [0, 1], ids=["source", "receiver"])
def test_a_resumed_transfer_moves_only_what_was_not_synced(
    make_node: Callable[..., Node], tmp_path: Path, victim: int
) -> None:
    rate, size = 4_000_000, 20 * MIB
    nodes = [make_node(name, f'[links]\nlimit = "{rate}"\n') for name in ("ada", "grace")]
    model = random_model(tmp_path / "m", 7, size - 2)
    struck: list[int] = []  # the bytes that had moved then

    def told(event: AnyEvent) -> None:
        if isinstance(event, Nodes) and not struck and event.nodes[0].bytes_present >= 0.8 * size:
            struck.append(event.nodes[0].bytes_moved)
            strike(nodes[victim])

    with running(*nodes):
        report = None
        while report is None:
            try:
                report = nodes[0].push(model, told, name="resumed")
            except DaemonUnreachable:
                assert struck
        assert (report.pending, report.failed) == ([], [])
        moved = report.nodes[0].bytes_moved  # in the receiver's last attempt
        if nodes[victim] is nodes[1]:
            moved += struck[0]
        window = int(rate * 1.5) + BLOCK_BYTES  # synced each second, and a block that was under way
        assert moved <= size + (window if victim else BLOCK_BYTES)
        with nodes[1].client() as client:
            assert client.verify("resumed").corrupt == 0
