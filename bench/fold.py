"""Folding a volume's ops: decoded, signatures checked, into SQLite and into memory, while the volume grows.

    python -m bench fold

A batch is 128 entries of 256 ops of one node, as a peer sends them: saves of files there are, new files (a
Save and a Place), renames, removals, attributes, new directories. Most are on the newest files and directories,
where people work; one in twenty is on any file. The same entries are folded into SQLite and in memory, from
their bytes on: decode, one signature an entry, fold, commit. *decoded* is the fold alone, *by CPU* what one core
would do if nothing else had it and no disk were waited for.
"""

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.measuring import Demand
from bench.rows import Options, say, table, verdict
from tbshare.volumes.entry import (
    FILE_OPS,
    OPS_MAX,
    Describe,
    Entry,
    FileOp,
    Move,
    Place,
    Remove,
    Save,
    decode_entry,
    make_entry,
    verify_entry,
)
from tbshare.volumes.ids import Ids
from tbshare.volumes.namespace import Namespace
from tbshare.volumes.shown import shown
from tbshare.volumes.tables import Tables

VOLUME = 0x1234_5678_9ABC_DEF0
OPS_EACH = 256
ENTRIES_EACH = 128
FILES_EACH = 5000  # of a directory
DEPTH_MAX = 200
FILES_AT_WORK, DIRECTORIES_AT_WORK = 5000, 50
ANYWHERE = 0.05  # part of the ops that are on any file of the volume
FILES_LISTED = 10_000
SQL_LEAST, MEMORY_LEAST = 80_000, 200_000
OPEN_SECONDS_MAX, LIST_SECONDS_MAX = 0.2, 0.1
GROWTH_MAX = 1.5  # cost of an op in the largest volume against the smallest: it shall not grow with the volume

Told = tuple[Entry, Sequence[tuple[int, FileOp]]]


@dataclass
class File:
    """What a writer knows of a file."""

    file: int
    name: int
    place: int
    version: int
    parent: int
    text: bytes


@dataclass
class Writer:
    """A node that writes a volume."""

    random: Random = field(default_factory=lambda: Random(1))
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    lamport: int = 0
    previous: Entry | None = None

    def __post_init__(self) -> None:
        self.node = self.key.public_key().public_bytes_raw()
        self.ids = Ids(self.node, self.random)
        self.files: list[File] = []
        self.directories = [0]
        self.depths = {0: 0}

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)

    def directory(self) -> Move:
        parent = self.random.choice(self.directories)
        if self.depths[parent] >= DEPTH_MAX:
            parent = 0
        number = self.ids.new()
        self.directories.append(number)
        self.depths[number] = self.depths[parent] + 1
        name = b"reel %d" % len(self.directories)
        return Move(volume=VOLUME, id=number, place=self.ids.new(), name=name, parent=parent)

    def save(self, file: File) -> Save:
        parents = (file.version,) if file.version else ()
        file.version = self.ids.new()
        content = self.random.randbytes(32)
        return Save(
            volume=VOLUME, file=file.file, version=file.version, content=content, parents=parents, size=4_000_000,
            mtime_ns=1_800_000_000_000_000_000,
        )  # fmt: skip

    def place(self, file: File) -> Place:
        file.place = self.ids.new()
        return Place(
            volume=VOLUME, id=file.name, place=file.place, file=file.file, name=file.text, parent=file.parent
        )

    def create(self, parent: int) -> list[FileOp]:
        file = File(self.ids.new(), self.ids.new(), 0, 0, parent, b"A001_C%06d.mov" % len(self.files))
        self.files.append(file)
        return [self.save(file), self.place(file)]

    def grow(self, files: int) -> Iterator[FileOp]:
        """Yield ops that make the volume have so many files, with a directory for each 5,000."""
        while len(self.files) < files:
            yield self.directory()
            parent = self.directories[-1]
            for _ in range(min(FILES_EACH, files - len(self.files))):
                yield from self.create(parent)

    def mixed(self, count: int, anywhere: float) -> list[FileOp]:
        """Return ops as of people at work: on the newest files, and a part of them `anywhere`."""
        ops: list[FileOp] = []
        while len(ops) < count:
            far = self.random.random() < anywhere
            number = self.random.randrange(0 if far else max(0, len(self.files) - FILES_AT_WORK), len(self.files))
            parent = self.random.choice(self.directories[0 if far else -DIRECTORIES_AT_WORK :])
            file = self.files[number]
            match self.random.choices(range(6), (40, 20, 6, 5, 7, 2))[0]:
                case 0:
                    ops.append(self.save(file))
                case 1:
                    ops += self.create(parent)
                case 2:
                    file.text, file.parent = b"B" + file.text[1:], parent
                    ops.append(self.place(file))
                case 3:
                    self.files[number] = self.files[-1]
                    self.files.pop()
                    ops.append(Remove(volume=VOLUME, id=file.name, place=file.place, seen=(file.version,)))
                case 4:
                    ops.append(Describe(volume=VOLUME, id=file.file, mode=0o644, xattrs={b"com.apple.tag": b"1"}))
                case _:
                    ops.append(self.directory())
        return ops[:count]

    def entry(self, ops: Sequence[FileOp]) -> Entry:
        self.lamport += 1
        self.previous = make_entry(
            self, incarnation=bytes(32), previous=self.previous, lamport=self.lamport, time_ns=1, ops=ops
        )
        return self.previous

    def batch(self, anywhere: float) -> list[bytes]:
        """Return entries as a peer sends them."""
        return [self.entry(self.mixed(OPS_EACH, anywhere)).encoded for _ in range(ENTRIES_EACH)]

    def told(self, ops: Iterator[FileOp]) -> Iterator[list[Told]]:
        """Yield batches of entries that were never encoded: what grows a volume is not measured."""
        while some := list(islice(ops, OPS_MAX)):
            self.lamport += 1
            hash_ = self.random.randbytes(32)
            entry = Entry(1, self.node, bytes(32), 1, bytes(32), self.lamport, 1, (), hash_, bytes(64), b"")
            yield [(entry, list(enumerate(some)))]


def decoded(batch: Sequence[bytes], *, verify: bool) -> list[Told]:
    told: list[Told] = []
    for encoded in batch:
        entry = decode_entry(encoded)
        if verify:
            verify_entry(entry)
        told.append((entry, [(index, op) for index, op in enumerate(entry.ops) if isinstance(op, FILE_OPS)]))
    return told


@dataclass(frozen=True)
class Speed:
    """Ops per second over all batches: from bytes on, the same by CPU, and of the fold alone."""

    whole: float
    cpu: float
    fold: float


def measured(batches: Sequence[Sequence[bytes]], space: Namespace | Tables) -> Speed:
    gc.collect()
    gc.freeze()  # what the bench keeps of a volume is nothing that a daemon has
    ops, whole, alone, cpu = 0, 0.0, 0.0, time.process_time()
    for batch in batches:
        started = time.perf_counter()
        told = decoded(batch, verify=True)
        read = time.perf_counter()
        if isinstance(space, Tables):
            space.fold(told, space.position + 1)
        else:
            space.fold(told)
        ended = time.perf_counter()
        ops += sum(len(one) for _, one in told)
        whole += ended - started
        alone += ended - read
    cpu = time.process_time() - cpu
    gc.unfreeze()
    return Speed(ops / whole, ops / cpu, ops / alone)


def listing(path: Path, writer: Writer) -> tuple[float, float]:
    """Return how long it takes to open the tables, and to list a directory of 10,000 as it is shown."""
    started = time.perf_counter()
    tables = Tables.open(path)
    opened = time.perf_counter()
    took: list[float] = []
    for _ in range(5):
        before = time.perf_counter()
        items = shown(tables.children(writer.directories[-1]), lambda _: "studio")
        took.append(time.perf_counter() - before)
        if len(items) != FILES_LISTED:
            raise RuntimeError(f"{len(items)} items listed")
    tables.close()
    return opened - started, statistics.median(took)


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    sizes = [1000, int(options.pick(100_000, 5000)), int(options.pick(1_000_000, 20_000))]
    writer, lines = Writer(), list[list[str]]()
    path = options.scratch / "volume.db"
    tables, space = Tables.open(path), Namespace()
    speeds: list[tuple[Speed, Speed]] = []
    for size in sizes:
        started = time.perf_counter()
        for batch in writer.told(writer.grow(size)):
            tables.fold(batch, tables.position + 1)
            if size <= sizes[1]:
                space.fold(batch)
        say(f"{len(writer.files)} files after {time.perf_counter() - started:.1f} s")
        batches = [writer.batch(ANYWHERE) for _ in range(options.runs)]
        sql = measured(batches, tables)
        memory = measured(batches, space) if size <= sizes[1] else speeds[-1][1]
        speeds.append((sql, memory))
        lines.append(
            [
                f"{size:,} files",
                *(f"{each:,.0f}" for one in (sql, memory) for each in (one.whole, one.cpu, one.fold)),
            ]
        )
    for batch in writer.told(_ten_thousand(writer)):
        tables.fold(batch, tables.position + 1)
    tables.close()
    opened, listed = listing(path, writer)
    table(["ops per second", "into SQLite", "by CPU", "decoded", "in memory", "by CPU", "decoded"], lines)
    sql, memory = speeds[-1]
    demands = [
        Demand("ops folded per second into SQLite", sql.whole, SQL_LEAST, at_most=False),
        Demand("ops folded per second in memory", memory.whole, MEMORY_LEAST, at_most=False),
        Demand("cost of an op, largest to smallest volume", speeds[0][0].whole / sql.whole, GROWTH_MAX),
        Demand("seconds to open the largest", opened, OPEN_SECONDS_MAX),
        Demand("seconds to list 10,000 in it", listed, LIST_SECONDS_MAX),
    ]
    figures = {"sql": vars(sql), "memory": vars(memory), "bytes": path.stat().st_size, "files": sizes[-1]}
    return verdict("fold", demands, figures, quick=options.quick)


def _ten_thousand(writer: Writer) -> Iterator[FileOp]:
    yield writer.directory()
    parent = writer.directories[-1]
    for _ in range(FILES_LISTED):
        yield from writer.create(parent)
