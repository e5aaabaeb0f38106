"""Published trees as files: what stands below a volume of mode `models`, to be listed and read by path.

    NAME/FILE             the newest version of a ref          smollm2/model.safetensors
    NAME@REV/FILE         one of its versions                  smollm2@1/model.safetensors
    ORG/NAME[@REV]/FILE   of a ref whose name has two parts

Where a ref and the first part of another one have the same name, the directory shows the files of the one and the
names of the others; a name wins over a file.
"""

import contextlib
from dataclasses import dataclass

import trio

from tbshare.content.block import ObjectId, TreeId, named_hash
from tbshare.content.ref import Ref, folded, is_name, shown
from tbshare.content.tree import Entry, Tree
from tbshare.content.tree import Kind as EntryKind
from tbshare.daemon.service import Service
from tbshare.errors import NotPermitted, ObjectMissing, PathIsDirectory, PathMissing, PathNotDirectory, UsageError
from tbshare.volumes.catalogue import Volume
from tbshare.volumes.fold import RefVersion, State
from tbshare.volumes.item import Item, Path
from tbshare.wire import files as wire
from tbshare.wire.where import Where, id_text

INODE_CONTEXT = "tbshare 2026-11-24 inode of a published file"
DIRECTORY_MODE = 0o555
_KINDS = {EntryKind.FILE: "file", EntryKind.TREE: "directory", EntryKind.LINK: "link"}


@dataclass(frozen=True)
class _Place:
    """Where a path leads: into a version (`inside` its tree), or, with none, to the directory of some names."""

    version: RefVersion | None
    inside: Path = ()
    organisation: str = ""


class RefFiles:
    """The published trees of one volume, at one state of the cluster. What is not async is called in a thread."""

    def __init__(self, service: Service, state: State, volume: Volume) -> None:
        self._service, self._state, self.volume = service, state, volume

    @classmethod
    async def at(cls, service: Service, where: Where) -> "RefFiles | None":
        """Return what answers for a place; None when its volume has files. VolumeUnknown, NotPermitted."""
        state = await service.mesh.state()
        volume = state.volume_named(where.volume)
        if volume.mode != "models":
            return None
        if not state.may_read(service.identity.node, volume.id):
            raise NotPermitted(f"this node may not read volume {volume.name}", cure="tbshare volume ls")
        if where.snapshot:
            raise UsageError(
                f"{volume.name} holds published versions and has no snapshots: NAME@REV is one of them",
                cure=f"tbshare ls {volume.name}",
            )
        return cls(service, state, volume)

    # what is there ---------------------------------------------------------------------------------------------

    def lookup(self, path: Path) -> Item:
        """Return what has this path. PathMissing, PathNotDirectory; ObjectMissing when a listing is not here."""
        place = self._place(path)
        if place.version is None:
            return self._directory(path, b"")
        if not place.inside:
            return self._directory(path, place.version.tree, place.version)
        entry = self._entry(place.version, place.inside)
        return self._item(path, entry, place.version)

    def children(self, path: Path) -> list[Item]:
        """Return what is in a directory, by name."""
        place = self._place(path)
        found: dict[bytes, Item] = {}
        if place.version is not None:
            listing = self._tree(place.version, place.inside)
            found = {each.name: self._item((*path, each.name), each, place.version) for each in listing.entries}
        if not path or (len(path) == 1 and place.inside == ()):
            for name, version in self._names(folded(_text(path[0])) if path else ""):
                tree = version.tree if version is not None else b""
                found[name] = self._directory((*path, name), tree, version)
        return [found[name] for name in sorted(found)]

    def _names(self, organisation: str) -> list[tuple[bytes, RefVersion | None]]:
        """Return the names below the root, or below the first part of names that have two."""
        result: list[tuple[bytes, RefVersion | None]] = []
        for (volume, key), versions in self._state.refs.items():
            first, _, last = key.rpartition("/")
            if volume != folded(self.volume.name) or not versions:
                continue
            if not organisation and first:
                result.append((versions[-1].name.partition("/")[0].encode(), None))
            elif first == organisation:
                name = versions[-1].name[len(key) - len(last) :]
                result.append((name.encode(), versions[-1]))
                result += [(f"{name}@{each.rev}".encode(), each) for each in versions[:-1] if "/" not in each.rev]
        return sorted(result, key=lambda each: each[1] is not None)  # a ref wins over the first part of others

    def _place(self, path: Path) -> _Place:
        if not path:
            return _Place(None)
        parts = [_text(part) for part in path[:2]]
        names = {key for volume, key in self._state.refs if volume == folded(self.volume.name)}
        for count in range(len(parts), 0, -1):
            last, _, rev = parts[count - 1].partition("@")
            name = "/".join([*parts[: count - 1], last])
            if folded(name) in names:
                ref = Ref(name, self.volume.name, rev)
                return _Place(self._state.resolve(ref), path[count:])
        first = folded(parts[0])
        if len(path) == 1 and any(key.startswith(f"{first}/") for key in names):
            return _Place(None, organisation=first)
        name = "/".join(parts).partition("@")[0]
        if is_name(name):
            self._state.resolve(Ref(name, self.volume.name))  # says which names are near
        raise PathMissing(f"no ref {shown(name)} in volume {self.volume.name}", cure="tbshare ls")

    def _tree(self, version: RefVersion, inside: Path) -> Tree:
        target = TreeId(version.tree)
        if inside:
            entry = self._entry(version, inside)
            if entry.kind != EntryKind.TREE:
                raise PathNotDirectory(f"{_shown(inside)} of {version} is not a directory")
            target = TreeId(entry.target)
        found = self._service.store.tree(target)
        if found is None:
            raise ObjectMissing(
                f"the files of {version} are not listed on this node", cure=f"tbshare pull {version}"
            )
        return found

    def _entry(self, version: RefVersion, inside: Path) -> Entry:
        for entry in self._tree(version, inside[:-1]).entries:
            if entry.name == inside[-1]:
                return entry
        raise PathMissing(f"{version} has no {_shown(inside)}", cure=f"tbshare show {version}")

    def _directory(self, path: Path, tree: bytes, version: RefVersion | None = None) -> Item:
        time_ns = version.time_ns if version is not None else 0
        return Item(
            name=path[-1] if path else b"",
            id=self._inode(path),
            file=self._inode(path),
            kind="directory",
            content=tree,
            mode=DIRECTORY_MODE,
            mtime_ns=time_ns,
            ctime_ns=time_ns,
            birthtime_ns=time_ns,
        )

    def _item(self, path: Path, entry: Entry, version: RefVersion) -> Item:
        kind = _KINDS[entry.kind]
        return Item(
            name=entry.name,
            id=self._inode(path),
            file=self._inode(path),
            kind=kind,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            version=int.from_bytes(entry.target[:8], "big") >> 1 if kind == "file" else 0,
            content=entry.target,
            size=entry.size if kind == "file" else 0,
            mode=entry.mode & 0o555 or DIRECTORY_MODE,
            mtime_ns=entry.mtime_ns or version.time_ns,
            ctime_ns=version.time_ns,
            birthtime_ns=version.time_ns,
            xattrs=dict(entry.xattrs),
            author=version.author,
        )

    def _inode(self, path: Path) -> int:
        parts = [folded(self.volume.name).encode(), *path]
        return int.from_bytes(named_hash(INODE_CONTEXT, parts)[:8], "big") >> 1

    def version_at(self, path: Path) -> RefVersion | None:
        """Return the version that a path leads into; None above them. PathMissing."""
        return self._place(path).version

    # as the control socket tells it ----------------------------------------------------------------------------

    async def told(self, path: Path, *, listed: bool) -> tuple[wire.Item, list[wire.Item]]:
        """Return an item, and with `listed` what is in it, as lines; listings that are not here are fetched."""
        item, items = await self._with_listing(path, listed=listed)
        return self._line(item), [self._line(each) for each in items]

    async def readable(self, path: Path, version: int = 0) -> Item:
        """Return the file at a path, as it is in that version. PathIsDirectory, PathMissing."""
        item, _ = await self._with_listing(path, listed=False)
        if version and item.version != version:
            item = await trio.to_thread.run_sync(self._before, path, version)
        if item.kind != "file":
            raise PathIsDirectory(f"{_shown(path)} is a {item.kind}", cure=f"tbshare show {_shown(path)}")
        return item

    def _before(self, path: Path, version: int) -> Item:
        """Return a file as an older version of its ref had it: somebody reads it while a new one is published."""
        place = self._place(path)
        known = self._state.versions(place.version.volume, place.version.name) if place.version is not None else ()
        for each in reversed(known):
            with contextlib.suppress(ObjectMissing, PathMissing):
                item = self._item(path, self._entry(each, place.inside), each)
                if item.version == version:
                    return item
        raise PathMissing(f"{_shown(path)} has no version {id_text(version)}", cure="tbshare ls")

    async def _with_listing(self, path: Path, *, listed: bool) -> tuple[Item, list[Item]]:
        def look() -> tuple[Item, list[Item]]:
            item = self.lookup(path)
            return item, self.children(path) if listed and item.kind == "directory" else []

        try:
            return await trio.to_thread.run_sync(look)
        except ObjectMissing:
            version = self._place(path).version
            assert version is not None, "only the files of a version have listings"
            await self._service.records.tree(TreeId(version.tree), version.volume)
            return await trio.to_thread.run_sync(look)

    def _line(self, item: Item) -> wire.Item:
        author = self._state.members.get(item.author) or self._state.removed_members.get(item.author)
        here = ""
        if item.kind == "file":
            here = "whole" if self._service.store.is_whole(ObjectId(item.content)) else "no"
        return wire.Item(
            name=item.name,
            kind=item.kind,
            id=id_text(item.id),
            version=id_text(item.version),
            content=item.content.hex() if item.kind == "file" else "",
            target=item.content if item.kind == "link" else b"",
            size_bytes=item.size,
            mode=item.mode,
            mtime_ns=item.mtime_ns,
            ctime_ns=item.ctime_ns,
            birthtime_ns=item.birthtime_ns,
            author=author.name if author is not None else item.author[:4].hex(),
            here=here,
        )


def _text(part: bytes) -> str:
    return part.decode("utf-8", "surrogateescape")


def _shown(path: Path) -> str:
    return shown("/".join(_text(part) for part in path))
