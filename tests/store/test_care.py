"""Verify, quarantine and repair; dropping, collecting, compacting; counting."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tbshare.content import bits
from tbshare.content.block import ObjectId, TreeId
from tbshare.store.care import (
    Damage,
    collect,
    compact,
    disk_bytes,
    drop_object,
    quarantine,
    unique_to,
    verify_object,
)
from tbshare.store.pack import Kind, Place
from tbshare.store.store import Store
from tests.store.conftest import FILES, OpenStore, begin, by_blocks, composed, damage_of, fill, ingest
from tests.store.weights_files import blocks_of, manifest_of, random_bytes

ODD = "odd.safetensors"


def rot(path: Path, offset: int) -> None:
    """Change a byte of a read-only file."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    descriptor = os.open(path, os.O_RDWR)
    byte = os.pread(descriptor, 1, offset)[0]
    os.pwrite(descriptor, bytes([byte ^ 0x40]), offset)
    os.close(descriptor)
    path.chmod(mode)


def verify(store: Store, object_id: ObjectId) -> Damage:
    found = verify_object(store, object_id, advance=lambda _: None, stopped=lambda: False)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["exact.bin", "large.bin", "aligned.safetensors", ODD, "packed.json"])
def test_rot_is_found_put_aside_and_mended(store: Store, open_store: OpenStore, source: Path, name: str) -> None:
    object_id = ingest(store, source)[name]
    found = manifest_of(name, FILES[name])
    last = store.extents(object_id)[-1]
    rot(last.path, last.offset + last.end - last.start - 1)
    damage = verify(store, object_id)
    bad = (found.block_count - 1,)
    assert damage.blocks == bad
    quarantine(store, damage)
    assert not store.is_whole(object_id)
    if name != "packed.json":
        (aside,) = store.home.folder("quarantine").iterdir()
        assert aside.name.startswith(last.path.name)
        assert aside.stat().st_size == last.offset + last.end - last.start
    assert [(each[1], tuple(each[2])) for each in store.index.quarantined()] == [(object_id, bad)]
    store.close()
    store = open_store()
    arriving = store.begin(found)
    assert arriving is not None
    wanted = arriving.missing
    assert wanted == (1 << bad[0] if name != "packed.json" else bits.full(found.block_count))
    fill(arriving, blocks_of(found, FILES[name]), list(bits.members(wanted)))
    store.finish([arriving])
    assert composed(store, object_id) == by_blocks(store, object_id) == FILES[name]


def test_a_header_that_rotted_is_fetched_and_kept_anew(store: Store, source: Path) -> None:
    object_id = ingest(store, source)[ODD]
    header = store.extents(object_id)[0]
    rot(header.path, header.offset + 3)
    damage = verify(store, object_id)
    assert damage.blocks == (0,)
    quarantine(store, damage)
    found = manifest_of(ODD, FILES[ODD])
    arriving = store.begin(found)
    assert arriving is not None
    assert arriving.missing == 1
    fill(arriving, blocks_of(found, FILES[ODD]), [0])
    store.finish([arriving])
    assert composed(store, object_id) == FILES[ODD]
    assert damage_of(store, object_id) is None


def test_a_file_cut_short(store: Store, source: Path) -> None:
    object_id = ingest(store, source)["large.bin"]
    os.truncate(store.extents(object_id)[0].path, 10)
    assert verify(store, object_id).blocks == (0, 1)


def test_a_manifest_that_rotted_waits_for_a_good_one(store: Store, source: Path, open_store: OpenStore) -> None:
    object_id = ingest(store, source)["exact.bin"]
    place = store.index.record(Kind.MANIFEST, object_id)
    assert place is not None
    store.close()
    rot(store.packs.path(place.pack), place.offset)
    store = open_store()  # recovery puts the file, which nothing explains any more, aside
    assert not store.is_whole(object_id)
    assert ingest(store, source)["exact.bin"] == object_id
    assert composed(store, object_id) == FILES["exact.bin"]


def test_a_manifest_that_rots_while_the_store_is_open(store: Store, source: Path) -> None:
    object_id = ingest(store, source)["exact.bin"]
    place = store.index.record(Kind.MANIFEST, object_id)
    assert place is not None
    rot(store.packs.path(place.pack), place.offset)
    damage = verify(store, object_id)
    assert "manifest" in damage.text
    quarantine(store, damage)
    assert store.manifest(object_id) is None
    found = manifest_of("exact.bin", FILES["exact.bin"])
    assert store.begin(found) is None  # whole; what was missing is here again
    assert store.manifest(object_id) == found
    assert composed(store, object_id) == FILES["exact.bin"]


def test_verify_can_be_stopped(store: Store, source: Path) -> None:
    object_id = ingest(store, source)["large.bin"]
    moved: list[int] = []
    assert verify_object(store, object_id, advance=moved.append, stopped=lambda: len(moved) == 1) is None
    assert moved == [4 * 1024 * 1024]


# ---- dropping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FILES))
def test_dropped(store: Store, open_store: OpenStore, source: Path, name: str) -> None:
    objects = ingest(store, source)
    assert drop_object(store, objects[name]) == len(FILES[name])
    assert drop_object(store, objects[name]) == 0
    store.close()
    again = open_store()
    assert not again.notices
    for other, object_id in objects.items():
        assert again.is_whole(object_id) == (other != name)
    assert ingest(again, source) == objects
    assert composed(again, objects[name]) == FILES[name]


def test_a_partial_object_dropped(store: Store) -> None:
    found, pieces, arriving = begin(store, ODD, FILES[ODD])
    fill(arriving, pieces, [0])
    store.sync_arriving([arriving])
    drop_object(store, found.id)
    assert store.row(found.id) is None
    assert not list(store.home.folder("partial").iterdir())
    with pytest.raises(OSError, match="no longer arriving"):
        fill(arriving, pieces, [1])


def test_collect_keeps_what_is_needed_and_what_arrives(
    store: Store, open_store: OpenStore, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shared").write_bytes(FILES["exact.bin"])
        (tmp_path / name / name).write_bytes(random_bytes(name, 70_000))
        (tmp_path / name / "small").write_bytes(random_bytes(name, 60_000))
    one, two = ingest(store, tmp_path / "one"), ingest(store, tmp_path / "two")
    arriving, pieces, half = begin(store, ODD, FILES[ODD])
    fill(half, pieces, [0])
    trees = [TreeId(record_id) for _, record_id, _ in store.index.records(Kind.TREE)]
    live_trees = {bytes(tree) for tree in trees if two["two"] in store.objects_below(tree)}
    size = store.packs.path(1).stat().st_size
    objects, freed = collect(store, set(two.values()), live_trees)
    assert (objects, freed) == (2, 130_000)
    assert store.packs.numbers() == [2]
    assert store.packs.path(2).stat().st_size < size * 0.6
    fill(half, pieces, [1, 2, 3])
    store.finish([half])
    store.close()
    store.home.index.unlink()
    again = open_store()
    assert {row.id for row in again.index.objects()} == {*two.values(), arriving.id}
    assert {record_id for _, record_id, _ in again.index.records(Kind.TREE)} == live_trees
    for object_id in {*two.values(), arriving.id}:
        assert damage_of(again, object_id) is None
    assert not again.is_whole(one["one"])


def test_reading_goes_on_while_packs_are_compacted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader asks where a record is, and before it reads, the pack is gone."""
    kept, junk = random_bytes("kept", 5_000), random_bytes("junk", 20_000)
    found = manifest_of("kept", kept)
    store.add_small(found, kept)
    real = store.index.record
    compacted: list[int] = []

    def record(kind: Kind, record_id: bytes) -> Place | None:
        place = real(kind, record_id)
        if not compacted:
            compacted.append(1)
            store.add_small(manifest_of("junk", junk), junk)
            collect(store, {found.id}, set())
        return place

    monkeypatch.setattr(store.index, "record", record)
    reads: list[tuple[Callable[[], bytes | None], bytes]] = [
        (lambda: store.record(Kind.CONTENT, found.id), kept),
        (lambda: store.record(Kind.MANIFEST, found.id), found.encoded),
        (lambda: store.read_block(found.id, 0), kept),
    ]
    for read, expected in reads:
        last = store.packs.last
        compacted.clear()
        assert read() == expected
        assert store.packs.numbers() == [last + 1]


def test_the_number_of_a_pack_that_is_gone_may_come_again(
    store: Store, open_store: OpenStore, source: Path
) -> None:
    ingest(store, source)
    collect(store, set(), set())
    assert store.packs.numbers() == []
    store.close()
    store = open_store()
    objects = ingest(store, source)
    assert store.packs.numbers() == [1]
    shutil.copytree(store.home.root, source.parent / "after")  # what a kill leaves
    again = open_store(source.parent / "after")
    for name, data in FILES.items():
        assert composed(again, objects[name]) == data


def test_a_pack_with_rot_is_not_compacted_away(store: Store) -> None:
    small = {name: random_bytes(name, 50_000) for name in ("a", "b", "c", "d")}
    for name, data in small.items():
        store.add_small(manifest_of(name, data), data)
    store.sync_records()
    kept = manifest_of("a", small["a"]).id
    for name in ("b", "c", "d"):
        drop_object(store, manifest_of(name, small[name]).id)
    extent = store.extents(kept)[0]
    rot(extent.path, extent.offset)
    compact(store)
    assert store.packs.numbers() == [1]
    rot(extent.path, extent.offset)
    assert store.open_block(kept, 0) is not None
    compact(store)
    assert store.packs.numbers() == [2]
    assert composed(store, kept) == by_blocks(store, kept) == small["a"]


# ---- counting -----------------------------------------------------------------------------------------------


def test_what_the_store_takes(store: Store, source: Path) -> None:
    (source / "again.bin").write_bytes(FILES["large.bin"] + b"!")
    objects = ingest(store, source)
    counted = disk_bytes(store)
    total = sum(map(len, FILES.values())) + len(FILES["large.bin"]) + 1
    assert counted.logical == total
    assert total - 4 * 1024 * 1024 - 1000 < counted.unique <= total - 4 * 1024 * 1024
    assert counted.disk > 8 * 1024 * 1024
    assert counted.quarantine == 0
    path = store.extents(objects["exact.bin"])[0].path
    rot(path, 0)
    quarantine(store, verify(store, objects["exact.bin"]))
    assert disk_bytes(store).quarantine >= len(FILES["exact.bin"])


def test_what_dropping_would_free(store: Store, source: Path) -> None:
    objects = ingest(store, source)
    some, others = [objects["large.bin"], objects["exact.bin"]], [objects["exact.bin"]]
    assert unique_to(store, some, others) == len(FILES["large.bin"])
    assert unique_to(store, [*some, *some], []) == len(FILES["large.bin"]) + len(FILES["exact.bin"])
