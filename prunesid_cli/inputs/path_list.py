"""Lists of paths, as they come on stdin."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.source import LOCAL
from prunesid_cli.inputs.text_file import check_encoding

CHUNK_BYTES = 1 << 16
LIST = "the list on stdin"


def read_list(stream: BinaryIO, null_separated: bool = False) -> Iterator[str]:
    """Read the paths in a stream. Each one is given as soon as it was read.

    Args:
        stream: A binary stream; it is read past its buffer.
        null_separated: Whether NUL separates the paths, or the end of a line.

    Raises:
        UsageError: The paths are separated the other way, or are not UTF-8 but UTF-16.
    """
    separator, other = (b"\0", b"\n") if null_separated else (b"\n", b"\0")
    # Past the buffer, if there is one: a thread that waits inside it for a pipe would keep the process from ending.
    source: BinaryIO | io.RawIOBase = getattr(stream, "raw", stream)
    read = getattr(source, "read1", source.read)  # `read` of a buffer would wait for a whole chunk from a pipe
    rest, is_first, is_one_name = b"", True, True
    while chunk := read(CHUNK_BYTES):
        *names, rest = (rest + chunk).split(separator)
        is_one_name = is_one_name and not names
        if is_one_name and len(rest) > CHUNK_BYTES:  # checked now, or the whole list would be read first
            _check_separator(rest, other)
        for name in names:
            yield from _read_name(name, is_first, null_separated)
            is_first = False
    if is_one_name:
        _check_separator(rest, other)
    yield from _read_name(rest, is_first, null_separated)


def _read_name(name: bytes, is_first: bool, null_separated: bool) -> Iterator[str]:
    """The path that a line means, if it means one.

    A line may end in a carriage return or in blanks, and the first one may begin with a byte order mark. These are left
    out, unless a file has that very name.
    """
    plain = name if null_separated else name.rstrip()
    if is_first:
        check_encoding(name, LIST)
        plain = plain.removeprefix(codecs.BOM_UTF8)
    path = os.fsdecode(plain)
    if plain != name:
        candidates = [os.fsdecode(name), os.fsdecode(name.removesuffix(b"\r")), path]
        path = next((path for path in candidates if LOCAL.exists(path, follow_links=False)), path)
    if path:
        yield path


def _check_separator(name: bytes, other: bytes) -> None:
    """Raise UsageError if the only name so far is a list with the other separator."""
    if other == b"\0":
        check_encoding(name, LIST)
    if other in name.rstrip(other) and not LOCAL.exists(os.fsdecode(name), follow_links=False):
        separator, hint = ("NUL", "add -0") if other == b"\0" else ("line", "leave out -0")
        raise UsageError(f"{LIST} is separated by {separator}", hint)
