"""Rot: found by verify or by a peer, put aside, repaired from a peer, and said."""

import os
from collections.abc import Callable
from pathlib import Path

from tbshare.wire.local import PullParams
from tests.nodes import MIB, Node, random_model, running, until

Three = tuple[Node, Node, Node]


def flip(node: Node, size: int, offset: int) -> Path:
    """Change one byte of the object file of this size, as a disk would: behind its permissions."""
    (path,) = [path for path in node.object_files() if path.stat().st_size == size]
    path.chmod(0o644)
    with open(path, "r+b") as file:
        byte = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), offset)
    path.chmod(0o444)
    return path


def test_verify_finds_a_flipped_byte_and_repairs_it(three: Three, tmp_path: Path) -> None:
    ada, grace, _ = three
    size = 9 * MIB + 1234
    ada.push(random_model(tmp_path / "m", 21, size), name="rotten")
    with grace.client() as client:
        assert client.verify("rotten").corrupt == 0
    flip(grace, size, 5 * MIB)
    with grace.client() as client:
        report = client.verify(repair=True)
        assert (report.corrupt, report.quarantined, report.repaired) == (1, 1, 1)
        (problem,) = report.problems
        assert (problem.path, problem.ref, problem.block, problem.repaired) == (
            "part-0.weights", "rotten@1", "1", True,
        )  # fmt: skip
        assert client.verify("rotten").corrupt == 0
        assert client.du().quarantine_bytes >= size
        directory = Path(client.path("rotten").directory)
    assert (directory / "part-0.weights").read_bytes() == (tmp_path / "m" / "part-0.weights").read_bytes()
    assert grace.status().attention == []


def test_rot_without_another_copy_is_said_and_nothing_is_lost(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    ada = make_node("ada")
    size = 5 * MIB
    with running(ada):
        ada.push(random_model(tmp_path / "m", 22, size), name="alone")
        flip(ada, size, 10)
        with ada.client() as client:
            report = client.verify()
            assert (report.corrupt, report.repaired) == (1, 0)
        assert not ada.has("alone@1")
        assert [line.kind for line in ada.status().attention if line.kind == "corrupt"] == ["corrupt"]
        line = ada.line("alone@1")
        assert line is not None
        assert line.bytes_here == MIB + 2  # the other block and the small file
        assert ada.push(tmp_path / "m", name="alone").already  # the same bytes again make it whole
        assert ada.has("alone@1")


def test_a_corrupt_block_is_noticed_by_who_gets_it(make_node: Callable[..., Node], tmp_path: Path) -> None:
    ada, grace, edith = make_node("ada"), make_node("grace"), make_node("edith", '[store]\naccept="on-demand"\n')
    size = 9 * MIB
    with running(ada, grace, edith):
        ada.push(random_model(tmp_path / "m", 23, size), name="served")
        for offset in (0, 5 * MIB, 9 * MIB - 1):  # so that whatever is asked of grace is wrong
            flip(grace, size, offset)
        with edith.client() as client:
            pulled = client.pull(PullParams("served"))
        assert pulled.failed == []
        assert edith.has("served@1")
        with edith.client() as client:
            assert client.verify("served").corrupt == 0
        until("grace has repaired hers", lambda: grace.has("served@1") and _quarantined(grace))
        with grace.client() as client:
            assert client.verify("served").corrupt == 0
        assert "corrupt block" in grace.log()


def _quarantined(node: Node) -> bool:
    return any((node.home / "quarantine").iterdir())
