"""Packs: appended, synced, scanned; torn, rotten and compacted."""

import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tbshare.errors import BlockCorrupt, DiskFull
from tbshare.store import disk, pack
from tbshare.store.pack import Kind, Packs, Place
from tests.store.conftest import Mount
from tests.store.weights_files import random_bytes

ID = bytes(range(32))


@pytest.fixture
def packs(tmp_path: Path) -> Iterator[Packs]:
    opened = Packs(tmp_path)
    yield opened
    opened.close()


def reopened(packs: Packs, tmp_path: Path) -> Packs:
    packs.close()
    return Packs(tmp_path)


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=300)), max_size=9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_appended_is_read_and_scanned(tmp_path: Path, records: list[tuple[Kind, bytes]]) -> None:
    folder = tmp_path / secrets.token_hex(4)
    folder.mkdir()
    packs = Packs(folder)
    places = [packs.append(kind, ID, payload) for kind, payload in records]
    assert [packs.read(kind, ID, place) for (kind, _), place in zip(records, places, strict=True)] == [
        payload for _, payload in records
    ]
    packs.sync()
    packs = reopened(packs, folder)
    found = [record for number in packs.numbers() for record in packs.scan(number)]
    assert [(record.kind, record.place) for record in found] == [
        (kind, place) for (kind, _), place in zip(records, places, strict=True)
    ]
    assert all(record.sound and record.id == ID for record in found)
    packs.close()


def test_a_read_of_the_wrong_thing_is_refused(packs: Packs) -> None:
    place = packs.append(Kind.TREE, ID, b"payload")
    for kind, name, wrong in [
        (Kind.MANIFEST, ID, place),
        (Kind.TREE, bytes(32), place),
        (Kind.TREE, ID, Place(1, place.offset, place.length - 1)),
        (Kind.TREE, ID, Place(1, place.offset + 1, place.length)),
        (Kind.TREE, ID, Place(1, place.offset + 500, place.length)),
    ]:
        with pytest.raises(BlockCorrupt):
            packs.read(kind, name, wrong)


@pytest.mark.parametrize("cut", [1, 40, 63, 64, 65, 100])
def test_a_torn_tail_is_cut_and_the_rest_kept(packs: Packs, tmp_path: Path, cut: int) -> None:
    first = packs.append(Kind.CONTENT, ID, b"first" * 9)
    packs.append(Kind.CONTENT, ID, b"second" * 20)
    packs.sync()
    path = packs.path(1)
    os.truncate(path, path.stat().st_size - cut)
    packs = reopened(packs, tmp_path)
    (found,) = [record for record in packs.scan(1) if record.sound]
    assert found.place == first
    end = first.offset + first.length
    packs.cut_tail(1, end)
    assert path.stat().st_size == end
    again = packs.append(Kind.TREE, ID, b"third")
    assert packs.read(Kind.TREE, ID, again) == b"third"
    assert [record.sound for record in packs.scan(1)] == [True, True]
    packs.close()


def test_rot_in_the_middle_costs_one_record(packs: Packs) -> None:
    payloads = [random_bytes(number, 1000) for number in range(5)]
    places = [packs.append(Kind.CONTENT, ID, payload) for payload in payloads]
    packs.sync()
    for at in (places[2].offset - 70, places[2].offset - 60, places[2].offset - 10, places[2].offset + 500):
        before = packs.path(1).read_bytes()
        rotten = bytearray(before)
        rotten[at] ^= 0xFF
        packs.path(1).write_bytes(bytes(rotten))
        sound = [record.place for record in packs.scan(1) if record.sound]
        assert sound == places[:2] + places[3:] or at == places[2].offset - 70
        assert len(sound) >= 4
        packs.path(1).write_bytes(before)


def test_a_record_inside_a_payload_is_no_record(packs: Packs) -> None:
    """Somebody pushes a pack, or a file made to look like one."""
    packs.append(Kind.TREE, ID, b"inner")
    inner = packs.path(1).read_bytes()
    packs.append(Kind.CONTENT, bytes(32), inner)
    assert [record.id for record in packs.scan(1)] == [ID, bytes(32)]


def test_a_full_pack_is_followed_by_the_next(
    packs: Packs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pack, "PACK_BYTES_MAX", 500)
    places = [packs.append(Kind.CONTENT, ID, bytes(200)) for _ in range(5)]
    assert [place.pack for place in places] == [1, 1, 2, 2, 3]
    packs.sync()
    assert packs.numbers() == [1, 2, 3]
    packs.remove(1)
    assert packs.numbers() == [2, 3]
    packs = reopened(packs, tmp_path)
    assert packs.last == 3
    packs.close()


def test_names_that_are_no_packs_are_left_alone(packs: Packs, tmp_path: Path) -> None:
    packs.append(Kind.TREE, ID, b"")
    (tmp_path / "pack-000001.bak").write_bytes(b"")
    (tmp_path / "pack-").write_bytes(b"")
    assert Packs(tmp_path).numbers() == [1]


def test_after_a_failed_sync_nothing_more_goes_to_that_pack(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = packs.append(Kind.TREE, ID, b"kept")
    packs.sync()
    place = packs.append(Kind.TREE, bytes(32), b"lost")

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "the disk")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_file", failing)
        with pytest.raises(OSError, match="the disk"):
            packs.sync()
    assert packs.take_lost() == [(Kind.TREE, bytes(32), place)]
    assert packs.take_lost() == []
    again = packs.append(Kind.TREE, bytes(32), b"lost")
    assert again.pack == kept.pack + 1
    packs.sync()
    assert packs.read(Kind.TREE, bytes(32), again) == b"lost"


@pytest.mark.root
def test_a_full_disk_leaves_the_pack_as_it_was(mount: Mount) -> None:
    folder = mount("tmpfs", 1)
    packs = Packs(folder)
    first = packs.append(Kind.CONTENT, ID, bytes(900_000))
    with pytest.raises(DiskFull):
        packs.append(Kind.CONTENT, bytes(32), bytes(900_000))
    second = packs.append(Kind.TREE, ID, b"fits")
    packs.sync()
    packs = reopened(packs, folder)
    assert [record.place for record in packs.scan(1) if record.sound] == [first, second]
    packs.close()
