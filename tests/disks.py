"""File systems in files, for tests that need another kind of disk than the one they run on."""

import contextlib
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest


@contextlib.contextmanager
def sharing_disk(folder: Path, mebibytes: int) -> Generator[Path]:
    """Mount an XFS file system, whose files can share blocks; skips where that cannot be done."""
    image, place = folder / "xfs.img", folder / "xfs"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(mebibytes << 20)
    try:
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"XFS cannot be mounted here (needs root, loop devices, mkfs.xfs): {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)
        image.unlink()
