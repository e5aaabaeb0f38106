from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tbshare.content.block import named_hash
from tbshare.errors import FormatInvalid
from tbshare.peers.identity import certificate_of
from tbshare.volumes.entry import (
    ENTRY_CONTEXT,
    LEVEL,
    NO_HASH,
    SIGNATURE_CONTEXT,
    AnyOp,
    At,
    Describe,
    Entry,
    Genesis,
    Heard,
    MemberAdd,
    MemberRemove,
    MemberRename,
    Move,
    Place,
    RefRemove,
    RefSet,
    Remove,
    RoleSet,
    Save,
    SnapshotCreate,
    SnapshotRemove,
    UnknownOp,
    Until,
    VolumeCreate,
    VolumeSet,
    decode_entry,
    decode_op,
    encode_op,
    make_entry,
    node_of_certificate,
    verify_entry,
)
from tbshare.wire import limits


@dataclass(frozen=True)
class Key:
    key: Ed25519PrivateKey

    @property
    def node(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def certificate(self) -> bytes:
        return certificate_of(self.key)

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)


ANNA = Key(Ed25519PrivateKey.from_private_bytes(b"a" * 32))
BERT = Key(Ed25519PrivateKey.from_private_bytes(b"b" * 32))
INCARNATION = b"i" * 32

hashes = st.binary(min_size=32, max_size=32)
numbers = st.integers(0, (1 << 63) - 1)
ids = st.integers(1, (1 << 63) - 1)
file_names = st.binary(min_size=1, max_size=20).filter(
    lambda name: name not in {b".", b".."} and b"/" not in name and b"\0" not in name
)
parts = st.from_regex(r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,12}\Z")
names = st.one_of(parts, st.tuples(parts, parts).map("/".join))
options = st.dictionaries(parts, st.one_of(st.text(max_size=20), st.booleans(), numbers), max_size=4)
ops: st.SearchStrategy[AnyOp] = st.one_of(
    st.builds(Genesis, name=parts, nonce=hashes),
    st.builds(
        MemberAdd,
        node=st.just(BERT.node),
        certificate=st.just(BERT.certificate),
        name=parts,
        role=st.sampled_from(["admin", "publish", "write", "read"]),
        cluster=st.one_of(st.just(b""), hashes),
    ),
    st.builds(
        MemberRemove,
        node=hashes,
        cluster=hashes,
        until=st.lists(st.builds(Until, hashes, numbers, hashes), max_size=3).map(tuple),
    ),
    st.builds(MemberRename, node=hashes, cluster=hashes, name=parts),
    st.builds(VolumeCreate, name=parts, mode=st.sampled_from(["models", "media", "owner"]), options=options),
    st.builds(
        RefSet,
        volume=parts,
        name=names,
        rev=st.integers(1, (1 << 31) - 1),
        tree=hashes,
        size_bytes=numbers,
        files=numbers,
        to=st.lists(hashes, max_size=3).map(tuple),
        label=st.text(max_size=40),
        origin=st.text(max_size=40),
    ),
    st.builds(
        RefRemove,
        volume=parts,
        name=names,
        seen=st.lists(hashes, min_size=1, max_size=3).map(tuple),
        rev=st.one_of(st.just(""), parts),
    ),
    st.builds(VolumeSet, volume=ids, options=options.filter(bool)),
    st.builds(RoleSet, volume=ids, node=hashes, role=st.sampled_from(["admin", "read", "none", ""])),
    st.builds(Heard, entries=st.lists(hashes, min_size=1, max_size=3).map(tuple)),
    st.builds(
        SnapshotCreate,
        volume=ids,
        name=parts,
        heads=st.lists(st.builds(At, hashes, hashes, numbers, hashes), min_size=1, max_size=3).map(tuple),
    ),
    st.builds(SnapshotRemove, volume=ids, name=parts, entry=hashes),
    st.builds(Place, volume=ids, id=ids, place=ids, file=ids, name=file_names, parent=numbers),
    st.builds(Move, volume=ids, id=ids, place=ids, name=file_names, parent=numbers),
    st.builds(
        Remove,
        volume=ids,
        id=ids,
        place=ids,
        seen=st.lists(ids, max_size=3).map(tuple),
        directory=st.booleans(),
    ),
    st.builds(
        Save,
        volume=ids,
        file=ids,
        version=ids,
        content=hashes,
        parents=st.lists(ids, max_size=3).map(tuple),
        size=numbers,
        mtime_ns=st.integers(-(1 << 63), (1 << 63) - 1),
        contents=st.sampled_from(["", "file", "bundle", "link"]),
        epoch=numbers,
    ),
    st.builds(
        Describe,
        volume=ids,
        id=numbers,
        directory=st.booleans(),
        mode=st.none() | st.integers(0, 0o7777),
        uid=st.none() | st.integers(0, (1 << 32) - 1),
        mtime_ns=st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        xattrs=st.dictionaries(file_names, st.none() | st.binary(max_size=20), max_size=3),
    ),
    st.just(
        UnknownOp(msgspec.msgpack.encode({"kind": "lease", "volume": "media", "x": [1, {}]}), "lease", "media")
    ),
)
batches = st.lists(ops, min_size=1, max_size=4)


def entry_of(batch: list[AnyOp], *, lamport: int = 1, previous: Entry | None = None) -> Entry:
    return make_entry(ANNA, incarnation=INCARNATION, previous=previous, lamport=lamport, time_ns=7, ops=batch)


RENAME = MemberRename(node=b"n" * 32, cluster=b"c" * 32, name="studio")


@given(batches, st.integers(1, (1 << 63) - 1))
def test_an_entry_has_one_encoding_and_comes_back_whole(batch: list[AnyOp], lamport: int) -> None:
    entry = entry_of(batch, lamport=lamport)
    again = decode_entry(entry.encoded)
    assert again == entry
    assert again.ops == tuple(batch)
    assert (again.node, again.seq, again.prev, again.lamport) == (ANNA.node, 1, NO_HASH, lamport)
    verify_entry(again)


@given(ops)
def test_an_op_has_one_encoding(op: AnyOp) -> None:
    raw = encode_op(op)
    assert decode_op(raw, LEVEL) == op
    assert encode_op(decode_op(raw, LEVEL)) == raw


@given(st.binary(max_size=400))
@example(b"\x92" * 1000)
@example(b"\x81" * 1000)
@example(b"\x92\xc4\x00\xc4\x00")
def test_junk_is_format_invalid_and_nothing_else(junk: bytes) -> None:
    with pytest.raises(FormatInvalid):
        decode_entry(junk)
    with pytest.raises(FormatInvalid):
        decode_entry(sealed(junk, bytes(64)))
    with suppress(FormatInvalid):
        decode_op(junk, LEVEL)


class Sealed(msgspec.Struct, array_like=True):
    body: bytes
    signature: bytes


def sealed(body: bytes, signature: bytes | None = None) -> bytes:
    """Return an entry with this body, signed as it should be unless a signature is given."""
    if signature is None:
        signature = ANNA.sign(SIGNATURE_CONTEXT + named_hash(ENTRY_CONTEXT, [body]))
    return msgspec.msgpack.encode(Sealed(body, signature))


def body(raw_ops: list[bytes], **changes: object) -> list[object]:
    fields: dict[str, object] = {
        "level": LEVEL,
        "node": ANNA.node,
        "incarnation": INCARNATION,
        "seq": 1,
        "prev": NO_HASH,
        "lamport": 1,
        "time_ns": 7,
    }
    return [*(fields | changes).values(), [msgspec.Raw(raw) for raw in raw_ops]]


def signed(raw_ops: list[bytes], **changes: object) -> bytes:
    return sealed(msgspec.msgpack.encode(body(raw_ops, **changes)))


@given(batches, st.data())
@settings(max_examples=200)
def test_a_changed_byte_is_another_entry_or_none(batch: list[AnyOp], data: st.DataObject) -> None:
    entry = entry_of(batch)
    place = data.draw(st.integers(0, len(entry.encoded) - 1))
    changed = bytearray(entry.encoded)
    changed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FormatInvalid):
        verify_entry(decode_entry(bytes(changed)))


@given(batches, st.data())
def test_no_other_bytes_say_the_same(batch: list[AnyOp], data: st.DataObject) -> None:
    """A signature does not cover the envelope: another spelling of it must not be taken for the entry."""
    entry = entry_of(batch)
    with pytest.raises(FormatInvalid):
        decode_entry(entry.encoded + b"\0")
    body_bytes = msgspec.msgpack.decode(entry.encoded)[0]
    spelled = b"\x92\xc6" + len(body_bytes).to_bytes(4, "big") + body_bytes + b"\xc4\x40" + entry.signature
    with pytest.raises(FormatInvalid):
        decode_entry(spelled)
    with pytest.raises(FormatInvalid):
        decode_entry(b"\xdc\x00\x02" + entry.encoded[1:])


def test_the_same_seed_gives_the_same_bytes() -> None:
    """The format cannot change: an entry of the first day still reads, and hashes to the same."""
    entry = entry_of([RENAME])
    assert entry.hash.hex() == FIRST_DAY_HASH
    assert decode_entry(bytes.fromhex(FIRST_DAY_ENTRY)) == entry


@pytest.mark.parametrize(
    "op",
    [
        {"kind": "ref-set", "volume": "models"},
        {"kind": "member-rename", "node": b"n" * 31, "cluster": b"c" * 32, "name": "x"},
        {"kind": "member-rename", "node": b"n" * 32, "cluster": b"c" * 32, "name": "../x"},
        {"kind": "member-rename", "node": b"n" * 32, "cluster": b"c" * 32, "name": "x\n"},
        {"kind": "member-rename", "node": b"n" * 32, "cluster": b"c" * 32, "name": "x", "more": 1},
        {"node": b"n" * 32, "kind": "member-rename", "cluster": b"c" * 32, "name": "x"},  # another order
        {"kind": "member-remove", "node": b"n" * 32, "cluster": b"c" * 32, "until": []},  # a default spelled out
        {"kind": "member-add", "node": ANNA.node, "certificate": BERT.certificate, "name": "x", "role": "admin"},
        {"kind": "member-add", "node": ANNA.node, "certificate": b"junk", "name": "x", "role": "admin"},
        {"kind": "member-add", "node": BERT.node, "certificate": BERT.certificate, "name": "x", "role": "king"},
        {
            "kind": "member-add", "node": BERT.node, "certificate": BERT.certificate,
            "name": "x", "role": "read", "cluster": b"x",
        },
        {"kind": "save", "volume": 1, "file": 2, "version": 3, "content": b"x" * 31},
        {"kind": "save", "volume": 1, "file": 2, "version": 3, "content": b"x" * 31, "contents": "bundle"},
        {"kind": "save", "volume": 1, "file": 2, "version": 3, "content": b"", "contents": "link"},
        {"kind": "save", "volume": 0, "file": 2, "version": 3, "content": b"x" * 32},
        {"kind": "save", "volume": 1, "file": 1 << 63, "version": 3, "content": b"x" * 32},
        {"kind": "place", "volume": 1, "id": 2, "place": 3, "file": 4, "name": b".."},
        {"kind": "place", "volume": 1, "id": 2, "place": 3, "file": 4, "name": b"a/b"},
        {"kind": "place", "volume": 1, "id": 2, "place": 3, "file": 4, "name": b"a\0"},
        {"kind": "place", "volume": 1, "id": 2, "place": 3, "file": 4, "name": b"a" * 256},
        {"kind": "move", "volume": 1, "id": 2, "place": 3, "name": b"."},
        {"kind": "move", "volume": 1, "id": 2, "place": 3, "name": b""},
        {"kind": "describe", "volume": 1, "id": 2, "xattrs": {b"a": b"x" * 40_000, b"b": b"x" * 40_000}},
        {"kind": "describe", "volume": 1, "id": 2, "mode": 0o10000},
        {"kind": ""},
        {"kind": "k" * 65},
        {"kind": 7},
        {"volume": "models"},
        [1],
        7,
    ],
)  # fmt: skip
def test_malformed_ops(op: object) -> None:
    raw = msgspec.msgpack.encode(op)
    with pytest.raises(FormatInvalid):
        decode_op(raw, LEVEL)
    with pytest.raises(FormatInvalid):
        decode_entry(signed([raw]))


@pytest.mark.parametrize(
    "changes",
    [
        {"level": 0},
        {"node": b"n" * 31},
        {"seq": 0},
        {"seq": 2},
        {"prev": b"p" * 32},
        {"lamport": 0},
        {"lamport": 1 << 63},
        {"time_ns": -1},
        {"time_ns": 1.0},
    ],
)
def test_malformed_bodies(changes: dict[str, object]) -> None:
    assert decode_entry(signed([encode_op(RENAME)]))
    with pytest.raises(FormatInvalid):
        decode_entry(signed([encode_op(RENAME)], **changes))


def test_an_entry_without_ops_or_too_large() -> None:
    with pytest.raises(FormatInvalid):
        decode_entry(signed([]))
    large = msgspec.msgpack.encode({"kind": "x", "data": bytes(limits.ENTRY_BYTES_MAX)})
    with pytest.raises(FormatInvalid):
        decode_entry(signed([large]))


def test_a_newer_level_is_kept_byte_for_byte() -> None:
    newer_op = msgspec.msgpack.encode({"kind": "ref-set", "volume": "media", "forks": [1, 2]})
    unknown = msgspec.msgpack.encode({"kind": "lease", "epoch": 3})
    fields = [*body([newer_op, unknown, encode_op(RENAME)], level=LEVEL + 1), "a field behind ours"]
    encoded = sealed(msgspec.msgpack.encode(fields))
    entry = decode_entry(encoded)
    verify_entry(entry)
    assert entry.encoded == encoded
    assert entry.ops == (
        UnknownOp(raw=newer_op, kind="ref-set", volume="media"),
        UnknownOp(raw=unknown, kind="lease", volume=""),
        RENAME,
    )
    with pytest.raises(FormatInvalid):  # what this level defines may not have fields behind
        decode_entry(sealed(msgspec.msgpack.encode([*body([encode_op(RENAME)]), 1])))


def test_a_forged_author() -> None:
    entry = decode_entry(signed([encode_op(RENAME)], node=BERT.node))
    with pytest.raises(FormatInvalid):
        verify_entry(entry)
    not_a_point = decode_entry(signed([encode_op(RENAME)], node=b"\xff" * 32))
    with pytest.raises(FormatInvalid):
        verify_entry(not_a_point)


def test_node_of_certificate(tmp_path: Path) -> None:
    assert node_of_certificate(ANNA.certificate) == ANNA.node
    version = ANNA.certificate.index(b"\xa0\x03\x02\x01\x02") + 4
    another = ANNA.certificate[:version] + b"\x03" + ANNA.certificate[version + 1 :]
    for junk in (b"", b"junk", ANNA.certificate[:-1], ANNA.certificate + b"x", another):
        with pytest.raises(FormatInvalid):
            node_of_certificate(junk)


FIRST_DAY_HASH = "1caf439d76fb609a11bb17d583a776b41c7994c9049c4d26053ce5ceba1325e6"
FIRST_DAY_ENTRY = (
    "92c4dd9801c420af06a3e3291714e4f356c19c9b15cd1951ec6e6662aa77be07547f289383341dc42069696969696969"
    "6969696969696969696969696969696969696969696969696901c4200000000000000000000000000000000000000000"
    "00000000000000000000000001079184a46b696e64ad6d656d6265722d72656e616d65a46e6f6465c4206e6e6e6e6e6e"
    "6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6ea7636c7573746572c420636363636363636363636363"
    "6363636363636363636363636363636363636363a46e616d65a673747564696fc440f2e9f70f3016475a03834c5a7b1c"
    "5961b39e16f16dffc657a1c79be062fbbeea1a851b1b1db94f89b6f15f31e9bcd5d8be13a593f70ca6bec810f55cc506"
    "f704"
)
