"""`python -m tbshare.daemon`: run one node until it is told to stop."""

import argparse
import contextlib
import logging
import logging.handlers
import os
import signal
import sys
from pathlib import Path

import trio

from tbshare.daemon import control
from tbshare.daemon.config import Value, load
from tbshare.daemon.handlers import NodeHandlers
from tbshare.daemon.service import Service, opened
from tbshare.errors import TbshareError, innermost

# How long a thread that computes may hold the others up: lanes hand the interpreter over at every call.
SWITCH_SECONDS = 0.0005
LOG_BYTES_MAX, LOG_FILES = 10_000_000, 5


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tbshare.daemon")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--listen", default=None)
    parser.add_argument("--name", default=None)
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--foreground", action="store_true")
    return parser.parse_args()


def _overrides(arguments: argparse.Namespace) -> dict[str, Value]:
    given = {"listen.port": arguments.port, "listen.host": arguments.listen, "node.name": arguments.name}
    return {key: value for key, value in given.items() if value is not None}


def _set_up_log(home: Path, level: str, *, foreground: bool) -> None:
    folder = home / "log"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler: logging.Handler
    if foreground:
        handler = logging.StreamHandler()
    else:
        handler = logging.handlers.RotatingFileHandler(
            folder / "daemon.log", maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES
        )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("tbshare")
    root.addHandler(handler)
    root.setLevel(level.upper())


async def _serve(service: Service, ready_descriptor: int) -> None:
    handlers = NodeHandlers(service)

    async def serve_control(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await control.serve(service.home / "run" / "control.sock", handlers, task_status=task_status)

    def ready() -> None:
        _tell(ready_descriptor, "ready")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, service)
        await service.run(ready=ready, serve_control=serve_control, beside=handlers.run_tasks)
        nursery.cancel_scope.cancel()


async def _end_on_signal(service: Service) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            service.stopping.set()


def _tell(descriptor: int, text: str) -> None:
    if descriptor >= 0:
        os.write(descriptor, text.encode())
        os.close(descriptor)


def main() -> int:
    """Run the daemon; return the exit status."""
    sys.setswitchinterval(SWITCH_SECONDS)
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # a file lease that is broken tells so; nobody waits for it
    arguments = _arguments()
    home = arguments.home.absolute()
    service = None
    failure: BaseException | None = None
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = load(home, _overrides(arguments))
        _set_up_log(home, config.text("log.level"), foreground=arguments.foreground)
        service = opened(home, config)
        trio.run(_serve, service, arguments.ready_fd)
    except* (TbshareError, OSError) as group:
        failure = innermost(group)
    finally:
        if service is not None:
            service.close()
    return 0 if failure is None else _refuse(arguments.ready_fd, failure)


def _refuse(descriptor: int, error: BaseException) -> int:
    cure = getattr(error, "cure", "") or "tbshare up --home DIR"
    text = f"{error}\n  try: {cure}"
    logging.getLogger("tbshare.daemon").error("%s", error)
    with contextlib.suppress(OSError):  # of a start that failed after it was ready, the log tells
        _tell(descriptor, text)
    sys.stderr.write(f"tbshare: {text}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
