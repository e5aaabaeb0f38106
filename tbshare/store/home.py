"""The tree of a store on disk: where things are, what makes it, who may open it."""

import contextlib
import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from tbshare.errors import StoreUnusable
from tbshare.store import disk

LEVEL = 1
_TITLE = "tbshare store"
WRITER = "writer-"  # begins the name of a directory below tmp/ that a program writes in
_FOLDERS = ("objects", "partial", "staging", "quarantine", "views", "tmp")


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of one store."""

    root: Path

    @property
    def format(self) -> Path:
        """The file that says what this is; its lock says who has it open."""
        return self.root / "FORMAT"

    @property
    def index(self) -> Path:
        """index.db."""
        return self.root / "index.db"

    def folder(self, name: str) -> Path:
        """Return one of the folders of the format."""
        assert name in _FOLDERS
        return self.root / name

    def object(self, object_id: bytes, place: str) -> Path:
        """Return the file of a whole object."""
        name = object_id.hex()
        return self.root / "objects" / name[:2] / (name + (".shifted" if place == "shifted" else ""))

    def partial(self, object_id: bytes) -> Path:
        """Return the file of an arriving object."""
        return self.root / "partial" / object_id.hex()

    def temporary(self, note: str) -> Path:
        """Return a fresh name below tmp/."""
        return self.root / "tmp" / f"{note}-{secrets.token_hex(8)}"


def open_home(root: Path, *, expected_id: str = "") -> tuple[Home, str, int]:
    """Make or open the tree; return it, the store's id, and the locked descriptor of FORMAT.

    `expected_id` is the id this node's store had before: a store that is not there then (a disk that is not
    mounted) is an error, and never a new empty store. StoreUnusable says what is wrong and what to do.
    """
    disk.refuse_network_home(root)
    home = Home(root)
    if expected_id and not home.format.exists():
        raise StoreUnusable(
            f"the store of this node is not at {root}; is its disk mounted?",
            cure=f"mount the disk that holds {root}, or set [store] path in config.toml",
        )
    try:
        disk.make_directory(root)
        for name in _FOLDERS:
            disk.make_directory(home.folder(name))
        if not home.format.exists():
            text = f"{_TITLE}\nlevel {LEVEL}\nid {secrets.token_hex(16)}\n"
            disk.write_durably(home.format, text.encode(), temporary=home.temporary("format"))
    except OSError as error:
        raise StoreUnusable(
            f"{root} cannot hold a store: {error.strerror}", cure="tbshare up --home DIR"
        ) from error
    store_id = _read_format(home)
    if expected_id and store_id != expected_id:
        raise StoreUnusable(
            f"the store at {root} belongs to another node",
            cure="mount the right disk, or set [store] path in config.toml",
        )
    return home, store_id, _lock(home)


def _read_format(home: Home) -> str:
    lines = home.format.read_text(errors="replace").splitlines()
    fields = dict(line.split(" ", 1) for line in lines[1:] if " " in line)
    text = fields.get("level", "")
    if not lines or lines[0] != _TITLE or not text.isdecimal() or len(text) > 9 or "id" not in fields:
        raise StoreUnusable(
            f"{home.format} does not describe a store of tbshare",
            cure="choose another directory: tbshare up --home DIR",
        )
    level = int(text)
    if level > LEVEL:
        raise StoreUnusable(
            f"the store at {home.root} has format {level}; this version of tbshare reads up to {LEVEL}",
            cure="pip install --upgrade tbshare",
        )
    return fields["id"]


def _lock(home: Home) -> int:
    descriptor = os.open(home.format, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreUnusable(
            f"another daemon has the store at {home.root} open", cure="tbshare status; tbshare down"
        ) from error
    return descriptor


def sweep_temporary(home: Home) -> None:
    """Delete what an earlier run left below tmp/. Nothing else is ever swept."""
    for path in home.folder("tmp").iterdir():
        with contextlib.suppress(OSError):
            path.unlink()
    sweep_writers(home)


def sweep_writers(home: Home) -> None:
    """Delete what programs that wrote into volumes, and are gone, left below tmp/: each locks its directory."""
    for directory in home.folder("tmp").glob(f"{WRITER}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for path in directory.iterdir():
                    path.unlink()
                directory.rmdir()
            finally:
                os.close(descriptor)
