"""Who is not in the cluster: what it learns, how it gets in, and how it does not."""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest

from tbshare.errors import PairingFailed, TbshareError
from tbshare.peers.identity import Identity
from tbshare.peers.pairing import new_code
from tbshare.wire import limits
from tbshare.wire.report import AnyEvent, Code, TryFailed
from tests.nodes import READY_SECONDS, Node, pair, random_model, running, until

Make = Callable[..., Node]
Three = tuple[Node, Node, Node]


def dial(node: Node) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.port), 10)


def read_to_end(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def spoken_to(node: Node, words: bytes) -> bytes:
    with dial(node) as connection:
        connection.sendall(words)
        return read_to_end(connection)


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"SSH-2.0-x\r\n", b"TBLANE2\n"])
def test_garbage_is_closed_without_a_word(three: Three, words: bytes) -> None:
    assert spoken_to(three[0], words) == b""


def test_a_lane_without_a_token_is_closed_without_a_word(three: Three) -> None:
    assert spoken_to(three[0], b"TBLANE1\n" + bytes(8) + bytes(32)) == b""
    assert spoken_to(three[0], b"TBLANE1\n" + (1).to_bytes(8, "big") + bytes(32) + b"more") == b""


def test_pairing_is_closed_without_a_word_when_no_code_is_shown(three: Three) -> None:
    assert spoken_to(three[0], b"TBPAIR1\n" + bytes(200)) == b""


def test_a_stranger_learns_the_key_and_nothing_else(three: Three, tmp_path: Path) -> None:
    """With TLS and a certificate of its own: it sees the node's certificate, that is its key, and then the end."""
    ada = three[0]
    stranger = Identity.load_or_create(tmp_path / "device.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(stranger.path)
    with dial(ada) as connection, context.wrap_socket(connection, do_handshake_on_connect=False) as secured:
        secured.do_handshake()  # in TLS 1.3 our side is done before the other has looked at our certificate
        shown = secured.getpeercert(binary_form=True)
        try:
            said = secured.recv(65536)
        except (ssl.SSLError, ConnectionResetError):
            said = b""
    assert said == b""
    assert shown is not None
    node = bytes.fromhex(ada.status().node.id)
    assert node in shown
    for secret in (b"ada", b"grace", b"lab", bytes.fromhex(ada.status().cluster), socket.gethostname().encode()):
        assert secret not in shown


def test_a_node_of_another_cluster_is_a_stranger(three: Three, make_node: Make) -> None:
    with running(make_node("other"), paired=False):
        assert three[0].connected() == {"grace", "edith"}


def test_who_says_nothing_is_let_go_and_keeps_nobody_out(three: Three) -> None:
    ada = three[0]
    silent = [dial(ada) for _ in range(limits.STRANGERS_MAX)]
    for connection in silent[::2]:
        connection.sendall(b"\x16")  # the beginning of TLS, and no more
    try:
        started = time.monotonic()
        for connection in silent:
            assert read_to_end(connection) == b""
        assert time.monotonic() - started < limits.HANDSHAKE_SECONDS + 3
    finally:
        for connection in silent:
            connection.close()
    assert ada.connected() == {"grace", "edith"}


# ---- pairing ------------------------------------------------------------------------------------------------


class Window:
    """A code that a node shows, and what becomes of it, in a thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.codes: SimpleQueue[str] = SimpleQueue()
        self.failed_tries: list[int] = []
        self.end: SimpleQueue[TbshareError | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.code = self.codes.get(timeout=READY_SECONDS)

    def _told(self, event: AnyEvent) -> None:
        if isinstance(event, Code):
            self.codes.put(event.code)
        if isinstance(event, TryFailed):
            self.failed_tries.append(event.tries_left)

    def _run(self) -> None:
        try:
            with self.node.client() as client:
                client.pair_open(self._told)
            self.end.put(None)
        except TbshareError as error:
            self.end.put(error)


def wrong(code: str) -> str:
    number, _, words = code.partition("-")
    return f"{number}-{'-'.join(reversed(words.split('-')))}"


def test_three_wrong_codes_end_the_window(make_node: Make) -> None:
    ada, mallory = make_node("ada"), make_node("mallory")
    with running(ada, mallory, paired=False):
        window = Window(ada)
        with mallory.client() as client:
            for _ in range(3):
                with pytest.raises(PairingFailed):
                    client.pair_join(wrong(window.code), f"127.0.0.1:{ada.port}")
            end = window.end.get(timeout=10)
            assert isinstance(end, PairingFailed)
            assert "too often" in str(end)
            assert end.cure == "tbshare pair"
            with pytest.raises(PairingFailed):
                client.pair_join(window.code, f"127.0.0.1:{ada.port}")
        assert window.failed_tries[:2] == [2, 1]
        assert ada.connected() == set()
        pair(ada, mallory)  # a new code, typed right
        until("they are connected", lambda: ada.connected() == {"mallory"})


def test_a_code_is_for_one(make_node: Make) -> None:
    ada, grace, edith = make_node("ada"), make_node("grace"), make_node("edith")
    with running(ada, grace, edith, paired=False):
        window = Window(ada)
        with ada.client() as client, pytest.raises(PairingFailed, match="shown already"):
            client.pair_open(lambda _: None)
        with grace.client() as client:
            assert client.pair_join(window.code, f"127.0.0.1:{ada.port}").nodes
        assert window.end.get(timeout=10) is None
        with edith.client() as client, pytest.raises(PairingFailed):
            client.pair_join(window.code, f"127.0.0.1:{ada.port}")
        with grace.client() as client, pytest.raises(PairingFailed, match="in a cluster with 1 others already"):
            client.pair_join(new_code(), f"127.0.0.1:{edith.port}")


def test_nobody_there(make_node: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ada = make_node("ada")
    with running(ada), ada.client() as client, pytest.raises(PairingFailed, match="nothing answers"):
        client.pair_join(new_code(), f"127.0.0.1:{port}")


def test_a_window_ends_with_its_client(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace, paired=False):

        def leave(event: AnyEvent) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), ada.client() as client:
            client.pair_open(leave)
        until("the window is closed", lambda: _can_open(ada))
        pair(ada, grace)
        ada.push(random_model(tmp_path / "m", 1, 10), name="works")
        assert grace.has("works@1")


def _can_open(node: Node) -> bool:
    def leave(event: AnyEvent) -> None:
        raise KeyboardInterrupt

    with node.client() as client:
        try:
            client.pair_open(leave)
        except PairingFailed:
            return False
        except KeyboardInterrupt:
            return True
    return False
