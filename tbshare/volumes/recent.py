"""The rows of a namespace that were written or asked for lately, in memory beside the tables.

Who works on a file asks for it again and again, and each save folds into the row of the one before. Rows are kept
as the bytes they are stored as: who decodes them has a row of their own. Only what was committed is here.
"""

from collections.abc import Mapping
from threading import Lock
from typing import Final, Generic, NamedTuple, TypeVar

from tbshare.volumes.ids import COUNT_BITS

ROWS_MAX: Final = 8192  # of one kind, before the older half is forgotten; a row is some 300 bytes
RUNS_MAX: Final = 10_000

Key = TypeVar("Key")
Value = TypeVar("Value")
Under = tuple[int, bytes]  # a directory, and the `clash_key` of names in it


class Lately(Generic[Key, Value]):
    """What was put in last: at least the last `ROWS_MAX` keys, at most twice as many, but for one batch."""

    def __init__(self) -> None:
        self._young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}

    def get(self, key: Key) -> Value | None:
        """Return the value, None when it is not here."""
        value = self._young.get(key)
        return self._old.get(key) if value is None else value

    def put(self, values: Mapping[Key, Value]) -> None:
        """Keep these; what was put in long ago may go."""
        if len(self._young) + len(values) > ROWS_MAX:
            self._old, self._young = self._young, {}
        self._young.update(values)

    def forget(self, key: Key) -> None:
        """Keep no value of this key."""
        self._old.pop(key, None)
        self._young.pop(key, None)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


class NamesHere(NamedTuple):
    """The living names under one key as (name, file), and the living directories; ids in order."""

    names: tuple[tuple[int, int], ...] = ()
    directories: tuple[int, ...] = ()


class Written(NamedTuple):
    """What a batch wrote: rows by id, those that are new, and what is in directories now."""

    names: dict[int, bytes]
    directories: dict[int, bytes]
    files: dict[int, bytes]
    new: tuple[list[int], list[int], list[int]]  # ids of names, directories, files, each in order
    appeared: list[tuple[Under, int, int]]  # a new name under a key, or with 0 as its file, a new directory
    changed: list[Under]  # where anything else may have come or gone


class Recent:
    """The rows of one volume that are in memory; written by one thread at a time, read by any."""

    def __init__(self) -> None:
        self.names = Lately[int, bytes]()
        self.directories = Lately[int, bytes]()
        self.files = Lately[int, bytes]()
        self.rows = self.names, self.directories, self.files
        self.writes = 0  # how often something was written
        self._under = Lately[Under, NamesHere]()
        self._last: tuple[dict[int, int], dict[int, int], dict[int, int]] = {}, {}, {}
        self._lock = Lock()

    def wrote(self, written: Written) -> None:
        """Take up what was committed."""
        with self._lock:
            self.writes += 1
            self.names.put(written.names)
            self.directories.put(written.directories)
            self.files.put(written.files)
            if len(self._under):
                self._note_places(written)
        for last, new in zip(self._last, written.new, strict=True):
            for run, number in {number >> COUNT_BITS: number for number in new}.items():
                if number > last.get(run, number):
                    last[run] = number

    def _note_places(self, written: Written) -> None:
        places: dict[Under, NamesHere] = {}
        for under, number, file in written.appeared:
            known = places.get(under) or self._under.get(under)
            if known is not None and file:
                places[under] = known._replace(names=tuple(sorted((*known.names, (number, file)))))
            elif known is not None:
                places[under] = known._replace(directories=tuple(sorted((*known.directories, number))))
        self._under.put(places)
        for under in written.changed:
            self._under.forget(under)

    # ---- what is there --------------------------------------------------------------------------------

    def child(self, under: Under) -> tuple[list[tuple[bytes, bytes]], list[bytes]] | None:
        """Return the rows of living names with their files, of directories; None if not all are here."""
        with self._lock:
            places = self._under.get(under)
            if places is None:
                return None
            names: list[tuple[bytes, bytes]] = []
            for number, file in places.names:
                name, of_file = self.names.get(number), self.files.get(file)
                if name is None or of_file is None:
                    return None
                names.append((name, of_file))
            directories = [self.directories.get(number) for number in places.directories]
        found = [row for row in directories if row is not None]
        return (names, found) if len(found) == len(directories) else None

    def note_child(
        self,
        under: Under,
        names: Mapping[tuple[int, int], tuple[bytes, bytes]],
        directories: Mapping[int, bytes],
        writes: int,
    ) -> None:
        """Keep what was read, by ids in order: names with their files; unless more was written since `writes`."""
        with self._lock:
            if self.writes == writes:
                self.names.put({name: row for (name, _), (row, _) in names.items()})
                self.files.put({file: row for (_, file), (_, row) in names.items()})
                self.directories.put(directories)
                self._under.put({under: NamesHere(tuple(names), tuple(directories))})

    def last_of(self, kind: int, number: int) -> int | None:
        """Return the last id of a name (0), directory (1) or file (2) in the run of this one; None if not known.

        The ids of a run count up, so that what comes after the last is new. Only for who writes.
        """
        return self._last[kind].get(number >> COUNT_BITS)

    def note_last(self, kind: int, number: int, last: int) -> None:
        """Note what `last_of` returns for this id; 0 when the run has none."""
        runs = self._last[kind]
        if len(runs) >= RUNS_MAX:
            runs.clear()
        runs[number >> COUNT_BITS] = last
