"""The POSIX cases through every front, over a plain directory."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tbshare.fuse.operations import LACKS
from tests.fuse.mounts import ROOT, Mount, mounted
from tests.fuse.posix_cases import OwnershipCases, PosixCases
from tests.fuse.shadow_file import ShadowFile

pytestmark = pytest.mark.mount
NOBODY = 65534


@pytest.fixture
def here(mount: Mount, request: pytest.FixtureRequest) -> Path:
    """An empty directory in the mount."""
    path = mount.path / str(request.node.name)  # pyright: ignore[reportUnknownMemberType]
    path.mkdir()
    return path


def _folder(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("mount")


class ShadowCases:
    """One file held against a bytearray."""

    def test_random_work_on_one_file(self, here: Path) -> None:
        for seed in range(5):
            with contextlib.closing(ShadowFile(here / str(seed), seed)) as file:
                file.run(400)


class TestOwnLoop(PosixCases, OwnershipCases, ShadowCases):
    """Our own loop, as root: complete files pass through."""

    @pytest.fixture(scope="class")
    @classmethod
    def mount(cls, tmp_path_factory: pytest.TempPathFactory) -> Generator[Mount]:
        if os.geteuid():
            pytest.skip("mount(2) takes root")
        with mounted(_folder(tmp_path_factory), words=["allow_other"]) as mount:
            yield mount


class TestOwnLoopWithoutPassthrough(PosixCases, OwnershipCases, ShadowCases):
    """Our own loop, as root, as on a kernel before 6.9."""

    @pytest.fixture(scope="class")
    @classmethod
    def mount(cls, tmp_path_factory: pytest.TempPathFactory) -> Generator[Mount]:
        if os.geteuid():
            pytest.skip("mount(2) takes root")
        with mounted(_folder(tmp_path_factory), words=["no_passthrough", "allow_other"]) as mount:
            yield mount


class TestPyfuse3(PosixCases, OwnershipCases, ShadowCases):
    """pyfuse3, with what its interface lacks."""

    lacks = frozenset(LACKS) - {"interrupt"}

    @pytest.fixture(scope="class")
    @classmethod
    def mount(cls, tmp_path_factory: pytest.TempPathFactory) -> Generator[Mount]:
        pytest.importorskip("pyfuse3")
        if os.geteuid():
            pytest.skip("allow_other takes root")
        with mounted(_folder(tmp_path_factory), "pyfuse3", words=["allow_other"]) as mount:
            yield mount


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_the_cases_as_another_user() -> None:
    """Our own loop by fusermount3, all of it in a process of `nobody`: root may not look into such a mount."""
    for tool in ("fusermount3", "setpriv", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    # Not in tmp_path: every run of pytest closes the directories above it to all others.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        theirs, devices = Path(folder) / "theirs", Path(folder) / "devices"
        theirs.mkdir()
        devices.mkdir()
        os.chown(theirs, NOBODY, NOBODY)
        # Where nothing has made /dev/fuse everybody's, as udev does, it is so for this test's processes alone.
        words = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            _OWN_DEVICE,
            "sh",
            str(devices),
            *_BECOME.split(),
            sys.executable,
        ]
        words += ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(theirs / "pytest")]
        done = subprocess.run(
            [*words, "tests/fuse/as_user.py"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert " passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout


_OWN_DEVICE = """
umount -l -a -t fuse.tbshare # copies of what others have mounted, which would live on in here
set -e
mount -t tmpfs -o mode=755 tmpfs "$1"
mknod -m 666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
shift
exec "$@"
"""
# Reading everything is kept: this Python may lie where nobody may look.
_BECOME = (
    f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=+dac_read_search "
    "--ambient-caps=+dac_read_search --"
)
