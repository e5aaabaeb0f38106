"""Replays what strace recorded into thousands of power cuts, and opens the store after each.

`python power_loss_check.py ROOT STATES SHARD SHARDS`: prints a line of JSON with how many states were checked; a
state in which a promise is broken ends it with what was lost, and how to see that state again.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from blake3 import blake3

from tbshare.content import bits
from tbshare.content.block import ObjectId, TreeId, block_id
from tbshare.peers.identity import Identity
from tbshare.store.care import verify_object
from tbshare.store.ingest import Ingest
from tbshare.store.source import Choice, scan
from tbshare.store.store import Store
from tbshare.volumes.log import Log
from tests.store.disk_model import Call, Disk, Tree, bytes_of, calls_of
from tests.store.power_loss_workload import ARRIVING
from tests.store.weights_files import blocks_of, manifest_of

_LOG_FILES = ("home/log.db", "home/log.db-wal", "home/device.key")


class Lost(Exception):  # noqa: N818 - named for what happened
    """Something that was acknowledged is not there, or something wrong is."""


@dataclass(slots=True)
class Promised:
    """What the store and the log have acknowledged so far."""

    trees: set[str] = field(default_factory=set[str])
    whole: set[str] = field(default_factory=set[str])
    present: dict[str, int] = field(default_factory=dict[str, int])
    entries: set[str] = field(default_factory=set[str])
    forgone: set[str] = field(default_factory=set[str])

    def take(self, line: str) -> None:
        """Add one acknowledgement."""
        event = json.loads(line)
        kind, name = event["kind"], event["id"]
        if kind == "tree":
            self.trees.add(name)
        elif kind == "whole":
            self.whole.add(name)
            self.forgone.discard(name)
        elif kind == "present":
            self.forgone.discard(name)
            self.present[name] = bits.from_runs([(start, length) for start, length in event["runs"]], 1 << 20)
        elif kind == "entry":
            self.entries.add(name)
        elif kind == "forgo":
            self.forgone.add(name)
            self.whole.discard(name)
            self.present.pop(name, None)
        elif kind == "only":
            self.trees = {name}


class Checker:
    """Opens what a power cut left, and compares it with what was promised."""

    def __init__(self, work: Path, sources: Path) -> None:
        self.work = work
        self.sources = sources
        self.promised = Promised()
        self.logs: set[bytes] = set()
        self.pieces = {
            (found := manifest_of(name, data)).id: (found, blocks_of(found, data))
            for name, data in ARRIVING.items()
        }

    def check(self, tree: Tree, *, go_on: bool) -> None:
        """Raise Lost, or whatever the store raised, when a promise is broken."""
        home = self.work / "home"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        for name, data in sorted(tree.items()):
            path = os.path.join(self.work, name)
            if data is None:
                os.mkdir(path)
            else:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
                os.write(descriptor, data)
                os.close(descriptor)
        store = Store(home)
        try:
            self._check_store(store)
            if go_on:
                self._go_on(store)
        finally:
            store.close()
        if go_on:  # and everything holds again when the index is made anew
            for name in ("index.db", "index.db-wal"):
                (home / name).unlink(missing_ok=True)
            store = Store(home)
            try:
                self._check_store(store)
            finally:
                store.close()
        self._check_log(home, tree)

    def _check_store(self, store: Store) -> None:
        promised = self.promised
        for tree in promised.trees:
            self._check_tree(store, TreeId(bytes.fromhex(tree)))
        for name in promised.whole:
            if not store.is_whole(ObjectId(bytes.fromhex(name))):
                raise Lost(f"object {name} was acknowledged as whole and is not")
        for name, wanted in promised.present.items():
            held = store.held(ObjectId(bytes.fromhex(name)))
            if wanted & ~held:
                raise Lost(f"blocks {wanted:b} of {name} were acknowledged; {held:b} are there")
        for row in store.index.objects():
            if not row.whole:
                self._check_partial(store, row.id)
            elif row.id.hex() not in promised.forgone:
                self._check_sound(store, row.id, f"{row.place} object, said to be whole")

    def _check_tree(self, store: Store, tree: TreeId) -> None:
        for path, object_id, entry in store.files_below(tree):
            if object_id.hex() in self.promised.forgone:
                continue
            if not store.is_whole(object_id):
                raise Lost(f"file {path} of an acknowledged tree is not whole")
            if sum(extent.end - extent.start for extent in store.extents(object_id)) != entry.size:
                raise Lost(f"the extents of file {path} of an acknowledged tree do not make it up")

    @staticmethod
    def _check_sound(store: Store, object_id: ObjectId, what: str) -> None:
        damage = verify_object(store, object_id, advance=lambda _: None, stopped=lambda: False)
        if damage is not None:
            raise Lost(f"{what} {object_id.hex()}: {damage.text}")

    @staticmethod
    def _check_partial(store: Store, object_id: ObjectId) -> None:
        found = store.manifest(object_id)
        arriving = None if found is None else store.begin(found)
        if found is None or arriving is None:
            raise Lost(f"partial object {object_id.hex()} has no manifest, or cannot be begun again")
        for number in bits.members(arriving.readable):
            if block_id(arriving.read(number)) != found.block(number):
                raise Lost(f"block {number} of partial object {object_id.hex()} is readable and wrong")
        store.abandon(object_id)

    def _go_on(self, store: Store) -> None:
        """Complete what was arriving and push again; both must work whatever state this is."""
        for found, pieces in self.pieces.values():
            arriving = store.begin(found)
            if arriving is None:
                continue
            for number in list(bits.members(arriving.missing)):
                arriving.write(number, memoryview(pieces[number]))
            store.finish([arriving])
            self._check_sound(store, found.id, "object completed after the crash")
        for name in ("first", "second"):
            tree = Ingest(store, workers=1).source(scan(self.sources / name, Choice()))
            for _, object_id, _ in store.files_below(tree):
                if object_id.hex() not in self.promised.forgone:
                    self._check_sound(store, object_id, "object pushed again after the crash")

    def _check_log(self, home: Path, tree: Tree) -> None:
        key = blake3(repr([(name, tree.get(name)) for name in _LOG_FILES]).encode())
        key.update("".join(sorted(self.promised.entries)).encode())
        if key.digest() in self.logs:
            return
        self.logs.add(key.digest())
        log = Log.open(home / "log.db", Identity.load_or_create(home / "device.key"), clock_ns=lambda: 7)
        try:
            log.check()
            if log.damaged:
                raise Lost(f"a power cut must not damage anything: {log.damaged}")
            missing = self.promised.entries - {entry.hash.hex() for entry in log.state().entries}
            if missing:
                raise Lost(f"log.db lost {len(missing)} acknowledged entries")
        finally:
            log.close()


def key_of(tree: Tree, promises: int) -> bytes:
    """Return a hash of a state and of what was promised when it arose."""
    hasher = blake3(str(promises).encode())
    for name in sorted(tree):
        data = tree[name]
        hasher.update(name.encode() + b"\0" + (b"" if data is None else blake3(data).digest()))
    return hasher.digest()


def points(root: Path, disk: Disk, promised: Promised) -> Iterator[tuple[int, int, Call]]:
    """Replay the recorded calls; yield number, promises so far and the call after each that matters."""
    number = promises = 0
    for phase in ("1", "2"):
        disk.begin_process()
        acks = -1
        for call in calls_of(root / f"trace.{phase}"):
            number += 1
            if call.name == "openat" and bytes_of(call.arguments[1]) == os.fsencode(root / "acks"):
                acks = call.result
            elif call.name == "write" and int(call.arguments[0]) == acks:
                promised.take(bytes_of(call.arguments[1]).decode())
                promises += 1
                yield number, promises, call
            elif disk.apply(call):
                yield number, promises, call


def crashes(disk: Disk, number: int, round_number: int) -> Iterator[tuple[str, Tree]]:
    """Yield states for a crash at one point: the four extremes in the first round, then one of chance a round."""
    if round_number == 0:
        for names in (0.0, 1.0):
            for data in (0.0, 1.0):
                yield f"{number} {names} {data}", disk.crash(Random(number), names=names, data=data)
    else:
        yield f"{number} round {round_number}", disk.crash(Random(f"{number}-{round_number}"))


def main() -> None:
    """Check states until enough different ones were seen."""
    root, wanted, shard, shards = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    work = root / f"state-{shard}"
    seen: set[bytes] = set()
    started, round_number, sampled = time.monotonic(), 0, 0
    while len(seen) < wanted and round_number < 4000:
        checker = Checker(work, root / "source")
        disk = Disk(root / "disk")
        for number, promises, call in points(root, disk, checker.promised):
            if number % shards != shard:
                continue
            for name, tree in crashes(disk, number, round_number):
                sampled += 1
                key = key_of(tree, promises)
                if key in seen:
                    continue
                seen.add(key)
                try:
                    checker.check(tree, go_on=len(seen) % 16 == 0)
                except Exception as error:
                    where = f"after {call.name}({', '.join(call.arguments)[:300]}), state {name}"
                    error.add_note(f"power lost {where}")
                    raise
            if len(seen) >= wanted:
                break
        round_number += 1
    shutil.rmtree(work, ignore_errors=True)
    seconds = time.monotonic() - started
    print(json.dumps({"states": len(seen), "sampled": sampled, "seconds": seconds, "rounds": round_number}))  # noqa: T201


if __name__ == "__main__":
    main()
