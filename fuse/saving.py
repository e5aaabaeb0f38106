"""Working files become versions: one cut after the other for each, and nothing is lost when one fails."""

import logging
import os
from typing import Final

import msgspec
import trio

from tbshare.errors import TbshareError, errno_of
from tbshare.fuse.changes import Changes
from tbshare.fuse.cuts import Cuts
from tbshare.fuse.link import Link
from tbshare.fuse.names import Names
from tbshare.fuse.nodes import Node, Notice
from tbshare.fuse.operations import FuseError
from tbshare.fuse.stages import Stage
from tbshare.wire import mount as wire
from tbshare.wire.report import Done

TOGETHER_BYTES_MAX: Final = 1 << 20  # a larger one would keep others waiting
XATTR_BYTES_MAX: Final = 4096  # longer ones are told after the first version
_log = logging.getLogger(__name__)


class Saving:
    """The working files of a mount, by node, and what of them is on its way into the volume."""

    def __init__(self, link: Link, names: Names, changes: Changes, nursery: trio.Nursery) -> None:
        self.stages: dict[Node, Stage] = {}
        self.cuts = Cuts(link, changes, nursery)
        self._link, self._names, self._tree, self._changes = link, names, names.tree, changes
        self._cutting: dict[Node, trio.Event] = {}

    async def end(self, node: Node, stage: Stage, *, told: bool = False) -> None:
        """Cut what nobody writes to any more, for good if nobody has it open; `told`: raise what goes wrong."""
        try:
            await self.cut(node, stage)
        except (FuseError, OSError) as error:
            if told:
                raise
            if stage.failures == 1:
                _log.warning("%s is not saved yet: %s", self.shown(node), os.strerror(error.errno or 0))

    async def cut(self, node: Node, stage: Stage, *, only: bool = False) -> None:
        """Make what is in a working file a version; with `only` it goes on in any case."""
        async with stage.lock:
            if self.stages.get(node) is not stage:
                return
            if stage.handles and (stage.removed or not stage.changed()):
                return
            last = stage.closing = not stage.handles and not only
            under_way = self._cutting[node] = trio.Event()
            try:
                if stage.changed():
                    await self._save(node, stage, last=last)
                elif last:
                    await self.unstage(stage.id)
                if last:
                    self._forget(node, stage)
            finally:
                stage.closing = False
                del self._cutting[node]
                under_way.set()

    def _forget(self, node: Node, stage: Stage) -> None:
        del self.stages[node]
        node.stage = None
        stage.close()
        if stage.cloned:
            self._names.listings.tell(
                [Notice("data", node.inode)]
            )  # what the kernel had read before it was written past the page cache
        self._tree.drop_unused(node)

    async def _save(self, node: Node, stage: Stage, *, last: bool) -> None:
        path = self.path(node, stage)
        linked = last and not stage.cloned
        if linked:
            stage.only_read()
        ranges, state = stage.taken()
        try:
            params = self._params(node, stage, path, ranges, last=last)
            together = last and node.pending and stage.size_bytes <= TOGETHER_BYTES_MAX
            made = await (self.cuts.cut_together if together else self.cuts.cut)(node.volume, params)
        except BaseException:
            stage.uncut(ranges)
            if linked:
                stage.write_again()
            raise
        stage.cut(state)
        if made.item is None:
            return
        stage.file, stage.version, stage.killed_mode = made.file, made.version, None
        long = _long_xattrs(node)
        self._tree.saved(node, msgspec.structs.replace(made.item, xattrs={**made.item.xattrs, **long}))
        if long:
            item = await self._changes.ask(node.volume, wire.Describe(path, xattrs=dict(long)), [made.file])
            if item is not None:
                self._tree.changed(node, msgspec.structs.replace(item, name=node.item.name))

    def _params(
        self,
        node: Node,
        stage: Stage,
        path: wire.Path,
        ranges: list[tuple[int, int]] | None,
        *,
        last: bool,
    ) -> wire.MountCutParams:
        params = wire.MountCutParams(
            stage.id,
            path,
            stage.file,
            stage.version,
            ranges,
            mode=stage.killed_mode,
            last=last,
            attached=self._changes.attached,
        )
        if not node.pending:
            return params
        item = node.item
        return msgspec.structs.replace(
            params,
            mode=item.mode,
            uid=item.uid,
            gid=item.gid,
            birthtime_ns=item.birthtime_ns,
            xattrs={name: value for name, value in item.xattrs.items() if name not in _long_xattrs(node)},
        )

    def path(self, node: Node, stage: Stage) -> wire.Path:
        """Return where a file is, or was when another node removed it; () when this mount did."""
        if stage.removed:
            return ()
        stage.known_path = self._tree.path(node) or stage.known_path
        return stage.known_path

    async def counted(self) -> None:
        """Wait until what is being cut now is: only then a quota counts it."""
        for event in list(self._cutting.values()):
            await event.wait()

    async def quiet(self, node: Node) -> None:
        """Wait until no version is being cut of a node, or of what is below a directory."""
        while True:
            found = [event for each, event in self._cutting.items() if each is node or _is_below(each, node)]
            if not found:
                return
            for event in found:
                await event.wait()

    async def settle(self, node: Node) -> None:
        """Make what is staged a version now."""
        stage = self.stages.get(node)
        if stage is not None:
            with trio.CancelScope(shield=True):
                await self.cut(node, stage, only=True)

    async def unstage(self, number: int) -> None:
        """Forget a working file that nothing was written to."""
        try:
            await self._link.call("mount_unstage", wire.MountUnstageParams(number), Done)
        except TbshareError as error:
            raise FuseError(errno_of(error)) from error

    def shown(self, node: Node) -> str:
        """Return a path for the log."""
        return os.fsdecode(b"/".join(self._tree.path(node) or (node.item.name,)))


def _is_below(node: Node, directory: Node) -> bool:
    above = node.parent
    while above is not None and above is not directory:
        above = above.parent
    return above is not None


def _long_xattrs(node: Node) -> dict[bytes, bytes]:
    """Return the extended attributes of a file without a version that are told after the first one."""
    xattrs = node.item.xattrs if node.pending else {}
    return {name: value for name, value in xattrs.items() if len(value) > XATTR_BYTES_MAX}
