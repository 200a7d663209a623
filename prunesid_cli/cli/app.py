"""The command line: what commands there are, and how every failure ends."""

from __future__ import annotations

import shlex
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
from prunesid_cli.cli.commands.show import show
from prunesid_cli.cli.config import DEFAULTS, default_map, unknown_keys
from prunesid_cli.cli.terminal import OutputClosed, end_quietly, mend_streams, printer
from prunesid_cli.cli.usage_errors import explained
from prunesid_cli.errors import ExitCode, PruneSIDError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Answer questions about many images with a vision-language model, from the few visual tokens that matter.",
    epilog="What is not typed is looked up in the environment (PRUNESID_MODEL, PRUNESID_KEEP, ...), then in "
    '~/.config/prunesid/config.toml, or under $XDG_CONFIG_HOME (model = "llava-1.5-7b", keep = "64").',
)
app.command()(ask)
app.command()(compress)
app.command()(answer)
app.command()(evaluate)
app.command()(show)
app.command()(bench)
app.add_typer(cache.app, name="cache")
app.add_typer(models.app, name="models")


def _version(wanted: bool) -> None:
    if wanted:
        printer.result(f"prunesid {__version__}")
        raise typer.Exit


@app.callback()
def everywhere(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Answer questions about many images with a vision-language model, from the few visual tokens that matter."""
    if context.invoked_subcommand in DEFAULTS:
        commands = [getattr(context.command, "commands")[name] for name in DEFAULTS]  # noqa: B009
        options = {one.name for command in commands for one in command.params if one.param_type_name == "option"}
        for problem in unknown_keys(options):
            printer.warning(problem)


def _terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and leave with its exit code; no traceback without --debug."""
    mend_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _run()
    except KeyboardInterrupt:  # once more, while the last lines were written
        code = ExitCode.INTERRUPTED
    sys.exit(code)


def _run() -> int:
    try:
        return _command()
    except SystemExit as ended:  # how rich and typer end where nobody reads the help any more
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        end_quietly()
        return ExitCode.OK


def _command() -> int:
    printer.quiet, printer.verbose, printer.debug, printer.resumable = False, False, "--debug" in sys.argv, False
    try:
        result = app(standalone_mode=False, default_map=default_map())
        if result == ExitCode.INTERRUPTED:  # typer turns KeyboardInterrupt into this code
            raise KeyboardInterrupt
        return result if isinstance(result, int) else ExitCode.OK
    except PruneSIDError as error:
        printer.error(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        printer.warning("interrupted")
        if printer.resumable:
            printer.usage(f"go on with: {shlex.join(['prunesid', *sys.argv[1:]])}")
        return ExitCode.INTERRUPTED
    except OutputClosed:
        end_quietly()
        return ExitCode.OK
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError" and hasattr(error, "show"):
            error.show()
            return ExitCode.USAGE
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of the parser
            printer.error(explained(error, _asked()))
            return ExitCode.USAGE
        bug = PruneSIDError(f"{type(error).__name__}: {error}", "this is a bug: run it with --debug and report it")
        bug.__cause__ = error
        printer.error(bug)
        return ExitCode.FAILURE


def _asked() -> str:
    """The command that was typed, as far as it is one."""
    words = ["prunesid"]
    command: Any = typer.main.get_command(app)
    for word in sys.argv[1:]:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        words.append(word)
    return " ".join(words)
