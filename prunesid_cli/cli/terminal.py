"""The only printer: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prunesid_cli.errors import PruneSIDError
from prunesid_cli.text import escape_control_characters

if TYPE_CHECKING:
    from rich.progress import Progress


UNDECODED = re.compile(r"[\udc80-\udcff]")
"""Bytes of file names that are no text, as Python has them."""


class OutputClosed(Exception):
    """Whoever read stdout has gone. No OSError, which typer would turn into a failure."""


class Printer:
    """`quiet` leaves warnings and errors alone on stderr, `verbose` adds details, `debug` shows tracebacks.

    `resumable`: run again, the command goes on from where it was interrupted.
    """

    def __init__(self) -> None:
        self.quiet = False
        self.verbose = False
        self.debug = False
        self.resumable = False

    def result(self, text: str, end: str = "\n") -> None:
        """One result, at once: what reads a pipe should not wait. It gets file names as the bytes that they are."""
        self.check()
        if UNDECODED.search(text) and not sys.stdout.isatty():
            self.raw(os.fsencode(text + end))
            return
        with _written():
            print(printable(text, sys.stdout), end=end, flush=True)

    def raw(self, data: bytes) -> None:
        """A result that is no text."""
        self.check()
        with _written():
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def check(self) -> None:
        """Whether there is a stdout at all, before work is done whose result would have nowhere to go.

        Raises:
            PruneSIDError: there is none.
        """
        if sys.stdout is None:
            raise PruneSIDError("stdout is closed, there is nowhere to write a result", "leave out >&-")

    def record(self, value: dict[str, Any]) -> None:
        """One JSON object a line."""
        self.result(json.dumps(value))

    def note(self, text: str) -> None:
        if not self.quiet:
            self._say(text)

    def usage(self, text: str) -> None:
        """What an option of its own asked for, `quiet` or not."""
        self._say(text)

    def detail(self, text: str) -> None:
        if self.verbose:
            self.note(text)

    def warning(self, text: str) -> None:
        self._say(f"warning: {text}")

    def error(self, error: PruneSIDError) -> None:
        if self.debug:
            traceback.print_exception(type(error), error, error.__traceback__)
        self._say(f"error: {error.problem}")
        if error.hint:
            self._say(f"hint: {error.hint}")

    def _say(self, text: str) -> None:
        print(printable(escape_control_characters(text), sys.stderr), file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, what: str, total: int | None, prints: bool) -> Iterator[Progress | None]:
        """A progress bar on a terminal, None elsewhere; `advance_one` moves it.

        `prints`: results are printed meanwhile. On the terminal of the bar they are progress enough.
        """
        if self.quiet or not sys.stderr.isatty() or (prints and stdout_is_terminal()):
            yield None
            return
        from prunesid_cli.cli.progress import new_bar

        with new_bar(what, total) as bar:
            yield bar


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosed from error
    except OSError as error:
        raise PruneSIDError(f"cannot write the result: {error.strerror}", "free some space") from error


def advance_one(bar: Progress | None, has_failed: bool = False) -> None:
    if bar is not None:
        task = bar.tasks[0]
        bar.update(task.id, advance=1, failed=task.fields["failed"] + has_failed)


def expect(bar: Progress | None, total: int) -> None:
    if bar is not None:
        bar.update(bar.tasks[0].id, total=total)


def printable(text: str, stream: Any) -> str:
    """What the stream's encoding cannot show is escaped: file names may hold any byte."""
    encoding = stream.encoding or "utf-8"
    text = UNDECODED.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def stdout_is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def mend_streams() -> None:
    """Fill the places of standard streams that are closed, or files that are opened later get their numbers, and with
    them what is meant for those. What is said to a closed stderr goes nowhere; stdout see `Printer.check`."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def end_quietly() -> None:
    """The reader of stdout is gone: point it at nothing, so that the interpreter's own flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


printer = Printer()
