"""What was cut from a working file becomes a version of the file it was staged for. In worker threads.

A save goes to the file by its id, wherever its name is by now, and starts from the version that was staged: what
somebody else saved meanwhile stays beside it. A new file whose name was taken meanwhile stands beside, too; one
whose directory was removed brings the directory back. In a bundle the bundle is saved, from the version it has
now, unless just this file was changed in it meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tbshare.errors import PathExists, PathIsDirectory, PathMissing, PathNotDirectory
from tbshare.store.cutting import Cut
from tbshare.store.staging import Row
from tbshare.volumes.item import Attributes, Content, Item, Path, Put, Saved
from tbshare.volumes.volume import Handle


@dataclass(frozen=True)
class Kept:
    """Where the bytes are now: `item` is None when the file has no name any more."""

    file: int
    version: int
    item: Item | None
    is_new: bool  # a version was added; else the file had these bytes already


def save(handle: Handle, row: Row, path: Path, cut: Cut, mtime_ns: int, attributes: Attributes) -> Kept:
    """Save; raises the errors of `Handle.save`, but for those that a free path cures."""
    content = Content(cut.object_id, cut.size, mtime_ns)
    if _in_bundle(handle, path):
        return _save_in_bundle(handle, row, path, content, attributes)
    if row.file:
        return _save_version(handle, row, path, content, attributes)
    return _save_new(handle, path, content, attributes)


def _in_bundle(handle: Handle, path: Path) -> bool:
    try:
        above = handle.find(path[:-1])
    except PathNotDirectory:
        return False
    return above is not None and (above.inside or above.kind == "bundle")


def _save_in_bundle(handle: Handle, row: Row, path: Path, content: Content, attributes: Attributes) -> Kept:
    there = handle.find(path)
    if there is not None and there.kind == "file" and there.content == content.content:
        return Kept(there.file, there.version, _described(handle, path, there, content, attributes), is_new=False)
    same = there is None or not row.version or there.content == row.content
    base = None if same else [row.version]
    return _kept(handle, handle.save(path, content, base=base, attributes=attributes))


def _save_version(handle: Handle, row: Row, path: Path, content: Content, attributes: Attributes) -> Kept:
    try:
        head = handle.item(row.file)
    except PathMissing:  # its volume was made anew from a log that has lost it
        return _save_new(handle, path, content, attributes)
    unchanged = content.content == row.content and row.version
    if unchanged or head.content == content.content:
        there = handle.find(path)
        if there is not None and there.file == row.file:
            there = _described(handle, path, there, content, attributes)
        return Kept(row.file, row.version if unchanged else head.version, there, is_new=False)
    base = [row.version] if row.version else None
    return _kept(handle, handle.save(row.file, content, base=base, attributes=attributes))


def save_new(handle: Handle, files: Sequence[tuple[Path, Cut, Attributes]]) -> list[Kept]:
    """Make several files as one change; PathExists when a name is taken, and nothing is made."""
    if len({path for path, _, _ in files}) < len(files) or any(_in_bundle(handle, path) for path, _, _ in files):
        raise PathExists("these files are not made together")
    puts = [
        Put(path, "file", Content(cut.object_id, cut.size, cut.mtime_ns), attributes, new=True)
        for path, cut, attributes in files
    ]
    return [_kept(handle, saved) for saved in handle.put_many(puts)]


def _save_new(handle: Handle, path: Path, content: Content, attributes: Attributes) -> Kept:
    try:
        return _kept(handle, handle.create(path, content, attributes=attributes))
    except PathExists:
        there = handle.find(path)
        if there is not None and there.kind == "file" and there.content == content.content:
            return Kept(there.file, there.version, there, is_new=False)  # an earlier attempt got so far
    except (PathMissing, PathNotDirectory):
        path = _way_to(handle, path)
    try:
        return _kept(handle, handle.save(path, content, base=[], attributes=attributes))
    except (PathIsDirectory, PathExists):
        return _kept(handle, handle.create(_free(handle, path), content, attributes=attributes))


def _way_to(handle: Handle, path: Path) -> Path:
    """Make the directories above a path; return the path, or a free one where a file is in the way."""
    for depth in range(1, len(path)):
        above = path[:depth]
        there = handle.find(above)
        if there is None or not there.is_directory:
            if there is not None:
                above = _free(handle, above)
                path = (*above, *path[depth:])
            handle.mkdir(above, parents=True)
    return path


def _free(handle: Handle, path: Path) -> Path:
    """Return a path beside this one that nothing has."""
    number = 1
    while True:
        name = path[-1][: 255 - 20] + b" (recovered" + (b" %d" % number if number > 1 else b"") + b")"
        if handle.find((*path[:-1], name)) is None:
            return (*path[:-1], name)
        number += 1


def _described(handle: Handle, path: Path, there: Item, content: Content, attributes: Attributes) -> Item:
    """Bring the attributes of a file whose bytes are the same to what they are to be."""
    mode = attributes.mode if attributes.mode not in (None, there.mode) else None
    mtime_ns = content.mtime_ns if content.mtime_ns != there.mtime_ns else None
    if mode is None and mtime_ns is None:
        return there
    return handle.describe(path, Attributes(mode=mode, mtime_ns=mtime_ns))


def _kept(handle: Handle, saved: Saved) -> Kept:
    item = handle.find(saved.path) if saved.path else None
    return Kept(saved.file, saved.version, item, is_new=True)
