"""`TbshareFileSystem`: the file system that fsspec knows as `tbshare`."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem

from tbshare.client import home_directory
from tbshare.filesystem.connections import Access
from tbshare.filesystem.reading import RemoteReader, fetched, local_reader, located, read_all
from tbshare.filesystem.writing import MODES, StagedFile, TogetherTransaction
from tbshare.wire.files import FileCopyParams, FileExtentsParams, Item

FETCHES_MAX = 8  # ranges that are asked for at once
GAP_BYTES_MAX = 256 * 1024  # between two ranges that are fetched as one: a leaf
RANGE_BYTES_MAX = 32 * 1024 * 1024  # that are fetched as one
LINKS_MAX = 16  # followed one after another
_T = TypeVar("_T")
_Untyped: Any = AbstractFileSystem  # fsspec says nothing of types


class TbshareFileSystem(_Untyped):  # type: ignore[misc]
    """Volumes, and what was pushed, as files. `home`: whose daemon; empty is $TBSHARE_HOME, else ~/.tbshare.

    Errors are Python's own (FileNotFoundError, PermissionError, OSError with EDQUOT ...), with the sentence that
    `tbshare` would print and the command that helps. A listing is never kept: other nodes write, too.
    """

    protocol = "tbshare"
    root_marker = ""
    transaction_type = TogetherTransaction

    def __init__(self, home: str | os.PathLike[str] = "", **options: Any) -> None:
        untyped: Any = super()
        untyped.__init__(**options)
        self.home = home_directory(home)
        self.access = Access(self.home)

    @property
    def fsid(self) -> str:
        """What tells it from another."""
        return f"tbshare-{self.home}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        untyped: Any = super()
        stripped: Any = untyped._strip_protocol(path)
        return stripped.lstrip("/") if isinstance(stripped, str) else stripped

    # looking ---------------------------------------------------------------------------------------------------

    def info(self, path: str, *, blocks: bool = False, **_: Any) -> dict[str, Any]:
        """Return what a path is.

        Of a file: `version` (16 digits, another one whenever the bytes are), `object` (the id of its bytes),
        `mtime`, `created`, `author`, `fork`; with `blocks`, offset, length and id of each of its blocks.
        """
        name = self._strip_protocol(path)
        if not name:
            return _directory("")
        entry = self._entry(name, self._item(name))
        if blocks and entry["type"] == "file":
            params = FileExtentsParams(self.access.where(name), "", blocks=True)
            found = self.access.ask(name, lambda client: client.file_extents(params))
            entry["version"], entry["object"] = found.version, found.content
            entry["blocks"] = [(each.offset, each.length, each.id.hex()) for each in found.blocks]
        return entry

    def _item(self, name: str) -> Item:
        where = self.access.where(name)
        return self.access.ask(name, lambda client: client.file_stat(where, details=False)).item

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return what is in a directory; of the root the volumes; of a file itself."""
        name = self._strip_protocol(path)
        if not name:
            volumes = self.access.ask(name, lambda client: client.volume_list()).volumes
            entries = [_directory(each.name) for each in volumes]
        else:
            where = self.access.where(name)
            listed = self.access.ask(name, lambda client: client.file_list(where))
            if listed.item.kind in ("directory", "bundle"):
                entries = [self._entry(f"{name}/{_text(each.name)}", each) for each in listed.items]
            else:
                entries = [self._entry(name, listed.item)]
        return entries if detail else [entry["name"] for entry in entries]

    def _entry(self, name: str, item: Item) -> dict[str, Any]:
        if item.kind == "link":
            return self._linked(name, item)
        entry = _directory(name) if item.kind in ("directory", "bundle") else {"name": name, "type": "file"}
        if entry["type"] == "file":
            entry |= {"size": item.size_bytes, "object": item.content, "version": item.version, "fork": item.fork}
        return entry | {
            "mtime": item.mtime_ns / 1e9,
            "created": item.birthtime_ns / 1e9,
            "mode": item.mode,
            "ino": int(item.id, 16) if item.id else 0,
            "author": item.author,
            "islink": False,
        }

    def _linked(self, name: str, item: Item) -> dict[str, Any]:
        """Return what a link leads to, under the name of the link; one that leads nowhere is of type `other`."""
        volume, _, inside = name.partition("/")
        found: dict[str, Any] = {"type": "other", "size": 0}
        current, target = inside.split("/"), item
        for _ in range(LINKS_MAX):
            if target.kind != "link":
                found = self._entry(name, target)
                break
            below = os.path.normpath("/".join(["", *current[:-1], _text(target.target)]))
            if target.target.startswith(b"/") or _leaves(current[:-1], _text(target.target)):
                break
            current = below.strip("/").split("/")
            try:
                target = self._item("/".join([volume, *current]))
            except (FileNotFoundError, NotADirectoryError):
                break
        return found | {"name": name, "islink": True, "destination": _text(item.target)}

    def exists(self, path: str, **_: Any) -> bool:
        """Say whether there is something; an error when that cannot be found out."""
        try:
            self.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Say whether it is a directory."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Say whether it is a file."""
        return self._type(path) == "file"

    def _type(self, path: str) -> str:
        try:
            return str(self.info(path)["type"])
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def created(self, path: str) -> datetime:
        """Return when it was made."""
        return datetime.fromtimestamp(self.info(path)["created"], UTC)

    def modified(self, path: str) -> datetime:
        """Return when it was written to."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def ukey(self, path: str) -> str:
        """Return the version of a file: the bytes of a version never change."""
        untyped: Any = super()
        return str(self.info(path).get("version") or untyped.ukey(path))

    def checksum(self, path: str) -> int:
        """Return the version as a number."""
        return int(self.ukey(path), 16)

    # reading ---------------------------------------------------------------------------------------------------

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        if mode == "rb":
            found, stored = located(self.access, path)
            if stored is not None:
                return local_reader(self, path, found, stored)
            chosen = {"cache_type": options["cache_type"]} if "cache_type" in options else {}
            return RemoteReader(self, path, found, block_size, cache_options=cache_options, **chosen)
        if mode not in MODES:
            raise ValueError(f"a file is opened as rb or as one of {', '.join(MODES)}; not as {mode!r}")
        file = StagedFile(self, path, mode, autocommit=autocommit)
        if not autocommit and "r" in mode:
            self.transaction.files.append(file)  # fsspec does this for the other modes
        return file

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return the bytes [start, end) of a file, counted as slices are."""
        return read_all(self.access, self._strip_protocol(path), start, end)

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Return ranges of files; of a file that is fetched they are merged, and several are fetched at once."""
        if not isinstance(paths, list):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError("paths is a list")
        many_starts = starts if isinstance(starts, list) else [starts] * len(paths)
        many_ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(many_starts) == len(many_ends) == len(paths):
            raise ValueError("as many starts and ends as there are paths")
        by_path: dict[str, list[int]] = {}
        for number, path in enumerate(paths):
            by_path.setdefault(self._strip_protocol(path), []).append(number)
        result: list[Any] = [b""] * len(paths)
        gap = GAP_BYTES_MAX if max_gap is None else max_gap
        with ThreadPoolExecutor(FETCHES_MAX, thread_name_prefix="tbshare") as pool:
            for path, numbers in by_path.items():
                try:
                    self._read_ranges(path, numbers, (many_starts, many_ends), gap, pool, result)
                except Exception as error:
                    if on_error == "raise":
                        raise
                    for number in numbers:
                        result[number] = error
        return result

    def _read_ranges(
        self,
        path: str,
        numbers: list[int],
        ranges: tuple[list[int | None], list[int | None]],
        gap: int,
        pool: ThreadPoolExecutor,
        result: list[Any],
    ) -> None:
        found, stored = located(self.access, path)
        wanted = sorted(
            (*slice(ranges[0][number], ranges[1][number]).indices(found.size_bytes)[:2], number)
            for number in numbers
        )
        if stored is not None:
            try:
                for start, end, number in wanted:
                    result[number] = stored.read(start, max(0, end - start))
            finally:
                stored.close()
            return
        merged = merge(wanted, gap)
        jobs = [
            pool.submit(fetched, self.access, path, found.version, start, end - start) for start, end, _ in merged
        ]
        for (start, _, parts), job in zip(merged, jobs, strict=True):
            data = job.result()
            for first, last, number in parts:
                result[number] = data[first - start : last - start]

    # changing --------------------------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write a file; with mode `create` FileExistsError when there is one."""
        with self.open(path, "xb" if mode == "create" else "wb") as file:
            file.write(value)

    def put_file(
        self,
        lpath: str | os.PathLike[str],
        rpath: str,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **_: Any,
    ) -> None:
        """Copy a file of this machine; the directories it goes into are made with it."""
        if os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
            return
        with open(lpath, "rb") as source, self.open(rpath, "xb" if mode == "create" else "wb") as target:
            callback.set_size(os.fstat(source.fileno()).st_size)
            while data := source.read(self.blocksize):
                callback.relative_update(target.write(data))

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Make a directory. FileExistsError; FileNotFoundError for a volume: those are made by `tbshare`."""
        name = self._strip_protocol(path)
        where = self.access.where(name)
        if not where.path and self.exists(name):
            raise FileExistsError(errno.EEXIST, "a volume of this name is there already", name)
        if create_parents:
            self._make_above(name)
        self.access.ask(name, lambda client: client.file_mkdir(where))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and those above it."""
        name = self._strip_protocol(path)
        where = self.access.where(name)
        if not exist_ok and self.exists(name):
            raise FileExistsError(errno.EEXIST, "it is there already", name)
        if name:
            self.access.ask(name, lambda client: client.file_mkdir(where, parents=True))

    def _make_above(self, name: str) -> None:
        """Make the directories that a path is in, as writing a file does."""
        above = self._parent(name)
        if "/" in above:
            self.makedirs(above, exist_ok=True)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        name = self._strip_protocol(path)
        where = self.access.where(name)
        self.access.ask(name, lambda client: client.file_remove([where], empty=True))

    def _rm(self, path: str) -> None:
        name = self._strip_protocol(path)
        where = self.access.where(name)
        self.access.ask(name, lambda client: client.file_remove([where]))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and with `recursive` directories; `tbshare restore` brings them back."""
        if maxdepth is not None:
            untyped: Any = super()
            untyped.rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        names = [name for name in self.expand_path(path) if name]
        wheres = [self.access.where(name) for name in names]
        if wheres:
            self.access.ask(names[0], lambda client: client.file_remove(wheres, recursive=recursive))

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy a file. Inside the store that is a new name for the same bytes, however many they are."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.isdir(source):
            self.makedirs(target, exist_ok=True)
            return
        if self._intrans or self._is_published(source):
            self._copy_bytes(source, target)
            return
        params = FileCopyParams([self.access.where(source)], self.access.where(target))
        self._make_above(target)
        self.access.ask(source, lambda client: client.file_copy(params))

    def _is_published(self, name: str) -> bool:
        volume = self.access.where(name).volume
        listed = self.access.ask(name, lambda client: client.volume_list()).volumes
        return any(each.mode == "models" and each.name.lower() == volume.lower() for each in listed)

    def _copy_bytes(self, source: str, target: str) -> None:
        with self.open(source, "rb") as reader, self.open(target, "wb") as writer:
            while data := reader.read(self.blocksize):
                writer.write(data)

    def mv(
        self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **options: Any
    ) -> None:
        """Move files or directories; inside one volume that is a rename, done in one moment."""
        untyped: Any = super()
        simple = isinstance(path1, str) and isinstance(path2, str) and maxdepth is None
        if not simple or any(letter in path1 for letter in "*?["):
            untyped.mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **options)
            return
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.access.where(source).volume != self.access.where(target).volume:
            untyped.mv(path1, path2, recursive=recursive, **options)
            return
        into = path2.endswith("/")
        if into:
            self.makedirs(target, exist_ok=True)
        else:
            self._make_above(target)
        wheres = self.access.where(source), self.access.where(target)
        self.access.ask(source, lambda client: client.file_move(*wheres, into=into))


def merge(ranges: list[tuple[int, int, int]], gap: int) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
    """Return ranges, ordered by start, in groups that are fetched as one: (start, end, those in it). Pure.

    Two belong together when at most `gap` bytes lie between them, up to RANGE_BYTES_MAX.
    """
    result: list[tuple[int, int, list[tuple[int, int, int]]]] = []
    for start, end, number in ranges:
        if start >= end:
            continue
        if result:
            first, last, parts = result[-1]
            if start <= last + gap and max(end, last) - first <= RANGE_BYTES_MAX:
                result[-1] = first, max(end, last), [*parts, (start, end, number)]
                continue
        result.append((start, end, [(start, end, number)]))
    return result


def _directory(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _leaves(above: list[str], target: str) -> bool:
    """Say whether a link in a directory leads out of the volume."""
    depth = len(above)
    for part in target.split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            return True
    return False
