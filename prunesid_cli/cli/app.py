"""The command line: its commands, and how every failure ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Annotated, Any

import typer

from prunesid_cli import __version__
from prunesid_cli.cli.commands import cache, models
from prunesid_cli.cli.commands.answer import answer
from prunesid_cli.cli.commands.ask import ask
from prunesid_cli.cli.commands.bench import bench
from prunesid_cli.cli.commands.compress import compress
from prunesid_cli.cli.commands.evaluate import evaluate
from prunesid_cli.cli.commands.report import report
from prunesid_cli.cli.commands.show import show
from prunesid_cli.cli.config import IGNORED_PARAMETERS, default_map, unknown_keys
from prunesid_cli.cli.help import PlainCommand, PlainGroup
from prunesid_cli.cli.terminal import (
    OutputClosed,
    connect_logging,
    discard_stdout,
    prepare_streams,
    printer,
    typed_command,
)
from prunesid_cli.cli.usage_errors import format_parser_error
from prunesid_cli.errors import ExitCode, PruneSIDError, UnexpectedError
from prunesid_cli.text import DEBUG_OPTION

FOLDER_VARIABLES = ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
"""Variables that count as unset if they are empty."""

app = typer.Typer(
    cls=PlainGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Options can also be set in the environment (PRUNESID_MODEL, PRUNESID_KEEP, ...) and in a file "
    '(model = "llava-1.5-7b", keep = "64"): on Linux ~/.config/prunesid/config.toml, or under $XDG_CONFIG_HOME.',
)
for command in (ask, compress, answer, evaluate, show, report, bench):
    app.command(cls=PlainCommand)(command)
app.add_typer(cache.app, name="cache")
app.add_typer(models.app, name="models")


@app.command("help", cls=PlainCommand)
def show_help(
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]", help="A command: cache ls.")] = None,
) -> None:
    """Show the help of a command, as its option --help does."""
    app([*(words or []), "--help"], standalone_mode=False)


def _print_version(value: bool) -> None:
    if value:
        printer.result(f"prunesid {__version__}")
        raise typer.Exit


@app.callback()
def check_config(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("-V", "--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Answer questions about many images with a vision-language model, from the few visual tokens that matter."""
    if context.invoked_subcommand in IGNORED_PARAMETERS:
        commands = [getattr(context.command, "commands")[name] for name in IGNORED_PARAMETERS]  # noqa: B009
        options = {param.name for one in commands for param in one.params if param.param_type_name == "option"}
        for problem in unknown_keys(options):
            printer.warning(problem)


def main() -> None:
    """Runs the command line, and exits with its code."""
    prepare_streams()
    signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        code = run()
    except KeyboardInterrupt:  # a second one, while the last lines were printed
        code = ExitCode.INTERRUPTED
    sys.exit(code)


def _raise_interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def run() -> int:
    """Runs the command in `sys.argv`. Prints errors; a traceback only with --debug.

    Returns:
        The exit code.
    """
    for name in FOLDER_VARIABLES:
        if os.environ.get(name) == "":  # else files would be written to / or to the current folder
            del os.environ[name]
    printer.reset(debug="--debug" in sys.argv)
    connect_logging()
    try:
        return _run_command()
    except PruneSIDError as error:
        printer.error(error)
        return error.exit_code
    except OutputClosed:
        discard_stdout()
        return ExitCode.OK
    except SystemExit as error:  # how typer ends if the reader of the help is gone
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        discard_stdout()
        return ExitCode.OK


def _run_command() -> int:
    try:
        result = app(standalone_mode=False, default_map=default_map())
        if result == ExitCode.INTERRUPTED:  # typer turns KeyboardInterrupt into this code
            raise KeyboardInterrupt
        return result if isinstance(result, int) else ExitCode.OK
    except (PruneSIDError, OutputClosed):
        raise
    except (KeyboardInterrupt, typer.Abort):
        printer.warning("interrupted")
        if printer.resumable:
            printer.requested(f"continue with: {typed_command()}")
        return ExitCode.INTERRUPTED
    except OSError as error:  # of stdout, or of a file for which no room has a better explanation
        reason = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            problem = f"cannot write {error.filename or 'the result'}: {reason}"
            raise PruneSIDError(problem, "free some space") from error
        if error.errno == errno.EMFILE:
            raise PruneSIDError(
                "too many open files", "allow more with: ulimit -n 1024; or name fewer --workers"
            ) from error
        problem = f"{error.filename}: {reason}" if error.filename else reason
        raise UnexpectedError(problem, f"check the disk; see more with: {DEBUG_OPTION}") from error
    except MemoryError as error:
        raise PruneSIDError("not enough memory", "close other programs, or try a smaller --batch-size") from error
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            printer.result(str(error.format_message()))  # type: ignore[attr-defined]
            return ExitCode.USAGE
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of the parser
            raise format_parser_error(error, _command_name()) from error
        problem = f"{type(error).__name__}: {error}"
        raise UnexpectedError(problem, f"this is a bug: report it with the output of: {DEBUG_OPTION}") from error


def _command_name() -> str:
    """The command that was typed, as far as it exists."""
    words = ["prunesid"]
    command: Any = typer.main.get_command(app)
    for word in sys.argv[1:]:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        words.append(word)
    return " ".join(words)
