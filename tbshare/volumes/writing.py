"""The ops of one operation, gathered and then committed together.

Within a bundle an operation changes a draft of its tree, and the save of the new tree is one more op. What a file
or a directory is, wherever it lies, is carried from one place to another as an entry of a tree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from tbshare.content import tree
from tbshare.content.tree import DEPTH_MAX, Tree
from tbshare.errors import NameTooLong, TooManyAtOnce, XattrsTooLarge
from tbshare.volumes.bundle import Draft, is_bundle_name
from tbshare.volumes.entry import (
    HEADS_SEEN_MAX,
    PARENTS_MAX,
    XATTRS_BYTES_MAX,
    XATTRS_MAX,
    Describe,
    FileOp,
    Move,
    Place,
    Remove,
    Save,
)
from tbshare.volumes.item import Attributes, Content
from tbshare.volumes.opened import Opened, parts_of
from tbshare.volumes.paths import Found, draft_of, file_item, joined, parted
from tbshare.volumes.rows import Attributes as AttributeRow
from tbshare.volumes.rows import DirectoryRow, FileRow, NameRow, VersionRow
from tbshare.volumes.shown import shown

_TREE_KINDS: Final[dict[str, tree.Kind]] = {
    "file": tree.Kind.FILE, "bundle": tree.Kind.TREE, "link": tree.Kind.LINK
}  # fmt: skip
_CONTENTS: Final[dict[tree.Kind, Literal["file", "bundle", "link"]]] = {
    tree.Kind.FILE: "file", tree.Kind.TREE: "bundle", tree.Kind.LINK: "link"
}  # fmt: skip


@dataclass
class _Drafted:
    """A bundle that is being changed."""

    found: Found
    draft: Draft


class Writing:
    """Gathers the ops of one operation on a volume."""

    def __init__(self, opened: Opened, epochs: Mapping[int, int] | None = None) -> None:
        """`epochs`: of the files that are written under a lease."""
        self.opened = opened
        self._epochs = epochs or {}
        self.ops: list[FileOp] = []
        self.last: list[FileOp] = []  # removals: what takes its place is there before
        self._more_bytes = 0
        self._drafts: dict[int, _Drafted] = {}  # by version
        self.versions: dict[int, int] = {}  # file -> its new version

    def __bool__(self) -> bool:
        return bool(self.ops or self.last or self._drafts)

    def commit(self, *, together: bool = False) -> bytes:
        """Commit everything, durably; return the hash of the last entry, b"" when there is nothing to commit.

        QuotaExceeded, VolumeReadOnly, and with `together` TooManyAtOnce, before anything is written.
        """
        self._finish_drafts()
        parts = parts_of([*self.ops, *self.last])
        if together and len(parts) > 1:
            raise TooManyAtOnce(f"{len(self.ops)} changes do not fit into one entry of the log")
        with self.opened.room_for(self._more_bytes):
            entries = [self.opened.append(part) for part in parts]
        return entries[-1].hash if entries else b""

    def _finish_drafts(self) -> None:
        for drafted in self._drafts.values():
            file, head = drafted.found.file, drafted.found.head
            assert file is not None
            assert head is not None
            finished = drafted.draft.finish()
            content = Content(finished.id, finished.size, self.opened.shared.time_ns(), "bundle")
            self.save(file, content, (head.version,), instead_of=[head])
        self._drafts = {}

    def _new(self) -> int:
        return self.opened.shared.ids.new()

    # ---- names and directories ------------------------------------------------------------------------

    def place(self, parent: int, name: bytes, file: int, name_id: int = 0) -> None:
        """Put a name of a file somewhere: a new one, or the one of this id."""
        self.ops.append(
            Place(
                volume=self.opened.id, id=name_id or self._new(), place=self._new(), file=file, name=name,
                parent=parent,
            )
        )  # fmt: skip

    def move(self, parent: int, name: bytes, directory: int = 0) -> int:
        """Put a directory somewhere, a new one or the one of this id, and return its id."""
        directory = directory or self._new()
        self.ops.append(Move(volume=self.opened.id, id=directory, place=self._new(), name=name, parent=parent))
        return directory

    def remove_name(self, row: NameRow, file: FileRow) -> None:
        """Take a name away, and with the last one all heads that are known."""
        seen = tuple(sorted([head.version for head in file.heads][:HEADS_SEEN_MAX]))
        if file.standing <= 1:
            self._more_bytes -= max(file.weight, 0)
        self.last.append(Remove(volume=self.opened.id, id=row.id, place=row.place, seen=seen))

    def remove_twins(self, found: Found) -> None:
        """Take away the names that hide behind a name, for they have its bytes."""
        for twin in found.twins:
            file = self.opened.tables.file(twin.file)
            if file is not None:
                self.remove_name(twin, file)

    def remove_again(self, file: FileRow, version: int) -> None:
        """Let a version of a file whose last name is gone be history at once, and not bring the name back."""
        rows = [row for number in file.names if (row := self.opened.tables.name(number)) is not None]
        if rows:
            row = max(rows, key=lambda row: row.stamp)
            self.last.append(Remove(volume=self.opened.id, id=row.id, place=row.place, seen=(version,)))

    def remove_directory(self, row: DirectoryRow) -> None:
        """Take a directory away; what is in it goes before."""
        self.last.append(Remove(volume=self.opened.id, id=row.id, place=row.place, directory=True))

    def remove_below(self, directory: DirectoryRow) -> int:
        """Take a directory away with all that is in it; return how many names went."""
        removed, waiting, rows = 0, [directory], list[DirectoryRow]()
        while waiting:
            row = waiting.pop()
            rows.append(row)
            children = self.opened.tables.children(row.id)
            for name, file in children.names:
                self.remove_name(name, file)
            removed += len(children.names) + 1
            waiting += children.directories
        for row in reversed(rows):
            self.remove_directory(row)
        return removed

    # ---- versions -------------------------------------------------------------------------------------

    def save(
        self,
        file: FileRow | int,
        content: Content,
        parents: Sequence[int] = (),
        *,
        instead_of: Sequence[VersionRow] = (),
    ) -> int:
        """Add a version to a file, in place of those of these that are parents, as quotas count it; return it.

        Heads with the same bytes as a parent are shown as one with it, so they are parents as well.
        """
        number = file if isinstance(file, int) else file.id
        version = self.versions[number] = self._new()
        size = len(content.content) if content.kind == "link" else content.size
        self._more_bytes += size - sum([head.size for head in instead_of if head.version in parents])
        self.ops.append(
            Save(
                volume=self.opened.id,
                file=number,
                version=version,
                content=content.content,
                parents=_with_equals(file, parents),
                size=size,
                mtime_ns=content.mtime_ns,
                contents="" if content.kind == "file" else content.kind,
                epoch=self._epochs.get(number, 0),
            )
        )
        return version

    def save_head(self, file: FileRow, head: VersionRow, parents: Sequence[int]) -> int:
        """Add a version to a file that is as a head, of this file or of another one."""
        content = Content(head.content, head.size, head.mtime_ns, head.kind)
        replaced = [known for known in file.heads if known.version in parents]
        return self.save(file, content, parents, instead_of=replaced)

    def resolve(self, found: Found) -> int:
        """Make the head at a path the only one of its file; the others become history."""
        assert found.file is not None
        assert found.head is not None
        return self.save_head(found.file, found.head, [head.version for head in found.file.heads])

    def new_file(self, parent: int, name: bytes, content: Content, attributes: Attributes | None = None) -> int:
        """Make a file under a name; return its id."""
        file = self._new()
        self.save(file, content)
        if attributes is not None:
            self.describe(file, attributes, None)
        self.place(parent, name, file)
        return file

    def describe(
        self, number: int, attributes: Attributes, known: AttributeRow | None, *, directory: bool = False
    ) -> None:
        """Change attributes of a file or directory; XattrsTooLarge."""
        before = known.living_xattrs() if known is not None else {}
        xattrs = joined(attributes.xattrs, before)
        after = {name: value for name, value in {**before, **xattrs}.items() if value is not None}
        size = sum([len(name) + len(value) for name, value in after.items()])
        if size > XATTRS_BYTES_MAX or len(after) > XATTRS_MAX:
            raise XattrsTooLarge(f"the attributes of one file are at most {XATTRS_MAX}, {XATTRS_BYTES_MAX} bytes")
        op = Describe(
            volume=self.opened.id, id=number, directory=directory, mode=attributes.mode, uid=attributes.uid,
            gid=attributes.gid, mtime_ns=attributes.mtime_ns, birthtime_ns=attributes.birthtime_ns,
            xattrs=xattrs,
        )  # fmt: skip
        if op != Describe(volume=self.opened.id, id=number, directory=directory):
            self.ops.append(op)

    def is_empty(self, found: Found) -> bool:
        """Say whether nothing is in a directory or a bundle."""
        if found.directory is not None:
            return found.directory.children == 0
        return not draft_of(self.opened, found).list(found.inside)

    def remove_found(self, found: Found, *, forks_go: bool = False) -> int:
        """Take away what has a path, a directory with all below it; return how many names went.

        A fork taken away becomes history. Taking away the file it belongs to leaves the fork, under the name it is
        shown by: each side of a fork can be done without alone.
        """
        if found.inside:
            self.draft(found).take(found.inside)
        elif found.directory is not None:
            return self.remove_below(found.directory)
        elif found.file is not None and found.head is not None and found.name is not None:
            if found.fork:
                main = found.file.heads[0]
                self.save_head(found.file, main, (main.version, found.head.version))
                return 1
            if not forks_go:
                self._part_forks(found)
            self.remove_name(found.name, found.file)
            self.remove_twins(found)
        return 1

    def _part_forks(self, found: Found) -> None:
        """Make every fork of a file whose last name goes a file of its own, under the name it is shown by."""
        assert found.file is not None
        if len(found.file.shown_heads()) < 2 or found.file.standing > 1:
            return
        opened = self.opened
        for one in shown(opened.tables.children(found.parent), opened.node_name, sensitive=opened.case_sensitive):
            if one.fork and one.file is not None and one.file.id == found.file.id and one.head is not None:
                entry = self._file_entry(one.name, one.file, one.head)
                self._put_new(found.parent, one.name, entry, 0, bundle=True)

    # ---- from one place to another --------------------------------------------------------------------

    def draft(self, found: Found) -> Draft:
        """Return the tree of the bundle that a path leads into; what is changed in it is saved by `commit`."""
        assert found.head is not None
        known = self._drafts.get(found.head.version)
        if known is None:
            known = self._drafts[found.head.version] = _Drafted(found, draft_of(self.opened, found))
        return known.draft

    def entry_of(self, found: Found) -> tree.Entry:
        """Return what a path names as an entry of a tree; a directory with all below it."""
        if found.inside:
            entry = draft_of(self.opened, found).find(found.inside)
            assert entry is not None, "the item was found there"
            return entry
        if found.directory is not None:
            return self._directory_entry(found.path[-1], found.directory, 0)
        assert found.file is not None
        assert found.head is not None
        return self._file_entry(found.path[-1], found.file, found.head)

    def _file_entry(self, name: bytes, file: FileRow, head: VersionRow) -> tree.Entry:
        item = file_item(self.opened, name, file, head)
        xattrs = sorted((file.attributes or AttributeRow()).living_xattrs().items())
        size = 0 if head.contents == "link" else head.size
        return tree.Entry(
            name, _TREE_KINDS[head.contents], head.content, size, item.mode, item.mtime_ns, list(xattrs)
        )

    def _directory_entry(self, name: bytes, row: DirectoryRow, depth: int) -> tree.Entry:
        if depth > DEPTH_MAX:
            raise NameTooLong(f"more than {DEPTH_MAX} directories in each other")
        entries: list[tree.Entry] = []
        opened = self.opened
        for one in shown(opened.tables.children(row.id), opened.node_name, sensitive=opened.case_sensitive):
            if isinstance(one.row, DirectoryRow):
                entries.append(self._directory_entry(one.name, one.row, depth + 1))
            elif one.file is not None and one.head is not None:
                entries.append(self._file_entry(one.name, one.file, one.head))
        below = Tree(entries)
        target = opened.shared.trees.put(below)
        about = row.attributes or AttributeRow()
        mode = about.mode[0] if about.mode is not None else 0o755
        mtime_ns = about.mtime_ns[0] if about.mtime_ns is not None else row.time_ns
        xattrs = sorted(about.living_xattrs().items())
        return tree.Entry(name, tree.Kind.TREE, target, below.size, mode, mtime_ns, list(xattrs))

    def put_entry(self, found: Found, entry: tree.Entry) -> None:
        """Put what an entry of a tree says where a path leads; a file there gets one more version."""
        if found.inside:
            self.draft(found).put(found.inside, entry)
        elif found.file is not None and found.head is not None:
            attributes = attributes_of(entry, mtime=False)
            self.save(found.file, content_of(entry), (found.head.version,), instead_of=[found.head])
            self.describe(found.file.id, without_others(attributes, found.file.attributes), found.file.attributes)
        else:
            self.put_new(found, entry)

    def put_new(self, found: Found, entry: tree.Entry, *, bundle: bool = False) -> None:
        """Put what an entry says where nothing stays; a tree as a bundle, if its name or `bundle` says so."""
        self._put_new(found.parent, found.path[-1], entry, 0, bundle=bundle)

    def _put_new(self, parent: int, name: bytes, entry: tree.Entry, depth: int, *, bundle: bool = False) -> None:
        if entry.kind != tree.Kind.TREE or bundle or is_bundle_name(name):
            self.new_file(parent, name, content_of(entry), attributes_of(entry, mtime=False))
            return
        if depth > DEPTH_MAX:
            raise NameTooLong(f"more than {DEPTH_MAX} directories in each other")
        directory = self.move(parent, name)
        self.describe(directory, attributes_of(entry, mtime=True), None, directory=True)
        for below in self.opened.shared.trees.get(entry.target).entries:
            self._put_new(directory, below.name, below, depth + 1)


def _with_equals(file: FileRow | int, parents: Sequence[int]) -> tuple[int, ...]:
    heads = () if isinstance(file, int) else file.heads
    contents = {(head.contents, head.content) for head in heads if head.version in parents}
    equals = [head.version for head in heads if (head.contents, head.content) in contents]
    return tuple(sorted({*parents, *equals}))[:PARENTS_MAX]


def content_of(entry: tree.Entry) -> Content:
    """Return what a save gives a file that is to be as this entry."""
    return Content(entry.target, entry.size, entry.mtime_ns, _CONTENTS[entry.kind])


def attributes_of(entry: tree.Entry, *, mtime: bool) -> Attributes:
    """Return the attributes of an entry; of files the save has the modification time."""
    plain, large = parted(dict(entry.xattrs))
    return Attributes(mode=entry.mode, mtime_ns=entry.mtime_ns if mtime else None, xattrs={**plain, **large})


def without_others(attributes: Attributes, known: AttributeRow | None) -> Attributes:
    """Return these attributes, and that the xattrs which are known besides go."""
    plain, large = parted(known.living_xattrs() if known is not None else {})
    others = dict.fromkeys([*plain, *large])
    return msgspec.structs.replace(attributes, xattrs={**others, **attributes.xattrs})
