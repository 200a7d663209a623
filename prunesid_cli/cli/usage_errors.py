"""What the parser refuses, in the words of our own errors: where the value came from, what is wrong, what to type."""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import Any

from prunesid_cli.cli.arguments import origin
from prunesid_cli.errors import UsageError

WORDS = (
    (r"^Value error, ", ""),
    (r"^Input should be (a )?valid integer.*", "must be a whole number"),
    (r"^Input should be (a )?valid number.*", "must be a number"),
    (r"^Input should be (a )?valid boolean.*", "must be true or false"),
    (r"^Input should be (a )?valid string.*", "must be text, in quotation marks"),
    (r"^Input should be ", "must be "),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
    (r"\.$", ""),
)
"""Of the parser -> ours."""


def explained(error: Any, command: str) -> UsageError:
    """The error of the parser, whichever typer brings; command: that was typed, as far as it is one."""
    return UsageError(_problem(error), _hint(error, command) or f"see: {command} --help")


def _problem(error: Any) -> str:
    option = getattr(error, "param", None)
    if option is None or not error.message:
        return str(error.format_message())
    text = str(error.message)
    for theirs, ours in WORDS:
        text = re.sub(theirs, ours, text)
    return f"{origin(error.ctx, option.name) or max(option.opts, key=len)}: {text}"


def _hint(error: Any, command: str) -> str | None:
    """Where more is known than that something is wrong."""
    option = getattr(error, "option_name", None)
    if option and type(error).__name__ == "NoSuchOption":
        file = next((word for word in sys.argv[1:] if word.startswith(option) and os.path.exists(word)), None)
        return file and f"a file whose name begins with -: {shlex.quote(os.path.join(os.curdir, file))}"
    if command == "prunesid answer" and "extra argument" in error.format_message():
        return 'put several prompts into a file, one {"prompt": ...} a line: --prompts prompts.jsonl'
    return None
