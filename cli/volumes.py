"""Volumes: volume create, ls, show, set, rm, restore; snapshot create, ls, rm."""

import os
from typing import Annotated, Literal

import typer

from tbshare.cli import amount, show
from tbshare.cli.complete import complete_node, complete_snapshot
from tbshare.cli.examples import examples
from tbshare.cli.files import say_copied
from tbshare.cli.models import words
from tbshare.cli.moment import minute
from tbshare.cli.options import AsJson, AsJsonLines
from tbshare.cli.place import VolumeArgument, source, volume_name
from tbshare.cli.session import connect
from tbshare.cli.watch import TransferWatch
from tbshare.errors import ExitStatus, Interrupted, UsageError
from tbshare.wire import volume

Replicate = Annotated[str, typer.Option("--replicate", metavar="HOW", help="everywhere, on-demand, or N copies.")]
HistoryTime = Annotated[
    str, typer.Option("--history", metavar="TIME", help="Keep older versions so long: 30d, forever, none.")
]
HistoryMax = Annotated[
    str, typer.Option("--history-max", metavar="SIZE", help="And no more of them than this: 10%, 2T.")
]
Quota = Annotated[str, typer.Option("--quota", metavar="SIZE", help="All files together at most: 500G, none.")]
Locked = Annotated[
    Literal["refuse", "read-only"] | None,
    typer.Option("--locked", help="What a write meets when another node has the file open."),
]
NoHistory = Annotated[
    list[str] | None,
    typer.Option(
        "--no-history",
        metavar="GLOB",
        help="No older versions of these, as of caches and temporary files; `none` before them drops those.",
    ),
]
Owner = Annotated[
    str,
    typer.Option("--owner", metavar="NODE", help="Who writes (mode owner).", autocompletion=complete_node),
]
Role = Annotated[
    list[str] | None,
    typer.Option(
        "--role",
        metavar="NODE=ROLE",
        help="read, write, publish, admin or none.",
        autocompletion=complete_node,
    ),
]
NewVolume = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, dot, dash, underscore.")]
SnapshotName = Annotated[
    str, typer.Argument(metavar="[NAME]", help="Else the time.", autocompletion=complete_snapshot)
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(help="Volumes: namespaces of refs, or of files.", rich_markup_mode=None)
    group.command(
        "create",
        epilog=examples(
            "volume create film",
            "volume create film --from /Volumes/footage        (again: goes on where it was)",
            "volume create dailies --mode owner --owner cart --replicate on-demand --quota 2T",
            "volume create film --history 90d --history-max 20% --no-history '*.bak'",
            "volume create raw --no-history none --no-history '*.tmp'   (of nothing else)",
        ),
    )(create)
    group.command("ls", epilog=examples("volume ls", "volume ls --json"))(list_volumes)
    group.command("show", epilog=examples("volume show film"))(show_volume)
    group.command(
        "set",
        epilog=examples("volume set film --replicate 2", "volume set film --role cart=read --quota none"),
    )(set_volume)
    group.command("rm", epilog=examples("volume rm film", "volume rm film --yes"))(remove)
    group.command("restore", epilog=examples("volume restore film"))(restore)
    app.add_typer(group, name="volume")
    snapshots = typer.Typer(help="Snapshots: a volume as it was.", rich_markup_mode=None)
    snapshots.command("create", epilog=examples("snapshot create film monday", "ls film@monday:/"))(snapshot)
    snapshots.command("ls", epilog=examples("snapshot ls film"))(list_snapshots)
    snapshots.command("rm", epilog=examples("snapshot rm film monday"))(remove_snapshot)
    app.add_typer(snapshots, name="snapshot")


def create(  # noqa: PLR0913, PLR0917  (typer makes an option of each)
    context: typer.Context,
    name: NewVolume,
    mode: Annotated[
        Literal["media", "owner"],
        typer.Option("--mode", help="media: all write; owner: one does."),
    ] = "media",
    owner: Owner = "",
    replicate: Replicate = "",
    history: HistoryTime = "",
    history_max: HistoryMax = "",
    quota: Quota = "",
    case_sensitive: Annotated[
        bool, typer.Option("--case-sensitive", help="A.mov beside a.mov; a Mac cannot hold both.")
    ] = False,
    locked: Locked = None,
    no_history: NoHistory = None,
    role: Role = None,
    from_directory: Annotated[str, typer.Option("--from", metavar="DIR", help="Take these files in.")] = "",
    move: Annotated[bool, typer.Option("--move", help="With --from: adopt them instead of copying.")] = False,
    as_json: AsJsonLines = False,
) -> int:
    """Make a volume, on all nodes at once."""
    if move and not from_directory:
        raise UsageError("--move goes with --from", cure="tbshare volume create --help")
    options = options_of(replicate, history, history_max, quota, locked, no_history)
    if case_sensitive:
        options["case"] = "sensitive"
    params = volume.VolumeCreateParams(
        name=volume_name(name),
        mode=mode,
        owner=owner,
        options=options,
        roles=roles_of(role),
        source=os.fsencode(source(from_directory)) if from_directory else b"",
        move=move,
    )
    watch = TransferWatch(as_json=as_json)
    try:
        with connect(context) as client, watch:
            made = client.volume_create(params, watch.event)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; what is taken in stays", cure="the same command again: it goes on where it was"
        ) from None
    if as_json:
        show.json({"event": "result", "result": made})
        return ExitStatus.DONE
    show.line(
        f"volume {made.volume.name} {'is there already' if made.already else 'is made'} ({made.volume.mode})"
    )
    if made.copied is not None:
        say_copied(made.copied)
    elif made.volume.mode != "models":
        show.line(f"put files into it: tbshare cp -r PATH {made.volume.name}:/")
    return ExitStatus.DONE


def options_of(
    replicate: str,
    history: str,
    history_max: str,
    quota: str,
    locked: str | None,
    no_history: list[str] | None,
) -> dict[str, str]:
    """Return the words for the volume's policy that were given."""
    given = {
        "replicate": replicate,
        "history": ",".join(filter(None, (history, history_max))),
        "quota": quota,
        "locked": locked or "",
        "no-history": no_history_of(words(no_history)),
    }
    return {option: text for option, text in given.items() if text}


def no_history_of(globs: list[str]) -> str:
    """Return the whole list that these globs make: they are added to ours, unless `none` comes first."""
    from tbshare.volumes.policy import NO_HISTORY

    if not globs:
        return ""
    first, *others = globs
    if first.casefold() in ("none", "default"):
        ours = () if first.casefold() == "none" else NO_HISTORY
        return ",".join(dict.fromkeys([*ours, *others])) or "none"
    return ",".join(dict.fromkeys([*NO_HISTORY, *globs]))


def roles_of(values: list[str] | None) -> dict[str, str]:
    """Return node -> role of `NODE=ROLE` texts; UsageError for another form."""
    roles: dict[str, str] = {}
    for word in words(values):
        node, equals, role = word.partition("=")
        if not node or not equals or role not in ("read", "write", "publish", "admin", "none"):
            raise UsageError(
                f"--role {word!r} is not NODE=ROLE with a role read, write, publish, admin or none",
                cure="tbshare node ls",
            )
        roles[node] = role
    return roles


def list_volumes(
    context: typer.Context,
    removed: Annotated[bool, typer.Option("--all", "-a", help="Removed ones too, that can be restored.")] = False,
    as_json: AsJson = False,
) -> int:
    """List the volumes."""
    with connect(context) as client:
        listed = client.volume_list(removed=removed)
    if as_json:
        show.json(listed)
        return ExitStatus.DONE
    rows = [
        [
            line.name,
            line.mode,
            amount.count(line.refs, "ref") if line.mode == "models" else amount.count(line.files, "file"),
            amount.size(line.size_bytes),
            line.options.get("replicate", "-"),
            line.role or "-",
            _remark(line),
        ]
        for line in listed.volumes
    ]
    show.table(["VOLUME", "MODE", "HOLDS", "SIZE", "REPLICATE", "ROLE", ""], rows, right=[3])
    return ExitStatus.DONE


def _remark(line: volume.VolumeLine) -> str:
    parts = ["removed"] if line.removed else []
    if line.conflicts:
        parts.append(amount.count(line.conflicts, "conflict"))
    if line.text and not line.removed:
        parts.append(line.text)
    return "; ".join(parts)


def show_volume(context: typer.Context, name: VolumeArgument, as_json: AsJson = False) -> int:
    """Show what a volume holds, its options, and what each node may do in it."""
    with connect(context) as client:
        shown = client.volume_show(volume_name(name)).volume
    if as_json:
        show.json(shown)
        return ExitStatus.DONE
    _say_volume(shown)
    return ExitStatus.DONE


def _say_volume(line: volume.VolumeLine) -> None:
    what = amount.count(line.refs, "ref") if line.mode == "models" else amount.count(line.files, "file")
    here = f"; {amount.size(line.bytes_here)} here" if line.bytes_here else ""
    show.line(f"{line.name}  {line.mode}, {what}, {amount.size(line.size_bytes)}{here}")
    if remark := _remark(line):
        show.line(remark)
    if line.owner:
        show.line(f"written by {line.owner}")
    if line.snapshots:
        show.line(f"{amount.count(line.snapshots, 'snapshot')}; tbshare snapshot ls {line.name}")
    if line.options:
        rows = [[option, _written(text)] for option, text in line.options.items() if option != "removed"]
        show.table(["OPTION", ""], rows)
    if line.roles:
        rows = [[role.node, role.role, "" if role.own else "as in the cluster"] for role in line.roles]
        show.table(["NODE", "ROLE", ""], rows)


def _written(text: str) -> str:
    """Return an option's value as people write it: bytes with their unit."""
    return ",".join(
        amount.size(int(word)) if word.isdigit() and len(word) > 3 else word for word in text.split(",")
    )


def set_volume(  # noqa: PLR0913, PLR0917  (typer makes an option of each)
    context: typer.Context,
    name: VolumeArgument,
    owner: Owner = "",
    replicate: Replicate = "",
    history: HistoryTime = "",
    history_max: HistoryMax = "",
    quota: Quota = "",
    locked: Locked = None,
    no_history: NoHistory = None,
    role: Role = None,
    as_json: AsJson = False,
) -> int:
    """Change the options of a volume, everywhere; what is not named stays."""
    params = volume.VolumeSetParams(
        name=volume_name(name),
        owner=owner,
        options=options_of(replicate, history, history_max, quota, locked, no_history),
        roles=roles_of(role),
    )
    if not (params.owner or params.options or params.roles):
        raise UsageError("nothing to set is named", cure="tbshare volume set --help")
    with connect(context) as client:
        changed = client.volume_set(params).volume
    if as_json:
        show.json(changed)
    else:
        _say_volume(changed)
    return ExitStatus.DONE


def remove(
    context: typer.Context,
    name: VolumeArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> int:
    """Remove a volume with all in it, everywhere. Within the grace time `volume restore` brings it back."""
    name = volume_name(name)
    with connect(context) as client:
        if not yes:
            plan = client.volume_remove(name, yes=False)
            question = f"remove {_removal(plan)} everywhere?"
            if not show.agreed(question, plan.warnings, f"tbshare volume rm {name}"):
                return ExitStatus.FAILED
        gone = client.volume_remove(name, yes=True)
    if as_json:
        show.json(gone)
        return ExitStatus.DONE
    show.line(f"removed {_removal(gone)}")
    show.line(f"for {amount.duration(gone.grace_seconds)} it can be had back: tbshare volume restore {name}")
    return ExitStatus.DONE


def _removal(gone: volume.VolumeRemoved) -> str:
    """Return what goes, in words."""
    line = gone.volume
    what = amount.count(line.refs, "ref") if line.mode == "models" else amount.count(line.files, "file")
    return f"volume {line.name} ({what}, {amount.size(line.size_bytes)})"


def restore(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `volume ls --all` shows it.")],
    as_json: AsJson = False,
) -> int:
    """Bring a removed volume back."""
    with connect(context) as client:
        back = client.volume_restore(volume_name(name)).volume
    if as_json:
        show.json(back)
    else:
        show.line(
            f"volume {back.name} is back: {amount.count(back.files, 'file')}, {amount.size(back.size_bytes)}"
        )
    return ExitStatus.DONE


def snapshot(
    context: typer.Context, name: VolumeArgument, called: SnapshotName = "", as_json: AsJson = False
) -> int:
    """Keep the present state of a volume under a name; its versions stay until the snapshot is removed."""
    with connect(context) as client:
        made = client.snapshot_create(volume_name(name), called).snapshot
    if as_json:
        show.json(made)
    else:
        show.line(f"snapshot {made.name} of {made.volume}; tbshare ls {made.volume}@{made.name}:/")
    return ExitStatus.DONE


def list_snapshots(context: typer.Context, name: VolumeArgument, as_json: AsJson = False) -> int:
    """List the snapshots of a volume."""
    with connect(context) as client:
        found = client.snapshot_list(volume_name(name))
    if as_json:
        show.json(found)
    elif found.snapshots:
        rows = [[line.name, minute(line.when_ns), line.author] for line in found.snapshots]
        show.table(["SNAPSHOT", "WHEN", "BY"], rows)
    else:
        show.aside(f"no snapshots; try: tbshare snapshot create {name}")
    return ExitStatus.DONE


def remove_snapshot(
    context: typer.Context,
    name: VolumeArgument,
    called: Annotated[str, typer.Argument(metavar="NAME", autocompletion=complete_snapshot)],
    as_json: AsJson = False,
) -> int:
    """Forget a snapshot; what only it kept goes as history does."""
    with connect(context) as client:
        gone = client.snapshot_remove(volume_name(name), called).snapshot
    if as_json:
        show.json(gone)
    else:
        show.line(f"snapshot {gone.name} of {gone.volume} is forgotten")
    return ExitStatus.DONE
