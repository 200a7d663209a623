"""Text that a user wrote, in a file or on stdin: UTF-8, perhaps with a byte order mark, lines as on Unix or Windows."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.source import NUL_HINT, NUL_PROBLEM
from prunesid_cli.text import SURROGATE_HINT, is_encodable

T = TypeVar("T")
OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of encodings that are not read. Those of UTF-32 are first: one begins like that of UTF-16."""
UTF_16_TEXT = re.compile(rb"(?:[^\0]\0){2}|(?:\0[^\0]){2}")
"""Two characters of ASCII in UTF-16: every other byte is zero."""
ENCODING_HINT = "write it as UTF-8, in PowerShell with: ... | Out-File -Encoding utf8 FILE"


def check_encoding(start: bytes, name: str) -> None:
    """Check that text is not UTF-16 or UTF-32.

    Args:
        start: Its first bytes, or all of it.
        name: What to call it in a message.

    Raises:
        UsageError: It is.
    """
    encoding = next((encoding for mark, encoding in OTHER_ENCODINGS.items() if start.startswith(mark)), None)
    if encoding is None and b"\0" in start:  # perhaps without a mark
        encoding = "UTF-16" if UTF_16_TEXT.search(start) else "UTF-32" if b"\0\0\0" in start else None
    if encoding:
        raise UsageError(f"{name} is {encoding}, not UTF-8", ENCODING_HINT)


def decode_text(data: bytes, name: str, encoding: str = "utf-8") -> str:
    """Decode text; a byte order mark is left out.

    Args:
        data: The bytes.
        name: What to call the text in a message.
        encoding: Its encoding.

    Raises:
        UsageError: It has another encoding.
    """
    check_encoding(data, name)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        problem = f"{name} is not {encoding.upper()}: {error.reason} at byte {error.start:,}"
        raise UsageError(problem, ENCODING_HINT) from error


def parse_json(line: str, place: str, example: str) -> Any:
    """Parse a line of JSON.

    Args:
        line: The line.
        place: What to call it in a message.
        example: A line that is right.

    Raises:
        UsageError: It is not JSON, or holds a number of thousands of digits.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{place} is not JSON: {error}", f"write {example}") from error
    except ValueError as error:
        raise UsageError(f"{place} holds a number of too many digits", f"write {example}") from error


def check_text(text: str, place: str, what: str) -> None:
    """Check that text from JSON can be written as UTF-8.

    Args:
        text: The text.
        place: Where it is, for messages.
        what: What it is, for messages: "the prompt".

    Raises:
        UsageError: It holds half of a surrogate pair.
    """
    if not is_encodable(text):
        raise UsageError(f"{place}: {what} holds half of a surrogate pair", SURROGATE_HINT)


def check_name(name: str, place: str) -> None:
    """Check that a file could have a name from JSON.

    Raises:
        UsageError: It could not; the message begins with `place`.
    """
    if "\0" in name:
        raise UsageError(f"{place}: {NUL_PROBLEM}: {name}", NUL_HINT)
    if not is_encodable(name, "surrogateescape"):
        raise UsageError(f"{place}: no file can have the name {name!r}", SURROGATE_HINT)


def read_text_file(path: Path, example: str) -> bytes:
    """The bytes of a text file.

    Raises:
        UsageError: It cannot be read. The hint has `example`, a line that is right.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        hint = f"name a text file with lines such as {example}"
        raise UsageError(f"cannot read {path}: {error.strerror}", hint) from error


def parse_lines(
    data: bytes, name: str, parse: Callable[[str, str, int], T], what: str, example: str
) -> tuple[list[T], list[UsageError]]:
    """Parse the lines of a text that are not blank.

    Args:
        data: The text.
        name: Its file, for messages.
        parse: Makes a value of a line, its place for messages, and its number from 1. Raises UsageError.
        what: What a line is, for messages.
        example: A line.

    Returns:
        The values, and the errors of the lines that could not be parsed.

    Raises:
        UsageError: No line can be parsed.
    """
    check_encoding(data, name)
    values, errors = list[T](), list[UsageError]()
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        place = f"{name}, line {number}"
        try:
            if line.strip():
                values.append(parse(decode_text(line, place), place, number))
        except UsageError as error:
            errors.append(error)
        except RecursionError:
            errors.append(UsageError(f"{place} is nested too deeply", f"write {example}"))
    if not values:
        raise errors[0] if errors else UsageError(f"{name} has no {what}", f"write lines such as {example}")
    return values, errors
