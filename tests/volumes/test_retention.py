from hypothesis import given
from hypothesis import strategies as st

from tbshare.volumes.policy import Policy
from tbshare.volumes.retention import DAY_SECONDS, Past, budget_bytes, expired

DISK_BYTES = 1000
DEFAULT = Policy()


def past(version: int, **more: object) -> Past:
    fields = {"content": b"%d" % version, "size": 10, **more}
    return Past(file=1, version=version, stamp=version.to_bytes(4, "big"), **fields)  # type: ignore[arg-type]


def gone(*versions: Past, policy: Policy = DEFAULT, disk_bytes: int = DISK_BYTES) -> list[int]:
    return [version for _, version in expired(versions, policy, disk_bytes)]


def test_the_smaller_limit_holds() -> None:
    assert budget_bytes(Policy(), 1000) == 100
    assert budget_bytes(Policy(history_bytes=50), 1000) == 50
    assert budget_bytes(Policy(history_bytes=500), 1000) == 100
    assert budget_bytes(Policy(history_percent=0), 1000) is None


def test_age_goes_by_the_clock_that_was_counted() -> None:
    young, old = past(1, age_seconds=30 * DAY_SECONDS), past(2, age_seconds=30 * DAY_SECONDS + 1)
    assert gone(young, old) == [2]
    assert gone(young, old, past(3, age_seconds=10**9, needed=True)) == [2]


def test_over_the_budget_the_oldest_go() -> None:
    versions = [past(number, size=30) for number in range(5)]
    assert gone(*versions) == [0, 1]
    assert gone(*reversed(versions)) == [0, 1]
    assert gone(*versions, policy=Policy(history_percent=0)) == []


def test_bytes_that_are_needed_anyway_cost_nothing() -> None:
    head = past(9, content=b"same", size=10**6, needed=True)
    assert gone(past(1, content=b"same", size=10**6), past(2, size=90), head) == []
    assert gone(past(1, content=b"two", size=90), past(2, content=b"two", size=90), head) == []


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.integers(0, 60),
            st.integers(0, 40 * DAY_SECONDS),
            st.booleans(),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_what_is_needed_stays_and_the_rest_fits(rows: list[tuple[int, int, int, bool, bool]]) -> None:
    sizes = {content: size for content, size, *_ in rows}
    versions = [
        past(
            number,
            content=b"%d" % content,
            size=sizes[content],
            age_seconds=age,
            needed=needed,
            keeps_history=keeps,
        )
        for number, (content, _, age, needed, keeps) in enumerate(rows)
    ]
    away = set(gone(*versions))
    stay = [one for one in versions if one.version not in away]
    assert all(one in stay for one in versions if one.needed)
    needed = {one.content for one in versions if one.needed}
    history = [one for one in stay if not one.needed]
    assert all(one.keeps_history and one.age_seconds <= 30 * DAY_SECONDS for one in history)
    assert sum({one.content: one.size for one in history if one.content not in needed}.values()) <= 100
    again = {version for _, version in expired(stay, Policy(), DISK_BYTES)}
    assert again == set()
