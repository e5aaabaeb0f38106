import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.content.ref import Ref, folded, is_name, name_from_directory, parse_ref, part_from
from tbshare.errors import UsageError

part = st.from_regex(r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}\Z")
names = st.one_of(part, st.tuples(part, part).map("/".join))
revs = st.one_of(st.just(""), st.integers(1, 10**6).map(str), st.from_regex(r"\A[a-z0-9._-]{1,40}\Z"))


@given(names, part, revs)
def test_what_is_written_is_read_again(name: str, volume: str, rev: str) -> None:
    ref = Ref(name=name, volume=volume, rev=rev)
    again = parse_ref(str(ref))
    assert (again.name, again.rev, folded(again.volume)) == (name, rev, folded(volume))
    assert again.key() == ref.key()


@given(st.text(max_size=60))
def test_any_text_is_a_ref_or_a_usage_error(text: str) -> None:
    refused: UsageError | None = None
    try:
        ref = parse_ref(text)
        assert parse_ref(str(ref)) == ref or folded(ref.volume) == "models"
    except UsageError as error:
        refused = error
    if refused is not None:
        assert refused.cure
        assert str(refused).isascii()
        assert str(refused).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "", "@1", "a@", "a/b/c", "/a", "a/", ".a", "a/.b", "..", "a/..", "v:", ":a", "v:w:a", "a b",
        "a\n", "a@1\n",
        "v\n:a", "ä", "a@@1", "v/w:a", ".v:a", "a@b c", "x" * 97, "x" * 5000, "a\0",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ref(text)


def test_the_design_s_own_example() -> None:
    ref = parse_ref("mlx-community/Llama-3.3-70B-4bit")
    assert (ref.volume, ref.name, ref.rev) == ("models", "mlx-community/Llama-3.3-70B-4bit", "")
    assert parse_ref("Media:Film@3.studio-2").key() == ("media", "film")
    assert parse_ref("a@refs/pr/1").rev == "refs/pr/1"


@given(st.text(max_size=200))
def test_every_directory_gives_a_valid_name(directory: str) -> None:
    assert is_name(name_from_directory(directory))
    assert is_name(part_from(directory))


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("models/Llama-3.2-1B/", "Llama-3.2-1B"),
        ("Llama 3 (4bit)", "Llama-3-4bit"),
        ("models--mlx-community--SmolLM2-135M", "mlx-community/SmolLM2-135M"),
        (".hidden", "hidden"),
        ("///", "unnamed"),
    ],
)
def test_names_of_directories(directory: str, name: str) -> None:
    assert name_from_directory(directory) == name
