"""Nodes of a cluster in one process: real logs on disk, real tables, told of each other by hand."""

from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from random import Random

from tbshare.content.block import HASH_BYTES
from tbshare.content.tree import Tree
from tbshare.errors import ObjectMissing
from tbshare.peers.identity import Identity
from tbshare.volumes.entry import Role, VolumeCreate
from tbshare.volumes.item import Content, Item, Path
from tbshare.volumes.log import Log
from tbshare.volumes.volume import Handle
from tbshare.volumes.volumes import Volumes

MINUTE_NS = 60 * 10**9
START_NS = 1_795_000_000 * 10**9  # 2026-11-18 11.06 UTC


class Trees:
    """The trees of all nodes; `lost` are those that no node can read."""

    def __init__(self) -> None:
        self.trees: dict[bytes, Tree] = {}
        self.puts = 0

    def get(self, tree: bytes) -> Tree:
        if tree not in self.trees:
            raise ObjectMissing("that tree is not on this node")
        return self.trees[tree]

    def put(self, tree: Tree) -> bytes:
        self.trees[tree.id] = tree
        self.puts += 1
        return tree.id


class Node:
    """One node: its log, its volumes, and the volume the tests are about."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.time_ns = START_NS
        self.seconds = 0.0
        self.starts = 0
        self.identity = Identity.load_or_create(cluster.home / f"{name}.key")
        self.log = self.open_log()
        self.volumes: Volumes | None = None

    def open_log(self) -> Log:
        return Log.open(self.cluster.home / f"{self.name}.db", self.identity, clock_ns=lambda: self.time_ns)

    def open(self) -> None:
        self.starts += 1
        self.volumes = Volumes(
            self.log,
            self.cluster.home / f"{self.name}.namespace",
            node=self.identity.node,
            random=Random(f"{self.name} {self.starts}"),
            clock=lambda: self.seconds,
            trees=self.cluster.trees,
            time_ns=lambda: self.time_ns,
        )

    def again(self) -> None:
        """Stop and start."""
        self.close()
        self.log = self.open_log()
        self.open()

    def close(self) -> None:
        if self.volumes is not None:
            self.volumes.close()
        self.log.close()

    @property
    def volume(self) -> Handle:
        assert self.volumes is not None
        return self.volumes.open("films")

    def wait(self, minutes: int = 1) -> None:
        self.time_ns += minutes * MINUTE_NS

    # ---- what tests say, in few letters

    def save(self, path: str, text: str, **more: object) -> int:
        return self.volume.save(parts(path), content(text, self.time_ns), **more).version  # type: ignore[arg-type]

    def names(self, path: str = "") -> list[str]:
        return [item.name.decode() for item in self.volume.list(parts(path))]

    def item(self, path: str) -> Item:
        return self.volume.lookup(parts(path))

    def reads(self, path: str) -> str:
        return self.item(path).content.rstrip(b"\0").decode()

    def all(self, path: Path = ()) -> dict[str, str]:
        """Return every file by its path, with what it holds, directories with "/"."""
        found: dict[str, str] = {}
        for item in self.volume.list(path):
            below = (*path, item.name)
            text = b"/".join(below).decode("utf-8", "backslashreplace")
            if item.is_directory:
                found[text + "/"] = ""
                found.update(self.all(below))
            else:
                found[text] = item.content.rstrip(b"\0").decode("utf-8", "backslashreplace")
        return found


class Cluster:
    """Nodes that were paired, with a volume `films`, and talk when they are told to."""

    def __init__(
        self,
        home: FilePath,
        *names: str,
        mode: str = "media",
        options: Mapping[str, object] = {},
        roles: Mapping[str, Role] = {},
    ) -> None:
        self.home = home
        self.trees = Trees()
        self.nodes = {name: Node(self, name) for name in names}
        first, *others = self.nodes.values()
        first.log.create_cluster(first.name)
        for node in others:
            first.log.add_member(node.identity.certificate, node.name, roles.get(node.name, "admin"))
            node.log.join(first.log.cluster, certificate=first.identity.certificate, name=first.name)
        first.log.append([VolumeCreate(name="films", mode=mode, options=dict(options))])  # type: ignore[arg-type]
        self.settle()
        for node in self.nodes.values():
            node.open()

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def tell(self, source: str, target: str) -> int:
        """Let a node send another what it lacks."""
        one, other = self.nodes[source].log, self.nodes[target].log
        accepted = 0
        while part := one.missing_for(other.summary(), 1 << 20):
            came = len(other.receive(part).accepted)
            accepted += came
            if not came:
                break
        return accepted

    def settle(self, *names: str) -> None:
        """Let these nodes, or all, talk until none has anything new to say."""
        among = names or tuple(self.nodes)
        while sum(self.tell(a, b) for a in among for b in among if a != b):
            pass

    def agree(self) -> dict[str, str]:
        """Let all talk, check that they show the same, and return what."""
        self.settle()
        shown = [node.all() for node in self.nodes.values()]
        assert all(one == shown[0] for one in shown), shown
        return shown[0]

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()


def parts(path: str) -> Path:
    return tuple(part.encode() for part in path.split("/") if part)


def content(text: str, mtime_ns: int = 0, size: int = -1) -> Content:
    """Return a file's content; its object's id is the text itself, so that tests can read it."""
    data = text.encode()
    assert len(data) <= HASH_BYTES
    return Content(data.ljust(HASH_BYTES, b"\0"), len(data) if size < 0 else size, mtime_ns)


def texts(lines: Iterable[object]) -> list[str]:
    """Return what the versions of a history hold."""
    return [line.content.rstrip(b"\0").decode() for line in lines]  # type: ignore[attr-defined]
