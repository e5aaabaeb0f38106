"""A disk that forgets: system calls recorded by strace, replayed into all the states a power cut may leave.

The rules, stricter than any one file system: bytes of a file are durable after an fsync of that file; until then
each sector holds what any moment since the last sync put there, whatever its neighbours hold. A name is durable
after an fsync of its directory; until then any prefix of the changes to a directory may survive, and a rename
survives in both directories or in none.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

CALLS = (
    "open,openat,creat,pwrite64,write,writev,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,rename,renameat,"
    "renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,mkdir,mkdirat,fsync,fdatasync,close,dup,dup2,"
    "dup3,sync_file_range,copy_file_range,sendfile"
)
SECTOR_BYTES = 512
_LINE = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)")
_DECORATION = re.compile(r"<[^>]*>(\(deleted\))?")

Tree = dict[str, bytes | None]  # path below the root -> bytes, or None for a directory


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that succeeded: its name, its arguments as strace wrote them, and what it returned."""

    name: str
    arguments: tuple[str, ...]
    result: int


@dataclass(frozen=True, slots=True)
class _Change:
    """What one call did to a file: wrote `data` at `offset`, or set (`exact`) or raised its size to `offset`."""

    offset: int
    data: bytes = b""
    exact: bool = False


@dataclass(eq=False, slots=True)
class _File:
    durable: bytes = b""
    pending: list[_Change] = field(default_factory=list[_Change])
    size: int = 0


@dataclass(eq=False, slots=True)
class _Folder:
    names: dict[str, "_File | _Folder"] = field(default_factory=dict[str, "_File | _Folder"])
    durable: dict[str, "_File | _Folder"] = field(default_factory=dict[str, "_File | _Folder"])


_Names = dict[str, _File | _Folder]


@dataclass(frozen=True, slots=True)
class _Naming:
    """Changes of names that survive together or not at all; None removes a name."""

    changes: tuple[tuple[_Folder, str, "_File | _Folder | None"], ...]

    @property
    def folders(self) -> set[_Folder]:
        return {folder for folder, _, _ in self.changes}


@dataclass(slots=True)
class _Open:
    target: "_File | _Folder"
    position: int = 0
    append: bool = False


def calls_of(trace: Path) -> Iterator[Call]:
    """Yield the calls of a trace written with -y -xx."""
    for line in trace.read_text().splitlines():
        match = _LINE.match(line)
        if match is None:
            assert "(" not in line.split("=")[0] or "resumed" not in line, line[:200]
            continue
        name, text, result = match.groups()
        if int(result) >= 0:
            arguments = tuple(_DECORATION.sub("", argument) for argument in text.split(", "))
            yield Call(name, arguments, int(result))


def bytes_of(argument: str) -> bytes:
    """Return the bytes of a string argument, which strace wrote as "\\x2f..."."""
    assert argument.startswith('"'), argument[:80]
    assert argument.endswith('"'), "strace cut a string short"
    return bytes.fromhex(argument[1:-1].replace("\\x", ""))


class Disk:
    """What is on the disk and what only in memory, after the calls applied so far; only below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.top = _Folder()
        self.namings: list[_Naming] = []
        self.open: dict[int, _Open] = {}

    def begin_process(self) -> None:
        """Forget the descriptors of the process before; what it wrote stays in memory, as after kill -9."""
        self.open.clear()

    def apply(self, call: Call) -> bool:
        """Do what a call did; return whether a power cut now may leave something else than before."""
        apply = getattr(self, f"_{call.name}", None)
        assert apply is not None, f"the model does not know {call.name}"
        return bool(apply(call.arguments, call.result))

    # ---- names --------------------------------------------------------------------------------------------

    def _place(self, path: bytes) -> tuple[_Folder, str] | None:
        text = os.path.normpath(os.fsdecode(path))
        if not text.startswith(self.root + "/"):
            return None
        *parents, name = text[len(self.root) + 1 :].split("/")
        folder = self.top
        for parent in parents:
            inner = folder.names[parent]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder, name

    def _at(self, folder: str, path: str) -> tuple[_Folder, str] | None:
        """Return where a path is that may be relative to an open directory."""
        name = bytes_of(path)
        if name.startswith(b"/"):
            return self._place(name)
        if folder == "AT_FDCWD":
            return None  # the store names everything from the root; this is Python looking for its modules
        opened = self.open.get(int(folder))
        if opened is None:
            return None
        assert isinstance(opened.target, _Folder)
        return opened.target, os.fsdecode(name)

    def _rename_names(self, *changes: tuple[_Folder, str, "_File | _Folder | None"]) -> bool:
        for folder, name, target in changes:
            if target is None:
                folder.names.pop(name, None)
            else:
                folder.names[name] = target
        self.namings.append(_Naming(changes))
        return True

    def _openat(self, arguments: tuple[str, ...], result: int) -> bool:
        if bytes_of(arguments[1]) == os.fsencode(self.root):
            self.open[result] = _Open(self.top)
            return False
        place = self._at(arguments[0], arguments[1])
        if place is None:
            return False
        folder, name = place
        flags = arguments[2].split("|")
        assert "O_TMPFILE" not in flags
        target, changed = folder.names.get(name), False
        if target is None:
            assert "O_CREAT" in flags, f"{name} is not in the model"
            target = _File()
            changed = self._rename_names((folder, name, target))
        elif "O_TRUNC" in flags and isinstance(target, _File):
            changed = self._resize(target, 0)
        self.open[result] = _Open(target, append="O_APPEND" in flags)
        return changed

    def _mkdir(self, arguments: tuple[str, ...], _result: int) -> bool:
        place = self._place(bytes_of(arguments[0]))
        return place is not None and self._rename_names((*place, _Folder()))

    def _unlink(self, arguments: tuple[str, ...], _result: int) -> bool:
        place = self._place(bytes_of(arguments[0]))
        return place is not None and self._rename_names((*place, None))

    _rmdir = _unlink

    def _unlinkat(self, arguments: tuple[str, ...], _result: int) -> bool:
        place = self._at(arguments[0], arguments[1])
        return place is not None and self._rename_names((*place, None))

    def _link(self, arguments: tuple[str, ...], _result: int) -> bool:
        old, new = self._place(bytes_of(arguments[0])), self._place(bytes_of(arguments[1]))
        return self._linked(old, new)

    def _linkat(self, arguments: tuple[str, ...], _result: int) -> bool:
        return self._linked(self._at(arguments[0], arguments[1]), self._at(arguments[2], arguments[3]))

    def _linked(self, old: tuple[_Folder, str] | None, new: tuple[_Folder, str] | None) -> bool:
        if new is None:
            return False
        assert old is not None, "a link from outside the model"
        return self._rename_names((*new, old[0].names[old[1]]))

    def _rename(self, arguments: tuple[str, ...], _result: int) -> bool:
        old, new = self._place(bytes_of(arguments[0])), self._place(bytes_of(arguments[1]))
        if old is None and new is None:
            return False
        assert old is not None
        assert new is not None, "a rename out of the model"
        return self._rename_names((*old, None), (*new, old[0].names[old[1]]))

    # ---- bytes --------------------------------------------------------------------------------------------

    def _resize(self, file: _File, size: int) -> bool:
        file.pending.append(_Change(size, exact=True))
        file.size = size
        return True

    def _write_at(self, file: _File, data: bytes, offset: int) -> bool:
        file.pending.append(_Change(offset, data))
        file.size = max(file.size, offset + len(data))
        return True

    def _file(self, descriptor: str) -> _File | None:
        opened = self.open.get(int(descriptor))
        return opened.target if opened and isinstance(opened.target, _File) else None

    def _pwrite64(self, arguments: tuple[str, ...], result: int) -> bool:
        file = self._file(arguments[0])
        return file is not None and self._write_at(file, bytes_of(arguments[1])[:result], int(arguments[3]))

    def _write(self, arguments: tuple[str, ...], result: int) -> bool:
        file = self._file(arguments[0])
        if file is None:
            return False
        opened = self.open[int(arguments[0])]
        offset = file.size if opened.append else opened.position
        opened.position = offset + result
        return self._write_at(file, bytes_of(arguments[1])[:result], offset)

    def _lseek(self, arguments: tuple[str, ...], result: int) -> bool:
        opened = self.open.get(int(arguments[0]))
        if opened is not None:
            opened.position = result
        return False

    def _ftruncate(self, arguments: tuple[str, ...], _result: int) -> bool:
        file = self._file(arguments[0])
        return file is not None and self._resize(file, int(arguments[1]))

    def _fallocate(self, arguments: tuple[str, ...], _result: int) -> bool:
        file = self._file(arguments[0])
        if file is None:
            return False
        assert arguments[1] == "0", f"a hole: {arguments}"
        size = int(arguments[2]) + int(arguments[3])
        file.pending.append(_Change(size))
        file.size = max(file.size, size)
        return True

    def _close(self, arguments: tuple[str, ...], _result: int) -> bool:
        self.open.pop(int(arguments[0]), None)
        return False

    def _fsync(self, arguments: tuple[str, ...], _result: int) -> bool:
        opened = self.open.get(int(arguments[0]))
        if opened is None:
            return False
        if isinstance(opened.target, _Folder):
            return self._sync_names(opened.target)
        opened.target.durable = _content(opened.target, opened.target.pending)
        opened.target.pending.clear()
        return True

    _fdatasync = _fsync

    def _sync_names(self, folder: _Folder) -> bool:
        """Make the changes in a folder durable, and what must have come before them."""
        wanted, kept, durable = {folder}, list[_Naming](), list[_Naming]()
        for naming in reversed(self.namings):
            if naming.folders & wanted:
                wanted |= naming.folders
                durable.append(naming)
            else:
                kept.append(naming)
        self.namings = kept[::-1]
        for naming in reversed(durable):
            _settle(naming, _durable)
        return bool(durable)

    # ---- the power goes -----------------------------------------------------------------------------------

    def crash(self, random: Random, *, names: float | None = None, data: float | None = None) -> Tree:
        """Return one state the disk may be in when the power goes now.

        `names` and `data` are the shares of what is not synced that survive; None leaves them to chance.
        """
        share = random.choice((0.0, 0.5, 0.9, 0.97, 1.0)) if names is None else names
        changed: dict[_Folder, _Names] = {}

        def copied(folder: _Folder) -> _Names:
            return changed.setdefault(folder, dict(folder.durable))

        stopped: set[_Folder] = set()
        for naming in self.namings:
            if naming.folders & stopped or random.random() >= share:
                stopped |= naming.folders
            else:
                _settle(naming, copied)
        tree: Tree = {}
        contents: dict[_File, bytes] = {}
        stack: list[tuple[str, _Folder]] = [("", self.top)]
        while stack:
            path, folder = stack.pop()
            for name, target in changed.get(folder, folder.durable).items():
                inner = f"{path}/{name}" if path else name
                if isinstance(target, _Folder):
                    tree[inner] = None
                    stack.append((inner, target))
                    continue
                if target not in contents:
                    contents[target] = _survivor(target, random, data)
                tree[inner] = contents[target]
        return tree


def _durable(folder: _Folder) -> _Names:
    return folder.durable


def _settle(naming: _Naming, names_of: Callable[[_Folder], _Names]) -> None:
    for folder, name, target in naming.changes:
        names = names_of(folder)
        if target is None:
            names.pop(name, None)
        else:
            names[name] = target


def _content(file: _File, changes: list[_Change]) -> bytes:
    data = bytearray(file.durable)
    for change in changes:
        _change(data, change)
    return bytes(data)


def _change(data: bytearray, change: _Change) -> None:
    end = change.offset + len(change.data)
    if end > len(data):
        data.extend(bytes(end - len(data)))
    if change.exact:
        del data[end:]
    data[change.offset : end] = change.data


def _survivor(file: _File, random: Random, share: float | None) -> bytes:
    """Return what is left of a file: each piece of it stops at some moment since the last sync."""
    if not file.pending:
        return file.durable
    if share is None:
        share = random.choice((0.0, 0.0, 0.3, 0.8, 0.97, 1.0, 1.0))
    if share == 1.0:
        return _content(file, file.pending)
    piece = random.choice((SECTOR_BYTES, 4096, 65536, 1 << 30))
    data = bytearray(file.durable)
    stopped: set[int] = set()
    for change in file.pending if share else ():
        if not change.data:
            if random.random() < share:
                _change(data, change)
            continue
        position, end = change.offset, change.offset + len(change.data)
        while position < end:
            number = position // piece
            until = min(end, (number + 1) * piece)
            if number not in stopped and random.random() < share:
                part = change.data[position - change.offset : until - change.offset]
                _change(data, _Change(position, part))
            else:
                stopped.add(number)
            position = until
    if random.random() < 0.3 and len(data) < file.size:  # the length survives without the bytes
        data.extend(bytes(file.size - len(data)))
    return bytes(data)
