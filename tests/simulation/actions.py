"""What users do to files in a run. Each action takes what it needs from what the machine shows at that moment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

from tbshare.content.block import BLOCK_BYTES
from tbshare.volumes.entry import Mode, Role, RoleSet, VolumeCreate, VolumeSet
from tbshare.volumes.item import Attributes, Content, Item, Path, Saved
from tbshare.volumes.volume import Handle
from tests.simulation.machine import Process
from tests.simulation.record import Acknowledged, Record, state_of
from tests.simulation.script import WEIGHTS, Action

NAMES = (b"a", b"A", b"b.txt", b"film.mov", "é".encode(), "e\u0301".encode(), b"c", b"d.wav", b".DS_Store")
DIRECTORIES = (b"x", b"X", b"y", b"z", b"w")
BUNDLES = (b"Cut.fcpbundle", b"Mix.logicx")
ENDINGS = (b".fcpbundle", b".logicx")
INSIDE = (b"one", b"two", b"three")
VOLUMES = ("media", "more", "other")
DEPTH_MAX = 6
ROLES: tuple[Role | Literal["none", ""], ...] = ("read", "write", "", "none", "write", "admin", "publish")

T = TypeVar("T")


@dataclass
class Shown:
    """What one machine shows of a volume."""

    files: list[tuple[Path, Item]]  # forks included
    directories: list[tuple[Path, Item]]  # the root first
    bundles: list[tuple[Path, Item]]


def shown_by(handle: Handle, below: Path = ()) -> Shown:
    """Return everything a volume shows; what is in bundles is not listed."""
    shown = Shown([], [(below, handle.lookup(below))], [])
    waiting = [below]
    while waiting:
        directory = waiting.pop(0)
        for item in handle.list(directory):
            path = (*directory, item.name)
            if item.kind == "bundle":
                shown.bundles.append((path, item))
            elif item.kind == "directory":
                shown.directories.append((path, item))
                waiting.append(path)
            else:
                shown.files.append((path, item))
    return shown


def _one_of(things: Sequence[T], number: int) -> T | None:
    return things[number % len(things)] if things else None


def _in_bundle(path: Path) -> bool:
    return any(part.endswith(ENDINGS) for part in path[:-1])


class User:
    """Somebody at a machine. What was opened and not saved yet is forgotten when the machine stops."""

    def __init__(self, random: Random, record: Record) -> None:
        self._random, self._record = random, record
        self._opened: dict[Process, list[tuple[int, Item]]] = {}
        self._process: Process
        self._handle: Handle
        self._action: Action

    def act(self, process: Process, action: Action) -> None:
        """Do it; raises what the volume raises."""
        self._process, self._action = process, action
        handles = process.handles()
        if handles:
            self._handle = handles[action.two // 7 % len(handles) if action.two % 7 == 0 else 0]
        elif action.kind != "volume_create":
            return
        ACTIONS[action.kind](self)

    # ---- choices --------------------------------------------------------------------------------------

    def _shown(self) -> Shown:
        return shown_by(self._handle)

    def _content(self) -> Content:
        """Write new bytes into the store, or now and then the same as before."""
        tokens = [self._random.randbytes(16) for _ in range(1 + self._action.two % 3)]
        if self._action.one % 9 == 0 and self._record.tokens:
            tokens = list(self._record.tokens.values())[-1]
        last_bytes = 1 + self._action.one % BLOCK_BYTES
        manifest = self._process.store.write(tokens, last_bytes)
        self._record.tokens[manifest.id] = tokens
        return Content(manifest.id, manifest.size, self._process.machine.clock.time_ns())

    def _file(self, number: int) -> tuple[Path, Item] | None:
        return _one_of(self._shown().files, number)

    def _new_path(self, number: int, names: tuple[bytes, ...] = NAMES) -> Path:
        directory, _ = self._shown().directories[number // 64 % len(self._shown().directories)]
        return (*directory[:DEPTH_MAX], names[number % len(names)]) if len(directory) < DEPTH_MAX else (names[0],)

    def _saved(self, saved: Saved, content: bytes) -> None:
        if _in_bundle(saved.path):
            content = b""  # a version of the bundle was made
        self._record.acknowledged.append(
            Acknowledged(
                self._handle.id,
                saved.file,
                saved.version,
                content,
                self._process.machine.index,
                saved.path,
            )
        )
        self._record.paths.setdefault(saved.file, set()).add(saved.path)

    def _at(self, path: Path) -> None:
        """Remember what stands at a path as acknowledged: it was put there by something that returned no Saved."""
        item = self._handle.lookup(path)
        if item.version:
            self._saved(Saved(item.file, item.version, path, item.fork), item.content)

    # ---- files ----------------------------------------------------------------------------------------

    def create(self) -> None:
        content = self._content()
        self._saved(self._handle.create(self._new_path(self._action.one), content), content.content)

    def save(self) -> None:
        chosen, content = self._file(self._action.one), self._content()
        path = chosen[0] if chosen else self._new_path(self._action.one)
        self._saved(self._handle.save(path, content), content.content)

    def open(self) -> None:
        chosen = self._file(self._action.one)
        if chosen:
            self._opened.setdefault(self._process, []).append((self._handle.id, chosen[1]))

    def close(self) -> None:
        """Save what was opened a while ago, whatever happened to the file meanwhile."""
        opened = self._opened.get(self._process)
        if not opened:
            return
        volume, item = opened.pop(self._action.one % len(opened))
        self._handle = self._process.volumes.open_id(volume)
        content = self._content()
        base = [item.version] if self._action.two % 4 else None
        self._saved(self._handle.save(item.file, content, base=base), content.content)

    def rename(self) -> None:
        chosen = self._file(self._action.one)
        target = self._file(self._action.two) if self._action.two % 3 == 0 else None
        path = target[0] if target else self._new_path(self._action.two)
        if chosen:
            self._handle.rename(chosen[0], path, replace=self._action.one % 5 > 0)
            self._at(path)

    def move_directory(self) -> None:
        shown = self._shown()
        movable = [*shown.directories[1:], *shown.bundles]
        chosen = _one_of(movable, self._action.one)
        if chosen:
            names = (chosen[0][-1], *DIRECTORIES) if chosen[1].kind == "directory" else (chosen[0][-1], *BUNDLES)
            self._handle.rename(chosen[0], self._new_path(self._action.two, names))

    def exchange(self) -> None:
        shown = self._shown()
        pool = shown.files if self._action.one % 2 else shown.directories[1:]
        one, two = _one_of(pool, self._action.one), _one_of(pool, self._action.two)
        if one and two and one[0] != two[0]:
            self._handle.rename(one[0], two[0], exchange=True)
            if one[1].kind == "file":
                self._at(one[0])
                self._at(two[0])

    def safe_save(self) -> None:
        """Save as many programs do: write beside it, and rename over."""
        chosen = self._file(self._action.one)
        if not chosen:
            return
        content, temporary = self._content(), (*chosen[0][:-1], b".sb-%d" % (self._action.two % 3))
        self._handle.save(temporary, content)
        self._handle.rename(temporary, chosen[0])
        self._at(chosen[0])

    def link(self) -> None:
        chosen = self._file(self._action.one)
        if chosen:
            self._handle.link(chosen[0], self._new_path(self._action.two))

    def symlink(self) -> None:
        target = b"to-%d" % (self._action.two % 5)
        self._record.links.add(target)
        self._saved(self._handle.symlink(self._new_path(self._action.one), target), target)

    def remove(self) -> None:
        shown = self._shown()
        chosen = _one_of(shown.files, self._action.one)
        if chosen:
            self._record.paths.setdefault(chosen[1].file, set()).add(chosen[0])
            self._handle.remove(chosen[0])

    def copy(self) -> None:
        shown = self._shown()
        chosen = _one_of([*shown.files, *shown.bundles], self._action.one)
        if chosen:
            bundle = chosen[1].kind == "bundle"
            path = self._new_path(self._action.two, BUNDLES if bundle else NAMES)
            self._saved(self._handle.copy(chosen[0], path, replace=self._action.one % 3 == 0), chosen[1].content)

    def describe(self) -> None:
        shown = self._shown()
        chosen = _one_of([*shown.files, *shown.directories], self._action.one)
        if chosen:
            number = self._action.two
            xattrs = {b"tag-%d" % (number % 2): b"%d" % number if number % 3 else None}
            self._handle.describe(chosen[0], Attributes(mode=number % 0o1000, xattrs=xattrs))

    # ---- directories ----------------------------------------------------------------------------------

    def mkdir(self) -> None:
        self._handle.mkdir(self._new_path(self._action.one, DIRECTORIES))

    def rmdir(self) -> None:
        chosen = _one_of(self._shown().directories[1:], self._action.one)
        if chosen:
            self._handle.rmdir(chosen[0])

    def remove_tree(self) -> None:
        chosen = _one_of(self._shown().directories[1:], self._action.one)
        if chosen:
            self._note_paths(chosen[0])
            self._handle.remove_tree(chosen[0])

    def _note_paths(self, below: Path) -> None:
        shown = shown_by(self._handle, below)
        for path, item in (*shown.files, *shown.bundles):
            self._record.paths.setdefault(item.file, set()).add(path)

    def bundle(self) -> None:
        """Edit a bundle, or make one; what it must be afterwards is known."""
        bundles = self._shown().bundles
        chosen = _one_of(bundles, self._action.one)
        self._record.bundle_interrupted, interrupted = True, self._record.bundle_interrupted
        if chosen is None or self._action.one % 11 == 0:
            path = self._new_path(self._action.one, BUNDLES)
            self._handle.mkdir(path)
            self._record.bundles[self._handle.lookup(path).content] = {}
            self._record.bundle_interrupted = interrupted
            self._at(path)
            return
        path, item = chosen
        state = state_of(self._handle, path)
        assert state == self._record.bundles.get(item.content, state)
        inner = _one_of(INSIDE, self._action.two)
        assert inner
        if self._action.two % 5 == 0 and state.get((inner,)):
            self._handle.remove((*path, inner))
            state = {place: content for place, content in state.items() if place[0] != inner}
        elif self._action.two % 7 == 0:
            self._handle.mkdir((*path, b"dir-" + inner), parents=True)
            state[b"dir-" + inner,] = b""
        else:
            content = self._content()
            self._saved(self._handle.save((*path, inner), content), b"")
            state[inner,] = content.content
        after = self._handle.lookup(path)
        assert state_of(self._handle, path) == state, "an edit of a bundle gave something else"
        self._record.bundles[after.content] = state
        self._record.bundle_interrupted = interrupted
        self._at(path)

    # ---- history --------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Bring back an older version, or what was deleted."""
        deleted = [path for paths in self._record.paths.values() for path in sorted(paths)]
        chosen = self._file(self._action.one)
        path = _one_of(deleted, self._action.one) if self._action.two % 2 else chosen and chosen[0]
        if not path:
            return
        lines = self._handle.history(path)
        line = _one_of(lines, self._action.two)
        if line:
            store = self._process.store
            if not store.whole(line.content):  # the user is told so, and does it all the same
                self._record.unread |= store.below([line.content])
            for saved in self._handle.restore(path, version=line.version):
                self._saved(saved, b"" if _in_bundle(path) else line.content)
            for bundle, item in self._shown().bundles:  # what was restored may be inside of one
                self._record.bundles.setdefault(item.content, state_of(self._handle, bundle))

    def resolve(self) -> None:
        conflicts = self._handle.conflicts()
        conflict = _one_of(conflicts, self._action.one)
        if conflict and conflict.kind == "versions":
            keep = _one_of(conflict.items, self._action.two)
            assert keep
            for item in conflict.items:
                self._record.paths.setdefault(item.file, set()).add(conflict.path)
            self._handle.resolve(conflict.path, keep.version)

    def snapshot(self) -> None:
        name = f"s{self._action.one % 4}"
        if self._action.two % 3 == 0:
            self._handle.snapshot_remove(name)
        else:
            self._handle.snapshot_create(name)

    def compact(self) -> None:
        """Pack what every member has of the logs."""
        self._process.log.compact(newest_kept=1 + self._action.one % 8)

    def give_up(self) -> None:
        """Let old versions go, as on a small disk; what is shown, also in snapshots, is as whole as before."""
        before = self._whole_and_shown()
        self._record.given_up |= self._process.give_up(1 << 12 + self._action.one % 16)
        gone = [place for place, item in before.items() if not self._process.store.whole(item.content)]
        assert not gone, f"bytes went of what is shown: {gone}"

    def _whole_and_shown(self) -> dict[tuple[int, str, Path], Item]:
        found: dict[tuple[int, str, Path], Item] = {}
        for handle in self._process.handles():
            states = {"": handle} | {name: handle.as_of(name) for name in self._snapshots(handle)}
            for name, state in states.items():
                shown = shown_by(state)
                for path, item in (*shown.files, *shown.bundles):
                    if item.kind != "link" and self._process.store.whole(item.content):
                        found[handle.id, name, path] = item
        return found

    def _snapshots(self, handle: Handle) -> list[str]:
        return [snapshot.name for snapshot in handle.snapshots()]

    # ---- volumes --------------------------------------------------------------------------------------

    def volume_create(self) -> None:
        name = VOLUMES[self._action.one % len(VOLUMES)]
        case = "sensitive" if self._action.two % 3 == 0 else "insensitive"
        mode: Mode = "owner" if self._action.two % 2 else "media"
        self._process.log.append([VolumeCreate(name=name, mode=mode, options={"case": case})])

    def volume_set(self) -> None:
        options: dict[str, str | int | bool] = {"history_days": 1 + self._action.one % 50}
        self._process.log.append([VolumeSet(volume=self._handle.id, options=options)])

    def role_set(self) -> None:
        """Give a node a role, or take it away: it may be on the other side of a cut."""
        role = _one_of(ROLES, self._action.one)
        assert role is not None
        node = self._administered(self._action.two // 8)
        if node:
            self._process.log.append([RoleSet(volume=self._handle.id, node=node, role=role)])

    def owner_set(self) -> None:
        """Make another node the one that writes."""
        volumes = self._process.log.state().volumes_by_id
        owned = [handle for handle in self._process.handles() if volumes[handle.id].mode == "owner"]
        self._handle = _one_of(owned, self._action.one) or self._handle
        node = self._administered(self._action.two)
        if node:
            self._process.log.append([VolumeSet(volume=self._handle.id, options={"owner": node.hex()})])

    def _administered(self, number: int) -> bytes | None:
        """Return one of the members; None when this one may not say what they may do."""
        state = self._process.log.state()
        if not state.administers(self._process.key, self._handle.id):
            return None
        return _one_of(sorted(state.members), number)

    def volume_remove(self) -> None:
        """Remove a volume, never the first; undone a while later by another."""
        others = self._process.handles()[1:]
        chosen = _one_of(others, self._action.one)
        if chosen:
            removed = self._action.two % 3 > 0
            self._process.log.append([VolumeSet(volume=chosen.id, options={"removed": removed})])


ACTIONS: dict[str, Callable[[User], None]] = {kind: getattr(User, kind) for kind in WEIGHTS if hasattr(User, kind)}
