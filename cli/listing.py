"""How files of a volume, their versions and their holders are written."""

import os
import pwd

from tbshare.cli import amount, show
from tbshare.cli.moment import minute
from tbshare.wire import files

_LETTERS = {"directory": "d", "bundle": "d", "link": "l"}
_TRIPLES = ("---", "--x", "-w-", "-wx", "r--", "r-x", "rw-", "rwx")


def show_items(listed: files.FileList, *, long: bool, dotted: bool) -> None:
    """Print the items of a directory or bundle, or the one file that was asked for."""
    if listed.item.kind in ("directory", "bundle"):
        items = [item for item in listed.items if dotted or not item.name.startswith(b".")]
    else:
        items = [listed.item]
    if not long:
        show.lines([name_text(item) for item in items])
        return
    if items:
        owners: dict[int | None, str] = {}
        rows = [_row(item, owners) for item in items]
        show.table(["MODE", "OWNER", "BY", "SIZE", "MODIFIED", "COPIES", "NAME"], rows, right=[3])


def _row(item: files.Item, owners: dict[int | None, str]) -> list[str]:
    if item.uid not in owners:
        owners[item.uid] = owner_text(item.uid)
    return [
        mode_text(item),
        owners[item.uid],
        item.author or "-",
        "-" if item.kind == "directory" else amount.size(item.size_bytes),
        minute(item.mtime_ns),
        _copies_text(item),
        name_text(item, marked=True),
    ]


def owner_text(uid: int | None) -> str:
    """Return the name of a user, the number where this machine has no name for it."""
    number = os.getuid() if uid is None else uid
    try:
        return pwd.getpwuid(number).pw_name
    except (KeyError, OverflowError):
        return str(number)


def _copies_text(item: files.Item) -> str:
    if item.kind in ("directory", "link"):
        return "-"
    text = item.copies or "-"
    return text if item.here in ("", "whole") else f"{text}, not here"


def mode_text(item: files.Item) -> str:
    """Return kind and permissions as `ls -l` has them: a bundle is a directory there."""
    triples = "".join(_TRIPLES[(item.mode >> shift) & 7] for shift in (6, 3, 0))
    return _LETTERS.get(item.kind, "-") + triples


def name_text(item: files.Item, *, marked: bool = False) -> str:
    """Return the name, a slash behind that of a directory; `marked` says what else there is to know of it."""
    text = show.name(item.name) + ("/" if item.kind in ("directory", "bundle") else "")
    if not marked:
        return text
    if item.kind == "link":
        text += f" -> {show.name(item.target)}"
    if item.fork:
        text += "  [fork]"
    elif item.heads > 1:
        text += f"  [{item.heads} versions side by side]"
    if item.pinned:
        text += "  [pinned]"
    if item.locked_by:
        text += f"  [locked by {item.locked_by}]"
    return text


def show_versions(lines: list[files.VersionLine], name: bytes = b"") -> None:
    """Print lines of a history of `name`; `*` marks the versions that nothing was saved upon."""
    rows = [
        [
            ("* " if line.head else "  ") + line.version,
            minute(line.when_ns),
            line.author or "-",
            amount.size(line.size_bytes),
            line.copies or "-",
            version_text(line, name),
        ]
        for line in lines
    ]
    show.table(["  VERSION", "WHEN", "BY", "SIZE", "COPIES", ""], rows, right=[3])


def version_text(line: files.VersionLine, name: bytes = b"") -> str:
    """Say what else there is to know of a version, and under which name it is seen if that is not `name`."""
    parts = [f"shown as {show.name(line.shown)}"] if line.shown not in (b"", name) else []
    if line.here == "expired":
        parts.append("its bytes are given back")
    elif line.here == "no":
        parts.append("not here")
    return ", ".join(parts)


def show_report(shown: files.FileReport) -> None:
    """Print what there is to know of a file or directory."""
    item = shown.item
    show.line(f"{shown.where}  {item.kind}, {amount.size(item.size_bytes)}")
    if item.kind == "directory":
        show.line(f"{amount.count(shown.files, 'file')} below it; tbshare ls -l {shown.where} says where they are")
    else:
        show.line(f"modified {minute(item.mtime_ns)}, saved by {item.author or 'nobody'}, version {item.version}")
        show.line(f"here: {item.here or 'no'}" + (", pinned" if item.pinned else "") + f"; copies: {item.copies}")
    if item.content:
        show.line(f"content {item.content}")
    if item.heads > 1:
        show.line(f"{item.heads} versions stand side by side; tbshare conflicts {shown.where.volume} shows them")
    if item.locked_by:
        show.line(f"locked by {item.locked_by}")
    if shown.text:
        show.line(shown.text)
    for holder in shown.holders:
        show.line(f"{holder.name}: {holder.here}" + (", pinned" if holder.pinned else ""))
    for xattr in item.xattrs:
        show.line(f"attribute {show.name(xattr.name)}: {amount.size(len(xattr.value))}")
    if shown.versions:
        show.line()
        show_versions(shown.versions, item.name)
    if shown.versions_total > len(shown.versions):
        more = amount.count(shown.versions_total - len(shown.versions), "more version")
        show.line(f"and {more}; tbshare history {shown.where}")
