"""What must be so when all is mended: equal folds, nothing acknowledged lost, no bytes that nobody wrote."""

import sqlite3
from collections.abc import Iterable, Set
from random import Random
from typing import TypeVar

import msgspec

from tbshare.errors import FileError
from tbshare.volumes.asof import counted, ops_for
from tbshare.volumes.entry import Entry, Save
from tbshare.volumes.fold import State, fold
from tbshare.volumes.item import Item, Path
from tbshare.volumes.rows import DirectoryRow, FileRow, MoveRow, NameRow, VersionRow
from tbshare.volumes.tables import Tables
from tbshare.volumes.volume import Handle
from tests.simulation.actions import Shown, shown_by
from tests.simulation.machine import Machine, Process
from tests.simulation.record import Acknowledged, Record, state_of
from tests.volumes.reference_fold import Reference, reference

SAMPLED = 4  # acknowledged versions that are looked for on every node; one node is asked for all of them
TABLES = {
    "names": "SELECT id, parent, file, alive, key, row FROM names ORDER BY id",
    "directories": "SELECT id, parent, alive, key, row FROM directories ORDER BY id",
    "files": "SELECT id, flags, row FROM files ORDER BY id",
    "versions": "SELECT file, version, row FROM versions ORDER BY file, version",
    "moves": "SELECT stamp, row FROM moves ORDER BY stamp",
}
Dump = dict[str, list[tuple[object, ...]]]
Entries = dict[bytes, Entry]  # by hash
Found = set[tuple[int, int | bytes]]
Row = TypeVar("Row")


class Check:
    """The checks of one run; `summary` is what they looked at."""

    def __init__(self, machines: list[Machine], record: Record, random: Random) -> None:
        self._record, self._random = record, random
        self._on_disks = [machine.entries() for machine in machines]
        self._machines = machines
        chosen, self._entries, self._state = self._those_that_talk()
        self._nodes = [_running(machines[index]) for index in chosen]
        for index, node in zip(chosen, self._nodes, strict=True):
            lacking = len(self._entries.keys() - self._on_disks[index].keys())
            assert not lacking, f"{node.machine.name} never got {lacking} of {len(self._entries)} entries"
        self.summary: list[object] = [sorted(self._entries)]

    def all(self) -> None:
        """Check everything."""
        self._folds()
        for number, handle in enumerate(self._nodes[0].handles()):
            self._listing(number, handle)
            self._bundles(handle)
        wanted = self._acknowledged()
        self._kept(wanted)
        self._bytes()

    def _those_that_talk(self) -> tuple[list[int], Entries, State]:
        """Return the machines of the members, what they know together, and what it means.

        Who is a member follows from what the members know: a removed node's disk is not asked. Two that removed
        each other do not talk, nor do those they told of it: of such parts, which people have to bring together,
        one is looked at.
        """
        chosen, entries, state = self._members_among(list(range(len(self._machines))))
        talking = self._that_trust(chosen)
        return (chosen, entries, state) if set(chosen) <= set(talking) else self._members_among(talking)

    def _members_among(self, chosen: list[int]) -> tuple[list[int], Entries, State]:
        (root,) = {_running(machine).log.cluster for machine in self._machines} - {b""}
        while True:
            entries = {known: entry for index in chosen for known, entry in self._on_disks[index].items()}
            state = fold(entries.values(), root)
            members = [
                index
                for index in chosen
                if self._machines[index].identity.node in state.members and root in self._on_disks[index]
            ]
            if members == chosen:
                return chosen, entries, state
            chosen = members
            assert chosen, "nobody is a member"

    def _that_trust(self, chosen: list[int]) -> list[int]:
        """Return the machines that most of those chosen reach over others that trust each other."""
        found: list[list[int]] = []
        for first in chosen:
            group = [first]
            for index in group:
                others = range(len(self._machines))
                group += [one for one in others if one not in group and self._trusts_both_ways(index, one)]
            found.append(sorted(group))
        return max(found, key=lambda group: len(set(group) & set(chosen)))

    def _trusts_both_ways(self, one: int, other: int) -> bool:
        first, second = _running(self._machines[one]), _running(self._machines[other])
        return first.trusts(second.key) and second.trusts(first.key)

    # ---- folds ----------------------------------------------------------------------------------------

    def _folds(self) -> None:
        """The rows are equal on all nodes, and are what the slow fold of all entries says."""
        volumes = [[(handle.id, handle.name) for handle in node.handles()] for node in self._nodes]
        assert all(known == volumes[0] for known in volumes), f"not the same volumes everywhere: {volumes}"
        for volume, name in volumes[0]:
            dumps = [dump_of(node.volumes.tables(volume)) for node in self._nodes]
            for table in TABLES:
                assert all(dump[table] == dumps[0][table] for dump in dumps), f"{name}: {table} are not equal"
            judged = [
                (entry, ops_for(volume, entry))
                for entry in self._entries.values()
                if counted(self._state, volume, entry)
            ]
            as_reference(dumps[0], reference(judged))
            self.summary.append(dumps[0])

    def _listing(self, number: int, handle: Handle) -> None:
        """All nodes show the same, each directory in one place, each name once."""
        shown = shown_by(handle)
        listing = _listing_of(shown)
        directories = [item.id for _, item in shown.directories]
        assert len(directories) == len(set(directories)), "a directory is in two places"
        assert len({path for path, _ in listing}) == len(listing), "a name is shown twice"
        for node in self._nodes[1:]:
            assert _listing_of(shown_by(node.handles()[number])) == listing, f"{handle.name} is not shown alike"
        self.summary.append(listing)
        tables = self._nodes[0].volumes.tables(handle.id)
        alive = {row.id for _, row in _decoded(dump_of(tables), "directories", DirectoryRow) if row.alive}
        placed = {number for number in alive if number == 0 or _path_of(tables, number) is not None}
        assert placed <= set(directories) | {0}, "a directory lives and cannot be reached"
        files = {item.file for _, item in (*shown.files, *shown.bundles)}
        assert handle.totals().files >= len(files), "fewer files are counted than shown"

    # ---- what was acknowledged ------------------------------------------------------------------------

    def _acknowledged(self) -> list[Acknowledged]:
        """Each acknowledged version is under a name that is shown, or in the history of where its file is or was.

        Not looked for are versions that a node saved after others had removed it: those count for nothing. Nor
        what was on one disk only, when an older one was put in its place.
        """
        wanted = self._to_be_found()
        self._record.counts["acknowledged"] = len(wanted)
        gone = {volume.id for volume in self._state.volumes_by_id.values() if volume.removed}
        for node in self._nodes:
            some = wanted
            if node is not self._nodes[0]:
                some = self._random.sample(wanted, min(SAMPLED, len(wanted)))
            by_volume: dict[int, list[Acknowledged]] = {}
            for saved in some:
                by_volume.setdefault(saved.volume, []).append(saved)
            for volume, of_volume in by_volume.items():
                if volume not in gone:
                    self._reachable(node, volume, of_volume)
        return wanted

    def _to_be_found(self) -> list[Acknowledged]:
        everywhere = {known: entry for disk in self._on_disks for known, entry in disk.items()}
        saved_in: dict[tuple[int, int | bytes], Entry] = {}  # by content too: an id may be given twice
        for known in sorted(everywhere.values(), key=lambda entry: entry.hash in self._entries):
            for op in known.ops:
                if isinstance(op, Save):
                    saved_in[op.file, op.version] = saved_in[op.file, op.content] = known
                    saved_in[op.file, op.version.to_bytes(8, "big") + op.content] = known
        wanted: list[Acknowledged] = []
        for saved in self._record.acknowledged:
            exactly = saved.file, saved.version.to_bytes(8, "big") + saved.content
            entry = saved_in.get(exactly) or saved_in.get(sought(saved))
            if entry is None:
                assert (saved.file, saved.version) in self._record.excused, f"no disk has it: {saved}"
                continue
            if entry.hash in self._entries:
                if self._state.counts(entry):
                    wanted.append(saved)
                else:
                    assert entry.node in self._state.removed_members, f"it counts for nothing: {saved}"
                continue
            holders = [disk for disk in range(len(self._machines)) if entry.hash in self._on_disks[disk]]
            assert all(self._machines[disk].identity.node not in self._state.members for disk in holders)
        return wanted

    def _reachable(self, node: Process, volume: int, wanted: Iterable[Acknowledged]) -> None:
        handle, tables = node.volumes.open_id(volume), node.volumes.tables(volume)
        shown = shown_by(handle)
        found: Found = {(item.file, item.content) for _, item in (*shown.files, *shown.bundles)}
        found |= {(item.file, item.version) for _, item in shown.bundles}
        places = {item.id: [path] for path, item in shown.directories}
        asked: set[Path] = set()
        for saved in wanted:
            paths = [*handle.paths(saved.file), saved.path, *sorted(self._record.paths.get(saved.file, ()))]
            paths += [path for path in last_paths(tables, saved.file) if path not in paths]
            names = tables.names_of(saved.file)  # hidden behind a twin, in a directory that has another name
            paths += [(*above, row.name) for row in names for above in handle.paths(row.parent)]
            for row in tables.names_of(saved.file):  # also what is never shown, of two .DS_Store in a place
                paths += [(*path, row.name) for path in places.get(row.parent, ())]
            for path in paths:
                if sought(saved) in found:
                    break
                if path not in asked:
                    asked.add(path)
                    try:
                        lines = handle.history(path)
                        found |= {(line.file, line.content) for line in lines}
                        found |= {(line.file, line.version) for line in lines}
                    except FileError:
                        continue  # nothing ever was there, as far as this node knows
            assert sought(saved) in found, f"neither shown nor in a history: {saved}"

    def _kept(self, wanted: Iterable[Acknowledged]) -> None:
        """The bytes of each acknowledged version are on some disk, but for those past the history to keep."""
        lost = self._record.lost | self._record.links
        given_up = lost | self._record.given_up
        for saved in wanted:
            if saved.content:
                assert not self._nowhere(saved.content, given_up), f"its bytes are gone: {saved}"
        for handle in self._nodes[0].handles():
            shown = shown_by(handle)
            for path, item in (*shown.files, *shown.bundles):
                gone = self._nowhere(item.content, lost | self._record.unread)
                assert not gone, f"bytes of what is shown are gone: {path}"

    def _nowhere(self, content: bytes, excused: Set[bytes]) -> set[bytes]:
        """Return what of this is on no disk; a removed node may have the only copy."""
        missing = {content} - excused
        for machine in 3 * self._machines:  # a bundle in parts: directories in it are known one by one
            missing = missing and set(_running(machine).store.missing(missing)) - excused
        return missing

    # ---- bytes ----------------------------------------------------------------------------------------

    def _bundles(self, handle: Handle) -> None:
        """Each bundle that is shown, fork or not, is as somebody left it."""
        for path, item in shown_by(handle).bundles:
            known = self._record.bundles.get(item.content)
            assert known is not None or self._record.bundle_interrupted, f"a bundle as nobody left it: {path}"
            if known is not None and any(node.store.whole(item.content) for node in self._nodes):
                assert state_of(handle, path) == known, f"a bundle is not as it was left: {path}"

    def _bytes(self) -> None:
        """What a node reads was written by somebody, and what one node has all have."""
        for node in self._nodes:
            for handle in node.handles():
                for path, item in shown_by(handle).files:
                    if item.kind == "link":
                        assert item.content in self._record.links
                        continue
                    tokens = self._record.tokens.get(item.content)
                    assert tokens is not None, f"{path} has bytes that nobody wrote"
                    if any(other.store.whole(item.content) for other in self._nodes):
                        assert node.store.read(item.content) == tokens, f"{path} is not what was written"


def sought(saved: Acknowledged) -> tuple[int, int | bytes]:
    """Return what must be found of a save: its bytes; what is saved inside of a bundle is a version of that."""
    return saved.file, saved.content or saved.version


def _running(machine: Machine) -> Process:
    assert machine.running is not None
    return machine.running


def _listing_of(shown: Shown) -> list[tuple[Path, Item]]:
    return [*shown.directories, *shown.bundles, *shown.files]


# ---- rows -----------------------------------------------------------------------------------------------


def dump_of(tables: Tables) -> Dump:
    """Return all rows of a volume, without what is only so on this node."""
    connection = sqlite3.connect(tables.path)
    try:
        return {table: connection.execute(query).fetchall() for table, query in TABLES.items()}
    finally:
        connection.close()


def _decoded(dump: Dump, table: str, kind: type[Row]) -> list[tuple[object, Row]]:
    decoder = msgspec.msgpack.Decoder(kind)
    return [(columns[0], decoder.decode(columns[-1])) for columns in dump[table]]  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def as_reference(dump: Dump, said: Reference) -> None:
    """Check that rows are those of the slow fold; rows that say nothing may stand there or not."""
    assert {(r.file, r.version): r for _, r in _decoded(dump, "versions", VersionRow)} == said.versions
    assert dict(_decoded(dump, "moves", MoveRow)) == said.moves
    names = {row.id: row for _, row in _decoded(dump, "names", NameRow) if row != NameRow(row.id)}
    assert names == {number: row for number, row in said.names.items() if row != NameRow(number)}
    files = {row.id: row for _, row in _decoded(dump, "files", FileRow) if row != FileRow(row.id)}
    assert files == {number: row for number, row in said.files.items() if row != FileRow(number)}
    directories = {row.id: row for _, row in _decoded(dump, "directories", DirectoryRow)}
    for number, row in said.directories.items():
        if row not in (DirectoryRow(number), DirectoryRow(0, alive=True)):
            assert directories.get(number) == row, f"{directories.get(number)} is not {row}"
    assert not [row for row in directories.values() if row.alive and not said.directories[row.id].alive]


def _path_of(tables: Tables, directory: int) -> Path | None:
    """Return where a directory is, or was last; None when it was never anywhere."""
    path: list[bytes] = []
    while directory:
        row = tables.directory(directory)
        if row is None or not row.stamp:
            return None
        path.insert(0, row.name)
        directory = row.parent
    return tuple(path)


def last_paths(tables: Tables, file: int) -> list[Path]:
    """Return where the names of a file are, or were last."""
    return [
        (*above, row.name) for row in tables.names_of(file) if (above := _path_of(tables, row.parent)) is not None
    ]
