"""`push --move`: the file becomes the object, its name a link; refusals leave everything as it was."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tbshare.content.block import TreeId
from tbshare.errors import InputRefused
from tbshare.store import adopt
from tbshare.store.ingest import Ingest
from tbshare.store.source import Choice, scan
from tbshare.store.store import Store

BYTES = os.urandom(300_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(BYTES)
    (folder / "config.json").write_text("{}")
    return folder


def take(store: Store, folder: Path) -> tuple[Ingest, TreeId]:
    work = Ingest(store, workers=1, move=True)
    return work, work.source(scan(folder, Choice()))


def test_the_file_itself_becomes_the_object(store: Store, model: Path) -> None:
    inode = (model / "weights.bin").stat().st_ino
    work, tree = take(store, model)
    assert adopt.leave_links(store, work.adopted) == 1
    link = model / "weights.bin"
    assert link.is_symlink()
    assert link.stat().st_ino == inode, "no byte was copied"
    assert link.read_bytes() == BYTES
    assert stat.S_IMODE(link.stat().st_mode) == 0o444
    assert not (model / "config.json").is_symlink(), "small files rest in packs"
    assert len(store.objects_below(tree)) == 2


def test_undo_puts_a_file_of_its_own_back(store: Store, model: Path) -> None:
    work, tree = take(store, model)
    adopt.leave_links(store, work.adopted)
    assert adopt.undo(store, model) == 1
    file = model / "weights.bin"
    assert not file.is_symlink()
    file.write_bytes(b"the user's again")
    for object_id in store.objects_below(tree):
        found = store.manifest(object_id)
        assert found is not None
        for number in range(found.block_count):
            store.read_block(object_id, number)  # the object did not change with it


def test_undo_where_nothing_was_moved_is_refused(store: Store, model: Path) -> None:
    with pytest.raises(InputRefused, match="nothing below"):
        adopt.undo(store, model)


def test_roll_back_makes_it_as_it_was(store: Store, model: Path) -> None:
    file = model / "weights.bin"
    file.chmod(0o640)
    work, tree = take(store, model)
    adopt.roll_back(store, work.adopted)
    assert file.read_bytes() == BYTES
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.stat().st_nlink == 1
    assert not all(store.is_whole(object_id) for object_id in store.objects_below(tree))


def test_a_file_that_somebody_writes_is_refused(store: Store, model: Path) -> None:
    with (model / "weights.bin").open("r+b"), pytest.raises(InputRefused, match="open for writing"):
        take(store, model)
    assert (model / "weights.bin").stat().st_nlink == 1


def test_a_file_with_two_names_is_refused(store: Store, model: Path) -> None:
    os.link(model / "weights.bin", model / "weights.bin.too")
    with pytest.raises(InputRefused, match="hard links"):
        take(store, model)


def test_bytes_that_are_here_already_are_linked_to(store: Store, model: Path) -> None:
    Ingest(store, workers=1).source(scan(model, Choice()))
    work, _ = take(store, model)
    assert [each.linked for each in work.adopted] == [False]
    adopt.leave_links(store, work.adopted)
    assert (model / "weights.bin").read_bytes() == BYTES
