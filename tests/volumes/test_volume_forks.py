"""Two sides of a cut save one file: both are kept, both are shown, and people choose."""

from collections.abc import Callable

import pytest

from tbshare.errors import PathInvalid, PathIsDirectory, PathMissing
from tbshare.volumes.item import Attributes
from tests.volumes.cluster import Cluster, content, parts, texts

FORK = "a (from {}, 2026-11-18 {}).mov"


def fork(pair: Cluster) -> tuple[str, str]:
    """Let both save a.mov at once; return the names of both, the one under the name first."""
    anna, bert = pair["anna"], pair["bert"]
    anna.save("a.mov", "start")
    pair.settle()
    anna.wait(5)
    bert.wait(9)
    anna.save("a.mov", "annas")
    bert.save("a.mov", "berts")
    pair.settle()
    (name,) = [name for name in anna.names() if name != "a.mov"]
    return "a.mov", name


def test_both_sides_of_a_cut_are_shown(pair: Cluster) -> None:
    main, other = fork(pair)
    shown = pair.agree()
    assert sorted(shown.values()) == ["annas", "berts"]
    author = "anna" if shown[other] == "annas" else "bert"
    assert other == FORK.format(author, "11.11" if author == "anna" else "11.15")
    item = pair["anna"].item(other)
    assert (item.fork, item.heads, pair["anna"].item(main).fork) == (True, 2, False)
    assert item.id != pair["anna"].item(main).id
    (conflict,) = pair["bert"].volume.conflicts()
    assert (conflict.path, conflict.kind, len(conflict.items)) == (parts(main), "versions", 2)
    assert pair["anna"].volume.totals().size_bytes == 10


def test_saving_in_a_fork_by_its_path_goes_on_with_that_side(pair: Cluster) -> None:
    """The names do not change places while an application goes on saving in the shown fork."""
    main, other = fork(pair)
    before = pair["anna"].all()
    for turn in range(3):
        saved = pair["anna"].volume.save(parts(other), content(f"more {turn}"))
        assert (saved.path, saved.fork) == (parts(other), True)
        pair.settle()
        pair["bert"].save(main, f"main {turn}")
        assert pair.agree() == {main: f"main {turn}", other: f"more {turn}"}
    assert texts(pair["anna"].volume.history(parts(other)))[:2] == ["more 2", "more 1"]
    assert before[other] in texts(pair["anna"].volume.history(parts(other)))
    assert "main 2" not in texts(pair["anna"].volume.history(parts(other)))
    assert len(pair["anna"].volume.history(parts(main))) == 9


@pytest.mark.parametrize("keep", ["main", "other"])
def test_resolve_keeps_one_and_the_other_stays_in_the_history(pair: Cluster, keep: str) -> None:
    main, other = fork(pair)
    kept = pair["anna"].reads(main if keep == "main" else other)
    path = main if keep == "main" else other
    saved = pair["anna"].volume.resolve(parts(path))
    assert (saved.path, saved.fork) == (parts(main), False)
    assert pair.agree() == {main: kept}
    assert sorted(set(texts(pair["bert"].volume.history(parts(main))))) == ["annas", "berts", "start"]
    assert pair["bert"].volume.conflicts() == []
    with pytest.raises(PathMissing):
        pair["anna"].volume.resolve(parts(main), keep=12345)


def test_a_fork_can_be_removed_renamed_and_moved_over_alone(pair: Cluster) -> None:
    main, other = fork(pair)
    mine, theirs = pair["anna"].reads(main), pair["anna"].reads(other)
    pair["anna"].volume.copy(parts(other), parts("copy"))
    pair["anna"].volume.rename(parts(other), parts("theirs.mov"))
    assert pair.agree() == {main: mine, "theirs.mov": theirs, "copy": theirs}
    assert pair["bert"].volume.conflicts() == []


def test_removing_a_fork_leaves_the_file(pair: Cluster) -> None:
    main, other = fork(pair)
    mine = pair["anna"].reads(main)
    pair["anna"].volume.remove(parts(other))
    assert pair.agree() == {main: mine}


def test_removing_the_file_leaves_the_fork(pair: Cluster) -> None:
    main, other = fork(pair)
    theirs = pair["anna"].reads(other)
    pair["anna"].volume.remove(parts(main))
    assert pair.agree() == {other: theirs}
    assert not pair["anna"].item(other).fork
    assert pair["anna"].volume.totals().files == 1


def test_a_fork_moved_over_its_file_resolves(pair: Cluster) -> None:
    main, other = fork(pair)
    theirs = pair["anna"].reads(other)
    pair["anna"].volume.rename(parts(other), parts(main))
    assert pair.agree() == {main: theirs}


def test_a_file_moved_over_a_fork_is_its_next_version(pair: Cluster) -> None:
    main, other = fork(pair)
    mine = pair["anna"].reads(main)
    pair["anna"].save("temp", "fixed")
    pair["anna"].volume.rename(parts("temp"), parts(other))
    assert pair.agree() == {main: mine, other: "fixed"}


def test_a_forked_file_renamed_over_another_keeps_its_forks(pair: Cluster) -> None:
    main, other = fork(pair)
    mine, theirs = pair["anna"].reads(main), pair["anna"].reads(other)
    pair["anna"].save("b.mov", "b")
    pair["anna"].volume.rename(parts(main), parts("b.mov"))
    shown = pair.agree()
    assert shown["b.mov"] == mine
    assert sorted(shown.values()) == sorted([mine, theirs])


def test_an_editor_that_opened_an_older_version_makes_a_fork(pair: Cluster) -> None:
    anna = pair["anna"]
    base = anna.save("a.mov", "one")
    anna.save("a.mov", "two")
    anna.wait()
    saved = anna.volume.save(parts("a.mov"), content("from one"), base=[base])
    assert sorted(pair.agree().values()) == ["from one", "two"]
    assert anna.reads("/".join(part.decode() for part in saved.path)) == "from one"
    assert anna.volume.item(saved.file, saved.version).content == content("from one").content
    with pytest.raises(PathMissing):
        anna.volume.save(parts("a.mov"), content("x"), base=[99])


def test_the_same_bytes_on_both_sides_are_no_conflict(pair: Cluster) -> None:
    pair["anna"].save("a", "start")
    pair.settle()
    pair["anna"].save("a", "same")
    pair["bert"].save("a", "same")
    pair["anna"].save("new", "new")
    pair["bert"].save("new", "new")
    assert pair.agree() == {"a": "same", "new": "new"}
    assert pair["anna"].volume.conflicts() == []
    pair["bert"].save("a", "next")
    pair["anna"].volume.remove(parts("new"))
    assert pair.agree() == {"a": "next"}


def test_an_edit_beats_a_removal_of_the_directory_too(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    anna.volume.mkdir(parts("day/one"), parents=True)
    anna.save("day/one/a", "a")
    anna.save("day/one/b", "b")
    pair.settle()
    bert.save("day/one/a", "edited")
    anna.volume.remove_tree(parts("day"))
    assert anna.all() == {}
    assert pair.agree() == {"day/": "", "day/one/": "", "day/one/a": "edited"}
    anna.volume.remove_tree(parts("day"))
    assert pair.agree() == {}


def test_a_rename_beats_a_removal(pair: Cluster) -> None:
    pair["anna"].save("a", "a")
    pair["anna"].volume.mkdir(parts("d"))
    pair.settle()
    pair["bert"].volume.rename(parts("a"), parts("b"))
    pair["bert"].volume.rename(parts("d"), parts("e"))
    pair["anna"].volume.remove(parts("a"))
    pair["anna"].volume.rmdir(parts("d"))
    assert pair.agree() == {"b": "a", "e/": ""}


def test_files_made_apart_with_one_name_are_both_shown(pair: Cluster) -> None:
    pair["anna"].save("a.mov", "annas")
    pair["bert"].wait(3)
    pair["bert"].save("A.mov", "berts")
    shown = pair.agree()
    assert sorted(shown.values()) == ["annas", "berts"]
    (conflict,) = pair["anna"].volume.conflicts()
    assert (conflict.kind, len(conflict.items)) == ("names", 2)
    assert conflict.path[-1] in {b"a.mov", b"A.mov"}
    beside = next(name for name in shown if "from" in name)
    pair["anna"].volume.rename(parts(beside), parts("b.mov"))
    assert sorted(pair.agree()) == sorted([conflict.path[-1].decode(), "b.mov"])
    assert pair["anna"].volume.conflicts() == []
    pair["anna"].volume.mkdir(parts("d"))
    with pytest.raises(PathInvalid):
        pair["anna"].volume.resolve(parts("d"))


def test_attributes_set_on_both_sides_are_both_kept(pair: Cluster) -> None:
    pair["anna"].save("a", "a")
    pair.settle()
    pair["anna"].volume.describe(parts("a"), Attributes(mode=0o600, xattrs={b"x": b"1"}))
    pair["bert"].volume.describe(parts("a"), Attributes(uid=7, xattrs={b"y": b"2"}))
    pair.settle()
    for node in pair.nodes.values():
        item = node.item("a")
        assert (item.mode, item.uid, item.xattrs) == (0o600, 7, {b"x": b"1", b"y": b"2"})


def test_three_sides(make_cluster: Callable[..., Cluster]) -> None:
    three = make_cluster("anna", "bert", "cleo")
    three["anna"].save("a", "start")
    three.settle()
    for name in ("anna", "bert", "cleo"):
        three[name].save("a", name)
    assert sorted(three.agree().values()) == ["anna", "bert", "cleo"]
    (conflict,) = three["cleo"].volume.conflicts()
    assert len(conflict.items) == 3
    three["cleo"].volume.resolve(parts("a"))
    assert len(three.agree()) == 1


def test_a_directory_over_a_fork_is_refused(pair: Cluster) -> None:
    _, other = fork(pair)
    pair["anna"].save("f", "x")
    pair["anna"].volume.mkdir(parts("d"))
    with pytest.raises(PathIsDirectory):
        pair["anna"].volume.rename(parts(other), parts("d"))
