"""The POSIX cases through our own loop as a user mounts it; test_mounts.py runs this as another user."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tbshare.fuse import mounting
from tests.fuse.mounts import Mount, mounted
from tests.fuse.posix_cases import PosixCases
from tests.nodes import until

pytestmark = pytest.mark.mount


@pytest.fixture
def here(mount: Mount, request: pytest.FixtureRequest) -> Path:
    """An empty directory in the mount."""
    path = mount.path / str(request.node.name)  # pyright: ignore[reportUnknownMemberType]
    path.mkdir()
    return path


class TestUser(PosixCases):
    """Mounted by fusermount3; nothing passes through."""

    @pytest.fixture(scope="class")
    @classmethod
    def mount(cls, tmp_path_factory: pytest.TempPathFactory) -> Generator[Mount]:
        with mounted(tmp_path_factory.mktemp("mount")) as mount:
            yield mount


def test_no_file_passes_through(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        (mount.path / "a").write_bytes(b"a")
        with (mount.path / "a").open("rb"):
            assert os.getxattr(mount.path / "a", "user.io-mode") == b"cached"


def test_a_killed_mount_leaves_no_broken_mount_point(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        mount.process.kill()
        mount.wait()
        until("it is unmounted", lambda: mounting.mounted_at(str(mount.path)) is None)
    assert os.listdir(mount.path) == []


def test_unmounting_ends_the_process(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        mounting.unmount(str(mount.path))
        assert mount.wait() == 0
