"""The daemon's life: up, down, restart."""

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, cast

import typer

import tbshare
from tbshare.cli import amount, show
from tbshare.cli.examples import examples
from tbshare.cli.options import AsJson
from tbshare.cli.session import home_of
from tbshare.client import Client, socket_path
from tbshare.daemon.config import load
from tbshare.errors import DaemonUnreachable, ExitStatus, StoreUnusable, TbshareError
from tbshare.wire.report import StatusReport

START_SECONDS = 120.0  # a store of terabytes looks at what a crash left behind before it answers
STOP_SECONDS = 60.0  # the daemon ends its transfers and syncs
END_SECONDS = 5.0  # a daemon that closed the pipe without a word is about to end
POLL_SECONDS = 0.02
ID_SHOWN = 8
ERROR_BYTES_MAX = 4096
STARTED_WITH = "run/started-with.json"

Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="TCP port; 0: any that is free.")]
Name = Annotated[str, typer.Option("--name", help="This node's name; else the host's.")]
Listen = Annotated[str, typer.Option("--listen", metavar="ADDRESS", help="Listen on this address only.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("up", epilog=examples("up", "up --name attic --port 7400", "up --foreground"))(up)
    app.command("down", epilog=examples("down"))(down)
    app.command("restart", epilog=examples("restart"))(restart)


def up(
    context: typer.Context,
    port: Port = None,
    name: Name = "",
    listen: Listen = "",
    foreground: Annotated[bool, typer.Option("--foreground", "-f", help="Stay, and log to the terminal.")] = False,
    as_json: AsJson = False,
) -> int:
    """Start this node's daemon. It does not come back after a reboot by itself."""
    home = home_of(context)
    options = _options(port, name, listen)
    state = _running(home)
    if state is not None:
        if foreground:
            raise StoreUnusable(f"a daemon is running already, process {state.pid}", cure="tbshare down")
        if options:
            show.aside(f"note: it was running already; {' '.join(options)} changes nothing; try: tbshare restart")
        return _say_state(state, "is up already", as_json=as_json)
    command = [sys.executable, "-P", "-m", "tbshare.daemon", "--home", home, *options]
    socket_path(home)  # says so when it is too long
    load(Path(home))  # here a mistake in config.toml has its own exit status and cure
    _remember(home, options)
    if foreground:
        os.execve(sys.executable, [*command, "--foreground"], environment())
    start(command, home)
    state = _running(home)
    if state is None:
        raise DaemonUnreachable(
            "the daemon said it was ready and has ended since", cure=f"tail {home}/log/daemon.log"
        )
    return _say_state(state, "is up", as_json=as_json)


def down(context: typer.Context, as_json: AsJson = False) -> int:
    """Stop this node's daemon, cleanly. Transfers resume when it is up again."""
    home = home_of(context)
    stopped = _stop(home)
    if as_json:
        show.json({"stopped": stopped})
    else:
        show.line("the daemon is stopped" if stopped else f"no daemon is running (home {home})")
    return ExitStatus.DONE


def restart(
    context: typer.Context, port: Port = None, name: Name = "", listen: Listen = "", as_json: AsJson = False
) -> int:
    """Stop the daemon and start it again, as after an upgrade, with the options it was started with."""
    home = home_of(context)
    _stop(home)
    before = _remembered(home)
    if port is None and before.get("--port", "").isdecimal():
        port = int(before["--port"])
    name, listen = name or before.get("--name", ""), listen or before.get("--listen", "")
    return up(context, port=port, name=name, listen=listen, as_json=as_json)


def _options(port: int | None, name: str, listen: str) -> list[str]:
    given = [("--port", "" if port is None else str(port)), ("--name", name), ("--listen", listen)]
    return [word for option, value in given if value for word in (option, value)]


def _remember(home: str, options: list[str]) -> None:
    """Note what the daemon is started with, for restart; config.toml is the place for what is meant to last."""
    path = Path(home) / STARTED_WITH
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps(options))
    except OSError as error:
        raise StoreUnusable(
            f"the home {home} cannot be made: {error.strerror or error}", cure="choose another with --home"
        ) from error


def _remembered(home: str) -> dict[str, str]:
    """Return the options the daemon was started with; none when they are not known."""
    try:
        read: object = json.loads((Path(home) / STARTED_WITH).read_text())
    except (OSError, ValueError):
        return {}
    words = [str(word) for word in cast("list[object]", read)] if isinstance(read, list) else []
    return dict(zip(words[::2], words[1::2], strict=False))


def environment() -> dict[str, str]:
    """Return the environment of the daemon: it must find this very tbshare, from any folder.

    `python -m` would look into the working folder first, so it is told not to (-P), and a checkout that is not
    installed is named instead.
    """
    environment = dict(os.environ)
    try:
        importlib.metadata.distribution("tbshare")
    except importlib.metadata.PackageNotFoundError:
        root = str(Path(tbshare.__file__).parent.parent)
        before = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{before}" if before else root
    return environment


def start(command: list[str], home: str) -> None:
    """Start the daemon and wait until it says "ready" on a pipe; raises what it says instead.

    The pipe carries `ready`, or a sentence and, on a second line, `try:` and what cures it. What the daemon writes
    to stderr before it has a log goes to log/daemon.stderr.
    """
    log = Path(home) / "log"
    try:
        log.mkdir(mode=0o700, parents=True, exist_ok=True)
        stderr = (log / "daemon.stderr").open("wb")
    except OSError as error:
        raise StoreUnusable(
            f"the home {home} cannot be made: {error.strerror or error}", cure="choose another with --home"
        ) from error
    ready, told = os.pipe()
    try:
        with stderr:
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
        except BaseException:  # Ctrl-C: a daemon that nobody was told of would be left behind
            child.terminate()
            ended(child)
            raise
    if said.strip() == "ready":
        child.returncode = 0  # it outlives this command; do not warn that nobody waited for it
        return
    message, _, cure = said.strip().partition("\n")
    in_time = ended(child)
    if message:
        raise StoreUnusable(message.strip(), cure=cure.strip().removeprefix("try:").strip())
    if not in_time:
        raise DaemonUnreachable(
            f"the daemon was not ready after {amount.duration(START_SECONDS)}", cure=f"tail {log}/daemon.log"
        )
    why = last_line(log / "daemon.stderr")
    raise StoreUnusable(f"the daemon ended at once: {why}", cure="tbshare up --foreground")


def ended(child: subprocess.Popen[bytes]) -> bool:
    """Wait until a daemon that did not become ready has ended; False when it had to be killed."""
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return False
    return True


def read_until_closed(descriptor: int) -> str:
    """Return what comes through the pipe until it says `ready`, is closed, or START_SECONDS are over."""
    import select

    said = b""
    deadline = time.monotonic() + START_SECONDS
    while (left := deadline - time.monotonic()) > 0 and len(said) < ERROR_BYTES_MAX:
        readable, _, _ = select.select([descriptor], [], [], left)
        more = os.read(descriptor, ERROR_BYTES_MAX) if readable else b""
        said += more
        if not more or said.strip() == b"ready":
            break
    return said.decode(errors="replace")


def last_line(path: Path) -> str:
    """Return the last line of the daemon's stderr: of a traceback, the error itself."""
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "it did not say why"


def _running(home: str) -> StatusReport | None:
    """Return the state of the daemon; None when there is none."""
    try:
        with Client.connect(home) as client:
            return client.status()
    except DaemonUnreachable as error:
        if isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError, ConnectionResetError)):
            return None
        raise


def _stop(home: str) -> bool:
    """Stop the daemon and wait until its process is gone; False when there was none."""
    try:
        client = Client.connect(home, any_level=True)
    except DaemonUnreachable as error:
        if isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError)):
            return False
        raise
    with client:
        process = client.daemon.pid
        deadline = time.monotonic() + STOP_SECONDS
        client.shutdown()
        with contextlib.suppress(TimeoutError):
            client.wait_closed(STOP_SECONDS)
    while not gone(process):
        if time.monotonic() > deadline:
            raise TbshareError(
                f"the daemon, process {process}, has not stopped within {amount.duration(STOP_SECONDS)}",
                cure=f"kill {process}",
            )
        time.sleep(POLL_SECONDS)  # a process that is no child of ours can only be looked at
    return True


def gone(process: int) -> bool:
    """Whether a process has ended; one that waits to be reaped has."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return True  # the number is somebody else's by now
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{process}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "Z"
    return False


def _say_state(state: StatusReport, what: str, *, as_json: bool) -> int:
    if as_json:
        show.json(state)
        return ExitStatus.DONE
    show.line(f"{state.node.name} ({state.node.id[:ID_SHOWN]}) {what}: port {state.port}, process {state.pid}")
    show.line(f"store {state.store_path}, {amount.size(state.free_bytes)} free")
    if not state.survives_reboot:
        show.line("after a reboot, run `tbshare up` again")
    if state.nodes:
        show.line(f"with {', '.join(node.name for node in state.nodes)}; next: tbshare push PATH")
    else:
        show.line("next: tbshare pair (to add a node), or tbshare push PATH")
    return ExitStatus.DONE
