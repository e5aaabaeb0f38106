"""config.toml: what can be set, its default, and where a value came from."""

import difflib
import ipaddress
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tbshare.errors import ConfigInvalid
from tbshare.wire.limits import DEFAULT_PORT

Value = str | int | float | bool | list[str]

# key -> (default, what it means)
KEYS: dict[str, tuple[Value, str]] = {
    "node.name": ("", "name of this node; empty means the host's name"),
    "listen.host": ("", "address to listen on; empty means all"),
    "listen.port": (DEFAULT_PORT, "TCP port for control and lanes"),
    "store.path": ("", "where the objects are kept; empty means the home directory"),
    "store.keep_free": ("10%", "disk space that is never used, as 10% or 50GB"),
    "store.max_bytes": ("", "most that the store may hold, as 2TB; empty means no limit"),
    "store.accept": ("all", "what comes here unasked: all, on-demand or none"),
    "links.direct": ([], "networks (10.9.0.0/24) that are a cable between two nodes and nothing else"),
    "links.seal": ("auto", "encrypt payload: auto (not for models on a direct cable), always, never"),
    "links.lanes": (2, "lanes from each node"),
    "links.limit": ("", "most bytes per second this node sends, as 500MB; empty means no limit"),
    "store.grace_days": (7, "days until removed refs are freed"),
    "log.level": ("info", "debug, info, warning or error"),
}
_CHOICES = {
    "store.accept": ("all", "on-demand", "none"),
    "links.seal": ("auto", "always", "never"),
    "log.level": ("debug", "info", "warning", "error"),
}
LANES_MAX = 4  # sealed and plain ones together stay below what a provider opens for one peer
_RANGES = {"listen.port": (0, 65535), "links.lanes": (1, LANES_MAX), "store.grace_days": (0, 36500)}
SIZES = ("store.keep_free", "store.max_bytes", "links.limit")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Config:
    """The values of one node, and for each key where its value is from."""

    values: dict[str, Value]
    origins: dict[str, str] = field(default_factory=dict[str, str])

    def text(self, key: str) -> str:
        """Return a text value."""
        return str(self.values[key])

    def number(self, key: str) -> int:
        """Return a whole number."""
        value = self.values[key]
        assert isinstance(value, int)
        return value

    def listed(self, key: str) -> list[str]:
        """Return a list of texts."""
        value = self.values[key]
        assert isinstance(value, list)
        return value

    def size(self, key: str, whole: int = 0) -> int:
        """Return a size in bytes; a percentage is of `whole`; empty is 0."""
        return parse_size(self.text(key), key, whole)


def parse_size(text: str, key: str, whole: int = 0) -> int:
    """Return the bytes that `10%`, `50GB`, `1.5 TB` or `1000` mean. ConfigInvalid when it means nothing."""
    stripped = text.strip().lower()
    try:
        if not stripped:
            return 0
        if stripped.endswith("%"):
            return int(whole * float(stripped[:-1]) / 100)
        number = stripped.removesuffix("b").removesuffix("i").rstrip()
        unit = number[-1] if number[-1] in _UNITS else ""
        result = int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError, IndexError) as error:
        raise ConfigInvalid(f"{key} = {text!r} is no size", cure=f"tbshare config set {key} 50GB") from error
    if result < 0:
        raise ConfigInvalid(f"{key} = {text!r} is below zero", cure=f"tbshare config set {key} 50GB")
    return result


def load(home: Path, overrides: dict[str, Value] | None = None) -> Config:
    """Read config.toml below `home`; `overrides` come from the command line. ConfigInvalid says which key."""
    values = {key: default for key, (default, _) in KEYS.items()}
    origins = dict.fromkeys(KEYS, "default")
    path = home / "config.toml"
    if path.exists():
        for key, value in _flat(_read(path)).items():
            values[key] = checked(key, value)
            origins[key] = str(path)
    for key, value in (overrides or {}).items():
        values[key] = checked(key, value)
        origins[key] = "command line"
    return Config(values, origins)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: {error}", cure="tbshare config edit") from error
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}", cure="tbshare config edit") from error


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in KEYS:
            result |= _flat(value, f"{key}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            result[key] = value
    return result


def checked(key: str, value: object) -> Value:
    """Return the value if the key takes it. ConfigInvalid with the nearest key, or the kind of value it takes."""
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, 1, 0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigInvalid(f"config.toml has the unknown key {key!r}{hint}", cure="tbshare config edit")
    default = KEYS[key][0]
    if isinstance(default, list):
        return _networks(key, value)
    if isinstance(value, bool) or not isinstance(value, type(default)):
        kind = "a whole number" if isinstance(default, int) else "a text"
        raise ConfigInvalid(f"{key} takes {kind}, not {value!r}", cure="tbshare config edit")
    if isinstance(value, str):
        _check_text(key, value)
    elif isinstance(value, int):
        least, most = _RANGES[key]
        if not least <= value <= most:
            raise ConfigInvalid(f"{key} is {least} to {most}, not {value}", cure="tbshare config ls")
    return value


def _check_text(key: str, value: str) -> None:
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ConfigInvalid(f"{key} is one of {', '.join(_CHOICES[key])}, not {value!r}", cure="tbshare config ls")
    if key in SIZES:
        parse_size(value, key, 1)


def _networks(key: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise ConfigInvalid(f"{key} takes a list of texts", cure="tbshare config edit")
    texts = [str(item) for item in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    for text in texts:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise ConfigInvalid(
                f"{key}: {text!r} is no network, such as 10.9.0.0/24", cure="tbshare config edit"
            ) from error
    return texts
