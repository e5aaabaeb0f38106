"""Running: run a model; ps, stop and wait for what goes on."""

import sys
import time
from typing import Annotated, TextIO

import typer

from tbshare.cli import amount, show
from tbshare.cli.complete import complete_id
from tbshare.cli.examples import examples
from tbshare.cli.models import AllowCode, Ref, finish
from tbshare.cli.options import AsJson, AsJsonLines
from tbshare.cli.session import connect
from tbshare.cli.watch import TransferWatch
from tbshare.errors import ExitStatus, InputRefused, Interrupted, ModelRefused, UsageError
from tbshare.wire import local, report

PROMPT_BYTES_MAX = 1024 * 1024

Id = Annotated[str, typer.Argument(metavar="ID", help="As `tbshare ps` shows it.", autocompletion=complete_id)]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        "run",
        epilog=examples(
            'run llama-70b "What is the capital of France?"',
            "run llama-70b < question.txt",
            'run llama-70b --raw --max-tokens 20 "Once upon a time"',
        ),
    )(run)
    app.command("ps", epilog=examples("ps", "ps --json"))(processes)
    app.command("stop", epilog=examples("stop 3f2a"))(stop)
    app.command("wait", epilog=examples("wait 3f2a"))(wait)


def run(  # noqa: PLR0913, PLR0917  (typer makes an option of each)
    context: typer.Context,
    ref: Ref,
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="Else read from stdin.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, max=1 << 20)] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, max=100.0)] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=(1 << 63) - 1)] = 0,
    system: Annotated[str, typer.Option("--system", help="The system prompt.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Without the model's chat template.")] = False,
    allow_code: AllowCode = False,
    as_json: AsJsonLines = False,
) -> int:
    """Answer a prompt with a model, from mapped weights."""
    params = local.RunParams(
        ref=ref,
        prompt=prompt or _prompt_from_stdin(ref),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        system=system,
        raw=raw,
        allow_code=allow_code,
    )
    try:
        with connect(context) as client:
            ended = client.run(params, show.json if as_json else _say)
    except KeyboardInterrupt:
        if not as_json:
            show.line()
        raise Interrupted("interrupted; the run is stopped", cure=f"tbshare run {ref}") from None
    except ModelRefused as error:
        error.cure = error.cure or f"tbshare show {ref}"
        raise
    if as_json:
        show.json({"event": "result", "result": ended})
        return ExitStatus.DONE
    show.line()
    show.flush()  # where stdout is a pipe and stderr is not, the answer still comes before the count
    text = amount.count(ended.tokens, "token")
    if ended.tokens > 1:
        text += f" at {ended.rate:.1f} a second"
    show.aside(text + (f"; cut at --max-tokens {max_tokens}" if ended.finish == "length" else ""))
    return ExitStatus.DONE


def _say(event: report.AnyEvent) -> None:
    match event:
        case report.Ready():
            show.aside(ready_line(event))
        case report.Text():
            show.prose(event.text)
        case report.Warned():
            show.aside(f"warning: {event.text}")
        case report.Noted():
            show.aside(f"note: {event.text}")
        case _:
            pass


def _prompt_from_stdin(ref: str) -> str:
    """Return what is piped in; UsageError when nothing is."""
    stdin: TextIO | None = sys.stdin  # None where it is closed
    if stdin is None or stdin.isatty():
        raise UsageError("run wants a prompt", cure=f'tbshare run {ref} "What is the capital of France?"')
    data = stdin.buffer.read(PROMPT_BYTES_MAX + 1)
    if len(data) > PROMPT_BYTES_MAX:
        raise InputRefused(f"the prompt is longer than {amount.size(PROMPT_BYTES_MAX)}", cure="tbshare run --help")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputRefused("the prompt on stdin is not UTF-8 text", cure="tbshare run --help") from error
    if not text.strip():
        raise UsageError("the prompt is empty", cure=f'tbshare run {ref} "What is the capital of France?"')
    return text


def ready_line(event: report.Ready) -> str:
    """Say how the weights got there."""
    text = f"ready in {event.seconds:.2f} s: {amount.size(event.mapped_bytes)} mapped"
    if event.copied_tensors or event.copied_bytes:
        text += f", {amount.count(event.copied_tensors, 'tensor')} copied ({amount.size(event.copied_bytes)})"
    return text + (f"; {event.note}" if event.note else "")


def processes(context: typer.Context, as_json: AsJson = False) -> int:
    """List transfers and runs that go on here, with their ids."""
    with connect(context) as client:
        listed = client.processes()
    if as_json:
        show.json(listed)
    elif listed.processes:
        show.table(["ID", "KIND", "WHAT", "STATE", "DONE", "SINCE"], [_row(line) for line in listed.processes])
    else:
        show.aside("nothing goes on")
    return ExitStatus.DONE


def _row(line: report.ProcessLine) -> list[str]:
    done = "-"
    if line.bytes_total:
        done = amount.percent(line.bytes_done, line.bytes_total)
        if line.rate:
            done += f" at {amount.rate(line.rate)}"
        if line.eta_seconds is not None:
            done += f", {amount.duration(line.eta_seconds)} left"
    since = time.strftime("%H:%M:%S", time.localtime(line.started_seconds))
    return [line.id, line.kind, line.what, line.state, done, since]


def stop(context: typer.Context, identifier: Id, as_json: AsJson = False) -> int:
    """Stop a transfer or a run. What has arrived is kept: the same push or pull resumes."""
    with connect(context) as client:
        done = client.stop(identifier)
    if as_json:
        show.json(done)
    else:
        show.line(done.text or f"stopped {identifier}")
    return ExitStatus.DONE


def wait(context: typer.Context, identifier: Id, as_json: AsJsonLines = False) -> int:
    """Wait for a transfer or a run to end, with its progress and its exit status."""
    watch = TransferWatch(as_json=as_json)
    try:
        with connect(context) as client, watch:
            ended = client.wait(identifier, watch.event)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; it goes on in the background", cure=f"tbshare wait {identifier}") from None
    if ended.push is not None and ended.state in ("done", "pending"):
        return finish(ended.push, watch, None, as_json=as_json)
    if as_json:
        show.json({"event": "result", "result": ended})
    else:
        took = f" after {amount.duration(ended.seconds)}" if ended.seconds else ""
        show.line(f"{ended.kind} of {ended.what}: {ended.state}{took}" + (f": {ended.text}" if ended.text else ""))
    if ended.state == "stopped":
        raise Interrupted(f"{identifier} was stopped", cure="tbshare ps")
    return {"done": ExitStatus.DONE, "pending": ExitStatus.PENDING}.get(ended.state, ExitStatus.FAILED)
