"""One volume as its users see it: paths, versions, forks, history.

Every operation is one entry of the log: it happens as a whole, is durable when the call returns, and this node
reads it at once. What needs more than an entry holds, to remove a hundred thousand files, is several, in an order
that may end after any of them. Errors are `FileError`s, whose errno a mount answers.
"""

import builtins
from collections.abc import Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import msgspec

from tbshare.content import tree
from tbshare.content.tree import LINK_BYTES_MAX
from tbshare.errors import (
    CrossesVolumes,
    DirectoryNotEmpty,
    PathExists,
    PathInvalid,
    PathIsDirectory,
    PathMissing,
    PathNotDirectory,
    TooManyAtOnce,
)
from tbshare.volumes import expiry, moving, past, seeing
from tbshare.volumes.bundle import FINDER_INFO, is_package
from tbshare.volumes.entry import OPS_MAX
from tbshare.volumes.filling import Filling, described, new_entry
from tbshare.volumes.fold import Snapshot
from tbshare.volumes.item import (
    Attributes,
    Change,
    Conflict,
    Content,
    Item,
    Line,
    Path,
    Put,
    Saved,
    Totals,
)
from tbshare.volumes.namespace import SIZE_MAX
from tbshare.volumes.opened import Look, Opened
from tbshare.volumes.paths import Found, at, deepest, find, items
from tbshare.volumes.rows import Changes
from tbshare.volumes.shown import clash_key, may_be_generated
from tbshare.volumes.writing import Writing

PUTS_AT_ONCE: Final = OPS_MAX // 4  # a new file is a place, a version and attributes, besides directories


@dataclass(frozen=True)
class _Looked(Look):
    """What the paths of an operation lead to."""

    found: tuple[Found, ...] = ()


class Handle:
    """An open volume; safe to call from several threads. Paths are tuples of names, () being the root."""

    def __init__(self, opened: Opened, epochs: Mapping[int, int] | None = None) -> None:
        """Use `Volumes.open`."""
        self._opened = opened
        self._epochs = epochs or {}

    def under(self, epochs: Mapping[int, int]) -> "Handle":
        """Return the volume as it is written under leases: `epochs` says of which files, and with which epoch."""
        return Handle(self._opened, epochs)

    @property
    def id(self) -> int:
        """The volume's id."""
        return self._opened.id

    @property
    def name(self) -> str:
        """The volume's name, as it is now."""
        return self._opened.volume.name

    # ---- reading --------------------------------------------------------------------------------------

    @property
    def why_read_only(self) -> str:
        """Why this node may not write: role, mode, a snapshot, damage, a newer version; "" when it may."""
        return self._opened.why_read_only()

    def lookup(self, path: Path) -> Item:
        """Return what has this path, a fork's shown name included; PathMissing, PathNotDirectory, PathInvalid."""
        return find(self._opened, path).there()

    def find(self, path: Path) -> Item | None:
        """Return what has this path, or None."""
        try:
            return find(self._opened, path).item
        except (PathMissing, PathNotDirectory):
            return None

    def list(self, path: Path) -> list[Item]:
        """Return what is in a directory or a bundle, as shown, ordered by name."""
        return items(self._opened, path)

    def item(self, file: int, version: int = 0) -> Item:
        """Return a file by its id, under the first of its names, b"" when it has none; PathMissing if unknown."""
        return seeing.item(self._opened, file, version)

    def paths(self, file: int) -> builtins.list[Path]:
        """Return the paths of a file, or of a directory, that are alive; several when there are hard links."""
        return seeing.paths(self._opened, file)

    def totals(self) -> Totals:
        """Return number and bytes of the files, and the quota."""
        files, size = self._opened.tables.totals()
        return Totals(files, min(size, SIZE_MAX), self._opened.policy.quota_bytes)

    def changed(self, changes: Changes) -> builtins.list[Change]:
        """Return what a fold changed, as paths: for `watch`."""
        return seeing.changed(self._opened, changes)

    # ---- writing --------------------------------------------------------------------------------------

    def mkdir(self, path: Path, *, parents: bool = False, attributes: Attributes | None = None) -> Item:
        """Make a directory; PathExists, unless with `parents` it is a directory already.

        One whose name ends as a bundle's does is a bundle.
        """
        put = Put(path, "directory", attributes=attributes)
        if parents:
            item = self.find(path)
            if item is None:
                self.put_many([put])
            elif not item.is_directory:
                raise PathExists(f"{at(path)} is there already")
            return self.lookup(path)
        with self._looking(path) as looked:
            if looked.found[0].item is not None:
                raise PathExists(f"{at(path)} is there already")
            self._fill([put])
        return self.lookup(path)

    def create(self, path: Path, content: Content, *, attributes: Attributes | None = None) -> Saved:
        """Make a file; PathExists when the name is taken."""
        with self._looking(path) as looked:
            if looked.found[0].item is not None:
                raise PathExists(f"{at(path)} is there already")
            return self._save(looked.found[0], content, None, attributes)

    def symlink(self, path: Path, target: bytes) -> Saved:
        """Make a symbolic link; PathExists."""
        if not 0 < len(target) <= LINK_BYTES_MAX or b"\0" in target:
            raise PathInvalid(f"a link points somewhere, in at most {LINK_BYTES_MAX} bytes")
        return self.create(path, Content(target, len(target), self._opened.shared.time_ns(), "link"))

    def save(
        self,
        target: Path | int,
        content: Content,
        *,
        base: Sequence[int] | None = None,
        attributes: Attributes | None = None,
    ) -> Saved:
        """Add a version to the file at a path (made when missing), or of an id (even if its name is gone).

        `base` are the versions the writer started from, None being the one shown now, and none of them that there
        was no file: what was saved since then by anybody stays beside it as a fork.
        """
        if isinstance(target, int):
            return self._save_file(target, content, base, attributes)
        with self._looking(target) as looked:
            return self._save(looked.found[0], content, base, attributes)

    def put_many(self, puts: Sequence[Put], *, together: bool = False) -> builtins.list[Saved]:
        """Put many things in at once, with the directories above them that are missing, as one entry if they fit.

        Where a file is already, it gets a version, unless its content is the same; attributes are set. What is
        in a bundle gives no `Saved`: it is saved with the bundle. With `together` what does not fit in one entry
        is TooManyAtOnce, and nothing is put in.
        """
        if together and len(puts) > PUTS_AT_ONCE:
            raise TooManyAtOnce(f"{len(puts)} files at once; at most {PUTS_AT_ONCE} are saved together")
        saved: builtins.list[Saved] = []
        for start in range(0, len(puts), PUTS_AT_ONCE):
            part = puts[start : start + PUTS_AT_ONCE]
            with self._opened.settled(partial(_look_above, self._opened, [put.path for put in part])):
                saved += self._fill(part, together=together)
        return saved

    def link(self, source: Path, path: Path, *, into: "Handle | None" = None) -> Item:
        """Give a file a second name; PathExists, PathIsDirectory, and CrossesVolumes for what is in a bundle."""
        self._check_same(into)
        with self._looking(source, path) as looked:
            one, there = looked.found
            if there.item is not None:
                raise PathExists(f"{at(path)} is there already")
            if one.there().is_directory:
                raise PathIsDirectory(f"{at(source)} is a directory")
            if one.inside or there.inside or one.fork or one.file is None:
                raise CrossesVolumes("a bundle and a fork are whole by themselves: they take no second names")
            writing = Writing(self._opened, self._epochs)
            writing.place(there.parent, path[-1], one.file.id)
            writing.commit()
        return self.lookup(path)

    def rename(
        self,
        source: Path,
        target: Path,
        *,
        exchange: bool = False,
        replace: bool = True,
        into: "Handle | None" = None,
    ) -> Item:
        """Move as POSIX does; a file over a file is a new version of the one that is there (safe-save).

        With `exchange` both change places; without `replace` PathExists when the target is there. `into` is where
        the target is said to be: CrossesVolumes when that is another volume.
        """
        self._check_same(into)
        with self._looking(source, target, moving=True) as looked:
            one, there = looked.found
            if there.item is not None and not (replace or exchange) and there.item.id != one.there().id:
                raise PathExists(f"{at(target)} is there already")
            writing = Writing(self._opened, self._epochs)
            (moving.exchange if exchange else moving.rename)(writing, one, there)
            writing.commit()
        return self.lookup(target)

    def _check_same(self, into: "Handle | None") -> None:
        if into is not None and into.id != self.id:
            raise CrossesVolumes(f"volumes {self.name} and {into.name} are two: copy, then remove")

    def copy(self, source: Path, target: Path, *, replace: bool = False) -> Saved:
        """Make a file with the same content, whatever its size; PathExists, PathIsDirectory."""
        with self._looking(source, target) as looked:
            one, there = looked.found
            if one.there().kind == "directory" and not one.inside:
                raise PathIsDirectory(f"{at(source)} is a directory")
            if there.item is not None and not replace:
                raise PathExists(f"{at(target)} is there already")
            if there.item is not None:
                moving.check_alike(there.item.is_directory, one.there().is_directory, target)
                if there.item.kind == "directory":
                    raise PathExists(f"{at(target)} is there already, and is not a bundle")
            writing = Writing(self._opened, self._epochs)
            writing.put_entry(there, writing.entry_of(one))
            return self._saved(target, writing.commit(), writing)

    def describe(self, path: Path, attributes: Attributes) -> Item:
        """Change attributes; a directory that they make a package becomes a bundle."""
        with self._looking(path) as looked:
            found = looked.found[0]
            item, writing = found.there(), Writing(self._opened, self._epochs)
            finder_info = attributes.xattrs.get(FINDER_INFO)
            if found.inside:
                draft = writing.draft(found)
                entry = draft.find(found.inside)
                assert entry is not None, "the item was found there"
                draft.describe(found.inside, described(entry, attributes))
            elif found.file is not None:
                writing.describe(found.file.id, attributes, found.file.attributes)
            elif found.directory is not None:
                writing.describe(item.file, attributes, found.directory.attributes, directory=True)
                if path and isinstance(finder_info, bytes) and is_package(finder_info):
                    writing.ops.clear()
                    writing.put_new(found, described(writing.entry_of(found), attributes), bundle=True)
                    writing.remove_found(found)
            writing.commit()
        return self.lookup(path)

    def remove(self, path: Path) -> None:
        """Take a file's name away, or settle a fork by its shown name; its versions stay in the history."""
        with self._looking(path) as looked:
            if looked.found[0].there().is_directory:
                raise PathIsDirectory(f"{at(path)} is a directory")
            self._remove(looked.found[0])

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory; DirectoryNotEmpty."""
        with self._looking(path) as looked:
            found = looked.found[0]
            if not found.there().is_directory:
                raise PathNotDirectory(f"{at(path)} is not a directory")
            if not Writing(self._opened, self._epochs).is_empty(found):
                raise DirectoryNotEmpty(f"{at(path)} is not empty")
            self._remove(found)

    def remove_tree(self, path: Path) -> int:
        """Remove a file or a directory with all below; return how many names went.

        What others save below it meanwhile comes back, with the directories it is in.
        """
        with self._looking(path) as looked:
            looked.found[0].there()
            return self._remove(looked.found[0])

    def _remove(self, found: Found) -> int:
        if not found.path:
            raise PathInvalid("the root of a volume cannot be removed")
        writing = Writing(self._opened, self._epochs)
        removed = writing.remove_found(found)
        writing.commit()
        return removed

    def _save(
        self, found: Found, content: Content, base: Sequence[int] | None, attributes: Attributes | None
    ) -> Saved:
        """Add a version to what a path leads to, or make it."""
        writing = Writing(self._opened, self._epochs)
        if found.file is not None and base:
            found = self._based(found, base)
        if found.inside:
            draft = writing.draft(found)
            known = draft.find(found.inside)
            entry = new_entry(found.path[-1], content, None)
            if known is not None:
                moving.check_alike(known.kind == tree.Kind.TREE, content.kind == "bundle", found.path)
                entry = msgspec.structs.replace(entry, mode=known.mode, xattrs=known.xattrs)
            draft.put(found.inside, described(entry, attributes) if attributes is not None else entry)
        elif found.item is None:
            writing.new_file(found.parent, found.path[-1], content, attributes)
        else:
            moving.check_alike(found.item.is_directory, content.kind == "bundle", found.path)
            assert found.file is not None, "a directory is not saved"
            assert found.head is not None
            parents = (found.head.version,) if base is None else base
            writing.save(found.file, content, parents, instead_of=[found.head])
            if attributes is not None:
                writing.describe(found.file.id, attributes, found.file.attributes)
            writing.remove_twins(found)
        committed = writing.commit()
        ((file, version),) = writing.versions.items()
        return seeing.saved(self._opened, file, version, committed, found.path)

    def _based(self, found: Found, base: Sequence[int]) -> Found:
        """Return where a path leads as somebody saw it who started from these versions."""
        assert found.file is not None
        rows = [self._opened.tables.version(found.file.id, version) for version in base]
        if None in rows:
            raise PathMissing(f"{at(found.path)} has no such version; tbshare history shows them")
        return replace(found, head=rows[0]) if found.inside else found

    def _save_file(
        self, file: int, content: Content, base: Sequence[int] | None, attributes: Attributes | None
    ) -> Saved:
        """Add a version to the file of this id; if its last name is gone, only to its history."""
        with self._opened.settled(lambda: Look(frozenset({("file", file)}), frozenset())):
            row = self._opened.tables.file(file)
            if row is None or not row.heads:
                raise PathMissing(f"there is no file {file:016x} in the volume")
            writing = Writing(self._opened, self._epochs)
            parents = (row.heads[0].version,) if base is None else base
            version = writing.save(row, content, parents, instead_of=row.heads[:1])
            if attributes is not None:
                writing.describe(file, attributes, row.attributes)
            if not row.alive:
                writing.remove_again(row, version)
            entry = writing.commit()
        return seeing.saved(self._opened, file, version, entry)

    def _saved(self, path: Path, entry: bytes, writing: Writing) -> Saved:
        try:
            found = find(self._opened, path)
        except (PathMissing, PathNotDirectory):
            found = Found(path)  # what another node moved at this moment is elsewhere
        if found.directory is not None:
            return Saved(found.directory.id, 0, path, False, entry)
        file, version = next(iter(writing.versions.items()), (0, 0))
        still = found.file is not None and found.file.id == file
        return seeing.saved(self._opened, file, version, entry, path if still else ())

    def _fill(self, puts: Sequence[Put], *, together: bool = False) -> builtins.list[Saved]:
        writing = Writing(self._opened, self._epochs)
        filling = Filling(self._opened, writing)
        files = [(put.path, filling.put(put)) for put in puts]
        filling.finish()
        entry = writing.commit(together=together)
        versions = writing.versions
        return [
            seeing.saved(self._opened, file, versions.get(file, 0), entry, path) for path, file in files if file
        ]

    @contextmanager
    def _looking(self, *paths: Path, moving: bool = False) -> Generator[_Looked, None, None]:
        """Look where paths lead, and let no other caller of this node change that until the block ends."""
        with self._opened.settled(lambda: _look(self._opened, paths, moving=moving)) as looked:
            yield looked

    # ---- history --------------------------------------------------------------------------------------

    def history(self, path: Path) -> builtins.list[Line]:
        """Return the versions of what has, or had, this path, newest first; of a fork's name those before it."""
        return past.history(self._opened, path)

    def restore(
        self, path: Path, *, version: int = 0, before_ns: int | None = None, target: Path | None = None
    ) -> builtins.list[Saved]:
        """Save an older version again, as the newest; everything below a directory. Deleted paths come back.

        It is the version given, or what there was at a moment, or of what was deleted what there was last.
        """
        wanted = past.wanted(self._opened, path, version, before_ns)
        if target is not None:
            return self.put_many([past.put_of(one, (*target, *one.path[len(path) :])) for one in wanted])
        saved: builtins.list[Saved] = []
        for start in range(0, len(wanted), PUTS_AT_ONCE):
            part = wanted[start : start + PUTS_AT_ONCE]
            with self._opened.settled(partial(_look_above, self._opened, [one.path for one in part])):
                saved += past.restore(self._opened, part, self._epochs)
        return saved

    def conflicts(self, limit: int = 1000) -> builtins.list[Conflict]:
        """Return what is shown under a name other than its own."""
        return seeing.conflicts(self._opened, limit)

    def resolve(self, path: Path, keep: int = 0) -> Saved:
        """End a conflict: the head `keep`, or the one at this path, stays; the others become history."""
        with self._looking(path) as looked:
            found = looked.found[0]
            found.there()
            if found.file is None or found.inside:
                raise PathInvalid(f"{at(path)} has no versions: rename what is to have another name")
            keep = keep or found.there().version
            kept = next((head for head in found.file.heads if head.version == keep), None)
            if kept is None:
                raise PathMissing(f"{at(path)} has no such head; tbshare conflicts shows them")
            writing = Writing(self._opened, self._epochs)
            version = writing.resolve(replace(found, head=kept))
            entry = writing.commit()
            return seeing.saved(self._opened, found.file.id, version, entry)

    def snapshot_create(self, name: str) -> Snapshot:
        """Name the state of the volume as this node knows it now."""
        return past.snapshot_create(self._opened, name)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots, oldest first."""
        return self._opened.shared.state.snapshots(self.id)

    def snapshot_remove(self, name: str) -> None:
        """Forget a snapshot."""
        past.snapshot_remove(self._opened, name)

    def expire(self, disk_bytes: int) -> builtins.list[tuple[int, int]]:
        """Give up what is beyond the history to keep, on a disk of this size; return it as (file, version)."""
        return expiry.expire(self._opened, disk_bytes)

    def as_of(self, snapshot: str) -> "Handle":
        """Return the volume as it was, read-only."""
        return Handle(past.as_of(self._opened, snapshot))


def _look(opened: Opened, paths: Sequence[Path], *, moving: bool) -> _Looked:
    alone, together = set[Hashable](), set[Hashable]()
    found = [find(opened, path) for path in paths]
    for one in found:
        together.add(("in", one.parent))
        if one.path:
            alone.add(("name", one.parent, clash_key(one.path[len(one.path) - len(one.inside) - 1])))
        if one.file is not None:
            alone.add(("file", one.file.id))
        if one.directory is not None:
            alone.add(("in", one.directory.id))
            alone |= {("moves",)} if moving else set()
    rests: frozenset[int] | None = None
    if not any(may_be_generated(name) for path in paths for name in path):
        rests = frozenset([row.id for one in found for row in (one.file, one.directory) if row is not None])
        rests |= {one.parent for one in found}
    return _Looked(frozenset(alone), frozenset(together), rests, tuple(found))


def _look_above(opened: Opened, paths: Sequence[Path]) -> Look:
    """Look for the directories that paths go into, as far as they are there."""
    alone = set[Hashable]()
    for above in {path[:-1] for path in paths}:
        found = deepest(opened, above)
        alone.add(("in", found.directory.id) if found.directory is not None else ("in", found.parent))
    return Look(frozenset(alone), frozenset())
