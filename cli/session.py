"""From a command line to the daemon: which home, and a connection to it."""

from dataclasses import dataclass

import typer

from tbshare import __version__
from tbshare.cli import show
from tbshare.client import Client


@dataclass(frozen=True)
class Invocation:
    """What holds for the whole command line."""

    home: str  # absolute


def home_of(context: typer.Context) -> str:
    """Return the home directory this command is about."""
    invocation = context.find_object(Invocation)
    assert invocation is not None
    return invocation.home


def connect(context: typer.Context) -> Client:
    """Return a connection to the daemon, to be used in a `with`; says so when the daemon is of another version."""
    client = Client.connect(home_of(context))
    if client.version_differs:
        show.aside(
            f"note: the daemon is tbshare {client.daemon.version}, this is {__version__}; try: tbshare restart"
        )
    return client
