"""The tables of a node's volumes keep up with the log, whatever happens to them or to the rules."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tbshare.errors import DiskFull, StoreUnusable, VolumeReadOnly
from tbshare.volumes.entry import RoleSet, VolumeCreate, decode_entry
from tbshare.volumes.item import Put
from tbshare.volumes.log import Log
from tbshare.volumes.rows import Changes
from tbshare.volumes.tables import Tables
from tbshare.volumes.volumes import Volumes
from tests.volumes.cluster import Cluster, Node, content, parts


def tables_file(node: Node) -> Path:
    assert node.volumes is not None
    return node.volumes.tables(node.volume.id).path


def fill(node: Node, files: int) -> None:
    node.volume.put_many([Put(parts(f"d/{number}"), "file", content(f"{number}")) for number in range(files)])


@pytest.mark.parametrize("damage", ["lost", "no database", "a page", "of another level"])
def test_tables_that_are_damaged_are_made_anew_from_the_log(anna: Node, damage: str) -> None:
    fill(anna, 300)
    before, path = anna.all(), tables_file(anna)
    anna.close()
    for left in path.parent.glob(f"{path.name}-*"):
        left.unlink()
    if damage == "lost":
        path.unlink()
    elif damage == "no database":
        path.write_bytes(b"no database at all" * 500)
    elif damage == "a page":
        data = bytearray(path.read_bytes())
        data[100:4096] = b"\xff" * 3996
        path.write_bytes(data)
    else:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version=77")
        connection.close()
    anna.log = anna.open_log()
    anna.open()
    assert anna.all() == before
    anna.save("e", "x")
    assert anna.reads("e") == "x"


def test_a_page_found_damaged_later_makes_the_tables_anew(anna: Node) -> None:
    """Where only rows deep in the file are damaged, the first fold or read that meets them tells."""
    fill(anna, 2000)
    before, path = anna.all(), tables_file(anna)
    anna.close()
    data = bytearray(path.read_bytes())
    middle = len(data) // 8192 * 4096
    data[middle : middle + 8 * 4096] = b"\xff" * 8 * 4096
    path.write_bytes(data)
    anna.log = anna.open_log()
    anna.open()
    assert anna.volumes is not None
    anna.volumes.check()
    assert anna.all() == before


def test_a_start_folds_only_what_came_since(anna: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(anna, 100)
    read: list[int] = []
    entries_after = Log.entries_after

    def counting(log: Log, arrival: int, limit: int) -> list[tuple[int, object]]:
        found = entries_after(log, arrival, limit)
        read.append(len(found))
        return found  # type: ignore[return-value]

    monkeypatch.setattr(Log, "entries_after", counting)
    anna.again()
    assert sum(read) == 0
    assert len(anna.names("d")) == 100


def test_entries_that_came_while_the_volumes_were_closed_are_folded_at_the_start(pair: Cluster) -> None:
    anna, bert = pair["anna"], pair["bert"]
    assert bert.volumes is not None
    bert.volumes.close()
    anna.save("a", "x")
    pair.settle()
    bert.open()
    assert bert.all() == {"a": "x"}


def test_what_a_node_saved_before_it_heard_that_its_role_was_taken_stays(pair: Cluster) -> None:
    """The role was taken where it could not be seen; what was acknowledged meanwhile counts, and no more."""
    anna, bert = pair["anna"], pair["bert"]
    bert.save("before", "x")
    pair.settle()
    anna.log.append([RoleSet(volume=anna.volume.id, node=bert.identity.node, role="read")])
    anna.save("annas", "x")
    for number in range(5):
        bert.save(f"after {number}", "x")
    assert len(bert.all()) == 6
    assert anna.volumes is not None
    tables = anna.volumes.tables(anna.volume.id)
    assert set(pair.agree()) == {"before", "annas", *[f"after {number}" for number in range(5)]}
    assert anna.volumes.tables(anna.volume.id) is tables, "nothing is folded again"
    with pytest.raises(VolumeReadOnly):
        bert.save("more", "x")
    anna.log.append([RoleSet(volume=anna.volume.id, node=bert.identity.node)])
    pair.settle()
    bert.save("more", "x")
    assert len(pair.agree()) == 8
    for node in (anna, bert):
        node.again()
    assert "more" in pair.agree()


def test_a_volume_whose_files_came_before_it_did(make_cluster: Callable[..., Cluster]) -> None:
    """Ops of a node may arrive before the entry of another node that made the volume."""
    three = make_cluster("anna", "bert", "cleo")
    anna, bert, cleo = three.nodes.values()
    anna.log.append([VolumeCreate(name="sound", mode="media")])
    three.settle("anna", "bert")
    assert bert.volumes is not None
    bert.volumes.open("sound").save(parts("a"), content("a"))
    berts = [
        one
        for one in bert.log.missing_for(cleo.log.summary(), 1 << 20)
        if decode_entry(one).node == bert.identity.node
    ]
    assert cleo.log.receive(berts).accepted
    three.settle()
    assert cleo.volumes is not None
    assert [item.name for item in cleo.volumes.open("sound").list(())] == [b"a"]


def test_a_full_disk_stops_writing_until_there_is_room(anna: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    anna.save("a", "x")
    fold = Tables.fold

    def full(*_: object, **__: object) -> Changes:
        raise DiskFull("the disk is full")

    monkeypatch.setattr(Tables, "fold", full)
    with pytest.raises(VolumeReadOnly, match=r"full.*is in the log"):
        anna.save("b", "x")
    with pytest.raises(VolumeReadOnly, match="full"):
        anna.save("c", "x")
    assert anna.volumes is not None
    with pytest.raises(StoreUnusable, match="full"):  # what the tables lack would pass for garbage
        anna.volumes.require_all()
    monkeypatch.setattr(Tables, "fold", fold)
    anna.volumes.require_all()
    anna.save("d", "x")
    assert anna.names() == ["a", "b", "d"]


def test_tables_in_memory_do_the_same(make_cluster: Callable[..., Cluster]) -> None:
    pair = make_cluster("anna", "bert")
    bert = pair["bert"]
    in_memory = Volumes(bert.log, None, node=bert.identity.node, random=Random(3), trees=pair.trees)
    pair["anna"].save("a", "x")
    pair["anna"].volume.snapshot_create("s")
    pair["anna"].save("b", "x")
    pair.settle()
    handle = in_memory.open("films")
    assert [item.name for item in handle.list(())] == [b"a", b"b"]
    assert [item.name for item in handle.as_of("s").list(())] == [b"a"]
    in_memory.close()
