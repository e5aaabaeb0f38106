"""Rows of leaf hashes for those who ask for leaves: read from the block's bytes once, then remembered."""

import os
from collections import OrderedDict
from threading import Lock

from tbshare.content.block import ObjectId, block_id_of_row, leaf_row
from tbshare.errors import BlockCorrupt, ObjectMissing
from tbshare.store.open_files import BlockBytes
from tbshare.store.store import Store

ROWS_MAX = 8192  # half a kilobyte each; those of 32 GB


class Rows:
    """The rows of blocks of one store. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()

    def of(self, object_id: ObjectId, number: int, place: BlockBytes) -> bytes:
        """Return the row of a block that can be read at `place`. BlockCorrupt, ObjectMissing, OSError."""
        found = self._store.manifest(object_id)
        if found is None:
            raise ObjectMissing(f"the manifest of object {object_id.hex()[:12]} is gone")
        block = found.block(number)
        with self._lock:
            row = self._rows.get(block)
            if row is not None:
                self._rows.move_to_end(block)
                return row
        row = leaf_row(os.pread(place.descriptor, place.length, place.offset) or b"\0")
        if block_id_of_row(row) != block:
            raise BlockCorrupt(
                f"block {number} of object {object_id.hex()[:12]} is corrupt on disk",
                cure="tbshare verify --repair",
            )
        with self._lock:
            self._rows[block] = row
            if len(self._rows) > ROWS_MAX:
                self._rows.popitem(last=False)
        return row
