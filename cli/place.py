"""Arguments that name a place: `VOLUME:/path`, or a path of this machine."""

import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Annotated

import typer

from tbshare.cli import show
from tbshare.cli.complete import complete_volume, complete_where
from tbshare.cli.session import connect
from tbshare.client import Client
from tbshare.errors import FileError, InputRefused, PathMissing, RefUnknown, UsageError
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
    """Return the place in a volume that an argument names, else the argument: a ref. UsageError for neither."""
    where = None if os.path.lexists(text) else parse_where(text)
    if where is None and ":/" in text and not looks_like_path(text):
        raise UsageError(f"{text!r} is neither a ref nor VOLUME:/path", cure="tbshare help volumes")
    return where or text


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
def client_for(context: typer.Context, *wheres: Where) -> Generator[Client]:
    """Connect to the daemon for what is asked about these places."""
    with connect(context) as client, listing_helps(client, *wheres):
        yield client


@contextmanager
def listing_helps(client: Client, *wheres: Where) -> Generator[None]:
    """Let an error about a path name what is nearest to it, and a command that lists a directory that is there."""
    try:
        yield
    except FileError as error:
        places = [where for where in wheres if where.volume]
        if isinstance(error, PathMissing) and not error.cure:
            for where in places:
                if _say_nearest(client, where, error):
                    raise
        if not error.cure and places:
            above = Where(places[0].volume, b"/".join(places[0].parts[:-1]), places[0].snapshot)
            error.cure = f"tbshare ls {shlex.quote(str(above))}"
        raise


def _say_nearest(client: Client, where: Where, error: PathMissing) -> bool:
    """Add the names nearest to the first part of the path that is missing; whether one is."""
    for depth, part in enumerate(where.parts):
        above = Where(where.volume, b"/".join(where.parts[:depth]), where.snapshot)
        names = {
            os.fsdecode(item.name).casefold(): os.fsdecode(item.name) for item in client.file_list(above).items
        }
        wanted = os.fsdecode(part).casefold()
        if wanted not in names:
            if found := get_close_matches(wanted, names, n=3):
                error.args = (
                    f"{error}; nearest: {', '.join(show.name(os.fsencode(names[key])) for key in found)}",
                )
            error.cure = f"tbshare ls {shlex.quote(str(above))}"
            return True
    return False


@contextmanager
def volume_helps(client: Client, text: str, command: str = "") -> Generator[None]:
    """Let the error that there is no such ref say that a volume has this name, and how its files are named."""
    try:
        yield
    except RefUnknown as error:
        name = volume_name(text)
        if any(line.name.lower() == name.lower() for line in client.volume_list().volumes):
            error.args = (f"{error}; {name} is a volume, its files are {name}:/PATH",)
            error.cure = command or f"tbshare ls {name}:/"
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
