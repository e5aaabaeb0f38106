"""What a volume holds, for whoever copies it: bytes verified as they are read, and whole directories."""

from collections.abc import Iterator

from tbshare.content.block import ObjectId
from tbshare.errors import ObjectMissing
from tbshare.store.store import Store
from tbshare.volumes.item import Attributes, Content, Item, Path, Put
from tbshare.volumes.volume import Handle

PUTS_AT_ONCE = 500


def pieces_of(store: Store, content: bytes, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the bytes [start, end) of an object, at most a block at a time. ObjectMissing, BlockCorrupt."""
    object_id = ObjectId(content)
    found = store.manifest(object_id)
    if found is None:
        raise ObjectMissing(f"object {object_id.hex()[:12]} is not on this node", cure="tbshare verify --repair")
    end = found.size if end is None else end
    for number, (offset, length) in enumerate(zip(found.offsets, found.lengths, strict=False)):
        if offset + length <= start or offset >= end:
            continue
        data = store.read_block(object_id, number)
        yield data[max(0, start - offset) : end - offset]


def puts_of(handle: Handle, source: Path, target: Path) -> Iterator[list[Put]]:
    """Yield what puts a copy of `source`, with all below it, at `target`: the same contents, in parts."""
    stack, part = [source], list[Put]()
    while stack:
        path = stack.pop()
        item = handle.lookup(path)
        to = (*target, *path[len(source) :])
        if to:
            part.append(_put_of(item, to))
        if item.kind == "directory":
            stack += [(*path, each.name) for each in reversed(handle.list(path)) if not each.fork]
        if len(part) >= PUTS_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _put_of(item: Item, path: Path) -> Put:
    """Return what makes a path the same as an item."""
    content = None
    if item.kind != "directory":
        content = Content(item.content, item.size, item.mtime_ns, item.kind)
    attributes = Attributes(
        mode=item.mode,
        uid=item.uid,
        gid=item.gid,
        mtime_ns=item.mtime_ns,
        birthtime_ns=item.birthtime_ns or None,
        xattrs={**item.xattrs, **item.large_xattrs},
    )
    return Put(path, item.kind, content, attributes)
