"""What is a place in a volume, and what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.errors import PathInvalid, UsageError
from tbshare.wire.where import Where, id_number, id_text, parse_where, path_parts

NAME = (
    st.binary(min_size=1, max_size=20)
    .filter(lambda name: b"/" not in name and b"\0" not in name)
    .filter(lambda name: name not in (b".", b".."))
)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("film:/a/b", Where("film", b"a/b")),
        ("film:", Where("film")),
        ("film:/", Where("film")),
        ("film://a///b/", Where("film", b"a/b")),
        ("film:/./a/.", Where("film", b"a")),
        ("film:/a:b", Where("film", b"a:b")),
        ("film:/ a\n", Where("film", b" a\n")),
        ("Film-2.x_y:/\udcff", Where("Film-2.x_y", b"\xff")),
        ("film@monday:/a", Where("film", b"a", "monday")),
        ("film@monday:", Where("film", b"", "monday")),
        ("film:/é", Where("film", "é".encode())),
    ],
)
def test_a_place_in_a_volume(text: str, where: Where) -> None:
    assert parse_where(text) == where


OTHERS = ["", ":", ":/a", "a", "a/b", "models:llama", "models:org/name@2", "C:\\x", "./a:/b", "/a:/b", ".a:/b"]
MORE_OTHERS = ["a b:/c", "a@:/b", "@s:/b", "a@.s:/b", "a@s@t:/b", "a/b:/c", "é:/x", "x" * 200 + ":/a"]


@pytest.mark.parametrize("text", [*OTHERS, *MORE_OTHERS])
def test_of_another_form(text: str) -> None:
    assert parse_where(text) is None


@pytest.mark.parametrize(
    "text", ["film:/..", "film:/a/../b", "film:/a/..", "film:/../../etc/passwd", "film:/a\0b"]
)
def test_no_path_leaves_the_volume(text: str) -> None:
    with pytest.raises(PathInvalid):
        parse_where(text)
    with pytest.raises(PathInvalid):
        path_parts(text.encode())


@given(volume=st.from_regex(r"\A[a-z0-9_-][a-z0-9._-]{0,20}\Z"), names=st.lists(NAME, max_size=5))
def test_text_and_back(volume: str, names: list[bytes]) -> None:
    """Any bytes are kept; the names come out as they went in."""
    where = Where(volume, b"/".join(names))
    assert parse_where(str(where)) == where
    assert where.parts == tuple(names)


@given(st.text())
def test_any_text_is_a_place_or_none_or_refused(text: str) -> None:
    try:
        where = parse_where(text)
    except PathInvalid:
        return
    assert where is None or parse_where(str(where)) == where


@given(st.integers(min_value=1, max_value=(1 << 63) - 1))
def test_ids(number: int) -> None:
    assert id_number(id_text(number)) == number
    assert len(id_text(number)) == 16


@pytest.mark.parametrize("text", ["", "0", "g" * 16, "f" * 16, "1" * 17, "٣" * 16])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(UsageError):
        id_number(text)
