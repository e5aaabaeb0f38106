"""Where something is: `VOLUME:/path`, or a path of this machine. Pure.

    VOLUME[@SNAPSHOT]:[/path]       film:/reels/a.mov    film:    film@before-grade:/reels

Paths are bytes, as on disk; text that came from a command line carries bytes that are not UTF-8 as surrogates
(`os.fsdecode`). A part `..` is refused: no path of a volume leaves it.
"""

import re
from typing import Final

import msgspec

from tbshare.content.ref import is_part, shown
from tbshare.errors import PathInvalid, UsageError

ID_DIGITS: Final = 16  # of a file's, directory's or version's id, in hex

_WHERE: Final = re.compile(r"([^:/@]+)(?:@([^:/@]+))?:(/.*)?", re.DOTALL)


class Where(msgspec.Struct, frozen=True):
    """A place in a volume, or, with an empty `volume`, an absolute path of this machine.

    In a volume `path` has its parts joined by single slashes, none at either end; empty is the root. A `snapshot`
    means the volume as it was then, which nobody writes to.
    """

    volume: str = ""
    path: bytes = b""
    snapshot: str = ""

    @property
    def parts(self) -> tuple[bytes, ...]:
        """The names from the root to it; PathInvalid where the path could leave the volume."""
        return path_parts(self.path)

    def __str__(self) -> str:
        path = self.path.decode("utf-8", "surrogateescape")
        if not self.volume:
            return path
        return f"{self.volume}{f'@{self.snapshot}' if self.snapshot else ''}:/{path}"


def parse_where(text: str) -> Where | None:
    """Return the place in a volume that `text` writes; None when it is of another form: a ref, or a local path.

    PathInvalid when it would leave the volume. The caller looks first whether a file here has that very name.
    """
    found = _WHERE.fullmatch(text)
    if found is None:
        return None
    volume, snapshot, path = found.groups()
    if not is_part(volume) or not is_part(snapshot or volume):
        return None
    parts = path_parts((path or "").encode("utf-8", "surrogateescape"))
    return Where(volume=volume, path=b"/".join(parts), snapshot=snapshot or "")


def path_parts(path: bytes) -> tuple[bytes, ...]:
    """Return the names in a path of a volume, without the parts that say nothing; PathInvalid for `..` and NUL."""
    parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
    if b".." in parts or b"\0" in path:
        text = shown(path.decode("utf-8", "surrogateescape"))
        raise PathInvalid(f"{text} has a part '..' or a NUL: no path of a volume", cure="write it from the root")
    return parts


def id_text(number: int) -> str:
    """Return the id of a file, directory or version as people see it; empty for 0."""
    return f"{number:0{ID_DIGITS}x}" if number else ""


def id_number(text: str) -> int:
    """Return the id that `text` writes; UsageError when it writes none."""
    if re.fullmatch(rf"[0-9a-fA-F]{{{ID_DIGITS}}}", text) is None or int(text, 16) >> 63:
        raise UsageError(
            f"{shown(text)} is no version: those are {ID_DIGITS} hex digits, as history lists them",
            cure="tbshare history VOLUME:/path",
        )
    return int(text, 16)
