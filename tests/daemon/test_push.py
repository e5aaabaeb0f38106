"""Push and pull on three real daemons: who gets it, what moves, and what is refused."""
from pathlib import Path
from tests.nodes import Node

Three = tuple[Node, Node, Node]

def test_a_push_is_durable_everywhere_when_it_returns(three: Three, model: Path) -> None:
    ada, grace, edith = three
    report = ada.push(model, name="everywhere")
    assert not report.pending
    assert not report.failed
    assert {line.name: line.state for line in report.nodes} == {"grace": "durable", "edith": "durable"}
    for node in three:
        assert node.has("everywhere@1")
