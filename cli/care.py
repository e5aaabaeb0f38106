"""Care of the store: du, gc, verify."""

from typing import Annotated

import typer

from tbshare.cli import amount, show
from tbshare.cli.complete import complete_ref
from tbshare.cli.examples import examples
from tbshare.cli.options import AsJson, AsJsonLines
from tbshare.cli.session import connect
from tbshare.cli.watch import TransferWatch
from tbshare.errors import ExitStatus, Interrupted
from tbshare.wire import report

BLOCK_ID_SHOWN = 12  # hex digits


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("du", epilog=examples("du", "du --json"))(disk_use)
    app.command("gc", epilog=examples("gc", "gc --now"))(gc)
    app.command("verify", epilog=examples("verify", "verify llama-70b --repair"))(verify)


def disk_use(context: typer.Context, as_json: AsJson = False) -> int:
    """Say what the store takes on disk, and what is truly shared there."""
    with connect(context) as client:
        use = client.du()
    if as_json:
        show.json(use)
        return ExitStatus.DONE
    if use.lines:
        rows = [
            [
                line.ref + (" (pinned)" if line.pinned else ""),
                amount.size(line.logical_bytes),
                amount.size(line.here_bytes),
                amount.size(line.unique_bytes),
            ]
            for line in use.lines
        ]
        show.table(["REF", "SIZE", "HERE", "FREED BY EVICT"], rows, right=[1, 2, 3])
        show.line()
    facts = [
        ("all refs together", use.logical_bytes),
        ("different bytes", use.unique_bytes),
        ("shared on disk", use.shared_bytes),
        ("on disk", use.disk_bytes),
        ("reclaimable", use.reclaimable_bytes),
        ("in quarantine", use.quarantine_bytes),
        ("reserved", use.reserved_bytes),
        ("free", use.free_bytes),
        ("kept free", use.keep_free_bytes),
    ]
    show.table([use.path, ""], [[name, amount.size(number)] for name, number in facts], right=[1])
    return ExitStatus.DONE


def gc(
    context: typer.Context,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the grace time.")] = False,
    as_json: AsJson = False,
) -> int:
    """Free what no ref, pin, lease or run needs any more."""
    with connect(context) as client:
        freed = client.gc(now=now)
    if as_json:
        show.json(freed)
        return ExitStatus.DONE
    show.line(f"freed {amount.size(freed.bytes_freed)} in {amount.count(freed.objects, 'object')}")
    if freed.bytes_waiting:
        show.line(f"{amount.size(freed.bytes_waiting)} wait for their grace time; tbshare gc --now frees them")
    for held in freed.held:
        show.line(f"{amount.size(held.bytes)} held back by {held.by}" + (f": {held.text}" if held.text else ""))
    return ExitStatus.DONE


def verify(
    context: typer.Context,
    ref: Annotated[
        str, typer.Argument(metavar="[REF]", help="Else everything here.", autocompletion=complete_ref)
    ] = "",
    repair: Annotated[bool, typer.Option("--repair", help="Fetch corrupt blocks again.")] = False,
    as_json: AsJsonLines = False,
) -> int:
    """Hash every byte here again. Exit status 1 when something is corrupt and not repaired."""
    watch = TransferWatch(as_json=as_json)
    try:
        with connect(context) as client, watch:
            found = client.verify(ref, repair=repair, on_event=watch.event)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was changed by looking", cure="tbshare verify") from None
    if as_json:
        show.json({"event": "result", "result": found})
    else:
        _say_found(found, ref)
    return ExitStatus.DONE if _is_well(found) else ExitStatus.FAILED


def _is_well(found: report.VerifyReport) -> bool:
    return found.corrupt == found.repaired and all(problem.repaired for problem in found.problems)


def _say_found(found: report.VerifyReport, ref: str) -> None:
    for problem in found.problems:
        fate = "repaired" if problem.repaired else "not repaired"
        block = f", block {problem.block[:BLOCK_ID_SHOWN]}" if problem.block else ""
        show.aside(f"corrupt: {problem.path}{block}: {problem.text}; {fate}")
    took = amount.duration(found.seconds)
    text = f"verified {amount.size(found.bytes)} in {amount.count(found.blocks, 'block')} in {took}"
    if found.corrupt:
        text += f": {found.corrupt} corrupt, {found.quarantined} in quarantine, {found.repaired} repaired"
    elif not found.problems:
        text += ": all as it should be"
    show.line(text)
    if not _is_well(found):
        show.aside(f"  try: tbshare verify {ref + ' ' if ref else ''}--repair")
