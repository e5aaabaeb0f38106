"""What the kernel must hear when a listing is another than it was."""

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from tbshare.fuse.nodes import ROOT_ID, Node, Notice, Tree
from tbshare.wire.mount import MountItem

VOLUME = 7
NAMES = [b"a", b"b", b"c", b"d"]


def item(name: bytes, number: int, content: bytes = b"x") -> MountItem:
    return MountItem(name, number, number, "file", version=1, content=content, size=len(content))


def planted(*items: MountItem) -> tuple[Tree, Node]:
    """Return a tree whose root has a listing that the kernel knows all of."""
    numbers = count(1000)
    tree = Tree(lambda: next(numbers))
    tree.sensitive[VOLUME] = False
    root = tree.make_root(VOLUME, MountItem(b"", ROOT_ID, ROOT_ID, "directory", mode=0o755))
    tree.loaded(root, items)
    for each in items:
        tree.child(root, each.name, each).lookups += 1
    return tree, root


def test_a_name_that_went_is_told() -> None:
    tree, root = planted(item(b"a", 1), item(b"b", 2))
    node = root.children[b"a"]
    assert tree.loaded(root, [item(b"b", 2)]) == [Notice("gone", root.inode, b"a", node.inode)]
    assert tree.path(node) is None
    assert tree.find(root, b"a") is None


def test_a_name_that_is_another_file_is_told() -> None:
    tree, root = planted(item(b"a", 1))
    assert tree.loaded(root, [item(b"a", 2)]) == [Notice("entry", root.inode, b"a")]


def test_a_name_that_was_absent_is_told() -> None:
    tree, root = planted()
    root.absent |= {b"New", b"other"}
    assert tree.loaded(root, [item(b"new", 3)]) == [Notice("entry", root.inode, b"New")]
    assert root.absent == {b"other"}


def test_other_bytes_are_told_and_who_reads_keeps_the_old_ones() -> None:
    tree, root = planted(item(b"a", 1))
    node = root.children[b"a"]
    assert tree.loaded(root, [item(b"a", 1, b"yy")]) == [Notice("data", node.inode)]
    node.opens = 1
    assert tree.loaded(root, [item(b"a", 1, b"zzz")]) == [Notice("expired", root.inode, b"a")]
    assert node.item.content == b"yy"
    heir = root.children[b"a"]
    assert (heir.item.content, heir.ino) == (b"zzz", node.ino)
    assert heir.inode != node.inode


def test_a_file_that_has_no_version_yet_stays() -> None:
    tree, root = planted(item(b"a", 1))
    node = tree.add_pending(root, b"new", MountItem(b"new", 0, 0, "file"), 5)
    assert tree.loaded(root, [item(b"a", 1)]) == []
    assert tree.find(root, b"new") is node.item
    number = node.ino
    tree.saved(node, item(b"new", 9))
    assert (node.ino, tree.by_id(VOLUME, 9)) == (number, node if node.lookups else None)


def test_what_is_forgotten_is_dropped() -> None:
    tree, root = planted(item(b"a", 1))
    node = root.children[b"a"]
    node.opens = 1
    assert tree.forget(node.inode, 1) is None
    node.opens = 0
    assert tree.drop_unused(node)
    assert root.children == {}
    assert tree.by_id(VOLUME, 1) is None


LISTINGS = st.tuples(  # names of files, and the bytes of each file
    st.dictionaries(st.sampled_from(NAMES), st.integers(1, 4), max_size=4),
    st.lists(st.binary(max_size=1), min_size=5, max_size=5),
)


@given(st.lists(LISTINGS, min_size=1, max_size=5))
def test_what_the_kernel_may_keep_is_what_the_last_listing_says(
    listings: list[tuple[dict[bytes, int], list[bytes]]],
) -> None:
    """The kernel keeps names, inodes and bytes until a notice; after each listing what it keeps is right."""
    tree, root = planted()
    names: dict[bytes, int] = {}  # the kernel's: name -> inode, 0 for absent
    data: dict[int, bytes] = {}
    for listing, contents in listings:
        items = [item(name, number, contents[number]) for name, number in listing.items()]
        for kind, inode, name, _ in tree.loaded(root, items):
            if kind in ("entry", "gone", "expired"):
                names.pop(name, None)
            elif kind == "data":
                data.pop(inode, None)
        for name in NAMES:
            found = tree.find(root, name)
            if name not in names:  # it asks
                if found is None:
                    root.absent.add(name)
                    names[name] = 0
                else:
                    node = tree.child(root, name, found)
                    node.lookups += 1
                    names[name] = node.inode
            assert bool(names[name]) == (found is not None)
            if found is not None:
                node = tree.by_inode[names[name]]
                assert node.item.id == found.id
                assert data.setdefault(node.inode, found.content) == node.item.content
