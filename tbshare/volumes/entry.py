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

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Protocol, cast, get_args

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tbshare.content.block import HASH_BYTES, named_hash
from tbshare.errors import FormatInvalid
from tbshare.volumes.ops import (
    CERTIFICATE_BYTES_MAX,
    FILE_OPS,
    HEADS_SEEN_MAX,
    HEARD_MAX,
    KIND_LETTERS_MAX,
    LINK_BYTES_MAX,
    OPTIONS_MAX,
    ORIGIN_LETTERS_MAX,
    PARENTS_MAX,
    SEEN_MAX,
    TARGETS_MAX,
    UNTIL_MAX,
    VOLUME_LETTERS_MAX,
    XATTRS_BYTES_MAX,
    XATTRS_MAX,
    AnyOp,
    At,
    ClusterOp,
    Contents,
    Describe,
    FileOp,
    Genesis,
    Hash,
    Heard,
    KnownOp,
    MemberAdd,
    MemberRemove,
    MemberRename,
    Mode,
    Move,
    Number,
    Op,
    Place,
    RefRemove,
    RefSet,
    Remove,
    Role,
    RoleSet,
    Save,
    SnapshotCreate,
    SnapshotRemove,
    UnknownOp,
    Until,
    VolumeCreate,
    VolumeSet,
)
from tbshare.wire import limits

__all__ = [
    "CERTIFICATE_BYTES_MAX",
    "ENTRY_CONTEXT",
    "FILE_OPS",
    "HEADS_SEEN_MAX",
    "HEARD_MAX",
    "KIND_LETTERS_MAX",
    "LAMPORT_MAX",
    "LEVEL",
    "LINK_BYTES_MAX",
    "NO_HASH",
    "OPS_MAX",
    "OPTIONS_MAX",
    "ORIGIN_LETTERS_MAX",
    "PARENTS_MAX",
    "SEEN_MAX",
    "SIGNATURE_BYTES",
    "SIGNATURE_CONTEXT",
    "TARGETS_MAX",
    "UNTIL_MAX",
    "VOLUME_LETTERS_MAX",
    "XATTRS_BYTES_MAX",
    "XATTRS_MAX",
    "AnyOp",
    "At",
    "ClusterOp",
    "Contents",
    "Describe",
    "Entry",
    "FileOp",
    "Genesis",
    "Hash",
    "Heard",
    "KnownOp",
    "MemberAdd",
    "MemberRemove",
    "MemberRename",
    "Mode",
    "Move",
    "Number",
    "Op",
    "Place",
    "RefRemove",
    "RefSet",
    "Remove",
    "Role",
    "RoleSet",
    "Save",
    "Signer",
    "SnapshotCreate",
    "SnapshotRemove",
    "UnknownOp",
    "Until",
    "VolumeCreate",
    "VolumeSet",
    "decode_entry",
    "decode_op",
    "encode_op",
    "make_entry",
    "node_of_certificate",
    "verify_entry",
]

LEVEL: Final = 1
LAMPORT_MAX: Final = (1 << 63) - 1
ENTRY_CONTEXT: Final = "tbshare 2026-11-23 log entry body"
SIGNATURE_CONTEXT: Final = b"tbshare 2026-11-23 log entry signature\n"
NO_HASH: Final = bytes(HASH_BYTES)  # `prev` of a log's first entry

OPS_MAX: Final = 8192  # in one entry; ENTRY_BYTES_MAX is met first by all but the smallest
SIGNATURE_BYTES: Final = 64


class Signer(Protocol):
    """Who writes entries: a node's identity."""

    @property
    def node(self) -> bytes:
        """The node's id: its 32-byte Ed25519 public key."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature over `data`."""
        ...


class Entry(msgspec.Struct, frozen=True):
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


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """The fields of a body before its ops."""

    level: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    node: Hash
    incarnation: Hash
    seq: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    prev: Hash
    lamport: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    time_ns: Number


class _Body(_Head, frozen=True, array_like=True):
    """What every entry is, whatever its ops mean."""

    ops: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=OPS_MAX)]


class _KnownBody(_Head, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What nearly every entry is: of this level, each op known. Decoded in one go."""

    ops: Annotated[list[KnownOp], msgspec.Meta(min_length=1, max_length=OPS_MAX)]


_encoder = msgspec.msgpack.Encoder()
_sealed_decoder = msgspec.msgpack.Decoder(_Sealed)
_body_decoder = msgspec.msgpack.Decoder(_Body)
_known_body_decoder = msgspec.msgpack.Decoder(_KnownBody)
_op_decoder = msgspec.msgpack.Decoder(KnownOp)
_any_decoder = msgspec.msgpack.Decoder()
_known_kinds = frozenset(str(kind.__struct_config__.tag) for kind in get_args(KnownOp))
_NOT_NAMES: Final = (b".", b"..")
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
    _check(op)
    return op


def _check(op: KnownOp) -> None:
    """Check what the types do not say; FormatInvalid when it does not hold."""
    check = _checks.get(op.__class__)
    if check is not None:
        check(op)


def _check_name(op: Place | Move) -> None:
    if op.name in _NOT_NAMES or b"/" in op.name or b"\0" in op.name:
        raise FormatInvalid(f"{op.name!r} is no name of a file")


def _check_save(op: Save) -> None:
    if len(op.content) != HASH_BYTES and op.contents != "link":
        raise FormatInvalid(f"a content id of {len(op.content)} bytes")


def _check_describe(op: Describe) -> None:
    if op.xattrs:
        size = sum([len(name) + len(value or b"") for name, value in op.xattrs.items()])
        if size > XATTRS_BYTES_MAX:
            raise FormatInvalid(f"extended attributes of {size} bytes; {XATTRS_BYTES_MAX} are allowed")


def _check_member(op: MemberAdd) -> None:
    if node_of_certificate(op.certificate) != op.node:
        raise FormatInvalid("a certificate belongs to another node than the op says")
    if len(op.cluster) not in (0, HASH_BYTES):
        raise FormatInvalid(f"a cluster id of {len(op.cluster)} bytes")


_checks: Final[dict[type, Callable[[Any], None]]] = {
    Place: _check_name, Move: _check_name, Save: _check_save, Describe: _check_describe, MemberAdd: _check_member
}  # fmt: skip


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
    named = isinstance(volume, str) and len(volume) <= VOLUME_LETTERS_MAX
    named = named or (isinstance(volume, int) and not isinstance(volume, bool))
    return UnknownOp(raw=data, kind=kind, volume=cast("str | int", volume) if named else "")


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
    previous: "Entry | At | None",
    lamport: int,
    time_ns: int,
    ops: Sequence[AnyOp],
    raw_ops: Sequence[bytes] = (),
) -> Entry:
    """Return a signed entry after `previous` (None starts the log); FormatInvalid when it would be too large.

    `raw_ops` are the `encode_op` of all `ops`, where the caller has them.
    """
    raw_ops = raw_ops or [encode_op(op) for op in ops]
    body = _Body(
        level=LEVEL,
        node=signer.node,
        incarnation=incarnation,
        seq=previous.seq + 1 if previous else 1,
        prev=previous.hash if previous else NO_HASH,
        lamport=lamport,
        time_ns=max(time_ns, 0),
        ops=[msgspec.Raw(raw) for raw in raw_ops],
    )
    encoded_body = _encoder.encode(body)
    hash_ = named_hash(ENTRY_CONTEXT, [encoded_body])
    sealed = _Sealed(body=encoded_body, signature=signer.sign(SIGNATURE_CONTEXT + hash_))
    encoded = _encoder.encode(sealed)
    if not ops or len(ops) > OPS_MAX or len(encoded) > limits.ENTRY_BYTES_MAX:
        raise FormatInvalid(f"{len(ops)} ops of {len(encoded)} bytes do not make one log entry")
    if not 1 <= lamport <= LAMPORT_MAX or body.time_ns > LAMPORT_MAX:
        raise FormatInvalid("a log entry whose time is out of bounds")
    return _entry(sealed, body, tuple(ops), hash_, encoded)


def decode_entry(encoded: bytes) -> Entry:
    """Return the entry these bytes are; FormatInvalid when they are none. `verify_entry` checks who wrote it."""
    if len(encoded) > limits.ENTRY_BYTES_MAX:
        raise FormatInvalid(f"a log entry of {len(encoded)} bytes; {limits.ENTRY_BYTES_MAX} are allowed")
    try:
        sealed = _sealed_decoder.decode(encoded)
    except _UNREADABLE as error:
        raise FormatInvalid(f"not a log entry: {error}") from error
    if _encoder.encode(sealed) != encoded:
        raise FormatInvalid("a log entry is not in its one encoding")
    body, ops = _read_at_once(sealed.body) or _read_one_by_one(sealed.body)
    if (body.seq == 1) != (body.prev == NO_HASH):
        raise FormatInvalid("only the first entry of a log has none before it")
    return _entry(sealed, body, ops, named_hash(ENTRY_CONTEXT, [sealed.body]), encoded)


def _read_at_once(data: bytes) -> tuple[_Head, tuple[AnyOp, ...]] | None:
    """Return a body of this level whose ops are all known and in their one encoding; None for any other."""
    try:
        body = _known_body_decoder.decode(data)
        if body.level > LEVEL or _encoder.encode(body) != data:
            return None
    except _UNREADABLE:
        return None
    for op in body.ops:
        _check(op)
    return body, tuple(body.ops)


def _read_one_by_one(data: bytes) -> tuple[_Head, tuple[AnyOp, ...]]:
    """Return any body, with what a newer version wrote as it is; FormatInvalid says what is wrong with it."""
    try:
        body = _body_decoder.decode(data)
    except _UNREADABLE as error:
        raise FormatInvalid(f"not a log entry: {error}") from error
    if body.level > LEVEL:
        _canonical(data)  # a newer level may have fields behind ours
    elif _encoder.encode(body) != data:
        raise FormatInvalid("the body of a log entry is not in its one encoding")
    return body, tuple([decode_op(raw, body.level) for raw in body.ops])


def _entry(sealed: _Sealed, body: _Head, ops: tuple[AnyOp, ...], hash_: bytes, encoded: bytes) -> Entry:
    return Entry(
        level=body.level,
        node=body.node,
        incarnation=body.incarnation,
        seq=body.seq,
        prev=body.prev,
        lamport=body.lamport,
        time_ns=body.time_ns,
        ops=ops,
        hash=hash_,
        signature=sealed.signature,
        encoded=encoded,
    )


def verify_entry(entry: Entry) -> None:
    """Check the signature; FormatInvalid when the entry is not from the node it names."""
    try:
        _key_of(entry.node).verify(entry.signature, SIGNATURE_CONTEXT + entry.hash)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise FormatInvalid(f"an entry was not signed by node {entry.node[:4].hex()}, which it names") from error


@lru_cache(maxsize=1024)
def _key_of(node: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(node)


def node_of_certificate(certificate: bytes) -> bytes:
    """Return the id of the node a certificate (DER) belongs to; FormatInvalid when it is none of ours."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise FormatInvalid(f"not a certificate: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise FormatInvalid("a certificate whose key is not Ed25519")
    return key.public_bytes_raw()
