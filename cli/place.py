"""Arguments that name a place: `VOLUME:/path`, or a path of this machine."""

import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer

from tbshare.cli.complete import complete_volume, complete_where
from tbshare.errors import FileError, InputRefused, UsageError
from tbshare.wire.where import Where, parse_where

PlaceArgument = Annotated[
    str,
    typer.Argument(metavar="VOLUME:/PATH", help="A file or directory of a volume.", autocompletion=complete_where),
]
PlacesArgument = Annotated[
    list[str],
    typer.Argument(metavar="VOLUME:/PATH", help="Of a volume.", autocompletion=complete_where),
]
VolumeArgument = Annotated[
    str, typer.Argument(metavar="VOLUME", help="A volume's name.", autocompletion=complete_volume)
]
OptionalVolume = Annotated[
    str, typer.Argument(metavar="[VOLUME]", help="Else all of them.", autocompletion=complete_volume)
]


def looks_like_path(text: str) -> bool:
    """Whether an argument is a path of this machine: it begins with a dot or a slash, or is there."""
    return text.startswith((".", "/", "~/")) or os.path.lexists(text)


def source(text: str) -> str:
    """Return the absolute path; InputRefused when nothing is there."""
    chosen = os.path.abspath(os.path.expanduser(text))
    if not os.path.lexists(chosen):
        raise InputRefused(
            f"no such file or directory: {text}{_forgotten_slash(text)}", cure=f"ls {os.path.dirname(chosen)}"
        )
    return chosen


def ref_or_place(text: str) -> str | Where:
    """Return the place in a volume that an argument names, else the argument: a ref."""
    return (None if os.path.lexists(text) else parse_where(text)) or text


def place_in_volume(text: str, command: str) -> Where:
    """Return the place in a volume that an argument names; UsageError when it names something else."""
    where = None if looks_like_path(text) else parse_where(text)
    if where is None:
        raise UsageError(f"{text!r} is no VOLUME:/path" + _forgotten_slash(text), cure=f"tbshare {command} --help")
    return where


def place_anywhere(text: str, *, exists: bool) -> Where:
    """Return the place that an argument of cp names; InputRefused when it must be there and is not.

    What begins with a dot or a slash, or is there, is a path of this machine; so is what has another form than
    VOLUME:/path.
    """
    where = None if looks_like_path(text) else parse_where(text)
    if where is not None:
        return where
    return Where(path=os.fsencode(source(text) if exists else os.path.abspath(os.path.expanduser(text))))


@contextmanager
def listing_helps(where: Where) -> Generator[None]:
    """Let an error about a path, where it names no cure itself, name the command that lists the directory."""
    try:
        yield
    except FileError as error:
        if not error.cure:
            above = Where(where.volume, b"/".join(where.parts[:-1]), where.snapshot)
            error.cure = f"tbshare ls {shlex.quote(str(above))}"
        raise


def volume_name(text: str) -> str:
    """Return the name of a volume, written with or without its colon."""
    where = parse_where(text)
    return where.volume if where is not None and not where.path and not where.snapshot else text


def _forgotten_slash(text: str) -> str:
    volume, colon, path = text.partition(":")
    if colon and path and parse_where(f"{volume}:/{path}") is not None:
        return f" (did you mean {volume}:/{path}?)"
    return ""
