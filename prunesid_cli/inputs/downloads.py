"""Copies of containers behind URIs: a tar or Parquet file is downloaded once, and then read from the disk.

The copies are in the user's cache folder, and all processes of a run share them. The oldest are removed when a new one
comes: a run reads container after container. A process that needs a removed one again downloads it again.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from prunesid_cli.inputs.source import FileStatus
from prunesid_cli.runtime.user_folders import cache_folder

MAX_BYTES = 16 << 30
MIN_COPIES = 2
"""The newest copies are kept even if they take more than `MAX_BYTES`."""


def download(uri: str, status: FileStatus, fetch: Callable[[str], object]) -> str:
    """The path of a copy of a file.

    Args:
        uri: The file.
        status: Its version.
        fetch: Writes it to a path.

    Raises:
        OSError: It cannot be read or stored.
    """
    key = hashlib.blake2b(f"{uri}\0{status.size}\0{status.mtime_ns}".encode(), digest_size=16).hexdigest()
    folder = cache_folder() / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{key}{os.path.splitext(uri)[1]}"
    if not _touch(copy):
        with FileLock(folder / f"{key}.lock"):
            if not _touch(copy):  # another process may have been faster
                part = folder / f"{key}.part"
                try:
                    fetch(str(part))
                    if part.stat().st_size != status.size:
                        raise OSError(errno.EIO, "it changed, or was cut short, while it was downloaded")
                    os.replace(part, copy)
                finally:
                    part.unlink(missing_ok=True)
                _remove_oldest(folder)
    return str(copy)


def _touch(copy: Path) -> bool:
    """Note that a copy is used. Whether it is there."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _remove_oldest(folder: Path) -> None:
    files = list[tuple[float, int, Path]]()
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:  # another process removed it
            continue
        if path.suffix not in (".lock", ".part"):
            files.append((status.st_mtime, status.st_size, path))
    num_bytes = 0
    for number, (_, size, path) in enumerate(sorted(files, reverse=True)):
        num_bytes += size
        if num_bytes > MAX_BYTES and number >= MIN_COPIES:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
