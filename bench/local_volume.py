"""A volume on a real log and real tables in this process, without a daemon, though it may be a daemon's home."""

import contextlib
import random
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from tbshare.content.tree import Tree
from tbshare.errors import ObjectMissing
from tbshare.peers.identity import Identity
from tbshare.volumes.entry import VolumeCreate
from tbshare.volumes.log import Log
from tbshare.volumes.volume import Handle
from tbshare.volumes.volumes import Volumes

NAME = "film"


class Trees:
    """No bundle is in these volumes."""

    def get(self, tree: bytes) -> Tree:
        """Refuse."""
        raise ObjectMissing("no bundle is in this bench")

    def put(self, tree: Tree) -> bytes:
        """Take it for kept."""
        return tree.id


@dataclass
class LocalVolume:
    """A node's log, its volumes, and one of them."""

    identity: Identity
    log: Log
    volumes: Volumes
    handle: Handle


@contextlib.contextmanager
def local_volume(home: Path, name: str = NAME) -> Generator[LocalVolume]:
    """Open the node in `home` and a volume of it; a new node gets one of this name."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = Identity.load_or_create(home / "device.key")
    log = Log.open(home / "log.db", identity)
    if not log.cluster:
        log.create_cluster("studio")
        log.append([VolumeCreate(name=name, mode="media")])
    volumes = Volumes(log, home / "namespace", node=identity.node, random=random.SystemRandom(), trees=Trees())
    try:
        yield LocalVolume(identity, log, volumes, volumes.open(name))
    finally:
        volumes.close()
        log.close()
