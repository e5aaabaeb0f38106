"""fsspec's own suite for file systems, against a real daemon."""

from collections.abc import Callable
from typing import Any

import fsspec.tests.abstract as suite
import pytest

from tests.nodes import Node
from tests.volume_nodes import create


@pytest.fixture(scope="module")
def scratch(ada: Node) -> str:
    """One volume for all of them: a directory for each is quicker made."""
    create(ada, "scratch")
    return "scratch"


class Fixtures(suite.AbstractFixtures):  # type: ignore[misc]
    """What the suite asks of a file system; `fs` is in conftest.py."""

    @pytest.fixture
    def fs(self, fs: Any) -> Any:
        return fs

    @pytest.fixture
    def fs_path(self, scratch: str, request: pytest.FixtureRequest) -> str:
        return f"{scratch}/{abs(hash(request.node.nodeid))}"

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)


class TestCopy(Fixtures, suite.AbstractCopyTests):  # type: ignore[misc]
    """cp."""


class TestGet(Fixtures, suite.AbstractGetTests):  # type: ignore[misc]
    """get."""


class TestPut(Fixtures, suite.AbstractPutTests):  # type: ignore[misc]
    """put."""


class TestOpen(Fixtures, suite.AbstractOpenTests):  # type: ignore[misc]
    """open."""


class TestPipe(Fixtures, suite.AbstractPipeTests):  # type: ignore[misc]
    """pipe."""
