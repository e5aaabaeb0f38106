"""One rank: a process that maps a model, answers one prompt, and ends. `python -m tbshare.inference.rank`.

It reads one line of JSON (a `Job`) from standard input and writes lines of JSON to standard output: `ready`, then
`text` as it comes, then `done`; or `error` with exit status 1. Nothing else reaches standard output, whatever the
libraries print. It ends when told to (SIGTERM, SIGINT), and when whoever started it goes away: the starter keeps
standard input open for as long as it wants the answer.
"""

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from tbshare.errors import ModelRefused, TbshareError, UsageError
from tbshare.inference.check import check

if TYPE_CHECKING:
    from tbshare.inference.extension import Extension

ERROR_LETTERS_MAX = 500
JOB_BYTES_MAX = 16 * 1024 * 1024  # a prompt of millions of tokens; no model takes more
INSTALL = "pip install 'tbshare[run]'"

# Read by libraries when they are imported: nothing is asked of the network.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rank is asked to do: `model` is a directory; temperature 0 is greedy."""

    model: str
    prompt: str
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = 256
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] | None = None
    chat: bool = True
    system: str | None = None


class _Events:
    """The lines of JSON that go out: a descriptor of its own, since libraries print to descriptor 1."""

    def __init__(self) -> None:
        self.descriptor = os.dup(1)
        os.dup2(2, 1)

    def write(self, event: str, **fields: object) -> None:
        line = _line(event, **fields).encode()
        while line:
            line = line[os.write(self.descriptor, line) :]


def _line(event: str, **fields: object) -> str:
    return msgspec.json.encode({"event": event, **fields}).decode() + "\n"


def _read_job() -> Job:
    line = bytearray()
    while b"\n" not in line:
        part = os.read(0, 65536)
        if not part:
            raise UsageError("no job came: one line of JSON on standard input")
        line += part
        if len(line) > JOB_BYTES_MAX:
            raise UsageError(f"the job has over {JOB_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(line.split(b"\n", 1)[0], type=Job)
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"the job cannot be read: {error}") from error


def _end_with_starter() -> None:
    """End the process when standard input ends: nobody is left to read the answer."""
    while os.read(0, 65536):
        pass
    os._exit(1)  # the main thread may be deep inside MLX; there is nothing to tidy up


def _announce_crashes(extension: "Extension", descriptor: int) -> None:
    """Prepare the error line for the deaths that Python cannot catch."""
    if extension.module is None:
        return
    for number, message, cure in (
        (signal.SIGBUS, "the weights can no longer be read: a file shrank or the disk failed", "tbshare verify"),
        (signal.SIGSEGV, "MLX crashed (SIGSEGV)", "tbshare status"),
        (signal.SIGABRT, "MLX gave up (SIGABRT)", "tbshare status"),
        (signal.SIGFPE, "MLX crashed (SIGFPE)", "tbshare status"),
        (signal.SIGILL, "MLX uses instructions this processor does not have (SIGILL)", "tbshare status"),
    ):
        line = _line("error", message=message, cure=cure)
        extension.module.on_fatal_signal(int(number), descriptor, line)


def _anonymous_bytes() -> int | None:
    """Return this process's anonymous memory in use, where the system tells (Linux)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None


def _run(job: Job, events: _Events) -> None:
    directory = Path(job.model)
    facts = check(directory)
    os.environ.update(ENVIRONMENT)
    if sys.platform.startswith("linux"):
        os.environ["MLX_DISABLE_COMPILE"] = "1"  # no slower here, and no compiler and no shared files in /tmp
    try:
        from tbshare.inference import extension, generation
    except ImportError as error:
        raise ModelRefused(f"a model is run by MLX, which is not installed ({error})", cure=INSTALL) from error
    found = extension.find()
    _announce_crashes(found, events.descriptor)
    network = generation.load_network(directory, found)
    tokenizer = generation.load_tokenizer(directory)
    events.write(
        "ready",
        seconds=round(network.seconds, 4),
        tensors=facts.tensors,
        mapped_bytes=network.mapped_bytes,
        copied_bytes=network.copied_bytes,
        copied_tensors=network.copied_tensors,
        loaded_bytes=network.loaded_bytes,
        note=network.note,
    )
    tokens = generation.prompt_tokens(
        tokenizer, job.prompt, system=job.system or "", chat=job.chat, context_tokens=network.context_tokens
    )
    step = None
    for step in generation.generate(
        network, tokenizer, tokens, max_tokens=job.max_tokens, temperature=job.temperature, seed=job.seed
    ):
        if step.text:
            events.write("text", text=step.text)
    events.write(
        "done",
        prompt_tokens=len(tokens),
        tokens=step.tokens if step else 0,
        tokens_per_second=round(step.tokens_per_second, 2) if step else 0.0,
        finish="length" if step and step.tokens >= job.max_tokens else "stop",
        anonymous_bytes=_anonymous_bytes(),
    )


def main() -> int:
    """Run one job; the exit status is 0 when it is done and 1 after an `error` event."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # at once, even inside MLX, and without a traceback
    events = _Events()
    try:
        try:
            job = _read_job()
            threading.Thread(target=_end_with_starter, name="starter", daemon=True).start()
            _run(job, events)
        except TbshareError as error:
            events.write("error", message=str(error), cure=error.cure)
            return 1
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - the last seam: whatever MLX raises is one line
            traceback.print_exc(file=sys.stderr)
            words = " ".join(str(error).split())[:ERROR_LETTERS_MAX]
            message = f"the run failed: {type(error).__name__}: {words or 'no reason given'}"
            events.write("error", message=message, cure="tbshare status")
            return 1
    except BrokenPipeError:
        return 1  # nobody reads the answer any more
    return 0


if __name__ == "__main__":
    sys.exit(main())
