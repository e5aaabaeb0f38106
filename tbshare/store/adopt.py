"""`push --move`: the files themselves become objects, and links stand where they were; and back again.

A file is adopted in steps that each leave its bytes under its own name: checked that nobody writes to it, hashed
where it lies, made read-only, linked into objects/; after the ref is published a symbolic link takes the place of
the name. Until then `roll_back` makes everything as it was.
"""

import contextlib
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tbshare.content.block import ObjectId
from tbshare.content.manifest import Manifest
from tbshare.errors import InputRefused, SourceChanged
from tbshare.store import disk
from tbshare.store.care import drop_object
from tbshare.store.source import SourceFile, shown
from tbshare.store.store import Store

NOTE = "moved from "  # begins the note of the pin that keeps adopted objects
_F_SETLEASE, _F_GETLEASE = 1024, 1025


@dataclass(frozen=True, slots=True)
class Adopted:
    """A file whose bytes are an object now. `linked` is False when the object was there before."""

    real: Path
    object_id: ObjectId
    mode: int
    linked: bool
    marks: tuple[int, int, int]  # inode, size and mtime_ns of what was hashed


def check(store: Store, file: SourceFile, descriptor: int) -> None:
    """InputRefused unless the file can be adopted: ours, one name, nobody writing, on the store's file system."""
    status = os.fstat(descriptor)
    name = shown(file.path)
    if status.st_dev != os.stat(store.home.folder("objects")).st_dev:
        raise InputRefused(f"{name} is on another file system than the store", cure="push without --move")
    if status.st_uid != os.geteuid():
        raise InputRefused(f"{name} belongs to another user", cure="push without --move")
    if file.real.is_symlink():
        raise InputRefused(f"{name} is a link already", cure="push without --move")
    if status.st_nlink != 1:
        raise InputRefused(f"{name} has {status.st_nlink} hard links; one is allowed", cure="push without --move")
    if sys.platform == "linux":
        try:
            fcntl.fcntl(descriptor, _F_SETLEASE, fcntl.F_RDLCK)  # until `link`, or until the file is closed
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise InputRefused(
                    f"{name} is open for writing", cure="close the program that writes it"
                ) from error


def link(store: Store, file: SourceFile, descriptor: int, found: Manifest) -> list[Adopted]:
    """Make a hashed file an object. SourceChanged when it was touched since it was found."""
    status = os.fstat(descriptor)
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise SourceChanged(f"{shown(file.path)} changed while it was read", cure="push again")
    mode = stat.S_IMODE(status.st_mode)
    marks = (status.st_ino, status.st_size, status.st_mtime_ns)
    if store.is_whole(found.id):
        return [Adopted(file.real, found.id, mode, linked=False, marks=marks)]
    os.fchmod(descriptor, 0o444)
    disk.sync_file(descriptor)
    temporary = store.home.temporary("adopt")
    os.link(file.real, temporary, follow_symlinks=False)
    if _marks(temporary) != marks or not _lease_held(descriptor):
        temporary.unlink()  # another file has this name now, or somebody has opened it for writing
        os.fchmod(descriptor, mode)
        raise SourceChanged(f"{shown(file.path)} changed while it was read", cure="push again")
    store.adopt_file(found, temporary, "exact")
    if sys.platform == "linux":
        fcntl.fcntl(descriptor, _F_SETLEASE, fcntl.F_UNLCK)
    return [Adopted(file.real, found.id, mode, linked=True, marks=marks)]


def _marks(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None


def _lease_held(descriptor: int) -> bool:
    """Return whether nobody has opened the file for writing since `check`; where it cannot be told, True."""
    return sys.platform != "linux" or fcntl.fcntl(descriptor, _F_GETLEASE) == fcntl.F_RDLCK


def roll_back(store: Store, adopted: Iterable[Adopted]) -> None:
    """Make files that were linked, and whose ref was not published, what they were."""
    for each in adopted:
        if each.linked:
            drop_object(store, each.object_id)
            with contextlib.suppress(FileNotFoundError):
                os.chmod(each.real, each.mode)


def leave_links(store: Store, adopted: Iterable[Adopted]) -> int:
    """Replace adopted files by symbolic links to their objects; return how many."""
    moved = 0
    for each in adopted:
        extents = store.extents(each.object_id)
        if len(extents) != 1 or _marks(each.real) != each.marks:
            continue  # the bytes were here before in another layout; or the user has saved another file there
        place = each.real.with_name(f".{each.real.name}.tbshare-link")
        place.unlink(missing_ok=True)
        os.symlink(extents[0].path, place)
        os.replace(place, each.real)
        disk.sync_directory(each.real.parent)
        moved += 1
    return moved


def undo(store: Store, root: Path) -> int:
    """Put the bytes back where links into this store stand; return how many files.

    Each is a copy of its own (sharing blocks where the disk can), because the object stays and is immutable.
    """
    objects = store.home.folder("objects").resolve()
    links = _links(root)
    ours = [each for each in links if objects in Path(os.path.realpath(each)).parents]
    if not ours:
        raise InputRefused(f"nothing below {root} was moved into the store", cure="check the path")
    store.check_room(sum(each.stat().st_size for each in ours))
    for each in ours:
        temporary = each.with_name(f".{each.name}.tbshare-undo")
        _copy(Path(os.path.realpath(each)), temporary)
        os.replace(temporary, each)
        disk.sync_directory(each.parent)
    return len(ours)


def _links(root: Path) -> list[Path]:
    if root.is_symlink():
        return [root]
    paths = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return [path for path in paths if path.is_symlink()]


def _copy(source: Path, destination: Path) -> None:
    """Make a durable, writable copy that shares blocks where it can."""
    destination.unlink(missing_ok=True)
    descriptor = os.open(source, os.O_RDONLY)
    try:
        target = disk.clone_file(descriptor, destination)
        if target is None:
            target = os.open(destination, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            offset = 0
            while data := os.pread(descriptor, 1 << 22, offset):
                disk.write_all(target, data, offset)
                offset += len(data)
        try:
            os.fchmod(target, 0o644)
            disk.sync_file(target)
        finally:
            os.close(target)
    finally:
        os.close(descriptor)
