"""What a path contains: links, names, hub caches, what is left out. Everything refused says which path and why."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tbshare.errors import InputRefused
from tbshare.store.source import Choice, Source, hub_cache_path, scan, shown


def paths(source: Source) -> set[str]:
    return {shown(file.path) for file in source.files}


def refused(root: Path, match: str, choice: Choice | None = None) -> None:
    with pytest.raises(InputRefused, match=match) as caught:
        scan(root, choice or Choice())
    assert "\n" not in str(caught.value)


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_files_folders_and_modes(tmp_path: Path) -> None:
    write(tmp_path, "a", "b/c", "b/d/e")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "a").chmod(0o700)
    (tmp_path / "b/c").chmod(0o600)
    found = scan(tmp_path, Choice())
    assert paths(found) == {"a", "b/c", "b/d/e", "nothing"}
    assert set(found.folders) == {(), (b"b",), (b"b", b"d"), (b"empty",)}
    assert {shown(file.path): oct(file.mode) for file in found.files}["a"] == "0o755"
    assert {shown(file.path): oct(file.mode) for file in found.files}["b/c"] == "0o644"
    assert found.size == 1 + 3 + 5
    assert scan(tmp_path / "a", Choice()).files[0].path == (b"a",)


def test_what_is_left_out(tmp_path: Path) -> None:
    write(
        tmp_path, ".git/config", ".cache/x", "a.incomplete", ".DS_Store", "._a", "s/__pycache__/a.pyc", "a", "s/b"
    )
    found = scan(tmp_path, Choice())
    assert paths(found) == {"a", "s/b"}
    assert set(found.excluded) == {".git", ".cache", "a.incomplete", ".DS_Store", "._a", "s/__pycache__"}


def test_include_and_exclude(tmp_path: Path) -> None:
    write(tmp_path, "a.safetensors", "b.bin", "s/c.safetensors", "s/d.json", "o/e.safetensors")
    assert paths(scan(tmp_path, Choice(include=["*.safetensors"]))) == {
        "a.safetensors",
        "s/c.safetensors",
        "o/e.safetensors",
    }
    assert paths(scan(tmp_path, Choice(exclude=["s/", "*.bin"]))) == {"a.safetensors", "o/e.safetensors"}
    assert paths(scan(tmp_path, Choice(include=["s/*"], exclude=["*.json"]))) == {"s/c.safetensors"}
    assert paths(scan(tmp_path, Choice(include=["nothing"]))) == set()


def test_paths_that_cannot_be_pushed(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such file")
    refused(Path("/dev/null"), "character device")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "named pipe")
    refused(tmp_path, "named pipe")
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(tmp_path, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
        refused(tmp_path, "socket")
    assert paths(scan(tmp_path, Choice(exclude=["socket"]))) == set()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (b"new\nline", "control"),
        (b"bell\a", "control"),
        (b"del\x7f", "control"),
        (b"\xff\xfe", "UTF-8"),
        (b"esc\x1b[31m", "control"),
    ],
)
def test_names_other_machines_could_not_show(tmp_path: Path, name: bytes, match: str) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb"):
        pass
    refused(tmp_path, match)
    os.unlink(path)
    os.mkdir(path)
    refused(tmp_path, match)


def test_all_other_names(tmp_path: Path) -> None:
    names = ["x" * 255, "ä" * 127, " space ", "-rf", "a\\b", "*", "'\"$(x)`", "..."]
    write(tmp_path, *names)
    assert paths(scan(tmp_path, Choice())) == set(names)


def test_links_inside_stay_links(tmp_path: Path) -> None:
    write(tmp_path, "s/a", "b")
    (tmp_path / "s/up").symlink_to("../b")
    (tmp_path / "down").symlink_to("s/a")
    (tmp_path / "folder").symlink_to("s")
    found = scan(tmp_path, Choice())
    assert {(shown(link.path), link.target) for link in found.links} == {
        ("s/up", b"../b"),
        ("down", b"s/a"),
        ("folder", b"s"),
    }
    followed = scan(tmp_path, Choice(follow_links=True))
    assert paths(followed) == {"s/a", "s/up", "b", "down", "folder/a", "folder/up"}
    assert not followed.links


def outward(root: Path) -> None:
    (root.parent / "outside").write_bytes(b"secret")
    (root / "link").symlink_to("../outside")


def absolute(root: Path) -> None:
    (root / "link").symlink_to("/etc/passwd")


def around(root: Path) -> None:
    write(root, "a")
    (root / "link").symlink_to(f"../{root.name}/a")


def dangling(root: Path) -> None:
    (root / "link").symlink_to("nowhere")


def itself(root: Path) -> None:
    (root / "link").symlink_to("link")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (outward, "outside of what is pushed"),
        (absolute, "outside of what is pushed"),
        (around, "outside of what is pushed"),
        (dangling, "leads nowhere"),
        (itself, "leads nowhere"),
    ],
)
def test_links_that_are_refused(tmp_path: Path, make: Callable[[Path], None], match: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make(root)
    refused(root, match)
    assert "link" not in paths(scan(root, Choice(exclude=["link"])))
    if match.startswith("outside"):
        assert "link" in paths(scan(root, Choice(follow_links=True)))


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    write(tmp_path, "s/a")
    (tmp_path / "s/loop").symlink_to("..")
    assert len(scan(tmp_path, Choice()).links) == 1
    refused(tmp_path, "back into a directory", Choice(follow_links=True))
    (tmp_path / "s/loop").unlink()
    (tmp_path / "s/pipe").symlink_to(tmp_path / "fifo")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path, "named pipe", Choice(follow_links=True, exclude=["fifo"]))


def test_too_deep(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(110):
        deep = deep / "d"
    deep.mkdir(parents=True)
    refused(tmp_path, "above it")


@pytest.mark.root
def test_a_folder_nobody_may_read(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becomes another user: needs root")
    os.seteuid(65534)
    try:
        refused(tmp_path, "permission denied")
    finally:
        os.seteuid(0)


# ---- the cache of the Hugging Face hub ----------------------------------------------------------------------


def hub(cache: Path, *, revisions: tuple[str, ...] = ("abc",), main: str = "abc") -> Path:
    """Make a cache directory as huggingface_hub does: snapshots of links into blobs."""
    model = cache / "models--org--Tiny-1.5"
    write(model, "blobs/h1", "blobs/h2")
    for revision in revisions:
        (model / "snapshots" / revision / "sub").mkdir(parents=True)
        (model / "snapshots" / revision / "config.json").symlink_to("../../blobs/h1")
        (model / "snapshots" / revision / "sub" / "w.safetensors").symlink_to("../../../blobs/h2")
    if main:
        write(model, "refs/main")
        (model / "refs/main").write_text(main + "\n")
    return model


@pytest.mark.parametrize("below", ["", "snapshots/abc"])
def test_a_hub_cache_is_understood(tmp_path: Path, below: str) -> None:
    model = hub(tmp_path)
    found = scan(model / below, Choice())
    assert paths(found) == {"config.json", "sub/w.safetensors"}
    assert (found.name, found.revision, found.hub_cache) == ("org/Tiny-1.5", "abc", True)
    assert not found.links
    assert found.size == len("blobs/h1") * 2


def test_a_hub_cache_behind_a_link(tmp_path: Path) -> None:
    hub(tmp_path / "disk")
    (tmp_path / "cache").symlink_to("disk")
    assert paths(scan(tmp_path / "cache" / "models--org--Tiny-1.5", Choice())) == {
        "config.json",
        "sub/w.safetensors",
    }


def test_which_snapshot(tmp_path: Path) -> None:
    one = hub(tmp_path / "one", main="")
    assert scan(one, Choice()).revision == "abc"
    two = hub(tmp_path / "two", revisions=("abc", "def"), main="")
    refused(two, "2 snapshots")
    main = hub(tmp_path / "main", revisions=("abc", "def"), main="def")
    assert scan(main, Choice()).revision == "def"
    gone = hub(tmp_path / "gone", main="fff")
    refused(gone, "does not say which")


def test_links_of_a_hub_cache_that_leave_it(tmp_path: Path) -> None:
    model = hub(tmp_path)
    link = model / "snapshots/abc/stolen"
    link.symlink_to("/etc/passwd")
    refused(model, "outside of what is pushed")
    link.unlink()
    link.symlink_to("../../../models--org--Tiny-1.5/refs/main")
    refused(model, "outside of what is pushed")


def test_an_incomplete_download(tmp_path: Path) -> None:
    model = hub(tmp_path)
    (model / "blobs/h2").unlink()
    refused(model, "leads nowhere")


def test_where_the_cache_is(tmp_path: Path) -> None:
    hub(tmp_path / ".cache/huggingface/hub")
    hub(tmp_path / "elsewhere/hub")
    expected = "models--org--Tiny-1.5"
    assert hub_cache_path("org/Tiny-1.5", {"HOME": str(tmp_path)}).name == expected
    found = hub_cache_path("org/Tiny-1.5", {"HOME": "/none", "HF_HOME": str(tmp_path / "elsewhere")})
    assert found.parent == tmp_path / "elsewhere/hub"
    with pytest.raises(InputRefused, match="not in the Hugging Face cache") as caught:
        hub_cache_path("org/other", {"HOME": str(tmp_path)})
    assert caught.value.cure == "hf download org/other"
    for strange in ("../../etc", "/etc", "", "org/../../x", "a\0b"):
        with pytest.raises(InputRefused):
            hub_cache_path(strange, {"HOME": str(tmp_path)})
