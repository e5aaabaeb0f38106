"""One simulated machine: its key, disk, clocks and power; and what runs on it, which is the real code.

What runs is the log, the volumes and the log exchange of a daemon, and the simulation's store. It dies with the
power: nothing of it is used again, and the next one starts from what is on the disk.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tbshare.content.block import named_hash
from tbshare.peers.exchange import Exchange
from tbshare.peers.identity import Identity, certificate_of
from tbshare.volumes.entry import Entry
from tbshare.volumes.log import Log
from tbshare.volumes.tables import Here
from tbshare.volumes.volume import Handle
from tbshare.volumes.volumes import Volumes
from tbshare.wire.message import AnyMessage, decode, encode
from tests.simulation.clock import Clock, World
from tests.simulation.disk import LOG, LogDatabase, Power, PowerCut, after_power_cut, copy_home
from tests.simulation.fetching import Fetching
from tests.simulation.network import Network, Session
from tests.simulation.store import Objects, Store

OF_LOG, OF_STORE = b"L", b"S"  # the first byte of each message
_identities: dict[int, Identity] = {}


def identity_of(number: int) -> Identity:
    """Return the identity of the n-th node, the same in every run."""
    if number not in _identities:
        key = Ed25519PrivateKey.from_private_bytes(named_hash("tbshare simulation key", [str(number).encode()]))
        node = key.public_key().public_bytes_raw()
        _identities[number] = Identity(Path("device.key"), node, certificate_of(key), key)
    return _identities[number]


@dataclass(frozen=True)
class Backup:
    """A copy of a disk."""

    home: Path
    objects: Objects


class Machine:
    """A machine that may be on or off."""

    def __init__(self, index: int, identity: Identity, folder: Path, world: World, random: Random) -> None:
        self.index, self.identity, self.name = index, identity, f"node-{index}"
        self.clock, self.power, self.random = Clock(world), Power(), random
        self.world = world
        self.folder = folder / f"machine-{index}"
        self._homes = 0
        self.home = self._new_home()
        self.home.mkdir(parents=True)
        self.objects = Objects()
        self.running: Process | None = None
        self.backups: list[Backup] = []
        self.removed = False  # from the cluster, as far as the test knows

    def _new_home(self) -> Path:
        self._homes += 1
        return self.folder / str(self._homes)

    def start(self, network: Network) -> None:
        """Switch it on."""
        assert self.running is None
        self.power = Power()
        self.running = Process(self, network)
        self.running.begin()

    def stop(self, network: Network, *, cut: bool) -> None:
        """End what runs: in good order, or by a power cut, which loses what was not synced."""
        process, self.running = self.running, None
        if process is None:
            return
        process.gone = True
        network.stopped(process)
        old, self.home = self.home, self._new_home()
        self.power.keep()  # the files are closed still; the copy is made before that
        if cut:
            synced = process.database.is_synced()
            after_power_cut(old, self.home, self.random, kept=self.objects.wal_bytes, log_synced=synced)
            self.objects = self.objects.after_power_cut(self.random)
            process.close()
        else:
            process.close()
            copy_home(old, self.home)
            self.objects.unsynced = set()
        shutil.rmtree(old)

    def back_up(self) -> None:
        """Copy the disk."""
        copy = self.folder / f"backup-{len(self.backups)}"
        copy_home(self.home, copy)
        self.backups.append(Backup(copy, self.objects.copy()))

    def restore(self, backup: Backup, *, log_only: bool) -> None:
        """Put back a copy of the disk, or of log.db alone."""
        assert self.running is None
        old, self.home = self.home, self._new_home()
        if log_only:
            copy_home(old, self.home)
            for path in self.home.glob(f"{LOG}*"):
                path.unlink()
            for path in backup.home.glob(f"{LOG}*"):
                shutil.copyfile(path, self.home / path.name)
        else:
            copy_home(backup.home, self.home)
            self.objects = backup.objects.copy()
        shutil.rmtree(old)

    def has_disk(self) -> bool:
        """Say whether there is anything on the disk."""
        return (self.home / LOG).exists()

    def become(self, other: "Machine") -> None:
        """Take over a copy of another machine's disk, and its key."""
        shutil.rmtree(self.home)
        copy_home(other.home, self.home)
        self.objects = other.objects.copy()

    def entries(self) -> dict[bytes, Entry]:
        """Return all entries on this machine's disk, whether it runs or not."""
        if self.running is not None:
            return entries_of(self.running.log)
        if not self.has_disk():
            return {}
        copy = self.folder / "looked-at"
        copy_home(self.home, copy)
        log = Log.open(copy / LOG, self.identity)
        try:
            return entries_of(log)
        finally:
            log.close()
            shutil.rmtree(copy)


def entries_of(log: Log) -> dict[bytes, Entry]:
    """Return all entries of a log."""
    return {entry.hash: entry for _, entry in log.entries_after(0, 1 << 40)}


class Process:
    """What runs on a machine from its start to its end."""

    def __init__(self, machine: Machine, network: Network) -> None:
        self.machine, self._network = machine, network
        self.gone = False
        self._own: list[Entry] = []
        self._receiving = False
        random = machine.random
        self.database = LogDatabase(machine.home / LOG, machine.power)
        self.log = Log(
            self.database,
            machine.identity,
            machine.clock.time_ns,
            random_bytes=random.randbytes,
        )
        self.store = Store(machine.home, machine.objects)
        (machine.home / "namespace").mkdir(exist_ok=True)
        self.volumes = Volumes(
            self.log,
            machine.home / "namespace",
            node=machine.identity.node,
            random=Random(random.getrandbits(64)),
            clock=machine.clock.monotonic,
            time_ns=machine.clock.time_ns,
            trees=self.store,
        )
        self.exchange = Exchange(self.log)
        self.fetching = Fetching(self.key, self.store, self._send_store, self._later, self._came)
        self.log.on_commit.append(self._committed)

    @property
    def key(self) -> bytes:
        """The node."""
        return self.machine.identity.node

    def begin(self) -> None:
        """Look for what is missing, and for peers."""
        self.guarded(self._look)
        self._network.wake()

    def close(self) -> None:
        """Close all files."""
        self.volumes.close()
        self.store.close()
        self.log.close()

    def handles(self) -> list[Handle]:
        """Return the volumes in a fixed order."""
        return sorted(self.volumes.handles(), key=lambda handle: handle.id)

    def guarded(self, what: Callable[[], None]) -> None:
        """Do something that may meet a power cut."""
        if self.gone:
            return
        try:
            what()
        except PowerCut:
            self.machine.stop(self._network, cut=True)

    def give_up(self, disk_bytes: int) -> set[bytes]:
        """Do what the daemon does each hour: let old versions go, and collect what nothing needs.

        Returns the contents of the versions that went.
        """
        gone: set[bytes] = set()
        self.volumes.require_all()
        if self.log.lost:
            return gone
        live = self.fetching.arriving
        for handle in self.handles():
            tables = self.volumes.tables(handle.id)
            for file, version in handle.expire(disk_bytes):
                row = tables.version(file, version)
                assert row is not None
                gone |= self.store.below([row.content])
        for (
            volume
        ) in self.log.state().volumes_by_id.values():  # also of those that are removed: that can be undone
            if volume.mode != "models":
                kept = self.volumes.tables(volume.id).all_versions(Here.WANTED, Here.HERE)
                live |= {row.content for row in kept if row.contents != "link"}
        self.store.collect(self.store.below(live))
        return gone

    # ---- the cluster ----------------------------------------------------------------------------------

    def trusts(self, node: bytes) -> bool:
        """Say whether sessions with a node are wanted."""
        return node in self.log.trusted()

    def joined(self, session: Session) -> None:
        """A session stands."""

        def greet() -> None:
            peer = session.peer(self).key
            self._send_log([(peer, message) for message in self.exchange.joined(peer)])
            self.fetching.joined(peer)

        self.guarded(greet)

    def left(self, session: Session) -> None:
        """A session has ended."""
        peer = session.peer(self).key
        self.exchange.left(peer)
        self.guarded(lambda: self.fetching.left(peer))

    def received(self, session: Session, message: bytes) -> None:
        """A message has come."""
        peer = session.peer(self).key
        if message[:1] == OF_STORE:
            self.guarded(lambda: self.fetching.received(peer, message[1:]))
            return

        def take() -> None:
            self._receiving = True
            try:
                self._send_log(self.exchange.received(peer, decode(message[1:])))
            finally:
                self._receiving = False
            self.changed()

        self.guarded(take)

    def _committed(self, entries: Sequence[tuple[int, Entry]]) -> None:
        if not self._receiving:
            self._own += [entry for _, entry in entries]

    def changed(self) -> None:
        """Tell the peers what the log has got since, and part from those that are no longer trusted."""
        own, self._own = self._own, []
        if own:
            self._send_log(self.exchange.grown(own))
        for session in self._network.sessions_of(self):
            if not self.trusts(session.peer(self).key):
                self._network.lose(session, whole=True)
        self._network.wake()
        self._look()

    def _send_log(self, messages: Sequence[tuple[bytes, AnyMessage]]) -> None:
        for peer, message in messages:
            session = self._network.session_with(self, peer)
            if session is not None:
                self._network.send(session, self, OF_LOG + encode(message))

    # ---- bytes ----------------------------------------------------------------------------------------

    def _send_store(self, peer: bytes, data: bytes) -> None:
        session = self._network.session_with(self, peer)
        if session is not None:
            self._network.send(session, self, OF_STORE + data)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self.machine.world.after(seconds, lambda: self.guarded(what))

    def _came(self) -> None:
        self._look()

    def _look(self) -> None:
        """Want what the volumes want, and tell them what is here."""
        for handle in self.handles():
            tables = self.volumes.tables(handle.id)
            here: list[tuple[int, int]] = []
            wanted: list[bytes] = []
            for row in tables.wanted():
                if row.contents == "link" or self.store.whole(row.content):
                    here.append((row.file, row.version))
                else:
                    wanted.append(row.content)
            if here:
                tables.mark(here, Here.HERE)
            if wanted:
                self.fetching.want(wanted)
