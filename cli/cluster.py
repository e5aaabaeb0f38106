"""The cluster: pair, node ls, node rename, status, drain, undrain."""

import time
from typing import Annotated

import typer

from tbshare.cli import amount, show
from tbshare.cli.complete import complete_node
from tbshare.cli.examples import examples
from tbshare.cli.options import AsJson, AsJsonLines
from tbshare.cli.session import connect
from tbshare.cli.watch import TransferWatch
from tbshare.errors import ExitStatus, Interrupted
from tbshare.wire import report, volume

ID_SHOWN = 8  # hex digits of a node's key


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        "pair",
        epilog=examples("pair                         (on a node of the cluster: shows a code)")
        + "\n"
        + "\n".join(
            (
                "  tbshare pair 7-apple-tree            (on the new node)",
                "  tbshare pair 7-apple-tree@10.0.0.1   (where it is not found by itself)",
            )
        ),
    )(pair)
    app.command("status", epilog=examples("status", "status --json"))(status)
    app.command("drain", epilog=examples("drain", "drain --no-wait", "drain && tbshare down"))(drain)
    app.command("undrain", epilog=examples("undrain"))(undrain)
    node = typer.Typer(help="The nodes of the cluster.", rich_markup_mode=None)
    node.command("ls", epilog=examples("node ls", "node ls --json"))(node_list)
    node.command("rename", epilog=examples("node rename studio-2 attic"))(node_rename)
    app.add_typer(node, name="node")


def pair(
    context: typer.Context,
    code: Annotated[str, typer.Argument(metavar="[CODE[@ADDRESS]]", help="As the other node shows it.")] = "",
    as_json: AsJsonLines = False,
) -> int:
    """Let a new node join the cluster: one code, once, for two minutes."""

    def heard(event: report.AnyEvent) -> None:
        match event:
            case _ if as_json:
                show.json(event)
            case report.Code():
                _say_code(event)
            case report.TryFailed():
                tries = amount.count(event.tries_left, "try").replace("trys", "tries")
                where = f" from {event.address}" if event.address else ""
                show.aside(f"a wrong code was typed{where}; {tries} left")
            case report.Noted() | report.Warned():
                show.aside(event.text)
            case _:
                pass

    try:
        with connect(context) as client:
            if code:
                secret, _, address = code.partition("@")
                paired = client.pair_join(secret.strip(), address.strip(), heard)
            else:
                paired = client.pair_open(heard)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the code is void", cure="tbshare pair") from None
    if as_json:
        show.json({"event": "result", "result": paired})
        return ExitStatus.DONE
    show.line(f"paired with {paired.name} ({paired.id[:ID_SHOWN]})")
    if paired.nodes:
        show.line(f"the cluster is {', '.join(paired.nodes)}")
    return ExitStatus.DONE


def _say_code(event: report.Code) -> None:
    show.line(f"code: {event.code}")
    show.line(f"on the new node, within {amount.duration(event.expires_seconds)}:")
    show.line(f"  tbshare pair {event.code}")
    if event.addresses:
        show.line("or, where this node is not found by itself:")
        for address in event.addresses:
            show.line(f"  tbshare pair {event.code}@{address}")
    show.flush()


def node_list(context: typer.Context, as_json: AsJson = False) -> int:
    """List the nodes of the cluster."""
    with connect(context) as client:
        listed = client.node_list()
    if as_json:
        show.json(listed)
        return ExitStatus.DONE
    show.table(
        ["NODE", "ID", "STATE", "FREE", "ROUND TRIP", "ADDRESS"], [_node_row(node) for node in listed.nodes]
    )
    return ExitStatus.DONE


def _node_row(node: report.NodeLine) -> list[str]:
    trips = [link.round_trip_seconds for link in node.links if link.round_trip_seconds is not None]
    addresses = [link.address + (" (cable)" if link.direct else "") for link in node.links] or node.addresses
    state = node.state
    if state == "away" and node.seen_seconds is not None:
        state = f"away for {amount.duration(max(0.0, time.time() - node.seen_seconds))}"
    return [
        node.name,
        node.id[:ID_SHOWN],
        state,
        "-" if node.free_bytes is None else amount.size(node.free_bytes),
        f"{min(trips) * 1000:.2f} ms" if trips else "-",
        ", ".join(dict.fromkeys(addresses)) or "-",
    ]


def node_rename(
    context: typer.Context,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name or key prefix.", autocompletion=complete_node)],
    name: Annotated[str, typer.Argument(metavar="NAME")],
    as_json: AsJson = False,
) -> int:
    """Give a node another name, everywhere."""
    with connect(context) as client:
        done = client.node_rename(node, name)
    if as_json:
        show.json(done)
    else:
        show.line(f"{node} is called {name} now")
    return ExitStatus.DONE


def drain(
    context: typer.Context,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it may be unplugged.")] = True,
    as_json: AsJsonLines = False,
) -> int:
    """Bring what is only on this node to others, and say when it may be unplugged. Exit status 3: not yet.

    It is given up when nothing moves for a minute; the node goes on giving away what it can.
    """
    watch = TransferWatch(as_json=as_json)
    try:
        with connect(context) as client, watch:
            drained = client.drain(wait=wait, on_event=watch.event)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; draining goes on in the background, this node is not to be unplugged yet",
            cure="tbshare drain (or `tbshare undrain` to end it)",
        ) from None
    if as_json:
        show.json({"event": "result", "result": drained})
    else:
        _say_drained(drained, waited=wait)
    return ExitStatus.DONE if drained.safe else ExitStatus.PENDING


def _say_drained(drained: volume.DrainReport, *, waited: bool) -> None:
    if drained.safe:
        where = f": all it has is also on {', '.join(drained.holders)}" if drained.holders else ""
        show.line(f"this node may be unplugged{where}")
        return
    left = amount.count(drained.versions_left, "version")
    show.line(f"not yet: {left}, {amount.size(drained.bytes_left)}, only on this node")
    if drained.text:
        show.line(drained.text)
    show.aside("  try: tbshare node ls" if waited else "  try: tbshare drain (it waits)")


def undrain(context: typer.Context, as_json: AsJson = False) -> int:
    """Take part again after a drain."""
    with connect(context) as client:
        done = client.undrain()
    if as_json:
        show.json(done)
    else:
        show.line(done.text or "this node takes part again")
    return ExitStatus.DONE


def status(context: typer.Context, as_json: AsJson = False) -> int:
    """Say what needs attention and how this node is. Exit status 1 when something does."""
    with connect(context) as client:
        state = client.status()
    result = ExitStatus.FAILED if state.attention else ExitStatus.DONE
    if as_json:
        show.json(state)
        return result
    if state.attention:
        show.line("needs attention")
        for item in state.attention:
            show.line(f"  {item.text}" + (f"; try: {item.cure}" if item.cure else ""))
        show.line()
    else:
        show.line("nothing needs attention")
    for line in _status_lines(state):
        show.line(line)
    return result


def _status_lines(state: report.StatusReport) -> list[str]:
    node = state.node
    lines = [
        f"node     {node.name} ({node.id[:ID_SHOWN]}), tbshare {state.version}, process {state.pid}, "
        f"up {amount.duration(state.uptime_seconds)}",
        f"store    {state.store_path}: {amount.size(state.stored_bytes)} in {amount.count(state.refs, 'ref')}; "
        f"{amount.size(state.free_bytes)} free, {amount.size(state.keep_free_bytes)} kept free",
        f"port     {state.port}",
    ]
    if state.reserved_bytes:
        lines.append(f"reserved {amount.size(state.reserved_bytes)} for what is arriving")
    lines += [f"cluster  {other.name} ({other.id[:ID_SHOWN]}) {other.state}" for other in state.nodes]
    if not state.nodes:
        lines.append("cluster  this node alone; try: tbshare pair")
    for mount in state.mounts:
        volumes = ", ".join(mount.volumes) or "every volume"
        lines.append(f"mount    {mount.directory}: {volumes}, {mount.front}, process {mount.pid}")
        lines += [f"         {sentence}" for sentence in mount.lacking]
    if state.processes:
        lines.append(f"busy     {state.processes}; tbshare ps shows them")
    for feature in state.features:
        if not feature.present:
            lines.append(f"missing  {feature.name}" + (f": {feature.text}" if feature.text else ""))
    if not state.survives_reboot:
        lines.append("reboot   it does not come back by itself; run `tbshare up` again then")
    return lines
