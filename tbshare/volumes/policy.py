"""What is agreed for one volume: its options as the log has them, the code reads them and people write them. Pure.

Options travel in VolumeCreate and VolumeSet as a map of words to texts, numbers or yes and no. What a newer
version wrote, words we do not know or values we cannot read, stays in the log and means
nothing here: the default holds.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Final, Literal

from tbshare.content.ref import folded, shown
from tbshare.errors import UsageError

Option = str | int | bool  # as in the log
EVERYWHERE: Final = "everywhere"
ON_DEMAND: Final = "on-demand"
Case = Literal["insensitive", "sensitive"]
Locked = Literal["refuse", "read-only"]

COPIES_MAX: Final = 256
FOREVER_DAYS: Final = 1_000_000
BYTES_MAX: Final = (1 << 63) - 1
GLOBS_MAX: Final = 64
GLOBS_LETTERS_MAX: Final = 1024  # of all of them, as one option
NODE_DIGITS: Final = 64
NO_HISTORY: Final = (
    "*.tmp", "*.part", "*.swp", "~$*", ".~lock.*#",  # what editors and downloads write beside a file
    ".DS_Store", "._*", ".Spotlight-V100", ".Trashes", ".TemporaryItems", ".fseventsd", "Thumbs.db",
    ".cache", "Cache", "Caches", "CacheClip", "Media Cache", "Media Cache Files", "Peak Files", "__pycache__",
)  # fmt: skip

_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_DAYS = re.compile(r"(\d{1,7})\s*(?:d|day|days)")
_PERCENT = re.compile(r"(\d{1,3})\s*%")
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_CURE: Final = "tbshare help volume"


@dataclass(frozen=True)
class Policy:
    """The options of a volume; each field is the option of the same name."""

    replicate: str | int = EVERYWHERE  # or ON_DEMAND, or a number of copies
    history_days: int = 30  # 0 keeps the last save only
    history_percent: int = 10  # of the disk; 0 is no such limit
    history_bytes: int = 0  # 0 is no such limit
    quota_bytes: int = 0  # of all last saves together, wherever they lie; 0 is none
    case: Case = "insensitive"  # fixed when the volume is made
    locked: Locked = "refuse"  # what a write meets when another node holds the lease
    no_history: tuple[str, ...] = NO_HISTORY
    owner: str = ""  # hex of the node that writes a volume of mode `owner`; empty is the one that made it
    removed: bool = False

    @property
    def copies(self) -> int:
        """How many copies are to be kept; 0 means no number, see `replicate`."""
        return self.replicate if isinstance(self.replicate, int) else 0


def keeps_history(policy: Policy, path: Sequence[bytes]) -> bool:
    """Say whether earlier versions of the file at `path` are kept; the last save always is.

    A glob without a slash is tried on the name and on each directory above it, one with a slash on the whole path.
    """
    names = [name.decode("utf-8", "surrogateescape").casefold() for name in path]
    for glob in policy.no_history:
        wanted = glob.casefold()
        tried = ["/".join(names)] if "/" in wanted.strip("/") else names
        if any(fnmatchcase(name, wanted.strip("/")) for name in tried):
            return False
    return policy.history_days > 0


# ---- options as the log has them --------------------------------------------------------------------------------


def _is_number(value: Option, most: int = BYTES_MAX, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_replicate(value: Option) -> bool:
    return value in {EVERYWHERE, ON_DEMAND} or _is_number(value, COPIES_MAX, 1)


def _is_node(value: Option) -> bool:
    return isinstance(value, str) and (not value or re.fullmatch(rf"[0-9a-f]{{{NODE_DIGITS}}}", value) is not None)


_ALLOWED: Final[dict[str, Callable[[Option], bool]]] = {
    "replicate": _is_replicate,
    "history_days": lambda value: _is_number(value, FOREVER_DAYS),
    "history_percent": lambda value: _is_number(value, 100),
    "history_bytes": _is_number,
    "quota_bytes": _is_number,
    "case": lambda value: value in {"insensitive", "sensitive"},
    "locked": lambda value: value in {"refuse", "read-only"},
    "no_history": lambda value: isinstance(value, str) and len(value) <= GLOBS_LETTERS_MAX,
    "owner": _is_node,
    "removed": lambda value: isinstance(value, bool),
}
FIXED: Final = frozenset({"case"})  # by VolumeCreate; VolumeSet does not change them
assert set(_ALLOWED) == {field.name for field in fields(Policy)}


def policy_of(options: Mapping[str, Option]) -> Policy:
    """Return what these options of the log mean; what this version does not understand is passed over."""
    known: dict[str, object] = {}
    for name, value in options.items():
        if name in _ALLOWED and _ALLOWED[name](value):
            known[name] = _globs(value) if name == "no_history" and isinstance(value, str) else value
    return Policy(**known)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def understood(name: str, value: Option) -> bool:
    """Say whether this version knows the option and may be given this value."""
    return name in _ALLOWED and _ALLOWED[name](value)


def _globs(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys([part.strip() for part in text.split(",") if part.strip()]))[:GLOBS_MAX]


# ---- options as people write them -------------------------------------------------------------------------------


def options_of(words: Mapping[str, str], *, creating: bool = False) -> dict[str, Option]:
    """Return the options that these words ask for; UsageError, which names what is allowed, for any other.

    The words: replicate, history, quota, case, locked, no-history, owner, removed.
    """
    options: dict[str, Option] = {}
    for word, text in words.items():
        name = folded(word).replace("_", "-")
        parse = _PARSED.get(name)
        if parse is None:
            raise _refused(f"{shown(word)} is no option of a volume; they are: {', '.join(_PARSED)}")
        if name in FIXED and not creating:
            raise _refused(f"{name} is fixed when a volume is made")
        options.update(parse(text.strip()))
    return options


def _replicate(text: str) -> dict[str, Option]:
    word = folded(text)
    if word in {EVERYWHERE, ON_DEMAND}:
        return {"replicate": word}
    if text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= COPIES_MAX:
        return {"replicate": int(text)}
    raise _refused(f"replicate {shown(text)}: everywhere, on-demand, or a number of copies from 1 to {COPIES_MAX}")


def _history(text: str) -> dict[str, Option]:
    """Return the limits in `30d`, `10%`, `2T`, some of them with commas between; `none` and `forever` set all."""
    word = folded(text)
    if word in {"none", "forever"}:
        return {
            "history_days": FOREVER_DAYS if word == "forever" else 0, "history_percent": 0, "history_bytes": 0,
        }  # fmt: skip
    options: dict[str, Option] = {}
    for part in text.split(","):
        amount = folded(part.strip())
        days, percent, size = _DAYS.fullmatch(amount), _PERCENT.fullmatch(amount), parse_size(amount)
        if days is not None and int(days[1]) <= FOREVER_DAYS:
            options["history_days"] = int(days[1])
        elif percent is not None and int(percent[1]) <= 100:
            options["history_percent"] = int(percent[1])
        elif size is not None:
            options["history_bytes"] = size
        else:
            raise _refused(
                f"history {shown(text)}: days (30d), a part of the disk (10%), bytes (2T), "
                f"some of them with commas between, or none, or forever"
            )
    return options


def parse_size(text: str) -> int | None:
    """Return the bytes that `2T`, `500 GB` or `1.5GiB` mean, None when it means none."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return None
    whole, _, part = found[1].partition(".")
    unit = (1024 if found[3] else 1000) ** _POWERS[found[2].lower()]
    count = int(whole) * unit + int(part or 0) * unit // 10 ** len(part)
    return count if count <= BYTES_MAX else None


def _quota(text: str) -> dict[str, Option]:
    if folded(text) == "none":
        return {"quota_bytes": 0}
    size = parse_size(text)
    if size is None:
        raise _refused(f"quota {shown(text)}: bytes, like 500G or 2T, or none")
    return {"quota_bytes": size}


def _word(option: str, *allowed: str) -> Callable[[str], dict[str, Option]]:
    def parse(text: str) -> dict[str, Option]:
        if folded(text) not in allowed:
            raise _refused(f"{option} {shown(text)}: {' or '.join(allowed)}")
        return {option: folded(text)}

    return parse


def _no_history(text: str) -> dict[str, Option]:
    if folded(text) == "default":
        return {"no_history": ",".join(NO_HISTORY)}
    globs = () if folded(text) == "none" else _globs(text)
    joined = ",".join(globs)
    if len(joined) > GLOBS_LETTERS_MAX or text.count(",") >= GLOBS_MAX:
        raise _refused(f"no-history: at most {GLOBS_MAX} globs, {GLOBS_LETTERS_MAX} letters together")
    return {"no_history": joined}


def _owner(text: str) -> dict[str, Option]:
    if not text or not _is_node(folded(text)):
        raise _refused(f"owner {shown(text)}: the whole id of a node, {NODE_DIGITS} hex digits")
    return {"owner": folded(text)}


def _removed(text: str) -> dict[str, Option]:
    if folded(text) not in {"yes", "no", "true", "false"}:
        raise _refused(f"removed {shown(text)}: yes or no")
    return {"removed": folded(text) in {"yes", "true"}}


_PARSED: Final[dict[str, Callable[[str], dict[str, Option]]]] = {
    "replicate": _replicate,
    "history": _history,
    "quota": _quota,
    "case": _word("case", "insensitive", "sensitive"),
    "locked": _word("locked", "refuse", "read-only"),
    "no-history": _no_history,
    "owner": _owner,
    "removed": _removed,
}


def _refused(sentence: str) -> UsageError:
    return UsageError(sentence, cure=_CURE)


def words_of(policy: Policy) -> dict[str, str]:
    """Return a policy as it is written; `options_of` reads it back."""
    history = f"{policy.history_days}d,{policy.history_percent}%"
    if policy.history_bytes:
        history += f",{policy.history_bytes}"
    if not policy.history_percent and not policy.history_bytes:
        history = {0: "none", FOREVER_DAYS: "forever"}.get(policy.history_days, history)
    no_history = ",".join(policy.no_history) or "none"
    if policy.no_history and folded(no_history) in {"none", "default"}:
        no_history += ","  # a glob that is written like a word of ours
    words = {
        "replicate": str(policy.replicate),
        "history": history,
        "quota": str(policy.quota_bytes) if policy.quota_bytes else "none",
        "case": policy.case,
        "locked": policy.locked,
        "no-history": no_history,
        "removed": "yes" if policy.removed else "no",
    }
    return {**words, "owner": policy.owner} if policy.owner else words
