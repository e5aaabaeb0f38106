"""What other systems get wrong, one named test each. Mmap, a full disk in a write, failed fsyncs: the store's."""

import shutil
from collections.abc import Callable

import pytest

from tbshare.errors import CrossesVolumes, NameTooLong, VolumeReadOnly, XattrsTooLarge
from tbshare.volumes.entry import UnknownOp, VolumeCreate
from tbshare.volumes.item import Attributes
from tests.volumes.cluster import Cluster, content, parts, texts

YEAR_NS = 365 * 24 * 3600 * 10**9
DAY_SECONDS = 86_400.0


def test_split_brain_keeps_both_sides(pair: Cluster) -> None:
    pair["anna"].save("a", "start")
    pair.settle()
    for turn in range(5):
        pair["anna"].save("a", f"anna {turn}")
        pair["bert"].save("a", f"bert {turn}")
    assert sorted(pair.agree().values()) == ["anna 4", "bert 4"]
    assert len(pair["bert"].volume.history(parts("a"))) == 11


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_jumps_orders_nothing(pair: Cluster, years: int) -> None:
    anna, bert = pair["anna"], pair["bert"]
    anna.save("a", "one")
    pair.settle()
    bert.time_ns += years * YEAR_NS
    bert.save("a", "two")
    pair.settle()
    anna.save("a", "three")
    bert.save("b", "b")
    assert pair.agree() == {"a": "three", "b": "b"}
    assert texts(anna.volume.history(parts("a"))) == ["three", "two", "one"]
    assert anna.volume.conflicts() == []


def test_a_node_restored_from_a_backup_loses_nothing(pair: Cluster) -> None:
    """Its log went back; it saves again before it hears of what it once sent."""
    anna = pair["anna"]
    anna.save("a", "one")
    anna.close()
    shutil.copy(pair.home / "anna.db", pair.home / "backup.db")
    anna.log = anna.open_log()
    anna.open()
    anna.save("a", "after the backup")
    pair.settle()
    anna.close()
    for left in pair.home.glob("anna.db-*"):
        left.unlink()
    shutil.copy(pair.home / "backup.db", pair.home / "anna.db")
    anna.log = anna.open_log()
    anna.open()
    assert anna.all() == {"a": "one"}, "tables that are ahead of the log are made anew"
    assert "put back" in anna.log.lost, "or bytes of `after the backup` would pass for garbage"
    anna.save("a", "after the restore")
    assert sorted(pair.agree().values()) == ["after the backup", "after the restore"]
    anna.save("b", "b")
    pair["bert"].save("c", "c")
    assert len(pair.agree()) == 4


def test_a_copied_key_is_two_branches_and_both_count(make_cluster: Callable[..., Cluster]) -> None:
    """A machine made by Migration Assistant writes with the same key, from the same log."""
    three = make_cluster("anna", "bert", "copy")
    three["anna"].save("a", "start")
    three.settle()
    anna, copy = three["anna"], three["copy"]
    anna.close()
    copy.close()
    shutil.copy(three.home / "anna.db", three.home / "copy.db")
    shutil.rmtree(three.home / "copy.namespace")
    for left in three.home.glob("copy.db-*"):
        left.unlink()
    copy.identity = anna.identity
    for node in (anna, copy):
        node.log = node.open_log()
        node.open()
    anna.save("a", "annas")
    copy.save("a", "copys")
    copy.save("b", "b")
    shown = three.agree()
    assert sorted(shown.values()) == ["annas", "b", "copys"]


def test_rename_a_to_b_while_b_to_a(pair: Cluster) -> None:
    for kind in ("file", "directory"):
        for name in ("a", "b"):
            if kind == "file":
                pair["anna"].save(f"{name} {kind}", name)
            else:
                pair["anna"].volume.mkdir(parts(f"{name} {kind}"))
                pair["anna"].save(f"{name} {kind}/in", name)
        pair.settle()
        pair["anna"].volume.rename(parts(f"a {kind}"), parts(f"c {kind}"))
        pair["anna"].volume.rename(parts(f"b {kind}"), parts(f"a {kind}"))
        pair["bert"].volume.rename(parts(f"b {kind}"), parts(f"c {kind}"))
        pair["bert"].volume.rename(parts(f"a {kind}"), parts(f"b {kind}"))
    shown = pair.agree()
    assert sorted(value for name, value in shown.items() if not name.endswith("/")) == ["a", "a", "b", "b"]


def test_two_directories_moved_into_each_other(pair: Cluster) -> None:
    for name in ("a", "b"):
        pair["anna"].volume.mkdir(parts(name))
        pair["anna"].save(f"{name}/in", name)
    pair.settle()
    pair["anna"].volume.rename(parts("a"), parts("b/a"))
    pair["bert"].volume.rename(parts("b"), parts("a/b"))
    shown = pair.agree()
    assert sorted(shown.values()) == ["", "", "a", "b"]
    assert len(shown) == 4


def test_rename_over_a_file_that_is_open_elsewhere(pair: Cluster) -> None:
    """Who has it open saves by its id, and makes a version of what is under the name now."""
    pair["anna"].save("a", "one")
    pair.settle()
    opened = pair["bert"].item("a")
    pair["anna"].save("temp", "renamed over")
    pair["anna"].volume.rename(parts("temp"), parts("a"))
    pair["bert"].volume.save(opened.file, content("from the open file"), base=[opened.version])
    assert sorted(pair.agree().values()) == ["from the open file", "renamed over"]


def test_a_rename_across_volumes_is_refused(pair: Cluster) -> None:
    anna = pair["anna"]
    assert anna.volumes is not None
    anna.log.append([VolumeCreate(name="sound", mode="media")])
    sound = anna.volumes.open("sound")
    anna.save("a", "x")
    with pytest.raises(CrossesVolumes):
        anna.volume.rename(parts("a"), parts("a"), into=sound)
    with pytest.raises(CrossesVolumes):
        anna.volume.link(parts("a"), parts("a"), into=sound)


def test_hard_links_made_on_both_sides(pair: Cluster) -> None:
    pair["anna"].save("a", "one")
    pair.settle()
    pair["anna"].volume.link(parts("a"), parts("b"))
    pair["bert"].volume.link(parts("a"), parts("c"))
    pair["bert"].save("a", "two")
    assert pair.agree() == {"a": "two", "b": "two", "c": "two"}
    assert pair["anna"].item("c").links == 3
    pair["anna"].volume.remove(parts("a"))
    pair["bert"].save("b", "three")
    assert pair.agree() == {"b": "three", "c": "three"}


def test_case_and_unicode_forms_are_kept_as_given_and_compared_folded(pair: Cluster) -> None:
    composed, decomposed = "Caf\u00e9".encode(), "Cafe\u0301".encode()
    pair["anna"].volume.save((composed,), content("one"))
    pair["anna"].volume.save((decomposed,), content("two"))
    pair["anna"].volume.save(("CAF\u00c9".encode(),), content("three"))
    assert [item.name for item in pair["anna"].volume.list(())] == [composed]
    assert pair["anna"].volume.lookup((decomposed,)).content == content("three").content
    pair["bert"].volume.save((decomposed,), content("four"))
    pair.settle()
    names = [item.name for item in pair["bert"].volume.list(())]
    assert len(names) == 2
    assert sum(name in (composed, decomposed) for name in names) == 1
    pair["anna"].volume.save((b"\xff\xfe.bin",), content("no text"))
    assert pair["anna"].volume.lookup((b"\xff\xfe.bin",)).size == 7


def test_names_of_255_bytes_and_not_of_255_utf16_units(pair: Cluster) -> None:
    anna = pair["anna"]
    anna.volume.save((("\u00e9" * 127 + "a").encode(),), content("255 bytes"))
    with pytest.raises(NameTooLong, match="256 bytes"):
        anna.volume.save((("\u00e9" * 128).encode(),), content("128 units, 256 bytes"))
    with pytest.raises(NameTooLong):
        anna.volume.save((("\u20ac" * 255).encode(),), content("255 units, 765 bytes"))
    pair.settle()
    anna.save("\u00e9" * 127 + "a", "annas")
    pair["bert"].save("\u00e9" * 127 + "a", "berts")
    assert all(len(item.name) <= 255 for item in anna.volume.list(()))
    assert len(pair.agree()) == 2


def test_a_deleted_file_that_is_open_is_saved_to_its_history(pair: Cluster) -> None:
    anna = pair["anna"]
    anna.save("a", "one")
    file = anna.item("a").file
    anna.volume.remove(parts("a"))
    anna.volume.save(file, content("written after"))
    assert pair.agree() == {}
    assert texts(pair["bert"].volume.history(parts("a"))) == ["written after", "one"]


def test_a_file_deleted_elsewhere_while_it_was_edited_comes_back(pair: Cluster) -> None:
    pair["anna"].save("a", "one")
    pair.settle()
    file = pair["bert"].item("a").file
    pair["anna"].volume.remove(parts("a"))
    pair["bert"].volume.save(file, content("edited"))
    assert pair.agree() == {"a": "edited"}


def test_appends_on_two_nodes_are_two_versions(pair: Cluster) -> None:
    pair["anna"].save("log", "x")
    pair.settle()
    pair["anna"].save("log", "xa")
    pair["bert"].save("log", "xb")
    assert sorted(pair.agree().values()) == ["xa", "xb"]


def test_sparse_and_absurd_sizes_are_counted_not_allocated(pair: Cluster) -> None:
    anna = pair["anna"]
    for name, size in (("sparse", 1 << 50), ("largest", (1 << 62) - 1)):
        anna.volume.save(parts(name), content(name, size=size))
    pair.settle()
    assert pair["bert"].item("largest").size == (1 << 62) - 1
    assert pair["bert"].volume.totals().size_bytes == (1 << 50) + (1 << 62) - 1


def test_xattrs_have_a_limit_that_is_named(pair: Cluster) -> None:
    pair["anna"].save("a", "x")
    with pytest.raises(XattrsTooLarge, match="65536"):
        pair["anna"].volume.describe(parts("a"), Attributes(xattrs={b"x": b"1" * 70_000}))
    with pytest.raises(XattrsTooLarge, match="256"):
        pair["anna"].volume.describe(parts("a"), Attributes(xattrs={b"%d" % n: b"" for n in range(257)}))


def test_conflicts_of_the_finders_own_files_are_never_shown(pair: Cluster) -> None:
    pair["anna"].save(".DS_Store", "annas")
    pair["bert"].save(".DS_Store", "berts")
    assert list(pair.agree()) == [".DS_Store"]
    pair["anna"].save(".DS_Store", "annas 2")
    pair["bert"].save(".DS_Store", "berts 2")
    assert list(pair.agree()) == [".DS_Store"]
    assert pair["anna"].volume.conflicts() == []


@pytest.mark.parametrize("way", ["rename over", "exchange"])
def test_safe_save_is_a_new_version_of_the_same_file(pair: Cluster, way: str) -> None:
    anna = pair["anna"]
    anna.save("a.txt", "one", attributes=Attributes(birthtime_ns=5, xattrs={b"tag": b"red"}))
    pair.settle()
    file = anna.item("a.txt").file
    for node, text in ((anna, "annas"), (pair["bert"], "berts")):
        node.save(".a.txt.sb", text, attributes=Attributes(mode=0o600, xattrs={b"tag": b"red"}))
        node.volume.rename(parts(".a.txt.sb"), parts("a.txt"), exchange=way == "exchange")
        if way == "exchange":
            node.volume.remove(parts(".a.txt.sb"))
    assert sorted(pair.agree().values()) == ["annas", "berts"]
    item = anna.item("a.txt")
    assert (item.file, item.heads, item.mode, item.birthtime_ns) == (file, 2, 0o600, 5)
    assert item.xattrs == {b"tag": b"red"}
    assert texts(anna.volume.history(parts("a.txt")))[-1] == "one"


def test_what_a_returning_node_still_needs_was_not_given_up(pair: Cluster) -> None:
    """Anna superseded a version long ago; bert, who has not seen that, comes back with a save on top of it."""
    anna, bert = pair["anna"], pair["bert"]
    anna.save("a", "one")
    pair.settle()
    anna.save("a", "two")
    anna.seconds += 31 * DAY_SECONDS
    assert anna.volume.expire(10**12) == []
    bert.save("a", "berts")
    assert sorted(pair.agree().values()) == ["berts", "two"]
    anna.log.acknowledge(bert.identity.node, bert.log.vector())
    assert len(anna.volume.expire(10**12)) == 1
    assert [line.expired for line in anna.volume.history(parts("a"))] == [False, False, True]


def test_a_partial_mesh_agrees_by_way_of_the_middle(make_cluster: Callable[..., Cluster]) -> None:
    three = make_cluster("anna", "bert", "cleo")
    three["anna"].save("a", "annas")
    three["cleo"].save("a", "cleos")
    for _ in range(2):
        three.settle("anna", "bert")
        three.settle("bert", "cleo")
    shown = [node.all() for node in three.nodes.values()]
    assert shown[0] == shown[1] == shown[2]
    assert sorted(shown[0].values()) == ["annas", "cleos"]


def test_a_newer_version_on_one_node_only(pair: Cluster) -> None:
    """An op of a kind this version does not know is kept and handed on, and stops writing here."""
    pair["anna"].save("a", "x")
    raw = b"\x82\xa4kind\xa7reflink\xa6volume\xa5films"
    pair["anna"].log.append([UnknownOp(raw=raw, kind="reflink", volume="films")])  # type: ignore[list-item]
    pair.settle()
    for node in pair.nodes.values():
        with pytest.raises(VolumeReadOnly, match="newer version"):
            node.save("a", "y")
    assert pair.agree() == {"a": "x"}
