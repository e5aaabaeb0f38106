"""Files kept on this node, and files given up here: pin, unpin and evict of versions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from tbshare.content.block import ObjectId
from tbshare.daemon.copies import Pair, objects_of, rows_of
from tbshare.daemon.needed import living_now
from tbshare.daemon.service import Service
from tbshare.daemon.wanted import pin_of
from tbshare.errors import BlockCorrupt, FormatInvalid, ObjectInUse, ObjectMissing
from tbshare.store.care import drop_object
from tbshare.volumes.rows import VersionRow
from tbshare.volumes.tables import Here


@dataclass(frozen=True)
class Evicted:
    """What became of versions that were to be given up."""

    versions: list[Pair]  # their bytes are gone from here
    kept: list[Pair]  # no other node that is connected holds them
    bytes_freed: int


class FileKeeping:
    """Pins are of files, so that the versions to come are meant; what is evicted are versions."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def pinned(self, volume: int, file: int) -> bool:
        """Return whether a file is pinned on this node."""
        return bool(self.service.log.pins.list(pin_of(volume, file)))

    async def pin(self, volume: int, files: Iterable[int], *, note: str = "") -> None:
        """Keep files on this node from now on; what is missing of their heads is fetched."""
        await trio.to_thread.run_sync(self._pin, volume, list(files), note)
        self.service.spread.poke()

    def _pin(self, volume: int, files: list[int], note: str) -> None:
        tables, pins = self.service.volumes.tables(volume), self.service.log.pins
        for file in files:
            if not pins.list(pin_of(volume, file)):
                pins.add(pin_of(volume, file), note=note)
            row = tables.file(file)
            for head in row.heads if row is not None else ():
                if tables.here(file, head.version) in (Here.EVICTED, Here.EXPIRED):
                    tables.mark([(file, head.version)], Here.WANTED)

    async def unpin(self, volume: int, files: Iterable[int]) -> int:
        """Take the pins of files away; return how many there were."""
        return await trio.to_thread.run_sync(self._unpin, volume, list(files))

    def _unpin(self, volume: int, files: list[int]) -> int:
        pins = self.service.log.pins
        found = [pin for file in files for pin in pins.list(pin_of(volume, file))]
        for pin in found:
            pins.remove(pin.id)
        return len(found)

    async def evict(self, volume: int, versions: Sequence[Pair]) -> Evicted:
        """Delete the bytes of versions on this node, but for those of which it has the last copy.

        ObjectInUse when nothing can go: pinned, or the last copies. Told first and judged afterwards: from here on
        this node says that it does not hold them, and only then asks who does. Of two nodes that do so at once
        either one hears the other's word, or both do, and they stay.
        """
        rows = await trio.to_thread.run_sync(self._evictable, volume, versions)
        copies = self.service.spread.holding
        contents = {row.content for row in rows}
        copies.leaving |= contents
        try:
            pairs = [(row.file, row.version) for row in rows]
            held = set[Pair]()
            for node, pairs_there in (await copies.elsewhere(volume, pairs)).items():
                if node not in copies.draining:
                    held |= pairs_there
            going = [row for row in rows if (row.file, row.version) in held]
            kept = [pair for pair in pairs if pair not in held]
            if kept and not going:
                raise ObjectInUse(
                    f"no other node that is connected holds {len(kept)} of them; the last copy is never evicted",
                    cure="tbshare node ls",
                )
            async with self.service.collecting:
                while self.service.ingesting:  # it may find these contents here, and save them again
                    await self.service.ingested.wait()
                freed = await trio.to_thread.run_sync(self._drop, volume, going)
        finally:
            copies.leaving -= contents
        return Evicted([(row.file, row.version) for row in going], kept, freed)

    def _evictable(self, volume: int, versions: Sequence[Pair]) -> list[VersionRow]:
        rows = [row for row in rows_of(self.service.volumes, volume, versions) if row.contents != "link"]
        pinned = [row for row in rows if self.pinned(volume, row.file)]
        if pinned:
            raise ObjectInUse(f"{len(pinned)} of them are pinned on this node", cure="tbshare unpin VOLUME:/path")
        return rows

    def _drop(self, volume: int, rows: list[VersionRow]) -> int:
        """Delete what nothing else that stays here consists of."""
        service = self.service
        self.service.volumes.tables(volume).mark([(row.file, row.version) for row in rows], Here.EVICTED)
        live, _ = living_now(service)
        going = {object_id for row in rows for object_id in self._objects(row)} - live
        return sum(drop_object(service.store, object_id) for object_id in going)

    def _objects(self, row: VersionRow) -> list[ObjectId]:
        try:
            return objects_of(self.service.store, row)
        except (ObjectMissing, BlockCorrupt, FormatInvalid):
            return []
