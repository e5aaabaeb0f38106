"""What a commit of several files asks of a volume: one entry or nothing, and what each file started from."""

import pytest

from tbshare.errors import PathExists, TooManyAtOnce
from tbshare.volumes.item import Put
from tbshare.volumes.volume import PUTS_AT_ONCE
from tests.volumes.cluster import Cluster, Node, content, parts


def names(node: Node) -> list[str]:
    return [item.name.decode() for item in node.volume.list(())]


def test_what_does_not_fit_in_one_entry_is_not_saved_at_all(anna: Node) -> None:
    before = anna.log.last_arrival
    many = [Put(parts(f"{number}"), "file", content("x")) for number in range(PUTS_AT_ONCE + 1)]
    with pytest.raises(TooManyAtOnce):
        anna.volume.put_many(many, together=True)
    long = [Put(parts(f"{number}-{'n' * 240}"), "file", content("x")) for number in range(PUTS_AT_ONCE)]
    deep = [Put((b"d" * 250, b"%d" % number, *put.path), "file", put.content) for number, put in enumerate(long)]
    with pytest.raises(TooManyAtOnce):
        anna.volume.put_many(deep, together=True)
    assert anna.log.last_arrival == before
    assert names(anna) == []
    anna.volume.put_many(long, together=True)
    assert anna.log.last_arrival == before + 1


def test_a_file_that_must_be_new_keeps_all_from_being_saved(anna: Node) -> None:
    anna.save("there", "x")
    puts = [Put(parts("a"), "file", content("a")), Put(parts("there"), "file", content("b"), new=True)]
    with pytest.raises(PathExists):
        anna.volume.put_many(puts, together=True)
    assert names(anna) == ["there"]
    anna.volume.put_many([Put(parts("a"), "file", content("a"), new=True)])
    assert names(anna) == ["a", "there"]


def test_what_was_saved_since_the_base_stays_beside_it(pair: Cluster) -> None:
    anna = pair["anna"]
    first = anna.save("a", "one")
    anna.save("a", "two")
    anna.volume.put_many([Put(parts("a"), "file", content("three"), base=(first,))])
    assert sorted(item.content for item in anna.volume.list(())) == sorted(
        [content("two").content, content("three").content]
    )
    assert len(names(anna)) == 2
