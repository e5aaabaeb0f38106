"""The daemon of one node: all the wiring, on one page and in one nursery."""

import contextlib
import ipaddress
import json
import logging
import os
import random
import resource
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from functools import partial
from pathlib import Path

import ifaddr
import trio

from tbshare import __version__
from tbshare.content.ref import folded, part_from
from tbshare.daemon.config import Config
from tbshare.daemon.copies import rows_of
from tbshare.daemon.lazy import Lazy
from tbshare.daemon.locks import Locks
from tbshare.daemon.processes import Processes
from tbshare.daemon.replicate import Replicator
from tbshare.daemon.spread import DRAINED_FILE, Spread
from tbshare.daemon.trees import StoreTrees
from tbshare.errors import StoreUnusable, UsageError
from tbshare.peers.fetch import TreeFetch
from tbshare.peers.goal import Goal
from tbshare.peers.identity import Identity
from tbshare.peers.lanes import Lanes
from tbshare.peers.leasing import Leasing
from tbshare.peers.mesh import Mesh, Peer
from tbshare.peers.provide import Provider
from tbshare.peers.records import RecordFetcher
from tbshare.store import disk
from tbshare.store.store import Store
from tbshare.transport.listener import Kind, listen
from tbshare.transport.pool import BufferPool
from tbshare.transport.rate import RateLimit
from tbshare.volumes.catalogue import MODELS_ID
from tbshare.volumes.fold import State
from tbshare.volumes.log import Log
from tbshare.volumes.rows import VersionRow
from tbshare.volumes.volumes import Volumes
from tbshare.wire import limits
from tbshare.wire.message import Hello

_log = logging.getLogger("tbshare.daemon")
MODELS = "models"
NO_LIMIT = 1 << 50  # bytes per second


class Service:
    """Everything a running node consists of. Made by `opened`, run by `run`."""

    def __init__(self, home: Path, config: Config, identity: Identity, log: Log, store: Store) -> None:
        self.home, self.config, self.identity, self.log, self.store = home, config, identity, log, store
        self.started_at = time.time()
        self.port = config.number("listen.port")
        self.stopping = trio.Event()
        self.answer_pairing: Callable[[trio.SocketStream, Callable[[], None]], Awaitable[None]] = _no_pairing
        self.processes = Processes()
        self.collecting = trio.Lock()  # held while garbage goes
        self.ingesting = 0  # pushes whose objects no ref names yet: garbage waits for them
        self.ingested = trio.Event()
        self.evicted = _Kept(home / "evicted.json")
        self._limits = [float(config.size("links.limit") or NO_LIMIT)]  # of the config, and of each push
        self.limit = RateLimit(self._limits[0], now=time.monotonic())
        self.mesh = Mesh(identity, log, name=self.name, hello=self.hello)
        self.pool = BufferPool()
        self.provider = Provider(store, self.mesh, port=self.port, limit=self.limit)
        self.lanes = Lanes(self.mesh, self.pool, count=config.number("links.lanes"), sealed=self.sealed)
        self._plain_volumes = frozenset({MODELS})  # by folded name, and by id
        self._plain_ids = frozenset({MODELS_ID})
        self.provider.must_seal = self._must_seal
        self.mesh.on_state(self._note_modes)
        self.records = RecordFetcher(store, self.mesh)
        self.replicator = Replicator(
            store,
            self.mesh,
            accept=lambda: config.text("store.accept"),
            pinned=lambda: {pin.what for pin in log.pins.list()},
            make_fetch=self.make_fetch,
        )
        self.replicator.evicted = self.evicted.trees
        self.volumes = Volumes(
            log, home / "namespace", node=identity.node, random=random.SystemRandom(), trees=StoreTrees(store)
        )
        self.spread = Spread(
            store,
            self.mesh,
            self.volumes,
            self.replicator,
            accept=lambda: config.text("store.accept"),
            make_fetch=self.make_fetch,
            pins=lambda: {pin.what for pin in log.pins.list()},
        )
        self.spread.draining = (home / DRAINED_FILE).exists()
        self.lazy = Lazy(store, self.mesh, self.lanes, self.records, self.spread, self.replicator)
        self.provider.grants.lookup = self._lookup
        self.leasing = Leasing(self.mesh)
        self.locks = Locks(self.mesh, self.leasing)
        self._direct = [ipaddress.ip_network(text, strict=False) for text in config.listed("links.direct")]
        self._addresses_file = home / "addresses.json"
        self.mesh.addresses |= _read_addresses(self._addresses_file)
        self.mesh.addresses_changed = self._save_addresses

    # what others are told --------------------------------------------------------------------------------------

    def name(self) -> str:
        """Return this node's name."""
        member = self.log.state().members.get(self.identity.node)
        return member.name if member else own_name(self.config)

    def hello(self) -> Hello:
        """Return the greeting."""
        return Hello(
            level=limits.LEVEL,
            node=self.identity.node,
            name=self.name(),
            version=__version__,
            cluster=self.log.cluster,
            listen_port=self.port,
            addresses=self.addresses(),
            store_free_bytes=self.store.room_bytes(),
            accept=self.config.text("store.accept"),
        )

    def addresses(self) -> list[str]:
        """Return where this node can be dialled."""
        host = self.config.text("listen.host")
        if host:
            return [f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"]
        found = [
            address.ip
            for adapter in ifaddr.get_adapters()
            for address in adapter.ips
            if isinstance(address.ip, str) and not address.ip.startswith("127.")
        ]
        return [f"{ip}:{self.port}" for ip in found]

    def sealed(self, peer: Peer, volume: str) -> bool:
        """Return whether payload from a peer is encrypted: always, but for models on a direct cable."""
        rule = self.config.text("links.seal")
        if rule != "auto":
            return rule == "always"
        return folded(volume) not in self._plain_volumes or not self.is_direct(peer.lane_host)

    def _must_seal(self, peer: Peer, volume: int) -> bool:
        return self.sealed(peer, MODELS if volume in self._plain_ids else "")

    def _lookup(self, volume: int, versions: Sequence[tuple[int, int]]) -> list[VersionRow]:
        with contextlib.suppress(UsageError):  # of a volume that this node does not know yet
            return rows_of(self.volumes, volume, versions)
        return []

    async def _note_modes(self, state: State) -> None:
        plain = [volume for volume in state.volumes.values() if volume.mode == "models"]
        self._plain_volumes = frozenset(folded(volume.name) for volume in plain)
        self._plain_ids = frozenset(volume.id for volume in plain)

    def is_direct(self, host: str) -> bool:
        """Return whether an address is at the other end of a cable, or on this machine."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return address.is_loopback or any(address in network for network in self._direct)

    def make_fetch(self, goal: Goal) -> TreeFetch:
        """Return a new fetch."""
        return TreeFetch(
            goal,
            store=self.store,
            mesh=self.mesh,
            records=self.records,
            provider=self.provider,
            lanes=self.lanes,
        )

    @contextlib.asynccontextmanager
    async def taking_in(self) -> AsyncGenerator[None, None]:
        """Keep garbage collection away while objects come in that no ref names yet."""
        async with self.collecting:
            self.ingesting += 1
        try:
            yield
        finally:
            self.ingesting -= 1
            if not self.ingesting:
                self.ingested.set()
                self.ingested = trio.Event()

    @contextlib.contextmanager
    def taking_in_thread(self) -> Generator[None, None, None]:
        """Do the same for a worker thread: one batch, for garbage collection waits as long."""
        stack = contextlib.AsyncExitStack()
        trio.from_thread.run(stack.enter_async_context, self.taking_in())
        try:
            yield
        finally:
            trio.from_thread.run(stack.aclose)

    @contextlib.contextmanager
    def limited(self, bytes_per_second: int) -> Generator[None, None, None]:
        """Let this node send at most so much inside the block; 0 changes nothing. The lowest of several holds."""
        if not bytes_per_second:
            yield
            return
        self._limits.append(float(bytes_per_second))
        self.limit.set_rate(min(self._limits))
        try:
            yield
        finally:
            self._limits.remove(float(bytes_per_second))
            self.limit.set_rate(min(self._limits))

    def _save_addresses(self) -> None:
        text = json.dumps({node.hex(): where for node, where in self.mesh.addresses.items()}, indent=1)
        with contextlib.suppress(OSError):
            temporary = self._addresses_file.with_suffix(".new")
            temporary.write_text(text)
            temporary.rename(self._addresses_file)

    # running ---------------------------------------------------------------------------------------------------

    async def run(
        self,
        *,
        ready: Callable[[], None],
        serve_control: Callable[..., Awaitable[object]],
        beside: Callable[[], Awaitable[None]],
    ) -> None:
        """Serve until `stopping`; call `ready` once both sockets answer. `beside` runs in the same nursery."""
        async with trio.open_nursery() as nursery:
            handlers = {
                Kind.CONTROL: self.mesh.accept,
                Kind.LANE: self.provider.accept_lane,
                Kind.PAIRING: self._pairing,
            }
            host = self.config.text("listen.host") or None
            try:
                port = await nursery.start(partial(listen, host=host), self.port, handlers)
            except OSError as error:
                where = f"{host or 'all addresses'}, port {self.port}"
                raise StoreUnusable(
                    f"{where}: cannot be listened on: {error.strerror or error}",
                    cure="tbshare up --port N --listen ADDRESS, or listen.port and listen.host in config.toml",
                ) from error
            self.port = self.provider.port = int(str(port))
            await self._note_modes(await self.mesh.state())
            await nursery.start(serve_control)
            parts = (self.leasing, self.mesh, self.provider, self.lanes, self.replicator, self.spread, self.lazy)
            for task in (*[part.run for part in parts], beside):
                nursery.start_soon(task)
            _log.info(
                "node %s (%s) serves port %d, store %s",
                self.name(),
                self.identity.short(),
                self.port,
                self.home,
            )
            ready()
            await self.stopping.wait()
            nursery.cancel_scope.cancel()

    async def _pairing(self, stream: trio.SocketStream, admitted: Callable[[], None]) -> None:
        await self.answer_pairing(stream, admitted)

    def close(self) -> None:
        """Let go of the disk."""
        self.volumes.close()
        self.store.close()
        self.log.close()


async def _no_pairing(stream: trio.SocketStream, _admitted: Callable[[], None]) -> None:
    await stream.aclose()


class _Kept:
    """A set of trees in a small file: those the user evicted here."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trees: set[bytes] = set()
        with contextlib.suppress(OSError, ValueError):
            self.trees = {bytes.fromhex(text) for text in json.loads(path.read_text())}

    def add(self, tree: bytes) -> None:
        """Add a tree, durably."""
        self.trees.add(tree)
        self._save()

    def discard(self, tree: bytes) -> None:
        """Remove a tree, durably."""
        if tree in self.trees:
            self.trees.discard(tree)
            self._save()

    def _save(self) -> None:
        text = json.dumps(sorted(tree.hex() for tree in self.trees))
        disk.write_durably(self._path, text.encode(), temporary=self._path.with_suffix(".new"))


def _read_addresses(path: Path) -> dict[bytes, list[str]]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        rows = json.loads(path.read_text())
        return {bytes.fromhex(node): [str(text) for text in where] for node, where in rows.items()}
    return {}


def own_name(config: Config) -> str:
    """Return the name this node gives itself."""
    return config.text("node.name") or part_from(socket.gethostname().removesuffix(".local"))


def opened(home: Path, config: Config) -> Service:
    """Open key, log and store below `home`. StoreUnusable says what is wrong with them."""
    disk.refuse_network_home(home)
    disk.make_directory(home)
    os.chmod(home, 0o700)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536) if hard > 0 else 65536, hard))
    _log.debug("open files: %d, at most %d", soft, hard)
    marker = home / "store-id"
    expected = marker.read_text().strip() if marker.exists() else ""
    root = Path(config.text("store.path")) if config.text("store.path") else home
    _, whole = disk.free_bytes(root if root.exists() else home)
    store = Store(
        root,
        expected_id=expected,
        keep_free_bytes=config.size("store.keep_free", whole),
        max_bytes=config.size("store.max_bytes"),
    )
    try:
        if not expected:
            disk.write_durably(marker, store.store_id.encode(), temporary=home / "store-id.new")
        identity = Identity.load_or_create(home / "device.key")
        log = Log.open(home / "log.db", identity)
        if not log.cluster:
            log.create_cluster(own_name(config))
        _drop_dead_leases(log)
        return Service(home, config, identity, log, store)
    except BaseException:
        store.close()
        raise


def boot_id() -> str:
    """Return what tells this boot of the machine from another; empty where there is nothing that does."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _drop_dead_leases(log: Log) -> None:
    """Forget leases of processes that are gone: a process that maps weights ends with its daemon."""
    holders = {lease.pid for lease in log.leases.list()}
    alive = [pid for pid in holders if _runs(pid)]
    for lease in log.leases.drop_dead(boot=boot_id(), now=time.monotonic(), alive=alive):
        _log.info("a lease of process %d is gone with it", lease.pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
