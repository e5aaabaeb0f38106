"""Which front serves a mount: the best that works on this machine, and why not the others."""

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from tbshare.errors import MountFailed, UsageError
from tbshare.fuse.mounting import MountOptions
from tbshare.fuse.operations import Operations, Session

NAMES = ("own", "pyfuse3")
_INSTEAD = (
    "tbshare path REF gives a read-only directory for any engine, tbshare cp copies files, and a Linux node can "
    "share its mount by Samba (tbshare help nas)"
)


class Front(Protocol):
    """One way to serve a mount."""

    @property
    def name(self) -> str:
        """Return what `status` calls it."""
        ...

    async def run(
        self,
        operations: Operations,
        directory: str,
        options: MountOptions,
        *,
        task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Mount, serve until somebody unmounts, and clean up; cancelled, unmount lazily."""
        ...


class Choice(msgspec.Struct, frozen=True):
    """The front that was chosen, and a sentence for each that cannot be used here."""

    front: Front
    refused: tuple[str, ...]


def choose(only: str = "") -> Choice:
    """Return the best front that works here, or the one asked for; MountFailed says why there is none."""
    if only and only not in NAMES:
        raise UsageError(f"no front is called {only}; there are {', '.join(NAMES)}")
    if sys.platform != "linux":
        raise MountFailed("mount needs Linux; there is no mount on this system yet", cure=_INSTEAD)
    refused: list[str] = []
    for name in (only,) if only else NAMES:
        reason = _REFUSALS[name]()
        if not reason:
            return Choice(_load(name), tuple(refused))
        refused.append(f"{name}: {reason}")
    raise MountFailed("nothing here can serve a mount: " + "; ".join(refused), cure=_cure())


def _load(name: str) -> Front:
    if name == "own":
        from tbshare.fuse.own_front import OwnFront

        return OwnFront()
    module = importlib.import_module("tbshare.fuse.pyfuse3_front")
    front: Front = module.Pyfuse3Front()
    return front


def _own_refused() -> str:
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse (the kernel has no FUSE, or this is a container without it)"
    if os.geteuid() and shutil.which("fusermount3") is None:
        return "fusermount3 is not installed"
    return ""


def _pyfuse3_refused() -> str:
    reason = _own_refused()
    if not reason and importlib.util.find_spec("pyfuse3") is None:
        reason = "pyfuse3 is not installed (pip install 'tbshare[fuse]')"
    return reason


def _cure() -> str:
    if not os.path.exists("/dev/fuse"):
        return "modprobe fuse, or give the container --device /dev/fuse --cap-add SYS_ADMIN"
    return "apt install fuse3"


_REFUSALS: dict[str, Callable[[], str]] = {"own": _own_refused, "pyfuse3": _pyfuse3_refused}
