"""The command line's entry: finds the command, loads its module alone, and turns errors into exit statuses.

A shell waits for this, so `tbshare ls` must not load what only `tbshare push` needs, and `tbshare --help` loads
no command at all: what it prints stands in `COMMANDS`.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple, cast

from tbshare.cli import show
from tbshare.client import home_directory
from tbshare.errors import ExitStatus, Interrupted, TbshareError, UsageError

COMPLETE_VARIABLE = "_TBSHARE_COMPLETE"  # typer's name for it
PROGRAM = "tbshare"


class Entry(NamedTuple):
    """Where a command lives, and its line in the overview."""

    module: str
    group: str
    text: str


COMMANDS = {
    "push": Entry("models", "models", "put a model on every node"),
    "pull": Entry("models", "models", "fetch a ref here and pin it"),
    "ls": Entry("models", "models", "list refs, or files of a volume"),
    "show": Entry("models", "models", "what a ref or file is, where, and who holds it"),
    "path": Entry("models", "models", "a read-only directory of a ref, for any engine"),
    "rm": Entry("models", "models", "remove a ref, or files of a volume, everywhere"),
    "pin": Entry("models", "models", "keep a ref or file on this node"),
    "unpin": Entry("models", "models", "take a pin back"),
    "evict": Entry("models", "models", "free the bytes of a ref or file on this node"),
    "volume": Entry("volumes", "files", "volume create, ls, show, set, rm, restore"),
    "cp": Entry("files", "files", "copy files into, out of or inside volumes"),
    "mv": Entry("files", "files", "move files of a volume"),
    "cat": Entry("files", "files", "write a file of a volume to stdout"),
    "mkdir": Entry("files", "files", "make a directory in a volume"),
    "history": Entry("versions", "files", "all versions of a file"),
    "restore": Entry("versions", "files", "make an earlier version the newest"),
    "conflicts": Entry("versions", "files", "what stands side by side"),
    "resolve": Entry("versions", "files", "choose one of several versions"),
    "locks": Entry("versions", "files", "who has what open for writing"),
    "snapshot": Entry("volumes", "files", "snapshot create, ls, rm"),
    "watch": Entry("versions", "files", "changes of a volume, as they come"),
    "mount": Entry("mount", "files", "a volume, or all, as a directory"),
    "unmount": Entry("mount", "files", "take a mount away"),
    "run": Entry("running", "run", "answer a prompt from mapped weights"),
    "ps": Entry("running", "run", "what goes on, with ids"),
    "stop": Entry("running", "run", "stop a transfer or run"),
    "wait": Entry("running", "run", "wait for a transfer or run"),
    "up": Entry("lifecycle", "cluster", "start this node's daemon"),
    "down": Entry("lifecycle", "cluster", "stop it"),
    "restart": Entry("lifecycle", "cluster", "stop it and start it again"),
    "pair": Entry("cluster", "cluster", "let a node join, with one code"),
    "node": Entry("cluster", "cluster", "node ls, node rename"),
    "status": Entry("cluster", "cluster", "what needs attention"),
    "drain": Entry("cluster", "cluster", "until this node may be unplugged"),
    "undrain": Entry("cluster", "cluster", "take part again"),
    "du": Entry("care", "care", "what the store takes"),
    "gc": Entry("care", "care", "free what nothing needs"),
    "verify": Entry("care", "care", "hash everything again"),
    "config": Entry("config", "care", "config ls, get, set, edit"),
    "version": Entry("about", "care", "versions of program and daemon"),
    "help": Entry("about", "care", "help TOPIC"),
    "completion": Entry("about", "care", "completion script of a shell"),
}

ALIASES = {"umount": "unmount"}
SUBCOMMANDS = ("ls", "rename", "get", "set", "edit", "create", "show", "rm", "restore")
GROUPS = ("node", "config", "volume", "snapshot")
# these take paths, which may have bytes that are not UTF-8
PATH_COMMANDS = (
    "ls", "show", "rm", "pin", "unpin", "evict", "volume", "cp", "mv", "cat", "mkdir", "history", "restore",
    "resolve", "watch", "mount", "unmount", "umount",
)  # fmt: skip

FIRST_DAY = (
    ("up", "start this node's daemon"),
    ("pair", "let another machine join (then `pair CODE` there)"),
    ("node ls", "the nodes of the cluster"),
    ("push PATH", "put a model on every node"),
    ("ls", "what there is, and who has it"),
    ("show REF", "what it is made of"),
    ("path REF", "a directory of it, for any engine"),
    ('run REF "…"', "ask it something, from mapped weights"),
    ("status", "what needs attention"),
    ("down", "stop the daemon"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; errors are printed, never raised.

    TBSHARE_DEBUG=1 prints the traceback of an error as well.
    """
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        show.flush()
    except TbshareError as error:
        return _failed(error)
    except KeyboardInterrupt:
        return _failed(Interrupted("interrupted", cure="the same command again"))
    except SystemExit as ended:  # how typer ends when it completes a word
        return ended.code if isinstance(ended.code, int) else ExitStatus.DONE
    except BrokenPipeError:
        show.abandon()
        return ExitStatus.FAILED
    except Exception as error:  # noqa: BLE001  (the last resort: a sentence instead of a traceback)
        kind = type(error).__name__
        return _failed(TbshareError(f"internal error: {kind}: {error}", cure="TBSHARE_DEBUG=1 tbshare …"))
    return status


def _failed(error: TbshareError) -> int:
    if os.environ.get("TBSHARE_DEBUG", "") not in ("", "0"):
        for text in traceback.format_exc().splitlines():
            show.aside(text)
    show.failure(error)
    return error.exit_status


def _run(words: list[str]) -> int:
    """Do what the words say; TbshareError, KeyboardInterrupt and our own mistakes come out."""
    if COMPLETE_VARIABLE in os.environ:
        _take_line()
        return invoke(words, home_directory())
    words, home = _take_home(words)
    bytes_pass = bool(words) and words[0] in PATH_COMMANDS
    for word in [*words, home]:
        if "\x00" in word or not (bytes_pass or _is_text(word)):
            raise UsageError(f"an argument is not valid UTF-8 text: {word!r}", cure="tbshare --help")
    if not words:
        show.block(first_day())
        return ExitStatus.DONE
    match words[0]:
        case "--help" | "-h":
            show.block(overview())
            return ExitStatus.DONE
        case "--version" | "-V":
            return invoke(["version", *words[1:]], home)
        case word if word.startswith("-"):
            raise UsageError(f"no such option: {word}", cure="tbshare --help")
        case word if word in ALIASES:
            return invoke([ALIASES[word], *words[1:]], home)
        case word if word not in COMMANDS:
            raise UsageError(f"no such command: {word}{_nearest(word)}", cure="tbshare --help")
        case _:
            return invoke(words, home)


def _take_line() -> None:
    """Give typer the words of the line that bash has so far; bash itself would cut them at each colon."""
    line = os.environ.get("COMP_LINE")
    if line is None:
        return
    import shlex

    begun = f"{line}x"  # so that a word that is only about to begin counts, too
    try:
        words = shlex.split(begun)
    except ValueError:  # a quotation that is not at its end
        words = begun.split()
    os.environ["COMP_WORDS"] = line
    os.environ["COMP_CWORD"] = str(len(words) - 1)


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _take_home(words: list[str]) -> tuple[list[str], str]:
    """Return the words without `--home DIRECTORY`, which may stand anywhere before a `--`, and the home."""
    kept: list[str] = []
    home: str | None = None
    rest = iter(words)
    for word in rest:
        if word == "--home" or word.startswith("--home="):
            home = next(rest, "") if word == "--home" else word.removeprefix("--home=")
            if not home:
                raise UsageError("--home wants a directory", cure="tbshare --help")
            continue
        kept.append(word)
        if word == "--":
            kept.extend(rest)
    return kept, home_directory(home)


def _nearest(word: str) -> str:
    from difflib import get_close_matches

    found = get_close_matches(word, COMMANDS, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def invoke(words: list[str], home: str) -> int:
    """Run the command `words[0]` with typer and return its exit status; UsageError when it refuses the words."""
    import typer

    from tbshare.cli.session import Invocation

    completing = COMPLETE_VARIABLE in os.environ
    app = typer.Typer(add_completion=completing, rich_markup_mode=None, help="tbshare")
    app.callback()(_nothing)
    chosen = {entry.module for entry in COMMANDS.values()} if completing else {COMMANDS[words[0]].module}
    for module in sorted(chosen):
        importlib.import_module(f"tbshare.cli.{module}").register(app)
    command = typer.main.get_command(app)
    refused = cast("type[Exception]", typer.BadParameter.__base__)  # click's UsageError, wherever typer keeps it
    try:
        status: object = command.main(words, prog_name=PROGRAM, standalone_mode=False, obj=Invocation(home))
    except typer.Abort as error:
        raise Interrupted("interrupted", cure="the same command again") from error
    except refused as error:
        raise UsageError(_refusal(error), cure=_help_of(words)) from error
    if status == ExitStatus.INTERRUPTED:
        raise KeyboardInterrupt  # typer has made a status of it; no command returns this one
    return status if isinstance(status, int) else ExitStatus.DONE


def _nothing() -> None:
    """Be the parent of all commands."""


def _refusal(error: Exception) -> str:
    """Return click's sentence, without its full stop."""
    text: object = getattr(error, "format_message", lambda: str(error))()
    return str(text).rstrip(".").replace("\n", " ").replace(": Value error, ", ": ")


def _help_of(words: list[str]) -> str:
    """Return the command that explains the one that was refused."""
    group = words[0] if words else ""
    second = words[1] if group in GROUPS and len(words) > 1 and words[1] in SUBCOMMANDS else ""
    return " ".join(["tbshare", *filter(None, (group, second)), "--help"])


def first_day() -> str:
    """Return what `tbshare` alone prints."""
    lines = [f"  tbshare {command:<14} {text}" for command, text in FIRST_DAY]
    return "\n".join(["Models and files on every machine of a small lab.", "", *lines, "", "All: tbshare --help"])


def overview() -> str:
    """Return what `tbshare --help` prints."""
    lines = ["Usage: tbshare [--home DIRECTORY] COMMAND …", ""]
    for group in dict.fromkeys(entry.group for entry in COMMANDS.values()):
        lines.append(f"{group}")
        lines += [f"  {name:<11} {entry.text}" for name, entry in COMMANDS.items() if entry.group == group]
    lines += [
        "",
        "  --home DIRECTORY   the node's home; else $TBSHARE_HOME, else ~/.tbshare",
        "  --version          same as tbshare version",
        "",
        "tbshare COMMAND --help shows its options and examples; tbshare help TOPIC explains refs, volumes, exit,",
        "pairing, space and nas.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
