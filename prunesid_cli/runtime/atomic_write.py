"""Atomic file replacement: temporary file, fsync, rename."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file as a whole; until then, the earlier file stays as it was.

    Args:
        path: The file to write. If it is a link, the link is replaced, and not what it leads to.
        write: Writes the contents to the file that it is given, a temporary one in the same folder.

    Raises:
        OSError: The file could not be written. The temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)  # of a killed process that had the same number
    try:
        with temporary.open("xb") as file:  # a new file: a link in its place is an error
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name != "nt":  # Windows has no handle of a folder that could be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
