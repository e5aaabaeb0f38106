"""Files of volumes through a real daemon: each method once from the client's side, and what it refuses."""

import os
import stat as modes
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tbshare.errors import (
    DirectoryNotEmpty,
    InputRefused,
    PathInvalid,
    PathIsDirectory,
    PathMissing,
    PathNotDirectory,
    QuotaExceeded,
    UsageError,
    VolumeReadOnly,
)
from tbshare.wire.files import FileReadParams, RestoreParams
from tbshare.wire.volume import VolumeCreateParams, VolumeSetParams
from tbshare.wire.where import Where
from tests.nodes import MIB, Node, running
from tests.volume_nodes import copy, create, names, place, read, stat, write

Make = Callable[..., Node]


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One daemon for the cheap tests of this module."""
    node = Node(tmp_path_factory.mktemp("v") / "a", "ada")
    with running(node):
        yield node


@pytest.fixture
def film(ada: Node, request: pytest.FixtureRequest) -> str:
    """A new volume."""
    name = f"film-{abs(hash(request.node.nodeid)) % 10**9}"
    create(ada, name)
    return name


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that a copy must keep of a directory."""
    result: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            status = path.lstat()
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            listed = os.listxattr(path, follow_symlinks=False)
            xattrs = {each: os.getxattr(path, each, follow_symlinks=False) for each in listed}
            mode = 0 if path.is_symlink() else modes.S_IMODE(status.st_mode)
            times = 0 if path.is_dir() else status.st_mtime_ns
            result[str(path.relative_to(root))] = (content, mode, times, xattrs)
    return result


def footage(root: Path, files: int = 5) -> Path:
    random = Random(7)
    (root / "reels" / "deep").mkdir(parents=True)
    for number in range(files):
        (root / "reels" / f"{number}.mov").write_bytes(random.randbytes(70_000 * number))
    (root / "reels" / "deep" / "ünï.txt").write_text("text")
    (root / "reels" / "deep" / "run.sh").write_text("#!/bin/sh\n")
    (root / "reels" / "deep" / "run.sh").chmod(0o755)
    (root / "link").symlink_to("reels/1.mov")
    (root / "empty").mkdir()
    os.utime(root / "reels" / "1.mov", ns=(1, 1_600_000_000_123_456_789))
    (root / "Cut.fcpbundle" / "inner").mkdir(parents=True)
    (root / "Cut.fcpbundle" / "inner" / "db").write_bytes(random.randbytes(300_000))
    (root / "Cut.fcpbundle" / "Info").write_text("info")
    return root


def test_a_file_goes_in_and_comes_out(ada: Node, film: str, tmp_path: Path) -> None:
    data = Random(1).randbytes(9 * MIB + 5)
    (tmp_path / "a.mov").write_bytes(data)
    report = copy(ada, tmp_path / "a.mov", f"{film}:/")
    assert (report.files, report.size_bytes) == (1, len(data))
    assert names(ada, f"{film}:/") == ["a.mov"]
    item = stat(ada, f"{film}:/a.mov")
    assert (item.kind, item.size_bytes, item.here, item.copies) == ("file", len(data), "whole", "local")
    assert read(ada, f"{film}:/a.mov") == data
    assert read(ada, f"{film}:/a.mov", offset=4 * MIB - 3, length=10) == data[4 * MIB - 3 : 4 * MIB + 7]
    assert read(ada, f"{film}:/a.mov", offset=len(data)) == b""
    copy(ada, f"{film}:/a.mov", tmp_path / "b.mov")
    assert (tmp_path / "b.mov").read_bytes() == data


def test_a_directory_goes_in_and_comes_out_as_it_was(ada: Node, film: str, tmp_path: Path) -> None:
    source = footage(tmp_path / "source")
    try:
        os.setxattr(source / "reels" / "2.mov", "user.rating", b"5")
    except OSError:
        pytest.skip("no extended attributes here")
    report = copy(ada, source, f"{film}:/", recursive=True)
    assert names(ada, f"{film}:/source") == ["Cut.fcpbundle", "empty", "link", "reels"]
    assert stat(ada, f"{film}:/source/Cut.fcpbundle").kind == "bundle"
    assert report.files == 9
    copy(ada, f"{film}:/source", tmp_path / "back", recursive=True)
    assert tree(tmp_path / "back") == tree(source)


def test_the_same_again_makes_no_version(ada: Node, film: str, tmp_path: Path) -> None:
    write(ada, f"{film}:/a", b"same", tmp_path)
    write(ada, f"{film}:/a", b"same", tmp_path)
    with ada.client() as client:
        assert len(client.history(place(f"{film}:/a")).lines) == 1


def test_history_restore_and_snapshots(ada: Node, film: str, tmp_path: Path) -> None:
    for text in (b"one", b"two", b"three"):
        write(ada, f"{film}:/d.txt", text, tmp_path)
        if text == b"two":
            with ada.client() as client:
                client.snapshot_create(film, "cut")
    with ada.client() as client:
        lines = client.history(place(f"{film}:/d.txt")).lines
        assert len(lines) == 3
        assert read(ada, f"{film}:/d.txt", version=lines[2].version) == b"one"
        assert read(ada, f"{film}@cut:/d.txt") == b"two"
        client.restore(RestoreParams(place(f"{film}:/d.txt")))
        assert read(ada, f"{film}:/d.txt") == b"two"
        client.restore(RestoreParams(place(f"{film}:/d.txt"), version=lines[2].version))
        assert read(ada, f"{film}:/d.txt") == b"one"
        client.file_remove([place(f"{film}:/d.txt")])
        assert names(ada, f"{film}:/") == []
        client.restore(RestoreParams(place(f"{film}:/d.txt")))
        assert read(ada, f"{film}:/d.txt") == b"one"
        client.restore(RestoreParams(place(f"{film}:/d.txt"), snapshot="cut", target=place(f"{film}:/old")))
        assert read(ada, f"{film}:/old") == b"two"
        assert [line.name for line in client.snapshot_list(film).snapshots] == ["cut"]
        client.snapshot_remove(film, "cut")
        assert client.snapshot_list(film).snapshots == []


def test_moving_and_removing(ada: Node, film: str, tmp_path: Path) -> None:
    with ada.client() as client:
        client.file_mkdir(place(f"{film}:/a/b"), parents=True)
        write(ada, f"{film}:/a/b/x", b"x", tmp_path)
        client.file_move(place(f"{film}:/a/b/x"), place(f"{film}:/a"))
        assert names(ada, f"{film}:/a") == ["b", "x"]
        client.file_move(place(f"{film}:/a/x"), place(f"{film}:/y"))
        assert read(ada, f"{film}:/y") == b"x"
        with pytest.raises(PathIsDirectory):
            client.file_remove([place(f"{film}:/a/b")])
        with pytest.raises(DirectoryNotEmpty):
            client.file_remove([place(f"{film}:/a")])
        gone = client.file_remove([place(f"{film}:/a")], recursive=True)
        assert (gone.files, gone.directories) == (0, 2)
        assert names(ada, f"{film}:/") == ["y"]


def test_copies_inside_the_store_move_no_bytes(ada: Node, film: str, tmp_path: Path) -> None:
    source = footage(tmp_path / "source")
    copy(ada, source, f"{film}:/", recursive=True)
    before = sum(path.stat().st_size for path in ada.object_files())
    create(ada, f"{film}-other")
    report = copy(ada, f"{film}:/source", f"{film}-other:/again", recursive=True)
    assert report.files_shared == report.files == 9
    copy(ada, f"{film}:/source/reels/4.mov", f"{film}:/twin.mov")
    assert read(ada, f"{film}:/twin.mov") == (source / "reels" / "4.mov").read_bytes()
    copy(ada, f"{film}-other:/again", tmp_path / "back", recursive=True)
    assert {path: row[0] for path, row in tree(tmp_path / "back").items()} == {
        path: row[0] for path, row in tree(source).items()
    }
    assert sum(path.stat().st_size for path in ada.object_files()) == before


def test_a_volume_from_a_directory_is_taken_up_again(ada: Node, tmp_path: Path) -> None:
    source = footage(tmp_path / "source")
    os.mkfifo(source / "pipe")
    with ada.client() as client:
        params = VolumeCreateParams("taken", source=bytes(source))
        with pytest.raises(InputRefused, match="pipe"):
            client.volume_create(params)
        assert names(ada, "taken:/") == ["Cut.fcpbundle", "empty", "link", "reels"]
        (source / "pipe").unlink()
        (source / "reels" / "new.mov").write_bytes(b"new")
        again = client.volume_create(params)
        assert again.already
        assert again.copied is not None
        assert again.copied.files_same >= 7
        assert read(ada, "taken:/reels/new.mov") == b"new"
        assert len(client.history(place("taken:/reels/1.mov")).lines) == 1


def test_a_volume_from_a_directory_by_move(ada: Node, tmp_path: Path) -> None:
    source = footage(tmp_path / "source")
    data = (source / "reels" / "4.mov").read_bytes()
    with ada.client() as client:
        made = client.volume_create(VolumeCreateParams("moved", source=bytes(source), move=True))
        assert made.copied is not None
        assert made.copied.files_moved == 5
        assert (source / "reels" / "4.mov").is_symlink()
        assert (source / "reels" / "4.mov").read_bytes() == data
        assert read(ada, "moved:/reels/4.mov") == data
        again = client.volume_create(VolumeCreateParams("moved", source=bytes(source), move=True))
        assert again.copied is not None
        assert stat(ada, "moved:/reels/4.mov").kind == "file"
        client.gc(now=True)
        assert (source / "reels" / "4.mov").read_bytes() == data


def test_a_quota_that_is_full_leaves_nothing_half_done(ada: Node, tmp_path: Path) -> None:
    create(ada, "small", options={"quota": "100k"})
    write(ada, "small:/a", bytes(60_000), tmp_path)
    with pytest.raises(QuotaExceeded):
        write(ada, "small:/b", bytes(60_000), tmp_path)
    assert names(ada, "small:/") == ["a"]
    with ada.client() as client:
        client.volume_set(VolumeSetParams("small", options={"quota": "none"}))
    write(ada, "small:/b", bytes(60_000), tmp_path)
    assert names(ada, "small:/") == ["a", "b"]


def test_volumes_are_made_set_removed_and_brought_back(ada: Node, tmp_path: Path) -> None:
    made = create(ada, "Life", options={"history": "7d", "locked": "read-only"})
    assert made.volume.options["locked"] == "read-only"
    write(ada, "life:/a", b"a", tmp_path)
    with ada.client() as client:
        with pytest.raises(UsageError, match="already"):
            client.volume_create(VolumeCreateParams("LIFE"))
        line = next(line for line in client.volume_list().volumes if line.name == "Life")
        assert (line.files, line.size_bytes, line.mode, line.role) == (1, 1, "media", "admin")
        assert not client.volume_remove("life", yes=False).removed
        assert client.volume_remove("life", yes=True).removed
        assert "Life" not in [line.name for line in client.volume_list().volumes]
        assert "Life" in [line.name for line in client.volume_list(removed=True).volumes]
        with pytest.raises(UsageError):
            names(ada, "life:/")
        client.volume_restore("life")
    assert read(ada, "life:/a") == b"a"


def test_roles_are_kept(ada: Node, tmp_path: Path) -> None:
    create(ada, "sealed", roles={"ada": "read"})
    with pytest.raises(VolumeReadOnly):
        write(ada, "sealed:/a", b"a", tmp_path)


@pytest.mark.parametrize("name", ["", "a b", "../x", "models", "x/y", "x" * 300])
def test_names_no_volume_has(ada: Node, name: str) -> None:
    with pytest.raises(UsageError):
        create(ada, name)


def test_a_copy_into_a_directory_that_is_not_there(ada: Node, film: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    for target, missing in (("x/a", f"{film}:/x"), ("x/y/z/a", f"{film}:/x/y/z")):
        with pytest.raises(PathMissing, match=f"no directory {missing}$") as caught:
            copy(ada, tmp_path / "a", f"{film}:/{target}")
        assert caught.value.cure == f"tbshare mkdir -p {missing}"
    assert names(ada, f"{film}:/") == []
    copy(ada, tmp_path, f"{film}:/new", recursive=True)
    assert names(ada, f"{film}:/new") == ["a"]


def test_what_is_refused(ada: Node, film: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("f")
    (tmp_path / "d").mkdir()
    with ada.client() as client:
        with pytest.raises(PathMissing):
            client.file_list(place(f"{film}:/nothing"))
        with pytest.raises(PathInvalid):
            client.file_list(Where(film, b"a/../../b"))
        with pytest.raises(UsageError, match="no volume"):
            client.file_list(place("no-such:/"))
        with pytest.raises(PathIsDirectory):
            client.file_read(FileReadParams(place(f"{film}:/")), lambda _: None)
    with pytest.raises(InputRefused):
        copy(ada, tmp_path / "missing", f"{film}:/")
    with pytest.raises(InputRefused, match="is a directory"):
        copy(ada, tmp_path / "d", f"{film}:/")
    with pytest.raises(PathNotDirectory):
        copy(ada, tmp_path / "f", tmp_path / "d", f"{film}:/nowhere", recursive=True)
    with pytest.raises(UsageError):
        copy(ada, tmp_path / "f", tmp_path / "g")
    assert names(ada, f"{film}:/") == []
