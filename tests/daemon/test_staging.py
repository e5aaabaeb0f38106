"""What a mount writes: staged, cut, synced, and recovered when the mount or the daemon is gone."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tbshare.errors import QuotaExceeded, StageMissing, TargetsPending
from tests.nodes import MIB, Node, running, until
from tests.staged import Writer, heads, left, put, versions, writer
from tests.store.weights_files import random_bytes
from tests.volume_nodes import create, names, read, stat, write

Make = Callable[..., Node]
DATA = random_bytes("written", 9 * MIB + 5)


def make_volume(node: Node, name: str, **options: object) -> int:
    return int(create(node, name, **options).volume.id, 16)


@pytest.fixture
def node(make_node: Make) -> Iterator[Node]:
    """One daemon."""
    ada = make_node("ada")
    with running(ada):
        yield ada


@pytest.fixture
def mount(node: Node) -> Iterator[Writer]:
    """A mount of volume `film`."""
    with writer(node, make_volume(node, "film")) as made:
        yield made


def test_a_new_file_has_no_name_until_it_is_cut_and_one_version_then(mount: Writer) -> None:
    node = mount.node
    staged = mount.stage("a.mov", mode=0o640)
    put(staged, DATA)
    assert names(node, "film:/") == []
    cut = mount.cut(staged, "a.mov", mtime_ns=1234567890, xattrs={b"k": b"v"}, last=True)
    assert cut.item is not None
    assert (cut.item.name, cut.item.size, cut.item.mode) == (b"a.mov", len(DATA), 0o640)
    assert (cut.item.mtime_ns, cut.item.xattrs) == (1234567890, {b"k": b"v"})
    assert read(node, "film:/a.mov") == DATA
    assert versions(node, "film:/a.mov") == 1
    assert left(node) == []
    with pytest.raises(StageMissing):
        mount.cut(staged, "a.mov", last=True)


def test_the_saves_of_one_open_are_versions_one_after_the_other(mount: Writer) -> None:
    node = mount.node
    staged = mount.stage("a")
    put(staged, DATA)
    first = mount.cut(staged, "a")
    put(staged, b"later", 5)
    second = mount.cut(staged, "a")
    assert mount.cut(staged, "a").item == second.item  # nothing was written
    again = mount.cut(staged, "a", last=True)
    assert again.item == second.item != first.item
    assert read(node, "film:/a") == DATA[:5] + b"later" + DATA[10:]
    assert (versions(node, "film:/a"), heads(node, "film:/a")) == (2, 1)


def test_a_file_that_is_there_is_written_to(mount: Writer) -> None:
    node = mount.node
    staged = mount.stage("a")
    put(staged, DATA)
    item = mount.cut(staged, "a", last=True).item
    staged = mount.again(item, "a", mtime_ns=77)
    assert Path(os.fsdecode(staged.path)).read_bytes() == DATA
    assert os.stat(staged.path).st_mtime_ns == 77
    put(staged, b"new")
    changed = None if staged.cloned else [(0, 3)]
    cut = mount.cut(staged, "a", changed=changed, last=True)
    assert cut.bytes_hashed == 4 * MIB
    assert read(node, "film:/a") == b"new" + DATA[3:]
    truncated = mount.again(cut.item, "a", truncate=True)
    assert os.stat(truncated.path).st_size == 0
    mount.cut(truncated, "a", last=True)
    assert read(node, "film:/a") == b""
    assert (versions(node, "film:/a"), heads(node, "film:/a")) == (3, 1)


def test_what_another_saved_meanwhile_stays_beside_it(mount: Writer, tmp_path: Path) -> None:
    node = mount.node
    write(node, "film:/a", b"before", tmp_path)
    item = mount.cut(mount.stage("b"), "b", last=True).item
    assert item is not None
    staged = mount.again(item, "b")
    write(node, "film:/b", b"theirs", tmp_path)
    put(staged, b"mine")
    mount.cut(staged, "b", last=True)
    shown = sorted(read(node, f"film:/{name}") for name in names(node, "film:/") if name.startswith("b"))
    assert shown == [b"mine", b"theirs"]


def test_a_name_that_was_taken_meanwhile_and_a_directory_that_is_gone(mount: Writer, tmp_path: Path) -> None:
    node = mount.node
    staged = mount.stage("a")
    put(staged, b"mine")
    write(node, "film:/a", b"theirs", tmp_path)
    mount.cut(staged, "a", last=True)
    assert sorted(read(node, f"film:/{name}") for name in names(node, "film:/")) == [b"mine", b"theirs"]
    deep = mount.stage("gone/deep/file")
    put(deep, b"deep")
    assert mount.cut(deep, "gone/deep/file", last=True).item is not None
    assert read(node, "film:/gone/deep/file") == b"deep"
    (tmp_path / "d").mkdir()
    blocked = mount.stage("gone")
    put(blocked, b"blocked")
    mount.cut(blocked, "gone", last=True)
    assert read(node, "film:/gone (recovered)") == b"blocked"


def test_two_files_of_one_bundle_written_at_once_are_in_one_bundle(mount: Writer, tmp_path: Path) -> None:
    node = mount.node
    with node.client() as client:
        from tests.volume_nodes import place

        client.file_mkdir(place("film:/p.fcpbundle"))
    write(node, "film:/p.fcpbundle/one", b"1", tmp_path)
    write(node, "film:/p.fcpbundle/two", b"2", tmp_path)
    one, two = mount.stage("p.fcpbundle/one"), mount.stage("p.fcpbundle/new")
    put(one, b"one")
    put(two, b"two")
    mount.cut(one, "p.fcpbundle/one", last=True)
    mount.cut(two, "p.fcpbundle/new", last=True)
    assert names(node, "film:/") == ["p.fcpbundle"]
    assert read(node, "film:/p.fcpbundle/one") == b"one"
    assert read(node, "film:/p.fcpbundle/new") == b"two"
    assert read(node, "film:/p.fcpbundle/two") == b"2"


def test_what_has_no_name_any_more_is_dropped(mount: Writer) -> None:
    staged = mount.stage("temporary")
    put(staged, b"x")
    mount.sync(staged, "")
    assert mount.cut(staged, "", last=True).item is None
    other = mount.stage("unwritten")
    mount.unstage(other)
    assert names(mount.node, "film:/") == []
    assert left(mount.node) == []


def test_a_quota_that_is_used_up_refuses_the_promise_and_loses_nothing(make_node: Make) -> None:
    node = make_node("ada")
    with running(node), writer(node, make_volume(node, "small", options={"quota": "1M"})) as mount:
        staged = mount.stage("a")
        put(staged, DATA)
        with pytest.raises(QuotaExceeded):
            mount.sync(staged, "a")
        with pytest.raises(QuotaExceeded):
            mount.cut(staged, "a", last=True)
        assert Path(os.fsdecode(staged.path)).read_bytes() == DATA
        put(staged, b"x")
        os.truncate(staged.path, 1000)
        mount.cut(staged, "a", last=True)
        assert read(node, "small:/a") == b"x" + DATA[1:1000]


def test_fsync_with_copies_waits_for_the_other_node(make_node: Make) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace), writer(ada, make_volume(ada, "film")) as mount:
        staged = mount.stage("a")
        put(staged, DATA)
        mount.sync(staged, "a", copies=2)
        assert stat(ada, "film:/a").copies == "everywhere"
        grace.kill()
        put(staged, b"more")
        with pytest.raises(TargetsPending):
            mount.sync(staged, "a", copies=2, seconds=0.5)
        assert read(ada, "film:/a") == b"more" + DATA[4:]


# recovery ------------------------------------------------------------------------------------------------------


def test_what_a_mount_wrote_before_it_died_becomes_a_version(mount: Writer) -> None:
    node = mount.node
    synced, unsynced, empty = mount.stage("synced"), mount.stage("unsynced"), mount.stage("empty")
    put(synced, DATA)
    mount.sync(synced, "d/renamed")
    put(unsynced, b"never synced")
    del empty
    mount.die()
    until("all is saved", lambda: left(node) == [])
    assert read(node, "film:/d/renamed") == DATA
    assert read(node, "film:/unsynced") == b"never synced"
    assert names(node, "film:/") == ["d", "unsynced"]


def test_a_dead_mounts_file_that_a_program_has_open_is_saved_again_when_it_is_closed(mount: Writer) -> None:
    node = mount.node
    staged = mount.stage("a")
    put(staged, b"promised")
    mount.sync(staged, "a")
    with open(staged.path, "r+b", buffering=0) as file:
        mount.die()
        until("it is saved", lambda: names(node, "film:/") == ["a"])
        assert read(node, "film:/a") == b"promised"
        file.write(b"PROMISED")
    until("it is saved again", lambda: left(node) == [])
    assert read(node, "film:/a") == b"PROMISED"
    assert heads(node, "film:/a") == 1


def test_the_daemon_dies_under_a_live_mount(mount: Writer) -> None:
    node = mount.node
    staged = mount.stage("a")
    put(staged, DATA)
    node.kill()
    node.start()
    put(staged, b"going on", 100)
    cut = mount.cut(staged, "a", last=True)
    assert cut.item is not None
    assert read(node, "film:/a") == DATA[:100] + b"going on" + DATA[108:]


@pytest.mark.parametrize("synced", [True, False])
def test_after_a_loss_of_power(mount: Writer, synced: bool) -> None:
    """As the power leaves it: another boot, and the mount gone with the old one."""
    node = mount.node
    staged = mount.stage("a")
    put(staged, b"bytes")
    if synced:
        mount.sync(staged, "a")
    node.kill()
    mount.die()
    (row,) = [path for path in left(node) if path.suffix == ".row"]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    row.write_text(row.read_text().replace(boot, "another boot"))
    node.start()
    until("it is looked after", lambda: left(node) == [])
    aside = [path.read_bytes() for path in (node.home / "quarantine").iterdir()]
    assert (names(node, "film:/"), aside) == ((["a"], []) if synced else ([], [b"bytes"]))


def test_kills_while_versions_are_cut(mount: Writer) -> None:
    """What was synced is a version, once, whenever the daemon dies."""
    import threading
    from random import Random

    from tbshare.errors import TbshareError

    node, random = mount.node, Random(4)
    for attempt in range(12):
        name = f"f{attempt}"
        staged = mount.stage(name)
        data = random.randbytes(5 * MIB)
        put(staged, data)
        mount.sync(staged, name)
        killer = threading.Timer(random.random() * 0.06, node.kill)
        killer.start()
        done = False
        try:
            mount.cut(staged, name, last=True)
            done = True
        except TbshareError:
            pass
        killer.join()
        node.start()
        if not done:
            with contextlib.suppress(StageMissing):  # it was done
                mount.cut(staged, name, last=True)
        assert read(node, f"film:/{name}") == data
        assert (versions(node, f"film:/{name}"), heads(node, f"film:/{name}")) == (1, 1)
    assert left(node) == []
