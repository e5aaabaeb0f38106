"""What is recorded for the power loss test: `python power_loss_workload.py ROOT PHASE SABOTAGE`, below strace.

Writes, to ROOT/acks, a line of JSON for everything it was told is durable, and before anything is given up. The
store is at ROOT/disk/home, what is pushed at ROOT/source. Phase 1 ends as by kill -9; phase 2 goes on from there.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tbshare.content import bits
from tbshare.content.block import ObjectId, TreeId
from tbshare.content.manifest import Manifest
from tbshare.peers.identity import Identity
from tbshare.store import care, disk
from tbshare.store.arriving import Arriving
from tbshare.store.index import Index
from tbshare.store.ingest import Ingest
from tbshare.store.source import Choice, scan
from tbshare.store.store import Store
from tbshare.volumes.entry import KnownOp, RefSet
from tbshare.volumes.log import Log
from tests.store.weights_files import blocks_of, manifest_of, random_bytes, weights

# What arrives from peers: name -> bytes. The checker knows them too, and goes on where the power went.
ARRIVING: dict[str, bytes] = {
    "aligned.safetensors": weights("aligned", [20_000, 100, 18_000]),
    "odd.safetensors": weights("odd", [17_000, 17_500], odd=True),
    "small.json": random_bytes("small", 9_000),
    "dropped.safetensors": weights("dropped", [18_000, 18_000]),
    "rotten.safetensors": weights("rotten", [17_000, 17_000], odd=True),
    "waiting.safetensors": weights("waiting", [17_000, 17_000, 17_000], odd=True),
}
SOURCES: dict[str, dict[str, bytes]] = {
    "first": {
        "config.json": random_bytes("config", 700),
        "tokenizer.json": random_bytes("tokenizer", 60_000),
        "vocabulary.txt": random_bytes("vocabulary", 50_000),
        "model.safetensors": weights("model", [20_000, 17_000]),
        "parts/odd.safetensors": weights("shard", [18_000], odd=True),
        "parts/plain.bin": random_bytes("plain", 90_000),
    },
    "second": {
        "config.json": random_bytes("config", 701),
        "tokenizer.json": random_bytes("tokenizer", 60_000),
        "model.safetensors": weights("model", [20_000, 17_000]),
        "more.safetensors": weights("more", [18_000], odd=True),
    },
}


def write_sources(root: Path) -> None:
    """Make the directories that are pushed."""
    for name, files in SOURCES.items():
        for path, data in files.items():
            file = root / "source" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


class Workload:
    """A store and a log in use, and a file that says what they have promised."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "disk" / "home"
        self.acks = os.open(root / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.store = Store(self.home)
        self.log = Log.open(
            self.home / "log.db", Identity.load_or_create(self.home / "device.key"), clock_ns=lambda: 7
        )
        if not self.log.cluster:
            entry = self.log.create_cluster("anna")
            self.say("entry", id=entry.hash.hex())

    def say(self, kind: str, **fields: object) -> None:
        os.write(self.acks, (json.dumps({"kind": kind, **fields}) + "\n").encode())

    def append(self, name: str, tree: TreeId) -> None:
        ops: list[KnownOp] = [RefSet(volume="models", name=name, rev=1, tree=tree, size_bytes=1, files=1)]
        self.say("entry", id=self.log.append(ops).hash.hex())

    def push(self, name: str) -> TreeId:
        ingest = Ingest(self.store, workers=1)
        tree = ingest.source(scan(self.root / "source" / name, Choice()))
        self.say("tree", id=tree.hex())
        self.append(name, tree)
        return tree

    def arrive(self, name: str, numbers: list[int] | None = None, *, sync: bool = True) -> Arriving:
        """Write blocks of an arriving object, each synced on its own."""
        found, pieces = (
            manifest_of(name, ARRIVING[name]),
            blocks_of(manifest_of(name, ARRIVING[name]), ARRIVING[name]),
        )
        arriving = self.store.begin(found)
        assert arriving is not None
        for number in range(found.block_count) if numbers is None else numbers:
            arriving.write(number, memoryview(pieces[number]))
            if sync and not arriving.small:
                self.store.sync_arriving([arriving])
                self.say("present", id=found.id.hex(), runs=bits.to_runs(arriving.present))
        return arriving

    def arrive_in_part(self, name: str, numbers: list[int]) -> None:
        """Write blocks of an arriving object and give up for now, as a fetch does whose last link has gone."""
        self.store.abandon(self.arrive(name, numbers).manifest.id)

    def finish(self, batch: list[Arriving]) -> None:
        self.store.finish(batch)
        for arriving in batch:
            self.say("whole", id=arriving.manifest.id.hex())

    def forgo(self, object_id: ObjectId) -> None:
        self.say("forgo", id=object_id.hex())

    def first_phase(self) -> None:
        """Push, fetch, begin again what was dropped; then the process is killed."""
        self.push("first")
        batch = [self.arrive("aligned.safetensors"), self.arrive("odd.safetensors", sync=False)]
        self.finish([*batch, self.arrive("small.json")])
        dropped = self.arrive("dropped.safetensors").manifest
        self.forgo(dropped.id)
        care.drop_object(self.store, dropped.id)
        self.arrive_in_part("dropped.safetensors", [1])
        self.arrive_in_part("waiting.safetensors", [0, 2])
        self.finish([self.arrive("rotten.safetensors")])
        self.rot_and_repair(manifest_of("rotten.safetensors", ARRIVING["rotten.safetensors"]))

    def second_phase(self) -> None:
        """Go on after the kill: rot, quarantine and repair; drop and collect; push again; close in order."""
        self.arrive_in_part("waiting.safetensors", [3])
        self.rot_and_repair(manifest_of("rotten.safetensors", ARRIVING["rotten.safetensors"]))
        second = self.push("second")
        live = {bytes(object_id) for object_id in self.store.objects_below(second)}
        live |= {row.id for row in self.store.index.objects() if not row.whole}
        for row in self.store.index.objects():
            if row.id not in live:
                self.forgo(row.id)
        self.say("only", id=second.hex())
        care.collect(self.store, live, {second})
        self.finish([self.arrive("waiting.safetensors")])
        self.store.close()
        self.log.close()

    def rot_and_repair(self, found: Manifest) -> None:
        self.forgo(found.id)
        path = self.store.extents(found.id)[-1].path
        descriptor = os.open(path, os.O_RDWR)
        os.pwrite(descriptor, b"rot", self.store.extents(found.id)[-1].offset + 10)
        os.fsync(descriptor)
        os.close(descriptor)
        damage = care.verify_object(self.store, found.id, advance=lambda _: None, stopped=lambda: False)
        assert damage is not None
        assert len(damage.blocks) == 1
        care.quarantine(self.store, damage)
        good = bits.full(found.block_count) & ~bits.of(damage.blocks)
        self.say("present", id=found.id.hex(), runs=bits.to_runs(good))
        self.finish([self.arrive("rotten.safetensors", list(damage.blocks))])


def _nothing(*_: object) -> None:
    return None


def _forgetful_index() -> None:
    transaction = Index.transaction

    def forgetful(index: Index, *, durable: bool = False) -> AbstractContextManager[None]:
        return transaction(index, durable=durable and False)

    setattr(Index, "transaction", forgetful)  # noqa: B010 - on purpose


SABOTAGE: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "no-file-sync": lambda: setattr(disk, "sync_file", _nothing),
    "no-directory-sync": lambda: setattr(disk, "sync_directory", _nothing),
    "no-record-sync": lambda: setattr(Store, "sync_records", _nothing),
    "no-index-sync": _forgetful_index,
}


def main() -> None:
    """Run one phase."""
    SABOTAGE[sys.argv[3]]()
    workload = Workload(Path(sys.argv[1]))
    if sys.argv[2] == "1":
        workload.first_phase()
        os._exit(9)
    workload.second_phase()


if __name__ == "__main__":
    main()
