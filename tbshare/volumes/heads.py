"""Which of a file's heads is under its name, and where the branches of the others began. Pure."""

from collections.abc import Mapping, Sequence

from tbshare.volumes.rows import VersionRow


def in_order(
    heads: Sequence[VersionRow], versions: Mapping[tuple[int, int], VersionRow]
) -> tuple[tuple[VersionRow, ...], tuple[tuple[bytes, int], ...], bool]:
    """Return a file's heads, the one under the name first, with stamp and time where the branch of each began.

    And whether it can be told from these alone what they are when one of them goes on, see `extended`.

    It is found from the first version down: where one has several children, the way is to the one with the highest
    stamp. So the choice between two branches does not change while somebody goes on saving in one of them. The
    others are in the order in which their branches began. `versions` has those that are known of the file.
    """
    known, children, roots = _family(heads, versions)
    main, at, passed = max(heads, key=_stamp_of), roots, set[int]()
    while at:  # ends at a head; or, where versions are made to be their own ancestors, anywhere
        row = max(at, key=_stamp_of)
        passed.add(row.version)
        at = [child for child in children.get(row.version, ()) if child.version not in passed]
        if row.version not in children:
            main = row
    ours = _ancestors(main, known)
    began = {main.version: main}
    for head in heads:
        if head is not main:  # something of it is left, but in a batch that trusted wrongly that it was new
            branch = [known[number] for number in _ancestors(head, known) - ours]
            began[head.version] = min(branch, key=_stamp_of, default=head)
    ordered = sorted(heads, key=lambda head: (head is not main, began[head.version].stamp, head.stamp))
    orderly = all(child.stamp > known[number].stamp for number, later in children.items() for child in later)
    since = tuple([(began[head.version].stamp, began[head.version].time_ns) for head in ordered])
    return tuple(ordered), since, orderly


def extended(
    heads: Sequence[VersionRow], since: Sequence[tuple[bytes, int]], row: VersionRow
) -> tuple[tuple[VersionRow, ...], tuple[tuple[bytes, int], ...]] | None:
    """Return what `in_order` says after a save upon one of several heads; None when it must be asked.

    Where nothing is later than what came of it, whoever goes on takes the place of the head that was there.
    """
    if len(row.parents) != 1 or len(since) != len(heads):
        return None
    place = next((number for number, head in enumerate(heads) if head.version == row.parents[0]), -1)
    if place < 0 or row.stamp <= heads[place].stamp:
        return None
    pairs = list(zip(heads, since, strict=True))
    pairs[place] = row, (row.stamp, row.time_ns) if place == 0 else since[place]
    pairs[1:] = sorted(pairs[1:], key=lambda pair: (pair[1][0], pair[0].stamp))
    return tuple([head for head, _ in pairs]), tuple([began for _, began in pairs])


def _family(
    heads: Sequence[VersionRow], versions: Mapping[tuple[int, int], VersionRow]
) -> tuple[dict[int, VersionRow], dict[int, list[VersionRow]], list[VersionRow]]:
    """Return the heads and all they come from; the children of each; those that come from none that is known."""
    known: dict[int, VersionRow] = {}
    children: dict[int, list[VersionRow]] = {}
    roots: list[VersionRow] = []
    left = list(heads)
    while left:
        row = left.pop()
        if row.version in known:
            continue
        known[row.version] = row
        parents = [found for number in row.parents if (found := versions.get((row.file, number))) is not None]
        for parent in parents:
            children.setdefault(parent.version, []).append(row)
        left += parents
        if not parents:
            roots.append(row)
    return known, children, roots


def _ancestors(row: VersionRow, known: Mapping[int, VersionRow]) -> set[int]:
    """Return a version and all that it comes from."""
    found: set[int] = set()
    left = [row.version]
    while left:
        number = left.pop()
        if number not in found and number in known:
            found.add(number)
            left += known[number].parents
    return found


def _stamp_of(row: VersionRow) -> bytes:
    return row.stamp
