"""Volumes as the user sees them: made, set, removed and brought back, listed."""

from collections.abc import Mapping, Sequence
from typing import cast, get_args

import trio

from tbshare.content.ref import MODELS, folded, is_part, shown
from tbshare.daemon.service import Service
from tbshare.errors import NotPermitted, TbshareError, UsageError
from tbshare.volumes import policy
from tbshare.volumes.catalogue import volume_id
from tbshare.volumes.entry import Entry, KnownOp, Mode, Role, RoleSet, VolumeCreate, VolumeSet
from tbshare.volumes.fold import State, Volume
from tbshare.volumes.policy import Option
from tbshare.wire.volume import (
    RoleLine,
    VolumeCreateParams,
    VolumeLine,
    VolumeList,
    VolumeListParams,
    VolumeRemoved,
    VolumeRemoveParams,
    VolumeReport,
    VolumeSetParams,
)
from tbshare.wire.where import id_text

CONFLICTS_COUNTED = 1000  # more are not told apart
ROLES = (*get_args(Role), "none", "")


class VolumesOfNode:
    """Answers about volumes; writes their ops."""

    def __init__(self, service: Service) -> None:
        self.service = service

    # making and changing ---------------------------------------------------------------------------------------

    async def create(self, params: VolumeCreateParams) -> tuple[Volume, bool]:
        """Make a volume; return it, and whether it was there already, which only taking files in again allows."""
        state = await self.service.mesh.state()
        if folded(params.name) == MODELS:
            raise UsageError(f"volume {MODELS} is there already, for refs", cure="tbshare push --help")
        if not is_part(params.name):
            raise UsageError(
                f"{shown(params.name)} is no name for a volume: letters, digits, '.', '_' and '-'",
                cure="tbshare volume create NAME",
            )
        if params.mode not in ("media", "owner"):
            raise UsageError(
                f"mode {shown(params.mode)}: media or owner; pushes go to the volume models",
                cure="tbshare volume create --help",
            )
        options = self._options(state, params.options, params.owner, creating=True)
        if params.mode == "owner":
            options.setdefault("owner", self.service.identity.node.hex())
        elif params.owner:
            raise UsageError("only a volume of mode owner has an owner", cure="tbshare volume create --help")
        there = state.volumes.get(folded(params.name))
        if there is not None:
            if params.source and there.mode == params.mode:
                return there, True
            raise UsageError(f"there is a volume {there.name} already", cure=f"tbshare volume show {there.name}")
        roles = self._roles(state, params.roles)
        self._require_publisher(state)
        op = VolumeCreate(name=params.name, mode=cast("Mode", params.mode), options=options)
        entry = await self._append([op])
        number = volume_id(entry.hash, entry.ops.index(op))
        if roles:
            await self._append([RoleSet(volume=number, node=node, role=role) for node, role in roles.items()])
        made = (await self.service.mesh.state()).volume_by_id(number)
        if made is None:
            raise NotPermitted("this node may not make volumes", cure="tbshare node ls")
        return made, False

    async def set(self, params: VolumeSetParams) -> VolumeReport:
        """Change options and roles."""
        state = await self.service.mesh.state()
        volume = state.volume_named(params.name)
        if folded(volume.name) == MODELS:
            raise UsageError(f"volume {MODELS} has no options: it holds refs", cure="tbshare help volumes")
        self._require_admin(state, volume)
        options = self._options(state, params.options, params.owner, creating=False)
        roles = self._roles(state, params.roles)
        if params.owner and volume.mode != "owner":
            raise UsageError(
                f"{volume.name} is of mode {volume.mode} and has no owner", cure="tbshare volume show"
            )
        ops: list[KnownOp] = [RoleSet(volume=volume.id, node=node, role=role) for node, role in roles.items()]
        if options:
            ops.append(VolumeSet(volume=volume.id, options=options))
        if not ops:
            raise UsageError("nothing was named that should change", cure="tbshare volume set NAME --quota 2T")
        await self._append(ops)
        return await self.show(volume.name)

    async def remove(self, params: VolumeRemoveParams) -> VolumeRemoved:
        """Take a volume away everywhere; it comes back with `restore` until the grace time is over."""
        state = await self.service.mesh.state()
        volume = state.volume_named(params.name)
        if folded(volume.name) == MODELS:
            raise UsageError(f"volume {MODELS} stays: pushes go there", cure="tbshare rm REF")
        self._require_admin(state, volume)
        line = (await self.show(volume.name)).volume
        grace = self.service.config.number("store.grace_days") * 86400.0
        if params.yes:
            await self._append([VolumeSet(volume=volume.id, options={"removed": True})])
        return VolumeRemoved(line, removed=params.yes, grace_seconds=grace)

    async def restore(self, name: str) -> VolumeReport:
        """Bring a removed volume back."""
        state = await self.service.mesh.state()
        volume = state.volume_named(name, removed=True)
        self._require_admin(state, volume)
        if not volume.removed:
            raise UsageError(f"{volume.name} is not removed", cure=f"tbshare volume show {volume.name}")
        await self._append([VolumeSet(volume=volume.id, options={"removed": False})])
        back = (await self.service.mesh.state()).volume_by_id(volume.id)
        assert back is not None
        return await self.show(back.name)

    async def _append(self, ops: Sequence[KnownOp]) -> Entry:
        entry = await trio.to_thread.run_sync(self.service.log.append, ops)
        await self.service.mesh.grown([entry])
        return entry

    # what is asked ---------------------------------------------------------------------------------------------

    def _options(self, state: State, words: Mapping[str, str], owner: str, *, creating: bool) -> dict[str, Option]:
        """Return options as the log has them; an empty text is the default."""
        defaults = policy.words_of(policy.Policy())
        if any(folded(word) == "removed" for word in words):
            raise UsageError(
                "removed is no option to set", cure="tbshare volume rm NAME; tbshare volume restore NAME"
            )
        full = {word: text if text.strip() else defaults.get(folded(word), text) for word, text in words.items()}
        if owner:
            full["owner"] = state.member_named(owner).node.hex()
        return policy.options_of(full, creating=creating)

    @staticmethod
    def _roles(state: State, roles: Mapping[str, str]) -> dict[bytes, Role]:
        result: dict[bytes, Role] = {}
        for text, role in roles.items():
            if role not in ROLES:
                raise UsageError(
                    f"role {shown(role)}: read, write, publish, admin or none; empty is the node's own role",
                    cure="tbshare volume set NAME --role NODE=read",
                )
            result[state.member_named(text).node] = cast("Role", role)
        return result

    def _require_admin(self, state: State, volume: Volume) -> None:
        role = state.role(self.service.identity.node, volume.id)
        if role != "admin":
            raise NotPermitted(
                f"this node's role in {volume.name} is {role}; only an admin changes a volume",
                cure="run it on a node that is: tbshare volume show " + volume.name,
            )

    def _require_publisher(self, state: State) -> None:
        me = state.members.get(self.service.identity.node)
        if me is None or me.role == "read":
            raise NotPermitted("this node may only read", cure="tbshare node ls")

    # telling ---------------------------------------------------------------------------------------------------

    async def listed(self, params: VolumeListParams) -> VolumeList:
        """Return the volumes, by name."""
        state = await self.service.mesh.state()
        volumes = state.volumes_by_id.values() if params.removed else state.volumes.values()
        ordered = sorted(volumes, key=lambda volume: folded(volume.name))

        def lines() -> list[VolumeLine]:
            return [self._line(state, volume) for volume in ordered]

        return VolumeList(await trio.to_thread.run_sync(lines))

    async def show(self, name: str) -> VolumeReport:
        """Return one volume with the roles in it."""
        state = await self.service.mesh.state()
        volume = state.volume_named(name)
        return VolumeReport(await trio.to_thread.run_sync(lambda: self._line(state, volume, roles=True)))

    def _line(self, state: State, volume: Volume, *, roles: bool = False) -> VolumeLine:
        versions = [each for (name, _), all_ in state.refs.items() if name == folded(volume.name) for each in all_]
        line = VolumeLine(
            name=volume.name,
            mode=volume.mode,
            refs=len(versions),
            size_bytes=sum(each.size_bytes for each in versions),
            text=state.why_read_only(volume.name),
        )
        if not volume.id:
            return line
        names = {node: member.name for node, member in [*state.removed_members.items(), *state.members.items()]}
        owner = bytes.fromhex(volume.policy.owner)
        files, size, text, conflicts, snapshots = 0, 0, "was removed", 0, 0
        if not volume.removed:
            files, size, text, conflicts, snapshots = self._contents(volume)
        return VolumeLine(
            name=volume.name,
            mode=volume.mode,
            refs=line.refs,
            size_bytes=size + line.size_bytes,
            text=text or line.text,
            id=id_text(volume.id),
            files=files,
            conflicts=conflicts,
            snapshots=snapshots,
            role=state.role(self.service.identity.node, volume.id),
            removed=volume.removed,
            owner=names.get(owner, volume.policy.owner[:8]) if volume.mode == "owner" else "",
            options=policy.words_of(volume.policy),
            roles=self._role_lines(state, volume) if roles else [],
        )

    def _contents(self, volume: Volume) -> tuple[int, int, str, int, int]:
        try:
            handle = self.service.volumes.open_id(volume.id)
            totals = handle.totals()
            conflicts = len(handle.conflicts(CONFLICTS_COUNTED))
            return totals.files, totals.size_bytes, handle.why_read_only, conflicts, len(handle.snapshots())
        except TbshareError as error:  # its tables are damaged, say
            return 0, 0, str(error), 0, 0

    @staticmethod
    def _role_lines(state: State, volume: Volume) -> list[RoleLine]:
        return [
            RoleLine(member.name, role, own=role != member.role)
            for node, member in state.members.items()
            for role in [state.role(node, volume.id)]
        ]
