"""The control socket's client: the command line, a mount, fsspec and Python users all talk to the daemon with it.

    with Client.connect() as client:
        for line in client.ref_list().refs:
            print(line.ref)
        client.push(PushParams(path="/models/llama"), print)

Synchronous and small: a plain socket, no threads, one call at a time. A call that sends events hands each to
`on_event`. An error of the daemon is raised here as the same class. Leaving the `with` block, or an exception such
as KeyboardInterrupt, closes the connection, and that cancels the call in the daemon.
"""

import os
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from tbshare import __version__, errors
from tbshare.errors import DaemonUnreachable, ExitStatus, PeerError, StoreUnusable, TbshareError
from tbshare.wire import files, local, volume
from tbshare.wire.envelope import Opener, seal
from tbshare.wire.limits import ENVELOPE_BYTES_MAX
from tbshare.wire.parts import Params, Result
from tbshare.wire.report import (
    AnyEvent,
    DiskUse,
    Done,
    GcReport,
    HelloReport,
    KeepReport,
    NodeList,
    Paired,
    PathReport,
    ProcessList,
    PushReport,
    RefList,
    RemoveReport,
    RunReport,
    ShowReport,
    StatusReport,
    VerifyReport,
    WaitReport,
)
from tbshare.wire.where import Where

ANSWER_SECONDS = 10.0  # for connecting and for hello; a daemon that is busy answers in milliseconds
SOCKET_PATH_BYTES_MAX = 103  # sun_path on macOS is 104 bytes with its NUL, 108 on Linux
RECEIVE_BYTES = 1 << 16

OnEvent = Callable[[AnyEvent], None]
_R = TypeVar("_R", bound=Result)

_encoder = msgspec.msgpack.Encoder()
_answers: msgspec.msgpack.Decoder[local.Answer] = msgspec.msgpack.Decoder(local.Answer)


def home_directory(home: str | os.PathLike[str] | None = None) -> str:
    """Return the absolute path of the home: the argument, else $TBSHARE_HOME, else ~/.tbshare."""
    chosen = os.fspath(home) if home else os.environ.get("TBSHARE_HOME", "")
    return os.path.abspath(os.path.expanduser(chosen or "~/.tbshare"))


def socket_path(home: str | os.PathLike[str] | None = None) -> str:
    """Return the path of the control socket; StoreUnusable when no socket can have so long a path."""
    path = os.path.join(home_directory(home), "run", "control.sock")
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise StoreUnusable(
            f"the home directory's path is too long for a socket: {path}",
            cure="choose a shorter one with --home or TBSHARE_HOME",
        )
    return path


class Client:
    """One connection to the daemon. Not to be shared between threads."""

    def __init__(self, connection: socket.socket, hello: HelloReport, home: str) -> None:
        """Use `connect` instead."""
        self._connection = connection
        self._opener = Opener()
        self._next_id = 1
        self.daemon = hello
        self.home = home

    @classmethod
    def connect(
        cls,
        home: str | os.PathLike[str] | None = None,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        call_seconds: float | None = None,
        any_level: bool = False,
    ) -> Self:
        """Connect and say hello.

        DaemonUnreachable when nobody answers within `answer_seconds`, or when the daemon speaks another level of
        the protocol (unless `any_level`: `shutdown` is the same on all). A later call that hears nothing for
        `call_seconds` raises it too; None waits for ever.
        """
        home = home_directory(home)
        path = socket_path(home)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(answer_seconds)
            connection.connect(path)
            client = cls(connection, HelloReport(level=local.LEVEL, version=__version__, pid=0), home)
            asked = local.HelloParams(level=local.LEVEL, version=__version__)
            client.daemon = client._call("hello", asked, HelloReport)
            connection.settimeout(call_seconds)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise DaemonUnreachable(_why_unreachable(error, home), cure=_up(home)) from error
            raise
        if client.daemon.level != local.LEVEL and not any_level:
            client.close()
            raise DaemonUnreachable(
                f"the daemon is tbshare {client.daemon.version}, this is {__version__}: they do not understand "
                "each other",
                cure="tbshare restart",
            )
        return client

    @property
    def version_differs(self) -> bool:
        """Whether the daemon is of another version; `restart` mends it."""
        return self.daemon.version != __version__

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @property
    def hung_up(self) -> bool:
        """Whether the daemon has closed the connection, between calls: it says nothing then of itself."""
        try:
            self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def wait_closed(self, timeout_seconds: float) -> None:
        """Wait until the daemon closes the connection; TimeoutError when it does not."""
        self._connection.settimeout(timeout_seconds)
        try:
            while self._connection.recv(RECEIVE_BYTES):
                pass
        except ConnectionError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def status(self) -> StatusReport:
        """Return the state of this node and what it knows of the others."""
        return self._call("status", local.StatusParams(), StatusReport)

    def node_list(self) -> NodeList:
        """Return all nodes of the cluster."""
        return self._call("node_list", local.NodeListParams(), NodeList)

    def node_rename(self, node: str, name: str) -> Done:
        """Give a node (name or key prefix) another name."""
        return self._call("node_rename", local.NodeRenameParams(node=node, name=name), Done)

    def pair_open(self, on_event: OnEvent) -> Paired:
        """Let one new node join; `Code` comes as an event. Returns when it has joined."""
        return self._call("pair_open", local.PairOpenParams(), Paired, on_event)

    def pair_join(self, code: str, address: str = "", on_event: OnEvent | None = None) -> Paired:
        """Join the cluster of the node that shows this code."""
        return self._call("pair_join", local.PairJoinParams(code=code, address=address), Paired, on_event)

    def push(self, params: local.PushParams, on_event: OnEvent | None = None) -> PushReport:
        """Publish a file or directory; returns when all targets are durable or have failed."""
        return self._call("push", params, PushReport, on_event)

    def pull(self, params: local.PullParams, on_event: OnEvent | None = None) -> PushReport:
        """Fetch a ref to this node and pin it."""
        return self._call("pull", params, PushReport, on_event)

    def ref_list(self, prefix: str = "", *, all_revs: bool = False) -> RefList:
        """Return the refs that begin with `prefix`."""
        return self._call("ref_list", local.RefListParams(prefix=prefix, all_revs=all_revs), RefList)

    def show(self, params: local.ShowParams) -> ShowReport:
        """Return what a ref or a path is, where it lies and who has it."""
        return self._call("show", params, ShowReport)

    def path(self, ref: str, *, allow_code: bool = False, on_event: OnEvent | None = None) -> PathReport:
        """Make and return a stable, read-only, pinned directory of a ref."""
        return self._call("path", local.PathParams(ref=ref, allow_code=allow_code), PathReport, on_event)

    def remove(self, ref: str, *, yes: bool) -> RemoveReport:
        """Remove a ref everywhere; without `yes` only say what would go."""
        return self._call("remove", local.RemoveParams(ref=ref, yes=yes), RemoveReport)

    def pin(self, what: str | Where) -> KeepReport:
        """Promise to keep a ref, or a file or directory of a volume, on this node."""
        return self._call("pin", _ref_or_where(what), KeepReport)

    def unpin(self, what: str | Where) -> KeepReport:
        """Take the promise back."""
        return self._call("unpin", _ref_or_where(what), KeepReport)

    def evict(self, what: str | Where) -> KeepReport:
        """Free the bytes on this node; never the last copy."""
        return self._call("evict", _ref_or_where(what), KeepReport)

    def gc(self, *, now: bool = False) -> GcReport:
        """Free what nothing needs any more."""
        return self._call("gc", local.GcParams(now=now), GcReport)

    def verify(self, ref: str = "", *, repair: bool = False, on_event: OnEvent | None = None) -> VerifyReport:
        """Hash what is here again; with `repair` fetch what is corrupt."""
        return self._call("verify", local.VerifyParams(ref=ref, repair=repair), VerifyReport, on_event)

    def du(self) -> DiskUse:
        """Return what the store takes on disk."""
        return self._call("du", local.DuParams(), DiskUse)

    def processes(self) -> ProcessList:
        """Return what goes on here."""
        return self._call("processes", local.ProcessesParams(), ProcessList)

    def stop(self, identifier: str) -> Done:
        """Stop a transfer or run."""
        return self._call("stop", local.IdParams(id=identifier), Done)

    def wait(self, identifier: str, on_event: OnEvent | None = None) -> WaitReport:
        """Wait for a transfer or run to end."""
        return self._call("wait", local.IdParams(id=identifier), WaitReport, on_event)

    def run(self, params: local.RunParams, on_event: OnEvent | None = None) -> RunReport:
        """Answer a prompt; the text comes in `Text` events."""
        return self._call("run", params, RunReport, on_event)

    def shutdown(self) -> Done:
        """Begin the daemon's stop; `wait_closed` tells when it is over."""
        return self._call("shutdown", local.ShutdownParams(), Done)

    def log_level(self, level: str) -> Done:
        """Change the level of the log until the daemon stops."""
        return self._call("log_level", local.LogLevelParams(level=level), Done)

    def volume_list(self, *, removed: bool = False) -> volume.VolumeList:
        """Return all volumes; with `removed` also those that `volume_restore` brings back."""
        return self._call("volume_list", volume.VolumeListParams(removed=removed), volume.VolumeList)

    def volume_show(self, name: str) -> volume.VolumeReport:
        """Return one volume, with the roles of all nodes in it."""
        return self._call("volume_show", volume.VolumeNameParams(name=name), volume.VolumeReport)

    def volume_create(
        self, params: volume.VolumeCreateParams, on_event: OnEvent | None = None
    ) -> volume.VolumeMade:
        """Make a volume; with a `source`, take its files in, or go on with that."""
        return self._call("volume_create", params, volume.VolumeMade, on_event)

    def volume_set(self, params: volume.VolumeSetParams) -> volume.VolumeReport:
        """Change a volume's options, owner and roles."""
        return self._call("volume_set", params, volume.VolumeReport)

    def volume_remove(self, name: str, *, yes: bool) -> volume.VolumeRemoved:
        """Remove a volume everywhere; without `yes` only say what would go."""
        return self._call("volume_remove", volume.VolumeRemoveParams(name=name, yes=yes), volume.VolumeRemoved)

    def volume_restore(self, name: str) -> volume.VolumeReport:
        """Bring a removed volume back, within its grace time."""
        return self._call("volume_restore", volume.VolumeNameParams(name=name), volume.VolumeReport)

    def file_list(self, where: Where, *, details: bool = False, xattrs: bool = False) -> files.FileList:
        """Return what is at a place in a volume, and what is in it."""
        params = files.FileListParams(where=where, details=details, xattrs=xattrs)
        return self._call("file_list", params, files.FileList)

    def file_stat(self, where: Where, *, details: bool = True) -> files.FileStat:
        """Return one file or directory; PathMissing when there is none."""
        return self._call("file_stat", files.FileStatParams(where=where, details=details), files.FileStat)

    def file_show(self, where: Where) -> files.FileReport:
        """Return a file, its versions, and who holds it."""
        return self._call("file_show", files.FileStatParams(where=where), files.FileReport)

    def file_read(self, params: files.FileReadParams, write: Callable[[bytes], object]) -> files.FileRead:
        """Hand the bytes of a file to `write`, in order; they are fetched where they are not here."""

        def chunk(event: AnyEvent) -> None:
            if isinstance(event, files.Chunk):
                write(event.data)

        return self._call("file_read", params, files.FileRead, chunk)

    def file_extents(self, params: files.FileExtentsParams) -> files.FileExtents:
        """Return where the bytes of a file are in the store, to be read or mapped without the daemon."""
        return self._call("file_extents", params, files.FileExtents)

    def file_stage(self, where: Where, *, new: bool = False) -> files.Staging:
        """Say what is to be written, and hear where; the errors that writing it would end with come now."""
        return self._call("file_stage", files.FileStageParams(where=where, new=new), files.Staging)

    def file_commit(self, commits: list[files.Commit]) -> files.FileCommitted:
        """Save what was written, all of it or nothing; durable on return."""
        return self._call("file_commit", files.FileCommitParams(commits=commits), files.FileCommitted)

    def file_copy(self, params: files.FileCopyParams, on_event: OnEvent | None = None) -> files.CopyReport:
        """Copy into, out of, or inside volumes; durable on return."""
        return self._call("file_copy", params, files.CopyReport, on_event)

    def file_move(self, source: Where, target: Where, *, into: bool = False) -> files.FileStat:
        """Rename a file or directory of a volume."""
        params = files.FileMoveParams(source=source, target=target, into=into)
        return self._call("file_move", params, files.FileStat)

    def file_remove(
        self, wheres: list[Where], *, recursive: bool = False, empty: bool = False
    ) -> files.FileRemoved:
        """Remove files, directories with `recursive`, or empty ones with `empty`; `restore` brings them back."""
        params = files.FileRemoveParams(wheres=wheres, recursive=recursive, empty=empty)
        return self._call("file_remove", params, files.FileRemoved)

    def file_mkdir(self, where: Where, *, parents: bool = False) -> files.FileStat:
        """Make a directory."""
        return self._call("file_mkdir", files.FileMkdirParams(where=where, parents=parents), files.FileStat)

    def history(self, where: Where) -> files.History:
        """Return all versions of a path, newest first, also of one that is removed."""
        return self._call("history", files.HistoryParams(where=where), files.History)

    def restore(self, params: files.RestoreParams) -> files.Restored:
        """Make an earlier state of a path the newest version."""
        return self._call("restore", params, files.Restored)

    def conflicts(self, name: str = "") -> volume.ConflictList:
        """Return what is shown side by side, in one volume or all."""
        return self._call("conflicts", volume.ConflictsParams(volume=name), volume.ConflictList)

    def resolve(self, where: Where, keep: bytes) -> volume.Resolved:
        """Say which of several versions has the name; the others stay in the history."""
        return self._call("resolve", volume.ResolveParams(where=where, keep=keep), volume.Resolved)

    def locks(self, name: str = "") -> volume.LockList:
        """Return the leases known here, of one volume or all."""
        return self._call("locks", volume.LocksParams(volume=name), volume.LockList)

    def snapshot_create(self, name: str, snapshot: str = "") -> volume.Snapshot:
        """Name the present state of a volume."""
        return self._call("snapshot_create", volume.SnapshotParams(volume=name, name=snapshot), volume.Snapshot)

    def snapshot_list(self, name: str) -> volume.SnapshotList:
        """Return the snapshots of a volume, newest first."""
        return self._call("snapshot_list", volume.SnapshotListParams(volume=name), volume.SnapshotList)

    def snapshot_remove(self, name: str, snapshot: str) -> volume.Snapshot:
        """Forget a snapshot."""
        return self._call("snapshot_remove", volume.SnapshotParams(volume=name, name=snapshot), volume.Snapshot)

    def watch(self, where: Where, on_event: OnEvent) -> Done:
        """Hand every change at a place and below it to `on_event`, until that raises."""
        return self._call("watch", volume.WatchParams(where=where), Done, on_event)

    def drain(self, *, wait: bool = True, on_event: OnEvent | None = None) -> volume.DrainReport:
        """Take no new work here, and bring what is only here to other nodes."""
        return self._call("drain", volume.DrainParams(wait=wait), volume.DrainReport, on_event)

    def undrain(self) -> Done:
        """Take part again."""
        return self._call("undrain", volume.UndrainParams(), Done)

    def _call(self, method: str, params: Params, kind: type[_R], on_event: OnEvent | None = None) -> _R:
        """Send a request and return its result; `on_event` gets the events on the way."""
        identifier = self._next_id
        self._next_id += 1
        request = local.Request(identifier, method, msgspec.Raw(_encode(method, params)))
        data = _encoder.encode(request)
        if len(data) > ENVELOPE_BYTES_MAX:
            raise errors.UsageError(f"what {method} is asked for is too long: {len(data)} bytes")
        with self._talking(method):
            self._connection.sendall(seal(data))
        result = self._result(identifier, method, on_event)
        with self._talking(method):
            return msgspec.msgpack.decode(result, type=kind)

    @contextmanager
    def _talking(self, method: str) -> Generator[None]:
        """Turn what can go wrong between here and the daemon into DaemonUnreachable.

        Not what goes wrong in `on_event`: it is no fault of the daemon that `tbshare cat | head` has no reader.
        """
        try:
            yield
        except ConnectionError as error:
            raise DaemonUnreachable(
                f"the daemon ended while it was asked for {method}", cure=_up(self.home)
            ) from error
        except TimeoutError as error:
            raise DaemonUnreachable(
                f"the daemon of {self.home} does not answer", cure="tbshare restart"
            ) from error
        except (msgspec.DecodeError, PeerError) as error:
            raise DaemonUnreachable(
                f"the daemon's answer to {method} cannot be read: {error}", cure="tbshare restart"
            ) from error

    def _result(self, identifier: int, method: str, on_event: OnEvent | None) -> bytes:
        """Return the encoded result of a call; its events go to `on_event` on the way, its error is raised."""
        parts = bytearray()
        while True:
            with self._talking(method):
                answer = self._receive()
            if answer.id not in (identifier, 0):
                continue  # of a call that ended with an exception of on_event
            if answer.error is not None:
                raise raised(answer.error)
            if answer.part:
                parts += answer.part
            elif answer.event is None:
                return bytes(answer.result or parts)
            elif on_event is not None:
                on_event(answer.event)

    def _receive(self) -> local.Answer:
        """Return the next answer; ConnectionResetError when there is none any more."""
        while (payload := self._opener.take()) is None:
            data = self._connection.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("closed by the daemon")
            self._opener.feed(data)
        return _answers.decode(payload)


def _ref_or_where(what: str | Where) -> local.RefParams:
    return local.RefParams(where=what) if isinstance(what, Where) else local.RefParams(ref=what)


def _encode(method: str, params: Params) -> bytes:
    """Return the params' bytes; UsageError when a text in them is no text (a name that is not UTF-8)."""
    try:
        return _encoder.encode(params)
    except UnicodeEncodeError as error:
        raise errors.UsageError(f"{method}: a name is not valid UTF-8") from error
    except OverflowError as error:
        raise errors.UsageError(f"{method}: a number is too large") from error


def raised(failure: local.Failure) -> TbshareError:
    """Return the daemon's error as the class it had there."""
    kind: object = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, TbshareError):
        error = kind.__new__(kind)  # a class may want more than a sentence; the sentence is made already
        TbshareError.__init__(error, failure.message, cure=failure.cure)
        return error
    error = TbshareError(failure.message, cure=failure.cure)
    if failure.exit_status in tuple(ExitStatus) and failure.exit_status != ExitStatus.DONE:
        error.exit_status = ExitStatus(failure.exit_status)
    return error


def _why_unreachable(error: OSError, home: str) -> str:
    """Say why the socket could not be used."""
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return f"no daemon is running (home {home})"
    if isinstance(error, TimeoutError):
        return f"the daemon of {home} does not answer"
    return f"the daemon of {home} cannot be reached: {error.strerror or error}"


def _up(home: str) -> str:
    """Return the command that starts the daemon of this home."""
    return "tbshare up" if home == home_directory() else f"tbshare --home {home} up"
