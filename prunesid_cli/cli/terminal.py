"""The only module that writes to the terminal: results to stdout, everything else to stderr.

Code below `cli/` does not import it. It logs through `logging`; `PrinterHandler` prints those records.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from prunesid_cli.errors import PruneSIDError, UnexpectedError, UsageError
from prunesid_cli.text import DEBUG_OPTION, MODEL_OPTION, SPACES, STATUS, command_line, escape_invisible

if TYPE_CHECKING:
    from prunesid_cli.cli.progress import ProgressBar

UNDECODABLE_BYTES = re.compile(r"[\udc80-\udcff]")
"""Bytes of file names that are not valid text, as Python represents them (surrogateescape)."""
OTHER_SURROGATES = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
"""Halves of characters, which JSON can hold and UTF-8 cannot."""


CLEAR_LINE = "\r\x1b[K"


class OutputClosed(Exception):
    """The reader of stdout has closed it. Not an OSError, which typer would turn into a failure."""


class Printer:
    """Prints results, notes, warnings and errors.

    Attributes:
        quiet: Print only warnings and errors on stderr.
        verbose: Print details, too.
        debug: Print the traceback of an error.
        resumable: Whether the command, run again, continues after an interruption.
        model_options: The options that were typed which choose the model.
        log: A file that gets all messages, those of `verbose` included.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self, debug: bool = False) -> None:
        """Sets everything to its default, before a command line is parsed."""
        self.quiet, self.verbose, self.debug, self.resumable = False, False, debug, False
        self.model_options: list[str] = []
        self.has_status, self.last_hint = False, ""
        self.log: IO[str] | None = None

    def open_log(self, path: Path) -> None:
        """Appends all messages to a file from now on.

        Raises:
            UsageError: The file cannot be written.
        """
        try:
            self.log = path.open("a", encoding="utf-8", errors="surrogateescape", buffering=1)
        except OSError as error:
            raise UsageError(f"cannot write to {path}: {error.strerror}", "name another --log") from error
        self._log(command_line(*sys.argv[1:]))

    def _log(self, text: str) -> None:
        """Writes a message into the log, if there is one. A log that cannot be written stops nothing."""
        if self.log:
            with suppress(OSError):
                self.log.write(
                    f"{datetime.now().astimezone().isoformat(timespec='seconds')} {escape_invisible(text)}\n"
                )

    def result(self, text: str, end: str = "\n", is_styled: bool = False) -> None:
        """Prints a result and flushes. On a terminal, invisible characters are escaped, but not white space.

        Args:
            text: The result. Undecodable file names in it reach a pipe as the bytes that they are.
            end: What follows it.
            is_styled: Whether its escape sequences are our own. It must hold no text from files or models.
        """
        self.check_stdout()
        self.clear_status()
        if stdout_is_terminal() and not is_styled:
            text = escape_invisible(text, keep="\n\t" + SPACES)
        if UNDECODABLE_BYTES.search(text) and not sys.stdout.isatty():
            text = OTHER_SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
            with _stdout_errors():
                sys.stdout.flush()
                sys.stdout.buffer.write(os.fsencode(text + end))
                sys.stdout.buffer.flush()
            return
        with _stdout_errors():
            print(printable(text, sys.stdout), end=end, flush=True)

    def check_stdout(self) -> None:
        """Raises `PruneSIDError` if stdout is closed. Called before work whose result could not be printed."""
        if sys.stdout is None:
            raise PruneSIDError("stdout is closed, there is nowhere to write a result", "leave out >&-")

    def record(self, value: dict[str, Any]) -> None:
        """Prints one JSON object in one line."""
        self.result(json.dumps(value))

    def note(self, text: str) -> None:
        """Information, unless --quiet."""
        if not self.quiet:
            self._print_to_stderr(text)
        else:
            self._log(text)

    def requested(self, text: str) -> None:
        """Information that an option asked for, even with --quiet."""
        self._print_to_stderr(text)

    def detail(self, text: str) -> None:
        """Information with --verbose only."""
        if self.verbose:
            self.note(text)
        else:
            self._log(text)

    def warning(self, text: str) -> None:
        self._print_to_stderr(f"warning: {text}")

    def error(self, error: PruneSIDError) -> None:
        """Prints what is wrong and what to do about it; with --debug, the traceback first."""
        if self.debug:
            lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            print(printable(escape_invisible(lines, keep="\n"), sys.stderr), file=sys.stderr, end="")
        self._print_to_stderr(f"error: {error.problem}")
        hint = error.hint
        if isinstance(error, UnexpectedError) and not self.debug:
            hint = hint.replace(DEBUG_OPTION, typed_command(DEBUG_OPTION))
        if hint and hint != self.last_hint:  # once for many errors of one kind
            self._print_to_stderr(f"hint: {hint}")
        self.last_hint = hint

    def _print_to_stderr(self, text: str, end: str = "\n", is_status: bool = False) -> None:
        model = f" {shlex.join(self.model_options)}" if self.model_options else ""
        text = text.replace(f" {MODEL_OPTION}", model)
        self.clear_status()
        if text and not is_status:
            self._log(text)
        with suppress(OSError):  # stderr is full or its reader is gone: there is no other place to say it
            print(printable(escape_invisible(text), sys.stderr), end=end, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, description: str, total: int | None, prints_results: bool) -> Iterator[ProgressBar]:
        """A progress bar on stderr if that is a terminal; else one that draws nothing.

        Args:
            description: What is being done.
            total: Number of steps, if it is known.
            prints_results: Whether results are printed meanwhile. On a terminal they show the progress themselves.
        """
        from prunesid_cli.cli.progress import ProgressBar, new_bar

        self.clear_status()
        if self.quiet or (prints_results and stdout_is_terminal()):
            yield ProgressBar(description, total)
        elif not sys.stderr.isatty():
            yield ProgressBar(description, total, log=self.note)
        else:
            bar = ProgressBar(description, total)
            with new_bar(bar) as bar.progress:
                yield bar

    def status(self, text: str) -> None:
        """Shows on a terminal what is going on, until there is something else to show."""
        if sys.stderr.isatty() and not self.quiet:
            self._print_to_stderr(text, end="", is_status=True)
            self.has_status = True

    def clear_status(self) -> None:
        """Removes what `status` shows."""
        if self.has_status:
            self.has_status = False
            with suppress(OSError):
                print(CLEAR_LINE, file=sys.stderr, end="", flush=True)


printer = Printer()


def typed_command(*options: str, moved_to_end: str | None = None) -> str:
    """The command as it was typed, with all its options: for hints that repeat it.

    Args:
        *options: Further options.
        moved_to_end: An argument that belongs to the end.
    """
    words = sys.argv[1:]
    if moved_to_end is not None:
        words.remove(moved_to_end)
        words.append(moved_to_end)
    end = words.index("--") if "--" in words else len(words)
    return command_line(*words[:end], *options, *words[end:])


class PrinterHandler(logging.Handler):
    """Prints log records of the package: warnings, notes (INFO), what is going on (STATUS), and details (DEBUG)."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            printer.warning(record.getMessage())
        elif record.levelno >= logging.INFO:
            printer.note(record.getMessage())
        elif record.levelno >= STATUS:
            printer.status(record.getMessage())
        else:
            printer.detail(record.getMessage())


def connect_logging() -> None:
    """Prints the package's log records. --quiet and --verbose change the level."""
    logger = logging.getLogger("prunesid_cli")
    logger.propagate = False
    logger.handlers = [PrinterHandler()]
    logger.setLevel(STATUS)


@contextmanager
def _stdout_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosed from error
    except OSError as error:
        raise PruneSIDError(f"cannot write the result: {error.strerror}", "free some space") from error


def printable(text: str, stream: Any) -> str:
    """Escapes what a stream's encoding cannot represent: file names may hold any byte."""
    encoding = stream.encoding or "utf-8"
    text = UNDECODABLE_BYTES.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def stdout_is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def prepare_streams() -> None:
    """Opens the null device for standard streams that are closed, and separates stderr from what C libraries write.

    Otherwise a file opened later would get the number of such a stream, and what is written to that stream. Text for a
    closed stderr is dropped; for stdout see `Printer.check_stdout`.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    else:
        # `captured_stderr` redirects the descriptor while an image is decoded. Messages go to a copy of it.
        # It has no buffer, whose last flush would fail if stderr is full.
        copy: Any = open(os.dup(2), "wb", 0)  # noqa: SIM115
        encoding, errors = sys.stderr.encoding, sys.stderr.errors
        sys.stderr = TextIOWrapper(copy, encoding, errors, line_buffering=True, write_through=True)


def discard_stdout() -> None:
    """Points stdout at the null device once its reader is gone, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
