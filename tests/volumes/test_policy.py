import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.errors import UsageError
from tbshare.volumes.policy import (
    COPIES_MAX,
    FOREVER_DAYS,
    Option,
    Policy,
    keeps_history,
    options_of,
    parse_size,
    policy_of,
    words_of,
)

POLICIES = st.builds(
    Policy,
    replicate=st.one_of(st.sampled_from(["everywhere", "on-demand"]), st.integers(1, COPIES_MAX)),
    history_days=st.integers(0, FOREVER_DAYS),
    history_percent=st.integers(0, 100),
    history_bytes=st.integers(0, (1 << 59)),
    quota_bytes=st.integers(0, (1 << 59)),
    case=st.sampled_from(["insensitive", "sensitive"]),
    locked=st.sampled_from(["refuse", "read-only"]),
    no_history=st.lists(st.sampled_from(["*.tmp", "Cache", "a/b*", "._*"]), unique=True).map(tuple),
    owner=st.sampled_from(["", "ab" * 32]),
    removed=st.booleans(),
)


@given(POLICIES)
def test_what_is_written_is_what_is_read(policy: Policy) -> None:
    assert policy_of(options_of(words_of(policy), creating=True)) == policy


VALUES: st.SearchStrategy[Option] = st.one_of(st.text(max_size=70), st.booleans(), st.integers(0, (1 << 63) - 1))


@given(st.dictionaries(st.one_of(st.sampled_from(list(Policy.__dataclass_fields__)), st.text()), VALUES))
def test_whatever_a_newer_version_wrote_gives_a_policy(options: dict[str, Option]) -> None:
    policy = policy_of(options)
    assert policy_of(options_of(words_of(policy), creating=True)) == policy


@pytest.mark.parametrize("text", ["none", "DEFAULT", "*", ","])
def test_a_glob_that_is_a_word_of_ours(text: str) -> None:
    policy = policy_of({"no_history": text, "history_bytes": 10**18})
    assert policy_of(options_of(words_of(policy), creating=True)) == policy


def test_what_is_not_understood_means_nothing() -> None:
    assert policy_of({"replicate": "smart", "history_days": True, "colour": "red", "owner": "XX"}) == Policy()
    assert policy_of({"replicate": 3, "removed": True}) == Policy(replicate=3, removed=True)


@pytest.mark.parametrize(
    ("word", "text", "options"),
    [
        ("replicate", "2", {"replicate": 2}),
        ("Replicate", "EVERYWHERE", {"replicate": "everywhere"}),
        ("history", "30d", {"history_days": 30}),
        ("history", "7 days, 10%,2T", {"history_days": 7, "history_percent": 10, "history_bytes": 2 * 10**12}),
        ("history", "none", {"history_days": 0, "history_percent": 0, "history_bytes": 0}),
        ("quota", "1.5GiB", {"quota_bytes": 3 << 29}),
        ("quota", "none", {"quota_bytes": 0}),
        ("no-history", "*.tmp, Cache", {"no_history": "*.tmp,Cache"}),
        ("no_history", "none", {"no_history": ""}),
        ("removed", "no", {"removed": False}),
    ],
)
def test_words(word: str, text: str, options: dict[str, Option]) -> None:
    assert options_of({word: text}) == options


@pytest.mark.parametrize(
    ("word", "text", "allowed"),
    [
        ("replicate", "0", "everywhere, on-demand, or a number"),
        ("replicate", "\u0662", "from 1 to 256"),
        ("replicate", "9" * 5000, "a number of copies"),
        ("history", "101%", "30d.*10%.*2T.*none.*forever"),
        ("history", "30d,soon", "30d.*10%.*2T"),
        ("history", "9" * 18 + "PB", "bytes"),
        ("quota", "-1", "500G"),
        ("locked", "wait", "refuse or read-only"),
        ("owner", "studio", "64 hex digits"),
        ("removed", "maybe", "yes or no"),
        ("no-history", "x," * 400, "64 globs"),
        ("case", "sensitive", "fixed"),
        ("colour", "red", "replicate, history, quota"),
    ],
)
def test_what_is_allowed_is_named(word: str, text: str, allowed: str) -> None:
    with pytest.raises(UsageError, match=allowed) as caught:
        options_of({word: text})
    assert caught.value.cure


def test_case_is_chosen_when_a_volume_is_made() -> None:
    assert options_of({"case": "sensitive"}, creating=True) == {"case": "sensitive"}


def test_sizes() -> None:
    assert parse_size("12") == 12
    assert parse_size("2T") == 2 * 10**12
    assert parse_size("0.1G") == 10**8
    assert parse_size("1kib") == 1024
    assert parse_size("one") is None


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ((b"film", b"a.mov"), True),
        ((b"film", b"a.TMP"), False),
        ((b"film", b".DS_Store"), False),
        ((b"._a.mov",), False),
        ((b"project", b"CacheClip", b"1", b"frame.dvcc"), False),
        ((b"caches of the north.mov",), True),
        ((b"\xff\xfe", b"a.mov"), True),
    ],
)
def test_what_has_history_by_default(path: tuple[bytes, ...], kept: bool) -> None:
    assert keeps_history(Policy(), path) is kept


def test_a_glob_with_a_slash_is_for_the_whole_path() -> None:
    policy = Policy(no_history=("renders/*.exr",))
    assert not keeps_history(policy, (b"renders", b"1.exr"))
    assert keeps_history(policy, (b"old", b"renders", b"1.exr"))
    assert not keeps_history(Policy(no_history=(), history_days=0), (b"a",))
