"""Files that a user names for output. A file that holds anything else than such output is never changed.

A path to stdout or to a device (`/dev/stdout`, `/dev/null`) is a stream: it is written to, but neither read nor
replaced.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from prunesid_cli.errors import PruneSIDError, UsageError
from prunesid_cli.runtime.atomic_write import write_atomically

STREAM_FOLDERS = ("/dev/", "/proc/")
HEADER_BYTES = 1024
"""Number of bytes at the start of a file from which its kind is detected."""


def is_stream(path: Path) -> bool:
    """Whether a path leads to stdout, to another open descriptor that is no regular file, or to a device."""
    try:
        status = path.stat()
    except OSError:
        return False
    is_special = not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode)
    return str(path).startswith(STREAM_FOLDERS) and (is_special or os.path.samestat(status, os.fstat(1)))


def is_stdout(path: Path) -> bool:
    """Whether a path is a stream that leads to stdout."""
    return is_stream(path) and os.path.samestat(path.stat(), os.fstat(1))


def open_stream(path: Path) -> int:
    """Open a stream for writing. Stdout is duplicated: a socket cannot be opened by its name.

    Returns:
        The descriptor.

    Raises:
        OSError: It cannot be opened.
    """
    return os.dup(1) if is_stdout(path) else os.open(path, os.O_WRONLY)


def check_output(path: Path, option: str, kind: str, is_kind: Callable[[bytes], bool]) -> None:
    """Check, before work begins, that a file may be written. It may replace an empty file, or one of its kind.

    Args:
        path: The file.
        option: The option that names it, for messages.
        kind: What the file will hold, for messages: "a picture".
        is_kind: Whether the first `HEADER_BYTES` of a file are those of such a file.

    Raises:
        UsageError: It may not be written.
    """
    if is_stream(path):
        return
    folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        hint = f"make it with: mkdir -p {shlex.quote(str(folder))}"
        raise UsageError(f"{option} {path}: no such folder: {folder}", hint)
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option} {path}: no permission to write to {folder}", f"name another {option}")
    try:
        if not path.exists():
            return
        header = b""
        if path.is_file():
            with path.open("rb") as file:
                header = file.read(HEADER_BYTES)
        if not path.is_file() or (header and not is_kind(header)):
            hint = f"name another {option}, or move the file away"
            raise UsageError(f"{option} {path} exists and is not {kind}", hint)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}", f"name another {option}") from error


def replace_output(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file as a whole; until then, the earlier file stays as it was. A link stays a link.

    Args:
        path: The file; see `check_output`.
        write: Writes the contents to the file that it is given.

    Raises:
        BrokenPipeError: It is a stream whose reader has closed it.
        PruneSIDError: The file cannot be written.
    """
    try:
        if is_stream(path):
            buffer = BytesIO()  # `write` may need to seek
            write(buffer)
            with open(open_stream(path), "wb") as stream:
                stream.write(buffer.getvalue())
        else:
            write_atomically(Path(os.path.realpath(path)), write)
    except BrokenPipeError:
        raise
    except OSError as error:
        problem = f"cannot write {path}: {error.strerror or error}"
        raise PruneSIDError(problem, "free some space, or choose another place") from error
