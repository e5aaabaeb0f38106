"""Directories that stand for a tree: real names, the bytes in place. For engines and people that want a path.

Large files are hard links to the objects (read-only, no second copy); small ones, which rest in packs, are written
out. A shifted object appears as its shifted file: a valid safetensors file with a longer header.
"""

import os
import shutil
from pathlib import Path

from tbshare.content.block import ObjectId, TreeId
from tbshare.content.tree import Entry
from tbshare.content.tree import Kind as EntryKind
from tbshare.errors import ObjectMissing, StoreUnusable
from tbshare.store import disk
from tbshare.store.store import Store

# Formats that run code when they are opened by the usual libraries.
# How pickles begin, and the zip files PyTorch puts them in: a .bin may be one, or plain bytes.
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
CODE_SUFFIXES = (
    ".py",
    ".pyc",
    ".pkl",
    ".pickle",
    ".pt",
    ".pth",
    ".ckpt",
    ".joblib",
    ".so",
    ".dylib",
    ".npy_pkl",
)


def runs_code(name: bytes) -> bool:
    """Return whether opening a file of this name is known to run code that is in it."""
    return os.fsdecode(name).lower().endswith(CODE_SUFFIXES)


def view_path(store: Store, name: str, rev: str, *, code: bool) -> Path:
    """Return the directory for a version; the same each time."""
    flat = name.replace("/", "--")
    return store.home.folder("views") / f"{flat}@{rev}{'+code' if code else ''}"


def _left_out(store: Store, entry: Entry) -> bool:
    """Return whether an entry needs `allow_code`; a link too, whose name is what an engine opens."""
    if entry.kind == EntryKind.TREE or runs_code(entry.name):
        return entry.kind != EntryKind.TREE
    if entry.kind != EntryKind.FILE or not entry.size or not entry.name.lower().endswith(b".bin"):
        return False
    return store.read_block(ObjectId(entry.target), 0).startswith(PICKLE_STARTS)


def materialise(store: Store, tree_id: TreeId, directory: Path, *, allow_code: bool) -> list[str]:
    """Make `directory` show a tree; return the paths left out because they run code.

    Made beside and renamed, so that whoever sees the directory sees all of it. ObjectMissing when it is not whole.
    """
    walked = store.walk(tree_id)
    left_out = [
        b"/".join(path).decode("utf-8", "replace")
        for path, entry in walked
        if _left_out(store, entry) and not allow_code
    ]
    marker = directory / ".tbshare-tree"
    if marker.is_file() and marker.read_text() == tree_id.hex():
        return left_out
    temporary = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True, mode=0o755)
    for path, entry in walked:
        target = temporary.joinpath(*(os.fsdecode(part) for part in path))
        if _left_out(store, entry) and not allow_code:
            continue
        if entry.kind == EntryKind.TREE:
            target.mkdir()
        elif entry.kind == EntryKind.LINK:
            os.symlink(os.fsdecode(entry.target), target)
        else:
            _file(store, ObjectId(entry.target), target, entry.mode)
    # The marker says that the view can be used as it is: it must not outlive the power without the rest.
    for folder, _, _ in os.walk(temporary, topdown=False):
        disk.sync_directory(Path(folder))
    disk.write_new(temporary / marker.name, tree_id.hex().encode(), 0o444)
    disk.sync_directory(temporary)
    if directory.exists():
        shutil.rmtree(directory)
    os.rename(temporary, directory)
    disk.sync_directory(directory.parent)
    return left_out


def _file(store: Store, object_id: ObjectId, target: Path, mode: int) -> None:
    extents = store.extents(object_id)
    row = store.row(object_id)
    assert row is not None
    if row.place == "packed":
        found = store.manifest(object_id)
        assert found is not None
        data = b"".join(store.read_block(object_id, number) for number in range(found.block_count))
        disk.write_new(target, data, mode & 0o555)
        return
    try:
        os.link(extents[-1].path, target)
    except FileNotFoundError as error:
        raise ObjectMissing(f"{target.name} is gone from the store", cure="tbshare verify --repair") from error
    except OSError as error:
        raise StoreUnusable(f"{target.name} cannot be linked: {error.strerror}") from error


def remove(store: Store, tree_id: TreeId) -> None:
    """Delete the views of a tree; whoever has files of it open or mapped keeps them."""
    for directory in store.home.folder("views").iterdir():
        marker = directory / ".tbshare-tree"
        if marker.is_file() and marker.read_text() == tree_id.hex():
            shutil.rmtree(directory, ignore_errors=True)
