"""Lists of paths, as they come on stdin."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.files import FILES
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
    separator = b"\0" if null_separated else b"\n"
    # Past the buffer, if there is one: a thread that waits inside it for a pipe would keep the process from ending.
    source: BinaryIO | io.RawIOBase = getattr(stream, "raw", stream)
    read = getattr(source, "read1", source.read)  # `read` of a buffer would wait for a whole chunk from a pipe
    rest, is_first = b"", True
    while chunk := read(CHUNK_BYTES):
        data = rest + chunk
        if separator in data or len(data) > CHUNK_BYTES:  # before any of its names is given
            _check_list(data, null_separated, is_first)
        *names, rest = data.split(separator)
        for name in names:
            yield from _read_name(name, is_first, null_separated)
            is_first = False
    _check_list(rest, null_separated, is_first)
    yield from _read_name(rest, is_first, null_separated)


def _read_name(name: bytes, is_first: bool, null_separated: bool) -> Iterator[str]:
    """The path that a line means, if it means one.

    A line may end in a carriage return or in blanks, and the first one may begin with a byte order mark. These are left
    out, unless a file has that very name.
    """
    plain = name.removeprefix(codecs.BOM_UTF8) if is_first else name
    path = os.fsdecode(plain) if null_separated else os.fsdecode(plain).rstrip()  # also blanks that are not ASCII
    if os.fsencode(path) != name:
        candidates = [os.fsdecode(name), os.fsdecode(name.removesuffix(b"\r")), path]
        path = next((path for path in candidates if FILES.exists(path, follow_links=False)), path)
    if path:
        yield path


def _check_list(data: bytes, null_separated: bool, is_start: bool) -> None:
    """Raise UsageError if a part of a list is UTF-16, or is separated the other way.

    Args:
        data: The part: some names, or the beginning of one.
        null_separated: Whether NUL should separate the names, or the end of a line.
        is_start: Whether it is the first part.
    """
    if null_separated and not is_start:
        return
    first = os.fsdecode(data.split(b"\0", 1)[0])
    if not null_separated or not FILES.exists(first, follow_links=False):  # names of one byte look like UTF-16
        check_encoding(data if is_start else b"\n" + data, LIST)
    if null_separated and b"\n" in data.rstrip(b"\n") and not (b"\0" in data or FILES.exists(first)):
        raise UsageError(f"{LIST} is separated by line", "leave out -0")
    num_nulls, num_lines = data.count(b"\0"), data.count(b"\n")
    if not null_separated and num_nulls > num_lines and (is_start or num_lines):  # fewer are damage of single names
        raise UsageError(f"{LIST} is separated by NUL", "add -0")
