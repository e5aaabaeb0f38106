"""Taking files in: by clone and by copy, and from a user who goes on changing them."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tbshare.errors import DiskFull, InputRefused, Interrupted, SourceChanged, TbshareError
from tbshare.store.care import disk_bytes
from tbshare.store.ingest import Ingest, read_header
from tbshare.store.source import Choice, SourceFile, scan
from tbshare.store.store import Store
from tests.store.conftest import FILES, Mount, OpenStore, by_blocks, composed, ingest
from tests.store.weights_files import manifest_of, random_bytes

BIG = random_bytes("big", 3 * 4 * 1024 * 1024 + 9)


def files_of(store: Store) -> list[str]:
    return [path.name for path in store.home.folder("tmp").iterdir()]


def entry(path: Path) -> SourceFile:
    return SourceFile((os.fsencode(path.name),), path, path.stat().st_size, 0o644, 0)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_trees_say_what_was_there(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "s" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "s" / "deep" / "a").write_bytes(b"a" * 9)
    (root / "s" / "link").symlink_to("deep/a")
    tree = store.tree(Ingest(store, workers=1).source(scan(root, Choice())))
    assert tree is not None
    assert [(each.name, each.kind, each.size) for each in tree.entries] == [(b"empty", 1, 0), (b"s", 1, 9)]
    walked = [b"/".join(path) for path, _ in store.walk(tree.id)]
    assert sorted(walked) == [b"empty", b"s", b"s/deep", b"s/deep/a", b"s/link"]
    assert tree.entries[1].mtime_ns == (root / "s").stat().st_mtime_ns


def test_the_same_again_adds_nothing(store: Store, source: Path) -> None:
    first = Ingest(store, workers=1).source(scan(source, Choice()))
    packs = store.packs.path(1).stat().st_size
    assert Ingest(store, workers=3).source(scan(source, Choice())) == first
    assert store.packs.path(1).stat().st_size == packs
    assert not files_of(store)


def test_weights_that_cannot_be_read_are_taken_as_plain_bytes_with_a_word_why(store: Store, source: Path) -> None:
    (source / "huge.safetensors").write_bytes((90_000_000).to_bytes(8, "little") + bytes(70_000))
    (source / "torn.gguf").write_bytes(b"GGUF" + bytes(3))
    work = Ingest(store, workers=1)
    work.source(scan(source, Choice()))
    assert len(work.warnings) == 3
    assert all("plain bytes" in line for line in work.warnings)
    header, why = read_header(entry(source / "huge.safetensors"))
    assert header is None
    assert "90000000" in why
    header, why = read_header(entry(source / "odd.safetensors"))
    assert header is not None
    assert not why


def test_a_header_longer_than_the_first_read(store: Store, tmp_path: Path) -> None:
    from tests.store.weights_files import safetensors_file

    many = [(f"a.tensor.with.a.long.name.{number}", "U8", [40], bytes(40)) for number in range(9000)]
    (tmp_path / "many.safetensors").write_bytes(safetensors_file(many))
    (object_id,) = ingest(store, tmp_path / "many.safetensors").values()
    found = store.manifest(object_id)
    assert found is not None
    assert found.header is not None
    assert len(found.header.tensors) == 9000


# ---- files that do not hold still ---------------------------------------------------------------------------


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, 4 * 1024 * 1024 + 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def change(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(9_000_000)
        file.write(b"changed")


@pytest.mark.parametrize("do", [grow, shrink, empty, change])
def test_a_file_that_changes_while_it_is_read(store: Store, tmp_path: Path, do: Callable[[Path], None]) -> None:
    path = tmp_path / "big"
    path.write_bytes(BIG)
    os.utime(path, ns=(1, 1))

    def advance(_: int) -> None:
        if path.stat().st_mtime_ns == 1:
            writer = threading.Thread(target=do, args=(path,))
            writer.start()
            writer.join()

    before = open_files()
    with pytest.raises(SourceChanged, match="big"):
        Ingest(store, workers=1, advance=advance).source(scan(path, Choice()))
    assert open_files() == before
    assert not files_of(store)
    assert not list(store.home.folder("partial").iterdir())
    assert store.index.objects() == []
    path.write_bytes(BIG)
    assert composed(store, ingest(store, path)["big"]) == BIG


def test_a_file_that_became_something_else(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a")
    found = entry(path)
    path.unlink()
    with pytest.raises(InputRefused, match="a: no such file"):
        Ingest(store, workers=1).file(found)
    os.mkfifo(path)
    with pytest.raises(SourceChanged, match="no longer a file"):
        Ingest(store, workers=1).file(found)


def test_a_file_the_disk_cannot_read(store: Store) -> None:
    memory = Path("/proc/self/mem")  # reading its first byte is EIO
    with pytest.raises(InputRefused, match="cannot be read"):
        Ingest(store, workers=1).file(entry(memory))


@pytest.mark.root
def test_a_file_nobody_may_read(store: Store, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becomes another user: needs root")
    (tmp_path / "secret").write_bytes(b"x")
    found = entry(tmp_path / "secret")
    os.seteuid(65534)
    try:
        with pytest.raises(InputRefused, match="permission denied"):
            Ingest(store, workers=1).file(found)
    finally:
        os.seteuid(0)


def test_stopped(store: Store, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(BIG)
    stop = threading.Event()
    before = open_files()
    with pytest.raises(Interrupted):
        Ingest(store, workers=2, stop=stop, advance=lambda _: stop.set()).source(scan(tmp_path / "big", Choice()))
    assert open_files() == before
    assert not files_of(store)
    assert store.index.objects() == []


def test_a_push_of_what_is_half_here(store: Store, tmp_path: Path) -> None:
    """The whole file takes the place of the partial object."""
    found = manifest_of("big", BIG)
    arriving = store.begin(found)
    assert arriving is not None
    arriving.write(0, memoryview(BIG)[: 4 * 1024 * 1024])
    (tmp_path / "big").write_bytes(BIG)
    assert ingest(store, tmp_path / "big")["big"] == found.id
    assert composed(store, found.id) == by_blocks(store, found.id) == BIG
    assert not list(store.home.folder("partial").iterdir())


# ---- file systems -------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_clone_shares_its_blocks(open_store: OpenStore, mount: Mount) -> None:
    folder = mount("xfs", 320)
    (folder / "big").write_bytes(BIG)
    (folder / "odd.safetensors").write_bytes(FILES["odd.safetensors"])
    os.sync()
    store = open_store(folder / "home")
    work = Ingest(store, workers=2)
    taken = work.file(entry(folder / "big"))
    assert taken.how == "cloned"
    assert disk_bytes(store).shared >= len(BIG) // 2
    assert work.file(entry(folder / "odd.safetensors")).how == "copied"  # its body has to move
    change(folder / "big")
    assert composed(store, taken.object_id) == by_blocks(store, taken.object_id) == BIG


@pytest.mark.root
def test_a_clone_is_not_disturbed_by_a_writer(open_store: OpenStore, mount: Mount) -> None:
    folder = mount("xfs", 320)
    (folder / "big").write_bytes(BIG)
    store = open_store(folder / "home")
    taken = Ingest(store, workers=1, advance=lambda _: change(folder / "big")).file(entry(folder / "big"))
    assert taken.how == "cloned"
    assert composed(store, taken.object_id) == BIG


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_where_there_is_no_reflink_it_is_a_copy(open_store: OpenStore, mount: Mount, kind: str) -> None:
    folder = mount(kind, 64)
    (folder / "big").write_bytes(BIG)
    store = open_store(folder / "home")
    taken = Ingest(store, workers=2).file(entry(folder / "big"))
    assert taken.how == "copied"
    assert composed(store, taken.object_id) == BIG
    counted = disk_bytes(store)
    assert counted.shared == 0
    assert counted.logical == counted.unique == len(BIG)
    assert counted.disk >= len(BIG)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_full_disk(open_store: OpenStore, mount: Mount, tmp_path: Path, kind: str) -> None:
    """Small files until nothing fits: one clear error, what was taken in before is there, and it goes on later."""
    folder, source = mount(kind, 24), tmp_path / "many"
    source.mkdir()
    for number in range(420):
        (source / f"{number:03d}").write_bytes(random_bytes(number, 65_000 + number % 3 * 300))
    store = open_store(folder / "home")
    kept = ingest(store, source / "000")["000"]
    before = open_files()
    with pytest.raises(DiskFull) as caught:
        ingest(store, source)
    assert caught.value.cure
    assert open_files() <= before + 2
    assert not files_of(store)
    assert by_blocks(store, kept) == (source / "000").read_bytes()
    with pytest.raises(DiskFull):
        ingest(store, source)
    store.close()
    shutil.rmtree(folder / "home" / "views")
    try:
        store = open_store(folder / "home")
    except TbshareError as error:
        assert isinstance(error, DiskFull)  # noqa: PT017 - either is right, a traceback of SQLite is not
        return
    assert by_blocks(store, kept) == (source / "000").read_bytes()


@pytest.mark.root
def test_no_room_is_said_before_a_byte_is_read(open_store: OpenStore, mount: Mount, tmp_path: Path) -> None:
    store = open_store(mount("tmpfs", 8) / "home")
    (tmp_path / "big").write_bytes(BIG)
    moved: list[int] = []
    with pytest.raises(DiskFull, match=r"no room for 0\.01 GB"):
        Ingest(store, workers=1, advance=moved.append).file(entry(tmp_path / "big"))
    assert not moved
    assert not files_of(store)
