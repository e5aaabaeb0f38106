"""Which trees this node should hold, and the fetches that see to it."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from tbshare.content.block import TreeId
from tbshare.content.ref import folded
from tbshare.errors import DiskFull, FormatInvalid, TbshareError
from tbshare.peers.fetch import TreeFetch
from tbshare.peers.goal import Goal
from tbshare.peers.mesh import Mesh, Peer
from tbshare.peers.ranges import Ranges
from tbshare.store.store import Store
from tbshare.volumes.fold import RefVersion, State
from tbshare.wire.message import AnyMessage, Have, Progress

_log = logging.getLogger("tbshare.daemon.replicate")
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.5, 30.0
OTHERS_MAX = 20_000  # trees and nodes whose progress is remembered
FETCHES_MAX = 3  # trees at once; each uses every lane there is


def wanted_here(state: State, me: bytes, accept: str, pinned: set[bytes]) -> dict[bytes, RefVersion]:
    """Return tree -> version of what this node should hold. Pure.

    A version pushed to named nodes is for those; one pushed to all is for every node that accepts all, except that
    of a name only its newest version is, or the newest ones of a fork. What is pinned here is wanted whatever else
    is said.
    """
    result: dict[bytes, RefVersion] = {}
    for versions in state.refs.values():
        for version in versions:
            volume = state.volumes.get(folded(version.volume))
            if volume is not None and me in state.members and not state.may_read(me, volume.id):
                continue
            newest = version.number == versions[-1].number  # two, when both sides pushed while they were apart
            named = me in version.to
            offered = not version.to and accept == "all" and newest
            if named or offered or version.tree in pinned or version.author == me:
                result[version.tree] = version
    return result


@dataclass
class _Job:
    """One fetch that is to be done, is under way, or waits to be tried again."""

    fetch: TreeFetch
    version: RefVersion
    scope: trio.CancelScope
    failures: int = 0
    again: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)


class Replicator:
    """Runs a fetch for each tree that should be here and is not."""

    def __init__(
        self,
        store: Store,
        mesh: Mesh,
        *,
        accept: Callable[[], str],
        pinned: Callable[[], set[bytes]],
        make_fetch: Callable[[Goal], TreeFetch],
    ) -> None:
        self.store, self.mesh = store, mesh
        self.accept, self.pinned, self.make_fetch = accept, pinned, make_fetch
        self.jobs: dict[bytes, _Job] = {}
        self.beside: dict[bytes, TreeFetch] = {}  # fetches of versions of files: daemon/spread.py runs them
        self.readers: dict[bytes, Ranges] = {}  # what is read and not here: daemon/lazy.py runs them
        self.offered: set[bytes] = set()  # by nodes that are to be unplugged
        self.whole: set[bytes] = set()
        self.evicted: set[bytes] = set()  # not wanted again until pulled
        self.limits: dict[bytes, int] = {}  # tree -> bytes per second that a pull asked for
        self.stopped: set[bytes] = set()  # by the user, until the next push, pull or start
        self.others: dict[tuple[bytes, bytes], Progress] = {}  # (tree, node) -> what it last said
        self.changed = trio.Event()
        self.watchers: set[trio.Event] = set()
        self._slots = trio.CapacityLimiter(FETCHES_MAX)
        mesh.on(Have, self._on_have)
        mesh.on(Progress, self._on_progress)
        mesh.on_joined(self._on_joined)
        mesh.on_left(self._on_left)
        mesh.on_state(self._on_state)
        mesh.keeps_here = lambda: self.whole
        mesh.keeps_grown = self._on_keeps

    async def _on_have(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Have)
        job = self.jobs.get(message.tree)
        fetch = job.fetch if job is not None else self.beside.get(message.tree)
        for asker in (fetch, self.readers.get(message.tree)):
            if asker is not None:
                asker.on_have(peer, message)

    async def _on_progress(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, Progress)
        if len(self.others) < OTHERS_MAX or (message.tree, peer.node) in self.others:
            self.others[message.tree, peer.node] = message
        if message.state == "durable":
            peer.keeps.add(message.tree)
        self._tell()

    async def _on_joined(self, peer: Peer) -> None:
        for job in list(self.jobs.values()):
            await job.fetch.on_joined(peer)
            job.again.set()
        askers: list[TreeFetch | Ranges] = [*self.beside.values(), *self.readers.values()]
        for asker in askers:
            await asker.on_joined(peer)
        self.poke()

    def _on_keeps(self, trees: Iterable[bytes]) -> None:
        """Try again at once what a peer has now: it is said again on every push of the same content."""
        for job in [self.jobs[tree] for tree in trees if tree in self.jobs]:
            job.again.set()

    async def _on_left(self, peer: Peer) -> None:
        jobs = [job.fetch for job in self.jobs.values()]
        askers: list[TreeFetch | Ranges] = [*jobs, *self.beside.values(), *self.readers.values()]
        for asker in askers:
            asker.on_left(peer)
        for key in [key for key in self.others if key[1] == peer.node]:
            del self.others[key]
        self._tell()

    async def _on_state(self, _: State) -> None:
        self.poke()

    def poke(self) -> None:
        """Look again at what should be here."""
        self.changed.set()

    def _tell(self) -> None:
        for watcher in self.watchers:
            watcher.set()

    async def run(self) -> None:
        """Start and end fetches as the state changes, for ever."""
        await self._look_what_is_here()
        async with trio.open_nursery() as nursery:
            while True:
                self.changed = trio.Event()
                wanted = wanted_here(
                    await self.mesh.state(),
                    self.mesh.identity.node,
                    self.accept(),
                    self.pinned() | self.offered,
                )
                for tree, version in wanted.items():
                    if (
                        tree not in self.jobs
                        and tree not in self.whole
                        and tree not in self.stopped | self.evicted
                    ):
                        await self._start(nursery, tree, version)
                for tree, job in list(self.jobs.items()):
                    if tree not in wanted or tree in self.stopped:
                        job.scope.cancel()
                with trio.move_on_after(RETRY_SECONDS_MAX):
                    await self.changed.wait()

    async def _look_what_is_here(self) -> None:
        """Note every tree that is whole at start, wanted or not: others count on our word."""
        for versions in (await self.mesh.state()).refs.values():
            for version in versions:
                if await self.is_whole(TreeId(version.tree)):
                    await self.note_whole(version.tree)

    async def _start(self, nursery: trio.Nursery, tree: bytes, version: RefVersion) -> None:
        if await self.is_whole(TreeId(tree)):
            await self.note_whole(tree)
            return
        job = _Job(self.make_fetch(Goal(TreeId(tree), version.volume)), version, trio.CancelScope())
        self.jobs[tree] = job
        nursery.start_soon(self._run, job)

    async def is_whole(self, tree: TreeId) -> bool:
        """Return whether a tree, and all it names, is here."""

        def look() -> bool:
            try:
                return all(self.store.is_whole(object_id) for object_id in self.store.objects_below(tree))
            except TbshareError:
                return False

        return await trio.to_thread.run_sync(look)

    async def note_whole(self, tree: bytes) -> None:
        """Remember, and tell everybody, that a tree is whole here."""
        self.whole.add(tree)
        await self.mesh.announce_keeps([tree], [])
        self._tell()

    async def note_gone(self, tree: bytes) -> None:
        """Remember, and tell everybody, that a tree is no longer whole here."""
        self.whole.discard(tree)
        await self.mesh.announce_keeps([], [tree])
        self._tell()

    async def _run(self, job: _Job) -> None:
        tree = job.fetch.tree
        try:
            with job.scope:
                while not await self._attempt(job):
                    pause = min(RETRY_SECONDS_MIN * 2 ** min(job.failures, 10), RETRY_SECONDS_MAX)
                    job.failures += 1
                    job.again = trio.Event()
                    with trio.move_on_after(pause):
                        await job.again.wait()
                    job.fetch = self.make_fetch(job.fetch.goal)
                self.others[tree, self.mesh.identity.node] = job.fetch.progress()
                await self.note_whole(tree)
        except* Exception:  # noqa: BLE001 - an error beside a cancellation does not end the daemon
            _log.exception("the fetch of %s@%s ended badly", job.version.name, job.version.rev)
        finally:
            del self.jobs[tree]
            job.ended.set()
            self._tell()

    async def _attempt(self, job: _Job) -> bool:
        job.fetch.limit = self.limits.get(job.fetch.tree, 0)
        try:
            async with self._slots:
                await job.fetch.run()
        except (DiskFull, FormatInvalid) as error:  # it will not be otherwise in a moment
            _log.warning("%s@%s is not taken in: %s", job.version.name, job.version.rev, error)
            job.failures = max(job.failures, 5)
            return False
        except TbshareError as error:
            _log.warning("%s@%s is not here yet: %s", job.version.name, job.version.rev, error)
            return False
        except Exception:  # noqa: BLE001 - a bug that one tree meets does not end the daemon
            _log.exception("%s@%s: the fetch failed", job.version.name, job.version.rev)
            return False
        return await self.is_whole(TreeId(job.fetch.tree))  # garbage collection may have taken what was here
