"""One writer at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.format import CALIBRATION, FAILURES, is_cache_folder

if TYPE_CHECKING:
    from filelock import BaseFileLock

LEFT = (".prunesid-*.part", "..prunesid-*.part", f".{FAILURES}.*.part", f".{CALIBRATION}.*.part")
"""Half-written files of ours."""


def acquire_lock(folder: Path) -> tuple[BaseFileLock, CacheError | None]:
    """Make the folder, let nobody else write to it, and sweep what an interrupted run left half written. With why it
    cannot be written, where it is a cache.

    Raises:
        CacheError: it cannot be written, or another run is writing to it. Found out before a model is loaded.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".prunesid.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        for left in (one for pattern in LEFT for one in folder.glob(pattern)):
            left.unlink()
        probe = folder / f".prunesid-probe.{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except Timeout as error:
        raise CacheError(f"another run is writing to {folder}", "wait for it, or name another --out") from error
    except OSError as error:
        unwritable = CacheError(f"cannot write to {folder}: {error.strerror}", hint="name another --out")
        if is_cache_folder(folder):
            return lock, unwritable
        raise unwritable from error
    return lock, None
