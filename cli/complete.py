"""Shell completion from the daemon: refs, nodes, ids, volumes, files. Quietly nothing when it is down."""

import os
from collections.abc import Callable

import typer

from tbshare.client import Client
from tbshare.errors import TbshareError
from tbshare.wire.where import Where, parse_where

ANSWER_SECONDS = 0.5  # somebody waits with a finger on the tab key


def complete_ref(incomplete: str) -> list[str]:
    """Return the refs that begin so: names, and revs once an @ is typed."""
    with_revs = "@" in incomplete
    refs = _asked(lambda client: [line.ref for line in client.ref_list(all_revs=with_revs).refs])
    names = refs if with_revs else [ref.rpartition("@")[0] or ref for ref in refs]
    return _beginning(names, incomplete)


def complete_node(incomplete: str) -> list[str]:
    """Return the nodes that begin so; after a comma, one more."""
    before, comma, last = incomplete.rpartition(",")
    names = _beginning(_asked(lambda client: [node.name for node in client.node_list().nodes]), last)
    return [before + comma + name for name in names]


def complete_id(incomplete: str) -> list[str]:
    """Return the ids of what goes on."""
    return _beginning(_asked(lambda client: [line.id for line in client.processes().processes]), incomplete)


def complete_volume(incomplete: str) -> list[str]:
    """Return the volumes that begin so."""
    return _beginning(_asked(lambda client: [line.name for line in client.volume_list().volumes]), incomplete)


def complete_snapshot(context: typer.Context, incomplete: str) -> list[str]:
    """Return the snapshots of the volume that was typed before."""
    name = str(context.params.get("name") or "").rstrip(":/")
    return _beginning(
        _asked(lambda client: [line.name for line in client.snapshot_list(name).snapshots]), incomplete
    )


def complete_where(incomplete: str) -> list[str]:
    """Return the volumes of files that begin so, and once there is a colon, what is in the directory.

    Without anything that fits, the files of this machine: an argument of cp may be either.
    """
    if parse_where(incomplete) is not None:
        return _beginning(_asked(lambda client: _below(client, incomplete)), incomplete)
    volumes = _asked(lambda client: [f"{line.name}:/" for line in client.volume_list().volumes if line.id])
    return _beginning([*volumes, *_local(incomplete)], incomplete)


def complete_ref_or_where(incomplete: str) -> list[str]:
    """Return the refs and the places in volumes that begin so."""
    if parse_where(incomplete) is not None:
        return complete_where(incomplete)
    volumes = _asked(lambda client: [f"{line.name}:/" for line in client.volume_list().volumes if line.id])
    return [*complete_ref(incomplete), *_beginning(volumes, incomplete)]


def _below(client: Client, incomplete: str) -> list[str]:
    """Return what is in the directory that `incomplete` has reached."""
    typed = incomplete if "/" in incomplete else f"{incomplete}/"
    directory = parse_where(typed.rpartition("/")[0] + "/")
    if directory is None:
        return []
    start = str(Where(directory.volume, directory.path, directory.snapshot))
    start = start if start.endswith("/") else f"{start}/"
    listed = client.file_list(directory)
    slash = ("directory", "bundle")
    return [
        start + item.name.decode("utf-8", "surrogateescape") + ("/" if item.kind in slash else "")
        for item in listed.items
        if b"\n" not in item.name  # the shell takes one word a line
    ]


def _local(incomplete: str) -> list[str]:
    """Return the files of this machine that begin so."""
    before, slash, start = incomplete.rpartition("/")
    try:
        with os.scandir((before or "/") if slash else ".") as found:
            return [
                before + slash + entry.name + ("/" if entry.is_dir() else "")
                for entry in found
                if entry.name.startswith(start) and (start or not entry.name.startswith("."))
            ]
    except OSError:
        return []


def _asked(question: Callable[[Client], list[str]]) -> list[str]:
    try:
        with Client.connect(answer_seconds=ANSWER_SECONDS, call_seconds=ANSWER_SECONDS) as client:
            return question(client)
    except (TbshareError, OSError):
        return []


def _beginning(names: list[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
