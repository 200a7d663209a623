"""Turns errors of the command-line parser into ours: where the value came from, what is wrong, what to type."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

from prunesid_cli.cli.arguments import value_origin
from prunesid_cli.errors import UsageError


def format_parser_error(error: Any, command: str) -> UsageError:
    """Converts a usage error of click.

    Args:
        error: The error, which has `format_message`.
        command: The command that was typed, as far as it exists: "prunesid cache ls".
    """
    parameter = getattr(error, "param", None)
    problem = str(error.format_message())
    if parameter is not None and error.message:
        name = value_origin(error.ctx, parameter.name) or max(parameter.opts, key=len)
        # typer validates by pydantic, whose messages speak of inputs and of Python exceptions.
        message = str(error.message).removeprefix("Value error, ").replace("Input should be", "must be")
        problem = f"{name}: {message.removesuffix('.')}"
    return UsageError(problem, _hint(error, command) or f"see: {command} --help")


def _hint(error: Any, command: str) -> str | None:
    option = getattr(error, "option_name", None)
    if option and type(error).__name__ == "NoSuchOption":
        file = next((word for word in sys.argv[1:] if word.startswith(option) and os.path.exists(word)), None)
        return file and f"a file whose name begins with -: {shlex.quote(os.path.join(os.curdir, file))}"
    if command == "prunesid answer" and "extra argument" in error.format_message():
        return 'put several prompts into a file, one {"prompt": ...} a line: --prompts prompts.jsonl'
    return None
