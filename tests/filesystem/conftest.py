"""A daemon, and its volumes as a file system of fsspec."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tbshare.filesystem import TbshareFileSystem
from tests.nodes import Node, running
from tests.volume_nodes import create


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    """What the entry point does, where the checkout is used without being installed."""
    registry: Any = fsspec
    registry.register_implementation("tbshare", TbshareFileSystem, clobber=True)


@pytest.fixture(scope="session")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One daemon for all tests that leave it running."""
    node = Node(tmp_path_factory.mktemp("fs") / "a", "ada")
    with running(node):
        yield node


@pytest.fixture
def fs(ada: Node) -> TbshareFileSystem:
    """The file system of that daemon."""
    return TbshareFileSystem(home=str(ada.home))


@pytest.fixture
def film(ada: Node, request: pytest.FixtureRequest) -> str:
    """A new volume."""
    name = f"film-{abs(hash(request.node.nodeid)) % 10**9}"
    create(ada, name)
    return name


@pytest.fixture
def at_home(ada: Node, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let URLs without options mean that daemon."""
    monkeypatch.setenv("TBSHARE_HOME", str(ada.home))
    return ada.home
