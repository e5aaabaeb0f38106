"""Who follows a log: by arrival, by listeners and by places in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tbshare.errors import DiskFull
from tbshare.volumes.entry import Entry
from tests.volumes.test_log import Lab, push, save, settle


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def test_who_follows_the_log_hears_of_everything_once_and_in_order(lab: Lab) -> None:
    anna, bert = lab.cluster("anna", "bert")
    heard: list[tuple[int, Entry]] = []
    start = anna.last_arrival
    anna.on_commit.append(heard.extend)
    for number in range(5):
        anna.append([push("a", number + 1), save(number + 1)])
        bert.append([save(number + 100)])
        settle([anna, bert])
    assert [arrival for arrival, _ in heard] == list(range(start + 1, start + 11))
    assert anna.entries_after(start, 1000) == heard
    assert anna.entries_after(start + 3, 2) == heard[3:5]
    assert anna.last_arrival == start + 10
    assert [anna.hash_at(arrival) for arrival, _ in heard] == [entry.hash for _, entry in heard]
    assert anna.hash_at(0) == anna.hash_at(start + 11) == b""
    anna = lab.again("anna")
    assert anna.entries_after(start, 1000) == heard


def test_a_listener_that_fails_takes_nothing_back(lab: Lab) -> None:
    (log,) = lab.cluster("anna")

    def fail(_: object) -> None:
        raise DiskFull("no room")

    log.on_commit.append(fail)
    assert log.append([push("a")]).seq == log.last_arrival


def test_places(lab: Lab) -> None:
    anna, bert = lab.cluster("anna", "bert")
    first, then = anna.append([save(1)]), anna.at()
    settle([anna, bert])
    other, second = bert.append([save(2)]), anna.append([save(3)])
    settle([anna, bert])
    covers = anna.covers(then)
    assert [covers(entry) for entry in (first, other, second)] == [True, False, False]
    assert anna.covers(())(first) is False
    assert bert.covers(anna.at())(second)


def test_an_entry_with_files_alone_stays_on_the_disk(lab: Lab) -> None:
    (log,) = lab.cluster("anna")
    entry = log.append([save(1)])
    assert entry.hash not in {each.hash for each in log.state().entries}
    assert log.unacknowledged(entry) == log.unacknowledged(entry.hash) == []
    assert log.acknowledged_by_all(entry)
