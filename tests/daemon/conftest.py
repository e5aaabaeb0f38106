"""A cluster of three daemons for the many cheap tests of this room, and what they push."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nodes import MIB, Node, random_model, running


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node, Node]]:
    """Three paired nodes, ada, grace and edith, for all tests of a module."""
    root = tmp_path_factory.mktemp("c")
    nodes = (Node(root / "a", "ada"), Node(root / "g", "grace"), Node(root / "e", "edith"))
    with running(*nodes):
        yield nodes


@pytest.fixture
def nodes(three: tuple[Node, Node, Node], request: pytest.FixtureRequest) -> tuple[Node, Node, Node]:
    """The three nodes; what they log while a test runs is shown when it fails."""
    return three


@pytest.fixture
def make_node(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Node]:
    """Make nodes with homes of their own."""
    root = tmp_path_factory.mktemp("n")

    def make(name: str, config: str = "") -> Node:
        return Node(root / name, name, config)

    return make


_seeds = iter(range(1, 10_000))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that no test pushed before: 9 MiB and 300 KB in files, and a small one."""
    return random_model(tmp_path / "model", next(_seeds), 9 * MIB + 17, 300_000)
