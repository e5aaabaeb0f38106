"""What a mount knows of where an object's bytes are, against the bytes themselves."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tbshare.fuse.extents import MAPPED_BYTES_MIN, Extents, open_files
from tbshare.wire.mount import MountExtent

SIZE = 200_000
HEADER = 1000
SHIFT = 96
DATA = Random(1).randbytes(SIZE)
SPANS = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted), max_size=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same object exact, and with its header elsewhere."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "exact").write_bytes(DATA)
    (folder / "body").write_bytes(bytes(HEADER + SHIFT) + DATA[HEADER:])
    (folder / "pack").write_bytes(b"before" + DATA[:HEADER])
    return {name: folder / name for name in ("exact", "body", "pack")}


def extents_of(files: dict[str, Path], start: int, end: int, *, shifted: bool) -> list[MountExtent]:
    if not shifted:
        return [MountExtent(start, end - start, bytes(files["exact"]), start)]
    split = min(max(start, HEADER), end)
    return [
        MountExtent(start, split - start, bytes(files["pack"]), start + 6),
        MountExtent(split, end - split, bytes(files["body"]), split + SHIFT),
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SPANS, SPANS, st.booleans())
def test_what_was_told_can_be_read_and_nothing_else(
    files: dict[str, Path], told: list[list[int]], asked: list[list[int]], shifted: bool
) -> None:
    extents = Extents()
    try:
        for start, end in told:
            new = extents_of(files, start, end, shifted=shifted)
            extents.take(new, open_files(new))
        for start, end in [*asked, *told, [0, SIZE]]:
            parts = extents.parts(start, end)
            covered = any(first <= start and end <= after for first, after in _joined(told)) or start == end
            assert (parts is not None) == covered
            assert parts is None or b"".join(parts) == DATA[start:end]
        whole = any(span == (0, SIZE) for span in _joined(told))
        assert (extents.backing(SIZE) is not None) == (whole and not shifted)
    finally:
        extents.close()


def _joined(spans: list[list[int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and joined[-1][1] >= start:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def test_a_view_stays_good_when_all_is_closed_and_gone(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(DATA)
    told = [MountExtent(0, SIZE, bytes(path), 0)]
    extents = Extents()
    extents.take(told, open_files(told), anew=True)
    parts = extents.parts(10, 10 + MAPPED_BYTES_MIN)
    assert parts is not None
    extents.close()
    path.unlink()
    assert b"".join(parts) == DATA[10 : 10 + MAPPED_BYTES_MIN]


def test_a_file_that_got_another_name_is_the_same(tmp_path: Path) -> None:
    partial, whole = tmp_path / "partial", tmp_path / "whole"
    partial.write_bytes(DATA)
    extents = Extents()
    told = [MountExtent(0, 5, bytes(partial), 0)]
    extents.take(told, open_files(told))
    partial.rename(whole)
    with pytest.raises(FileNotFoundError):
        open_files(told)
    told = [MountExtent(0, SIZE, bytes(whole), 0)]
    extents.take(told, open_files(told), anew=True)
    descriptor = extents.backing(SIZE)
    assert descriptor is not None
    assert extents.parts(0, 5) == [DATA[:5]]
    extents.close()
