"""What one node does with a volume, alone."""

import threading
from collections.abc import Callable

import pytest

from tbshare.content.block import HASH_BYTES
from tbshare.content.tree import DEPTH_MAX
from tbshare.errors import (
    DirectoryNotEmpty,
    MoveImpossible,
    NameTooLong,
    PathExists,
    PathInvalid,
    PathIsDirectory,
    PathMissing,
    PathNotDirectory,
    QuotaExceeded,
    UsageError,
    VolumeReadOnly,
    XattrsTooLarge,
)
from tbshare.volumes.entry import RoleSet, UnknownOp, VolumeCreate, VolumeSet
from tbshare.volumes.item import Attributes, Change, Large, Put
from tests.volumes.cluster import START_NS, Cluster, Node, content, parts, texts


def test_a_file_is_read_at_once_and_after_a_restart(anna: Node) -> None:
    anna.volume.mkdir(parts("shots/day 1"), parents=True)
    version = anna.save("shots/day 1/A001.mov", "take one")
    for _ in range(2):
        item = anna.item("shots/day 1/A001.mov")
        assert (item.kind, item.version, item.size, item.mtime_ns) == ("file", version, 8, START_NS)
        assert item.author == anna.identity.node
        assert anna.names("shots") == ["day 1"]
        assert anna.volume.totals().files == 1
        assert anna.volume.totals().size_bytes == 8
        anna.again()


def test_paths_that_no_volume_holds_are_refused(anna: Node) -> None:
    volume = anna.volume
    for bad in ((b"..",), (b".",), (b"a", b"..", b"b"), (b"",), (b"a/b",), (b"a\0b",)):
        with pytest.raises(PathInvalid):
            volume.save(bad, content("x"))
    with pytest.raises(NameTooLong):
        volume.save((b"a" * 256,), content("x"))
    with pytest.raises(NameTooLong):
        volume.mkdir((b"a",) * 129, parents=True)
    volume.mkdir((b"a",) * 127, parents=True)
    volume.save((b"b" * 255,), content("x"))
    assert volume.lookup((b"a",) * 127).is_directory
    anna.save("file", "x")
    for path in ("file/below", "missing/below"):
        with pytest.raises((PathNotDirectory, PathMissing)):
            anna.save(path, "x")
    with pytest.raises(PathMissing):
        anna.item("missing")
    assert volume.find(parts("missing/below")) is None


def test_create_mkdir_symlink_and_link_do_not_overwrite(anna: Node) -> None:
    volume = anna.volume
    anna.save("there", "x")
    for call in (
        lambda: volume.create(parts("there"), content("y")),
        lambda: volume.mkdir(parts("there")),
        lambda: volume.mkdir(parts("there"), parents=True),
        lambda: volume.symlink(parts("there"), b"elsewhere"),
        lambda: volume.link(parts("there"), parts("there")),
        lambda: volume.copy(parts("there"), parts("there")),
    ):
        with pytest.raises(PathExists):
            call()
    assert anna.all() == {"there": "x"}
    volume.symlink(parts("link"), b"../elsewhere")
    item = anna.item("link")
    assert (item.kind, item.content, item.size) == ("link", b"../elsewhere", 12)


def test_hard_links_are_one_file(anna: Node) -> None:
    anna.save("a", "one")
    anna.volume.link(parts("a"), parts("b"))
    assert anna.item("a").id == anna.item("b").id
    assert anna.item("b").links == 2
    anna.save("b", "two")
    assert anna.all() == {"a": "two", "b": "two"}
    assert anna.volume.totals().files == 1
    anna.volume.rename(parts("a"), parts("b"))  # the same file: nothing happens
    assert anna.names() == ["a", "b"]
    anna.volume.remove(parts("a"))
    assert anna.all() == {"b": "two"}
    assert anna.item("b").links == 1
    assert anna.volume.paths(anna.item("b").file) == [(b"b",)]


def test_rename_over_a_hard_link_leaves_the_other_name_alone(anna: Node) -> None:
    anna.save("a", "linked")
    anna.volume.link(parts("a"), parts("b"))
    anna.save("c", "new")
    anna.volume.rename(parts("c"), parts("b"))
    assert anna.all() == {"a": "linked", "b": "new"}


def test_names_that_differ_in_case_alone_are_one(anna: Node) -> None:
    anna.save("Film.mov", "one")
    anna.save("film.MOV", "two")
    assert anna.all() == {"Film.mov": "two"}
    with pytest.raises(PathExists):
        anna.volume.mkdir(parts("FILM.mov"))
    anna.volume.rename(parts("film.mov"), parts("FILM.mov"))
    assert anna.all() == {"FILM.mov": "two"}
    anna.volume.mkdir(parts("Day"))
    anna.volume.rename(parts("day"), parts("DAY"))
    anna.save("day/x", "x")
    assert anna.all() == {"DAY/": "", "DAY/x": "x", "FILM.mov": "two"}


def test_a_case_sensitive_volume_tells_names_apart(make_cluster: Callable[..., Cluster]) -> None:
    anna = make_cluster("anna", options={"case": "sensitive"})["anna"]
    anna.save("a", "one")
    anna.save("A", "two")
    assert anna.all() == {"A": "two", "a": "one"}
    anna.volume.rename(parts("a"), parts("A"))
    assert anna.all() == {"A": "one"}


def test_rename_as_posix_has_it(anna: Node) -> None:
    volume = anna.volume
    anna.volume.mkdir(parts("d/e"), parents=True)
    anna.save("d/f", "f")
    anna.save("g", "g")
    for source, target, error in (
        ("d", "d/e/d", MoveImpossible),
        ("d", "d/d", MoveImpossible),
        ("g", "d", PathIsDirectory),
        ("d", "g", PathNotDirectory),
        ("missing", "x", PathMissing),
        ("", "x", PathInvalid),
    ):
        with pytest.raises(error):
            volume.rename(parts(source), parts(target))
    volume.mkdir(parts("full/x"), parents=True)
    with pytest.raises(DirectoryNotEmpty):
        volume.rename(parts("d"), parts("full"))
    with pytest.raises(PathExists):
        volume.rename(parts("g"), parts("d/f"), replace=False)
    volume.mkdir(parts("empty"))
    volume.rename(parts("d"), parts("empty"))
    volume.rename(parts("g"), parts("empty/e/g"))
    assert anna.all() == {
        "empty/": "",
        "empty/e/": "",
        "empty/e/g": "g",
        "empty/f": "f",
        "full/": "",
        "full/x/": "",
    }
    volume.rename(parts("empty"), parts("full"), exchange=True)
    assert anna.all() == {
        "full/": "",
        "full/e/": "",
        "full/e/g": "g",
        "full/f": "f",
        "empty/": "",
        "empty/x/": "",
    }


def test_exchange_of_a_file_and_a_directory(anna: Node) -> None:
    anna.volume.mkdir(parts("d"))
    anna.save("d/x", "x")
    anna.save("f", "f")
    directory, file = anna.item("d").id, anna.item("f").id
    anna.volume.rename(parts("d"), parts("f"), exchange=True)
    assert anna.all() == {"d": "f", "f/": "", "f/x": "x"}
    assert (anna.item("f").id, anna.item("d").id) == (directory, file)
    with pytest.raises(MoveImpossible):
        anna.volume.rename(parts("f"), parts("f/x"), exchange=True)


def test_rmdir_wants_an_empty_directory(anna: Node) -> None:
    anna.volume.mkdir(parts("d"))
    anna.save("d/f", "f")
    with pytest.raises(DirectoryNotEmpty):
        anna.volume.rmdir(parts("d"))
    with pytest.raises(PathNotDirectory):
        anna.volume.rmdir(parts("d/f"))
    with pytest.raises(PathIsDirectory):
        anna.volume.remove(parts("d"))
    with pytest.raises(PathInvalid):
        anna.volume.remove_tree(())
    anna.volume.remove(parts("d/f"))
    anna.volume.rmdir(parts("d"))
    assert anna.all() == {}


def test_remove_tree_of_more_than_an_entry_holds_ends_well(anna: Node) -> None:
    puts = [Put(parts(f"d/{n % 7}/{n}"), "file", content(str(n))) for n in range(9000)]
    saved = anna.volume.put_many(puts)
    assert len(saved) == 9000
    assert anna.volume.totals().files == 9000
    assert anna.volume.remove_tree(parts("d")) == 9000 + 7 + 1
    assert anna.all() == {}
    assert anna.volume.totals().files == 0


def test_attributes_are_kept_each_by_itself(anna: Node) -> None:
    anna.save("f", "x", attributes=Attributes(mode=0o600, birthtime_ns=5, xattrs={b"tag": b"red"}))
    anna.volume.describe(parts("f"), Attributes(uid=501, mtime_ns=7))
    item = anna.volume.describe(parts("f"), Attributes(xattrs={b"note": b"n", b"tag": None}))
    assert (item.mode, item.uid, item.gid, item.mtime_ns, item.birthtime_ns) == (0o600, 501, None, 7, 5)
    assert item.xattrs == {b"note": b"n"}
    anna.volume.mkdir(parts("d"), attributes=Attributes(mode=0o700))
    assert anna.volume.describe(parts("d"), Attributes(gid=20)).mode == 0o700
    assert anna.volume.describe((), Attributes(mode=0o711)).mode == 0o711


def test_large_attributes_are_objects_and_too_many_are_refused(anna: Node) -> None:
    anna.save("f", "x")
    fork = Large(b"o" * HASH_BYTES, 10**9)
    anna.volume.describe(parts("f"), Attributes(xattrs={b"com.apple.ResourceFork": b"small"}))
    item = anna.volume.describe(parts("f"), Attributes(xattrs={b"com.apple.ResourceFork": fork}))
    assert (item.xattrs, item.large_xattrs) == ({}, {b"com.apple.ResourceFork": fork})
    item = anna.volume.describe(parts("f"), Attributes(xattrs={b"com.apple.ResourceFork": b"small"}))
    assert (item.xattrs, item.large_xattrs) == ({b"com.apple.ResourceFork": b"small"}, {})
    item = anna.volume.describe(parts("f"), Attributes(xattrs={b"com.apple.ResourceFork": None}))
    assert (item.xattrs, item.large_xattrs) == ({}, {})
    anna.volume.describe(parts("f"), Attributes(xattrs={b"a": b"1" * 40_000}))
    with pytest.raises(XattrsTooLarge):
        anna.volume.describe(parts("f"), Attributes(xattrs={b"b": b"2" * 40_000}))
    assert set(anna.item("f").xattrs) == {b"a"}


def test_nothing_is_moved_deeper_than_a_path_can_lead(anna: Node) -> None:
    volume, last = anna.volume, (b"d",) * (DEPTH_MAX - 2)
    volume.mkdir((*last, b"e"), parents=True)
    volume.save((*last, b"e", b"file"), content("x"))  # as deep as it goes
    for path in ("x", "y", "z/z"):
        volume.mkdir(parts(path), parents=True)
    with pytest.raises(NameTooLong):
        volume.rename((b"d",), (b"x", b"d"))
    volume.remove((*last, b"e", b"file"))
    volume.rename((b"d",), (b"x", b"d"))
    assert volume.list((b"x", *last))[0].name == b"e"
    with pytest.raises(NameTooLong):
        volume.rename((b"x",), (b"y", b"x"))
    with pytest.raises(NameTooLong):
        volume.rename((b"x",), (b"z", b"z"), exchange=True)
    volume.rename((b"x",), (b"y",))


def test_copy_is_a_manifest_whatever_the_size(anna: Node) -> None:
    anna.volume.save(parts("a"), content("a", size=10**12), attributes=Attributes(mode=0o600))
    anna.volume.copy(parts("a"), parts("b"))
    one, other = anna.item("a"), anna.item("b")
    assert (other.content, other.size, other.mode) == (one.content, one.size, 0o600)
    assert other.file != one.file
    anna.save("b", "changed")
    assert anna.reads("a") == "a"
    anna.volume.mkdir(parts("d"))
    with pytest.raises(PathIsDirectory):
        anna.volume.copy(parts("d"), parts("e"))
    with pytest.raises(PathIsDirectory):
        anna.volume.copy(parts("a"), parts("d"), replace=True)
    anna.volume.copy(parts("a"), parts("b"), replace=True)
    assert texts(anna.volume.history(parts("b"))) == ["a", "changed", "a"]


def test_a_full_quota_writes_nothing(make_cluster: Callable[..., Cluster]) -> None:
    anna = make_cluster("anna", options={"quota_bytes": 100})["anna"]
    volume = anna.volume
    volume.save(parts("a"), content("a", size=60))
    last = anna.log.last_arrival
    for call in (
        lambda: volume.save(parts("b"), content("b", size=41)),
        lambda: volume.copy(parts("a"), parts("b")),
        lambda: volume.put_many([Put((bytes([70 + n]),), "file", content("c", size=10)) for n in range(5)]),
        lambda: volume.save(parts("a"), content("a2", size=101)),
    ):
        with pytest.raises(QuotaExceeded):
            call()
    assert anna.log.last_arrival == last
    volume.save(parts("a"), content("a2", size=100))
    volume.rename(parts("a"), parts("c"))
    volume.save(parts("c"), content("a3", size=20))
    volume.save(parts("b"), content("b", size=80))
    assert (volume.totals().size_bytes, volume.totals().quota_bytes) == (100, 100)
    volume.remove(parts("c"))
    volume.save(parts("d"), content("d", size=20))


def test_who_may_not_write_is_told_why(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    anna.save("a", "x")
    anna.log.append([RoleSet(volume=anna.volume.id, node=bert.identity.node, role="read")])
    pair.settle()
    with pytest.raises(VolumeReadOnly, match="role"):
        bert.save("b", "x")
    assert bert.all() == {"a": "x"}
    with pytest.raises(VolumeReadOnly):
        bert.volume.snapshot_create("monday")
    assert anna.volume.why_read_only == ""


def test_an_owner_volume_has_one_writer(make_cluster: Callable[..., Cluster]) -> None:
    pair = make_cluster("anna", "bert", mode="owner")
    pair["anna"].save("a", "x")
    pair.settle()
    with pytest.raises(VolumeReadOnly, match="owner"):
        pair["bert"].save("a", "y")
    assert pair.agree() == {"a": "x"}


def test_an_op_of_a_newer_version_makes_the_volume_read_only(anna: Node) -> None:
    anna.save("a", "x")
    raw = b"\x82\xa4kind\xa7reflink\xa6volume\xa5films"
    anna.log.append([UnknownOp(raw=raw, kind="reflink", volume="films")])  # type: ignore[list-item]
    with pytest.raises(VolumeReadOnly, match="newer version"):
        anna.save("a", "y")
    assert anna.all() == {"a": "x"}


def test_volumes_come_and_go(anna: Node) -> None:
    assert anna.volumes is not None
    anna.log.append([VolumeCreate(name="sound", mode="media")])
    sound = anna.volumes.open("Sound")
    sound.save(parts("a"), content("a"))
    assert sorted(handle.name for handle in anna.volumes.handles()) == ["films", "sound"]
    anna.log.append([VolumeSet(volume=sound.id, options={"removed": True})])
    assert [handle.name for handle in anna.volumes.handles()] == ["films"]
    with pytest.raises(UsageError, match="films"):
        anna.volumes.open("sound")
    with pytest.raises(VolumeReadOnly):
        sound.save(parts("b"), content("b"))
    anna.log.append([VolumeSet(volume=sound.id, options={"removed": False})])
    assert [item.name for item in anna.volumes.open("sound").list(())] == [b"a"]
    with pytest.raises(UsageError, match="refs"):
        anna.volumes.open("models")


def test_changes_are_told_as_paths(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    told: list[Change] = []
    assert bert.volumes is not None
    bert.volumes.changes.append(lambda _, changes: told.extend(bert.volume.changed(changes)))

    def news() -> list[tuple[str, str]]:
        pair.settle()
        heard = [(b"/".join(one.path), one.what, b"/".join(one.before or ()), one.author) for one in told]
        told.clear()
        assert {author for _, _, _, author in heard} == {anna.identity.node}
        return [(path.decode(), f"{what} {was.decode()}".strip()) for path, what, was, _ in heard]

    volume = anna.volume
    volume.mkdir(parts("d"))
    anna.save("d/f", "x")
    assert news() == [("d", "placed"), ("d/f", "saved")]
    for path in ("d", "d/f"):
        volume.describe(parts(path), Attributes(mode=0o700))
        assert news() == [(path, "described")]
    volume.link(parts("d/f"), parts("g"))
    assert news() == [("g", "placed")]
    volume.remove(parts("g"))
    assert news() == [("g", "removed")]
    volume.rename(parts("d/f"), parts("f"))
    assert news() == [("f", "moved d/f")]
    volume.rename(parts("f"), parts("d/f"))
    assert news() == [("d/f", "moved f")]
    volume.rename(parts("d"), parts("e"))
    assert news() == [("e", "moved d")]
    anna.save("e/f", "y")
    assert news() == [("e/f", "saved")]
    volume.remove_tree(parts("e"))
    assert news() == [("e", "removed"), ("e/f", "removed")]
    assert not bert.volume.list(())


def test_callers_of_one_node_get_what_a_local_disk_gives(anna: Node) -> None:
    """Of many that create one name one succeeds; saves of one file do not fork; different names share commits."""
    made: list[int] = []
    refused: list[Exception] = []
    anna.save("log", "0")

    def work(number: int) -> None:
        for turn in range(20):
            try:
                made.append(anna.volume.create(parts(f"new {turn}"), content(str(number))).version)
            except PathExists as error:
                refused.append(error)
            anna.volume.save(parts("log"), content(f"{number} {turn}"))
            anna.volume.save(parts(f"own {number}"), content(str(turn)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (20, 140)
    assert anna.volume.conflicts() == []
    assert len(anna.names()) == 20 + 8 + 1
    assert len(anna.volume.history(parts("log"))) == 161


def test_put_many_is_one_entry_and_can_be_done_again(anna: Node) -> None:
    puts = [
        Put(parts("in"), "directory", attributes=Attributes(mode=0o700)),
        Put(parts("in/a"), "file", content("a"), Attributes(mode=0o600, xattrs={b"t": b"v"})),
        Put(parts("in/deep/er/b"), "file", content("b")),
        Put(parts("in/Film.fcpbundle"), "directory"),
        Put(parts("in/Film.fcpbundle/x/c"), "file", content("c"), Attributes(mode=0o640)),
    ]
    last = anna.log.last_arrival
    assert [item.path for item in anna.volume.put_many(puts)] == [parts("in/a"), parts("in/deep/er/b")]
    assert anna.log.last_arrival == last + 1
    everything = {
        "in/": "", "in/a": "a", "in/deep/": "", "in/deep/er/": "", "in/deep/er/b": "b",
        "in/Film.fcpbundle/": "", "in/Film.fcpbundle/x/": "", "in/Film.fcpbundle/x/c": "c",
    }  # fmt: skip
    assert anna.all() == everything
    assert (anna.item("in").mode, anna.item("in/a").mode) == (0o700, 0o600)
    assert anna.item("in/Film.fcpbundle").kind == "bundle"
    assert anna.item("in/Film.fcpbundle/x/c").mode == 0o640
    anna.volume.put_many([*puts, Put(parts("in/a2"), "file", content("a2"))])
    assert anna.all() == {**everything, "in/a2": "a2"}
    assert len(anna.volume.history(parts("in/a"))) == 1
    with pytest.raises(PathIsDirectory):
        anna.volume.put_many([Put(parts("in"), "file", content("x"))])
    with pytest.raises(PathNotDirectory):
        anna.volume.put_many([Put(parts("in/a/b"), "file", content("x"))])


def test_a_file_is_saved_by_its_id_even_without_a_name(anna: Node) -> None:
    anna.save("a", "one")
    file = anna.item("a").file
    anna.volume.rename(parts("a"), parts("b"))
    assert anna.volume.save(file, content("two")).path == parts("b")
    anna.volume.remove(parts("b"))
    anna.volume.save(file, content("three"))
    assert anna.all() == {}
    assert texts(anna.volume.history(parts("b"))) == ["three", "two", "one"]
    assert anna.volume.item(file).name == b""
    with pytest.raises(PathMissing):
        anna.volume.save(12345, content("x"))
