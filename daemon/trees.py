"""The trees of bundles, kept where all trees are: in the store."""

from tbshare.content.block import TreeId
from tbshare.content.tree import Tree
from tbshare.errors import ObjectMissing
from tbshare.store.pack import Kind
from tbshare.store.store import Store


class StoreTrees:
    """`TreeAccess` of `tbshare.volumes` over a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, tree: bytes) -> Tree:
        """Return the tree of this id; ObjectMissing when it is not on this node."""
        found = self._store.tree(TreeId(tree))
        if found is None:
            raise ObjectMissing(
                f"the listing {tree.hex()[:12]} of a bundle is not on this node",
                cure="tbshare pin VOLUME:/path",
            )
        return found

    def put(self, tree: Tree) -> bytes:
        """Keep a tree, durably, and return its id."""
        self._store.add_record(Kind.TREE, tree.id, tree.encoded)
        self._store.sync_records()
        return tree.id
