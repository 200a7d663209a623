"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside, sync, rename, sync the folder. What was there before stays until the new is whole.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        _sync(beside)
        os.chmod(beside, 0o666 & ~_umask())
        beside.replace(path)
        _sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows has no handle of a folder that could be synced
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """There is no way to read it but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
