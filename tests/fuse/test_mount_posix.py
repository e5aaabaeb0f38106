"""The POSIX cases, on volumes."""

import errno
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fuse.mounts import needs_mounting
from tests.fuse.posix_cases import OwnershipCases, PosixCases, raises
from tests.fuse.volume_mounts import VolumeMount, mounted
from tests.nodes import Node, running
from tests.volume_nodes import create

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Generator[Node]:
    needs_mounting()
    if os.geteuid():
        pytest.skip("mount(2) takes root")
    node = Node(tmp_path_factory.mktemp("node") / "home", "studio")
    with running(node):
        create(node, "film", options={"case": "sensitive"})
        create(node, "numeric", options={"case": "sensitive"})
        yield node


@pytest.fixture
def here(mount: VolumeMount, request: pytest.FixtureRequest) -> Path:
    """An empty directory in the mount."""
    path = mount.path / str(request.node.name)  # pyright: ignore[reportUnknownMemberType]
    path.mkdir()
    return path


class TestVolume(PosixCases):
    """A volume on our own loop."""

    @pytest.fixture(scope="class")
    @classmethod
    def mount(cls, node: Node, tmp_path_factory: pytest.TempPathFactory) -> Generator[VolumeMount]:
        with mounted(node, tmp_path_factory.mktemp("mounts") / "film", "film") as mount:
            yield mount


class TestNumericOwners(OwnershipCases):
    """A volume that keeps owners."""

    @pytest.fixture(scope="class")
    @classmethod
    def mount(cls, node: Node, tmp_path_factory: pytest.TempPathFactory) -> Generator[VolumeMount]:
        path = tmp_path_factory.mktemp("mounts") / "numeric"
        with mounted(node, path, "numeric", "--numeric-owners", "--allow-other") as mount:
            yield mount

    def test_special_files(self, here: Path) -> None:
        """A volume has no pipes and devices: a Mac and another node could do nothing with them."""
        with raises(errno.EPERM):
            os.mkfifo(here / "pipe")
