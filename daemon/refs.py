"""Refs as the user sees them: list, show, path, remove, pin, evict."""

import time
from pathlib import Path

import trio

from tbshare.content import bits
from tbshare.content.block import ObjectId, TreeId
from tbshare.content.layout import aligned_count, choose
from tbshare.content.tree import Entry
from tbshare.content.tree import Kind as EntryKind
from tbshare.daemon.needed import living, living_versions, needed_trees
from tbshare.daemon.service import MODELS, Service
from tbshare.errors import ObjectInUse, ObjectMissing, TbshareError
from tbshare.store import views
from tbshare.store.adopt import NOTE
from tbshare.store.care import drop_object
from tbshare.store.ingest import read_header
from tbshare.store.source import Choice, scan, shown
from tbshare.volumes.fold import RefVersion, State
from tbshare.wire.local import PathParams, RefListParams, RemoveParams, ShowParams
from tbshare.wire.report import (
    FileLine,
    HolderLine,
    KeepReport,
    PathReport,
    RefLine,
    RefList,
    RemoveReport,
    ShowReport,
)
from tbshare.wire.volume import VolumeLine, VolumeList

_KIND_NAMES = {EntryKind.FILE: "file", EntryKind.TREE: "directory", EntryKind.LINK: "link"}


class Refs:
    """Answers about refs."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def holders(self, state: State, tree: bytes) -> list[bytes]:
        """Return the nodes known to hold a tree whole, this one first."""
        service = self.service
        here = [service.identity.node] if tree in service.replicator.whole else []
        return here + [
            peer.node for peer in service.mesh.peers.values() if tree in peer.keeps and peer.node in state.members
        ]

    def bytes_here(self, tree: bytes) -> int:
        """Return how many bytes of a tree are on this node."""
        try:
            objects = self.service.store.objects_below(TreeId(tree))
        except TbshareError:
            return 0
        return sum(self._object_bytes(object_id) for object_id in objects)

    def _object_bytes(self, object_id: ObjectId) -> int:
        store = self.service.store
        found = store.manifest(object_id)
        if found is None:
            return 0
        held = store.held(object_id)
        if held == bits.full(found.block_count):
            return found.size if store.row(object_id) is not None else 0
        return sum(found.lengths[number] for number in bits.members(held))

    def line(self, state: State, version: RefVersion) -> RefLine:
        """Return the line of one version."""
        service = self.service
        names = {node: member.name for node, member in [*state.removed_members.items(), *state.members.items()]}
        whole = version.tree in service.replicator.whole
        here = version.size_bytes if whole else self.bytes_here(version.tree)
        return RefLine(
            ref=str(version),
            volume=version.volume,
            name=version.name,
            rev=version.number,
            size_bytes=version.size_bytes,
            files=version.files,
            tree=version.tree.hex(),
            when_seconds=version.time_ns / 1e9,
            author=names.get(version.author, version.author[:4].hex()),
            labels=[version.label] if version.label else [],
            on=[names[node] for node in self.holders(state, version.tree)],
            here="whole" if whole else "partial" if here else "no",
            pinned=bool(service.log.pins.list(version.tree)),
            bytes_here=here,
        )

    async def ref_list(self, params: RefListParams) -> RefList:
        """Return the refs whose text starts with a prefix."""
        state = await self.service.mesh.state()

        def collect() -> list[RefLine]:
            lines: list[RefLine] = []
            for key in sorted(state.refs):
                versions = state.refs[key]
                chosen = versions[::-1] if params.all_revs else versions[-1:]
                lines += [self.line(state, version) for version in chosen]
            return [line for line in lines if line.ref.lower().startswith(params.prefix.lower())]

        return RefList(await trio.to_thread.run_sync(collect))

    # show ------------------------------------------------------------------------------------------------------

    async def show(self, params: ShowParams) -> ShowReport:
        """Return what a ref, or a path that is not pushed, consists of."""
        if params.path:
            return await trio.to_thread.run_sync(self._show_path, params)
        state = await self.service.mesh.state()
        version = state.resolve(params.ref)
        return await trio.to_thread.run_sync(self._show_version, state, version, params.files_max)

    def _show_version(self, state: State, version: RefVersion, files_max: int) -> ShowReport:
        service = self.service
        line = self.line(state, version)
        try:
            walked = service.store.walk(TreeId(version.tree))
        except ObjectMissing:
            walked = []
        files = [self._file(path, entry) for path, entry in walked]
        holders = [
            HolderLine(state.members[node].name, node.hex(), version.size_bytes)
            for node in self.holders(state, version.tree)
        ]
        for (tree, node), message in service.replicator.others.items():
            partly = tree == version.tree and message.state != "durable" and message.bytes_present
            if partly and node in state.members:
                holders.append(HolderLine(state.members[node].name, node.hex(), message.bytes_present))
        view = views.view_path(service.store, version.name, version.rev, code=False)
        unique: dict[bytes, int] = {}
        for object_id in {ObjectId(entry.target) for _, entry in walked if entry.kind == EntryKind.FILE}:
            found = service.store.manifest(object_id)
            for number, length in enumerate(found.lengths if found else []):
                assert found is not None
                unique[found.block(number)] = length
        return ShowReport(
            line=line,
            files=files[:files_max],
            files_total=len(files),
            holders=holders,
            blocks=len(unique),
            bytes_unique=sum(unique.values()),
            tensors=sum(file.tensors for file in files),
            aligned=sum(file.aligned for file in files),
            directory=str(view) if view.is_dir() else "",
            warnings=[] if walked or not version.files else ["its list of files is not on this node yet"],
        )

    def _file(self, path: tuple[bytes, ...], entry: Entry) -> FileLine:
        store = self.service.store
        if entry.kind != EntryKind.FILE:
            text = entry.target.decode("utf-8", "replace") if entry.kind == EntryKind.LINK else ""
            return FileLine(shown(path), entry.size, "", kind=_KIND_NAMES[entry.kind], text=text)
        object_id = ObjectId(entry.target)
        found, row = store.manifest(object_id), store.row(object_id)
        header = found.header if found else None
        shift = choose(header).shift if header and row and row.place == "shifted" else 0
        return FileLine(
            path=shown(path),
            size_bytes=entry.size,
            object=entry.target.hex(),
            layout=row.place if row and row.whole else "",
            format=header.format if header else "",
            tensors=len(header.tensors) if header else 0,
            aligned=aligned_count(header, shift) if header else 0,
            bytes_here=self._object_bytes(object_id),
        )

    def _show_path(self, params: ShowParams) -> ShowReport:
        source = scan(Path(params.path), Choice())
        files: list[FileLine] = []
        for file in source.files:
            header, warning = read_header(file)
            layout = choose(header)
            files.append(
                FileLine(
                    path=shown(file.path),
                    size_bytes=file.size,
                    object="",
                    layout=layout.name,
                    format=header.format if header else "",
                    tensors=len(header.tensors) if header else 0,
                    aligned=aligned_count(header, layout.shift) if header else 0,
                    text=warning,
                )
            )
        line = RefLine(params.path, "", source.root.name, 0, source.size, len(files), "", time.time(), "")
        return ShowReport(
            line=line,
            files=files[: params.files_max],
            files_total=len(files),
            tensors=sum(file.tensors for file in files),
            aligned=sum(file.aligned for file in files),
            warnings=[f"{file.path}: {file.text}" for file in files if file.text],
        )

    # keeping ---------------------------------------------------------------------------------------------------

    async def whole_version(self, ref: str) -> RefVersion:
        """Return the version of a ref that must be whole here. ObjectMissing says how much of it is."""
        service = self.service
        state = await service.mesh.state()
        version = state.resolve(ref)
        if not await service.replicator.is_whole(TreeId(version.tree)):
            here = await trio.to_thread.run_sync(self.bytes_here, version.tree)
            raise ObjectMissing(
                f"{version} is not complete on this node: {here / 1e9:.2f} of {version.size_bytes / 1e9:.2f} GB",
                cure=f"tbshare pull {version}",
            )
        return version

    async def path(self, params: PathParams) -> PathReport:
        """Make and pin the directory of a ref."""
        version = await self.whole_version(params.ref)
        directory, left_out = await trio.to_thread.run_sync(self.view, version, params.allow_code)
        text = str(version)
        if not self.service.log.pins.list(version.tree):
            await trio.to_thread.run_sync(lambda: self.service.log.pins.add(version.tree, note=f"path {text}"))
        return PathReport(text, str(directory), left_out)

    def view(self, version: RefVersion, allow_code: bool) -> tuple[Path, list[str]]:
        """Make the directory of a version; return it and what was left out."""
        store = self.service.store
        name = version.name if version.volume == MODELS else f"{version.volume}:{version.name}"
        directory = views.view_path(store, name, version.rev, code=allow_code)
        return directory, views.materialise(store, TreeId(version.tree), directory, allow_code=allow_code)

    async def pin(self, ref: str) -> KeepReport:
        """Keep a ref on this node, fetching it if need be."""
        service = self.service
        state = await service.mesh.state()
        version = state.resolve(ref)
        text = str(version)
        if not service.log.pins.list(version.tree):
            await trio.to_thread.run_sync(lambda: service.log.pins.add(version.tree, note=text))
        service.evicted.discard(version.tree)
        service.replicator.poke()
        here = await trio.to_thread.run_sync(self.bytes_here, version.tree)
        whole = version.tree in service.replicator.whole
        return KeepReport(text, True, here, text="pinned" if whole else "pinned; it is being fetched")

    async def unpin(self, ref: str) -> KeepReport:
        """Take the pins of a ref on this node away."""
        service = self.service
        state = await service.mesh.state()
        version = state.resolve(ref)
        pins = service.log.pins.list(version.tree)
        self._check_not_adopted(version)
        for pin in pins:
            await trio.to_thread.run_sync(service.log.pins.remove, pin.id)
        await trio.to_thread.run_sync(views.remove, service.store, TreeId(version.tree))
        here = await trio.to_thread.run_sync(self.bytes_here, version.tree)
        text = "unpinned" if pins else "was not pinned"
        return KeepReport(str(version), False, here, text=text)

    def _check_not_adopted(self, version: RefVersion) -> None:
        """ObjectInUse when files of the version were moved into this store: it has the only copy."""
        for pin in self.service.log.pins.list(version.tree):
            if pin.note.startswith(NOTE):
                path = pin.note.removeprefix(NOTE)
                raise ObjectInUse(
                    f"the files of {version} were moved here from {path}; links stand there",
                    cure=f"tbshare push --move --undo {path}",
                )

    async def evict(self, ref: str) -> KeepReport:
        """Delete the bytes of a ref on this node; never the last copy, nothing that is pinned or in use."""
        service = self.service
        state = await service.mesh.state()
        version = state.resolve(ref)
        text = str(version)
        if service.log.pins.list(version.tree):
            raise ObjectInUse(f"{text} is pinned on this node", cure=f"tbshare unpin {text}")
        if service.log.leases.list(version.tree):
            raise ObjectInUse(f"{text} is in use by a run on this node", cure="tbshare ps")
        service.evicted.trees.add(version.tree)  # from here on nothing brings it back
        try:
            await self._give_up(state, version, text)
        except BaseException:
            service.evicted.discard(version.tree)
            raise
        service.evicted.add(version.tree)
        job = service.replicator.jobs.get(version.tree)
        if job is not None:
            job.scope.cancel()
            await job.ended.wait()
        async with service.collecting:
            freed = await trio.to_thread.run_sync(self._drop_tree, await service.mesh.state(), version.tree)
        return KeepReport(text, False, 0, freed, "evicted from this node")

    async def _give_up(self, state: State, version: RefVersion, text: str) -> None:
        """Tell the others that this copy goes. ObjectInUse, and it stays, when no other node has one.

        Told first and judged afterwards, when each has answered: of two nodes that do so at once either one sees
        the other's word, or both do. So nodes that evict at the same time cannot each count on the other.
        """
        service, tree = self.service, version.tree
        if not await trio.to_thread.run_sync(self.bytes_here, tree):
            return
        with trio.CancelScope(shield=True):
            await service.replicator.note_gone(tree)
        peers = [peer for peer in service.mesh.peers.values() if tree in peer.keeps]
        answered = [peer for peer in peers if await service.records.has_heard(peer)]
        if any(tree in peer.keeps and peer.node in state.members for peer in answered):
            return
        await service.replicator.note_whole(tree)
        raise ObjectInUse(
            f"no other node that is connected holds {text}; the last copy is never evicted",
            cure=f"tbshare push … --to NODE, or tbshare rm {text}",
        )

    def _drop_tree(self, state: State, tree: bytes) -> int:
        """Drop the objects of a tree that no other tree which stays here has."""
        service = self.service
        needed, _, _ = needed_trees(service, state, time.time_ns(), now=False)
        kept, _ = living(service, (needed | set(service.replicator.jobs) | service.replicator.whole) - {tree})
        kept |= living_versions(service, state, now=False)[0]
        views.remove(service.store, TreeId(tree))
        return sum(
            drop_object(service.store, object_id)
            for object_id in service.store.objects_below(TreeId(tree))
            if object_id not in kept
        )

    async def remove(self, params: RemoveParams) -> RemoveReport:
        """Take one version away everywhere, the newest if none is named; its bytes go after the grace time."""
        service = self.service
        state = await service.mesh.state()
        version = state.resolve(params.ref)
        names = {node: member.name for node, member in state.members.items()}
        nodes = sorted(names[node] for node in self.holders(state, version.tree))
        grace = service.config.number("store.grace_days") * 86400.0
        others = [str(each) for each in state.versions(version.volume, version.name) if each.rev != version.rev]
        warnings = [f"other revs stay: {', '.join(others)}"] if others else []
        report = RemoveReport(
            str(version), params.yes, nodes, version.size_bytes, version.size_bytes, grace, warnings
        )
        self._check_not_adopted(version)
        if not params.yes:
            return report
        entry = await trio.to_thread.run_sync(service.log.remove_ref, version.volume, version.name, version.rev)
        await service.mesh.grown([entry])
        left = {each.tree for versions in (await service.mesh.state()).refs.values() for each in versions}
        if version.tree not in left:
            await trio.to_thread.run_sync(views.remove, service.store, TreeId(version.tree))
        return report

    async def volume_list(self) -> VolumeList:
        """Return the volumes."""
        state = await self.service.mesh.state()
        lines: list[VolumeLine] = []
        for key, volume in sorted(state.volumes.items()):
            versions = [each for (name, _), all_ in state.refs.items() if name == key for each in all_]
            size = sum(each.size_bytes for each in versions)
            lines.append(
                VolumeLine(volume.name, volume.mode, len(versions), size, state.why_read_only(volume.name))
            )
        return VolumeList(lines)
