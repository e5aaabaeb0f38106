"""Views: real names, no second copy, and nothing in them that runs when it is opened."""

import os
from pathlib import Path

import pytest

from tbshare.content.block import TreeId
from tbshare.errors import ObjectMissing
from tbshare.store import disk, views
from tbshare.store.care import drop_object
from tbshare.store.ingest import Ingest
from tbshare.store.source import Choice, scan
from tbshare.store.store import Store
from tests.store.conftest import FILES
from tests.store.weights_files import manifest_of


@pytest.fixture
def tree(store: Store, source: Path) -> TreeId:
    (source / "sub").mkdir()
    (source / "sub" / "model.py").write_bytes(b"code")
    (source / "sub" / "weights.PT").write_bytes(b"pickle")
    (source / "sub" / "old.bin").write_bytes(b"\x80\x02pickle")
    (source / "sub" / "link").symlink_to("../one")
    (source / "sub" / "innocent.pkl").symlink_to("../one")
    return Ingest(store, workers=1).source(scan(source, Choice()))


def shown(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


def test_a_view_shows_the_tree(store: Store, tree: TreeId) -> None:
    directory = views.view_path(store, "org/name", "3", code=False)
    assert views.materialise(store, tree, directory, allow_code=False) == [
        "sub/innocent.pkl",
        "sub/model.py",
        "sub/old.bin",
        "sub/weights.PT",
    ]
    names = set(FILES)
    assert shown(directory) == {*names, "sub/link", ".tbshare-tree"}
    assert os.readlink(directory / "sub/link") == "../one"
    for name in names - {"odd.safetensors"}:
        assert (directory / name).read_bytes() == FILES[name]
        assert not (directory / name).stat().st_mode & 0o222
    link = directory / "aligned.safetensors"
    assert link.samefile(store.extents(manifest_of(link.name, FILES[link.name]).id)[0].path)
    odd = manifest_of("odd.safetensors", (directory / "odd.safetensors").read_bytes())
    assert odd.header is not None
    assert odd.header.data_start % 16384 == 0


def test_with_code(store: Store, tree: TreeId) -> None:
    directory = views.view_path(store, "name", "3", code=True)
    assert views.materialise(store, tree, directory, allow_code=True) == []
    assert (directory / "sub/model.py").read_bytes() == b"code"
    assert directory != views.view_path(store, "name", "3", code=False)


def test_once_made_it_stays_until_another_tree_takes_its_place(store: Store, tree: TreeId, source: Path) -> None:
    directory = views.view_path(store, "name", "3", code=False)
    views.materialise(store, tree, directory, allow_code=False)
    inode = directory.stat().st_ino
    views.materialise(store, tree, directory, allow_code=False)
    assert directory.stat().st_ino == inode
    (source / "one").write_bytes(b"2")
    other = Ingest(store, workers=1).source(scan(source, Choice()))
    views.materialise(store, other, directory, allow_code=False)
    assert (directory / "one").read_bytes() == b"2"
    views.remove(store, tree)
    assert directory.exists()
    views.remove(store, other)
    assert not directory.exists()
    assert store.is_whole(manifest_of("aligned.safetensors", FILES["aligned.safetensors"]).id)


def test_what_is_not_whole_has_no_view(store: Store, tree: TreeId) -> None:
    directory = views.view_path(store, "name", "3", code=False)
    drop_object(store, manifest_of("aligned.safetensors", FILES["aligned.safetensors"]).id)
    with pytest.raises(ObjectMissing):
        views.materialise(store, tree, directory, allow_code=False)
    assert not directory.exists()


def test_the_marker_comes_after_everything_it_vouches_for(
    store: Store, tree: TreeId, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = disk.sync_file

    def sync_file(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(disk, "sync_file", sync_file)
    views.materialise(store, tree, views.view_path(store, "name", "3", code=False), allow_code=False)
    assert synced[-1] == ".tbshare-tree"
    assert {"one", "empty", "packed.json"} <= set(synced)
