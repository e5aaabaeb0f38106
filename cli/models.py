"""Models: push, pull, ls, show, path, rm, pin, unpin, evict. Files of a volume take some of these words too."""

import os
import shlex
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer

from tbshare.cli import amount, hub, show
from tbshare.cli.complete import complete_node, complete_ref, complete_ref_or_where
from tbshare.cli.examples import examples
from tbshare.cli.options import AsJson, AsJsonLines
from tbshare.cli.place import listing_helps, looks_like_path, ref_or_place, source, volume_helps
from tbshare.cli.session import connect
from tbshare.cli.watch import TransferWatch, closing_lines
from tbshare.client import Client
from tbshare.errors import ExitStatus, RefUnknown, UsageError
from tbshare.wire import local, report
from tbshare.wire.where import Where

Ref = Annotated[str, typer.Argument(metavar="REF", help="[VOLUME:]name[@rev]", autocompletion=complete_ref)]
RefOrPlace = Annotated[
    str,
    typer.Argument(
        metavar="REF|VOLUME:/PATH", help="A ref, or a file of a volume.", autocompletion=complete_ref_or_where
    ),
]
To = Annotated[
    list[str] | None,
    typer.Option("--to", metavar="NODES", help="Only these: a,b or repeated.", autocompletion=complete_node),
]
Limit = Annotated[str, typer.Option("--limit", metavar="RATE", help="At most this fast: 100M, 400Mbit.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the nodes.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="With pickles and .py files too.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        "push",
        epilog=examples(
            "push ./llama-70b",
            "push ./llama-70b --name llama-70b --to studio-2,studio-3",
            "push --from-hf-cache mlx-community/SmolLM2-135M",
            "push ./model --exclude '*.bin' --dry-run",
            "push ./model --move          (adopt the files; --move --undo puts them back)",
        ),
    )(push)
    app.command("pull", epilog=examples("pull llama-70b", "pull llama-70b@2 --limit 100M"))(pull)
    app.command("ls", epilog=examples("ls", "ls mlx-community/", "ls --json", "ls -l film:/reels"))(list_refs)
    app.command(
        "show",
        epilog=examples("show llama-70b", "show ./llama-70b", "show llama-70b@1 --json", "show film:/cut.prproj"),
    )(show_ref)
    app.command("path", epilog=examples("path llama-70b", 'mlx_lm.generate --model "$(tbshare path llama-70b)"'))(
        path
    )
    app.command("rm", epilog=examples("rm llama-70b@1", "rm llama-70b@1 --yes", "rm -r film:/reels/old"))(remove)
    app.command("pin", epilog=examples("pin llama-70b", "pin film:/reels"))(pin)
    app.command("unpin", epilog=examples("unpin llama-70b", "unpin film:/reels"))(unpin)
    app.command("evict", epilog=examples("evict llama-70b", "evict film:/reels/day-1"))(evict)


def push(  # noqa: PLR0913, PLR0917  (typer makes an option of each)
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file or directory, or hf://org/name[@rev].")] = "",
    name: Annotated[str, typer.Option("--name", help="The ref's name; else the directory's.")] = "",
    volume: Annotated[str, typer.Option("--volume", help="The volume; else the default one.")] = "",
    to: To = None,
    include: Annotated[list[str] | None, typer.Option("--include", metavar="GLOB", help="Only these.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Not these.")] = None,
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Take what links point to.")] = False,
    move: Annotated[bool, typer.Option("--move", help="Adopt the files instead of copying them.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="With --move: put adopted files back.")] = False,
    from_hf_cache: Annotated[
        str, typer.Option("--from-hf-cache", metavar="ORG/NAME", help="From the cache of Hugging Face.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    detach: Detach = False,
    limit: Limit = "",
    as_json: AsJsonLines = False,
) -> int:
    """Put a model on every node: read once, checked everywhere, resumed when interrupted."""
    if bool(path) == bool(from_hf_cache):
        raise UsageError("push wants a PATH, or --from-hf-cache ORG/NAME", cure="tbshare push --help")
    if undo and not move:
        raise UsageError("--undo goes with --move", cure=f"tbshare push --move --undo {path}")
    if path.startswith(hub.PREFIX):
        path = hub.fetched(path)
    params = local.PushParams(
        path=source(path) if path else "",
        name=name,
        volume=volume,
        to=words(to),
        include=include or [],
        exclude=exclude or [],
        follow_links=follow_links,
        move=move,
        undo=undo,
        dry_run=dry_run,
        detach=detach,
        limit_bytes_per_second=amount.parse_rate(limit) if limit else 0,
        hf_cache=from_hf_cache,
        hf_cache_directory=hf_cache_directory() if from_hf_cache else "",
    )
    watch = TransferWatch(as_json=as_json)
    try:
        with connect(context) as client, watch:
            ended = client.push(params, watch.event)
    except KeyboardInterrupt:
        raise watch.interrupted(f"tbshare push {path or '--from-hf-cache ' + from_hf_cache}") from None
    return finish(ended, watch, params, as_json=as_json)


def pull(
    context: typer.Context, ref: Ref, limit: Limit = "", detach: Detach = False, as_json: AsJsonLines = False
) -> int:
    """Fetch a ref to this node and pin it."""
    limit_bytes = amount.parse_rate(limit) if limit else 0
    params = local.PullParams(ref=ref, limit_bytes_per_second=limit_bytes, detach=detach)
    watch = TransferWatch(as_json=as_json)
    try:
        with connect(context) as client, watch:
            ended = client.pull(params, watch.event)
    except KeyboardInterrupt:
        raise watch.interrupted(f"tbshare pull {ref}") from None
    return finish(ended, watch, params, as_json=as_json)


def finish(
    ended: report.PushReport,
    watch: TransferWatch,
    asked: local.PushParams | local.PullParams | None,
    *,
    as_json: bool,
) -> int:
    """Say how a transfer ended and return the exit status."""
    if as_json:
        show.json({"event": "result", "result": ended})
    else:
        _say_end(ended, watch, asked)
    return ExitStatus.PENDING if ended.failed or (ended.pending and not _detached(asked)) else ExitStatus.DONE


def _detached(asked: local.PushParams | local.PullParams | None) -> bool:
    return asked is not None and asked.detach


def _say_end(
    ended: report.PushReport, watch: TransferWatch, asked: local.PushParams | local.PullParams | None
) -> None:
    if isinstance(asked, local.PushParams) and asked.undo:
        show.line(f"put back {amount.count(ended.files_moved, 'file')}")
        return
    if ended.dry_run:
        files = amount.count(ended.files, "file")
        show.line(f"would push {amount.size(ended.bytes)} in {files} as {ended.ref}; nothing was done")
        return
    if _detached(asked) and not ended.already:
        show.line(f"{ended.ref} goes on in the background; tbshare wait {ended.id} waits for it")
        return
    for text in closing_lines(ended, watch.rate_best):
        show.line(text)
    reasons = {node.name: node.reason for node in ended.nodes}
    for name in ended.failed:
        show.aside(f"failed: {name}" + (f": {reasons[name]}" if reasons.get(name) else ""))
    for name in ended.pending:
        show.aside(f"pending: {name} fetches it when it can")
    if ended.failed:
        show.aside("  try: tbshare status, then the same command again: it resumes")
    elif ended.pending:
        show.aside(f"  try: tbshare wait {ended.id}" if ended.id else "  try: tbshare status")


def list_refs(
    context: typer.Context,
    prefix: Annotated[
        str,
        typer.Argument(
            metavar="[PREFIX|VOLUME:/PATH]",
            help="Only refs that begin so; or what is there in a volume.",
            autocompletion=complete_ref_or_where,
        ),
    ] = "",
    all_revs: Annotated[
        bool, typer.Option("--all", "-a", help="Older revs too; names that begin with a dot.")
    ] = False,
    long: Annotated[bool, typer.Option("--long", "-l", help="Of files: mode, owner, size, time, copies.")] = False,
    as_json: AsJson = False,
) -> int:
    """List the refs of the cluster, or the files of a volume: what, how big, who has it."""
    if isinstance(where := ref_or_place(prefix), Where):
        from tbshare.cli import files

        return files.list_files(context, where, long=long, dotted=all_revs, as_json=as_json)
    with connect(context) as client, volume_helps(client, prefix):
        refs = client.ref_list(prefix, all_revs=all_revs)
        if prefix and not refs.refs and not as_json and _is_volume(client, prefix):
            raise RefUnknown(f"no ref begins with {prefix}")
    if as_json:
        show.json(refs)
    elif refs.refs:
        rows = [
            [
                line.ref,
                amount.size(line.size_bytes),
                here_text(line),
                ", ".join(line.on) or "nobody",
                day(line),
            ]
            for line in refs.refs
        ]
        show.table(["REF", "SIZE", "HERE", "WHOLE ON", "WHEN"], rows, right=[1])
    else:
        show.aside(f"no ref begins with {prefix}" if prefix else "no refs yet; try: tbshare push PATH")
    return ExitStatus.DONE


def _is_volume(client: Client, text: str) -> bool:
    return any(line.name.lower() == text.lower() for line in client.volume_list().volumes)


def show_ref(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="REF|PATH|VOLUME:/PATH",
            help="A ref, a path, or a file of a volume.",
            autocompletion=complete_ref_or_where,
        ),
    ],
    all_files: Annotated[
        bool, typer.Option("--all", "-a", help=f"More than {local.FILES_SHOWN} files too.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Show what a ref or a file of a volume is, where it lies, and who holds how much of it."""
    if isinstance(where := ref_or_place(what), Where):
        from tbshare.cli import files

        return files.show_file(context, where, as_json=as_json)
    files_max = 1 << 40 if all_files else local.FILES_SHOWN
    if looks_like_path(what):
        params = local.ShowParams(path=source(what), files_max=files_max)
    else:
        params = local.ShowParams(ref=what, files_max=files_max)
    with connect(context) as client, volume_helps(client, what):
        shown = client.show(params)
    if as_json:
        show.json(shown)
    else:
        _say_shown(shown, what)
    return ExitStatus.DONE


def _say_shown(shown: report.ShowReport, what: str) -> None:
    line = shown.line
    show.line(f"{line.ref}  {amount.size(line.size_bytes)} in {amount.count(line.files, 'file')}")
    if line.tree:
        show.line(f"tree {line.tree}, by {line.author or 'nobody'}, {day(line)}")
    for label in line.labels:
        show.line(f"label {label}")
    if line.tree:
        show.line(f"here: {here_text(line)}" + (f", at {shown.directory}" if shown.directory else ""))
    else:
        show.line(f"a path; as it would be taken in by: tbshare push {shlex.quote(what)}")
    if shown.tensors:
        show.line(f"{shown.aligned} of {amount.count(shown.tensors, 'tensor')} can be mapped as they lie")
    for warning in shown.warnings:
        show.aside(f"warning: {warning}")
    for holder in shown.holders:
        share = amount.percent(holder.bytes_present, line.size_bytes)
        show.line(f"{holder.name}: {share}" + (", pinned" if holder.pinned else ""))
    if shown.files:
        show.line()
        rows = [
            [file.path, amount.size(file.size_bytes), file.layout or "-", file.object[:8] or "-", file.text]
            for file in shown.files
        ]
        show.table(["FILE", "SIZE", "LAYOUT", "OBJECT", ""], rows, right=[1])
    if shown.files_total > len(shown.files):
        show.line(f"and {amount.count(shown.files_total - len(shown.files), 'more file')}")


def path(context: typer.Context, ref: Ref, allow_code: AllowCode = False, as_json: AsJson = False) -> int:
    """Print a stable, read-only, pinned directory with the ref's files, for any engine."""
    watch = TransferWatch(as_json=as_json)
    with connect(context) as client, watch:
        made = client.path(ref, allow_code=allow_code, on_event=None if as_json else watch.event)
    if as_json:
        show.json(made)
        return ExitStatus.DONE
    if made.left_out:
        names = ", ".join(made.left_out[:5]) + (" …" if len(made.left_out) > 5 else "")
        show.aside(f"note: left out, because they can run code: {names}; --allow-code takes them")
    show.line(made.directory)
    return ExitStatus.DONE


def remove(
    context: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="REF|VOLUME:/PATH",
            help="A ref, or files of volumes.",
            autocompletion=complete_ref_or_where,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", "-R", help="Directories, with all below them.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Remove a ref, or files of a volume, everywhere. Bytes of a ref are freed after the grace time."""
    wheres = [where for text in what if isinstance(where := ref_or_place(text), Where)]
    if len(wheres) == len(what):
        from tbshare.cli import files

        return files.remove_files(context, wheres, recursive=recursive, as_json=as_json)
    if len(what) > 1:
        raise UsageError("rm takes one ref, or files of volumes", cure="tbshare rm --help")
    return _remove_ref(context, what[0], yes=yes, as_json=as_json)


def _remove_ref(context: typer.Context, ref: str, *, yes: bool, as_json: bool) -> int:
    with connect(context) as client, volume_helps(client, ref, f"tbshare volume rm {ref}"):
        if not yes:
            plan = client.remove(ref, yes=False)
            where = ", ".join(plan.nodes) or "no node"
            question = f"remove {plan.ref} ({amount.size(plan.size_bytes)}) everywhere, from {where}?"
            if not show.agreed(question, plan.warnings, f"tbshare rm {ref}"):
                return ExitStatus.FAILED
        gone = client.remove(ref, yes=True)
    if as_json:
        show.json(gone)
        return ExitStatus.DONE
    show.line(f"removed {gone.ref} from {', '.join(gone.nodes) or 'the cluster'}")
    if gone.grace_seconds and gone.bytes_freed:
        wait = amount.duration(gone.grace_seconds)
        show.line(f"{amount.size(gone.bytes_freed)} are freed here in {wait}; tbshare gc --now frees them at once")
    return ExitStatus.DONE


def pin(context: typer.Context, what: RefOrPlace, as_json: AsJson = False) -> int:
    """Keep a ref, or what is at a place in a volume, on this node until it is unpinned."""
    place = ref_or_place(what)
    with connect(context) as client, _helps(client, place):
        kept = client.pin(place)
    return _say_kept(kept, f"{kept.ref} is pinned here", as_json=as_json)


def unpin(context: typer.Context, what: RefOrPlace, as_json: AsJson = False) -> int:
    """Take back a pin; the bytes stay until something else needs the room."""
    place = ref_or_place(what)
    with connect(context) as client, _helps(client, place):
        kept = client.unpin(place)
    return _say_kept(kept, f"{kept.ref} is no longer pinned here", as_json=as_json)


def evict(context: typer.Context, what: RefOrPlace, as_json: AsJson = False) -> int:
    """Free the bytes of a ref, or of what is at a place in a volume, on this node; never the last copy."""
    place = ref_or_place(what)
    with connect(context) as client, _helps(client, place):
        kept = client.evict(place)
    text = f"{kept.ref} is no longer here; freed {amount.size(kept.bytes_freed)}"
    return _say_kept(kept, text, as_json=as_json)


@contextmanager
def _helps(client: Client, what: str | Where, command: str = "") -> Generator[None]:
    with listing_helps(client, what) if isinstance(what, Where) else volume_helps(client, what, command):
        yield


def _say_kept(kept: report.KeepReport, text: str, *, as_json: bool) -> int:
    if as_json:
        show.json(kept)
    else:
        show.line(f"{kept.ref}: {kept.text}" if kept.text and not kept.bytes_freed else text)
    return ExitStatus.DONE


def words(values: list[str] | None) -> list[str]:
    """Return `a,b` and repeated values as one list, each once."""
    split = [word.strip() for value in values or [] for word in value.split(",")]
    return list(dict.fromkeys(word for word in split if word))


def hf_cache_directory() -> str:
    """Return where this user's cache of Hugging Face is, by its own rules."""
    chosen = os.environ.get("HF_HUB_CACHE", "")
    if not chosen:
        cache = os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"
        home = os.environ.get("HF_HOME", "") or os.path.join(cache, "huggingface")
        chosen = os.path.join(home, "hub")
    return os.path.abspath(os.path.expanduser(chosen))


def here_text(line: report.RefLine) -> str:
    """Say what of a ref is on this node."""
    text = {"whole": "whole", "no": "-"}.get(line.here, amount.percent(line.bytes_here, line.size_bytes))
    return f"{text}, pinned" if line.pinned else text


def day(line: report.RefLine) -> str:
    """Return the local date of a ref."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(line.when_seconds))
