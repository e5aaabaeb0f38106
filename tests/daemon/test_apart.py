"""Nodes that were apart: what they missed comes, what they did is kept, and nothing goes before they know."""

from collections.abc import Callable
from pathlib import Path

from tbshare.wire.local import PullParams
from tbshare.wire.report import GcReport
from tests.nodes import MIB, Node, pair, random_model, running, start_all, until, until_connected

Make = Callable[..., Node]


def collect(node: Node) -> GcReport:
    """Free everything that may go."""
    with node.client() as client:
        return client.gc(now=True)


def remove(node: Node, ref: str) -> None:
    """Take a ref away."""
    with node.client() as client:
        assert client.remove(ref, yes=True).removed


def test_a_node_that_was_away_gets_what_it_missed(make_node: Make, tmp_path: Path) -> None:
    ada, grace, edith = make_node("ada"), make_node("grace"), make_node("edith")
    with running(ada, grace, edith):
        edith.stop()
        until("edith has left", lambda: ada.connected() == {"grace"})
        report = ada.push(random_model(tmp_path / "m", 1, 2 * MIB), name="missed")
        assert report.pending == ["edith"]
        assert report.failed == []
        assert {line.name: line.state for line in report.nodes} == {"grace": "durable", "edith": "away"}
        ada.stop()  # from grace alone it must come then
        edith.start()
        until("edith has it", lambda: edith.has("missed@1"))
        ada.start()
        until_connected((ada, grace, edith))
        assert ada.push(tmp_path / "m", name="missed").pending == []


def test_pushes_on_both_sides_are_both_kept(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace):
        first = ada.push(random_model(tmp_path / "0", 2, 100_000), name="model")
        assert first.ref == "model@1"
        grace.stop()
        until("grace has left", lambda: not ada.connected())
        ada.push(random_model(tmp_path / "1", 3, 100_000), name="model", detach=True)
        ada.stop()
        grace.start()
        grace.push(random_model(tmp_path / "2", 4, 100_000), name="model", detach=True)
        ada.start()
        until_connected((ada, grace))
        until("both have both", lambda: _refs(ada) == _refs(grace) and len(_refs(ada)) == 3)
        both = sorted(_refs(ada))
        assert both[0] == "model@1"
        assert both[1] == "model@2"
        assert both[2] in ("model@2.ada", "model@2.grace")


def _refs(node: Node) -> set[str]:
    with node.client() as client:
        return {line.ref for line in client.ref_list(all_revs=True).refs if line.here == "whole"}


def test_garbage_waits_for_a_node_that_has_not_seen_the_removal(make_node: Make, tmp_path: Path) -> None:
    ada, grace, edith = make_node("ada"), make_node("grace"), make_node("edith")
    size = 3 * MIB
    with running(ada, grace, edith):
        ada.push(random_model(tmp_path / "m", 5, size), name="garbage")
        until("all know", lambda: all(len(node.line("garbage@1").on) == 3 for node in (ada, grace, edith)))  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
        edith.stop()
        until("edith has left", lambda: ada.connected() == {"grace"})
        remove(ada, "garbage")
        until("grace knows", lambda: grace.line("garbage@1") is None)
        for node in (ada, grace):
            report = collect(node)
            assert report.bytes_freed == 0
            assert [(line.by, line.bytes) for line in report.held if line.by == "edith"] == [("edith", size + 2)]
        edith.start()
        for node in (ada, grace, edith):
            until("it is freed", lambda node=node: collect(node).bytes_freed >= size or _disk(node) < size)  # type: ignore[misc]


def _disk(node: Node) -> int:
    with node.client() as client:
        return client.du().disk_bytes


def test_a_third_node_joins_with_one_code_and_gets_all_refs(make_node: Make, tmp_path: Path) -> None:
    ada, grace, edith = make_node("ada"), make_node("grace"), make_node("edith")
    with running(ada, grace):
        ada.push(random_model(tmp_path / "1", 6, MIB), name="one")
        grace.push(random_model(tmp_path / "2", 7, MIB), name="two")
        remove(ada, "two")
        with running(edith, paired=False):
            edith.push(random_model(tmp_path / "3", 8, MIB), name="brought-along")
            pair(grace, edith)
            until_connected((ada, grace, edith))
            until("edith has it", lambda: edith.has("one@1"))
            assert edith.line("two@1") is None
            until("all have hers", lambda: all(node.has("brought-along@1") for node in (ada, grace)))


def test_a_restart_keeps_everything(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace", '[store]\naccept = "on-demand"\n')
    with running(ada, grace):
        ada.push(random_model(tmp_path / "m", 9, 2 * MIB, 1000), name="kept")
        with grace.client() as client:
            client.pull(PullParams("kept"))
            directory = client.path("kept").directory
        with ada.client() as client:
            ada.push(random_model(tmp_path / "n", 10, 1000), name="thrown-out", to=["grace"])
            client.evict("thrown-out")
        before = [_known(node) for node in (ada, grace)]
        for node in (ada, grace):
            node.stop()
        start_all((ada, grace))
        until_connected((ada, grace))
        until("all is as before", lambda: [_known(node) for node in (ada, grace)] == before)
        with grace.client() as client:
            assert client.path("kept").directory == directory
            assert client.verify().corrupt == 0
        for node in (ada, grace):
            assert node.status().attention == []


def _known(node: Node) -> list[tuple[object, ...]]:
    with node.client() as client:
        refs = client.ref_list(all_revs=True).refs
        return [(line.ref, line.here, line.pinned, sorted(line.on), line.author) for line in refs]


def test_a_lost_index_is_made_again(make_node: Make, tmp_path: Path) -> None:
    ada = make_node("ada")
    with running(ada):
        ada.push(random_model(tmp_path / "m", 11, 2 * MIB, 100), name="kept")
        before = _known(ada)
        ada.stop()
        for path in ada.home.glob("index.db*"):
            path.unlink()
        ada.start()
        until("all is as before", lambda: _known(ada) == before)
        with ada.client() as client:
            report = client.verify()
        assert (report.corrupt, report.bytes) == (0, 2 * MIB + 102)
