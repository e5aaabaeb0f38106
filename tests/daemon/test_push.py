"""Push and pull on three real daemons: who gets it, what moves, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tbshare.errors import ExitStatus, InputRefused, RefUnknown, UsageError
from tbshare.wire.local import PullParams, PushParams
from tbshare.wire.report import AnyEvent, Ingest, Nodes, Noted, Published, Started, Warned
from tests.nodes import MIB, Node, random_model, running, until

Three = tuple[Node, Node, Node]


def moved(node: Node, path: Path, name: str) -> int:
    """Push and return how many bytes moved to the first other node that got it."""
    report = node.push(path, name=name)
    assert {line.state for line in report.nodes} == {"durable"}
    return max(line.bytes_moved for line in report.nodes)


def test_a_push_is_durable_everywhere_when_it_returns(three: Three, model: Path) -> None:
    events: list[AnyEvent] = []
    report = three[0].push(model, events.append, name="everywhere")
    assert (report.pending, report.failed, report.already) == ([], [], False)
    assert {line.name: line.state for line in report.nodes} == {"grace": "durable", "edith": "durable"}
    assert all(line.bytes_present == line.bytes_total == report.bytes for line in report.nodes)
    assert all(node.has("everywhere@1") for node in three)
    kinds = [type(event) for event in events]
    assert kinds.index(Started) < kinds.index(Ingest) < kinds.index(Published) < kinds.index(Nodes)
    assert all(set(node.line("everywhere@1").on) == {"ada", "grace", "edith"} for node in three)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]


def test_what_arrives_is_what_was_pushed(three: Three, model: Path) -> None:
    (model / "sub" / "deeper").mkdir(parents=True)
    (model / "sub" / "deeper" / "names").write_text("inside")
    (model / "empty-file").touch()
    (model / "empty-folder").mkdir()
    os.symlink("sub/deeper", model / "link")
    (model / "tool").write_text("#!/bin/sh\n")
    (model / "tool").chmod(0o755)
    three[0].push(model, name="shape")
    with three[2].client() as client:
        directory = Path(client.path("shape@1").directory)
    for path in sorted(model.rglob("*")):
        there = directory / path.relative_to(model)
        assert there.is_symlink() == path.is_symlink()
        assert there.is_dir() == path.is_dir()
        if path.is_file():
            assert there.read_bytes() == path.read_bytes()
            assert not there.stat().st_mode & 0o222
    assert os.readlink(directory / "link") == "sub/deeper"
    assert (directory / "tool").stat().st_mode & 0o111


def test_to_one_node_only(three: Three, model: Path) -> None:
    ada, grace, edith = three
    report = ada.push(model, name="only-grace", to=["grace"])
    assert [line.name for line in report.nodes] == ["grace"]
    assert grace.has("only-grace@1")
    ada.push(random_model(model.parent / "later", 5, 1000), name="after-it")  # edith has had its time
    line = edith.line("only-grace@1")
    assert line is not None
    assert line.here == "no"
    with edith.client() as client:
        pulled = client.pull(PullParams("only-grace"))
        assert pulled.failed == []
    assert edith.has("only-grace@1")


def test_to_a_node_that_is_not_there(three: Three, model: Path) -> None:
    with pytest.raises(UsageError, match="no node is called 'margaret'; the nodes are: ada, edith, grace"):
        three[0].push(model, name="nowhere", to=["margaret"])


def test_the_same_content_again_moves_nothing(three: Three, model: Path) -> None:
    ada, grace, _ = three
    ada.push(model, name="twice")
    for node in (ada, grace):
        events: list[AnyEvent] = []
        report = node.push(model, events.append, name="twice")
        assert report.already
        assert sum(line.bytes_moved for line in report.nodes) == 0
        assert [event.ref for event in events if isinstance(event, Published)] == ["twice@1"]
    assert ada.line("twice@2") is None


def test_other_content_is_the_next_rev(three: Three, model: Path) -> None:
    ada, grace, edith = three
    ada.push(model, name="Revs")
    (model / "config.json").write_text('{"changed": true}')
    grace.push(model, name="revs")
    assert all(node.has("Revs@2") for node in three)
    with edith.client() as client:
        assert [line.ref for line in client.ref_list("revs").refs] == ["Revs@2"]
        assert [line.ref for line in client.ref_list("revs", all_revs=True).refs] == ["Revs@2", "Revs@1"]


def test_shared_blocks_do_not_move_again(three: Three, model: Path) -> None:
    size = 9 * MIB + 17
    assert moved(three[0], model, "first-of-two") >= size
    data = bytearray((model / "part-0.weights").read_bytes())
    data[5 * MIB : 5 * MIB + 100] = Random(1).randbytes(100)  # in the second of three blocks
    other = random_model(model.parent / "other", 77)
    (other / "part-0.weights").write_bytes(data)
    (other / "again.weights").write_bytes(data)
    assert 4 * MIB <= moved(three[0], other, "second-of-two") < 4 * MIB + 2000
    for node in three:
        with node.client() as client:
            directory = Path(client.path("second-of-two").directory)
        assert (directory / "part-0.weights").read_bytes() == (directory / "again.weights").read_bytes() == data


def test_a_dry_run_leaves_nothing(three: Three, model: Path) -> None:
    ada = three[0]
    with ada.client() as client:
        before = client.du()
    report = ada.push(model, name="dry", dry_run=True)
    assert report.dry_run
    assert report.files == 3
    with ada.client() as client:
        after = client.du()
        assert client.processes().processes == []
    assert (before.logical_bytes, before.disk_bytes) == (after.logical_bytes, after.disk_bytes)
    assert ada.line("dry@1") is None


def test_include_and_exclude(three: Three, model: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("x")
    (model / "notes.txt").write_text("x")
    events: list[AnyEvent] = []
    three[0].push(model, events.append, name="chosen", include=["*.weights", "*.txt"], exclude=["part-1*"])
    assert [event.text for event in events if isinstance(event, Noted)] == [
        "left out: .git, config.json, part-1.weights"
    ]
    with three[1].client() as client:
        names = {path.name for path in Path(client.path("chosen").directory).iterdir()}
    assert names - {".tbshare-tree"} == {"part-0.weights", "notes.txt"}


def test_a_hugging_face_cache(three: Three, tmp_path: Path) -> None:
    root = tmp_path / "hub" / "models--lab--Tiny-Model"
    revision = "0123456789abcdef0123456789abcdef01234567"
    random_model(root / "blobs", 3, 100_000)
    snapshot = root / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for name in ("part-0.weights", "config.json"):
        os.symlink(f"../../blobs/{name}", snapshot / name)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(revision)
    options = {"hf_cache": "lab/Tiny-Model", "hf_cache_directory": str(tmp_path / "hub")}
    with three[0].client() as client:
        report = client.push(PushParams("", **options))  # type: ignore[arg-type]
    assert report.ref == "lab/Tiny-Model@1"
    with three[1].client() as client:
        line = client.ref_list("lab/").refs[0]
        directory = Path(client.path("lab/Tiny-Model@0123456").directory)
    assert line.labels == [revision]
    assert (directory / "part-0.weights").read_bytes() == (root / "blobs" / "part-0.weights").read_bytes()
    with three[0].client() as client, pytest.raises(InputRefused, match="not in the Hugging Face cache"):
        client.push(PushParams("", hf_cache="lab/Other", hf_cache_directory=str(tmp_path / "hub")))
    with three[0].client() as client, pytest.raises(InputRefused, match="Hugging Face cache"):
        client.push(PushParams("", move=True, name="moved-hub", **options))  # type: ignore[arg-type]
    assert (snapshot / "part-0.weights").read_bytes()


def test_a_node_that_takes_nothing_unasked(make_node: Callable[..., Node], tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace", '[store]\naccept = "on-demand"\n')
    with running(ada, grace):
        report = ada.push(random_model(tmp_path / "m", 11, 200_000), name="asked")
        assert report.nodes == []
        assert report.pending == []
        until("grace knows the ref", lambda: grace.line("asked@1") is not None)
        with grace.client() as client:
            assert client.ref_list().refs[0].here == "no"
            assert client.pull(PullParams("asked")).failed == []
            line = client.ref_list().refs[0]
            assert (line.here, line.pinned) == ("whole", True)
        report = ada.push(random_model(tmp_path / "n", 12, 1000), name="told", to=["grace"])
        assert [line.state for line in report.nodes] == ["durable"]


# ---- what bad input gets -----------------------------------------------------------------------------------


def refused(node: Node, path: Path, *parts: str) -> None:
    """Check that a push of this path is refused with one sentence that has these parts, and leaves nothing."""
    with pytest.raises(InputRefused) as caught:
        node.push(path, name="refused")
    sentence = str(caught.value)
    assert all(part in sentence for part in parts), sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert caught.value.exit_status == ExitStatus.FAILED
    assert node.line("refused@1") is None
    assert node.status().processes == 0


def test_paths_that_cannot_be_pushed(three: Three, tmp_path: Path) -> None:
    ada = three[0]
    refused(ada, tmp_path / "absent", "absent", "no such file")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(ada, empty, "holds no file")
    pipes = random_model(tmp_path / "pipes", 1, 10)
    os.mkfifo(pipes / "pipe")
    refused(ada, pipes, "pipe", "named pipe")
    refused(ada, pipes / "pipe", "neither a file nor a directory")
    leaving = random_model(tmp_path / "leaving", 1, 10)
    os.symlink("/etc/passwd", leaving / "out")
    refused(ada, leaving, "out", "outside of what is pushed")
    broken = random_model(tmp_path / "broken", 1, 10)
    os.symlink("nothing", broken / "dangling")
    refused(ada, broken, "dangling", "leads nowhere")
    loop = random_model(tmp_path / "loop", 1, 10)
    os.symlink("two", loop / "one")
    os.symlink("one", loop / "two")
    refused(ada, loop, "one")


def test_names_that_no_other_machine_could_show(three: Three, tmp_path: Path) -> None:
    for number, name in enumerate((b"line\nbreak", b"not-\xff-utf8", b"bell\x07")):
        directory = random_model(tmp_path / str(number), 1, 10)
        (directory / os.fsdecode(name)).write_text("x")
        refused(three[0], directory, "name")


def test_lying_headers_are_pushed_as_plain_bytes(three: Three, tmp_path: Path) -> None:
    directory = random_model(tmp_path / "lying", 1)
    (directory / "cut.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    (directory / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 16)
    events: list[AnyEvent] = []
    report = three[0].push(directory, events.append, name="lying")
    warnings = [event.text for event in events if isinstance(event, Warned)]
    assert len(warnings) == 2
    assert all("pushed as plain bytes" in text for text in warnings)
    assert {line.state for line in report.nodes} == {"durable"}


def test_names_of_refs(three: Three, model: Path) -> None:
    ada = three[0]
    ada.push(model, name="Llama-3.3")
    with ada.client() as client:
        with pytest.raises(RefUnknown, match=r"Llama-3\.3") as caught:
            client.path("llama-33")
        assert caught.value.cure
        with pytest.raises(RefUnknown):
            client.path("llama-3.3@7")
        with pytest.raises(UsageError):
            client.path("no//name")
    with pytest.raises(UsageError, match="next rev itself"):
        ada.push(model, name="llama-3.3@5")
    with pytest.raises(UsageError, match="no volume 'films'"):
        ada.push(model, name="films:x")
