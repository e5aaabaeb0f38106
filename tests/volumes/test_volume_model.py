"""A volume against a plain tree in memory that does what POSIX says, by random operations."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tbshare.errors import (
    DirectoryNotEmpty,
    FileError,
    MoveImpossible,
    PathExists,
    PathIsDirectory,
    PathMissing,
    PathNotDirectory,
)
from tbshare.volumes.item import Attributes
from tests.volumes.cluster import Cluster, Node, content

NAMES = st.sampled_from([b"a", b"b", b"C", b"c", b"x.drp"])
PATHS = st.one_of(
    st.tuples(NAMES),  # so that operations meet
    st.tuples(st.sampled_from([b"a", b"x.drp"]), NAMES),
    st.lists(NAMES, min_size=1, max_size=3).map(tuple),
)
Path = tuple[bytes, ...]


def folded(path: Path) -> Path:
    return tuple(name.lower() for name in path)


def is_bundle_name(name: bytes) -> bool:
    return name.lower().endswith(b".drp")


@dataclass
class File:
    """What the model has of a file; two names may share one."""

    text: str
    mode: int = 0o644


@dataclass
class Directory:
    """What is in it by folded names. In a bundle there are no hard links, and no bundles that count."""

    bundle: bool = False
    mode: int = 0o755
    below: "dict[bytes, File | Directory]" = field(default_factory=dict[bytes, "File | Directory"])


Anything = File | Directory


def copied(what: Anything, *, bundle: bool = False, by_name: bool = False) -> Anything:
    """Return a copy; directories below are bundles by their names when it is not within one itself."""
    if isinstance(what, File):
        return File(what.text, what.mode)
    by_name = by_name and not bundle
    below = {
        name: copied(one, bundle=by_name and is_bundle_name(name), by_name=by_name)
        for name, one in what.below.items()
    }
    return Directory(bundle, what.mode, below)


class Model:
    """The plain tree."""

    def __init__(self) -> None:
        self.root = Directory()

    def parent(self, path: Path) -> Directory:
        here: Anything = self.root
        for name in folded(path[:-1]):
            if not isinstance(here, Directory):
                raise PathNotDirectory("")
            if name not in here.below:
                raise PathMissing("")
            here = here.below[name]
        if not isinstance(here, Directory):
            raise PathNotDirectory("")
        return here

    def inside(self, path: Path) -> bool:
        """Say whether a path is within a bundle."""
        return any(self.is_bundle(path[:depth]) for depth in range(1, len(path)))

    def is_bundle(self, path: Path) -> bool:
        found = self.get(path)
        return isinstance(found, Directory) and found.bundle

    def get(self, path: Path) -> Anything | None:
        return self.parent(path).below.get(path[-1].lower())

    def there(self, path: Path) -> Anything:
        found = self.get(path)
        if found is None:
            raise PathMissing("")
        return found

    def put(self, path: Path, what: Anything) -> None:
        self.parent(path).below[path[-1].lower()] = what

    def mkdir(self, path: Path) -> None:
        if self.get(path) is not None:
            raise PathExists("")
        self.put(path, Directory(bundle=is_bundle_name(path[-1]) and not self.inside(path)))

    def save(self, path: Path, text: str) -> None:
        found = self.get(path)
        if isinstance(found, Directory):
            raise PathIsDirectory("")
        if found is None:
            self.put(path, File(text))
        else:
            found.text = text

    def describe(self, path: Path, mode: int) -> None:
        self.there(path).mode = mode

    def link(self, source: Path, path: Path) -> None:
        one = self.there(source)
        if self.get(path) is not None or isinstance(one, Directory) or self.inside(source) or self.inside(path):
            raise PathExists("")
        self.put(path, one)

    def copy(self, source: Path, path: Path, *, replace: bool) -> None:
        one, there = self.there(source), self.get(path)
        inside, plain = self.inside(path), isinstance(one, Directory) and not one.bundle
        if plain and not self.inside(source):
            raise PathIsDirectory("")
        if there is not None and (not replace or isinstance(one, Directory) != isinstance(there, Directory)):
            raise PathExists("")
        if isinstance(there, File) and isinstance(one, File):
            there.text, there.mode = one.text, one.mode
            return
        if isinstance(there, Directory) and (inside or not there.bundle):
            raise PathExists("")
        bundle = not inside and (is_bundle_name(path[-1]) or there is not None)
        self.put(path, copied(one, bundle=bundle, by_name=not inside))

    def remove(self, path: Path) -> None:
        if isinstance(self.there(path), Directory):
            raise PathIsDirectory("")
        self.remove_tree(path)

    def rmdir(self, path: Path) -> None:
        found = self.there(path)
        if not isinstance(found, Directory):
            raise PathNotDirectory("")
        if found.below:
            raise DirectoryNotEmpty("")
        self.remove_tree(path)

    def remove_tree(self, path: Path) -> None:
        self.there(path)
        del self.parent(path).below[path[-1].lower()]

    def rename(self, source: Path, target: Path) -> None:
        one, other = self.there(source), self.get(target)
        if len(target) > len(source) and folded(target)[: len(source)] == folded(source):
            raise MoveImpossible("")
        if one is other:
            return
        if other is not None:
            if isinstance(other, Directory) != isinstance(one, Directory):
                raise PathIsDirectory("")
            if isinstance(other, Directory) and other.below:
                raise DirectoryNotEmpty("")
        parent, was_inside, inside = self.parent(target), self.inside(source), self.inside(target)
        self.remove_tree(source)
        if isinstance(one, Directory) and not inside:
            bundle = is_bundle_name(target[-1]) or one.bundle
            bundle |= was_inside and isinstance(other, Directory) and other.bundle
            if was_inside or bundle != one.bundle:
                one = copied(one, bundle=bundle, by_name=True)
        elif inside or was_inside:
            one = copied(one)
        parent.below[target[-1].lower()] = one

    def exchange(self, source: Path, target: Path) -> None:
        one, other = self.there(source), self.there(target)
        keys = sorted([folded(source), folded(target)], key=len)
        if keys[0] == keys[1][: len(keys[0])] and keys[0] != keys[1]:
            raise MoveImpossible("")
        both = isinstance(one, Directory) and isinstance(other, Directory)
        whole = both and self.is_bundle(source) != self.is_bundle(target)
        was_inside, inside = self.inside(source), self.inside(target)
        for path, what, within, came_inside in (
            (source, other, was_inside, inside),
            (target, one, inside, was_inside),
        ):
            if within or came_inside or whole:
                self.put(path, copied(what, bundle=not within and isinstance(what, Directory)))
            else:
                self.put(path, what)

    def all(self) -> dict[str, tuple[str, int]]:
        return dict(self._all(self.root, ""))

    def _all(self, directory: Directory, before: str) -> list[tuple[str, tuple[str, int]]]:
        found: list[tuple[str, tuple[str, int]]] = []
        for name, what in directory.below.items():
            path = before + name.decode()
            if isinstance(what, File):
                found.append((path, (what.text, what.mode)))
            else:
                found += [(path + "/", ("", what.mode)), *self._all(what, path + "/")]
        return found


def everything(node: Node, path: Path = ()) -> dict[str, tuple[str, int]]:
    """Return what the volume holds, by folded paths."""
    found: dict[str, tuple[str, int]] = {}
    for item in node.volume.list(path):
        below = (*path, item.name)
        text = b"/".join(folded(below)).decode()
        if item.is_directory:
            found[text + "/"] = ("", item.mode)
            found.update(everything(node, below))
        else:
            found[text] = (item.content.rstrip(b"\0").decode(), item.mode)
    return found


class VolumeLikeAPlainTree(RuleBasedStateMachine):
    """Each operation succeeds on both, or is refused by both; and both hold the same afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.cluster = Cluster(FilePath(self.home.name), "anna")
        self.node = self.cluster["anna"]
        self.model = Model()
        self.saves = 0

    def teardown(self) -> None:
        self.cluster.close()
        self.home.cleanup()

    def both(self, on_model: Callable[[], object], on_volume: Callable[[], object]) -> None:
        refused: list[str] = []
        for call in (on_model, on_volume):
            try:
                call()
                refused.append("")
            except FileError as error:
                refused.append(repr(error))
        assert bool(refused[0]) == bool(refused[1]), refused

    @rule(path=PATHS)
    def mkdir(self, path: Path) -> None:
        self.both(lambda: self.model.mkdir(path), lambda: self.node.volume.mkdir(path))

    @rule(path=PATHS)
    def save(self, path: Path) -> None:
        self.saves += 1
        text = f"{self.saves}"
        self.both(lambda: self.model.save(path, text), lambda: self.node.volume.save(path, content(text)))

    @rule(path=PATHS, mode=st.integers(0, 0o777))
    def describe(self, path: Path, mode: int) -> None:
        change = Attributes(mode=mode)
        self.both(lambda: self.model.describe(path, mode), lambda: self.node.volume.describe(path, change))

    @rule(source=PATHS, to=PATHS)
    def link(self, source: Path, to: Path) -> None:
        self.both(lambda: self.model.link(source, to), lambda: self.node.volume.link(source, to))

    @rule(source=PATHS, to=PATHS, replace=st.booleans())
    def copy(self, source: Path, to: Path, replace: bool) -> None:
        self.both(
            lambda: self.model.copy(source, to, replace=replace),
            lambda: self.node.volume.copy(source, to, replace=replace),
        )

    @rule(source=PATHS, to=PATHS)
    def rename(self, source: Path, to: Path) -> None:
        self.both(lambda: self.model.rename(source, to), lambda: self.node.volume.rename(source, to))

    @rule(source=PATHS, to=PATHS)
    def exchange(self, source: Path, to: Path) -> None:
        self.both(
            lambda: self.model.exchange(source, to),
            lambda: self.node.volume.rename(source, to, exchange=True),
        )

    @rule(path=PATHS)
    def remove(self, path: Path) -> None:
        self.both(lambda: self.model.remove(path), lambda: self.node.volume.remove(path))

    @rule(path=PATHS)
    def rmdir(self, path: Path) -> None:
        self.both(lambda: self.model.rmdir(path), lambda: self.node.volume.rmdir(path))

    @rule(path=PATHS)
    def remove_tree(self, path: Path) -> None:
        self.both(lambda: self.model.remove_tree(path), lambda: self.node.volume.remove_tree(path))

    @rule()
    def start_again(self) -> None:
        self.node.again()

    @invariant()
    def hold_the_same(self) -> None:
        assert everything(self.node) == self.model.all()
        assert self.node.volume.conflicts() == []


TestVolumeLikeAPlainTree = VolumeLikeAPlainTree.TestCase
TestVolumeLikeAPlainTree.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
