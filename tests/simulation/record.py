"""What a run remembers of what users did: all that was acknowledged, and all that was ever written."""

from dataclasses import dataclass, field

from tbshare.volumes.item import Path
from tbshare.volumes.volume import Handle

BundleState = dict[Path, bytes]  # paths inside a bundle -> contents of the files, b"" for a directory


@dataclass(frozen=True)
class Acknowledged:
    """A save that returned."""

    volume: int
    file: int
    version: int
    content: bytes
    machine: int
    path: Path


@dataclass
class Record:
    """All of one run."""

    acknowledged: list[Acknowledged] = field(default_factory=list[Acknowledged])
    paths: dict[int, set[Path]] = field(default_factory=dict[int, set[Path]])  # where users saw each file
    tokens: dict[bytes, list[bytes]] = field(default_factory=dict[bytes, list[bytes]])  # object -> its blocks
    links: set[bytes] = field(default_factory=set[bytes])
    bundles: dict[bytes, BundleState] = field(default_factory=dict[bytes, BundleState])  # by tree
    bundle_interrupted: bool = False  # a power cut during an edit of a bundle: its tree may be there unrecorded
    excused: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])  # were only on a disk put back
    given_up: set[bytes] = field(default_factory=set[bytes])  # contents of versions some node keeps no more
    unread: set[bytes] = field(default_factory=set[bytes])  # restored where their bytes were not
    lost: set[bytes] = field(
        default_factory=set[bytes]
    )  # objects that were on a disk when an older one was put back
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def count(self, what: str) -> None:
        """Count something that happened."""
        self.counts[what] = self.counts.get(what, 0) + 1


def state_of(handle: Handle, bundle: Path) -> BundleState:
    """Return all that is in a bundle, as it is shown."""
    state: BundleState = {}
    for item in handle.list(bundle):
        path = (*bundle, item.name)
        if item.is_directory:
            state[path[len(bundle) :]] = b""
            below = state_of(handle, path)
            state |= {(item.name, *inner): content for inner, content in below.items()}
        else:
            state[path[len(bundle) :]] = item.content
    return state
