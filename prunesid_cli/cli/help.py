"""Plain help pages: usage, description, arguments, options by panel. They start fast and fit 80 columns."""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any

from typer.core import TyperCommand, TyperGroup

from prunesid_cli.cli.terminal import printer

COMMON, MODEL, PRUNING, CLIPS, ANSWERING, OUTPUT, CLUSTER, ADVANCED = (
    "Options", "Model and device", "Pruning", "Clips", "Answering", "Output", "Several machines", "Rarely used",
)  # fmt: skip
PANELS = (COMMON, MODEL, PRUNING, CLIPS, ANSWERING, OUTPUT, CLUSTER, ADVANCED)
"""Panels of options, in the order of the help page."""
MAX_OPTION_COLUMN = 26
"""Characters of the column with the options' names; longer names have a line of their own."""


class PlainCommand(TyperCommand):
    """A command with a plain help page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _write_help(self, ctx, formatter)


class PlainGroup(TyperGroup):
    """A group of commands with a plain help page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _write_help(self, ctx, formatter)


def _write_help(command: Any, context: Any, formatter: Any) -> None:
    printer.check_stdout()
    arguments = [_names(one) for one in command.params if one.param_type_name == "argument"]
    words = ["[OPTIONS]", *arguments, *(["COMMAND"] if getattr(command, "commands", None) else [])]
    formatter.write_usage(context.command_path, " ".join(words))
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(" ".join(paragraph.split()))
    sections = defaultdict[str, list[tuple[str, str]]](list)
    for parameter in command.get_params(context):
        if not getattr(parameter, "hidden", False):
            is_argument = parameter.param_type_name == "argument"
            panel = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or COMMON
            sections[panel].append((_names(parameter), _description(parameter)))
    for name, subcommand in getattr(command, "commands", {}).items():
        sections["Commands"].append((name, subcommand.get_short_help_str(limit=200)))
    # --help and the options that typer adds come last in their panel.
    for panel in ("Arguments", "Commands", *PANELS):
        if rows := sections.get(panel):
            with formatter.section(panel):
                formatter.write_dl(rows, col_max=MAX_OPTION_COLUMN)
    if command.epilog:
        formatter.write_paragraph()
        formatter.write_text(command.epilog)


def _names(parameter: Any) -> str:
    """`-k, --keep KEEP`, `--dynamic / --fixed`, `PATH...`, `[PROMPT]`."""
    if parameter.param_type_name == "argument":
        name = str(parameter.metavar or parameter.name.upper())
        return name if parameter.required or name.startswith("[") else f"[{name}]"
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.secondary_opts:
        return f"{names} / {', '.join(parameter.secondary_opts)}"
    is_switch = getattr(parameter, "is_flag", False) or getattr(parameter, "count", False)
    return names if is_switch else f"{names} {parameter.metavar or max(parameter.opts, key=len).lstrip('-').upper()}"


def _description(parameter: Any) -> str:
    """The help text, and the default where it is not simply nothing."""
    text, shown = parameter.help or "", getattr(parameter, "show_default", True)
    if isinstance(shown, str):
        return f"{text} [default: {shown}]"
    default = getattr(parameter.default, "value", parameter.default)
    has_default = shown and default is not None and not callable(default) and not isinstance(default, bool)
    return f"{text} [default: {default}]" if has_default and default not in ("", ()) else text
