"""`python -m tbshare.fuse`: one mount, until it is unmounted or told to end."""

import argparse
import contextlib
import logging
import logging.handlers
import os
import signal
import sys
from pathlib import Path

import msgspec
import trio

from tbshare.errors import TbshareError, innermost
from tbshare.fuse.serving import Settings, serve
from tbshare.wire.report import MountLine

LOG_BYTES_MAX, LOG_FILES = 1_000_000, 2


def _arguments() -> tuple[Settings, int]:
    parser = argparse.ArgumentParser(prog="python -m tbshare.fuse")
    parser.add_argument("--home", required=True)
    parser.add_argument("--volume", default="")
    parser.add_argument("--front", default="")
    parser.add_argument("--allow-other", action="store_true")
    parser.add_argument("--numeric-owners", action="store_true")
    parser.add_argument("--allow-code", action="store_true")
    parser.add_argument("--wait", type=float, default=30.0)
    parser.add_argument("--try-again", action="store_true")
    parser.add_argument("--complete", action="store_true")
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("directory")
    given = parser.parse_args()
    settings = Settings(
        os.path.abspath(given.home),
        os.path.abspath(given.directory),
        given.volume,
        given.front,
        given.allow_other,
        given.numeric_owners,
        given.allow_code,
        given.wait,
        given.try_again,
        given.complete,
    )
    return settings, given.ready_fd


def _set_up_log(home: Path, directory: str) -> None:
    folder = home / "log"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(
        folder / "mount.log", maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES
    )
    told = directory.replace("%", "%%")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {told} (%(process)d): %(message)s"))
    root = logging.getLogger("tbshare")
    root.addHandler(handler)
    root.setLevel(os.environ.get("TBSHARE_MOUNT_LOG", "INFO").upper())


async def _serve(settings: Settings, ready_descriptor: int) -> None:
    def ready(line: MountLine) -> None:
        _tell(ready_descriptor, "ready\n" + msgspec.json.encode(line).decode())

    async with trio.open_nursery() as nursery:
        ending = trio.Event()
        await nursery.start(_end_on_signal, ending)
        await serve(settings, ready, ending)
        nursery.cancel_scope.cancel()


async def _end_on_signal(
    ending: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            ending.set()


def _tell(descriptor: int, text: str) -> None:
    if descriptor >= 0:
        os.write(descriptor, text.encode())
        os.close(descriptor)


def main() -> int:
    """Run the mount; return the exit status."""
    settings, ready_descriptor = _arguments()
    failure: BaseException | None = None
    try:
        _set_up_log(Path(settings.home), settings.directory)
        trio.run(_serve, settings, ready_descriptor)
    except* (TbshareError, OSError) as group:
        failure = innermost(group)
    if failure is None:
        return 0
    cure = getattr(failure, "cure", "") or "tbshare status"
    text = f"{failure}\n  try: {cure}"
    logging.getLogger("tbshare.fuse").error("%s", failure)
    with contextlib.suppress(OSError):  # of a failure after it was ready, the log tells
        _tell(ready_descriptor, text)
    sys.stderr.write(f"tbshare: {text}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
