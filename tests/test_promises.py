"""The promises of the design, each under its number; the rooms' own tests go further into each."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tbshare.errors import DaemonUnreachable, InputRefused, TbshareError
from tbshare.wire.local import PullParams, PushParams
from tbshare.wire.report import AnyEvent, Nodes
from tests.nodes import MIB, Node, random_model, running, until
from tests.volume_nodes import create, names, place, read, write

Three = tuple[Node, Node, Node]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    root = tmp_path_factory.mktemp("p")
    config = '[links]\nlimit = "20MB"\n'  # so that there is a middle to kill a transfer in
    nodes = Node(root / "a", "ada", config), Node(root / "g", "grace", config), Node(root / "e", "edith", config)
    with running(*nodes):
        yield nodes


def test_promise_1_what_was_acknowledged_survives_kill_9(three: Three, tmp_path: Path) -> None:
    """Power loss and torn writes: tests/store; 50 kills: tests/daemon/test_kill.py."""
    model = random_model(tmp_path / "m", 1, 5 * MIB, 70_000, 10)
    report = three[0].push(model, name="promise-1")
    assert (report.pending, report.failed) == ([], [])
    for node in three:
        node.kill()
    for node in three:
        node.start()
        until("it is whole", lambda node=node: node.has("promise-1@1"))  # type: ignore[misc]
        with node.client() as client:
            assert client.verify("promise-1").corrupt == 0
            directory = Path(client.path("promise-1").directory)
        assert all((directory / path.name).read_bytes() == path.read_bytes() for path in model.iterdir())


def test_promise_2_bytes_are_checked_and_rot_is_repaired(three: Three, tmp_path: Path) -> None:
    """Arrival: tests/peers/test_lanes.py. Here: rot is found before it is used again or given away."""
    size = 9 * MIB + 4321
    model = random_model(tmp_path / "m", 2, size)
    three[0].push(model, name="promise-2")
    rotten = three[1]
    (path,) = [path for path in rotten.object_files() if path.stat().st_size == size]
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    other = random_model(tmp_path / "other", 3, 100)
    (other / "again.weights").write_bytes((model / "part-0.weights").read_bytes() + b"more")
    three[0].push(other, name="promise-2-reuse")  # its first blocks are on the rotten node, as far as it knows
    for ref in ("promise-2-reuse", "promise-2"):
        with rotten.client() as client:
            until("it is repaired", lambda ref=ref: rotten.has(f"{ref}@1"))  # type: ignore[misc]
            client.verify(ref, repair=True)
            assert client.verify(ref).corrupt == 0
    with rotten.client() as client:
        directory = Path(client.path("promise-2-reuse").directory)
    assert (directory / "again.weights").read_bytes() == (other / "again.weights").read_bytes()


def test_promise_3_no_save_overwrites_one_made_elsewhere(three: Three, tmp_path: Path) -> None:
    """Any order, any crash: tests/simulation. Here: two nodes save one file while neither hears of the other."""
    ada, grace, edith = three
    create(ada, "promise-3")
    write(ada, "promise-3:/cut.txt", b"first", tmp_path)
    until("all know it", lambda: all(names(node, "promise-3:/") == ["cut.txt"] for node in three))
    grace.stop()
    edith.stop()
    write(ada, "promise-3:/cut.txt", b"ada's", tmp_path)
    ada.stop()
    grace.start()
    write(grace, "promise-3:/cut.txt", b"grace's", tmp_path)
    ada.start()
    edith.start()
    for node in three:
        until("both are shown", lambda node=node: len(names(node, "promise-3:/")) == 2)  # type: ignore[misc]
        shown = {name: read(node, f"promise-3:/{name}") for name in names(node, "promise-3:/")}
        assert set(shown.values()) == {b"ada's", b"grace's"}
        assert "cut.txt" in shown
        with node.client() as client:
            assert len(client.history(place("promise-3:/cut.txt")).lines) == 3


def test_promise_4_a_read_succeeds_while_one_copy_can_be_reached(three: Three, tmp_path: Path) -> None:
    """The only other holder is killed in the middle, and comes back: the pull goes on and ends well."""
    ada, _, edith = three
    model = random_model(tmp_path / "m", 4, 24 * MIB)
    ada.push(model, name="promise-4", to=["grace"])
    struck: list[bool] = []

    def told(event: AnyEvent) -> None:
        if isinstance(event, Nodes) and event.nodes[0].bytes_present and not struck:
            struck.append(True)
            ada.kill()

    with edith.client() as client:
        report = client.pull(PullParams("promise-4"), told)
    if ada.process is None:
        ada.start()
    assert report.failed == []
    assert edith.has("promise-4@1")


def test_promise_5_a_stranger_learns_a_key_and_nothing_else(three: Three) -> None:
    """The key itself: tests/daemon/test_strangers.py."""
    for words in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"TBLANE1\n" + bytes(40),
        b"TBPAIR1\n" + bytes(64),
        b"\x16garbage" + bytes(99),
    ):
        with socket.create_connection(("127.0.0.1", three[0].port), 10) as connection:
            connection.sendall(words)
            said = b""
            try:
                while part := connection.recv(4096):
                    said += part
            except ConnectionResetError:
                pass
        assert len(said) <= 7, "a TLS alert at most"
        assert b"ada" not in said


def test_promise_6_bad_input_gets_one_clear_error(three: Three, tmp_path: Path) -> None:
    """From the command line and the disk here; from the wire in tests/peers, from models in tests/inference."""
    errors: list[TbshareError] = []
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with three[0].client() as client:
        for params in (
            PushParams(str(tmp_path / "nowhere")),
            PushParams(str(loop)),
            PushParams("/dev/null"),
            PushParams("/proc/self/mem", name="x"),
            PushParams(str(tmp_path), name="not/a/name"),
            PushParams(str(tmp_path), to=["nobody"], name="x"),
            PushParams("\0", name="x"),
            PushParams(str(tmp_path / ("n" * 300)), name="x"),
        ):
            with pytest.raises(TbshareError) as caught:
                client.push(params)
            errors.append(caught.value)
    for error in errors:
        assert not isinstance(error, DaemonUnreachable)
        assert "\n" not in str(error)
        assert "Traceback" not in str(error)
        assert "internal" not in str(error).lower()
    assert isinstance(errors[0], InputRefused)
    assert "Traceback" not in three[0].log()


@pytest.mark.timeout(180)
def test_promise_7_memory_is_bounded_while_two_gigabytes_pass(tmp_path: Path) -> None:
    """Every block is another one: a counter in an otherwise constant file, so that making it costs nothing."""
    ada, grace = Node(tmp_path / "h" / "a", "ada"), Node(tmp_path / "h" / "g", "grace")
    model = tmp_path / "m"
    model.mkdir()
    block = bytearray(Random(7).randbytes(4 * MIB))
    with open(model / "large.weights", "wb") as file:
        for number in range(500):
            block[:8] = number.to_bytes(8, "big")
            file.write(block)
    peaks = {node.name: 0 for node in (ada, grace)}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for node in (ada, grace):
                peaks[node.name] = max(peaks[node.name], node.anonymous_bytes())

    with running(ada, grace):
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            report = ada.push(model, name="large")
        finally:
            over.set()
            thread.join()
        assert (report.failed, report.pending) == ([], [])
        assert report.nodes[0].bytes_moved == 500 * 4 * MIB
    assert max(peaks.values()) < 300_000_000, peaks
