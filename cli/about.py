"""About tbshare itself: version, help, completion, and the words shown without a command."""

import os
from typing import Annotated

import typer

from tbshare import __version__
from tbshare.cli import show
from tbshare.cli.examples import examples
from tbshare.cli.options import AsJson
from tbshare.cli.session import home_of
from tbshare.client import Client
from tbshare.errors import DaemonUnreachable, ExitStatus, UsageError

SHELLS = ("bash", "zsh", "fish")
# Bash takes a colon for the end of a word: it is told what stands behind the colon alone.
BASH = r"""
_tbshare_completion() {
    local line="${COMP_LINE:0:COMP_POINT}" reply before=""
    local last="${line//\\[[:space:]]/_}"
    last="${last##*[[:space:]]}"
    [[ $COMP_WORDBREAKS == *:* && $last == *:* ]] && before="${last%%:*}:"
    COMPREPLY=()
    while IFS= read -r reply; do
        [[ -n $reply ]] || continue
        [[ $reply == */ ]] && compopt -o nospace 2>/dev/null
        printf -v reply %q "${reply#"$before"}"
        COMPREPLY+=("$reply")
    done < <(COMP_LINE="$line" _TBSHARE_COMPLETE=complete_bash "$1" 2>/dev/null)
}
complete -o nosort -F _tbshare_completion tbshare 2>/dev/null || complete -F _tbshare_completion tbshare
"""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("version", epilog=examples("version", "version --json"))(version)
    app.command("help", epilog=examples("help refs", "help push"))(explain)
    app.command(
        "completion",
        epilog=examples(
            "completion bash",
            "echo 'eval \"$(tbshare completion zsh)\"' >> ~/.zshrc",
            "completion fish > ~/.config/fish/completions/tbshare.fish",
        ),
    )(completion)


def version(context: typer.Context, as_json: AsJson = False) -> int:
    """Print the version of this program and of the running daemon."""
    try:
        with Client.connect(home_of(context), any_level=True) as client:
            daemon = client.daemon.version
    except DaemonUnreachable:
        daemon = ""
    if as_json:
        show.json({"version": __version__, "daemon": daemon or None})
        return ExitStatus.DONE
    show.line(f"tbshare {__version__}")
    if daemon and daemon != __version__:
        show.line(f"the daemon is tbshare {daemon}; try: tbshare restart")
    return ExitStatus.DONE


def explain(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(metavar="[TOPIC]", help="A topic or a command.")] = "",
) -> int:
    """Explain a topic, or a command."""
    from tbshare.cli import main, topics

    if not topic:
        show.block(main.overview())
        show.block("\nTopics (tbshare help TOPIC): " + ", ".join(topics.TOPICS))
        return ExitStatus.DONE
    if topic in topics.TOPICS:
        show.block(topics.TOPICS[topic])
        return ExitStatus.DONE
    if topic in main.COMMANDS and topic != "help":
        return main.invoke([topic, "--help"], home_of(context))
    raise UsageError(f"no help about {topic!r}; the topics are {', '.join(topics.TOPICS)}", cure="tbshare --help")


def completion(
    context: typer.Context,
    shell: Annotated[str, typer.Argument(metavar="[SHELL]", help="bash, zsh or fish; else as $SHELL says.")] = "",
) -> int:
    """Print a shell's completion script, to be evaluated in its start-up file."""
    from tbshare.cli import main

    chosen = shell or os.path.basename(os.environ.get("SHELL", ""))
    if chosen not in SHELLS:
        what = f"no completion for {chosen!r}" if chosen else "which shell"
        raise UsageError(f"{what}; there are {', '.join(SHELLS)}", cure="tbshare completion bash")
    if chosen == "bash":
        show.block(BASH)
        return ExitStatus.DONE
    os.environ[main.COMPLETE_VARIABLE] = f"source_{chosen}"  # how typer is asked for the script
    try:
        return main.invoke([], home_of(context))
    finally:
        del os.environ[main.COMPLETE_VARIABLE]
