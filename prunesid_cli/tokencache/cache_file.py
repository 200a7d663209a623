"""Reading and writing the files of a cache: nothing in a cache leads out of its folder.

A cache may come from a stranger. So its files are opened without following links, only regular files are read, and no
file is changed that has a second name (a hard link) elsewhere. What is read is parsed, checked and built here, with a
ValueError for everything that cannot be right.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

T = TypeVar("T")

OPEN_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Links are refused, and a pipe does not block."""
MAX_CONTAINERS = 4_000_000
"""Most lists and objects in JSON. Two characters of text become an object of 56 bytes or more."""
BUFFER_BYTES = 1 << 20
"""Buffer of a file that is written. Small writes are joined, since Python may switch to another thread at each."""
PARSE_ERRORS = (ValueError, LookupError, TypeError, AttributeError)
"""What is raised while JSON of an unexpected form is parsed, checked and built."""


class UnknownFieldError(ValueError):
    """A record has a field that this version does not know."""


def open_file(path: Path, mode: str = "rb") -> BinaryIO:
    """Open a file of a cache.

    Args:
        path: The file.
        mode: "rb" to read it; "r+b" to change it.

    Raises:
        OSError: There is no such file, it is a link, a folder, a pipe or a device; or, if it is to be changed, it has a
            second name.
    """
    try:
        descriptor = os.open(path, (os.O_RDWR if "+" in mode else os.O_RDONLY) | OPEN_FLAGS)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, and not a file") from error
        raise
    status = os.fstat(descriptor)
    problem = "" if stat.S_ISREG(status.st_mode) else "it is not a regular file"
    if "+" in mode and status.st_nlink > 1:
        problem = "it has a second name (a hard link)"
    if problem:
        os.close(descriptor)
        raise OSError(errno.EINVAL, problem)
    file: Any = open(descriptor, mode)  # noqa: SIM115
    opened: BinaryIO = file
    return opened


def create_file(path: Path) -> BinaryIO:
    """Create an empty file to write and read back. What had its name before is removed, and never written to.

    Raises:
        OSError: It cannot be created.
    """
    path.unlink(missing_ok=True)
    return path.open("x+b", buffering=BUFFER_BYTES)


def read_file(path: Path, max_bytes: int) -> bytes | None:
    """Read a file of a cache as a whole. Returns None if there is no such file.

    Raises:
        OSError: It cannot be read, or has more than `max_bytes`.
    """
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise OSError(errno.EFBIG, f"it has more than {max_bytes:,} bytes")
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_json(text: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is no JSON, holds NaN or infinity, is nested too deeply, or has too many lists and objects.
    """
    characters = text if isinstance(text, str) else text.decode("latin-1")
    if characters.count("[") + characters.count("{") > MAX_CONTAINERS:
        raise ValueError("it has too many lists and objects")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def split_check(text: str) -> tuple[str, bytes]:
    """Split JSON with sorted keys into its first field, `check`, and the JSON without it.

    Returns:
        The checksum, and the text that it is of.

    Raises:
        ValueError: It does not begin with a checksum.
    """
    match = re.match(r'\{"check":"([0-9a-f]{32})",', text)
    if not match:
        raise ValueError("it has no checksum")
    return match[1], b"{" + text[match.end() :].encode()


def build_record(record: Mapping[str, Any], cls: type[T]) -> T:
    """Build a dataclass from a JSON object.

    Args:
        record: Values of its fields. Values that are built already stay as they are.
        cls: The dataclass.

    Raises:
        UnknownFieldError: It has a field that the class does not have.
        ValueError: A field is missing, or a value has another type than its field.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{cls.__name__} is no JSON object")
    unknown = record.keys() - {field.name for field in fields(cls)}  # type: ignore[arg-type]
    if unknown:
        raise UnknownFieldError(f"a field {min(unknown)!r}")
    return msgspec.convert(record, cls)
