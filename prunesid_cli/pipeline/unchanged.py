"""Inputs that need no work, because the cache holds them: recognised without torch, which takes seconds to import."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.inputs.columns import columns_stamp
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.inputs.sharding import Partition
from prunesid_cli.tokencache import Cache, Run, Stamp, open_cache
from prunesid_cli.tokencache.format import LOG_GLOB, MEASUREMENT_LOG
from prunesid_cli.tokencache.journal import ROWS_GLOB
from prunesid_cli.tokencache.lock import PARTIAL_FILE_GLOBS
from prunesid_cli.tokencache.partition_marker import read_partition
from prunesid_cli.types import Columns

CLOCK_GRAIN_NS = 2 * 10**9
"""A file that changed this recently may change again without getting another modification time."""


def read_stamp(source: str, columns: Columns = ()) -> Stamp | None:
    """Size and modification time of a file, which tell whether it changed.

    Args:
        source: Its path.
        columns: What a table says of it. The time is another one if they are others.

    Returns:
        None if the file changed within `CLOCK_GRAIN_NS`, or cannot be looked at: reading it will say why.
    """
    try:
        status = FILES.stat(source)
    except (OSError, ValueError):
        return None
    is_settled = status.mtime_ns < time.time_ns() - CLOCK_GRAIN_NS
    time_ns = status.mtime_ns ^ columns_stamp(columns) if columns else status.mtime_ns
    return Stamp(status.size, time_ns) if is_settled else None


def open_finished_cache(folder: Path, run: Run, sampling: str, partition: Partition) -> Cache | None:
    """Open a cache that an earlier run with these settings finished.

    Args:
        folder: The cache.
        run: The settings. An empty `dtype` stands for any.
        sampling: How the frames of clips are chosen.
        partition: The inputs of this machine.

    Returns:
        The cache; None if there is none, or if something is left to do or to say whatever the inputs are: it was
        interrupted or damaged, inputs of it failed, or it was made with other settings.
    """
    try:
        cache = open_cache(folder, with_stamps=True)
        is_finished = cache.is_saved and not (cache.missing.numbers or cache.failures())
    except CacheError:
        return None
    made_with = cache.run and replace(cache.run, dtype=cache.run.dtype if run.dtype else "")
    is_same = made_with == run and cache.index.sampling in ("", sampling)
    patterns = (MEASUREMENT_LOG, LOG_GLOB, ROWS_GLOB, *PARTIAL_FILE_GLOBS)
    has_leftovers = any(any(folder.glob(pattern)) for pattern in patterns)
    is_of_partition = partition.count > 1 or read_partition(folder) is None
    return cache if is_finished and is_same and is_of_partition and not has_leftovers else None


def count_unchanged(
    cache: Cache, files: Iterable[ListedFile], on_input: Callable[[], object] = lambda: None
) -> int | None:
    """Count the inputs of a run.

    Args:
        cache: The cache, opened with stamps.
        files: The inputs.
        on_input: Called for each unchanged input.

    Returns:
        Their number, if the cache holds all of them and no file has changed; else None, at the first other one.
    """
    count = 0
    for file in files:
        entry = None if file.error else cache.index.find(file.source)
        if entry is None or entry.stamp != read_stamp(file.source, file.columns):
            return None
        count += 1
        on_input()
    return count
