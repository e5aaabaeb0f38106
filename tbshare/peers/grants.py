"""What each peer may fetch: the records and objects of a tree, looked up here and not taken from the asker.

A hash is not a capability. A tree is given when a ref names it in a volume that the asker may read. Versions of
files are given under a name that the asker chose for them: what they consist of is looked up in the tables of
their volume on this node, so that versions which only the asker knows of give nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from tbshare.content.block import ObjectId, TreeId
from tbshare.content.ref import folded
from tbshare.content.tree import Kind as EntryKind
from tbshare.peers.mesh import Mesh, Peer
from tbshare.store.store import Store
from tbshare.volumes.catalogue import MODELS_ID
from tbshare.volumes.fold import State
from tbshare.wire.message import Want

GRANTS_MAX = 64  # of trees of refs, kept for all peers together
VERSIONS_GRANTS_MAX = 128  # fetches of versions of one peer at once, and files it reads


class Stored(Protocol):
    """A version as the tables of its volume know it."""

    @property
    def file(self) -> int:
        """The file it is of."""
        ...

    @property
    def version(self) -> int:
        """Its own id."""
        ...

    @property
    def contents(self) -> str:
        """What `content` is: that of a "file", a "bundle" or a "link"."""
        ...

    @property
    def content(self) -> bytes:
        """An object's id, a tree's, or where a link points."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...


Lookup = Callable[[int, Sequence[tuple[int, int]]], Iterable[Stored]]  # (volume, versions) -> those known


@dataclass(frozen=True)
class Grant:
    """What one peer may have under one tree."""

    volume: int
    objects: tuple[ObjectId, ...] = ()  # in the order of the tree
    records: frozenset[bytes] = frozenset()  # manifests, which have the ids of their objects, and listings
    whole: bool = False  # whether this is all that the asker named

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not self.records


class Grants:
    """Who may have what; all methods in the trio thread."""

    def __init__(self, store: Store, mesh: Mesh) -> None:
        self.store, self.mesh = store, mesh
        self.lookup: Lookup = lambda _volume, _files: ()
        self._of_refs: OrderedDict[tuple[bytes, bytes], Grant] = OrderedDict()
        self._of_versions: dict[bytes, OrderedDict[bytes, Grant]] = {}
        mesh.on_state(self._on_state)

    async def may_have(self, peer: Peer, tree: bytes) -> bool:
        """Return whether the peer may have a tree, or what it named so."""
        named = tree in self._of_versions.get(peer.node, ()) or (peer.node, tree) in self._of_refs
        return named or _volume_of(await self.mesh.state(), peer.node, tree) is not None

    async def of(self, peer: Peer, tree: bytes) -> Grant:
        """Return what the peer may have under a tree; an empty grant when it may not."""
        if tree in self._of_versions.get(peer.node, ()):
            return self._of_versions[peer.node][tree]
        if (peer.node, tree) in self._of_refs:
            return self._of_refs[peer.node, tree]
        volume = _volume_of(await self.mesh.state(), peer.node, tree)
        if volume is None:
            return Grant(MODELS_ID)
        grant = await trio.to_thread.run_sync(self._of_tree, volume, tree)
        if grant.whole:
            self._of_refs[peer.node, tree] = grant
            while len(self._of_refs) > GRANTS_MAX:
                self._of_refs.popitem(last=False)
        return grant

    async def of_versions(self, peer: Peer, message: Want) -> Grant:
        """Return what a peer may have of the versions it names, and remember it under the name it gives them."""
        state = await self.mesh.state()
        if not state.may_read(peer.node, message.volume_id):
            return Grant(message.volume_id)
        grant = await trio.to_thread.run_sync(self._of_files, message)
        given = self._of_versions.setdefault(peer.node, OrderedDict())
        given[message.tree] = grant
        while len(given) > VERSIONS_GRANTS_MAX:
            given.popitem(last=False)
        return grant

    async def of_any_ref(self, peer: Peer, ids: Sequence[bytes]) -> frozenset[bytes]:
        """Return those of these records that belong to some ref which the peer may read: it says not to which."""
        state = await self.mesh.state()
        left, found = set(ids), set[bytes]()
        for version in [version for versions in state.refs.values() for version in versions]:
            if not left:
                break
            grant = await self.of(peer, version.tree)
            found |= left & grant.records
            left -= grant.records
        return frozenset(found)

    def take_back(self, peer: Peer, tree: bytes) -> None:
        """Forget what a peer named and no longer fetches."""
        self._of_versions.get(peer.node, OrderedDict()).pop(tree, None)

    def forget(self, node: bytes) -> None:
        """Forget what a node was given: its session is over."""
        self._of_versions.pop(node, None)
        for key in [key for key in self._of_refs if key[0] == node]:
            del self._of_refs[key]

    async def _on_state(self, state: State) -> None:
        """Take back what a node may no longer read."""
        for key, grant in list(self._of_refs.items()):
            if not state.may_read(key[0], grant.volume):
                del self._of_refs[key]
        for node, given in self._of_versions.items():
            for tree in [tree for tree, grant in given.items() if not state.may_read(node, grant.volume)]:
                del given[tree]

    def _of_tree(self, volume: int, tree: bytes) -> Grant:
        objects, listings, whole = self._below(tree)
        return Grant(volume, tuple(objects), frozenset([*objects, *listings]), whole)

    def _of_files(self, message: Want) -> Grant:
        objects: dict[ObjectId, None] = {}
        records: set[bytes] = set()
        stored = list(self.lookup(message.volume_id, message.files))
        whole = len(stored) == len(set(message.files))
        for each in stored:
            if each.contents in ("file", "xattr"):
                objects[ObjectId(each.content)] = None
            elif each.contents == "bundle":
                inner, listings, all_here = self._below(each.content)
                objects |= inner
                records |= listings
                whole &= all_here
        return Grant(message.volume_id, tuple(objects), frozenset([*objects, *records]), whole)

    def _below(self, tree: bytes) -> tuple[dict[ObjectId, None], set[bytes], bool]:
        """Return the objects and listings of a tree, and whether all its listings are here."""
        objects: dict[ObjectId, None] = {}
        listings, stack, whole = {tree}, [tree], True
        while stack:
            listing = self.store.tree(TreeId(stack.pop()))
            whole &= listing is not None
            for entry in listing.entries if listing is not None else ():
                objects |= dict.fromkeys([ObjectId(object_id) for object_id, _ in entry.objects()])
                if entry.kind == EntryKind.TREE and entry.target not in listings:
                    listings.add(entry.target)
                    stack.append(entry.target)
        return objects, listings, whole


def _volume_of(state: State, node: bytes, tree: bytes) -> int | None:
    """Return a volume that the node may read and of which a ref names the tree."""
    for versions in state.refs.values():
        for version in versions:
            if version.tree == tree:
                volume = state.volumes.get(folded(version.volume))
                number = volume.id if volume is not None else MODELS_ID
                if state.may_read(node, number):
                    return number
    return None
