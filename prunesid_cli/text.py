"""Text for people: counts, lists, tables, durations, escapes, and suggestions for mistyped words."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

MAX_LISTED_NAMES = 3
MIN_SIMILARITY = 0.7
"""Share of letters that a suggestion must have in common with the typed word, from 0 to 1."""
SURROGATE_HINT = r"in JSON, write both halves of the character, or the character itself"
STATUS = logging.INFO - 5
"""Level of log records that say what is going on. A terminal shows the last one until there is something else."""
DEBUG_OPTION = "--debug"
"""Stands in the hint of an `UnexpectedError` for the command that was typed, with this option."""
MODEL_OPTION = "-m MODEL"
"""Stands in a hint for the options of the command that was typed which choose the model. `cli/` puts them in."""
INVISIBLE_CHARACTERS = re.compile(
    r"[\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f"
    r"\u2800\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that control a terminal, change the direction of text, cannot be seen, or look like a space. Not the two
joiners U+200C and U+200D, which words and emoji are written with."""
SPACES = "\xa0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f"
"""Those that look like a space. They belong into sentences, but in the name of a file they deceive."""


def plural(count: int, word: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def join_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MAX_LISTED_NAMES
    return ", ".join(names[:MAX_LISTED_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of text: the first column is left-aligned, the others are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return lines


def format_duration(seconds: float) -> str:
    """`3.2s`, `5m 7s`, `2h 40m`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s" if minutes else f"{rest}s"


def format_stages(seconds: Mapping[str, float]) -> str:
    """Stages with their milliseconds, in one line."""
    return "   ".join(f"{name} {spent * 1000:.0f} ms" for name, spent in seconds.items())


def stage_milliseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of stages -> `NAME_ms` of each and `ms` of all, as JSON records have them."""
    spent = {f"{name}_ms": round(value * 1000, 1) for name, value in seconds.items()}
    return spent | {"ms": round(sum(seconds.values()) * 1000, 1)}


def escape_invisible(text: str, keep: str = "") -> str:
    """Invisible characters as `\\x1b` or `\\ufeff`: in a file name or an answer they could deceive the reader.

    Args:
        text: Any text.
        keep: Characters that stay as they are, such as line breaks.
    """

    def escape(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else match[0].encode("unicode_escape").decode()

    return INVISIBLE_CHARACTERS.sub(escape, text)


def command_line(*words: object) -> str:
    """A command of this program as it is typed: `prunesid cache ls 'my cache' --failed`."""
    return shlex.join(["prunesid", *map(str, words)])


def calibrate_command(folder: object) -> str:
    """The command that measures images into a folder."""
    return f"{command_line('compress', 'IMAGES', '--calibrate', '--out', folder)} {MODEL_OPTION}"


def is_encodable(text: str, errors: str = "strict") -> bool:
    """Whether text can be written as UTF-8: JSON, and names and arguments of other bytes, may hold lone surrogates.

    Args:
        text: The text.
        errors: "surrogateescape" allows those that stand for bytes of file names.
    """
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most similar to a mistyped one; None if none is. Case and hyphens do not matter."""
    folded = {_fold(name): name for name in known}
    matches = get_close_matches(_fold(word), folded, 1, MIN_SIMILARITY)
    return folded[matches[0]] if matches else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A hint: the nearest known word, if there is one, and then `otherwise`."""
    match = nearest(word, known)
    return f"did you mean {match}? {otherwise}" if match else otherwise


def _fold(word: str) -> str:
    return word.lower().replace("-", "_")
