"""The only module that prints: lines, tables, JSON, errors, progress.

What a command answers goes to stdout; errors, notes and progress go to stderr. Names come from disks and other
machines, so nothing is printed that could steer the terminal.
"""

import contextlib
import io
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Self, TextIO, cast

import msgspec

from tbshare.errors import TbshareError, UsageError
from tbshare.wire.files import Xattr
from tbshare.wire.where import Where

FRAME_SECONDS = 0.1  # between two drawings on a terminal
PLAIN_SECONDS = 2.0  # between two lines where there is no terminal
FALLBACK_CURE = "tbshare status"
_KEPT_IN_PROSE = "\n\t\u200c\u200d"  # a model's text has lines, and joiners inside emoji and Indic words


def printable(text: str) -> str:
    """Return the text on one line, with everything that is no visible character written as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def name(data: bytes) -> str:
    """Return a file's name or path as text to print; bytes that are no UTF-8 stand as hex escapes."""
    return data.decode("utf-8", "backslashreplace")


def line(text: str = "") -> None:
    """Print one line of the answer."""
    _write(sys.stdout, printable(text) + "\n")


def lines(texts: Sequence[str]) -> None:
    """Print lines of the answer, many of them at once."""
    _write(sys.stdout, "".join(printable(text) + "\n" for text in texts))


def prose(text: str) -> None:
    """Print a piece of a model's answer at once, without what could steer the terminal."""
    kept = "".join(letter for letter in text if letter.isprintable() or letter in _KEPT_IN_PROSE)
    _write(sys.stdout, kept)
    _flush(sys.stdout)


def aside(text: str) -> None:
    """Print one line that is not the answer: a note, a warning, a question."""
    _write(sys.stderr, printable(text) + "\n")


def block(text: str) -> None:
    """Print text of our own that has several lines."""
    _write(sys.stdout, text.rstrip("\n") + "\n")


def raw(data: bytes) -> None:
    """Write bytes of a file as they are."""
    stream: TextIO | None = sys.stdout
    if stream is not None:
        with _said(stream):
            stream.buffer.write(data)


def json(value: object) -> None:
    """Print one JSON object on one line, at once: whoever reads a stream waits for it.

    Names and paths are bytes: as text they keep what is not UTF-8 as lone surrogates, from which Python's
    `os.fsencode` makes the bytes again. A place in a volume is one text, the value of an attribute is base64.
    """
    plain = _plain(value)
    try:
        text = msgspec.json.encode(plain).decode()
    except UnicodeEncodeError:
        import json as standard

        text = standard.dumps(plain, separators=(",", ":"))
    _write(sys.stdout, text + "\n")
    _flush(sys.stdout)


def _plain(value: object) -> object:
    """Return the value made of what JSON has."""
    plain: object = value
    match value:
        case bytes():
            plain = value.decode("utf-8", "surrogateescape")
        case Where():
            plain = str(value)
        case Xattr():
            text: object = msgspec.to_builtins(value.value)
            plain = {"name": _plain(value.name), "value": text}
        case msgspec.Struct():
            fields = {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
            tag = value.__struct_config__.tag
            plain = {str(value.__struct_config__.tag_field): tag, **fields} if tag else fields
        case list():
            plain = [_plain(each) for each in cast("list[object]", value)]
        case dict():
            named = cast("dict[str, object]", value)
            plain = {key: _plain(each) for key, each in named.items()}
        case _:
            pass
    return plain


def failure(error: TbshareError) -> None:
    """Print an error: one line, and one line that says what to do."""
    aside(f"error: {error}")
    aside(f"  try: {error.cure or FALLBACK_CURE}")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print columns; those numbered in `right` are flush right."""
    cells = [[printable(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(width(row[column]) for row in cells) for column in range(len(headings))]
    lines: list[str] = []
    for row in cells:
        padded = [
            " " * (widths[column] - width(cell)) + cell
            if column in right
            else cell + " " * (widths[column] - width(cell))
            for column, cell in enumerate(row)
        ]
        lines.append("  ".join(padded).rstrip() + "\n")
    _write(sys.stdout, "".join(lines))  # at once: a directory may have thousands


def ask(question: str) -> bool:
    """Ask on the terminal; anything but yes is no."""
    _write(sys.stderr, printable(question) + " [y/N] ")
    _flush(sys.stderr)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def can_ask() -> bool:
    """Whether somebody is there to answer."""
    streams: tuple[TextIO | None, ...] = (sys.stdin, sys.stderr)  # None where one is closed
    return all(stream is not None and stream.isatty() for stream in streams)


def agreed(question: str, warnings: Sequence[str], command: str) -> bool:
    """Say the warnings, ask, and say when nothing is done; UsageError with the command that does not ask."""
    for warning in warnings:
        aside(f"warning: {warning}")
    if not can_ask():
        raise UsageError(f"not done without a yes: {question}", cure=f"{command} --yes")
    if ask(question):
        return True
    aside("nothing was removed")
    return False


def width(text: str) -> int:
    """Return how many columns the text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns(letter) for letter in text)


def clipped(text: str, columns: int) -> str:
    """Return the text, cut with an ellipsis to at most `columns`."""
    if width(text) <= columns:
        return text
    kept: list[str] = []
    used = 1
    for letter in text:
        used += _columns(letter)
        if used > columns:
            break
        kept.append(letter)
    return "".join(kept) + "…"


class Progress:
    """What goes on, on stderr: redrawn in place on a terminal, else a plain line now and then.

    `update` takes the lines for a terminal and one short line for elsewhere; `changed` prints that one at once.
    """

    def __init__(self, *, silent: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream: TextIO | None = sys.stderr  # None where it is closed
        self._silent = silent
        self._live = (
            not silent
            and self._stream is not None
            and self._stream.isatty()
            and os.environ.get("TERM", "") not in ("", "dumb")
        )
        self._clock = clock
        self._drawn = 0  # lines on the terminal that the next drawing replaces
        self._last_seconds = -PLAIN_SECONDS
        self._last_line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()

    def update(self, live: Callable[[int], list[str]], plain: Callable[[], str], *, changed: bool = False) -> None:
        """Show where it is; `live(columns)` gives the lines for a terminal."""
        now = self._clock()
        if self._silent or (not changed and now - self._last_seconds < self._interval()):
            return
        self._last_seconds = now
        if self._live:
            columns = shutil.get_terminal_size().columns - 1  # the last one would wrap on some terminals
            self._draw([clipped(printable(text), columns) for text in live(columns)])
            return
        text = printable(plain())
        if text != self._last_line:
            self._last_line = text
            _write(self._stream, text + "\n")

    def aside(self, text: str) -> None:
        """Print a line that stays, above what is redrawn."""
        if not self._silent:
            self.clear()
            aside(text)

    def clear(self) -> None:
        """Take what was drawn off the terminal."""
        if self._drawn:
            _write(self._stream, f"\x1b[{self._drawn}A\r\x1b[J")
            _flush(self._stream)
            self._drawn = 0

    def _interval(self) -> float:
        return FRAME_SECONDS if self._live else PLAIN_SECONDS

    def _draw(self, lines: list[str]) -> None:
        """Write the lines over the ones before, in one write so that nothing flickers."""
        up = f"\x1b[{self._drawn}A\r" if self._drawn else ""
        _write(self._stream, up + "".join(f"{text}\x1b[K\n" for text in lines) + "\x1b[J")
        _flush(self._stream)
        self._drawn = len(lines)


def flush() -> None:
    """Write out what is buffered; BrokenPipeError when nobody reads any more."""
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)


def abandon() -> None:
    """Send what is still buffered nowhere: the reader of stdout has gone (`tbshare ls | head -1`)."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _write(stream: TextIO | None, text: str) -> None:
    """Write text; what the stream's encoding has no letters for is escaped. A closed stream takes nothing."""
    if stream is None:
        return
    text_file: object = stream
    if isinstance(text_file, io.TextIOWrapper) and text_file.errors in ("strict", "surrogateescape"):
        text_file.reconfigure(errors="backslashreplace")
    with _said(stream):
        stream.write(text)


def _flush(stream: TextIO | None) -> None:
    if stream is not None:
        with _said(stream):
            stream.flush()


@contextlib.contextmanager
def _said(stream: TextIO) -> Generator[None, None, None]:
    """Turn a full disk behind `tbshare ls > file` into a sentence; BrokenPipeError is for `main`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if stream is not sys.stdout:
            raise
        abandon()
        raise TbshareError(f"the answer cannot be written: {error.strerror or error}", cure="df -h") from error


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
