"""Arriving objects: absent, written, present, and what a failing disk does to them."""

import errno
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tbshare.content import bits
from tbshare.content.block import block_id
from tbshare.errors import DiskFull
from tbshare.store import disk
from tbshare.store.arriving import Arriving
from tbshare.store.store import Store
from tests.store.conftest import FILES, Mount, OpenStore, begin, by_blocks, composed, fill
from tests.store.weights_files import blocks_of, manifest_of, random_bytes

ODD = "odd.safetensors"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """While the list holds something, syncs of files fail with it."""
    reasons: list[str] = []
    real = disk.sync_file

    def sync_file(descriptor: int) -> None:
        if reasons:
            raise OSError(errno.EIO, reasons[0])
        real(descriptor)

    monkeypatch.setattr(disk, "sync_file", sync_file)
    return reasons


@pytest.mark.parametrize("name", ["exact.bin", "large.bin", "aligned.safetensors", ODD, "packed.json", "empty"])
def test_from_absent_to_whole(store: Store, name: str) -> None:
    found, pieces, arriving = begin(store, name, FILES[name])
    everything = bits.full(found.block_count)
    assert (arriving.missing, arriving.readable) == (everything, 0)
    fill(arriving, pieces)
    assert (arriving.missing, arriving.readable, arriving.complete) == (0, everything, True)
    assert [arriving.read(number) for number in range(found.block_count)] == pieces
    assert not store.is_whole(found.id)
    store.finish([arriving])
    assert store.is_whole(found.id)
    assert store.held(found.id) == everything
    assert composed(store, found.id) == by_blocks(store, found.id) == FILES[name]
    assert store.begin(found) is None
    assert not list(store.home.folder("partial").iterdir())


def test_only_what_is_synced_is_present(open_store: OpenStore, store: Store) -> None:
    found, pieces, arriving = begin(store, ODD, FILES[ODD])
    fill(arriving, pieces, [0, 1])
    assert arriving.present == 0
    store.sync_arriving([arriving])
    assert (arriving.present, arriving.written) == (0b11, 0)
    row = store.row(found.id)
    assert row is not None
    assert (row.present, row.whole, row.place) == (0b11, False, "shifted")
    store.close()
    again = open_store()
    assert again.held(found.id) == 0b11
    arriving = again.begin(found) or pytest.fail("is whole")
    assert arriving.missing == bits.full(found.block_count) & ~0b11
    fill(arriving, pieces, [2, 3])
    again.finish([arriving])
    assert composed(again, found.id) == FILES[ODD]


def test_a_failed_sync_makes_blocks_absent_and_is_not_repeated(store: Store, failing: list[str]) -> None:
    found, pieces, arriving = begin(store, ODD, FILES[ODD])
    fill(arriving, pieces, [0])
    store.sync_arriving([arriving])
    fill(arriving, pieces, [1, 2])
    failing.append("bad sector")
    with pytest.raises(OSError, match="bad sector"):
        store.sync_arriving([arriving])
    failing.clear()
    store.sync_arriving([arriving])
    assert (arriving.present, arriving.written) == (0b1, 0)
    row = store.row(found.id)
    assert row is not None
    assert row.present == 0b1
    fill(arriving, pieces, [1, 2, 3])
    store.finish([arriving])
    assert composed(store, found.id) == FILES[ODD]


def test_a_block_written_while_a_sync_fails_is_absent_too(
    store: Store, monkeypatch: pytest.MonkeyPatch, failing: list[str]
) -> None:
    """The kernel reports a failure once; the pages of a write that was under way may be among those dropped."""
    _, pieces, arriving = begin(store, ODD, FILES[ODD])
    fill(arriving, pieces, [0])
    failing.append("bad sector")
    real = disk.write_all

    def write_all(descriptor: int, data: memoryview, offset: int) -> None:
        real(descriptor, data, offset)
        with pytest.raises(OSError, match="bad sector"):
            arriving.sync()

    monkeypatch.setattr(disk, "write_all", write_all)
    with pytest.raises(OSError, match="while a block was written"):
        fill(arriving, pieces, [1])
    assert arriving.readable == 0


def test_a_block_written_just_before_a_sync_fails_is_absent_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pieces, arriving = begin(store, ODD, FILES[ODD])
    fill(arriving, pieces, [0])

    def failing(_: int) -> None:
        fill(arriving, pieces, [1])
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(disk, "sync_file", failing)
    with pytest.raises(OSError, match="bad sector"):
        store.sync_arriving([arriving])
    assert arriving.readable == 0


def test_a_manifest_that_could_not_be_synced_is_kept_anew(
    store: Store, failing: list[str], open_store: OpenStore
) -> None:
    found = manifest_of("packed.json", FILES["packed.json"])
    store.add_small(found, FILES["packed.json"])
    failing.append("bad sector")
    with pytest.raises(OSError, match="bad sector"):
        store.sync_records()
    assert not store.is_whole(found.id)
    assert store.manifest(found.id) in (None, found)
    failing.clear()
    store.add_small(found, FILES["packed.json"])
    store.sync_records()
    store.close()
    assert by_blocks(open_store(), found.id) == FILES["packed.json"]


def test_a_kill_between_padding_and_renaming(
    store: Store, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is read-only and its header is the padded one; both must be as before when it is begun again."""
    found, pieces, arriving = begin(store, ODD, FILES[ODD])
    fill(arriving, pieces)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            store.finish([arriving])
    store.close()
    assert store.home.partial(found.id).stat().st_mode & 0o777 == 0o444
    again = open_store()
    arriving = again.begin(found) or pytest.fail("is whole")
    assert arriving.complete
    assert [block_id(arriving.read(number)) for number in range(found.block_count)] == [
        found.block(number) for number in range(found.block_count)
    ]
    again.finish([arriving])
    assert composed(again, found.id) == FILES[ODD]


@pytest.mark.root
def test_a_read_only_partial_file_opens_for_its_owner() -> None:
    """Root may open anything: somebody else tries."""
    if os.geteuid() != 0:
        pytest.skip("becomes another user: needs root")
    data = random_bytes(1, 70_000)
    code = (
        "import os, sys; from pathlib import Path; from tests.store.weights_files import *\n"
        "from tbshare.store.arriving import Arriving\n"
        "os.setuid(65534); Arriving(manifest_of('a', random_bytes(1, 70_000)), Path(sys.argv[1]), 1).close()"
    )
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / manifest_of("a", data).id.hex()
        path.write_bytes(data)
        path.chmod(0o444)
        os.chown(path, 65534, 65534)
        os.chown(folder, 65534, 65534)
        environment = {**os.environ, "PYTHONPATH": str(root)}
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)


def test_a_second_copy_of_a_block_changes_nothing(store: Store) -> None:
    _, pieces, arriving = begin(store, ODD, FILES[ODD])
    fill(arriving, pieces, [1])
    arriving.write(1, memoryview(bytes(len(pieces[1]))))
    assert arriving.read(1) == pieces[1]


def test_closed_while_written(store: Store) -> None:
    found, pieces, arriving = begin(store, ODD, FILES[ODD])
    store.abandon(found.id)
    with pytest.raises(OSError, match="no longer arriving"):
        fill(arriving, pieces, [0])
    assert arriving.descriptor == -1


def test_many_threads_write_and_sync(store: Store) -> None:
    data = random_bytes("threads", 9 * 4 * 1024 * 1024 + 3)
    found, pieces, arriving = begin(store, "a.bin", data)
    threads = [
        threading.Thread(target=fill, args=(arriving, pieces, list(range(start, len(pieces), 3))))
        for start in range(3)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        store.sync_arriving([arriving])
    store.finish([arriving])
    assert composed(store, found.id) == data


def test_forgotten_blocks_are_absent(store: Store) -> None:
    _, pieces, arriving = begin(store, ODD, FILES[ODD])
    fill(arriving, pieces)
    arriving.forget(0b10)
    assert arriving.missing == 0b10


@pytest.mark.root
def test_space_is_reserved_before_bytes_are_promised(mount: Mount, tmp_path: Path) -> None:
    folder = mount("tmpfs", 1)
    found = manifest_of("a", random_bytes(1, 3_000_000))
    with pytest.raises(DiskFull):
        Arriving(found, folder / found.id.hex(), 0)
    assert not list(folder.iterdir())
    Arriving(found, tmp_path / found.id.hex(), 0).close()
    assert (tmp_path / found.id.hex()).stat().st_blocks * 512 >= found.size
    assert len(blocks_of(found, bytes(found.size))) == found.block_count
