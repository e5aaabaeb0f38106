"""A simulated node gets the bytes its volumes want: says what it lacks, hears who holds it, asks as `plan` says.

The messages are the simulation's own, and small; the decision whom to ask for which block is the daemon's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from tbshare.content import bits
from tbshare.content.manifest import Manifest
from tbshare.peers import plan
from tests.simulation.store import Store

SYNC_SECONDS = 0.2  # from the arrival of a block to the sync that makes it count


class Lacks(msgspec.Struct, tag="lacks"):
    """The sender lacks these; tell it what you hold of them, now and as it grows."""

    ids: list[bytes]


class Holds(msgspec.Struct, tag="holds"):
    """What the sender holds of an object, or a tree as it is."""

    id: bytes
    record: bytes
    runs: list[tuple[int, int]]


class Ask(msgspec.Struct, tag="ask"):
    """Send one block."""

    id: bytes
    number: int


class Bytes(msgspec.Struct, tag="bytes"):
    """One block; no token when it is not there."""

    id: bytes
    number: int
    token: bytes


Message = Lacks | Holds | Ask | Bytes
_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Message)


@dataclass
class Source:
    """One connected peer."""

    holds: dict[bytes, int] = field(default_factory=dict[bytes, int])
    lacks: set[bytes] = field(default_factory=set[bytes])
    asked: set[tuple[bytes, int]] = field(default_factory=set[tuple[bytes, int]])


class Fetching:
    """What one node lacks, and whom it has asked. `send` takes the node of a peer and a message."""

    def __init__(
        self,
        node: bytes,
        store: Store,
        send: Callable[[bytes, bytes], None],
        later: Callable[[float, Callable[[], None]], None],
        came: Callable[[], None],
    ) -> None:
        self._node, self._store, self._send, self._later, self._came = node, store, send, later, came
        self._sources: dict[bytes, Source] = {}
        self._lacks: dict[bytes, None] = {}
        self._syncing: set[bytes] = set()

    def want(self, contents: Iterable[bytes]) -> None:
        """Begin to fetch these objects and trees, and what is below the trees."""
        lacks = dict.fromkeys(self._store.missing(contents))
        new = [record_id for record_id in lacks if record_id not in self._lacks]
        self._lacks |= lacks
        if new:
            for peer in self._sources:
                self._tell(peer, Lacks(new))
            self._ask()

    @property
    def arriving(self) -> set[bytes]:
        """What is on its way."""
        return self._lacks.keys() | self._syncing

    def joined(self, peer: bytes) -> None:
        """A peer is connected."""
        self._sources[peer] = Source()
        if self._lacks:
            self._tell(peer, Lacks(list(self._lacks)))

    def left(self, peer: bytes) -> None:
        """A peer is gone; what it was asked for is asked of others."""
        self._sources.pop(peer, None)
        self._ask()

    def received(self, peer: bytes, data: bytes) -> None:
        """Take a message of a peer."""
        source = self._sources.get(peer)
        if source is None:
            return
        message: Message = _decoder.decode(data)
        match message:
            case Lacks(ids):
                source.lacks.update(ids)
                for record_id in ids:
                    self._offer(peer, record_id)
            case Holds(record_id, record, runs):
                self._heard(source, record_id, record, runs)
            case Ask(object_id, number):
                here = self._store.holds(object_id) >> number & 1
                token = self._store.objects.blocks[object_id, number] if here else b""
                self._tell(peer, Bytes(object_id, number, token))
            case Bytes(object_id, number, token):
                source.asked.discard((object_id, number))
                self._arrived(source, object_id, number, token)

    def _tell(self, peer: bytes, message: Message) -> None:
        self._send(peer, _encoder.encode(message))

    def _offer(self, peer: bytes, record_id: bytes) -> None:
        record = self._store.objects.records.get(record_id)
        if record is not None:
            self._tell(peer, Holds(record_id, record, bits.to_runs(self._store.holds(record_id))))

    def _heard(self, source: Source, record_id: bytes, record: bytes, runs: list[tuple[int, int]]) -> None:
        if self._store.add_record(record_id, record):
            self._grown(record_id)
        manifest = self._store.manifest(record_id)
        if manifest is None:  # a tree: now what is below it is known
            self._lacks.pop(record_id, None)
            self.want([record_id])
        else:
            source.holds[record_id] = bits.from_runs(runs, manifest.block_count)
            self._finish(manifest)
        self._ask()

    def _arrived(self, source: Source, object_id: bytes, number: int, token: bytes) -> None:
        if not token:
            source.holds[object_id] = source.holds.get(object_id, 0) & ~(1 << number)
        else:
            assert self._store.add_block(object_id, number, token), "a node gave a wrong block"
            if object_id not in self._syncing:
                self._syncing.add(object_id)
                self._later(SYNC_SECONDS, lambda: self._sync(object_id))
        self._ask()

    def _sync(self, object_id: bytes) -> None:
        self._syncing.discard(object_id)
        self._store.sync(object_id)
        self._grown(object_id)
        manifest = self._store.manifest(object_id)
        assert manifest is not None
        self._finish(manifest)

    def _finish(self, manifest: Manifest) -> None:
        if manifest.id in self._lacks and self._store.whole(manifest.id):
            del self._lacks[manifest.id]
            self._came()

    def _grown(self, record_id: bytes) -> None:
        for peer, source in self._sources.items():
            if record_id in source.lacks:
                self._offer(peer, record_id)

    def _ask(self) -> None:
        """Ask for what is neither here nor on its way."""
        for object_id in list(self._lacks):
            manifest = self._store.manifest(object_id)
            if manifest is None:
                continue
            written = bits.of(
                n for n in range(manifest.block_count) if (object_id, n) in self._store.objects.unsynced
            )
            asked = bits.of(n for source in self._sources.values() for o, n in source.asked if o == object_id)
            needed = bits.full(manifest.block_count) & ~self._store.holds(object_id) & ~written & ~asked
            views = [
                plan.PeerView(
                    peer=peer,
                    holds=source.holds[object_id],
                    in_flight_bytes=sum(self._length(*place) for place in source.asked),
                    in_flight_blocks=len(source.asked),
                )
                for peer, source in self._sources.items()
                if source.holds.get(object_id)
            ]
            if needed and views:
                for ask in plan.plan(self._node, needed, manifest.lengths, views):
                    self._sources[ask.peer].asked.add((object_id, ask.block))
                    self._tell(ask.peer, Ask(object_id, ask.block))

    def _length(self, object_id: bytes, number: int) -> int:
        manifest = self._store.manifest(object_id)
        assert manifest is not None
        return manifest.lengths[number]
