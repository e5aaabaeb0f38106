"""What a path that is pushed contains: its files and links, and what is left out.

A Hugging Face cache directory is understood (`models--ORG--NAME`, or a snapshot in it): its links into its own
`blobs/` are followed. Any other link that leaves the tree, or points nowhere, is refused unless `follow_links`.
"""

import fnmatch
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tbshare.content.tree import LINK_BYTES_MAX, NAME_BYTES_MAX, leaves_tree
from tbshare.errors import InputRefused

DEFAULT_EXCLUDES = (".git", ".cache", "*.incomplete", ".DS_Store", "._*", "__pycache__")
DEPTH_MAX = 100
_HUB_FOLDER = re.compile(r"^models--([\w.-]+?)--([\w.-]+)$")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to be taken in. `path` is its place in the tree, `real` where its bytes are."""

    path: tuple[bytes, ...]
    real: Path
    size: int
    mode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class SourceLink:
    """A symbolic link that stays inside the tree."""

    path: tuple[bytes, ...]
    target: bytes
    mtime_ns: int


@dataclass(slots=True)
class Source:
    """Everything below the pushed path."""

    root: Path
    files: list[SourceFile] = field(default_factory=list[SourceFile])
    links: list[SourceLink] = field(default_factory=list[SourceLink])
    folders: dict[tuple[bytes, ...], int] = field(default_factory=dict[tuple[bytes, ...], int])  # -> mtime_ns
    excluded: list[str] = field(default_factory=list[str])
    name: str = ""  # of the model, when the source says it
    revision: str = ""  # of the hub
    hub_cache: bool = False

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which names are taken. Patterns match the name, or the path from the root."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    follow_links: bool = False

    def leaves_out(self, path: str, *, folder: bool) -> bool:
        """Return whether a path (relative, with `/`) is left out."""
        name = path.rpartition("/")[2]
        if any(_matches(path, name, pattern) for pattern in (*DEFAULT_EXCLUDES, *self.exclude)):
            return True
        return not folder and bool(self.include) and not any(_matches(path, name, p) for p in self.include)


def _matches(path: str, name: str, pattern: str) -> bool:
    pattern = pattern.rstrip("/")
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(path, pattern)


def shown(path: Sequence[bytes]) -> str:
    """Return a path as text a terminal can show, whatever bytes it has."""
    text = b"/".join(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def scan(root: Path, choice: Choice) -> Source:
    """Return what is below `root`. InputRefused says which path cannot be taken, and why."""
    if "\0" in str(root):
        raise InputRefused("a path cannot have a NUL character in it", cure="check the path")
    source = Source(root)
    hub = _hub_snapshot(root)
    if hub is not None:
        source.root, source.name, source.revision = hub
        source.hub_cache = True
    try:
        status = os.stat(source.root)
    except OSError as error:
        raise InputRefused(f"{root}: {_reason(error)}", cure="check the path") from error
    if stat.S_ISREG(status.st_mode):
        name = os.fsencode(source.root.name)
        _add_file(source, (name,), source.root, status)
    elif stat.S_ISDIR(status.st_mode):
        _Walk(source, choice).folder((), source.root, frozenset())
    else:
        raise InputRefused(f"{root} is neither a file nor a directory ({_kind(status.st_mode)})")
    return source


def clashes(source: Source) -> list[str]:
    """Return paths whose names a Mac would take for one another: equal but for case or normal form."""
    seen: dict[tuple[str, ...], tuple[bytes, ...]] = {}
    found: list[str] = []
    for path in [*(file.path for file in source.files), *(link.path for link in source.links)]:
        folded = tuple(unicodedata.normalize("NFC", os.fsdecode(part)).casefold() for part in path)
        other = seen.setdefault(folded, path)
        if other != path:
            found.append(f"{shown(other)} and {shown(path)}")
    return found


def hub_cache_path(hub_id: str, environment: dict[str, str]) -> Path:
    """Return the directory of a model (`ORG/NAME`) in this user's Hugging Face cache. InputRefused when none."""
    home = environment.get("HF_HOME") or os.path.join(environment.get("HOME", ""), ".cache", "huggingface")
    cache = Path(environment.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    path = cache / ("models--" + hub_id.replace("/", "--"))
    if not path.is_dir():
        raise InputRefused(f"{hub_id} is not in the Hugging Face cache at {cache}", cure=f"hf download {hub_id}")
    return path


def _hub_snapshot(root: Path) -> tuple[Path, str, str] | None:
    """Return (snapshot directory, ORG/NAME, revision) when `root` is a model in a Hugging Face cache."""
    match = _HUB_FOLDER.match(root.name)
    if match is not None and (root / "snapshots").is_dir():
        name = "/".join(match.groups())
        main = root / "refs" / "main"
        revisions = sorted(os.listdir(root / "snapshots"))
        revision = main.read_text().strip() if main.is_file() else (revisions[0] if len(revisions) == 1 else "")
        if not revision or not (root / "snapshots" / revision).is_dir():
            raise InputRefused(
                f"{root} has {len(revisions)} snapshots and does not say which one is current",
                cure=f"tbshare push {root}/snapshots/REVISION",
            )
        return root / "snapshots" / revision, name, revision
    absolute = Path(os.path.abspath(root))
    if len(absolute.parents) >= 2 and absolute.parent.name == "snapshots":
        match = _HUB_FOLDER.match(absolute.parent.parent.name)
        if match is not None:
            return absolute, "/".join(match.groups()), absolute.name
    return None


class _Walk:
    """Goes through a directory and fills a Source."""

    def __init__(self, source: Source, choice: Choice) -> None:
        self.source = source
        self.choice = choice
        self.blobs = source.root.parent.parent / "blobs" if source.hub_cache else None

    def folder(self, path: tuple[bytes, ...], real: Path, above: frozenset[tuple[int, int]]) -> None:
        """Take in a directory; `above` are the (device, inode) of those it is in, to notice a loop."""
        try:
            status = os.stat(real)
            names = sorted(os.listdir(os.fsencode(real)))
        except OSError as error:
            raise InputRefused(
                f"{real}: {_reason(error)}", cure="check its permissions, or --exclude it"
            ) from error
        mark = (status.st_dev, status.st_ino)
        if mark in above or len(path) > DEPTH_MAX:
            raise InputRefused(f"{shown(path)}: a link leads back into a directory above it", cure="--exclude it")
        self.source.folders[path] = status.st_mtime_ns
        for name in names:
            self.entry((*path, name), real / os.fsdecode(name), above | {mark})

    def entry(self, path: tuple[bytes, ...], real: Path, above: frozenset[tuple[int, int]]) -> None:
        """Take in one name of a directory."""
        text = shown(path)
        try:
            status = os.lstat(real)
        except OSError as error:
            raise InputRefused(f"{text}: {_reason(error)}", cure="--exclude it") from error
        is_folder = stat.S_ISDIR(status.st_mode)
        if self.choice.leaves_out(text, folder=is_folder):
            self.source.excluded.append(text)
            return
        check_model_name(path)
        if stat.S_ISLNK(status.st_mode):
            self.link(path, real, status, above)
        elif is_folder:
            self.folder(path, real, above)
        elif stat.S_ISREG(status.st_mode):
            _add_file(self.source, path, real, status)
        else:
            raise InputRefused(f"{text} is a {_kind(status.st_mode)}, not a file", cure=f"--exclude '{text}'")

    def link(
        self, path: tuple[bytes, ...], real: Path, status: os.stat_result, above: frozenset[tuple[int, int]]
    ) -> None:
        """Take in a symbolic link: followed, kept, or refused."""
        text, target = shown(path), os.readlink(os.fsencode(real))
        try:
            there = os.stat(real)
        except OSError as error:
            raise InputRefused(
                f"{text} is a link that leads nowhere ({_reason(error)})", cure=f"--exclude '{text}'"
            ) from error
        into_blobs = self.blobs is not None and Path(os.path.realpath(real)).parent == self.blobs.resolve()
        inside = not leaves_tree(path, target) and len(target) <= LINK_BYTES_MAX
        if inside and not self.choice.follow_links and not into_blobs:
            self.source.links.append(SourceLink(path, target, status.st_mtime_ns))
        elif not into_blobs and not self.choice.follow_links:
            raise InputRefused(
                f"{text} is a link to {os.fsdecode(target)!r}, outside of what is pushed",
                cure=f"--follow-links takes what it points to, --exclude '{text}' leaves it out",
            )
        elif stat.S_ISDIR(there.st_mode):
            self.folder(path, real, above)
        elif stat.S_ISREG(there.st_mode):
            _add_file(self.source, path, real, there)
        else:
            raise InputRefused(f"{text} leads to a {_kind(there.st_mode)}", cure=f"--exclude '{text}'")


def check_model_name(path: Sequence[bytes]) -> None:
    """InputRefused unless every machine can hold the last name of the path and a terminal can show it."""
    name = path[-1]
    if len(name) > NAME_BYTES_MAX:
        raise InputRefused(f"{shown(path)}: a name of {len(name)} bytes; {NAME_BYTES_MAX} are possible")
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise InputRefused(
            f"{shown(path)}: the name is not UTF-8, and other machines could not show it",
            cure="rename it, or --exclude it",
        ) from error
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise InputRefused(
            f"{shown(path)}: the name has a line break or another control character",
            cure="rename it, or --exclude it",
        )


def _add_file(source: Source, path: tuple[bytes, ...], real: Path, status: os.stat_result) -> None:
    mode = 0o755 if status.st_mode & 0o100 else 0o644
    source.files.append(SourceFile(path, real, status.st_size, mode, status.st_mtime_ns))


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "named pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
        stat.S_IFDIR: "directory",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")
