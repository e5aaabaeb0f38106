"""The ops of the logs: what is said in them, as structs. Pure.

An op is a map with the key `kind`. Fields that have their default are left out, so that a field added later
changes no old entry. How ops are encoded, and what else of them is checked: entry.py.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from tbshare.content.block import HASH_BYTES
from tbshare.content.ref import NAME_PATTERN, PART_PATTERN, REV_PATTERN

CERTIFICATE_BYTES_MAX: Final = 2048  # ours are 300
TARGETS_MAX: Final = 256  # nodes that one ref is for
SEEN_MAX: Final = 4096  # versions that one RefRemove removes
UNTIL_MAX: Final = 1024  # logs of one node
HEARD_MAX: Final = 1024  # entries that one op says its author has heard of
OPTIONS_MAX: Final = 64
ORIGIN_LETTERS_MAX: Final = 1024
KIND_LETTERS_MAX: Final = 64
VOLUME_LETTERS_MAX: Final = 255
PARENTS_MAX: Final = 64  # heads that one save joins
HEADS_SEEN_MAX: Final = 1024  # versions that one removal names
XATTRS_MAX: Final = 256  # that one op sets
XATTRS_BYTES_MAX: Final = 64 * 1024
LINK_BYTES_MAX: Final = 4096

Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Part = Annotated[str, msgspec.Meta(pattern=PART_PATTERN)]
RefName = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Label = Annotated[str, msgspec.Meta(max_length=255)]
Option = (
    Annotated[str, msgspec.Meta(max_length=1024)] | bool | Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
)
Id = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]  # volumes/ids.py
Below = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # a directory; 0 is the volume's root
FileName = Annotated[bytes, msgspec.Meta(min_length=1, max_length=255)]
Role = Literal["admin", "publish", "write", "read"]
Contents = Literal["file", "bundle", "link"]
Mode = Literal["models", "media", "owner"]


class Op(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Base of all ops. Fields added later need one of the defaults "", 0, False, b"" or ().

    Values, which hold no cycle: the garbage collector need not look at them.
    """


class Genesis(Op, frozen=True, tag="genesis"):
    """Starts a cluster; the hash of the entry it stands in is the cluster's id."""

    name: Part
    nonce: Hash


class MemberAdd(Op, frozen=True, tag="member-add"):
    """Makes a node a member. `cluster` is empty only in the entry of the genesis itself."""

    node: Hash
    certificate: Annotated[bytes, msgspec.Meta(min_length=1, max_length=CERTIFICATE_BYTES_MAX)]
    name: Part
    role: Role
    cluster: Annotated[bytes, msgspec.Meta(max_length=HASH_BYTES)] = b""


class Until(msgspec.Struct, frozen=True, array_like=True):
    """The last entry of one log of a removed node that still counts."""

    incarnation: Hash
    seq: Number
    hash: Hash


class MemberRemove(Op, frozen=True, tag="member-remove"):
    """Removes a node for good; of what it wrote, the entries up to `until` count."""

    node: Hash
    cluster: Hash
    until: Annotated[tuple[Until, ...], msgspec.Meta(max_length=UNTIL_MAX)] = ()


class MemberRename(Op, frozen=True, tag="member-rename"):
    """Gives a member another name."""

    node: Hash
    cluster: Hash
    name: Part


class VolumeCreate(Op, frozen=True, tag="volume-create"):
    """Makes a volume; of two with one name, the first in the order of ops holds."""

    name: Part
    mode: Mode
    options: Annotated[dict[Part, Option], msgspec.Meta(max_length=OPTIONS_MAX)] = {}


class RefSet(Op, frozen=True, tag="ref-set"):
    """Publishes a tree as version `rev` of a ref; an empty `to` means every node, by its accept rule."""

    volume: Part
    name: RefName
    rev: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    tree: Hash
    size_bytes: Number
    files: Number
    to: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=TARGETS_MAX)] = ()
    label: Label = ""  # a hub revision, for example; `name@label` finds the version
    origin: Annotated[str, msgspec.Meta(max_length=ORIGIN_LETTERS_MAX)] = ""


class RefRemove(Op, frozen=True, tag="ref-remove"):
    """Removes versions of a ref: those published by the entries `seen`, so that a push not yet seen survives.

    An empty `rev` means every version in them, else that one.
    """

    volume: Part
    name: RefName
    seen: Annotated[tuple[Hash, ...], msgspec.Meta(min_length=1, max_length=SEEN_MAX)]
    rev: Annotated[str, msgspec.Meta(pattern=REV_PATTERN)] | Literal[""] = ""


class VolumeSet(Op, frozen=True, tag="volume-set"):
    """Gives a volume these options; of two for one option, the later in the order of ops holds."""

    volume: Id
    options: Annotated[dict[Part, Option], msgspec.Meta(min_length=1, max_length=OPTIONS_MAX)]


class RoleSet(Op, frozen=True, tag="role-set"):
    """Gives a node a role in one volume; an empty one returns to its role in the cluster."""

    volume: Id
    node: Hash
    role: Role | Literal["none", ""] = ""


class At(msgspec.Struct, frozen=True, array_like=True):
    """A place in a log."""

    node: Hash
    incarnation: Hash
    seq: Number
    hash: Hash


class Heard(Op, frozen=True, tag="heard"):
    """Says that its author has heard of these entries: what they take from it binds it from here on, in this log.

    `until` are the ends of the logs of nodes that they remove, as they were here: what was built upon them counts.
    """

    entries: Annotated[tuple[Hash, ...], msgspec.Meta(min_length=1, max_length=HEARD_MAX)]
    until: Annotated[tuple[At, ...], msgspec.Meta(max_length=UNTIL_MAX)] = ()


class SnapshotCreate(Op, frozen=True, tag="snapshot-create"):
    """Names the state of a volume at these places of the logs."""

    volume: Id
    name: Part
    heads: Annotated[tuple[At, ...], msgspec.Meta(min_length=1, max_length=UNTIL_MAX)]


class SnapshotRemove(Op, frozen=True, tag="snapshot-remove"):
    """Forgets the snapshot that the entry of this hash made."""

    volume: Id
    name: Part
    entry: Hash


class Place(Op, frozen=True, tag="place"):
    """Puts the name `id` of a file into a directory, or moves it there; `place` identifies this placing.

    A hard link is another `id` for the same `file`.
    """

    volume: Id
    id: Id
    place: Id
    file: Id
    name: FileName
    parent: Below = 0


class Move(Op, frozen=True, tag="move"):
    """Puts the directory `id` into another, or moves it there; skipped by the fold where it would make a cycle."""

    volume: Id
    id: Id
    place: Id
    name: FileName
    parent: Below = 0


class Remove(Op, frozen=True, tag="remove"):
    """Takes away the name, or the directory, that was placed by `place`; `seen` are the heads its author knew."""

    volume: Id
    id: Id
    place: Id
    seen: Annotated[tuple[Id, ...], msgspec.Meta(max_length=HEADS_SEEN_MAX)] = ()
    directory: bool = False


class Save(Op, frozen=True, tag="save"):
    """Adds a version to a file.

    `content` is an object's id for a file, a tree's for a bundle, and where it points for a symbolic link.
    """

    volume: Id
    file: Id
    version: Id
    content: Annotated[bytes, msgspec.Meta(min_length=1, max_length=LINK_BYTES_MAX)]
    parents: Annotated[tuple[Id, ...], msgspec.Meta(max_length=PARENTS_MAX)] = ()
    size: Number = 0
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] = 0
    contents: Contents | Literal[""] = ""  # empty means "file"
    epoch: Number = 0  # of the lease it was written under; 0 without one


class Describe(Op, frozen=True, tag="describe"):
    """Sets attributes of a file, or of a directory; what is None or not named stays. The last one wins, each."""

    volume: Id
    id: Below  # of a file or a directory; the root is 0
    directory: bool = False
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)] | None = None
    uid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None = None
    gid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None = None
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    birthtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    xattrs: Annotated[dict[FileName, bytes | None], msgspec.Meta(max_length=XATTRS_MAX)] = {}


@dataclass(frozen=True, slots=True)
class UnknownOp:
    """An op of a newer version, kept byte for byte; `volume`, a name or an id, is empty when it names none."""

    raw: bytes
    kind: str
    volume: str | int


ClusterOp = (
    Genesis
    | MemberAdd
    | MemberRemove
    | MemberRename
    | VolumeCreate
    | VolumeSet
    | RoleSet
    | Heard
    | SnapshotCreate
    | SnapshotRemove
    | RefSet
    | RefRemove
)
FileOp = Place | Move | Remove | Save | Describe  # of one volume's namespace: volumes/namespace.py
FILE_OPS: Final = (Save, Place, Describe, Remove, Move)  # the same for isinstance, which is asked of every op
KnownOp = ClusterOp | FileOp
AnyOp = KnownOp | UnknownOp
