"""Who may open a store, and what is refused: each with a sentence and a cure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tbshare.errors import StoreUnusable
from tbshare.store import disk
from tbshare.store.home import open_home
from tests.store.conftest import OpenStore


def refused(root: Path, match: str, **options: str) -> StoreUnusable:
    with pytest.raises(StoreUnusable, match=match) as caught:
        open_home(root, **options)
    assert caught.value.cure
    return caught.value


def test_a_new_home_is_private_and_whole(tmp_path: Path) -> None:
    home, store_id, lock = open_home(tmp_path / "a" / "b" / "home")
    os.close(lock)
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert home.format.read_text().splitlines() == ["tbshare store", "level 1", f"id {store_id}"]
    assert len(store_id) == 32
    again, same_id, lock = open_home(tmp_path / "a" / "b" / "home", expected_id=store_id)
    os.close(lock)
    assert (again, same_id) == (home, store_id)


def test_two_on_one_home(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    refused(tmp_path / "home", "another daemon")
    with pytest.raises(StoreUnusable, match="another daemon"):
        open_store()
    store.close()
    open_store()


def test_two_processes_on_one_home(open_store: OpenStore, tmp_path: Path) -> None:
    open_store()
    code = "import sys; from pathlib import Path; from tbshare.store.store import Store; Store(Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path / "home")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "StoreUnusable: another daemon" in done.stderr


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("tbshare store\nlevel 2\nid abc\n", "format 2"),
        ("tbshare store\nlevel 999999999\nid abc\n", "format 9"),
        ("tbshare store\nlevel " + "9" * 5000 + "\nid abc\n", "does not describe"),
        ("tbshare store\nlevel one\nid abc\n", "does not describe"),
        ("tbshare store\nlevel 1\n", "does not describe"),
        ("something else\nlevel 1\nid abc\n", "does not describe"),
        ("tbshare store\nlevel \N{SUPERSCRIPT TWO}\nid abc\n", "does not describe"),
        ("", "does not describe"),
        ("\0\0\0", "does not describe"),
    ],
)
def test_a_format_that_is_not_ours(tmp_path: Path, text: str, match: str) -> None:
    os.close(open_home(tmp_path)[2])
    (tmp_path / "FORMAT").write_text(text)
    before = sorted(tmp_path.iterdir())
    refused(tmp_path, match)
    assert (tmp_path / "FORMAT").read_text() == text
    assert sorted(tmp_path.iterdir()) == before


def test_the_store_of_another_node_and_a_disk_that_is_not_mounted(tmp_path: Path) -> None:
    _, store_id, lock = open_home(tmp_path / "one")
    os.close(lock)
    refused(tmp_path / "one", "another node", expected_id="0" * 32)
    refused(tmp_path / "two", "mounted", expected_id=store_id)
    assert not (tmp_path / "two").exists()


def test_a_home_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused(tmp_path / "file", "cannot hold")
    refused(tmp_path / "file" / "below", "cannot hold")
    refused(Path("/proc/tbshare"), "cannot hold")


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ([("/", "ext4"), ("{}", "nfs4")], "nfs4"),
        ([("/", "cifs")], "cifs"),
        ([("/", "nfs"), ("{}", "xfs")], "xfs"),
        ([("/", "ext4"), ("{}-2", "nfs4")], "ext4"),
        ([("/", "ext4"), ("{}", "ext4"), ("{}", "fuse.sshfs")], "fuse.sshfs"),  # mounted over
        ([], ""),
    ],
)
def test_a_network_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: list[tuple[str, str]], kind: str
) -> None:
    table = [(point.format(tmp_path), name) for point, name in mounts]
    monkeypatch.setattr(disk, "_mounts", lambda: table)
    assert disk.file_system_kind(tmp_path / "home") == kind
    if kind in disk.NETWORK_FILE_SYSTEMS:
        refused(tmp_path / "home", kind)
        assert not (tmp_path / "home").exists()
    else:
        os.close(open_home(tmp_path / "home")[2])


def test_the_mount_table_of_this_machine() -> None:
    assert disk.file_system_kind(Path("/proc")) == "proc"
    assert disk.file_system_kind(Path("/")) not in ("", "proc")


def test_only_tmp_is_swept(open_store: OpenStore) -> None:
    store = open_store()
    for name in ("staging", "quarantine", "views", "tmp"):
        (store.home.folder(name) / "left").write_bytes(b"x")
    (store.home.folder("tmp") / "folder").mkdir()
    store.close()
    again = open_store()
    assert not (again.home.folder("tmp") / "left").exists()
    for name in ("staging", "quarantine", "views"):
        assert (again.home.folder(name) / "left").exists()
