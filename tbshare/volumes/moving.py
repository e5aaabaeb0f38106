"""Rename, as POSIX has it, over files, directories and bundles. Returns nothing: what is to be done is gathered.

A file renamed over a file is how editors save safely. It becomes a new version of the file that is there, so that
its history goes on, and two sides of a cut that save like this make a fork and not a clash of names. Only where
hard links are in play the name itself is replaced.
"""

from tbshare.content import tree
from tbshare.content.tree import DEPTH_MAX
from tbshare.errors import (
    DirectoryNotEmpty,
    MoveImpossible,
    NameTooLong,
    PathInvalid,
    PathIsDirectory,
    PathNotDirectory,
)
from tbshare.volumes.bundle import check_over, is_bundle_name
from tbshare.volumes.ids import ROOT
from tbshare.volumes.item import Path
from tbshare.volumes.paths import Found, at
from tbshare.volumes.rows import FileRow
from tbshare.volumes.shown import clash_key
from tbshare.volumes.writing import Writing, attributes_of, content_of, without_others


def rename(writing: Writing, source: Found, target: Found) -> None:
    """Gather what moves `source` to where `target` leads, over what is there."""
    moved, there = source.there(), target.item
    if not source.path or not target.path:
        raise PathInvalid("the root of a volume cannot be moved")
    refuse_below_itself(writing, source, target)
    _refuse_too_deep(writing, source, target)
    same = there is not None and not target.inside and not source.inside and there.id == moved.id
    if same and source.parent == target.parent and source.path[-1] == target.path[-1]:
        return
    if there is not None and not same:
        _check_over(writing, source, target)
    if source.inside and target.inside and _same_bundle(source, target):
        writing.draft(source).move(source.inside, target.inside)
    elif (source.fork or target.fork) and same_file(source, target):
        writing.resolve(source)  # a fork moved over the file it belongs to, or the reverse
    elif same and source.file is not None and not _same_name(source, target):
        return  # two hard links to one file: nothing is to be done
    elif _is_plain(writing, source, target):
        _move_rows(writing, source, target)
    else:
        _carry(writing, source, target)


def exchange(writing: Writing, source: Found, target: Found) -> None:
    """Gather what lets two items change places.

    Two files, or a bundle and the directory that an application wrote to take its place, are a safe-save: each
    path keeps its file, which gets the other's content as its next version.
    """
    source.there()
    target.there()
    refuse_below_itself(writing, source, target)
    refuse_below_itself(writing, target, source)
    _refuse_too_deep(writing, source, target)
    _refuse_too_deep(writing, target, source)
    if source.path == target.path or same_file(source, target):
        return
    if source.inside and target.inside and _same_bundle(source, target):
        writing.draft(source).move(source.inside, target.inside, exchange=True)
    elif _change_rows(source, target):
        _move_row(writing, source, target)
        _move_row(writing, target, source)
    else:
        one, other = writing.entry_of(source), writing.entry_of(target)
        for place, entry in ((target, one), (source, other)):
            if _holds_version(place, entry):
                writing.put_entry(place, entry)
            else:
                writing.remove_found(place, forks_go=True)
                writing.put_new(place, entry, bundle=entry.kind == tree.Kind.TREE)


def _change_rows(one: Found, other: Found) -> bool:
    """Say whether the rows of both change places: not if a version can do it, nor across a bundle's border."""
    if one.inside or other.inside or one.fork or other.fork:
        return False
    if one.directory is not None and other.directory is not None:
        return True
    files = one.file is not None and other.file is not None
    if files and _is_bundle(one) == _is_bundle(other):
        return is_linked(one.file) or is_linked(other.file)
    return files or not (_is_bundle(one) or _is_bundle(other))


def _is_bundle(found: Found) -> bool:
    return found.head is not None and found.head.contents == "bundle"


def _holds_version(place: Found, entry: tree.Entry) -> bool:
    """Say whether what lies there can be given this as its next version."""
    if place.inside:
        return True
    alike = place.file is not None and _is_bundle(place) == (entry.kind == tree.Kind.TREE)
    return alike and not is_linked(place.file)


def check_alike(there_is_directory: bool, put_is_directory: bool, path: Path) -> None:
    """PathIsDirectory or PathNotDirectory when a version of a file would go to a directory, or the reverse."""
    if there_is_directory != put_is_directory:
        kind = PathIsDirectory if there_is_directory else PathNotDirectory
        raise kind(f"{at(path)} is {'a' if there_is_directory else 'not a'} directory")


def refuse_below_itself(writing: Writing, source: Found, target: Found) -> None:
    """MoveImpossible when `target` is within `source`."""
    within = False
    if source.directory is not None:
        number = target.parent
        while number not in (ROOT, source.directory.id):
            row = writing.opened.tables.directory(number)
            number = row.parent if row is not None else ROOT
        within = number == source.directory.id
    elif _is_bundle(source):
        above, below = _key(source), _key(target)
        within = _same_bundle(source, target) and len(below) > len(above) and below[: len(above)] == above
    if within:
        raise MoveImpossible(f"{at(source.path)} cannot go below itself")


def _refuse_too_deep(writing: Writing, source: Found, target: Found) -> None:
    """NameTooLong when something in `source` would have a path there that no volume can hold."""
    if source.directory is None or len(target.path) <= len(source.path):
        return
    left = DEPTH_MAX - len(target.path)
    if writing.opened.tables.depth_below(source.directory.id, left + 1) > left:
        raise NameTooLong(f"{at(source.path)} has paths that would be longer than {DEPTH_MAX} names there")


def _key(found: Found) -> tuple[bytes, ...]:
    return tuple([clash_key(name) for name in found.inside])


def _same_bundle(one: Found, other: Found) -> bool:
    return one.head is not None and other.head is not None and one.head.version == other.head.version


def same_file(one: Found, other: Found) -> bool:
    """Say whether two paths lead to heads of one file."""
    files = one.file is not None and other.file is not None and one.file.id == other.file.id
    return files and not one.inside and not other.inside


def _same_name(one: Found, other: Found) -> bool:
    return one.name is not None and other.name is not None and one.name.id == other.name.id


def _check_over(writing: Writing, source: Found, target: Found) -> None:
    moved, there = source.there(), target.there()
    check_over(moved.is_directory, there.is_directory, target.path[-1])
    if there.is_directory and not writing.is_empty(target):
        raise DirectoryNotEmpty(f"{at(target.path)} is not empty")


def _is_plain(writing: Writing, source: Found, target: Found) -> bool:
    """Say whether the row of the name or of the directory itself moves."""
    if source.inside or target.inside or source.fork or target.fork:
        return False
    if source.directory is not None:
        return not is_bundle_name(target.path[-1])
    if target.file is None or same_file(source, target):
        return True
    # A name over a name. With hard links on either side the other names must keep what they have.
    return is_linked(source.file) or is_linked(target.file)


def is_linked(file: FileRow | None) -> bool:
    """Say whether a file has several names."""
    return file is not None and file.standing > 1


def _move_rows(writing: Writing, source: Found, target: Found) -> None:
    if target.item is not None and not _is_same(source, target):
        writing.remove_found(target)
    writing.remove_twins(source)
    _move_row(writing, source, target)


def _move_row(writing: Writing, source: Found, target: Found) -> None:
    if source.directory is not None:
        writing.move(target.parent, target.path[-1], source.directory.id)
    elif source.file is not None and source.name is not None:
        writing.place(target.parent, target.path[-1], source.file.id, source.name.id)


def _is_same(one: Found, other: Found) -> bool:
    if one.directory is not None:
        return other.directory is not None and one.directory.id == other.directory.id
    return _same_name(one, other)


def _carry(writing: Writing, source: Found, target: Found) -> None:
    """Move by giving the target what the source is, and taking the source away."""
    entry = writing.entry_of(source)
    if target.file is not None and not target.inside and source.file is not None and not source.inside:
        _save_over(writing, source, target, entry)
    elif target.directory is not None or (is_linked(target.file) and not target.inside):
        writing.remove_found(target)  # an empty directory, or a name of a file that has others
        writing.put_new(target, entry)
    else:
        writing.put_entry(target, entry)
    writing.remove_found(source, forks_go=True)


def _save_over(writing: Writing, source: Found, target: Found, entry: tree.Entry) -> None:
    """Safe-save: the target gets the source's heads as its next version, forks as forks."""
    assert source.file is not None
    assert target.file is not None
    assert target.head is not None
    if not source.fork:
        for head in source.file.shown_heads()[:0:-1]:
            writing.save_head(target.file, head, (target.head.version,))
    writing.save(target.file, content_of(entry), (target.head.version,), instead_of=[target.head])
    attributes = without_others(attributes_of(entry, mtime=False), target.file.attributes)
    writing.describe(target.file.id, attributes, target.file.attributes)
    writing.remove_twins(target)
