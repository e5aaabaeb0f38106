"""Refs: how a user names a tree.

    [VOLUME:]name[@rev]         name = part or part/part, part of the letters a-z 0-9 . _ -

Any case is kept and compared folded; no part starts with a dot, so no ref name walks a path or hides a file.
`rev` is a number, a number with the node that lost a clash (`3.studio-2`), or a label such as a hub revision.
"""

import re
from dataclasses import dataclass
from typing import Final

from tbshare.errors import UsageError

MODELS: Final = "models"
PART_LETTERS_MAX: Final = 96  # the Hugging Face hub's own limit for a repository's name
REV_LETTERS_MAX: Final = 160
TEXT_LETTERS_MAX: Final = 1024  # longer text is not even looked at

_PART = rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{PART_LETTERS_MAX - 1}}}"
PART_PATTERN: Final = rf"\A{_PART}\Z"
NAME_PATTERN: Final = rf"\A{_PART}(?:/{_PART})?\Z"
REV_PATTERN: Final = rf"\A(?=[^\n]{{1,{REV_LETTERS_MAX}}}\Z)[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*\Z"

_part = re.compile(PART_PATTERN)
_name = re.compile(NAME_PATTERN)
_rev = re.compile(REV_PATTERN)
_CURE: Final = "use VOLUME:name@rev, for example mlx-community/Llama-3.3-70B-4bit@2"


def folded(name: str) -> str:
    """Return the form in which names of volumes, refs and nodes are compared."""
    return name.lower()


def is_part(text: str) -> bool:
    """Say whether `text` can name a volume or a node, or be one part of a ref's name."""
    return _part.match(text) is not None


def is_name(text: str) -> bool:
    """Say whether `text` can be a ref's name, without volume and rev."""
    return _name.match(text) is not None


@dataclass(frozen=True)
class Ref:
    """A parsed ref; an empty `rev` means the newest. Raises UsageError when a part is not allowed."""

    name: str
    volume: str = MODELS
    rev: str = ""

    def __post_init__(self) -> None:
        for kind, text, allowed in (
            ("volume", self.volume, _part.match(self.volume)),
            ("name", self.name, _name.match(self.name)),
            ("rev", self.rev, not self.rev or _rev.match(self.rev)),
        ):
            if not allowed:
                raise UsageError(
                    f"{shown(text)} is not a {kind}: letters, digits, '.', '_' and '-', "
                    f"not starting with a dot{', one / at most' if kind == 'name' else ''}",
                    cure=_CURE,
                )

    def __str__(self) -> str:
        volume = "" if folded(self.volume) == MODELS else f"{self.volume}:"
        return f"{volume}{self.name}{f'@{self.rev}' if self.rev else ''}"

    def key(self) -> tuple[str, str]:
        """Return (volume, name) as they are compared."""
        return folded(self.volume), folded(self.name)


def parse_ref(text: str) -> Ref:
    """Return the ref that `text` writes; UsageError when it writes none."""
    if len(text) > TEXT_LETTERS_MAX:
        raise UsageError(f"a ref of {len(text)} letters is too long", cure=_CURE)
    before, at, rev = text.partition("@")
    if at and not rev:
        raise UsageError(f"{shown(text)} ends with @ but names no rev", cure=_CURE)
    volume, colon, name = before.partition(":")
    return Ref(name=name, volume=volume, rev=rev) if colon else Ref(name=before, rev=rev)


def name_from_directory(directory: str) -> str:
    """Return a valid ref name for the last part of a directory's path: `Llama 3 (4bit)/` -> `Llama-3-4bit`.

    A Hugging Face cache directory (`models--org--name`) gives `org/name`. What leaves nothing gives `unnamed`.
    """
    last = directory[-4096:].rstrip("/").rpartition("/")[2]
    if last.startswith("models--") and last.count("--") == 2:
        _, organisation, model = last.split("--")
        return f"{part_from(organisation)}/{part_from(model)}"
    return part_from(last)


def part_from(text: str) -> str:
    """Return the nearest text that is one valid part: for host names and directory names."""
    part = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-").rstrip("-")
    return part[:PART_LETTERS_MAX] or "unnamed"


def shown(text: str) -> str:
    """Return `text` as it can stand in a message: quoted, shortened, no control characters."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
