"""A store in a directory of its own, and what the tests of it need again and again."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tbshare.content.block import ObjectId
from tbshare.content.manifest import Manifest
from tbshare.store.arriving import Arriving
from tbshare.store.care import verify_object
from tbshare.store.ingest import Ingest
from tbshare.store.source import Choice, scan
from tbshare.store.store import Store
from tests.store.weights_files import blocks_of, manifest_of, random_bytes, weights

OpenStore = Callable[..., Store]
Mount = Callable[[str, int], Path]

# One file of every layout, and each edge of a layout.
FILES: dict[str, bytes] = {
    "empty": b"",
    "one": b"1",
    "packed.json": random_bytes("packed", 64 * 1024),
    "exact.bin": random_bytes("exact", 64 * 1024 + 1),
    "large.bin": random_bytes("large", 4 * 1024 * 1024 + 5),
    "small.safetensors": weights("s", [10], odd=True),
    "aligned.safetensors": weights("a", [30_000, 7, 20_000]),
    "odd.safetensors": weights("o", [30_000, 7, 20_000], odd=True),
    "odd_bytes.safetensors": weights("b", [100_000], dtype="U8", odd=True),
    "lying.safetensors": (1 << 40).to_bytes(8, "little") + bytes(70_000),
}
PLACES = {
    "empty": "packed",
    "one": "packed",
    "packed.json": "packed",
    "exact.bin": "exact",
    "large.bin": "exact",
    "small.safetensors": "packed",
    "aligned.safetensors": "exact",
    "odd.safetensors": "shifted",
    "odd_bytes.safetensors": "exact",
    "lying.safetensors": "exact",
}


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[OpenStore]:
    """Return what opens a store, at tmp_path/home unless told otherwise; closed at the end."""
    with ExitStack() as stack:

        def opened(root: Path | None = None, **options: object) -> Store:
            store = Store(root or tmp_path / "home", **options)  # type: ignore[arg-type]  # any option of Store
            stack.callback(store.close)
            return store

        yield opened


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """A new store."""
    return open_store()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with one file of every layout."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


def ingest(store: Store, path: Path, **options: object) -> dict[str, ObjectId]:
    """Take in what is below a path; return path -> object."""
    work = Ingest(store, workers=2, **options)  # type: ignore[arg-type]  # any option of Ingest
    tree = work.source(scan(path, Choice()))
    return {b"/".join(parts).decode(): object_id for parts, object_id, _ in store.files_below(tree)}


def composed(store: Store, object_id: ObjectId) -> bytes:
    """Return an object's bytes as a reader of its extents sees them."""
    position, parts = 0, list[bytes]()
    for extent in store.extents(object_id):
        assert extent.start == position
        with open(extent.path, "rb") as file:
            file.seek(extent.offset)
            parts.append(file.read(extent.end - extent.start))
        position = extent.end
    return b"".join(parts)


def by_blocks(store: Store, object_id: ObjectId) -> bytes:
    """Return an object's bytes read block by block, each verified."""
    found = store.manifest(object_id)
    assert found is not None
    return b"".join(store.read_block(object_id, number) for number in range(found.block_count))


def begin(store: Store, name: str, data: bytes) -> tuple[Manifest, list[bytes], Arriving]:
    """Begin an arriving object; return its manifest, its blocks and where they go."""
    found = manifest_of(name, data)
    arriving = store.begin(found)
    assert arriving is not None
    return found, blocks_of(found, data), arriving


def fill(arriving: Arriving, pieces: list[bytes], numbers: list[int] | None = None) -> None:
    """Write blocks of an arriving object."""
    for number in range(len(pieces)) if numbers is None else numbers:
        arriving.write(number, memoryview(pieces[number]))


def damage_of(store: Store, object_id: ObjectId) -> tuple[int, ...] | None:
    """Return the corrupt blocks of an object, or None when it is sound."""
    found = verify_object(store, object_id, advance=lambda _: None, stopped=lambda: False)
    return None if found is None else found.blocks


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Return what makes a file system of a kind and size (MiB) in a file and mounts it; undone at the end."""
    with ExitStack() as stack:

        def mounted(kind: str, mebibytes: int) -> Path:
            image, place = tmp_path / f"{kind}.img", tmp_path / f"{kind}-mount"
            place.mkdir()
            make = {
                "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1", str(image)],
                "ext4": ["mkfs.ext4", "-q", "-F", str(image)],
            }
            try:
                if kind == "tmpfs":
                    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(place)]
                else:
                    with image.open("wb") as file:
                        file.truncate(mebibytes << 20)
                    subprocess.run(make[kind], check=True, capture_output=True)
                    command = ["mount", "-o", "loop", str(image), str(place)]
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"{kind} cannot be mounted here (needs root, loop devices, mkfs): {error}")
            stack.callback(subprocess.run, ["umount", "-l", str(place)], check=True, capture_output=True)
            return place

        yield mounted
