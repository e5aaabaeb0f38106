"""Extended attributes whose values are objects: they spread, stay, and come out again as a file's bytes do."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tbshare.errors import TbshareError
from tests.nodes import Node, running, until
from tests.volume_nodes import copy, create, names, stat

Make = Callable[..., Node]
LARGE = Random(9).randbytes(60_000)
BUNDLE = "Cut.fcpbundle"


@pytest.fixture
def roomy() -> Iterator[Path]:
    """A directory of a file system that holds large attributes."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        (path / "file").write_bytes(b"content")
        (path / "folder").mkdir()
        for number in range(2):
            os.setxattr(path / "file", f"user.fork{number}", LARGE[number:])
        os.setxattr(path / "file", "user.small", b"small")
        os.setxattr(path / "folder", "user.icon", LARGE[7:])
        (path / BUNDLE / "inner").mkdir(parents=True)
        (path / BUNDLE / "inner" / "db").write_bytes(b"database")
        for number in range(5):  # each would fit, all together do not
            os.setxattr(path / BUNDLE / "inner" / "db", f"user.part{number}", LARGE[: 900 + number])
        os.setxattr(path / BUNDLE / "inner", "user.icon", LARGE[9:])
    except (OSError, AttributeError):
        shutil.rmtree(path)
        pytest.skip("no large extended attributes here")
    yield path
    shutil.rmtree(path)


def xattrs(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def test_large_attributes_are_on_every_node_and_survive_garbage_collection(make_node: Make, roomy: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace):
        create(ada, "film")
        copy(ada, roomy, "film:/in", recursive=True)
        assert stat(ada, "film:/in/file").xattrs_bytes > 100_000
        until("grace has it", lambda: "in" in names(grace, "film:/"))
        until("with all bytes", lambda: stat(grace, "film:/in/file").here == "whole")
        for node in (ada, grace):
            with node.client() as client:
                client.gc(now=True)
        copy(ada, "film:/in", roomy / "ada", recursive=True)
        ada.stop()
        until("grace has the attributes", lambda: comes_out(grace, roomy / "grace"))
        for name in ("ada", "grace"):
            for each in ("file", "folder", f"{BUNDLE}/inner/db", f"{BUNDLE}/inner"):
                assert xattrs(roomy / name / each) == xattrs(roomy / each), (name, each)


def comes_out(node: Node, to: Path) -> bool:
    try:
        copy(node, "film:/in", to, recursive=True)
    except TbshareError:
        return False
    return True
