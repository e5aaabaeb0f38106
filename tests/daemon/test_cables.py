"""Three daemons, edits on all of them, cables cut and daemons killed at random: nothing acknowledged is lost."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tbshare.content import manifest as manifests
from tbshare.content.block import BLOCK_BYTES, block_id
from tbshare.errors import TbshareError
from tbshare.wire.files import FileCopyParams, FileReadParams, Item
from tbshare.wire.volume import VolumeCreateParams
from tbshare.wire.where import Where
from tests.cables import Cables, cabled
from tests.nodes import READY_SECONDS, Node, pair, running, until, until_connected

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="network namespaces are made with iproute2"),
]

VOLUME = "media"
NAMES = (b"a", b"A", b"cut.mov", b"mix.wav", "é".encode(), b"notes.txt")
DIRECTORIES = (b"reels", b"Reels", b"sound", b"old")
SECONDS, SECONDS_OF_A_SOAK = 25.0, 600.0
SETTLE_SECONDS = 90.0


def content_of(data: bytes) -> str:
    """Return the id that a file of these bytes has in a volume."""
    blocks = [block_id(data[start : start + BLOCK_BYTES]) for start in range(0, len(data), BLOCK_BYTES)]
    return manifests.of_blocks(len(data), None, blocks).id.hex()


class User(threading.Thread):
    """Somebody at a node who saves, renames, copies and removes; what a call returned for is remembered."""

    def __init__(self, node: Node, folder: Path, seed: int, end: threading.Event) -> None:
        super().__init__(daemon=True)
        self._node, self._folder, self._random, self._end = node, folder, Random(seed), end
        self.acknowledged: list[tuple[bytes, str]] = []  # path, content
        self.written: set[str] = set()
        self.paths: set[bytes] = set()
        self.done = self.refused = 0
        self.broken: BaseException | None = None

    def run(self) -> None:
        """Go on until the end, whatever is refused."""
        try:
            while not self._end.is_set():
                try:
                    with self._node.client() as client:
                        self._client = client
                        while not self._end.is_set():
                            self._act()
                            self.done += 1
                except TbshareError:
                    self.refused += 1
                    self._end.wait(0.01)
        except BaseException as error:  # noqa: BLE001  raised by the test
            self.broken = error

    def _path(self) -> bytes:
        above = [self._random.choice(DIRECTORIES) for _ in range(self._random.choice((0, 0, 1, 1, 2)))]
        return b"/".join([*above, self._random.choice(NAMES)])

    def _shown(self) -> list[bytes]:
        return [path for path, item in walk(self._node) if item.kind == "file"]

    def _one_shown(self) -> bytes:
        return self._random.choice([*self._shown(), self._path()])

    def _act(self) -> None:
        kind = self._random.choices(("save", "move", "remove", "mkdir", "copy"), (8, 3, 2, 3, 1))[0]
        path = self._path() if self._random.random() < 0.5 else self._one_shown()
        other = self._path() if self._random.random() < 0.5 else self._one_shown()
        self.paths |= {path, other}
        match kind:
            case "save":
                data = self._random.randbytes(self._random.choice((10, 5_000, 100_000)))
                source = self._folder / "source"
                source.write_bytes(data)
                self.written.add(content_of(data))
                where = Where(VOLUME, path)
                if b"/" in path:
                    self._client.file_mkdir(Where(VOLUME, path.rpartition(b"/")[0]), parents=True)
                self._client.file_copy(FileCopyParams(sources=[Where(path=os.fsencode(source))], target=where))
                self.acknowledged.append((path, content_of(data)))
            case "move":
                self._client.file_move(Where(VOLUME, path), Where(VOLUME, other))
            case "remove":
                self._client.file_remove([Where(VOLUME, path)])
            case "mkdir":
                self._client.file_mkdir(Where(VOLUME, path.rpartition(b"/")[0] or b"reels"), parents=True)
            case _:
                source_of_copy = Where(VOLUME, path)
                self._client.file_copy(FileCopyParams(sources=[source_of_copy], target=Where(VOLUME, other)))


def walk(node: Node) -> Iterator[tuple[bytes, Item]]:
    """Yield all that a node shows."""
    with node.client() as client:
        waiting = [b""]
        while waiting:
            above = waiting.pop()
            for item in client.file_list(Where(VOLUME, above)).items:
                path = b"/".join(part for part in (above, item.name) if part)
                yield path, item
                if item.kind in ("directory", "bundle"):
                    waiting.append(path)


def listing(node: Node) -> list[tuple[object, ...]]:
    """Return what a node shows, to compare."""
    found = [(path, item.kind, item.id, item.version, item.content, item.mtime_ns) for path, item in walk(node)]
    return sorted(found)


def make_trouble(nodes: list[Node], cables: Cables, seconds: float) -> None:
    """Cut and mend cables, and now and then kill a daemon."""
    random, end = Random(seconds), time.monotonic() + seconds
    while time.monotonic() < end:
        for cable in cables.pairs():
            cables.set_cable(cable, works=random.random() < 0.5)
        if random.random() < 0.15:
            node = random.choice(nodes)
            node.kill()
            node.start()
        time.sleep(random.uniform(0.2, 4.0))
    for cable in cables.pairs():
        cables.set_cable(cable, works=True)


def live_through(folder: Path, seconds: float) -> list[User]:
    """Edit while there is trouble; then mend all, and check."""
    with cabled(3) as cables, contextlib.ExitStack() as stack:
        names = ("ada", "grace", "edith")
        nodes = [Node(folder / n, n, host="", prefix=cables.prefix(i)) for i, n in enumerate(names)]
        stack.enter_context(running(*nodes, paired=False))
        for number, node in enumerate(nodes[1:], 1):
            pair(nodes[0], node, cables.address(0, number))
        until_connected(nodes)
        with nodes[0].client() as client:
            client.volume_create(VolumeCreateParams(name=VOLUME))
        for node in nodes:
            until("the volume is everywhere", lambda node=node: _has_volume(node))  # type: ignore[misc]
        end = threading.Event()
        users = [User(node, _made(folder / f"of-{node.name}"), seed, end) for seed, node in enumerate(nodes)]
        try:
            for user in users:
                user.start()
            make_trouble(nodes, cables, seconds)
        finally:
            end.set()
            for user in users:
                user.join(READY_SECONDS)
        for user in users:
            assert user.broken is None, repr(user.broken)
        until_connected(nodes)
        until("all show the same", lambda: len({repr(listing(node)) for node in nodes}) == 1, SETTLE_SECONDS)
        for node in nodes:
            check(node, users)
        return users


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _has_volume(node: Node) -> bool:
    with node.client() as client:
        return any(line.name == VOLUME for line in client.volume_list().volumes)


def check(node: Node, users: list[User]) -> None:
    """All that was acknowledged is shown, or in a history; all that is read was written."""
    written = {content for user in users for content in user.written}
    shown = list(walk(node))
    found = {item.content for _, item in shown}
    paths = {path for user in users for path in user.paths} | {path for path, _ in shown}
    with node.client() as client:
        for path in sorted(paths):
            with contextlib.suppress(TbshareError):  # nothing ever was there
                found |= {line.content for line in client.history(Where(VOLUME, path)).lines}
        for path, item in shown:
            if item.kind == "file":
                parts: list[bytes] = []
                client.file_read(FileReadParams(where=Where(VOLUME, path)), parts.append)
                assert content_of(b"".join(parts)) == item.content
                assert item.content in written
    lost = [(path, content) for user in users for path, content in user.acknowledged if content not in found]
    assert not lost, f"{node.name} lost {lost}"


@pytest.mark.timeout(300)
def test_nothing_is_lost_while_cables_are_cut(tmp_path: Path) -> None:
    users = live_through(tmp_path, SECONDS)
    assert sum(len(user.acknowledged) for user in users) >= 30


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nothing_is_lost_in_ten_minutes_of_cut_cables(tmp_path: Path) -> None:
    users = live_through(tmp_path, SECONDS_OF_A_SOAK)
    assert sum(len(user.acknowledged) for user in users) >= 1000
