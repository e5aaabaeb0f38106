"""What the peers have acknowledged: noted in memory, and written down when something else is."""

import sqlite3
from collections.abc import Sequence
from typing import cast

from tbshare.volumes.database import Database
from tbshare.wire.message import Head


class Acknowledgements:
    """The heads that each peer said last; the caller holds the lock.

    A crash may lose some. Then less counts as acknowledged than is, until the peer says it again.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._heads: dict[bytes, list[Head]] = {}
        self._unsaved: set[bytes] = set()
        query = "SELECT peer, node, incarnation, seq, hash FROM acknowledgements"
        for row in database.rows(query):
            peer, node, incarnation, seq, hash_ = cast("tuple[bytes, bytes, bytes, int, bytes]", row)
            head = Head(node=node, incarnation=incarnation, seq=seq, hash=hash_)
            self._heads.setdefault(peer, []).append(head)

    def put(self, peer: bytes, heads: Sequence[Head]) -> None:
        """Replace what a peer said."""
        if heads != self._heads.get(peer):
            self._heads[peer] = list(heads)
            self._unsaved.add(peer)

    def of(self, peer: bytes) -> list[Head]:
        """Return what a peer said last."""
        return self._heads.get(peer, [])

    def save(self) -> None:
        """Write down what is new."""
        if self._unsaved:
            with self._database.transaction() as connection:
                self.write(connection)
            self.saved()

    def write(self, connection: sqlite3.Connection) -> None:
        """Write down what is new in somebody's transaction; `saved` when that is committed."""
        if not self._unsaved:
            return
        rows = [
            (peer, head.node, head.incarnation, head.seq, head.hash)
            for peer in self._unsaved
            for head in self._heads[peer]
        ]
        connection.executemany("DELETE FROM acknowledgements WHERE peer = ?", [(peer,) for peer in self._unsaved])
        connection.executemany("INSERT INTO acknowledgements VALUES (?, ?, ?, ?, ?)", rows)

    def saved(self) -> None:
        """Note that all is written down."""
        self._unsaved.clear()
