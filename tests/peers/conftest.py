"""One real daemon for the tests with a peer that does not play fair."""

from collections.abc import Iterator

import pytest

from tests.nodes import Node, running


@pytest.fixture
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A daemon of its own."""
    node = Node(tmp_path_factory.mktemp("v") / "v", "victim")
    with running(node):
        yield node
