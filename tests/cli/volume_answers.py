"""A daemon's answers about one volume, `film`, for the tests of the command line."""

from tbshare.daemon.control import Emit
from tbshare.errors import Locked, NotPermitted, PathMissing
from tbshare.wire import files, report, volume
from tbshare.wire.parts import Params
from tbshare.wire.where import Where

ODD = b"day\xff1"  # no UTF-8
VERSION = "8a3f00124c000007"
OLDER = "8a3f00124c000003"
WHEN_NS = 1_795_000_000 * 10**9
COPIED = files.CopyReport(files=3, directories=1, size_bytes=4 * 10**9, files_same=1, seconds=4.0)

ITEMS = [
    files.Item(name=b".hidden", kind="file", id="a1", version=VERSION, size_bytes=1, here="whole", copies="local"),
    files.Item(
        name=b"cut.prproj",
        kind="file",
        id="a2",
        version=VERSION,
        content="11" * 32,
        size_bytes=1_200_000,
        mode=0o644,
        mtime_ns=WHEN_NS,
        xattrs=[files.Xattr(name=b"com.apple.FinderInfo", value=b"\x00\xff")],
        author="studio-1",
        heads=2,
        here="whole",
        copies="everywhere",
        locked_by="studio-2",
    ),
    files.Item(
        name=b"cut (from studio-2, 2026-11-23 14.05).prproj",
        kind="file",
        id="a3",
        version=OLDER,
        author="studio-2",
        mode=0o600,
        fork=True,
        heads=2,
        here="no",
        copies="2 copies",
    ),
    files.Item(name=ODD, kind="directory", id="a4", mode=0o755, mtime_ns=WHEN_NS),
    files.Item(name=b"Film.fcpbundle", kind="bundle", id="a5", version=VERSION, size_bytes=5 * 10**9, mode=0o755),
    files.Item(name=b"latest", kind="link", id="a6", version=VERSION, target=b"cut.prproj", mode=0o777),
    files.Item(name=b"evil\x1b[2Jname\n", kind="file", id="a7", uid=1 << 31, mode=0o4755, pinned=True),
]
ROOT = files.Item(name=b"", kind="directory", id="0", mode=0o755)
LINES = [
    files.VersionLine(
        version=VERSION,
        when_ns=WHEN_NS,
        author="studio-1",
        size_bytes=1_200_000,
        head=True,
        shown=b"cut.prproj",
        copies="everywhere",
        here="whole",
    ),
    files.VersionLine(version=OLDER, when_ns=WHEN_NS - 10**12, author="studio-2", here="expired"),
    files.VersionLine(version=OLDER, when_ns=-(1 << 63), author="", here="no", shown=ODD),
]
VOLUME = volume.VolumeLine(
    name="film",
    mode="media",
    id="8a3f00124c000001",
    files=7,
    size_bytes=5_000_000_000,
    bytes_here=1_200_000,
    conflicts=1,
    snapshots=1,
    role="admin",
    options={"replicate": "everywhere", "history": "30d,10%,0"},
    roles=[
        volume.RoleLine(node="cart", role="read", own=True),
        volume.RoleLine(node="studio-1", role="admin"),
    ],
)
SNAPSHOT = volume.SnapshotLine(volume="film", name="monday", author="studio-1", when_ns=WHEN_NS)


class VolumeAnswers:
    """Handlers that know the volume `film` with ITEMS at its root; what they were asked for stands in `asked`."""

    def __init__(self) -> None:
        self.asked: list[Params] = []
        self.written = bytes(range(256)) * 10_000
        self.copied = COPIED
        self.safe = True
        self.hanging = False

    def _known(self, where: Where) -> None:
        if where.volume != "film":
            raise PathMissing(f"no volume {where.volume!r}; the nearest is film", cure="tbshare volume ls")
        if where.path == b"locked":
            raise Locked(f"{where} is open on studio-2", cure="tbshare locks film")

    def _item(self, where: Where) -> files.Item:
        self._known(where)
        for item in [ROOT, *ITEMS]:
            if item.name == where.path:
                return item
        raise PathMissing(f"nothing has the name {where}", cure="tbshare ls film:/")

    async def volume_list(self, params: volume.VolumeListParams, emit: Emit) -> volume.VolumeList:
        self.asked.append(params)
        return volume.VolumeList(volumes=[volume.VolumeLine(name="models", mode="models", refs=2), VOLUME])

    async def volume_show(self, params: volume.VolumeNameParams, emit: Emit) -> volume.VolumeReport:
        self.asked.append(params)
        self._known(Where(params.name))
        return volume.VolumeReport(volume=VOLUME)

    async def volume_create(self, params: volume.VolumeCreateParams, emit: Emit) -> volume.VolumeMade:
        self.asked.append(params)
        if params.source:
            await emit(files.Copying(bytes_done=1, bytes_total=4))
        return volume.VolumeMade(volume=VOLUME, copied=self.copied if params.source else None)

    async def volume_set(self, params: volume.VolumeSetParams, emit: Emit) -> volume.VolumeReport:
        self.asked.append(params)
        self._known(Where(params.name))
        return volume.VolumeReport(volume=VOLUME)

    async def volume_remove(self, params: volume.VolumeRemoveParams, emit: Emit) -> volume.VolumeRemoved:
        self.asked.append(params)
        self._known(Where(params.name))
        return volume.VolumeRemoved(volume=VOLUME, removed=params.yes, grace_seconds=604800.0)

    async def volume_restore(self, params: volume.VolumeNameParams, emit: Emit) -> volume.VolumeReport:
        self.asked.append(params)
        return volume.VolumeReport(volume=VOLUME)

    async def file_list(self, params: files.FileListParams, emit: Emit) -> files.FileList:
        self.asked.append(params)
        item = self._item(params.where)
        return files.FileList(item=item, items=ITEMS if item is ROOT else [])

    async def file_stat(self, params: files.FileStatParams, emit: Emit) -> files.FileStat:
        self.asked.append(params)
        return files.FileStat(item=self._item(params.where))

    async def file_show(self, params: files.FileStatParams, emit: Emit) -> files.FileReport:
        self.asked.append(params)
        return files.FileReport(
            where=params.where,
            item=self._item(params.where),
            versions=LINES,
            versions_total=9,
            holders=[files.Holder(name="studio-2", id="cd" * 32)],
        )

    async def file_read(self, params: files.FileReadParams, emit: Emit) -> files.FileRead:
        self.asked.append(params)
        self._item(params.where)
        for offset in range(0, len(self.written), files.CHUNK_BYTES_MAX):
            await emit(files.Chunk(offset=offset, data=self.written[offset : offset + files.CHUNK_BYTES_MAX]))
        return files.FileRead(version=VERSION, size_bytes=len(self.written), bytes=len(self.written))

    async def file_copy(self, params: files.FileCopyParams, emit: Emit) -> files.CopyReport:
        self.asked.append(params)
        for where in [*params.sources, params.target]:
            if where.volume:
                self._known(where)
        for done in (1, 2, 4):
            await emit(
                files.Copying(bytes_done=done, bytes_total=4, files_done=1, files_total=2, path=ODD, rate=0.5)
            )
        return self.copied

    async def file_move(self, params: files.FileMoveParams, emit: Emit) -> files.FileStat:
        self.asked.append(params)
        return files.FileStat(item=self._item(params.source))

    async def file_remove(self, params: files.FileRemoveParams, emit: Emit) -> files.FileRemoved:
        self.asked.append(params)
        for where in params.wheres:
            self._item(where)
        return files.FileRemoved(files=2, directories=2, size_bytes=1_200_000)

    async def file_mkdir(self, params: files.FileMkdirParams, emit: Emit) -> files.FileStat:
        self.asked.append(params)
        self._known(params.where)
        return files.FileStat(item=ITEMS[3])

    async def history(self, params: files.HistoryParams, emit: Emit) -> files.History:
        self.asked.append(params)
        self._item(params.where)
        return files.History(where=params.where, lines=LINES)

    async def restore(self, params: files.RestoreParams, emit: Emit) -> files.Restored:
        self.asked.append(params)
        self._item(params.where)
        where = params.target or params.where
        return files.Restored(where=where, version=VERSION, when_ns=WHEN_NS, files=1, same=bool(params.snapshot))

    async def conflicts(self, params: volume.ConflictsParams, emit: Emit) -> volume.ConflictList:
        self.asked.append(params)
        if params.volume:
            self._known(Where(params.volume))
        fork = volume.ConflictLine(where=Where("film", b"cut.prproj"), kind="versions", shown=LINES[:2])
        clash = volume.ConflictLine(where=Where("film", b"a/" + ODD), kind="names", shown=LINES[:2])
        return volume.ConflictList(conflicts=[fork, clash], total=3)

    async def resolve(self, params: volume.ResolveParams, emit: Emit) -> volume.Resolved:
        self.asked.append(params)
        self._item(params.where)
        if params.keep == b"nobody":
            raise PathMissing("no version of it is nobody's", cure=f"tbshare conflicts {params.where.volume}")
        return volume.Resolved(where=params.where, version=VERSION, author="studio-2", others=1)

    async def locks(self, params: volume.LocksParams, emit: Emit) -> volume.LockList:
        self.asked.append(params)
        lock = volume.LockLine(where=Where("film", b"cut.prproj"), node="studio-2", left_seconds=7.4, here=True)
        return volume.LockList(locks=[] if params.volume == "quiet" else [lock])

    async def snapshot_create(self, params: volume.SnapshotParams, emit: Emit) -> volume.Snapshot:
        self.asked.append(params)
        self._known(Where(params.volume))
        return volume.Snapshot(snapshot=SNAPSHOT)

    async def snapshot_list(self, params: volume.SnapshotListParams, emit: Emit) -> volume.SnapshotList:
        self.asked.append(params)
        self._known(Where(params.volume))
        return volume.SnapshotList(snapshots=[SNAPSHOT])

    async def snapshot_remove(self, params: volume.SnapshotParams, emit: Emit) -> volume.Snapshot:
        self.asked.append(params)
        if params.name != "monday":
            raise NotPermitted(f"no snapshot {params.name!r} of film", cure="tbshare snapshot ls film")
        return volume.Snapshot(snapshot=SNAPSHOT)

    async def watch(self, params: volume.WatchParams, emit: Emit) -> report.Done:
        self.asked.append(params)
        self._known(params.where)
        where = Where("film", b"a/" + ODD)
        await emit(
            volume.Changed(
                where=where,
                what="saved",
                version=VERSION,
                author="studio-2",
                size_bytes=1_200_000,
                when_ns=WHEN_NS,
            )
        )
        await emit(
            volume.Changed(where=where, what="described", kind="directory", author="studio-2", when_ns=WHEN_NS)
        )
        await emit(volume.Changed(where=where, what="moved", before=Where("film", b"b"), author="studio-2"))
        await emit(volume.Changed(where=Where("film"), what="lost"))
        if self.hanging:
            import trio

            await trio.sleep_forever()
        return report.Done()

    async def drain(self, params: volume.DrainParams, emit: Emit) -> volume.DrainReport:
        self.asked.append(params)
        await emit(volume.Draining(versions_left=2, bytes_left=10**9, entries_left=3, rate=1e8, eta_seconds=10.0))
        if self.safe:
            return volume.DrainReport(safe=True, holders=["studio-2"])
        return volume.DrainReport(safe=False, versions_left=1, bytes_left=10**9, text="nobody is connected")

    async def undrain(self, params: volume.UndrainParams, emit: Emit) -> report.Done:
        self.asked.append(params)
        return report.Done()
