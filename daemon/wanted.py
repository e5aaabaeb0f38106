"""Which versions of a volume this node holds, and which of them are fetched together. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tbshare.content.block import named_hash
from tbshare.daemon.copies import Pair
from tbshare.volumes.policy import EVERYWHERE, ON_DEMAND, Policy
from tbshare.volumes.rows import VersionRow

BATCH_VERSIONS: Final = 1000
BATCH_BYTES: Final = 256 * 1024 * 1024  # a waiting read may have to wait for a batch to end
ALONE_BYTES: Final = 64 * 1024 * 1024  # a version this large is fetched alone
RENDEZVOUS_CONTEXT: Final = "tbshare 2026-11-24 node for a copy"
AUTHOR_BYTES: Final = 8


def chosen(content: bytes, nodes: Iterable[bytes], count: int) -> list[bytes]:
    """Return the nodes that hold the `count` copies of a content: the same on every node."""
    return sorted(nodes, key=lambda node: named_hash(RENDEZVOUS_CONTEXT, [node, content]), reverse=True)[:count]


@dataclass(frozen=True)
class Rule:
    """What decides which versions of a volume this node holds."""

    me: bytes
    policy: Policy
    accept: str  # all | on-demand | none
    may_read: bool
    nodes: frozenset[bytes]  # that take copies
    pinned: frozenset[bytes] = frozenset()  # files, as `pin_of` names them
    offered: frozenset[Pair] = frozenset()  # versions a node that is to be unplugged asked this one to take

    def wants(self, volume: int, version: VersionRow) -> bool:
        """Return whether the version should be here."""
        if not self.may_read:
            return False
        asked = (version.file, version.version) in self.offered or pin_of(volume, version.file) in self.pinned
        if asked or version.author == self.me[:AUTHOR_BYTES]:
            return True
        if self.accept != "all" or self.policy.replicate == ON_DEMAND:
            return False
        if self.policy.replicate == EVERYWHERE:
            return True
        return self.me in chosen(version.content, self.nodes, self.policy.copies)


def pin_of(volume: int, file: int) -> bytes:
    """Return what a pin of a file is kept as: no content, so that the versions to come are meant, too."""
    return volume.to_bytes(8, "big") + file.to_bytes(8, "big")


def batches(versions: Sequence[VersionRow]) -> list[list[VersionRow]]:
    """Return the versions in parts that are fetched together."""
    result: list[list[VersionRow]] = []
    small: list[VersionRow] = []
    size = 0
    for each in versions:
        if each.size >= ALONE_BYTES:
            result.append([each])
            continue
        if len(small) == BATCH_VERSIONS or size + each.size > BATCH_BYTES:
            result.append(small)
            small, size = [], 0
        small.append(each)
        size += each.size
    return [*result, small] if small else result
