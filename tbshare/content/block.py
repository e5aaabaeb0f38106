"""Blocks and leaves: how bytes get their name.

    leaf hash = BLAKE3(leaf)                                   leaves: 256 KiB, the last one shorter
    block id  = BLAKE3-derive-key(BLOCK_CONTEXT, leaf hash 0 || leaf hash 1 || ...)

so one pass over the bytes gives both, and the row of leaf hashes, checked against the block id, verifies a
256 KiB read alone. BLAKE3: github.com/BLAKE3-team/BLAKE3-specs.
"""

from collections.abc import Iterable
from typing import NewType

from blake3 import blake3

BLOCK_BYTES = 4 * 1024 * 1024
LEAF_BYTES = 256 * 1024
HASH_BYTES = 32
LEAVES_PER_BLOCK = BLOCK_BYTES // LEAF_BYTES
assert LEAVES_PER_BLOCK * LEAF_BYTES == BLOCK_BYTES

BLOCK_CONTEXT = "tbshare 2026-11-23 block id from leaf hashes"

BlockId = NewType("BlockId", bytes)
ObjectId = NewType("ObjectId", bytes)
TreeId = NewType("TreeId", bytes)


def leaf_row(data: bytes | bytearray | memoryview) -> bytes:
    """Return the 32-byte hashes of the block's leaves, joined; `data` is 1 to BLOCK_BYTES bytes."""
    view = memoryview(data)
    assert 0 < len(view) <= BLOCK_BYTES, "a block is 1 byte to 4 MiB"
    if len(view) <= LEAF_BYTES:
        return blake3(view).digest()
    return b"".join(
        [blake3(view[start : start + LEAF_BYTES]).digest() for start in range(0, len(view), LEAF_BYTES)]
    )


def block_id_of_row(row: bytes) -> BlockId:
    """Return the id of the block whose leaf hashes are `row`."""
    assert len(row) > 0
    assert len(row) % HASH_BYTES == 0
    return BlockId(blake3(row, derive_key_context=BLOCK_CONTEXT).digest())


def block_id(data: bytes | bytearray | memoryview) -> BlockId:
    """Return the id of a block; `data` is 1 to BLOCK_BYTES bytes."""
    return block_id_of_row(leaf_row(data))


def named_hash(context: str, parts: Iterable[bytes]) -> bytes:
    """Return the 32-byte BLAKE3 of the joined parts under a derive-key context."""
    hasher = blake3(derive_key_context=context)
    for part in parts:
        hasher.update(part)
    return hasher.digest()
