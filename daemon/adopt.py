"""`push --move`: the files themselves become the objects, and links stand where they were; and back again."""

import os
import stat
from pathlib import Path

from tbshare.content.block import TreeId
from tbshare.errors import InputRefused
from tbshare.store import disk
from tbshare.store.arriving import SMALL_BYTES
from tbshare.store.source import Source, shown
from tbshare.store.store import Store


def adopt(store: Store, source: Source, tree: TreeId) -> int:
    """Replace each large file of a source by a link to its object; return how many.

    The object is complete and synced before the file goes, so that the bytes exist throughout. Small files rest in
    packs and stay where they are.
    """
    if source.hub_cache:
        raise InputRefused("--move would break the Hugging Face cache", cure="push without --move")
    objects = {path: object_id for path, object_id, _ in store.files_below(tree)}
    moved = 0
    for file in source.files:
        object_id = objects.get(file.path)
        if object_id is None or file.size <= SMALL_BYTES:
            continue
        status = os.lstat(file.real)
        if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise InputRefused(
                f"{shown(file.path)} changed while it was pushed; it stays as it is", cure="push again"
            )
        if status.st_nlink > 1:
            raise InputRefused(
                f"{shown(file.path)} has another hard link; it stays as it is", cure="push without --move"
            )
        extents = store.extents(object_id)
        if len(extents) != 1:
            continue  # a shifted object is not the file byte by byte
        link = file.real.with_name(f".{file.real.name}.tbshare-link")
        link.unlink(missing_ok=True)
        os.symlink(extents[0].path, link)
        os.replace(link, file.real)
        disk.sync_directory(file.real.parent)
        moved += 1
    return moved


def undo(store: Store, root: Path) -> int:
    """Put files that links into this store stand for back in their places; return how many."""
    objects = store.home.folder("objects").resolve()
    links = (
        [root]
        if root.is_symlink()
        else [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    )
    moved = 0
    for link in links:
        if not link.is_symlink():
            continue
        target = Path(os.readlink(link))
        if objects not in target.parents:
            continue
        temporary = link.with_name(f".{link.name}.tbshare-undo")
        _copy(target, temporary)
        os.replace(temporary, link)
        disk.sync_directory(link.parent)
        moved += 1
    if not moved:
        raise InputRefused(f"nothing below {root} was moved into the store", cure="check the path")
    return moved


def _copy(source: Path, destination: Path) -> None:
    """Make a durable copy that shares blocks where it can."""
    destination.unlink(missing_ok=True)
    descriptor = os.open(source, os.O_RDONLY)
    try:
        target = disk.clone_file(descriptor, destination)
        if target is None:
            target = os.open(destination, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            offset = 0
            while data := os.pread(descriptor, 1 << 22, offset):
                disk.write_all(target, data, offset)
                offset += len(data)
        os.fchmod(target, 0o644)
        disk.sync_file(target)
        os.close(target)
    finally:
        os.close(descriptor)
