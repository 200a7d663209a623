"""The lock that lets only one process write to a cache at a time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.cache_errors import NO_FILE_ERRORS, write_error
from prunesid_cli.tokencache.cache_file import open_file
from prunesid_cli.tokencache.format import CALIBRATION, FAILURES, is_cache_folder

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".prunesid.lock"
PARTIAL_FILE_GLOBS = (".prunesid-*.part", "..prunesid-*.part", f".{FAILURES}.*.part", f".{CALIBRATION}.*.part")
"""Files of a cache that were not written to their end."""


def acquire_lock(folder: Path) -> tuple[BaseFileLock, CacheError | None]:
    """Make the folder, lock it for writing, and delete the partial files of an interrupted run.

    Call it before a model is loaded, so that an unwritable folder is found early.

    Returns:
        The lock, and the reason why the folder cannot be written if it holds a cache already.

    Raises:
        CacheError: The folder cannot be written and holds no cache, or another run is writing to it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            open_file(folder / LOCK, "r+b").close()  # FileLock empties what it opens
        lock.acquire(timeout=0)
        for pattern in PARTIAL_FILE_GLOBS:
            for path in folder.glob(pattern):
                path.unlink()
        probe = folder / f".prunesid-probe.{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except Timeout as error:
        raise CacheError(f"another run is writing to {folder}", "wait for it, or name another --out") from error
    except OSError as error:
        unwritable = CacheError(f"cannot write to {folder}: {error.strerror}", "name another --out")
        if error.errno in NO_FILE_ERRORS:
            unwritable = write_error(Path(error.filename or folder / LOCK), error)
        if is_cache_folder(folder):
            return lock, unwritable
        raise unwritable from error
    return lock, None
