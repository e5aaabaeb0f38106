"""A struct for each message of the control session; `encode` and `decode` are total.

Ids are 32 raw bytes, node ids are Ed25519 public keys, sizes are bytes, sets of block indexes are runs
(start, length) as in `content.bits`.
"""

from typing import Annotated, Literal

import msgspec

from tbshare.errors import PeerError
from tbshare.wire import limits

Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Runs = list[tuple[Number, Number]]
Version = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]  # negative: bytes of a large attribute
Versions = Annotated[list[tuple[Number, Version]], msgspec.Meta(max_length=limits.VERSIONS_MAX)]  # (file, version)
LeaseKind = Literal["file", "bundle", "directory"]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=False, tag_field="t"):
    """Base of all messages. Fields added later need defaults: N talks to N-1."""


class Hello(Message, frozen=True, tag="hello"):
    """First message of either side."""

    level: Number
    node: Hash
    name: Name
    version: Name
    cluster: Hash
    listen_port: Number
    addresses: list[str] = []  # where this node can be dialled, "host:port"
    store_free_bytes: Number = 0
    accept: str = "all"  # all | on-demand | none


class Ping(Message, frozen=True, tag="ping"):
    """Heartbeat; answered by Pong with the same number."""

    number: Number


class Pong(Message, frozen=True, tag="pong"):
    """Answer to Ping."""

    number: Number


class Head(msgspec.Struct, frozen=True):
    """The last entry of one branch of one log."""

    node: Hash
    incarnation: Hash
    seq: Number
    hash: Hash


class Vector(Message, frozen=True, tag="vector"):
    """What the sender's logs hold: the heads of every branch it knows."""

    heads: list[Head]


class Entries(Message, frozen=True, tag="entries"):
    """Signed log entries the receiver lacks, oldest first."""

    entries: list[bytes]


class Acknowledged(Message, frozen=True, tag="acknowledged"):
    """The sender has folded and synced everything up to these heads."""

    heads: list[Head]


class RecordsWanted(Message, frozen=True, tag="records-wanted"):
    """Ask for manifests or trees by id, of what the sender may read of `tree`: a ref's, or as in its Want."""

    request: Number
    ids: list[Hash]
    tree: Annotated[bytes, msgspec.Meta(max_length=32)] = b""  # empty from level 1: then they may be of any ref


class Record(msgspec.Struct, frozen=True):
    """One part of a manifest or tree: bytes [offset, offset+len(data)) of `total`."""

    id: Hash
    offset: Number
    total: Number
    data: bytes


class Records(Message, frozen=True, tag="records"):
    """Answer to RecordsWanted, in one or more messages; `missing` are not here."""

    request: Number
    parts: list[Record]
    missing: list[Hash] = []
    done: bool = False


class Want(Message, frozen=True, tag="want"):
    """The sender is fetching this tree; tell it what you hold, now and as it grows.

    With `files` it is fetching these versions of files, and `tree` is the name it gives to them: what they consist
    of the receiver looks up for itself.
    """

    tree: Hash
    volume: Name
    volume_id: Number = 0
    files: Versions = []


class Unwant(Message, frozen=True, tag="unwant"):
    """The sender no longer fetches this tree."""

    tree: Hash


class Holding(msgspec.Struct, frozen=True):
    """Blocks of one object, by index."""

    object: Hash
    blocks: Runs


class Have(Message, frozen=True, tag="have"):
    """Blocks the sender holds and has verified, of objects of a tree the receiver wants.

    `whole` means all objects of the tree, all blocks.
    """

    tree: Hash
    whole: bool = False
    holdings: list[Holding] = []


class LaneOpen(Message, frozen=True, tag="lane-open"):
    """The fetcher asks for a lane on which the provider will send payload.

    `urgent`: what somebody waits for is asked for on it, and goes before what is sent on all other lanes.
    """

    lane: Number
    sealed: bool
    urgent: bool = False  # from level 3


class LaneReady(Message, frozen=True, tag="lane-ready"):
    """The lane may be dialled once with this token; `key` seals payload towards the fetcher."""

    lane: Number  # as in LaneOpen
    admission: Number  # what the greeting on the lane says; the provider's own numbering
    token: Hash
    key: bytes  # 32 bytes, or empty when not sealed
    port: Number


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """One block asked for; `request` numbers it on its lane.

    With `leaves` it is a run of so many of its leaves, sent behind the block's row of leaf hashes.
    """

    request: Number
    object: Hash
    index: Number
    first_leaf: Number = 0  # this and the next from level 3
    leaves: Number = 0  # 0: the whole block


class Fetch(Message, frozen=True, tag="fetch"):
    """Ask for blocks on a lane. The provider checks volume, tree and the asker's role."""

    lane: Number
    tree: Hash
    blocks: list[Wanted]


NO_SUCH_LANE = "no such lane"  # a reason of Refused that says nothing about the blocks


class Refused(Message, frozen=True, tag="refused"):
    """These requests will not be answered on the lane."""

    lane: Number
    requests: list[Number]
    reason: str


class Cancel(Message, frozen=True, tag="cancel"):
    """The fetcher no longer waits for these requests; the provider may drop what is queued."""

    lane: Number
    requests: list[Number]


class Source(msgspec.Struct, frozen=True):
    """From whom bytes come, and how fast."""

    node: Hash
    bytes: Number
    rate: float  # bytes per second, now


class Progress(Message, frozen=True, tag="progress"):
    """How far the sender is with a tree; for whoever watches the push."""

    tree: Hash
    bytes_total: Number
    bytes_present: Number
    bytes_moved: Number
    bytes_reused: Number
    sources: list[Source] = []
    state: str = "fetching"  # waiting | fetching | durable | failed | declined
    reason: str = ""


class Introduced(msgspec.Struct, frozen=True):
    """Where a node can be dialled."""

    node: Hash
    addresses: list[str]


class Introduce(Message, frozen=True, tag="introduce"):
    """Addresses of other members, as the sender knows them."""

    nodes: list[Introduced]


class Keeps(Message, frozen=True, tag="keeps"):
    """Trees of refs that the sender holds whole and synced, and those it no longer does."""

    trees: list[Hash]
    gone: list[Hash] = []


class Corrupt(Message, frozen=True, tag="corrupt"):
    """A block came from the receiver of this message with other bytes than its id says; it should verify it."""

    object: Hash
    index: Number


class Ask(Message, frozen=True, tag="ask"):
    """Ask which of these versions the receiver holds, whole and synced. From level 2 on, as those that follow."""

    request: Number
    volume_id: Number
    files: Versions


class Held(Message, frozen=True, tag="held"):
    """Answer to Ask: which of the versions, as places in its list."""

    request: Number
    held: Runs


class Grown(Message, frozen=True, tag="grown"):
    """The sender holds more versions of a volume than before: who lacks some may ask again."""

    volume_id: Number


class Offer(Message, frozen=True, tag="offer"):
    """Ask the receiver to take copies of versions and of trees of refs: the sender is to be unplugged."""

    volume_id: Number
    files: Versions = []
    trees: Annotated[list[Hash], msgspec.Meta(max_length=limits.VERSIONS_MAX)] = []


class Draining(Message, frozen=True, tag="draining"):
    """Whether the sender is to be unplugged: then its copies count for nothing, and none are given to it."""

    on: bool


class Leased(msgspec.Struct, frozen=True):
    """A lease: what it is on, and the directories above that."""

    volume_id: Number
    id: Number
    kind: LeaseKind
    epoch: Number
    ancestors: Annotated[list[Number], msgspec.Meta(max_length=limits.ANCESTORS_MAX)] = []


class LeaseAsk(Message, frozen=True, tag="lease-ask"):
    """Ask for a lease; with `renews`, for more time for one that the sender holds."""

    request: Number
    lease: Leased
    renews: bool = False


class LeaseAnswer(Message, frozen=True, tag="lease-answer"):
    """Answer to LeaseAsk: given while `epoch` is not 0; else who holds it, or when to ask again, or neither."""

    request: Number
    epoch: Number = 0
    holder: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    wait_milliseconds: Number = 0
    reason: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class LeaseRelease(Message, frozen=True, tag="lease-release"):
    """The sender no longer needs a lease that the receiver gave it."""

    volume_id: Number
    id: Number
    epoch: Number


class LeaseNews(Message, frozen=True, tag="lease-news"):
    """Leases the sender holds, said again while it does: with `whole` before any others; `ended` are over."""

    leases: list[Leased] = []
    ended: list[tuple[Number, Number]] = []
    whole: bool = False


AnyMessage = (
    Hello
    | Ping
    | Pong
    | Vector
    | Entries
    | Acknowledged
    | RecordsWanted
    | Records
    | Want
    | Unwant
    | Have
    | LaneOpen
    | LaneReady
    | Fetch
    | Refused
    | Cancel
    | Progress
    | Introduce
    | Keeps
    | Corrupt
    | Ask
    | Held
    | Grown
    | Offer
    | Draining
    | LeaseAsk
    | LeaseAnswer
    | LeaseRelease
    | LeaseNews
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """Return the message's bytes, without the envelope."""
    data = _encoder.encode(message)
    assert len(data) <= limits.ENVELOPE_BYTES_MAX, f"{type(message).__name__} too large"
    return data


def decode(data: bytes | bytearray | memoryview) -> AnyMessage:
    """Return the message; PeerError when the bytes are none."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, OverflowError, ValueError) as error:
        raise PeerError(f"a message from the peer cannot be read: {error}") from error
