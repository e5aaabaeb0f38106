"""Mounting and unmounting on Linux: who may do it how, and what is left when it went wrong.

Root mounts by mount(2); others through fusermount3, which hands the descriptor of /dev/fuse back over a socket.
Either way somebody else watches us: a mount whose process was killed answers ENOTCONN to everything ("Transport
endpoint is not connected") until it is unmounted, so fusermount3's `auto_unmount`, or our own `guard` for root,
does that.
"""

import array
import ctypes
import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from tbshare.errors import MountFailed

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_MOUNTINFO: Final = Path("/proc/self/mountinfo")
READ_AHEAD_BYTES: Final = 1 << 20
SUBTYPE: Final = "tbshare"


class MountOptions(msgspec.Struct, frozen=True):
    """How to mount. `name` is shown by df and mount as the source."""

    name: str = "tbshare"
    subtype: str = SUBTYPE
    allow_other: bool = False
    default_permissions: bool = True
    read_only: bool = False
    read_bytes_max: int = 1 << 20
    guarded: bool = True  # somebody unmounts if this process is killed


class MountPoint(msgspec.Struct, frozen=True):
    """One line of /proc/self/mountinfo."""

    identifier: int
    device: str  # "0:52", major and minor
    directory: str
    kind: str  # "fuse.tbshare"
    source: str


class User(msgspec.Struct, frozen=True):
    """A process that keeps a mount busy, and what it has there."""

    pid: int
    command: str
    path: str


class Mounted:
    """Something mounted by us, and the guard that unmounts it if we are killed."""

    def __init__(self, directory: str, options: MountOptions) -> None:
        kind = f"fuse.{options.subtype}"
        point = mounted_at(directory, kind)
        if point is None:
            raise MountFailed(f"{directory} was unmounted at once by somebody")
        self.directory = directory
        self.point = point
        self._guard = _guard(point) if options.guarded else None

    def still_there(self) -> bool:
        """Say whether it is mounted; another mount on the same directory does not count."""
        return mounted_at(self.directory, self.point.kind) == self.point

    def leave(self) -> None:
        """Unmount lazily, unless somebody has unmounted."""
        if self.still_there():
            unmount(self.directory, lazily=True)

    def close(self) -> None:
        """Let the guard go; it is to be unmounted by now."""
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait()


def mount(directory: str, options: MountOptions) -> tuple[Mounted, int]:
    """Mount on a directory; return that, and the device over which requests come from then on, INIT first."""
    check(directory)
    device = (_mount_as_user if os.geteuid() else _mount_as_root)(directory, options)
    try:
        return Mounted(directory, options), device
    except BaseException:
        os.close(device)
        raise


def unmount(directory: str, *, lazily: bool = False) -> None:
    """Unmount; when something uses it, say what, unless it is done `lazily`: then it goes when it is not used."""
    if os.geteuid() == 0:
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazily else 0)
        if not _libc().umount2(os.fsencode(directory), flags):
            return
        number = ctypes.get_errno()
        busy, reason = number == errno.EBUSY, os.strerror(number)
    else:
        words = [_fusermount(), "-u", *(["-z"] if lazily else []), "--", directory]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if not done.returncode:
            return
        reason = done.stderr.strip()
        busy = "busy" in reason
    if busy:
        raise MountFailed(f"{directory} is in use{_by(directory)}", cure="close what uses it, and unmount again")
    raise MountFailed(f"{directory} cannot be unmounted: {reason}")


def mount_points(kind: str = f"fuse.{SUBTYPE}") -> list[MountPoint]:
    """Return what is mounted, of one kind, in the order it was mounted."""
    found: list[MountPoint] = []
    for line in _MOUNTINFO.read_bytes().splitlines():
        left, _, right = line.decode("utf-8", "surrogateescape").partition(" - ")
        fields, (name, source, *_) = left.split(" "), right.split(" ")
        if name == kind:
            found.append(MountPoint(int(fields[0]), fields[2], _unescaped(fields[4]), name, _unescaped(source)))
    return found


def mounted_at(directory: str, kind: str = f"fuse.{SUBTYPE}") -> MountPoint | None:
    """Return what is mounted on this very directory, or None; asks the file system there nothing."""
    path = _real(directory)
    return next((point for point in reversed(mount_points(kind)) if point.directory == path), None)


def is_broken(directory: str) -> bool:
    """Say whether this is a mount whose process is gone. statfs, because no answer to that is ever remembered."""
    try:
        os.statvfs(directory)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def recover(directory: str) -> bool:
    """Unmount what a killed process left on this directory; say whether there was something."""
    if not is_broken(directory):
        return False
    unmount(directory, lazily=True)
    return True


def raise_read_ahead(directory: str, size_bytes: int = READ_AHEAD_BYTES) -> bool:
    """Have the kernel read further ahead than its 128 KiB (doubles to triples sequential reads); needs root."""
    point = mounted_at(directory)
    if point is None:
        return False
    try:
        Path(f"/sys/class/bdi/{point.device}/read_ahead_kb").write_text(str(size_bytes >> 10))
    except OSError:
        return False
    return True


def users_of(directory: str) -> list[User]:
    """Return the processes that keep a mount busy, as far as we may see; asks the mount itself nothing."""
    top = _real(directory)
    found: list[User] = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            path = _used_by(process, top)
            if path is not None:
                found.append(User(int(process.name), _command(process), path))
    return sorted(found, key=lambda user: user.pid)


# --- how ------------------------------------------------------------------------------------------------------


def check(directory: str) -> None:
    """Raise MountFailed where nothing can be mounted."""
    try:
        os.listdir(directory)
    except NotADirectoryError as error:
        raise MountFailed(f"{directory} is not a directory") from error
    except FileNotFoundError as error:
        raise MountFailed(f"{directory} is not there", cure=f"mkdir -p {directory}") from error
    except OSError as error:
        raise MountFailed(f"{directory} cannot be mounted on: {error.strerror}") from error


def _mount_as_root(directory: str, options: MountOptions) -> int:
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountFailed(f"/dev/fuse cannot be opened: {error.strerror}", cure="modprobe fuse") from error
    words = [f"fd={device}", "rootmode=40000", "user_id=0", "group_id=0", f"max_read={options.read_bytes_max}"]
    words += [name for name in ("allow_other", "default_permissions") if getattr(options, name)]
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if options.read_only else 0)
    kind, data = f"fuse.{options.subtype}".encode(), ",".join(words).encode()
    if _libc().mount(options.name.encode(), os.fsencode(directory), kind, flags, data):
        reason = os.strerror(ctypes.get_errno())
        os.close(device)
        raise MountFailed(f"{directory} cannot be mounted on: {reason}")
    return device


def _guard(point: MountPoint) -> "subprocess.Popen[bytes]":
    """Start the process that unmounts when we are gone: it notices by the end of its input."""
    words = [sys.executable, "-m", "tbshare.fuse.guard", str(point.identifier), point.kind, point.directory]
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/"
    )


def _mount_as_user(directory: str, options: MountOptions) -> int:
    words = [f"fsname={options.name}", f"subtype={options.subtype}", f"max_read={options.read_bytes_max}"]
    words += [name for name in ("allow_other", "default_permissions") if getattr(options, name)]
    words += ["nosuid", "nodev", *(["ro"] if options.read_only else [])]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            done = subprocess.run(
                [_fusermount(), "-o", ",".join(words), "--", directory],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                capture_output=True,
                check=False,
            )
        device = _received_descriptor(ours)
    if device is None:
        raise MountFailed(f"{directory} cannot be mounted on: {_sentence(done.stderr, options)}")
    os.set_inheritable(device, False)
    return device


def _sentence(complaint: bytes, options: MountOptions) -> str:
    text = complaint.decode(errors="replace").strip().removeprefix("fusermount3:").strip()
    if options.allow_other and "user_allow_other" in text:
        return "--allow-other needs the line user_allow_other in /etc/fuse.conf"
    return text or "fusermount3 ended without a word"


def _received_descriptor(line: socket.socket) -> int | None:
    numbers = array.array("i")
    message, control, _, _ = line.recvmsg(1, socket.CMSG_SPACE(numbers.itemsize))
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: numbers.itemsize])
    return numbers[0] if message and numbers else None


def _fusermount() -> str:
    found = shutil.which("fusermount3")
    if found is None:
        raise MountFailed("mounting as a user needs fusermount3, which is not installed", cure="apt install fuse3")
    return found


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _real(directory: str) -> str:
    """Resolve a path without asking what is mounted on it."""
    head, tail = os.path.split(os.path.abspath(directory))
    return os.path.join(os.path.realpath(head), tail)


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _by(directory: str) -> str:
    users = users_of(directory)
    return (
        " by " + ", ".join(f"{user.command} (process {user.pid}: {user.path})" for user in users[:5])
        if users
        else ""
    )


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "?"


def _used_by(process: Path, top: str) -> str | None:
    """Return a path at or below `top` that a process has open, mapped, or as its working directory."""

    def below(path: str) -> bool:
        return path == top or path.startswith(top.rstrip("/") + "/")

    try:
        links = [process / "cwd", process / "root", process / "exe", *(process / "fd").iterdir()]
    except OSError:  # it ended, or it is another user's
        return None
    for link in links:
        try:
            path = os.readlink(link)
        except OSError:
            continue
        if below(path):
            return path
    try:
        maps = (process / "maps").read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return None
    mapped = (line.split(maxsplit=5)[-1] for line in maps.splitlines() if line.count(" ") >= 5)
    return next((path for path in mapped if below(path)), None)
