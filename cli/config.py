"""config.toml: config ls, get, set, edit."""

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast

import typer

from tbshare.cli import show
from tbshare.cli.examples import examples
from tbshare.cli.options import AsJson
from tbshare.cli.session import home_of
from tbshare.client import Client
from tbshare.daemon.config import KEYS, Value, checked, load
from tbshare.errors import ConfigInvalid, DaemonUnreachable, ExitStatus, TbshareError

FILE_NAME = "config.toml"


def complete_key(incomplete: str) -> list[str]:
    """Return the keys that begin so."""
    return [key for key in KEYS if key.startswith(incomplete)]


Key = Annotated[str, typer.Argument(metavar="KEY", help="As config ls shows it.", autocompletion=complete_key)]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    config = typer.Typer(help="The node's configuration, config.toml.", rich_markup_mode=None)
    config.command("ls", epilog=examples("config ls"))(list_values)
    config.command("get", epilog=examples("config get store.keep_free"))(get)
    config.command("set", epilog=examples("config set store.keep_free 50GB", "config set log.level debug"))(
        set_value
    )
    config.command("edit", epilog=examples("config edit"))(edit)
    app.add_typer(config, name="config")


def list_values(context: typer.Context, as_json: AsJson = False) -> int:
    """List all keys, their values, and where each value is from."""
    config = load(Path(home_of(context)))
    if as_json:
        show.json({key: {"value": config.values[key], "origin": config.origins[key]} for key in KEYS})
        return ExitStatus.DONE
    rows = [[key, shown(config.values[key]), config.origins[key], meaning] for key, (_, meaning) in KEYS.items()]
    show.table(["KEY", "VALUE", "FROM", "MEANING"], rows)
    return ExitStatus.DONE


def get(context: typer.Context, key: Key, as_json: AsJson = False) -> int:
    """Print one value."""
    config = load(Path(home_of(context)))
    known(key)
    if as_json:
        show.json({key: config.values[key]})
    else:
        show.line(shown(config.values[key]))
    return ExitStatus.DONE


def set_value(
    context: typer.Context,
    key: Key,
    text: Annotated[str, typer.Argument(metavar="VALUE", help="Lists as a,b.")],
) -> int:
    """Set one value in config.toml; the rest of the file stays as it is."""
    known(key)
    value = checked(key, parsed(key, text))
    home = Path(home_of(context))
    path = home / FILE_NAME
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path} is not UTF-8 text", cure="tbshare config edit") from error
    after = edited(before, key, value)
    if _found(after, key) != value:
        raise ConfigInvalid(f"{path} is written so that {key} must be set by hand", cure="tbshare config edit")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    replaced(path, after)
    try:
        load(home)
    except ConfigInvalid:
        replaced(path, before)
        raise
    show.line(f"{key} = {shown(value)}")
    _tell_daemon(home, key, value)
    return ExitStatus.DONE


def edit(context: typer.Context) -> int:
    """Open config.toml in $VISUAL or $EDITOR and check it afterwards."""
    home = Path(home_of(context))
    path = home / FILE_NAME
    if not path.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        replaced(path, template())
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        ended = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
    except (OSError, ValueError) as error:
        raise TbshareError(f"the editor {editor!r} cannot be started: {error}", cure="set EDITOR") from error
    load(home)
    if ended:
        raise TbshareError(f"the editor ended with status {ended}", cure="tbshare config ls")
    show.line(f"{path} holds together; tbshare restart makes the daemon read it")
    return ExitStatus.DONE


def known(key: str) -> None:
    """Refuse a key that is none, with the nearest."""
    checked(key, KEYS[key][0] if key in KEYS else "")


def parsed(key: str, text: str) -> Value:
    """Return the text as the kind of value that the key takes."""
    default = KEYS[key][0]
    if isinstance(default, list):
        return [word.strip() for word in text.split(",") if word.strip()]
    if isinstance(default, bool):
        return text.strip().lower() in ("true", "yes", "on", "1")
    if isinstance(default, int):
        try:
            return int(text)
        except ValueError as error:
            raise ConfigInvalid(f"{key} takes a whole number, not {text!r}", cure="tbshare config ls") from error
    return text


def shown(value: Value) -> str:
    """Return a value as `config set` takes it."""
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def toml(value: Value) -> str:
    """Return a value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    letters = (
        f"\\{letter}" if letter in '"\\' else letter if letter.isprintable() else f"\\U{ord(letter):08x}"
        for letter in value
    )
    return '"' + "".join(letters) + '"'


def edited(text: str, key: str, value: Value) -> str:
    """Return the file with one value changed or added; comments and order stay."""
    section, _, name = key.rpartition(".")
    new = f"{name} = {toml(value)}"
    lines = text.splitlines()
    header = re.compile(rf"\s*\[\s*{re.escape(section)}\s*\]\s*(#.*)?")
    assignment = re.compile(rf"\s*{re.escape(name)}\s*=")
    start = next((number for number, line in enumerate(lines) if header.fullmatch(line)), None)
    if start is None:
        lines += [*([""] if lines else []), f"[{section}]", new]
        return "\n".join(lines) + "\n"
    for number in range(start + 1, len(lines)):
        if lines[number].lstrip().startswith("["):
            break
        if assignment.match(lines[number]):
            lines[number] = new
            return "\n".join(lines) + "\n"
    lines.insert(start + 1, new)
    return "\n".join(lines) + "\n"


def template() -> str:
    """Return a config.toml in which every key stands as a comment, with its default."""
    lines: list[str] = []
    sections = dict.fromkeys(key.rpartition(".")[0] for key in KEYS)
    for section in sections:
        lines += ["", f"[{section}]"]
        for key, (default, meaning) in KEYS.items():
            if key.rpartition(".")[0] == section:
                lines += [f"# {meaning}", f"# {key.rpartition('.')[2]} = {toml(default)}"]
    return "\n".join(lines).lstrip("\n") + "\n"


def replaced(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _found(text: str, key: str) -> object:
    """Return what the key is in the file's text; None when it is not there or the text is no TOML."""
    try:
        inside: object = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    for name in key.split("."):
        if not isinstance(inside, Mapping):
            return None
        inside = cast("Mapping[str, object]", inside).get(name)
    return inside


def _tell_daemon(home: Path, key: str, value: Value) -> None:
    """Let a running daemon follow, or say that it does not."""
    try:
        with Client.connect(home) as client:
            if key == "log.level":
                client.log_level(str(value))
                return
    except DaemonUnreachable:
        return
    show.aside("note: the running daemon reads it at its next start; try: tbshare restart")
