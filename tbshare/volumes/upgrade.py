"""Brings a log.db of an older level to this one: a copy first, then one transaction."""

from typing import Final

from tbshare.volumes.database import ENTRIES_SCHEMA, SCHEMA_LEVEL, Database
from tbshare.volumes.log_rows import Stored, read

ENTRIES_AT_ONCE: Final = 1000


def upgrade(database: Database) -> None:
    """Bring log.db to this level; nothing happens when it is. StoreUnusable when it is damaged: it stays as it is.

    Level 1 had no branches: an entry was found by its hash. The copy is called log.db.level-1.
    """
    if database.level == SCHEMA_LEVEL:
        return
    database.copy(f"{database.path.name}.level-{database.level}")
    with database.transaction() as connection:
        connection.execute("ALTER TABLE entries RENAME TO entries_before")
        for statement in ENTRIES_SCHEMA.split(";"):
            connection.execute(statement)
        stored = Stored(database)
        while True:
            query = "SELECT encoded FROM entries_before WHERE arrival > ? ORDER BY arrival LIMIT ?"
            rows = connection.execute(query, (stored.last_arrival, ENTRIES_AT_ONCE)).fetchall()
            if not rows:
                break
            stored.arrived(stored.insert(connection, [read(encoded) for (encoded,) in rows]))
        connection.execute("DROP TABLE entries_before")
        connection.execute(f"PRAGMA user_version={SCHEMA_LEVEL}")
    database.level = SCHEMA_LEVEL
