"""What a fetch is to bring here: the tree of a ref, or versions of files of a volume."""

from collections.abc import Iterable
from dataclasses import dataclass

from tbshare.content.block import ObjectId, TreeId
from tbshare.content.tree import Entry, Kind, Tree
from tbshare.peers.grants import Stored
from tbshare.store.store import Store
from tbshare.wire.message import Want

_KINDS = {"file": Kind.FILE, "bundle": Kind.TREE, "xattr": Kind.FILE}


@dataclass(frozen=True)
class Goal:
    """A tree, and in which volume it is looked for.

    With `files` it is a listing of the contents of these versions that is never sent: peers look up for themselves
    what the versions consist of. Nodes that fetch the same versions give it the same id, and so help each other.
    """

    tree: TreeId
    volume: str  # its name
    volume_id: int = 0
    files: tuple[tuple[int, int], ...] = ()  # (file, version)
    listing: Tree | None = None

    def want(self) -> Want:
        """Return what is said to peers."""
        return Want(self.tree, self.volume, self.volume_id, list(self.files))

    def objects(self, store: Store) -> list[ObjectId]:
        """Return the objects it consists of, each once; all listings must be here."""
        if self.listing is None:
            return store.objects_below(self.tree)
        result: dict[ObjectId, None] = {}
        for entry in self.listing.entries:
            is_file = entry.kind == Kind.FILE
            below = [ObjectId(entry.target)] if is_file else store.objects_below(TreeId(entry.target))
            result.update(dict.fromkeys(below))
        return list(result)


def goal_of(volume: str, volume_id: int, versions: Iterable[Stored]) -> Goal:
    """Return the goal of fetching versions of one volume; links have nothing to fetch. Pure."""
    chosen = [each for each in versions if each.contents in _KINDS]
    entries = {
        each.content: Entry(each.content.hex().encode(), _KINDS[each.contents], each.content, each.size, 0o644, 0)
        for each in chosen
    }
    listing = Tree(entries.values())
    files = tuple((each.file, each.version) for each in chosen)
    return Goal(listing.id, volume, volume_id, files, listing)
