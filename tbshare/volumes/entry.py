"""Log entries: signed batches of ops, and the one encoding they have.

    entry     = msgpack [body, signature]                       body and signature are byte strings
    body      = msgpack [level, node, incarnation, seq, prev, lamport, time_ns, [op, op, ...]]
    hash      = BLAKE3-derive-key(ENTRY_CONTEXT, body)
    signature = Ed25519 by `node` over SIGNATURE_CONTEXT || hash

A log is (node, incarnation): the key that signs, and 32 random bytes drawn when the store starts to write. `seq`
counts from 1 and `prev` is the hash before it, so that a branch shows. `lamport` is above everything the writer
had seen; `time_ns` is for people, nothing is ordered by it.

An op is a map with the key `kind`. Fields that have their default are left out, so that a field added later
changes no old entry. An op whose kind this version does not know, or that a newer level wrote with more fields, is
kept byte for byte as `UnknownOp`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol, cast, get_args

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tbshare.content.block import HASH_BYTES, named_hash
from tbshare.content.ref import NAME_PATTERN, PART_PATTERN, REV_PATTERN
from tbshare.errors import FormatInvalid
from tbshare.wire import limits

LEVEL: Final = 1
ENTRY_CONTEXT: Final = "tbshare 2026-11-23 log entry body"
SIGNATURE_CONTEXT: Final = b"tbshare 2026-11-23 log entry signature\n"
NO_HASH: Final = bytes(HASH_BYTES)  # `prev` of a log's first entry

OPS_MAX: Final = 8192  # in one entry; ENTRY_BYTES_MAX is met first by all but the smallest
CERTIFICATE_BYTES_MAX: Final = 2048  # ours are 300
TARGETS_MAX: Final = 256  # nodes that one ref is for
SEEN_MAX: Final = 4096  # versions that one RefRemove removes
UNTIL_MAX: Final = 1024  # logs of one node
OPTIONS_MAX: Final = 64
ORIGIN_LETTERS_MAX: Final = 1024
KIND_LETTERS_MAX: Final = 64
VOLUME_LETTERS_MAX: Final = 255
PARENTS_MAX: Final = 64  # heads that one save joins
HEADS_SEEN_MAX: Final = 1024  # versions that one removal names
XATTRS_MAX: Final = 256  # that one op sets
XATTRS_BYTES_MAX: Final = 64 * 1024
LINK_BYTES_MAX: Final = 4096
SIGNATURE_BYTES: Final = 64

Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Part = Annotated[str, msgspec.Meta(pattern=PART_PATTERN)]
RefName = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Label = Annotated[str, msgspec.Meta(max_length=255)]
Option = (
    Annotated[str, msgspec.Meta(max_length=1024)] | bool | Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
)
Id = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]  # volumes/ids.py
Below = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # a directory; 0 is the volume's root
FileName = Annotated[bytes, msgspec.Meta(min_length=1, max_length=255)]
Role = Literal["admin", "publish", "write", "read"]
Contents = Literal["file", "bundle", "link"]
Mode = Literal["models", "media", "owner"]


class Op(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, forbid_unknown_fields=True):
    """Base of all ops. Fields added later need one of the defaults "", 0, False, b"" or ()."""


class Genesis(Op, frozen=True, tag="genesis"):
    """Starts a cluster; the hash of the entry it stands in is the cluster's id."""

    name: Part
    nonce: Hash


class MemberAdd(Op, frozen=True, tag="member-add"):
    """Makes a node a member. `cluster` is empty only in the entry of the genesis itself."""

    node: Hash
    certificate: Annotated[bytes, msgspec.Meta(min_length=1, max_length=CERTIFICATE_BYTES_MAX)]
    name: Part
    role: Role
    cluster: Annotated[bytes, msgspec.Meta(max_length=HASH_BYTES)] = b""


class Until(msgspec.Struct, frozen=True, array_like=True):
    """The last entry of one log of a removed node that still counts."""

    incarnation: Hash
    seq: Number
    hash: Hash


class MemberRemove(Op, frozen=True, tag="member-remove"):
    """Removes a node for good; of what it wrote, the entries up to `until` count."""

    node: Hash
    cluster: Hash
    until: Annotated[tuple[Until, ...], msgspec.Meta(max_length=UNTIL_MAX)] = ()


class MemberRename(Op, frozen=True, tag="member-rename"):
    """Gives a member another name."""

    node: Hash
    cluster: Hash
    name: Part


class VolumeCreate(Op, frozen=True, tag="volume-create"):
    """Makes a volume; of two with one name, the first in the order of ops holds."""

    name: Part
    mode: Mode
    options: Annotated[dict[Part, Option], msgspec.Meta(max_length=OPTIONS_MAX)] = {}


class RefSet(Op, frozen=True, tag="ref-set"):
    """Publishes a tree as version `rev` of a ref; an empty `to` means every node, by its accept rule."""

    volume: Part
    name: RefName
    rev: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    tree: Hash
    size_bytes: Number
    files: Number
    to: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=TARGETS_MAX)] = ()
    label: Label = ""  # a hub revision, for example; `name@label` finds the version
    origin: Annotated[str, msgspec.Meta(max_length=ORIGIN_LETTERS_MAX)] = ""


class RefRemove(Op, frozen=True, tag="ref-remove"):
    """Removes versions of a ref: those published by the entries `seen`, so that a push not yet seen survives.

    An empty `rev` means every version in them, else that one.
    """

    volume: Part
    name: RefName
    seen: Annotated[tuple[Hash, ...], msgspec.Meta(min_length=1, max_length=SEEN_MAX)]
    rev: Annotated[str, msgspec.Meta(pattern=REV_PATTERN)] | Literal[""] = ""


class VolumeSet(Op, frozen=True, tag="volume-set"):
    """Gives a volume these options; of two for one option, the later in the order of ops holds."""

    volume: Id
    options: Annotated[dict[Part, Option], msgspec.Meta(min_length=1, max_length=OPTIONS_MAX)]


class RoleSet(Op, frozen=True, tag="role-set"):
    """Gives a node a role in one volume; an empty one returns to its role in the cluster."""

    volume: Id
    node: Hash
    role: Role | Literal["none", ""] = ""


class At(msgspec.Struct, frozen=True, array_like=True):
    """A place in a log."""

    node: Hash
    incarnation: Hash
    seq: Number
    hash: Hash


class SnapshotCreate(Op, frozen=True, tag="snapshot-create"):
    """Names the state of a volume at these places of the logs."""

    volume: Id
    name: Part
    heads: Annotated[tuple[At, ...], msgspec.Meta(min_length=1, max_length=UNTIL_MAX)]


class SnapshotRemove(Op, frozen=True, tag="snapshot-remove"):
    """Forgets the snapshot that the entry of this hash made."""

    volume: Id
    name: Part
    entry: Hash


class Place(Op, frozen=True, tag="place"):
    """Puts the name `id` of a file into a directory, or moves it there; `place` identifies this placing.

    A hard link is another `id` for the same `file`.
    """

    volume: Id
    id: Id
    place: Id
    file: Id
    name: FileName
    parent: Below = 0


class Move(Op, frozen=True, tag="move"):
    """Puts the directory `id` into another, or moves it there; skipped by the fold where it would make a cycle."""

    volume: Id
    id: Id
    place: Id
    name: FileName
    parent: Below = 0


class Remove(Op, frozen=True, tag="remove"):
    """Takes away the name, or the directory, that was placed by `place`; `seen` are the heads its author knew."""

    volume: Id
    id: Id
    place: Id
    seen: Annotated[tuple[Id, ...], msgspec.Meta(max_length=HEADS_SEEN_MAX)] = ()
    directory: bool = False


class Save(Op, frozen=True, tag="save"):
    """Adds a version to a file.

    `content` is an object's id for a file, a tree's for a bundle, and where it points for a symbolic link.
    """

    volume: Id
    file: Id
    version: Id
    content: Annotated[bytes, msgspec.Meta(min_length=1, max_length=LINK_BYTES_MAX)]
    parents: Annotated[tuple[Id, ...], msgspec.Meta(max_length=PARENTS_MAX)] = ()
    size: Number = 0
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] = 0
    contents: Contents | Literal[""] = ""  # empty means "file"
    epoch: Number = 0  # of the lease it was written under; 0 without one


class Describe(Op, frozen=True, tag="describe"):
    """Sets attributes of a file, or of a directory; what is None or not named stays. The last one wins, each."""

    volume: Id
    id: Below  # of a file or a directory; the root is 0
    directory: bool = False
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)] | None = None
    uid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None = None
    gid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None = None
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    birthtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    xattrs: Annotated[dict[FileName, bytes | None], msgspec.Meta(max_length=XATTRS_MAX)] = {}


@dataclass(frozen=True, slots=True)
class UnknownOp:
    """An op of a newer version, kept byte for byte; `volume` is empty when it names none."""

    raw: bytes
    kind: str
    volume: str


ClusterOp = (
    Genesis
    | MemberAdd
    | MemberRemove
    | MemberRename
    | VolumeCreate
    | VolumeSet
    | RoleSet
    | SnapshotCreate
    | SnapshotRemove
    | RefSet
    | RefRemove
)
FileOp = Place | Move | Remove | Save | Describe  # of one volume's namespace: volumes/namespace.py
KnownOp = ClusterOp | FileOp
AnyOp = KnownOp | UnknownOp


class Signer(Protocol):
    """Who writes entries: a node's identity."""

    @property
    def node(self) -> bytes:
        """The node's id: its 32-byte Ed25519 public key."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature over `data`."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One signed batch of ops; `encoded` is all of it as stored and sent."""

    level: int
    node: bytes
    incarnation: bytes
    seq: int
    prev: bytes
    lamport: int
    time_ns: int
    ops: tuple[AnyOp, ...]
    hash: bytes
    signature: bytes
    encoded: bytes

    def order(self) -> tuple[int, bytes, bytes, int, bytes]:
        """Return the sort key of the one order in which all nodes fold entries."""
        return self.lamport, self.node, self.incarnation, self.seq, self.hash

    def stamp(self) -> bytes:
        """Return what the ops of this entry are ordered by in a namespace: 32 bytes, before the op's own two.

        Lamport time, then the log's node, then the entry's hash: no wall clock, and no two entries alike.
        """
        return self.lamport.to_bytes(8, "big") + self.node[:8] + self.hash[:16]


class _Sealed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    body: bytes
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class _Body(msgspec.Struct, frozen=True, array_like=True):
    level: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    node: Hash
    incarnation: Hash
    seq: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    prev: Hash
    lamport: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    time_ns: Number
    ops: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=OPS_MAX)]


_encoder = msgspec.msgpack.Encoder()
_sealed_decoder = msgspec.msgpack.Decoder(_Sealed)
_body_decoder = msgspec.msgpack.Decoder(_Body)
_op_decoder = msgspec.msgpack.Decoder(KnownOp)
_any_decoder = msgspec.msgpack.Decoder()
_known_kinds = frozenset(str(kind.__struct_config__.tag) for kind in get_args(KnownOp))
_UNREADABLE = (msgspec.DecodeError, RecursionError, OverflowError, ValueError, TypeError, msgspec.EncodeError)


def encode_op(op: AnyOp) -> bytes:
    """Return the one encoding of an op; FormatInvalid when another node would not accept it."""
    if isinstance(op, UnknownOp):
        return op.raw
    try:
        raw = _encoder.encode(op)
    except _UNREADABLE as error:
        raise FormatInvalid(f"an op cannot be encoded: {error}") from error
    decode_op(raw, LEVEL)
    return raw


def decode_op(raw: bytes | msgspec.Raw, level: int) -> AnyOp:
    """Return the op; FormatInvalid when it is malformed for the `level` it was written with."""
    data = bytes(raw)
    try:
        op: KnownOp = _op_decoder.decode(data)
    except _UNREADABLE as error:
        return _unknown_op(data, level, error)
    if _encoder.encode(op) != data:
        raise FormatInvalid("an op is not in its one encoding")
    if isinstance(op, MemberAdd):
        if node_of_certificate(op.certificate) != op.node:
            raise FormatInvalid("a certificate belongs to another node than the op says")
        if len(op.cluster) not in (0, HASH_BYTES):
            raise FormatInvalid(f"a cluster id of {len(op.cluster)} bytes")
    return op


def _unknown_op(data: bytes, level: int, error: Exception) -> UnknownOp:
    """Return what cannot be read as an op we know, if a newer version may have written it."""
    fields = _canonical(data)
    if not isinstance(fields, dict):
        raise FormatInvalid("an op is not a map")
    values = cast("dict[object, object]", fields)
    kind, volume = values.get("kind"), values.get("volume", "")
    if not isinstance(kind, str) or not 0 < len(kind) <= KIND_LETTERS_MAX:
        raise FormatInvalid("an op has no kind")
    if kind in _known_kinds and level <= LEVEL:
        raise FormatInvalid(f"a malformed op of kind {kind}: {error}") from error
    known_volume = isinstance(volume, str) and len(volume) <= VOLUME_LETTERS_MAX
    return UnknownOp(raw=data, kind=kind, volume=cast("str", volume) if known_volume else "")


def _canonical(data: bytes) -> object:
    """Return the value of msgpack bytes that are in their shortest form, else FormatInvalid."""
    try:
        value: object = _any_decoder.decode(data)
        if _encoder.encode(value) == data:
            return value
    except _UNREADABLE as error:
        raise FormatInvalid(f"not msgpack: {error}") from error
    raise FormatInvalid("msgpack that is not in its shortest form")


def make_entry(
    signer: Signer,
    *,
    incarnation: bytes,
    previous: Entry | None,
    lamport: int,
    time_ns: int,
    ops: Sequence[AnyOp],
) -> Entry:
    """Return a signed entry after `previous` (None starts the log); FormatInvalid when it would be too large."""
    body = _encoder.encode(
        _Body(
            level=LEVEL,
            node=signer.node,
            incarnation=incarnation,
            seq=previous.seq + 1 if previous else 1,
            prev=previous.hash if previous else NO_HASH,
            lamport=lamport,
            time_ns=max(time_ns, 0),
            ops=[msgspec.Raw(encode_op(op)) for op in ops],
        )
    )
    signature = signer.sign(SIGNATURE_CONTEXT + named_hash(ENTRY_CONTEXT, [body]))
    return decode_entry(_encoder.encode(_Sealed(body=body, signature=signature)))


def decode_entry(encoded: bytes) -> Entry:
    """Return the entry these bytes are; FormatInvalid when they are none. `verify_entry` checks who wrote it."""
    if len(encoded) > limits.ENTRY_BYTES_MAX:
        raise FormatInvalid(f"a log entry of {len(encoded)} bytes; {limits.ENTRY_BYTES_MAX} are allowed")
    try:
        sealed = _sealed_decoder.decode(encoded)
        body = _body_decoder.decode(sealed.body)
    except _UNREADABLE as error:
        raise FormatInvalid(f"not a log entry: {error}") from error
    if _encoder.encode(sealed) != encoded:
        raise FormatInvalid("a log entry is not in its one encoding")
    if body.level > LEVEL:
        _canonical(sealed.body)  # a newer level may have fields behind ours
    elif _encoder.encode(body) != sealed.body:
        raise FormatInvalid("the body of a log entry is not in its one encoding")
    if (body.seq == 1) != (body.prev == NO_HASH):
        raise FormatInvalid("only the first entry of a log has none before it")
    return Entry(
        level=body.level,
        node=body.node,
        incarnation=body.incarnation,
        seq=body.seq,
        prev=body.prev,
        lamport=body.lamport,
        time_ns=body.time_ns,
        ops=tuple([decode_op(raw, body.level) for raw in body.ops]),
        hash=named_hash(ENTRY_CONTEXT, [sealed.body]),
        signature=sealed.signature,
        encoded=encoded,
    )


def verify_entry(entry: Entry) -> None:
    """Check the signature; FormatInvalid when the entry is not from the node it names."""
    try:
        key = Ed25519PublicKey.from_public_bytes(entry.node)
        key.verify(entry.signature, SIGNATURE_CONTEXT + entry.hash)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise FormatInvalid(f"an entry was not signed by node {entry.node[:4].hex()}, which it names") from error


def node_of_certificate(certificate: bytes) -> bytes:
    """Return the id of the node a certificate (DER) belongs to; FormatInvalid when it is none of ours."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FormatInvalid(f"not a certificate: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise FormatInvalid("a certificate whose key is not Ed25519")
    return key.public_bytes_raw()
