"""Versions, restore, snapshots, and what a node gives up."""

from collections.abc import Callable

import pytest

from tbshare.content.block import HASH_BYTES
from tbshare.errors import PathExists, PathIsDirectory, PathMissing, VolumeReadOnly
from tbshare.volumes.entry import VolumeSet
from tbshare.volumes.item import Attributes, Large
from tests.volumes.cluster import MINUTE_NS, START_NS, Cluster, Node, content, parts, texts

DAY_SECONDS = 86_400.0
DISK_BYTES = 1000


def test_every_save_stays_in_the_history(anna: Node) -> None:
    for text in ("one", "two", "three"):
        anna.save("a", text)
        anna.wait()
    lines = anna.volume.history(parts("a"))
    assert texts(lines) == ["three", "two", "one"]
    assert [line.head for line in lines] == [True, False, False]
    assert [line.time_ns - START_NS for line in lines] == [2 * MINUTE_NS, MINUTE_NS, 0]
    assert lines[0].parents == (lines[1].version,)
    assert lines[0].author == anna.identity.node
    anna.volume.rename(parts("a"), parts("b"))
    assert texts(anna.volume.history(parts("b"))) == ["three", "two", "one"]
    with pytest.raises(PathMissing):
        anna.volume.history(parts("a"))
    anna.volume.mkdir(parts("d"))
    with pytest.raises(PathIsDirectory):
        anna.volume.history(parts("d"))


def test_an_older_version_comes_back_as_the_newest(anna: Node) -> None:
    first = anna.save("a", "one")
    anna.save("a", "two")
    (saved,) = anna.volume.restore(parts("a"), version=first)
    assert saved.path == parts("a")
    assert texts(anna.volume.history(parts("a"))) == ["one", "two", "one"]
    with pytest.raises(PathMissing):
        anna.volume.restore(parts("a"), version=77)
    with pytest.raises(PathExists):
        anna.volume.restore(parts("a"))
    anna.volume.restore(parts("a"), version=first, target=parts("elsewhere/b"))
    assert anna.reads("elsewhere/b") == "one"


def test_a_deleted_file_comes_back_as_itself_and_its_directories_too(anna: Node) -> None:
    anna.volume.mkdir(parts("d/e"), parents=True)
    anna.save("d/e/a", "one")
    file, directory = anna.item("d/e/a").file, anna.item("d/e").id
    anna.volume.remove_tree(parts("d"))
    assert texts(anna.volume.history(parts("d/e/a"))) == ["one"]
    anna.volume.restore(parts("d/e/a"))
    assert anna.all() == {"d/": "", "d/e/": "", "d/e/a": "one"}
    assert (anna.item("d/e/a").file, anna.item("d/e").id) == (file, directory)


def test_a_path_shows_what_had_it_before(anna: Node) -> None:
    anna.save("a", "old")
    anna.volume.remove(parts("a"))
    anna.save("a", "new")
    old, new = anna.volume.history(parts("A"))[::-1]
    assert texts([new, old]) == ["new", "old"]
    anna.volume.restore(parts("a"), version=old.version)
    assert anna.reads("a") == "old"
    assert anna.item("a").file == new.file


def test_a_deleted_directory_comes_back_without_its_caches(anna: Node) -> None:
    anna.volume.mkdir(parts("d/e/f"), parents=True)
    for path in ("d/a", "d/e/b", "d/e/render.tmp", "d/e/f/c"):
        anna.save(path, path[-1])
    anna.volume.remove_tree(parts("d"))
    saved = anna.volume.restore(parts("d"))
    assert len(saved) == 3
    assert anna.all() == {"d/": "", "d/a": "a", "d/e/": "", "d/e/b": "b", "d/e/f/": "", "d/e/f/c": "c"}


def test_a_directory_as_it_was_at_a_moment(anna: Node) -> None:
    anna.volume.mkdir(parts("d/sub"), parents=True, attributes=Attributes(mode=0o711))
    anna.save("d/a", "a1")
    anna.save("d/sub/b", "b1")
    anna.volume.mkdir(parts("d/Film.drp"))
    anna.save("d/Film.drp/x", "x1")
    moment = anna.time_ns
    anna.wait()
    anna.save("d/a", "a2")
    anna.save("d/Film.drp/x", "x2")
    anna.save("d/since", "s")
    anna.volume.rename(parts("d/sub/b"), parts("moved"))
    anna.volume.remove_tree(parts("d/sub"))
    anna.volume.restore(parts("d"), before_ns=moment)
    assert anna.all() == {
        "d/": "", "d/Film.drp/": "", "d/Film.drp/x": "x1", "d/a": "a1", "d/since": "s", "d/sub/": "",
        "d/sub/b": "b1", "moved": "b1",
    }  # fmt: skip
    assert anna.item("d/sub").mode == 0o711
    assert texts(anna.volume.history(parts("d/a"))) == ["a1", "a2", "a1"]
    anna.volume.restore(parts("d/a"), before_ns=moment, target=parts("copy"))
    assert anna.reads("copy") == "a1"
    with pytest.raises(PathMissing):
        anna.volume.restore(parts("d/since"), before_ns=moment)


def test_history_inside_a_bundle(anna: Node) -> None:
    anna.volume.mkdir(parts("Film.drp"))
    anna.save("Film.drp/a", "a1")
    anna.save("Film.drp/b", "b1")
    anna.save("Film.drp/a", "a2")
    anna.volume.remove(parts("Film.drp/a"))
    lines = anna.volume.history(parts("Film.drp/a"))
    assert texts(lines) == ["a2", "a1"]
    anna.volume.restore(parts("Film.drp/a"), version=lines[1].version)
    assert anna.all() == {"Film.drp/": "", "Film.drp/a": "a1", "Film.drp/b": "b1"}


def test_a_snapshot_shows_the_volume_as_it_was(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    anna.save("a", "one")
    anna.volume.mkdir(parts("d"))
    anna.save("d/b", "b")
    snapshot = anna.volume.snapshot_create("monday")
    assert (snapshot.name, snapshot.author) == ("monday", anna.identity.node)
    anna.save("a", "two")
    anna.volume.remove_tree(parts("d"))
    pair.settle()
    for node in (anna, bert):
        assert [one.name for one in node.volume.snapshots()] == ["monday"]
        then = node.volume.as_of("Monday")
        assert [item.name for item in then.list(())] == [b"a", b"d"]
        assert then.lookup(parts("a")).content == content("one").content
        assert texts(then.history(parts("a"))) == ["one"]
        with pytest.raises(VolumeReadOnly, match="snapshot"):
            then.save(parts("a"), content("x"))
    with pytest.raises(PathExists):
        bert.volume.snapshot_create("MONDAY")
    bert.volume.snapshot_remove("monday")
    pair.settle()
    with pytest.raises(PathMissing, match="none"):
        anna.volume.as_of("monday")


def test_many_snapshots_are_not_all_kept_open(anna: Node) -> None:
    for number in range(7):
        anna.save("a", str(number))
        anna.volume.snapshot_create(f"s{number}")
    for number in (0, 3, 6, 0):
        for other in range(7):
            anna.volume.as_of(f"s{other}")
        assert anna.volume.as_of(f"s{number}").lookup(parts("a")).content == content(str(number)).content
    assert len(list((anna.cluster.home / "anna.namespace").glob("*@*.db"))) == 4
    anna.again()
    assert list((anna.cluster.home / "anna.namespace").glob("*@*")) == []


def test_what_is_too_old_is_given_up_and_said_so(anna: Node) -> None:
    anna.save("a", "one")
    anna.save("a", "two")
    anna.volume.snapshot_create("kept")
    anna.save("a", "three")
    anna.seconds += 10 * DAY_SECONDS
    assert anna.volume.expire(DISK_BYTES) == []
    anna.save("a", "four")
    anna.again()  # the time it was away does not count, what it had counted does
    anna.seconds += 25 * DAY_SECONDS
    (gone,) = anna.volume.expire(DISK_BYTES)
    lines = anna.volume.history(parts("a"))
    assert [(line.version, line.expired) for line in lines if line.expired] == [(gone[1], True)]
    assert texts(line for line in lines if not line.expired) == ["four", "three", "two"]
    with pytest.raises(PathMissing, match="older than the history"):
        anna.volume.restore(parts("a"), version=gone[1])
    anna.volume.snapshot_remove("kept")
    assert len(anna.volume.expire(DISK_BYTES)) == 1
    anna.seconds += 400 * DAY_SECONDS
    assert len(anna.volume.expire(DISK_BYTES)) == 1
    assert anna.reads("a") == "four"
    assert anna.volume.expire(DISK_BYTES) == []


def test_history_is_kept_within_its_bytes_and_not_for_caches(anna: Node) -> None:
    for number in range(6):
        anna.volume.save(parts("a"), content(f"a{number}", size=40))
        anna.volume.save(parts("x.tmp"), content(f"x{number}", size=1))
    gone = anna.volume.expire(DISK_BYTES)  # 10 % of it are 100 bytes: two versions
    assert len(gone) == 3 + 5
    kept = [line for line in anna.volume.history(parts("a")) if not line.expired]
    assert texts(kept) == ["a5", "a4", "a3"]
    assert texts(line for line in anna.volume.history(parts("x.tmp")) if not line.expired) == ["x5"]
    anna.log.append([VolumeSet(volume=anna.volume.id, options={"history_days": 0})])
    assert len(anna.volume.expire(DISK_BYTES)) == 2


def test_what_was_deleted_is_given_up_in_its_time(anna: Node) -> None:
    anna.save("a", "one")
    anna.seconds += 100 * DAY_SECONDS
    anna.volume.expire(DISK_BYTES)
    anna.volume.remove(parts("a"))
    anna.seconds += 29 * DAY_SECONDS
    assert anna.volume.expire(DISK_BYTES) == []
    anna.seconds += 2 * DAY_SECONDS
    assert len(anna.volume.expire(DISK_BYTES)) == 1


def test_what_was_saved_under_a_name_nobody_gave_is_in_the_history_of_that_name(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    for node in (anna, bert):
        node.volume.mkdir(parts("d"))
        node.save("d/cut.tar.gz", node.name)
    pair.settle()
    (clash,) = [item.name.decode() for item in anna.volume.list(()) if b" (from " in item.name]
    anna.save(f"{clash}/cut.tar.gz", "apart")
    pair.settle()
    anna.save(f"{clash}/cut.tar.gz", "hers")
    bert.save(f"{clash}/cut.tar.gz", "his")
    pair.settle()
    names = [item.name.decode() for item in anna.volume.list(parts(clash))]
    (fork,) = [name for name in names if " (from " in name]
    anna.save(f"{clash}/{fork}", "in the fork")
    for where in ("cut.tar.gz", fork):
        anna.volume.remove(parts(f"{clash}/{where}"))
    anna.volume.remove_tree(parts("d"))
    assert {"in the fork", "hers", "his"} <= set(texts(anna.volume.history(parts(f"{clash}/{fork}"))))
    with pytest.raises(PathMissing, match="other"):
        anna.volume.history(parts("other (from anna, 2026-11-23 14.05).txt"))


def test_an_attribute_that_is_an_object_stays_with_the_snapshot_that_shows_it(anna: Node) -> None:
    anna.save("a", "one")
    fork, later = (Large(bytes([letter]) * HASH_BYTES, 5000) for letter in b"fl")
    anna.volume.describe(parts("a"), Attributes(xattrs={b"fork": fork, b"other": later}))
    anna.volume.snapshot_create("kept")
    anna.volume.describe(parts("a"), Attributes(xattrs={b"other": None}))
    anna.volume.remove(parts("a"))
    anna.seconds += 100 * DAY_SECONDS
    assert anna.volume.expire(DISK_BYTES) == []
    anna.volume.snapshot_remove("kept")
    assert len(anna.volume.expire(DISK_BYTES)) == 3


def test_restore_of_a_file_whose_name_has_moved_on(make_cluster: Callable[..., Cluster]) -> None:
    anna = make_cluster("anna")["anna"]
    anna.save("a", "one")
    moment = anna.time_ns
    anna.wait()
    anna.volume.rename(parts("a"), parts("b"))
    anna.volume.restore(parts("a"), before_ns=moment)
    assert anna.all() == {"a": "one", "b": "one"}
