"""Working files: written to at any moment, cut at any moment, and every object just what was there."""

import os
import random
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tbshare.content.block import BLOCK_BYTES, ObjectId
from tbshare.errors import DiskFull, ObjectMissing, StageMissing
from tbshare.store import cutting
from tbshare.store.cutting import Cut
from tbshare.store.staging import Row, Staging
from tbshare.store.store import Store
from tests.store.conftest import Mount, OpenStore, by_blocks, composed, damage_of, ingest
from tests.store.weights_files import random_bytes

BIG = random_bytes("staged", 3 * BLOCK_BYTES + 12345)
ROW = Row(volume=7, path=(b"a", b"b"))


@pytest.fixture(params=["ext4", "xfs"])
def disk_root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory on a disk that cannot share blocks, and one on a disk that can."""
    if request.param == "xfs":
        return request.getfixturevalue("mount")("xfs", 600) / "home"  # type: ignore[no-any-return]
    return tmp_path / "home"


@pytest.fixture
def shared(mount: Mount, open_store: OpenStore) -> Store:
    """A store on a disk that can share blocks."""
    return open_store(mount("xfs", 600) / "home")


def begin(staging: Staging, data: bytes = b"") -> int:
    """Make a working file that holds these bytes."""
    number = staging.make(ROW)
    staging.path(number).write_bytes(data)
    return number


def cut(store: Store, staging: Staging, number: int, **options: object) -> Cut:
    """Cut, durably."""
    made = staging.cut(number, **options)  # type: ignore[arg-type]  # any option of cut
    store.sync_records()
    return made


def based(staging: Staging, number: int, made: Cut) -> None:
    """Let the working file be based on what was cut of it."""
    row = staging.row(number)
    staging.keep(number, Row(row.volume, row.path, row.file, row.version, made.object_id))


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_what_is_cut_is_what_was_there_and_the_working_file_goes_on(
    disk_root: Path, open_store: OpenStore
) -> None:
    store = open_store(disk_root)
    staging = Staging(store)
    number = begin(staging, BIG)
    with staging.path(number).open("r+b") as file:
        first = cut(store, staging, number)
        file.seek(5)
        file.write(b"changed")
    second = cut(store, staging, number, last=True)
    expected = BIG[:5] + b"changed" + BIG[12:]
    for made, data in ((first, BIG), (second, expected)):
        assert composed(store, made.object_id) == by_blocks(store, made.object_id) == data
        assert damage_of(store, made.object_id) is None
    staging.drop(number)
    assert not list(store.home.folder("staging").iterdir())
    assert not list(store.home.folder("tmp").iterdir())
    assert composed(store, second.object_id) == expected


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_sizes(disk_root: Path, open_store: OpenStore, size: int) -> None:
    store = open_store(disk_root)
    staging = Staging(store)
    data = random_bytes("size", size)
    made = cut(store, staging, begin(staging, data), last=True)
    assert (made.size, composed(store, made.object_id)) == (size, data)
    again = staging.make(Row(1, (b"x",), content=made.object_id), mtime_ns=12345)
    assert staging.path(again).read_bytes() == data
    assert staging.path(again).stat().st_mtime_ns == 12345
    assert staging.path(staging.make(Row(1, (b"x",), content=made.object_id), empty=True)).read_bytes() == b""


def test_a_shifted_object_is_composed(store: Store, source: Path) -> None:
    from tests.store.conftest import FILES

    objects = ingest(store, source)
    staging = Staging(store)
    for name, data in FILES.items():
        number = staging.make(Row(1, (b"x",), content=objects[name]))
        assert staging.path(number).read_bytes() == data


def test_only_changed_blocks_of_a_clone_are_hashed_and_none_is_written_again(shared: Store) -> None:
    staging = Staging(shared)
    assert staging.clones
    data = random_bytes("clone", 20 * BLOCK_BYTES + 77)
    first = cut(shared, staging, begin(staging, data), last=True)
    assert first.bytes_hashed == len(data)
    number = staging.make(Row(1, (b"x",), content=first.object_id))
    change(staging.path(number), 9 * BLOCK_BYTES - 5, b"0123456789")
    made = cut(shared, staging, number)
    assert made.bytes_hashed == 2 * BLOCK_BYTES
    assert made.bytes_written < 10_000
    expected = bytearray(data)
    expected[9 * BLOCK_BYTES - 5 : 9 * BLOCK_BYTES + 5] = b"0123456789"
    assert composed(shared, made.object_id) == bytes(expected)
    based(staging, number, made)
    os.truncate(staging.path(number), 19 * BLOCK_BYTES + 3)
    shorter = cut(shared, staging, number, last=True)
    assert shorter.bytes_hashed == 3
    assert composed(shared, shorter.object_id) == bytes(expected[: 19 * BLOCK_BYTES + 3])
    assert cut(shared, staging, staging.make(Row(1, (b"x",), content=made.object_id))).bytes_hashed == 0


def test_what_changes_while_it_is_hashed_is_hashed_in_the_clone(
    shared: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = Staging(shared)
    number = begin(staging, BIG)
    whole = cutting.Blocks.hash
    calls: list[int] = []

    def hash_and_change(self: cutting.Blocks, descriptor: int, numbers: list[int]) -> None:
        if not calls:
            change(staging.path(number), 2 * BLOCK_BYTES, b"meanwhile")
            os.truncate(staging.path(number), 3 * BLOCK_BYTES - 9)
        calls.append(len(numbers))
        whole(self, descriptor, numbers)

    monkeypatch.setattr(cutting.Blocks, "hash", hash_and_change)
    made = cut(shared, staging, number)
    assert calls == [4, 2]
    assert composed(shared, made.object_id) == by_blocks(shared, made.object_id) == BIG


def test_given_ranges_are_hashed_and_the_file_itself_becomes_the_object(store: Store) -> None:
    staging = Staging(store)
    assert not staging.clones
    first = cut(store, staging, begin(staging, BIG), last=True)
    number = staging.make(Row(1, (b"x",), content=first.object_id))
    change(staging.path(number), 5, b"x")
    inode = staging.path(number).stat().st_ino
    made = cut(store, staging, number, changed=[(5, 6)], last=True)
    assert made.linked
    assert made.bytes_hashed == BLOCK_BYTES
    assert store.extents(made.object_id)[0].path.stat().st_ino == inode
    assert composed(store, made.object_id) == by_blocks(store, made.object_id) == BIG[:5] + b"x" + BIG[6:]
    staging.drop(number)
    assert store.extents(made.object_id)[0].path.stat().st_nlink == 1


def test_a_file_that_somebody_still_writes_to_is_copied(store: Store) -> None:
    staging = Staging(store)
    number = begin(staging, BIG)
    with staging.path(number).open("r+b") as file:
        made = cut(store, staging, number, last=True)
        assert not made.linked
        file.write(b"later")
    assert composed(store, made.object_id) == BIG


def test_an_object_that_could_not_be_committed_is_a_working_file_again(store: Store) -> None:
    staging = Staging(store)
    number = begin(staging, BIG)
    made = cut(store, staging, number, last=True)
    staging.uncut(number, made)
    assert not store.is_whole(made.object_id)
    change(staging.path(number), 0, b"mine")
    assert cut(store, staging, number, last=True).object_id != made.object_id


def test_holes_stay_holes_and_are_not_read(disk_root: Path, open_store: OpenStore) -> None:
    store = open_store(disk_root)
    staging = Staging(store)
    number = begin(staging)
    size = 1 << 34
    os.truncate(staging.path(number), size)
    change(staging.path(number), 3 * BLOCK_BYTES + 5, b"in the middle")
    made = cut(store, staging, number)
    assert made.bytes_hashed == BLOCK_BYTES
    (extent,) = store.extents(made.object_id)
    assert extent.path.stat().st_size == size
    assert extent.path.stat().st_blocks * 512 <= BLOCK_BYTES
    copy = staging.path(staging.make(Row(1, (b"x",), content=made.object_id)))
    assert copy.stat().st_size == size
    assert copy.stat().st_blocks * 512 <= BLOCK_BYTES
    with copy.open("rb") as file:
        file.seek(3 * BLOCK_BYTES)
        assert file.read(30) == bytes(5) + b"in the middle" + bytes(12)


def test_a_full_disk_leaves_the_working_file(mount: Mount, open_store: OpenStore) -> None:
    store = open_store(mount("ext4", 40) / "home")
    staging = Staging(store)
    data = random_bytes("full", 5 * BLOCK_BYTES)
    number = begin(staging, data)
    with staging.path(number).open("r+b"), pytest.raises(DiskFull):
        staging.cut(number)
    with pytest.raises(DiskFull):
        staging.make(Row(1, (b"x",), content=cut(store, staging, number, last=True).object_id))
    assert staging.path(number).read_bytes() == data
    assert not list(store.home.folder("tmp").iterdir())
    assert len(staging.rows()) == 1


def test_rows_are_found_again_and_what_nothing_explains_is_put_aside(open_store: OpenStore) -> None:
    store = open_store()
    staging = Staging(store)
    number = begin(staging, b"bytes")
    row = Row(7, (b"a\xff", b"c"), 3, 4, b"\1" * 32, 0o755, "me", "boot", committed=True)
    staging.keep(number, row)
    other = begin(staging, b"unexplained")
    (store.home.folder("staging") / f"{other:016x}.row").unlink()
    torn = begin(staging, b"torn")
    (store.home.folder("staging") / f"{torn:016x}.row").write_bytes(b'{"volume":')
    gone = begin(staging, b"gone")
    staging.path(gone).unlink()
    again = Staging(store)
    assert again.rows() == {number: row}
    aside = sorted(path.read_bytes() for path in store.home.folder("quarantine").iterdir())
    assert aside == [b"torn", b"unexplained"]
    assert len(store.notices) == 2
    assert len(list(store.home.folder("staging").iterdir())) == 2
    with pytest.raises(StageMissing):
        again.row(gone)


def test_the_kernel_says_who_has_a_working_file_open(store: Store) -> None:
    staging = Staging(store)
    number = begin(staging, b"x")
    assert not staging.is_open(number)
    with staging.path(number).open("rb"):
        assert staging.is_open(number)
    assert not staging.is_open(number)


def test_an_object_that_is_not_here_is_not_staged(store: Store) -> None:
    staging = Staging(store)
    with pytest.raises(ObjectMissing):
        staging.make(Row(1, (b"x",), content=ObjectId(b"\1" * 32)))
    assert not list(store.home.folder("staging").iterdir())


# random writes ---------------------------------------------------------------------------------------------------

STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 5 * BLOCK_BYTES), st.integers(1, 300_000)),
    st.tuples(st.just("truncate"), st.integers(0, 5 * BLOCK_BYTES), st.just(0)),
    st.tuples(st.just("punch"), st.integers(0, 5 * BLOCK_BYTES), st.integers(4096, 2 * BLOCK_BYTES)),
    st.tuples(st.just("cut"), st.booleans(), st.just(0)),
    st.tuples(st.just("begin again"), st.just(0), st.just(0)),
)


class Shadow:
    """A working file and a bytearray that go through the same."""

    def __init__(self, store: Store) -> None:
        self.store, self.staging = store, Staging(store)
        self.data = bytearray()
        self.number = self.staging.make(ROW)
        self.changed: list[tuple[int, int]] = []
        self.noise = random.Random(1)

    def write(self, offset: int, length: int) -> None:
        piece = self.noise.randbytes(length)
        if offset > len(self.data):
            self.changed.append((len(self.data), offset))
            self.data += bytes(offset - len(self.data))
        self.data[offset : offset + length] = piece
        change(self.staging.path(self.number), offset, piece)
        self.changed.append((offset, offset + length))

    def truncate(self, size: int, _: int) -> None:
        self.changed.append((min(size, len(self.data)), max(size, len(self.data))))
        self.data = self.data[:size] + bytes(max(0, size - len(self.data)))
        os.truncate(self.staging.path(self.number), size)

    def punch(self, offset: int, length: int) -> None:
        from tests.store.holes import punch

        end = min(offset + length, len(self.data))
        if offset < end:
            self.data[offset:end] = bytes(end - offset)
            punch(self.staging.path(self.number), offset, length)
            self.changed.append((offset, end))

    def cut(self, told: bool, _: int) -> None:
        with self.staging.path(self.number).open("r+b"):
            made = cut(self.store, self.staging, self.number, changed=self.changed if told else None)
        self._check(made)
        based(self.staging, self.number, made)

    def begin_again(self, *_: int) -> None:
        made = cut(self.store, self.staging, self.number, changed=self.changed, last=True)
        self._check(made)
        self.staging.drop(self.number)
        self.number = self.staging.make(Row(1, (b"x",), content=made.object_id))
        assert self.staging.path(self.number).read_bytes() == self.data

    def _check(self, made: Cut) -> None:
        self.changed = []
        assert composed(self.store, made.object_id) == by_blocks(self.store, made.object_id) == self.data


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEP, min_size=3, max_size=14))
def test_any_writes_and_any_cuts(
    disk_root: Path, open_store: OpenStore, steps: list[tuple[str, int, int]]
) -> None:
    with ExitStack() as stack:
        root = disk_root.with_name(f"home-{os.urandom(4).hex()}")
        store = Store(root)
        stack.callback(subprocess.run, ["rm", "-rf", str(root)], check=True)
        stack.callback(store.close)
        shadow = Shadow(store)
        for name, first, second in (*steps, ("begin again", 0, 0)):
            getattr(shadow, name.replace(" ", "_"))(first, second)
