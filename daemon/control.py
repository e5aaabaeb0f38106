"""The control socket: programs of this user on this machine ask the daemon for things.

`serve` speaks the protocol of `wire/local.py` and calls one method of `Handlers` for each request. One client
never holds up another, nor the daemon: its answers wait in an outbox with room for `EVENTS_WAITING` events, in
which a newer progress event replaces the older; only the call that emits more than that waits. When a client goes
away, its calls are cancelled.
"""

# ruff: noqa: D102  (what each method of Handlers does stands in client.py)

import logging
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, cast

import msgspec
import trio

from tbshare import __version__
from tbshare.errors import FormatInvalid, PeerError, StoreUnusable, TbshareError, UsageError
from tbshare.wire import files, local, mount, report, volume
from tbshare.wire.envelope import Opener, seal
from tbshare.wire.limits import ENVELOPE_BYTES_MAX
from tbshare.wire.parts import Params, Result

CLIENTS_MAX = 64  # a mount and some terminals; more is a loop in somebody's script
CALLS_MAX = 32  # of one client at once
EVENTS_WAITING = 256  # for one client; a few hundred bytes each, but for the chunks of a file
EVENT_BYTES_WAITING = 4 * 1024 * 1024
RECEIVE_BYTES = 1 << 16
FLUSH_SECONDS = 1.0  # what was answered still goes out when the daemon stops

Emit = Callable[[report.AnyEvent], Awaitable[None]]

_log = logging.getLogger("tbshare.daemon.control")
_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[local.Request] = msgspec.msgpack.Decoder(local.Request)


class Handlers(Protocol):
    """One method for each request of `wire/local.METHODS`; the daemon has them.

    Each returns the result, or raises a TbshareError; `emit` sends an event on the way. A method is cancelled when
    its client goes away: what must go on then belongs into another nursery.
    """

    async def status(self, params: local.StatusParams, emit: Emit) -> report.StatusReport: ...
    async def node_list(self, params: local.NodeListParams, emit: Emit) -> report.NodeList: ...
    async def node_rename(self, params: local.NodeRenameParams, emit: Emit) -> report.Done: ...
    async def pair_open(self, params: local.PairOpenParams, emit: Emit) -> report.Paired: ...
    async def pair_join(self, params: local.PairJoinParams, emit: Emit) -> report.Paired: ...
    async def push(self, params: local.PushParams, emit: Emit) -> report.PushReport: ...
    async def pull(self, params: local.PullParams, emit: Emit) -> report.PushReport: ...
    async def ref_list(self, params: local.RefListParams, emit: Emit) -> report.RefList: ...
    async def show(self, params: local.ShowParams, emit: Emit) -> report.ShowReport: ...
    async def path(self, params: local.PathParams, emit: Emit) -> report.PathReport: ...
    async def remove(self, params: local.RemoveParams, emit: Emit) -> report.RemoveReport: ...
    async def pin(self, params: local.RefParams, emit: Emit) -> report.KeepReport: ...
    async def unpin(self, params: local.RefParams, emit: Emit) -> report.KeepReport: ...
    async def evict(self, params: local.RefParams, emit: Emit) -> report.KeepReport: ...
    async def gc(self, params: local.GcParams, emit: Emit) -> report.GcReport: ...
    async def verify(self, params: local.VerifyParams, emit: Emit) -> report.VerifyReport: ...
    async def du(self, params: local.DuParams, emit: Emit) -> report.DiskUse: ...
    async def processes(self, params: local.ProcessesParams, emit: Emit) -> report.ProcessList: ...
    async def stop(self, params: local.IdParams, emit: Emit) -> report.Done: ...
    async def wait(self, params: local.IdParams, emit: Emit) -> report.WaitReport: ...
    async def run(self, params: local.RunParams, emit: Emit) -> report.RunReport: ...
    async def shutdown(self, params: local.ShutdownParams, emit: Emit) -> report.Done: ...
    async def log_level(self, params: local.LogLevelParams, emit: Emit) -> report.Done: ...
    async def volume_list(self, params: volume.VolumeListParams, emit: Emit) -> volume.VolumeList: ...
    async def volume_show(self, params: volume.VolumeNameParams, emit: Emit) -> volume.VolumeReport: ...
    async def volume_create(self, params: volume.VolumeCreateParams, emit: Emit) -> volume.VolumeMade: ...
    async def volume_set(self, params: volume.VolumeSetParams, emit: Emit) -> volume.VolumeReport: ...
    async def volume_remove(self, params: volume.VolumeRemoveParams, emit: Emit) -> volume.VolumeRemoved: ...
    async def volume_restore(self, params: volume.VolumeNameParams, emit: Emit) -> volume.VolumeReport: ...
    async def file_list(self, params: files.FileListParams, emit: Emit) -> files.FileList: ...
    async def file_stat(self, params: files.FileStatParams, emit: Emit) -> files.FileStat: ...
    async def file_show(self, params: files.FileStatParams, emit: Emit) -> files.FileReport: ...
    async def file_read(self, params: files.FileReadParams, emit: Emit) -> files.FileRead: ...
    async def file_extents(self, params: files.FileExtentsParams, emit: Emit) -> files.FileExtents: ...
    async def file_stage(self, params: files.FileStageParams, emit: Emit) -> files.Staging: ...
    async def file_commit(self, params: files.FileCommitParams, emit: Emit) -> files.FileCommitted: ...
    async def file_copy(self, params: files.FileCopyParams, emit: Emit) -> files.CopyReport: ...
    async def file_move(self, params: files.FileMoveParams, emit: Emit) -> files.FileStat: ...
    async def file_remove(self, params: files.FileRemoveParams, emit: Emit) -> files.FileRemoved: ...
    async def file_mkdir(self, params: files.FileMkdirParams, emit: Emit) -> files.FileStat: ...
    async def history(self, params: files.HistoryParams, emit: Emit) -> files.History: ...
    async def restore(self, params: files.RestoreParams, emit: Emit) -> files.Restored: ...
    async def conflicts(self, params: volume.ConflictsParams, emit: Emit) -> volume.ConflictList: ...
    async def resolve(self, params: volume.ResolveParams, emit: Emit) -> volume.Resolved: ...
    async def locks(self, params: volume.LocksParams, emit: Emit) -> volume.LockList: ...
    async def snapshot_create(self, params: volume.SnapshotParams, emit: Emit) -> volume.Snapshot: ...
    async def snapshot_list(self, params: volume.SnapshotListParams, emit: Emit) -> volume.SnapshotList: ...
    async def snapshot_remove(self, params: volume.SnapshotParams, emit: Emit) -> volume.Snapshot: ...
    async def watch(self, params: volume.WatchParams, emit: Emit) -> report.Done: ...
    async def drain(self, params: volume.DrainParams, emit: Emit) -> volume.DrainReport: ...
    async def undrain(self, params: volume.UndrainParams, emit: Emit) -> report.Done: ...
    async def mount_attach(self, params: mount.MountAttachParams, emit: Emit) -> report.Done: ...
    async def mount_volumes(self, params: mount.MountVolumesParams, emit: Emit) -> mount.MountVolumeList: ...
    async def mount_list(self, params: mount.MountListParams, emit: Emit) -> mount.MountListing: ...
    async def mount_lookup(self, params: mount.MountListParams, emit: Emit) -> mount.MountListing: ...
    async def mount_change(self, params: mount.MountChangeParams, emit: Emit) -> mount.MountChangeResult: ...
    async def mount_open(self, params: mount.MountOpenParams, emit: Emit) -> mount.MountOpened: ...
    async def mount_need(self, params: mount.MountNeedParams, emit: Emit) -> mount.MountOpened: ...
    async def mount_stage(self, params: mount.MountStageParams, emit: Emit) -> mount.MountStaged: ...
    async def mount_cut(self, params: mount.MountCutParams, emit: Emit) -> mount.MountCut: ...
    async def mount_cuts(self, params: mount.MountCutsParams, emit: Emit) -> mount.MountCuts: ...
    async def mount_spare(self, params: mount.MountSpareParams, emit: Emit) -> mount.MountSpares: ...
    async def mount_sync(self, params: mount.MountSyncParams, emit: Emit) -> report.Done: ...
    async def mount_unstage(self, params: mount.MountUnstageParams, emit: Emit) -> report.Done: ...


async def serve(
    path: Path,
    handlers: Handlers,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on `path` and answer until cancelled; the socket file is gone afterwards.

    The caller holds the store's lock, so a socket file that is there already and answers nobody is a leftover.
    StoreUnusable when the directory is not this user's own, or another daemon answers on the socket.
    """
    _prepare(path)
    listener = await _listen(path)
    clients = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal clients
        if clients >= CLIENTS_MAX:
            _log.warning("refused a client of the control socket: %d are connected", clients)
            await stream.aclose()
            return
        clients += 1
        try:
            await _serve_client(stream, handlers)
        except Exception:  # noqa: BLE001  (logged; the connection ends and the daemon goes on)
            _log.exception("a client's connection failed")
        finally:
            clients -= 1

    task_status.started()  # it listens: whoever connects from now on is answered
    try:
        await trio.serve_listeners(handle, [listener])
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240  (a directory entry of a local disk)


def _prepare(path: Path) -> None:
    """Make the directory this user's alone, and take a leftover socket file away."""
    directory = path.parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.geteuid():
        raise StoreUnusable(f"{directory} belongs to another user", cure="choose another home with --home")
    directory.chmod(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnusable(f"the control socket {path} cannot be made: {error}") from error
        else:
            raise StoreUnusable(f"another daemon answers on {path}", cure="tbshare status")


async def _listen(path: Path) -> trio.SocketListener:
    """Return a listener on `path`."""
    listening = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await listening.bind(os.fspath(path))
        listening.listen(CLIENTS_MAX)
    except OSError as error:
        listening.close()
        raise StoreUnusable(f"the control socket {path} cannot be made: {error}") from error
    return trio.SocketListener(listening)


def _peer_uid(connection: trio.socket.SocketType) -> int:
    """Return the user id of the process at the other end, as the kernel vouches for it."""
    if sys.platform == "linux":
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _pid, uid, _gid = struct.unpack("3i", credentials)
        return int(uid)
    # struct xucred of macOS and the BSDs: version, uid, number of groups, 16 groups
    sol_local, local_peercred = 0, 1
    credentials = connection.getsockopt(sol_local, local_peercred, struct.calcsize("2Ih16I"))
    return int(struct.unpack_from("2I", credentials)[1])


async def _serve_client(stream: trio.SocketStream, handlers: Handlers) -> None:
    """Answer one client until it goes away."""
    async with stream:
        uid = _peer_uid(stream.socket)
        if uid != os.geteuid():
            _log.warning("refused a client of the control socket: its user id is %d", uid)
            return
        outbox = _Outbox()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.send_all, stream)
                try:
                    await _answer_requests(stream, _Calls(handlers, outbox, nursery))
                except PeerError as error:
                    failure = local.Failure(kind="FormatInvalid", message=f"the control socket: {error}")
                    outbox.put(local.Answer(0, error=failure))
                nursery.cancel_scope.cancel()
        except* (OSError, trio.BrokenResourceError):
            _log.debug("a client went away")  # at any moment it likes


async def _answer_requests(stream: trio.SocketStream, calls: "_Calls") -> None:
    """Start a call for each request until the client closes; PeerError when it sends something else."""
    opener = Opener()
    while data := await stream.receive_some(RECEIVE_BYTES):
        opener.feed(data)
        while (payload := opener.take()) is not None:
            try:
                request = _requests.decode(payload)
            except (msgspec.DecodeError, RecursionError) as error:
                raise PeerError(f"this is no request: {error}") from error
            calls.begin(request)


class _Outbox:
    """Answers on their way to one client, in order.

    Results and errors always find room (there are at most CALLS_MAX); events wait for room in `put_event`. `_rest`
    is what is left of an envelope that is begun: sending can be cancelled and taken up again at any byte.
    """

    def __init__(self) -> None:
        self._waiting: dict[object, bytes] = {}  # by order of first put; a newer progress takes the older's place
        self._waiting_bytes = 0
        self._number = 0
        self._filled = trio.Event()
        self._room = trio.Event()
        self._rest = memoryview(b"")

    def put(self, answer: local.Answer) -> None:
        """Add an answer without waiting."""
        self._number += 1
        self._add(self._number, _encoder.encode(answer))

    async def put_event(self, identifier: int, event: report.AnyEvent) -> None:
        """Add an event; wait for room unless it takes an older one's place."""
        data = _encoder.encode(local.Answer(identifier, event=event))
        assert len(data) <= ENVELOPE_BYTES_MAX, f"{type(event).__name__} is too long"
        self._number += 1
        replaceable = isinstance(event, report.REPLACEABLE)
        key: object = (identifier, type(event)) if replaceable else self._number
        while key not in self._waiting and self._full(len(data)):
            if self._room.is_set():  # else somebody waits for this one already
                self._room = trio.Event()
            await self._room.wait()
        self._add(key, data)
        await trio.lowlevel.checkpoint()

    def _full(self, size: int) -> bool:
        """Whether an event of this size has to wait; one alone never does."""
        if not self._waiting:
            return False
        return len(self._waiting) >= EVENTS_WAITING or self._waiting_bytes + size > EVENT_BYTES_WAITING

    def _add(self, key: object, data: bytes) -> None:
        self._waiting_bytes += len(data) - len(self._waiting.get(key, b""))
        self._waiting[key] = data
        self._filled.set()

    async def send_all(self, stream: trio.SocketStream) -> None:
        """Send what is put, forever; when cancelled, what is waiting still goes out if the client reads it."""
        try:
            while True:
                await self._send_waiting(stream)
                self._filled = trio.Event()
                await self._filled.wait()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + FLUSH_SECONDS, shield=True):
                await self._send_waiting(stream)

    async def _send_waiting(self, stream: trio.SocketStream) -> None:
        while self._waiting or self._rest:
            if not self._rest:
                data = self._waiting.pop(next(iter(self._waiting)))
                self._waiting_bytes -= len(data)
                self._rest = memoryview(seal(data))
                self._room.set()
            sent = await stream.socket.send(self._rest)  # cancelled, it has sent nothing
            self._rest = self._rest[sent:]


class _Calls:
    """The calls of one client."""

    def __init__(self, handlers: Handlers, outbox: _Outbox, nursery: trio.Nursery) -> None:
        self._handlers = handlers
        self._outbox = outbox
        self._nursery = nursery
        self._running: set[int] = set()
        self._greeted = False

    def begin(self, request: local.Request) -> None:
        """Start the call; PeerError when the client breaks the protocol."""
        if request.id in self._running:
            raise PeerError(f"request {request.id} is not answered yet")
        if not self._greeted and request.method != "hello":
            raise PeerError("the first request must be hello")
        self._greeted = True
        if len(self._running) >= CALLS_MAX:
            self._fail(request.id, UsageError(f"more than {CALLS_MAX} calls at once on one connection"))
            return
        if request.method not in local.METHODS:
            error = UsageError(
                f"this daemon (tbshare {__version__}) has no {request.method!r}", cure="tbshare restart"
            )
            self._fail(request.id, error)
            return
        self._running.add(request.id)
        self._nursery.start_soon(self._answer, request)

    async def _answer(self, request: local.Request) -> None:
        """Run the handler and send what it comes to."""
        try:
            result = await self._run(request)
            data = _encoder.encode(result)
            if len(data) > local.RESULT_BYTES_MAX:
                raise FormatInvalid(f"the answer to {request.method} is too long: {len(data)} bytes")
        except Exception as error:  # noqa: BLE001  (logged, and told to the user)
            cause = _on_purpose(error)
            if cause is None:
                _log.exception("%s failed", request.method)
                cause = TbshareError(
                    f"internal error in {request.method} ({type(error).__name__}); see the daemon's log",
                    cure="tbshare status",
                )
            self._fail(request.id, cause)
        else:
            self._succeed(request.id, data)
        finally:
            self._running.discard(request.id)

    async def _run(self, request: local.Request) -> Result:
        kind, _ = local.METHODS[request.method]
        try:
            params = msgspec.msgpack.decode(request.params, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"{request.method}: {error}", cure="tbshare restart") from error
        if isinstance(params, local.HelloParams):
            return report.HelloReport(level=local.LEVEL, version=__version__, pid=os.getpid())

        async def emit(event: report.AnyEvent) -> None:
            await self._outbox.put_event(request.id, event)

        method: Callable[[Params, Emit], Awaitable[Result]] = getattr(self._handlers, request.method)
        return await method(params, emit)

    def _succeed(self, identifier: int, data: bytes) -> None:
        if len(data) <= local.PART_BYTES:
            self._outbox.put(local.Answer(identifier, result=msgspec.Raw(data)))
            return
        for start in range(0, len(data), local.PART_BYTES):
            self._outbox.put(local.Answer(identifier, part=data[start : start + local.PART_BYTES]))
        self._outbox.put(local.Answer(identifier))

    def _fail(self, identifier: int, error: TbshareError) -> None:
        failure = local.Failure(
            kind=type(error).__name__,
            message=_printable(str(error)),
            cure=_printable(error.cure),
            exit_status=error.exit_status,
        )
        self._outbox.put(local.Answer(identifier, error=failure))


def _printable(text: str) -> str:
    """Return text that has an encoding: a path that is not UTF-8 has bytes in it that have none."""
    return text.encode("utf-8", "backslashreplace").decode()


def _on_purpose(error: Exception) -> TbshareError | None:
    """Return the error to tell the user; None for a mistake of ours.

    Nurseries wrap what their tasks raise in groups; a group of nothing but errors raised on purpose is as good as
    its first.
    """
    if isinstance(error, TbshareError):
        return error
    if not isinstance(error, ExceptionGroup):
        return None
    group = cast("ExceptionGroup[Exception]", error)
    causes = [_on_purpose(leaf) for leaf in group.exceptions]
    return None if None in causes else causes[0]
