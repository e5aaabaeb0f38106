"""Versions of files: history, restore, conflicts, resolve, locks, watch."""

import os
import time
from typing import Annotated

import typer

from tbshare.cli import amount, listing, show
from tbshare.cli.complete import complete_where
from tbshare.cli.examples import examples
from tbshare.cli.moment import minute, parse_moment, second
from tbshare.cli.options import AsJson, AsJsonLines
from tbshare.cli.place import OptionalVolume, PlaceArgument, client_for, place_in_volume, volume_name
from tbshare.cli.session import connect
from tbshare.errors import ExitStatus, UsageError
from tbshare.wire import files, report, volume
from tbshare.wire.where import Where


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("history", epilog=examples("history film:/cut.prproj", "history film:/gone.mov"))(history)
    app.command(
        "restore",
        epilog=examples(
            "restore film:/cut.prproj                      (undo: the version before the newest)",
            "restore film:/cut.prproj --version 07e2f2addfc0007e",
            "restore film:/reels --before 2h",
            "restore film:/cut.prproj --snapshot monday --to film:/cut-monday.prproj",
        ),
    )(restore)
    app.command("conflicts", epilog=examples("conflicts", "conflicts film --json"))(conflicts)
    app.command(
        "resolve",
        epilog=examples(
            "resolve film:/cut.prproj --keep studio-2",
            "resolve film:/cut.prproj --keep 07e2f2addfc0007e",
            "resolve film:/cut.prproj --keep 'cut (from studio-2, 2026-11-23 14.05).prproj'",
        ),
    )(resolve)
    app.command("locks", epilog=examples("locks", "locks film"))(locks)
    app.command("watch", epilog=examples("watch film", "watch film:/reels --json"))(watch)


def history(context: typer.Context, place: PlaceArgument, as_json: AsJson = False) -> int:
    """List all versions of a path, newest first; of one that is removed, too."""
    where = place_in_volume(place, "history")
    with client_for(context, where) as client:
        found = client.history(where)
    if as_json:
        show.json(found)
    else:
        listing.show_versions(found.lines, where.parts[-1] if where.parts else b"")
    return ExitStatus.DONE


def restore(
    context: typer.Context,
    place: PlaceArgument,
    version: Annotated[
        str, typer.Option("--version", metavar="ID", help="This one, as `tbshare history` shows it.")
    ] = "",
    before: Annotated[
        str,
        typer.Option("--before", metavar="TIME", help="As it was then: 2h, 3d, 14:05, '2026-11-23 14:05'."),
    ] = "",
    snapshot: Annotated[str, typer.Option("--snapshot", metavar="NAME", help="As in this snapshot.")] = "",
    to: Annotated[
        str,
        typer.Option("--to", metavar="VOLUME:/PATH", help="Put it there instead.", autocompletion=complete_where),
    ] = "",
    as_json: AsJson = False,
) -> int:
    """Make an earlier state the newest version; without an option, the one before. Nothing is lost by it."""
    where = place_in_volume(place, "restore")
    if sum(map(bool, (version, before, snapshot))) > 1:
        raise UsageError("only one of --version, --before and --snapshot", cure=f"tbshare history {place}")
    params = files.RestoreParams(
        where=where,
        version=version,
        before_ns=parse_moment(before, time.time_ns()) if before else 0,
        snapshot=snapshot,
        target=place_in_volume(to, "restore") if to else None,
    )
    with client_for(context, where) as client:
        restored = client.restore(params)
    status = ExitStatus.PENDING if restored.files_away else ExitStatus.DONE
    if as_json:
        show.json(restored)
        return status
    if restored.same:
        show.line(f"{restored.where} is so already, nothing was changed")
        return status
    what = f", {amount.count(restored.files, 'file')}," if restored.files > 1 else ""
    when = f" as of {minute(restored.when_ns)}" if restored.when_ns else ""
    show.line(f"restored {restored.where}{what}{when}")
    if restored.files_away:
        show.aside(f"warning: {restored.text}")
    return status


def conflicts(context: typer.Context, name: OptionalVolume = "", as_json: AsJson = False) -> int:
    """List versions, and names, that stand side by side because they were made at the same time."""
    with connect(context) as client:
        found = client.conflicts(volume_name(name))
    if as_json:
        show.json(found)
        return ExitStatus.DONE
    if not found.conflicts:
        show.aside("no conflicts")
    for conflict in found.conflicts:
        _say_conflict(conflict)
    if found.total > len(found.conflicts):
        show.line(f"and {found.total - len(found.conflicts)} more")
    if found.conflicts:
        cure = resolving(found.conflicts[0])
        show.aside(f"to choose one, the others stay in the history: {cure}")
    return ExitStatus.DONE


def resolving(conflict: volume.ConflictLine) -> str:
    """Return the command that ends a conflict."""
    if conflict.kind == "versions":
        keep = conflict.shown[0].version if conflict.shown else "NODE"
        return f"tbshare resolve {_quoted(conflict.where)} --keep {keep}"
    last = conflict.shown[-1].shown if conflict.shown else b""
    there = Where(conflict.where.volume, b"/".join((*conflict.where.parts[:-1], last)))
    stem, extension = os.path.splitext(conflict.where.path)
    return f"tbshare mv {_quoted(there)} {_quoted(Where(there.volume, stem + b'-2' + extension))}"


def _quoted(where: Where) -> str:
    import shlex

    return shlex.quote(str(where))


def _say_conflict(conflict: volume.ConflictLine) -> None:
    what = "versions of one file" if conflict.kind == "versions" else "files with one name"
    show.line(f"{conflict.where}: {len(conflict.shown)} {what}")
    show.table(
        ["  VERSION", "BY", "WHEN", "SIZE", "SHOWN AS"],
        [
            [
                f"  {line.version}",
                line.author,
                minute(line.when_ns),
                amount.size(line.size_bytes),
                show.name(line.shown),
            ]
            for line in conflict.shown
        ],
        right=[3],
    )


def resolve(
    context: typer.Context,
    place: PlaceArgument,
    keep: Annotated[
        str,
        typer.Option("--keep", metavar="NODE|VERSION|NAME", help="Whose, which, or the name it is shown under."),
    ],
    as_json: AsJson = False,
) -> int:
    """Say which of several versions has the name; the others stay in the history."""
    where = place_in_volume(place, "resolve")
    with client_for(context, where) as client:
        resolved = client.resolve(where, os.fsencode(keep))
    if as_json:
        show.json(resolved)
        return ExitStatus.DONE
    others = amount.count(resolved.others, "other")
    show.line(f"{resolved.where} is the version of {resolved.author}; {others} in its history")
    return ExitStatus.DONE


def locks(context: typer.Context, name: OptionalVolume = "", as_json: AsJson = False) -> int:
    """List who has which file open for writing."""
    with connect(context) as client:
        found = client.locks(volume_name(name))
    if as_json:
        show.json(found)
    elif found.locks:
        rows = [
            [
                str(lock.where),
                lock.kind,
                lock.node + (" (here)" if lock.here else ""),
                f"{lock.left_seconds:.0f} s",
            ]
            for lock in found.locks
        ]
        show.table(["PATH", "KIND", "HELD BY", "ENDS IN"], rows, right=[3])
    else:
        show.aside("no locks")
    return ExitStatus.DONE


def watch(
    context: typer.Context,
    place: Annotated[
        str, typer.Argument(metavar="VOLUME[:/PATH]", help="All below it.", autocompletion=complete_where)
    ],
    as_json: AsJsonLines = False,
) -> int:
    """Print every change in a volume as it comes, from all nodes, until Ctrl-C."""
    where = place_in_volume(place if ":" in place else f"{place}:", "watch")

    def heard(event: report.AnyEvent) -> None:
        if as_json:
            show.json(event)
        elif isinstance(event, volume.Changed):
            show.line(changed_text(event))
            show.flush()
        elif isinstance(event, report.Noted | report.Warned):
            show.aside(event.text)

    try:
        with connect(context) as client:
            client.watch(where, heard)
    except KeyboardInterrupt:
        return ExitStatus.DONE  # the only end it has
    return ExitStatus.DONE


def changed_text(event: volume.Changed) -> str:
    """Return a change on one line."""
    if event.what == "lost":
        return f"changes were lost, there were too many: look again at {event.where}"
    from_there = f"{event.before} -> " if event.before is not None else ""
    text = f"{second(event.when_ns)}  {event.author or 'nobody'}  {event.what}  {from_there}{event.where}"
    if event.kind == "directory" and event.where.path:
        text += "/"
    if event.version and event.what in ("created", "saved", "forked"):
        text += f"  {amount.size(event.size_bytes)}"
    return text
