"""Files of a volume without a mount: cp, mv, cat, mkdir; and what ls, rm and show do with a VOLUME:/path."""

import os
from typing import Annotated

import typer

from tbshare.cli import amount, listing, show
from tbshare.cli.complete import complete_where
from tbshare.cli.examples import examples
from tbshare.cli.options import AsJson, AsJsonLines
from tbshare.cli.place import PlacesArgument, client_for, listing_helps, place_anywhere, place_in_volume
from tbshare.cli.session import connect
from tbshare.cli.watch import TransferWatch
from tbshare.errors import ExitStatus, Interrupted, UsageError
from tbshare.wire import files
from tbshare.wire.where import Where

Ends = Annotated[
    list[str],
    typer.Argument(metavar="SRC... DST", help="VOLUME:/path, or a path here.", autocompletion=complete_where),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", "-R", help="Directories, with all below them.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        "cp",
        epilog=examples(
            "cp clip.mov film:/reels/",
            "cp -r ./footage film:/",
            "cp film:/reels/clip.mov .",
            "cp film:/reels/clip.mov film:/reels/copy.mov   (no bytes are copied)",
            "cp -r film@monday:/reels ./as-it-was-on-monday",
        ),
    )(copy)
    app.command("mv", epilog=examples("mv film:/clip.mov film:/reels/", "mv film:/reels film:/rushes"))(move)
    app.command(
        "cat",
        epilog=examples("cat film:/notes.txt", "cat film:/notes.txt --version 07e2f2addfc0007e > old.txt"),
    )(concatenate)
    app.command("mkdir", epilog=examples("mkdir film:/reels", "mkdir -p film:/reels/day-1"))(make_directory)


def copy(
    context: typer.Context,
    ends: Ends,
    recursive: Recursive = False,
    move: Annotated[bool, typer.Option("--move", help="Adopt the files instead of copying them.")] = False,
    as_json: AsJsonLines = False,
) -> int:
    """Copy files into, out of or inside volumes; a target is a file's whole new version, or nothing happened."""
    params = copy_params(ends, recursive=recursive, move=move)
    watch = TransferWatch(as_json=as_json)
    try:
        with client_for(context, *params.sources, params.target) as client, watch:
            copied = client.file_copy(params, watch.event)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; files that were copied whole stay, none is half-written", cure="the same command again"
        ) from None
    if as_json:
        show.json({"event": "result", "result": copied})
    else:
        say_copied(copied)
    return ExitStatus.PENDING if copied.files_away else ExitStatus.DONE


def copy_params(ends: list[str], *, recursive: bool, move: bool) -> files.FileCopyParams:
    """Return what cp asks for; UsageError or InputRefused when it cannot be meant."""
    if len(ends) < 2:
        raise UsageError("cp wants a source and a target", cure="tbshare cp --help")
    *before, last = ends
    target = place_anywhere(last, exists=False)
    sources = [place_anywhere(text, exists=True) for text in before]
    if not target.volume and not all(source.volume for source in sources):
        raise UsageError("none of these is in a volume: write it as VOLUME:/path", cure="tbshare volume ls")
    if target.snapshot:
        raise UsageError(f"{last} is a snapshot: nothing is written there", cure=f"tbshare ls {last}")
    if move and (not target.volume or any(source.volume for source in sources)):
        raise UsageError("--move takes files of this machine into a volume", cure="tbshare mv --help")
    return files.FileCopyParams(
        sources=sources, target=target, recursive=recursive, into=_is_directory(last), move=move
    )


def _is_directory(text: str) -> bool:
    """Whether an argument is written as a directory: `reels/`, `film:`, `.`."""
    return text.endswith(("/", ":")) or os.path.basename(text) in (".", "..")


def say_copied(copied: files.CopyReport) -> None:
    """Say what a copy came to."""
    new = copied.files - copied.files_same
    if copied.files and not new:
        show.line(f"already there: {amount.count(copied.files, 'file')} with this content, nothing was copied")
    else:
        what = f"{new} of {copied.files} files" if copied.files_same else amount.count(new, "file")
        text = f"copied {what}, {amount.size(copied.size_bytes)}{' together' * bool(copied.files_same)}"
        if copied.seconds >= 1 and not copied.files_shared:
            text += f" in {amount.duration(copied.seconds)}"
        show.line(text)
        if copied.files_same:
            show.line(f"{amount.count(copied.files_same, 'file')} had this content already")
    if copied.files_shared:
        show.line("inside the store: no bytes were copied")
    if copied.files_moved:
        show.line(f"adopted {amount.count(copied.files_moved, 'file')}; links stand in their place")
    if copied.files_away:
        show.aside(f"{amount.count(copied.files_away, 'file')} cannot be read before a node that has it is back")


def move(
    context: typer.Context,
    ends: Annotated[
        list[str], typer.Argument(metavar="SRC... DST", help="In one volume.", autocompletion=complete_where)
    ],
    as_json: AsJson = False,
) -> int:
    """Rename or move files and directories of a volume."""
    if len(ends) < 2:
        raise UsageError("mv wants a source and a target", cure="tbshare mv --help")
    *sources, target = [place_in_volume(text, "mv") for text in ends]
    into = _is_directory(ends[-1]) or len(sources) > 1
    with client_for(context, *sources, target) as client:
        moved = [client.file_move(source, target, into=into) for source in sources]
    if as_json:
        show.json({"moved": [each.item for each in moved]})
    else:
        for source in sources:
            show.line(f"moved {source} to {ends[-1]}")
    return ExitStatus.DONE


def concatenate(
    context: typer.Context,
    places: PlacesArgument,
    version: Annotated[
        str, typer.Option("--version", metavar="ID", help="An earlier one, as `tbshare history` shows it.")
    ] = "",
) -> int:
    """Write files to stdout, byte for byte; what is not on this node is fetched."""
    wheres = [place_in_volume(text, "cat") for text in places]
    if version and len(wheres) > 1:
        raise UsageError("--version goes with one file", cure=f"tbshare history {places[0]}")
    with connect(context) as client:
        for where in wheres:
            with listing_helps(client, where):
                client.file_read(files.FileReadParams(where=where, version=version), show.raw)
    return ExitStatus.DONE


def make_directory(
    context: typer.Context,
    places: PlacesArgument,
    parents: Annotated[
        bool, typer.Option("--parents", "-p", help="Those above it too; one that is there is no error.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Make directories in a volume."""
    wheres = [place_in_volume(text, "mkdir") for text in places]
    with client_for(context, *wheres) as client:
        made = [client.file_mkdir(where, parents=parents) for where in wheres]
    if as_json:
        show.json({"made": [each.item for each in made]})
    return ExitStatus.DONE


def list_files(context: typer.Context, where: Where, *, long: bool, dotted: bool, as_json: bool) -> int:
    """List what is in a directory of a volume, or one file."""
    with client_for(context, where) as client:
        listed = client.file_list(where, details=long or as_json, xattrs=as_json)
    if as_json:
        show.json(listed)
        return ExitStatus.DONE
    listing.show_items(listed, long=long, dotted=dotted)
    return ExitStatus.DONE


def remove_files(context: typer.Context, wheres: list[Where], *, recursive: bool, as_json: bool) -> int:
    """Remove files of volumes; history keeps them."""
    with client_for(context, *wheres) as client:
        gone = client.file_remove(wheres, recursive=recursive)
    if as_json:
        show.json(gone)
        return ExitStatus.DONE
    parts = [amount.count(gone.files, "file")] if gone.files or not gone.directories else []
    if gone.directories:
        parts.append(amount.count(gone.directories, "directory").replace("directorys", "directories"))
    show.line(f"removed {' and '.join(parts)}, {amount.size(gone.size_bytes)}")
    show.line(f"the history has it: tbshare restore {wheres[0]}")
    return ExitStatus.DONE


def show_file(context: typer.Context, where: Where, *, as_json: bool) -> int:
    """Show a file: its versions, how durable they are, and who holds the newest."""
    with client_for(context, where) as client:
        shown = client.file_show(where)
    if as_json:
        show.json(shown)
    else:
        listing.show_report(shown)
    return ExitStatus.DONE
