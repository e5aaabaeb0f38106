"""A push, pull or wait as it goes on: events in, progress lines and the closing line out."""

from types import TracebackType
from typing import Self

from tbshare.cli import amount, show
from tbshare.errors import Interrupted
from tbshare.wire import files, report, volume

MOVED_LEAST_BYTES = 1_000_000  # below this a speed says how long the talking took, not how fast the lanes are
BAR_COLUMNS = 20
BAR_LEAST_TERMINAL = 90  # on a narrower one the numbers need the room
SOURCES_SHOWN = 3
ENDED = ("durable", "failed", "declined")
_STATES = {"waiting": "waiting", "durable": "done", "away": "away: fetches when it is back"}


class TransferWatch:
    """Takes the events of one transfer. With `as_json` every event is a line of JSON and nothing else is said."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._progress = show.Progress(silent=as_json)
        self._nodes: dict[str, report.NodeProgress] = {}
        self._states: dict[str, str] = {}
        self._whole = False  # a copy's bytes have all been read
        self.id = ""
        self.published: report.Published | None = None
        self.rate_best = 0.0  # bytes per second, from one node to one other, as seen in the events

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.clear()

    def event(self, event: report.AnyEvent) -> None:
        """Show one event."""
        if self._as_json:
            show.json(event)
        match event:
            case report.Started():
                self.id = event.id
            case report.Ingest():
                self._ingest(event)
            case report.Nodes():
                self._transfer(event)
            case report.Checked():
                text = checked_line(event)
                self._progress.update(lambda columns: [text], lambda: text)
            case files.Copying():
                self._copying(event)
            case volume.Draining():
                text = draining_line(event)
                self._progress.update(lambda columns: [text], lambda: text)
            case _:
                self._say(event)

    def interrupted(self, again: str) -> Interrupted:
        """Return what to say after Ctrl-C; `again` is the command that takes the work up again."""
        if self.published is None:
            return Interrupted(
                "interrupted; nothing is published yet, and what was read so far is kept",
                cure=f"{again} (again: it resumes where it was)",
            )
        if not self.id:
            return Interrupted(
                f"interrupted; {self.published.ref} is published and the nodes go on fetching it",
                cure="tbshare ps",
            )
        return Interrupted(
            f"interrupted; {self.published.ref} is published and the nodes go on fetching it in the background",
            cure=f"tbshare wait {self.id} (or `tbshare stop {self.id}` to end it)",
        )

    def _say(self, event: report.AnyEvent) -> None:
        match event:
            case report.Warned():
                self._progress.aside(f"warning: {event.text}")
            case report.Noted():
                self._progress.aside(f"note: {event.text}")
            case report.SpaceLine():
                self._progress.aside(f"{event.node}: {event.text}")
            case report.Published():
                self.published = event
                if not event.already:
                    self._progress.aside(f"{event.ref} is published")
            case _:
                pass

    def _ingest(self, event: report.Ingest) -> None:
        done = event.bytes_total > 0 and event.bytes_done >= event.bytes_total
        text = ingest_line(event)
        self._progress.update(
            lambda columns: [text, *([f"  {event.path}"] if event.path else [])], lambda: text, changed=done
        )

    def _copying(self, event: files.Copying) -> None:
        if not event.bytes_total and not event.bytes_done:
            return  # it has only begun to count
        whole = event.bytes_total > 0 and event.bytes_done >= event.bytes_total
        text = copying_line(event)
        changed, self._whole = whole and not self._whole, whole
        self._progress.update(lambda columns: copying_lines(event, columns), lambda: text, changed=changed)

    def _transfer(self, event: report.Nodes) -> None:
        self._nodes = {node.id: node for node in event.nodes}
        rates = [source.rate for node in event.nodes for source in node.sources]
        self.rate_best = max([self.rate_best, *rates])
        states = {node.id: node.state for node in event.nodes}
        changed, self._states = states != self._states, states
        self._progress.update(
            lambda columns: node_lines(event.nodes, columns), lambda: plain_line(event.nodes), changed=changed
        )


def copying_lines(event: files.Copying, columns: int) -> list[str]:
    """Return the bar of a copy, and the file it is at."""
    text = copying_line(event)
    if columns >= BAR_LEAST_TERMINAL and event.bytes_total:
        text = f"{_bar(event.bytes_done / event.bytes_total)}  {text}"
    return [text, *([f"  {show.name(event.path)}"] if event.path else [])]


def copying_line(event: files.Copying) -> str:
    """Say how far a copy is."""
    if not event.bytes_total:
        return f"copying {amount.size(event.bytes_done)}"
    parts = [f"copying {amount.size(event.bytes_done)} of {amount.size(event.bytes_total)}"]
    if event.files_total > 1:
        parts.append(f"{event.files_done} of {amount.count(event.files_total, 'file')}")
    if event.rate > 0 and event.bytes_done >= MOVED_LEAST_BYTES:
        parts.append(amount.rate(event.rate))
        left = (event.bytes_total - event.bytes_done) / event.rate
        if left >= 1:
            parts.append(f"{amount.duration(left)} left")
    return ", ".join(parts)


def draining_line(event: volume.Draining) -> str:
    """Say what is still only on this node."""
    text = f"{amount.size(event.bytes_left)} in {amount.count(event.versions_left, 'version')} only here"
    if event.entries_left:
        text += f", {event.entries_left} changes of names"
    if event.rate >= MOVED_LEAST_BYTES:  # else it waits, and the time left would be a guess
        text += f", {amount.rate(event.rate)}"
        if event.eta_seconds is not None:
            text += f", {amount.duration(event.eta_seconds)} left"
    return f"{text}; {event.text}" if event.text else text


def _bar(share: float) -> str:
    full = int(BAR_COLUMNS * min(share, 1.0))
    return "█" * full + "░" * (BAR_COLUMNS - full)


def ingest_line(event: report.Ingest) -> str:
    """Say how far the files are taken in."""
    parts = [f"reading {amount.size(event.bytes_done)} of {amount.size(event.bytes_total)}"]
    if event.files_total:
        parts.append(f"{event.files_done} of {amount.count(event.files_total, 'file')}")
    if event.rate > 0:
        parts.append(amount.rate(event.rate))
        left = (event.bytes_total - event.bytes_done) / event.rate
        if left >= 1:
            parts.append(f"{amount.duration(left)} left")
    return ", ".join(parts)


def checked_line(event: report.Checked) -> str:
    """Say how far verify is."""
    text = f"checked {amount.size(event.bytes_done)} of {amount.size(event.bytes_total)}"
    if event.rate > 0:
        text += f", {amount.rate(event.rate)}"
    return text + (f", {event.corrupt} corrupt" if event.corrupt else "")


def node_lines(nodes: list[report.NodeProgress], columns: int) -> list[str]:
    """Return a line per node: how far, how fast, how long, from whom, what was there already."""
    names = max((show.width(node.name) for node in nodes), default=0)
    return [_node_line(node, names, columns) for node in nodes]


def _node_line(node: report.NodeProgress, names: int, columns: int) -> str:
    name = node.name + " " * (names - show.width(node.name))
    parts = [name]
    if columns >= BAR_LEAST_TERMINAL:
        share = node.bytes_present / node.bytes_total if node.bytes_total else float(node.state == "durable")
        parts.append(_bar(share))
    parts.append(f"{amount.percent(node.bytes_present, node.bytes_total):>5}")
    if node.state == "fetching":
        parts.append(f"{amount.size(node.bytes_present)} of {amount.size(node.bytes_total)}")
        parts.append(amount.rate(node.rate))
        if node.eta_seconds is not None:
            parts.append(f"{amount.duration(node.eta_seconds)} left")
        if sources := from_whom(node):
            parts.append(f"from {sources}")
    else:
        parts.append(state_text(node))
    if node.bytes_reused:
        parts.append(f"saved {amount.size(node.bytes_reused)}")
    return "  ".join(parts)


def from_whom(node: report.NodeProgress) -> str:
    """Return the names of those who send, the fastest first."""
    sources = sorted((source for source in node.sources if source.rate > 0), key=lambda source: -source.rate)
    names = [source.name for source in sources[:SOURCES_SHOWN]]
    if len(sources) > SOURCES_SHOWN:
        names.append(f"{len(sources) - SOURCES_SHOWN} more")
    return ", ".join(names)


def state_text(node: report.NodeProgress) -> str:
    """Say the state of a node that is not fetching, with the reason."""
    text = _STATES.get(node.state, node.state)
    return f"{text}: {node.reason}" if node.reason else text


def plain_line(nodes: list[report.NodeProgress]) -> str:
    """Return all nodes on one line, for a log."""
    return "; ".join(_plain_node(node) for node in nodes)


def _plain_node(node: report.NodeProgress) -> str:
    if node.state != "fetching":
        return f"{node.name} {state_text(node)}"
    text = f"{node.name} {amount.percent(node.bytes_present, node.bytes_total)} at {amount.rate(node.rate)}"
    if sources := from_whom(node):
        text += f" from {sources}"
    if node.eta_seconds is not None:
        text += f", {amount.duration(node.eta_seconds)} left"
    return text


def closing_lines(ended: report.PushReport, rate_best: float) -> list[str]:
    """Return what a finished transfer came to.

    The time of sending to one node after another is reckoned from what was measured: all bytes moved, at the best
    rate seen between two nodes (`rate_best`, bytes per second; 0 when unknown). Speed and reckoning are left out
    where most was there already: they would tell of the disks, not of the network.
    """
    if ended.already:
        return [f"already there as {ended.ref}, nothing moved"]
    what = f"{amount.size(ended.bytes)}"
    done = [node for node in ended.nodes if node.state == "durable"]
    if not done:
        return [f"{ended.ref}: {what} in {amount.count(ended.files, 'file')}"]
    moved = sum(node.bytes_moved for node in done)
    reused = sum(node.bytes_reused for node in done)
    text = f"{what} to {amount.count(len(done), 'node')}"
    if ended.seconds_moving > 0:
        text += f" in {amount.duration(ended.seconds_moving)}"
    if moved >= MOVED_LEAST_BYTES and moved >= reused and ended.seconds_moving > 0:
        text += f" at {amount.rate(moved / len(done) / ended.seconds_moving)}" + (" each" if len(done) > 1 else "")
        best = max(ended.rate_best, rate_best)
        if len(done) > 1 and best > 0:
            text += f"; one after another: about {amount.duration(moved / best)}"
    lines = [text]
    if reused:
        there = amount.size(reused / len(done)) + (" on each node" if len(done) > 1 else "")
        lines.append(f"saved by dedup: {there} were there already, {amount.size(moved)} moved")
    return [f"{ended.ref}: {lines[0]}", *lines[1:]]
