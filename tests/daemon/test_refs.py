"""What the user does with refs on three real daemons: list, show, path, remove, pin, evict, free, watch, stop."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tbshare.errors import ExitStatus, Interrupted, ObjectInUse, ObjectMissing, RefUnknown, UsageError
from tbshare.wire.local import PullParams, PushParams, ShowParams
from tbshare.wire.report import AnyEvent, Started
from tests.nodes import MIB, Node, random_model, running, until

Three = tuple[Node, Node, Node]


def test_list_show_and_path(three: Three, model: Path) -> None:
    ada, grace, edith = three
    ada.push(model, name="lab/shown")
    with grace.client() as client:
        (line,) = client.ref_list("lab/").refs
        assert (line.name, line.rev, line.files, line.author) == ("lab/shown", 1, 3, "ada")
        assert sorted(line.on) == ["ada", "edith", "grace"]
        shown = client.show(ShowParams(ref="lab/shown"))
        assert {file.path for file in shown.files} == {"config.json", "part-0.weights", "part-1.weights"}
        assert {file.layout for file in shown.files} == {"exact", "packed"}
        assert {holder.name for holder in shown.holders} == {"ada", "edith", "grace"}
        assert client.show(ShowParams(path=str(model))).files_total == 3
        first, second = client.path("lab/shown@1"), client.path("lab/shown")
        assert first.directory == second.directory
        assert client.show(ShowParams(ref="lab/shown")).directory == first.directory
        assert client.ref_list("lab/").refs[0].pinned
    (file,) = [path for path in Path(first.directory).iterdir() if path.name == "part-0.weights"]
    assert file.stat().st_nlink == 2  # a hard link into the store: no second copy
    with edith.client() as client:
        assert not client.ref_list("lab/").refs[0].pinned


def test_code_is_left_out_unless_allowed(three: Three, tmp_path: Path) -> None:
    directory = random_model(tmp_path / "m", 2, 10)
    (directory / "modeling.py").write_text("raise SystemExit")
    three[0].push(directory, name="with-code")
    with three[1].client() as client:
        report = client.path("with-code")
        assert report.left_out == ["modeling.py"]
        assert not (Path(report.directory) / "modeling.py").exists()
        allowed = client.path("with-code", allow_code=True)
        assert (Path(allowed.directory) / "modeling.py").exists()
        assert allowed.directory != report.directory


def test_pin_unpin_and_evict(three: Three, model: Path) -> None:
    ada, grace, edith = three
    ada.push(model, name="kept")
    with grace.client() as client:
        assert client.pin("kept").pinned
        with pytest.raises(ObjectInUse, match="pinned") as caught:
            client.evict("kept")
        assert caught.value.cure == "tbshare unpin kept@1"
        client.unpin("kept")
        before = client.du().disk_bytes
        assert client.evict("kept").bytes_freed > 9 * MIB
        assert client.du().disk_bytes <= before - 9 * MIB
        with pytest.raises(ObjectMissing, match="not complete on this node") as missing:
            client.path("kept")
        assert missing.value.cure == "tbshare pull kept@1"
    until("ada knows", lambda: sorted(ada.line("kept@1").on) == ["ada", "edith"])  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    with edith.client() as client:
        client.evict("kept")
    until("ada knows", lambda: ada.line("kept@1").on == ["ada"])  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    with ada.client() as client, pytest.raises(ObjectInUse, match="last copy is never evicted"):
        client.evict("kept")
    with grace.client() as client:
        assert client.pull(PullParams("kept")).failed == []
        assert (Path(client.path("kept").directory) / "part-0.weights").stat().st_size == 9 * MIB + 17
    assert grace.has("kept@1")
    assert not edith.has("kept@1")


def test_all_evict_at_once_and_a_copy_stays(three: Three, tmp_path: Path) -> None:
    for round_number in range(4):
        name = f"race-{round_number}"
        three[0].push(random_model(tmp_path / name, 100 + round_number, 200_000), name=name)
        barrier, freed = threading.Barrier(3), list[str]()

        def evict(node: Node, name: str = name, barrier: threading.Barrier = barrier) -> None:
            with node.client() as client:
                barrier.wait()
                try:
                    client.evict(name)
                    freed.append(node.name)  # noqa: B023  joined before the next round
                except ObjectInUse:
                    return

        threads = [threading.Thread(target=evict, args=(node,)) for node in three]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(freed) < 3, "the last copy is gone"
        assert sum(node.has(f"{name}@1") for node in three) == 3 - len(freed)


def test_remove_and_collect(three: Three, model: Path) -> None:
    ada, grace, edith = three
    ada.push(model, name="gone")
    ada.push(random_model(model.parent / "stays", 31, 100_000), name="stays")
    with grace.client() as client:
        asked = client.remove("gone", yes=False)
        assert not asked.removed
        assert sorted(asked.nodes) == ["ada", "edith", "grace"]
        assert grace.has("gone@1")
        assert client.remove("gone", yes=True).removed
        with pytest.raises(RefUnknown):
            client.path("gone")
    for node in three:
        until("the ref is gone", lambda node=node: node.line("gone@1") is None)  # type: ignore[misc]
    until("all have said so", lambda: not _held(ada))
    with ada.client() as client:
        waiting = client.gc()
        assert (waiting.objects, waiting.bytes_waiting > 9 * MIB) == (0, True)
        freed = client.gc(now=True)
        assert freed.bytes_freed > 9 * MIB
        assert client.gc(now=True).objects == 0
        assert client.verify("stays").corrupt == 0
    report = ada.push(model, name="gone")
    assert report.ref == "gone@2", "the number of a removed version is not used again"
    assert ada.has("stays@1")
    assert edith.has("gone@2")


def _held(node: Node) -> list[str]:
    with node.client() as client:
        return [line.by for line in client.gc().held]


def test_du_counts_what_is_shared_once(three: Three, model: Path) -> None:
    ada = three[0]
    ada.push(model, name="du-one")
    with ada.client() as client:
        before = client.du()
    again = model.parent / "again"
    again.mkdir()
    (again / "same.weights").write_bytes((model / "part-0.weights").read_bytes())
    ada.push(again, name="du-two")
    with ada.client() as client:
        after = client.du()
        lines = {line.ref: line for line in after.lines}
    assert after.unique_bytes == before.unique_bytes
    assert lines["du-one@1"].unique_bytes == 300_000  # config.json is in many
    assert lines["du-two@1"].unique_bytes == 0
    assert lines["du-two@1"].here_bytes == 9 * MIB + 17


def test_rename_a_node(three: Three) -> None:
    ada, grace, edith = three
    with ada.client() as client:
        with pytest.raises(UsageError, match="called edith already"):
            client.node_rename("grace", "edith")
        client.node_rename("grace", "hopper")
        until("edith knows", lambda: _names(edith) == {"ada", "hopper"})
        client.node_rename(grace.status().node.id[:8], "grace")
    until("edith knows", lambda: _names(edith) == {"ada", "grace"})


def _names(node: Node) -> set[str]:
    return {line.name for line in node.status().nodes}


def test_a_push_can_be_watched_waited_for_and_stopped(make_node: Callable[..., Node], tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    slow = random_model(tmp_path / "slow", 8, 6 * MIB)
    with running(ada, grace):
        detached = ada.push(slow, name="slow", detach=True, limit_bytes_per_second=8_000_000)
        with ada.client() as client:
            (line,) = client.processes().processes
            assert (line.id, line.kind, line.what) == (detached.id, "push", "slow")
            waited = client.wait(detached.id)
            assert waited.state == "done"
            assert waited.push is not None
            assert waited.push.pending == []
            assert client.processes().processes == []
            with pytest.raises(UsageError, match="nothing here has the id"):
                client.stop("push-99")
        assert grace.has("slow@1")

        def stop(event: AnyEvent) -> None:
            if isinstance(event, Started):
                with ada.client() as other:
                    other.stop(event.id)

        with pytest.raises(Interrupted) as caught:
            ada.push(
                random_model(tmp_path / "more", 9, 6 * MIB), stop, name="more", limit_bytes_per_second=1 << 20
            )
        assert caught.value.exit_status == ExitStatus.INTERRUPTED
        assert ada.status().processes == 0


def test_a_client_that_goes_away_ends_its_push(make_node: Callable[..., Node], tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace):
        model = random_model(tmp_path / "m", 10, 6 * MIB)

        def leave(event: AnyEvent) -> None:
            if isinstance(event, Started):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), ada.client() as client:
            client.push(PushParams(str(model), name="left", limit_bytes_per_second=1 << 20), leave)
        until("the push has ended", lambda: ada.status().processes == 0)
        assert ada.push(model, name="left").failed == []
        assert grace.has("left@1")
