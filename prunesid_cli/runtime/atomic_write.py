"""Atomic file replacement: temporary file, fsync, rename."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file as a whole; until then, the earlier file stays as it was.

    Args:
        path: The file to write.
        write: Writes the contents to the path that it is given, a temporary file in the same folder.

    Raises:
        OSError: The file could not be written. The temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        _fsync(temporary)
        umask = os.umask(0)  # the umask can only be read by setting it
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows has no handle of a folder that could be synced
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
