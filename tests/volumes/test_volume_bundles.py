"""Bundles: directories that are one file, whose versions are trees."""

import pytest

from tbshare.content.block import HASH_BYTES
from tbshare.errors import (
    CrossesVolumes,
    DirectoryNotEmpty,
    MoveImpossible,
    PathExists,
    PathIsDirectory,
    PathMissing,
    PathNotDirectory,
    XattrsTooLarge,
)
from tbshare.volumes.bundle import FINDER_INFO
from tbshare.volumes.item import Attributes, Large
from tests.volumes.cluster import Cluster, Node, content, parts, texts

PACKAGE = b"\0" * 8 + b"\x20" + b"\0" * 23


def film(node: Node) -> None:
    node.volume.mkdir(parts("Film.fcpbundle"))
    node.volume.mkdir(parts("Film.fcpbundle/day/one"), parents=True)
    node.save("Film.fcpbundle/project", "cut")
    node.save("Film.fcpbundle/day/one/take", "t1")


FILM = {
    "Film.fcpbundle/": "", "Film.fcpbundle/day/": "", "Film.fcpbundle/day/one/": "",
    "Film.fcpbundle/day/one/take": "t1", "Film.fcpbundle/project": "cut",
}  # fmt: skip


def test_a_bundle_is_one_file_to_the_log_and_a_directory_to_users(anna: Node) -> None:
    film(anna)
    assert anna.all() == FILM
    item = anna.item("Film.fcpbundle")
    assert (item.kind, item.size, item.is_directory) == ("bundle", 5, True)
    inside = anna.item("Film.fcpbundle/day/one/take")
    assert (inside.kind, inside.inside, inside.file, inside.version) == (
        "file",
        True,
        item.file,
        item.version,
    )
    assert len({anna.item(path).id for path in ("Film.fcpbundle", *[p.rstrip("/") for p in FILM])}) == len(FILM)
    assert anna.volume.totals().files == 1
    anna.again()
    assert anna.all() == FILM


def test_operations_inside(anna: Node) -> None:
    film(anna)
    volume = anna.volume
    for path, error in (
        ("Film.fcpbundle/project/x", PathNotDirectory),
        ("Film.fcpbundle/missing/x", PathMissing),
        ("Film.fcpbundle/day", PathIsDirectory),
    ):
        with pytest.raises(error):
            anna.save(path, "x")
    with pytest.raises(PathExists):
        volume.mkdir(parts("Film.fcpbundle/DAY"))
    volume.rename(parts("Film.fcpbundle/project"), parts("Film.fcpbundle/day/Project"))
    volume.rename(parts("Film.fcpbundle/day/one"), parts("Film.fcpbundle/two"))
    volume.symlink(parts("Film.fcpbundle/link"), b"two/take")
    volume.copy(parts("Film.fcpbundle/two"), parts("Film.fcpbundle/three"))
    volume.describe(parts("Film.fcpbundle/two/take"), Attributes(mode=0o600, mtime_ns=9, xattrs={b"t": b"v"}))
    item = anna.item("Film.fcpbundle/two/take")
    assert (item.mode, item.mtime_ns, item.xattrs) == (0o600, 9, {b"t": b"v"})
    anna.save("film.FCPBUNDLE/Two/take", "t2")
    assert anna.item("Film.fcpbundle/two/take").mode == 0o600
    assert anna.all() == {
        "Film.fcpbundle/": "", "Film.fcpbundle/day/": "", "Film.fcpbundle/day/Project": "cut",
        "Film.fcpbundle/link": "two/take", "Film.fcpbundle/three/": "", "Film.fcpbundle/three/take": "t1",
        "Film.fcpbundle/two/": "", "Film.fcpbundle/two/take": "t2",
    }  # fmt: skip
    with pytest.raises(MoveImpossible):
        volume.rename(parts("Film.fcpbundle/two"), parts("Film.fcpbundle/two/x"))
    with pytest.raises(MoveImpossible):
        volume.rename(parts("Film.fcpbundle"), parts("Film.fcpbundle/two/x"))
    with pytest.raises(DirectoryNotEmpty):
        volume.rmdir(parts("Film.fcpbundle/two"))
    with pytest.raises(DirectoryNotEmpty):
        volume.rmdir(parts("Film.fcpbundle"))
    volume.rename(parts("Film.fcpbundle/two"), parts("Film.fcpbundle/day"), exchange=True)
    assert anna.names("Film.fcpbundle/day") == ["take"]
    volume.remove(parts("Film.fcpbundle/link"))
    volume.remove_tree(parts("Film.fcpbundle/day"))
    assert anna.names("Film.fcpbundle") == ["three", "two"]
    for path in ("Film.fcpbundle/two/Project", "Film.fcpbundle/three/take"):
        volume.remove(parts(path))
    volume.rmdir(parts("Film.fcpbundle/two"))
    volume.rmdir(parts("Film.fcpbundle/three"))
    volume.rmdir(parts("Film.fcpbundle"))
    assert anna.all() == {}


def test_only_the_directories_touched_are_written_again(anna: Node) -> None:
    film(anna)
    for number in range(20):
        anna.volume.mkdir(parts(f"Film.fcpbundle/wide/{number}"), parents=True)
    puts = anna.cluster.trees.puts
    anna.save("Film.fcpbundle/day/one/take", "t2")
    assert anna.cluster.trees.puts == puts + 3


def test_across_the_border_of_a_bundle(anna: Node) -> None:
    film(anna)
    volume = anna.volume
    anna.save("clip", "c", attributes=Attributes(mode=0o640))
    volume.mkdir(parts("dir/sub"), parents=True)
    anna.save("dir/sub/x", "x")
    volume.rename(parts("clip"), parts("Film.fcpbundle/clip"))
    volume.rename(parts("dir"), parts("Film.fcpbundle/dir"))
    volume.rename(parts("Film.fcpbundle/day"), parts("day"))
    assert anna.item("Film.fcpbundle/clip").mode == 0o640
    assert anna.all() == {
        "Film.fcpbundle/": "", "Film.fcpbundle/clip": "c", "Film.fcpbundle/dir/": "",
        "Film.fcpbundle/dir/sub/": "", "Film.fcpbundle/dir/sub/x": "x", "Film.fcpbundle/project": "cut",
        "day/": "", "day/one/": "", "day/one/take": "t1",
    }  # fmt: skip
    assert anna.item("day").kind == "directory"
    volume.copy(parts("Film.fcpbundle/clip"), parts("clip2"))
    volume.rename(parts("Film.fcpbundle"), parts("day/Other.drp"))
    volume.copy(parts("day/Other.drp"), parts("Copy.drp"))
    assert anna.reads("Copy.drp/dir/sub/x") == "x"
    volume.mkdir(parts("Big.drp"))
    volume.rename(parts("Copy.drp"), parts("Big.drp/Inner.drp"))
    assert anna.reads("Big.drp/Inner.drp/clip") == "c"
    volume.rename(parts("Big.drp/Inner.drp"), parts("Out.drp"))
    assert anna.item("Out.drp").kind == "bundle"
    for source, target in (("clip2", "Big.drp/hard"), ("Out.drp/clip", "hard")):
        with pytest.raises(CrossesVolumes):
            volume.link(parts(source), parts(target))


def test_a_directory_renamed_to_a_bundles_name_becomes_one(anna: Node) -> None:
    anna.volume.mkdir(parts("Film/sub"), parents=True)
    anna.save("Film/sub/x", "x", attributes=Attributes(mode=0o600))
    anna.save("Film/y", "y")
    last = anna.log.last_arrival
    anna.volume.rename(parts("Film"), parts("Film.logicx"))
    assert anna.log.last_arrival == last + 1
    assert anna.item("Film.logicx").kind == "bundle"
    assert anna.item("Film.logicx/sub/x").mode == 0o600
    assert anna.all() == {
        "Film.logicx/": "",
        "Film.logicx/sub/": "",
        "Film.logicx/sub/x": "x",
        "Film.logicx/y": "y",
    }


def test_a_directory_that_gets_the_package_bit_becomes_a_bundle(anna: Node) -> None:
    anna.volume.mkdir(parts("Film/sub"), parents=True)
    anna.save("Film/sub/x", "x")
    anna.volume.describe(parts("Film"), Attributes(xattrs={FINDER_INFO: b"\0" * 32}))
    assert anna.item("Film").kind == "directory"
    item = anna.volume.describe(parts("Film"), Attributes(xattrs={FINDER_INFO: PACKAGE}))
    assert (item.kind, item.xattrs) == ("bundle", {FINDER_INFO: PACKAGE})
    assert anna.all() == {"Film/": "", "Film/sub/": "", "Film/sub/x": "x"}


def test_a_package_saved_safely_is_a_new_version_of_the_bundle(anna: Node) -> None:
    """As NSDocument does: the new package is written beside, then both change places, then the old one goes."""
    film(anna)
    file = anna.item("Film.fcpbundle").file
    anna.volume.mkdir(parts("Film.fcpbundle.sb-1/day"), parents=True)
    anna.save("Film.fcpbundle.sb-1/project", "recut")
    anna.volume.rename(parts("Film.fcpbundle.sb-1"), parts("Film.fcpbundle"), exchange=True)
    assert anna.item("Film.fcpbundle").file == file
    assert anna.reads("Film.fcpbundle.sb-1/day/one/take") == "t1"
    anna.volume.remove_tree(parts("Film.fcpbundle.sb-1"))
    assert anna.all() == {"Film.fcpbundle/": "", "Film.fcpbundle/day/": "", "Film.fcpbundle/project": "recut"}
    assert texts(anna.volume.history(parts("Film.fcpbundle/project"))) == ["recut", "cut"]


def test_a_bundle_forks_as_a_whole_and_each_side_goes_on(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    film(anna)
    pair.settle()
    anna.wait()
    anna.save("Film.fcpbundle/project", "annas")
    bert.save("Film.fcpbundle/day/one/take", "berts")
    shown = pair.agree()
    (other,) = [name for name in anna.names() if name != "Film.fcpbundle"]
    assert other.startswith("Film (from ")
    assert other.endswith(").fcpbundle")
    sides = {(shown[f"{name}/project"], shown[f"{name}/day/one/take"]): name for name in ("Film.fcpbundle", other)}
    assert set(sides) == {("annas", "t1"), ("cut", "berts")}
    for turn in range(2):
        for name in sides.values():
            anna.save(f"{name}/project", f"{name[-14:]} {turn}")
        pair.settle()
    shown = pair.agree()
    assert anna.names() == sorted(["Film.fcpbundle", other])
    for name in sides.values():
        assert shown[f"{name}/project"] == f"{name[-14:]} 1"
    (conflict,) = bert.volume.conflicts()
    assert [item.kind for item in conflict.items] == ["bundle", "bundle"]
    bert.volume.remove_tree(parts(other))
    assert other + "/" not in pair.agree()


def test_attributes_inside_are_few(anna: Node) -> None:
    film(anna)
    path = parts("Film.fcpbundle/project")
    with pytest.raises(XattrsTooLarge):
        anna.volume.describe(path, Attributes(xattrs={b"x": b"1" * 5000}))
    item = anna.volume.describe(path, Attributes(xattrs={b"x": Large(b"o" * HASH_BYTES, 5000)}))
    assert item.large_xattrs == {b"x": Large(b"o" * HASH_BYTES, 5000)}
    anna.volume.rename(path, parts("out"))
    assert anna.item("out").large_xattrs == {b"x": Large(b"o" * HASH_BYTES, 5000)}


def test_an_editor_inside_a_bundle_that_saw_an_older_version_forks_it(anna: Node) -> None:
    film(anna)
    base = anna.item("Film.fcpbundle").version
    anna.save("Film.fcpbundle/project", "two")
    anna.volume.save(parts("Film.fcpbundle/project"), content("from cut"), base=[base])
    assert sorted(item.size for item in anna.volume.list(())) == [5, 10]
    assert len(anna.volume.conflicts()) == 1


def test_a_copy_does_not_lie_over_a_plain_directory(anna: Node) -> None:
    film(anna)
    anna.volume.mkdir(parts("plain"))
    with pytest.raises(PathExists):
        anna.volume.copy(parts("Film.fcpbundle"), parts("plain"), replace=True)
    assert anna.names() == ["Film.fcpbundle", "plain"]


def test_an_exchange_across_the_border_leaves_other_links_alone(anna: Node) -> None:
    film(anna)
    anna.save("a", "linked")
    anna.volume.link(parts("a"), parts("b"))
    anna.volume.rename(parts("Film.fcpbundle/project"), parts("a"), exchange=True)
    assert (anna.reads("a"), anna.reads("b")) == ("cut", "linked")
    assert anna.reads("Film.fcpbundle/project") == "linked"
