"""Volumes as directories of this machine: mount, unmount."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Final, cast

import typer

from tbshare.cli import show
from tbshare.cli.complete import complete_volume
from tbshare.cli.examples import examples
from tbshare.cli.lifecycle import POLL_SECONDS, ended, environment, gone, last_line, read_until_closed
from tbshare.cli.options import AsJson
from tbshare.cli.session import connect, home_of
from tbshare.client import Client
from tbshare.errors import DaemonUnreachable, ExitStatus, MountFailed, UsageError
from tbshare.wire.report import MountLine

DEFAULT_DIRECTORY: Final = "~/tbshare"
END_SECONDS: Final = 120.0  # a mount saves what was written last

Volume = Annotated[
    str,
    typer.Argument(
        metavar="[VOLUME]", help="Else every volume, each as a directory.", autocompletion=complete_volume
    ),
]
Directory = Annotated[str, typer.Argument(metavar="[DIR]", help=f"Else {DEFAULT_DIRECTORY}.")]
Front = Annotated[str, typer.Option("--front", metavar="NAME", help="own or pyfuse3; else the best that works.")]
Owners = Annotated[str, typer.Option("--owners", metavar="HOW", help="mine, or numeric: as the volume has them.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        "mount",
        epilog=examples(
            "mount                        (every volume, below ~/tbshare)",
            "mount film                   (this one, on ~/tbshare)",
            "mount film /mnt/film",
            "mount film /mnt/film --allow-other --owners numeric",
        ),
    )(mount)
    how = examples("unmount", "unmount /mnt/film", "unmount /mnt/film --lazy")
    app.command("unmount", epilog=how)(unmount)


def mount(  # noqa: PLR0913, PLR0917  (typer makes an option of each)
    context: typer.Context,
    volume: Volume = "",
    directory: Directory = "",
    front: Front = "",
    owners: Owners = "mine",
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Other users may use it, too.")] = False,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Show files of refs that run code.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="For bytes of other nodes; then reading fails.")
    ] = 30.0,
    try_again: Annotated[bool, typer.Option("--try-again", help="It fails with EAGAIN, not EIO.")] = False,
    complete: Annotated[bool, typer.Option("--complete", help="Fetch to its end what was opened.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show a volume, or all, as a directory of this machine."""
    from tbshare.fuse.front import choose

    if owners not in ("mine", "numeric"):
        raise UsageError(f"--owners is mine or numeric, not {owners}", cure="tbshare mount --help")
    if not directory and ("/" in volume or volume.startswith((".", "~"))):
        raise UsageError(
            f"{volume} is no volume", cure=f"tbshare mount VOLUME {volume}, or tbshare mount '' {volume}"
        )
    choose(front)  # says at once when nothing here can mount
    with connect(context) as client:
        if volume:
            volume = client.volume_show(volume).volume.name
        where = _made(directory)
        there = next((each for each in client.status().mounts if each.directory == where), None)
    if there is not None:
        return _say(there, "is mounted already", as_json=as_json)
    command = [sys.executable, "-P", "-m", "tbshare.fuse", "--home", home_of(context), "--volume", volume]
    command += [f"--front={front}"] if front else []
    command += ["--allow-other"] if allow_other else []
    command += ["--allow-code"] if allow_code else []
    command += ["--numeric-owners"] if owners == "numeric" else []
    command += [f"--wait={wait}"]
    command += ["--try-again"] if try_again else []
    command += ["--complete"] if complete else []
    line = _start([*command, where], home_of(context))
    return _say(line, "is mounted", as_json=as_json)


def _made(directory: str) -> str:
    """Return the absolute path to mount on; the default one is made."""
    path = os.path.abspath(os.path.expanduser(directory or DEFAULT_DIRECTORY))
    if not directory:
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise MountFailed(
                f"{path} cannot be made: {error.strerror}", cure="tbshare mount VOLUME DIR"
            ) from error
    return path


def _say(line: MountLine, what: str, *, as_json: bool) -> int:
    if as_json:
        show.json(line)
        return ExitStatus.DONE
    volumes = ", ".join(line.volumes) or "every volume"
    show.line(f"{volumes} {what} on {line.directory} ({line.front}, process {line.pid})")
    for sentence in line.lacking:
        show.line(f"  {sentence}")
    return ExitStatus.DONE


def _start(command: list[str], home: str) -> MountLine:
    """Start the process of a mount and wait until it is ready; MountFailed with what it says instead."""
    log = Path(home) / "log"
    log.mkdir(mode=0o700, parents=True, exist_ok=True)
    ready, told = os.pipe()
    try:
        with (log / "mount.stderr").open("wb") as stderr:
            child = subprocess.Popen(
                [*command, "--ready-fd", str(told)],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=(told,),
                start_new_session=True,
                cwd="/",
                env=environment(),
            )
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(told)
    with open(ready, "rb") as pipe:
        try:
            said = read_until_closed(pipe.fileno())
        except BaseException:  # Ctrl-C: a mount that nobody was told of would be left behind
            child.terminate()
            ended(child)
            raise
    first, _, rest = said.strip().partition("\n")
    if first == "ready":
        child.returncode = 0  # it outlives this command; do not warn that nobody waited for it
        told_of = cast("dict[str, object]", json.loads(rest))
        return MountLine(**told_of)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ended(child)
    if first:
        raise MountFailed(first, cure=rest.strip().removeprefix("try:").strip())
    raise MountFailed(f"the mount ended at once: {last_line(log / 'mount.stderr')}", cure=f"tail {log}/mount.log")


def unmount(
    context: typer.Context,
    directory: Directory = "",
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Also while it is in use: it goes when it no longer is.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Take a mount away; what was written is saved first. When it is in use, say by whom."""
    from tbshare.fuse import mounting

    where = os.path.abspath(os.path.expanduser(directory or DEFAULT_DIRECTORY))
    if sys.platform != "linux" or mounting.mounted_at(where) is None:
        mounts = _mounts(context)
        others = ", ".join(each.directory for each in mounts) or "none"
        raise MountFailed(f"nothing of tbshare is mounted on {where}; mounted: {others}", cure="tbshare status")
    processes = [each.pid for each in _mounts(context) if each.directory == where]
    mounting.unmount(where, lazily=lazy or mounting.is_broken(where))
    for process in processes if not lazy else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)  # it would go on for as long as another mount namespace has a copy
    deadline = time.monotonic() + END_SECONDS
    while not lazy and processes and not all(gone(process) for process in processes):
        if time.monotonic() > deadline:
            raise MountFailed(
                f"{where} is unmounted, but process {processes[0]} has not saved all that was written to it",
                cure=f"tail {home_of(context)}/log/mount.log",
            )
        time.sleep(POLL_SECONDS)  # a process that is no child of ours can only be looked at
    if as_json:
        show.json({"directory": where, "unmounted": True})
    else:
        show.line(f"{where} is unmounted")
    return ExitStatus.DONE


def _mounts(context: typer.Context) -> list[MountLine]:
    """Return the mounts the daemon knows of; none without one."""
    with contextlib.suppress(DaemonUnreachable), Client.connect(home_of(context)) as client:
        return client.status().mounts
    return []
