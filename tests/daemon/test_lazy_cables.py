"""Reading what is on another node over a slow cable that is full, and over one that is pulled."""

import os
import shutil
import threading
from collections.abc import Generator
from pathlib import Path
from random import Random

import pytest

from tbshare.wire.files import FileReadParams
from tbshare.wire.local import PushParams
from tbshare.wire.report import AnyEvent, Published
from tests.cables import Cables, cabled
from tests.nodes import Node, pair, random_model, running, until, until_connected
from tests.volume_nodes import create, names, place, read, stat, write

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("tc") is None, reason="network namespaces are made with iproute2"),
]
MIB = 1 << 20
ON_DEMAND = '[store]\naccept = "on-demand"\n'


@pytest.fixture
def cables() -> Generator[Cables]:
    with cabled(3) as made:
        yield made


def paired(cables: Cables, tmp_path: Path, *named: str) -> list[Node]:
    """Return nodes, one to a namespace; the last one holds what it is asked to."""
    nodes: list[Node] = []
    for number, name in enumerate(named):
        config = ON_DEMAND if name == named[-1] else ""
        nodes.append(Node(tmp_path / name, name, config, host="", prefix=cables.prefix(number)))
    return nodes


def pair_over(cables: Cables, nodes: list[Node]) -> None:
    for number, node in enumerate(nodes[1:], 1):
        pair(nodes[0], node, cables.address(0, number))
    until_connected(nodes)


def test_what_somebody_waits_for_goes_before_bulk(cables: Cables, tmp_path: Path) -> None:
    """A push keeps the cable full for ten seconds and more; meanwhile files are read that are not here."""
    nodes = paired(cables, tmp_path, "ada", "grace")
    ada, grace = nodes
    with running(*nodes, paired=False):
        pair_over(cables, nodes)
        create(ada, "film")
        data = Random(3).randbytes(8 * MIB)
        shown = [f"{number}.mov" for number in range(4)]
        for name in shown:
            write(ada, f"film:/{name}", data[::-1] + name.encode(), tmp_path / "s")
        until("all is shown", lambda: names(grace, "film:/") == shown)
        cables.limit((0, 1), 60)
        model = random_model(tmp_path / "model", 5, 75 * MIB)
        published = threading.Event()

        def heard(event: AnyEvent) -> None:
            if isinstance(event, Published):
                published.set()

        def push() -> None:
            with ada.client() as client:
                client.push(PushParams(str(model), name="bulk", to=["grace"]), heard)

        pushing = threading.Thread(target=push)
        pushing.start()
        assert published.wait(20)
        for number, name in enumerate(shown):
            start = number * 2 * MIB + 77
            expected = (data[::-1] + name.encode())[start : start + 5000]
            assert read(grace, f"film:/{name}", offset=start, length=5000) == expected
        assert not grace.has("bulk@1")
        assert not any(stat(grace, f"film:/{name}").here == "whole" for name in shown)
        pushing.join()
        assert grace.has("bulk@1")


def test_a_cable_that_is_pulled_while_a_file_is_read(cables: Cables, tmp_path: Path) -> None:
    """The bytes come over the other cable, and whoever reads sees no error."""
    nodes = paired(cables, tmp_path, "ada", "hopper", "grace")
    ada, hopper, grace = nodes
    with running(*nodes, paired=False):
        pair_over(cables, nodes)
        create(ada, "film")
        data = Random(4).randbytes(40 * MIB)
        write(ada, "film:/a.mov", data, tmp_path / "s")
        until("hopper knows it", lambda: names(hopper, "film:/") == ["a.mov"])
        until("hopper has it", lambda: stat(hopper, "film:/a.mov").here == "whole")
        until("grace knows it", lambda: names(grace, "film:/") == ["a.mov"])
        for other in (0, 1):
            cables.limit((other, 2), 200)
        got, pulled = bytearray(), list[int]()

        def take(part: bytes) -> None:
            got.extend(part)
            if len(got) > 8 * MIB and not pulled:
                pulled.append(len(got))
                cables.set_cable((0, 2), works=False)

        with grace.client() as client:
            client.file_read(FileReadParams(place("film:/a.mov")), take)
        assert pulled
        assert got == data
