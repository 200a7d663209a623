"""Reading every byte of a cache, to compare it with what was written. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.calibration import read_calibration
from prunesid_cli.tokencache.format import Item, Shard, checksum
from prunesid_cli.tokencache.reader import Cache, damaged, mixed, read_header, shard_paths


def verify(shard: Shard) -> list[Item]:
    """The items of a shard whose bytes are not those that were written."""
    bad = []
    try:
        with shard.path.open("rb") as file:
            width = (os.fstat(file.fileno()).st_size - shard.data) // max(shard.shape[0], 1)
            for item in shard.items:
                file.seek(shard.data + item.rows[0] * width)
                if checksum(file.read((item.rows[1] - item.rows[0]) * width)) != item.check:
                    bad.append(item)
    except OSError as error:
        raise CacheError(f"cannot read {shard.path}: {error.strerror}", "check it with: ls -l") from error
    return bad


def verify_all(folder: Path) -> tuple[int, list[CacheError]]:
    """Read every byte of a cache: how many items are good, and each fault."""
    good, faults = 0, list[CacheError]()
    first: Shard | None = None
    for path in shard_paths(folder):
        try:
            shard = read_header(path)
            bad = verify(shard)
        except CacheError as error:
            faults.append(error)
            continue
        good += len(shard.items) - len(bad)
        faults += [damaged(item, shard) for item in bad]
        first = first or shard
        if shard.run != first.run:
            faults.append(mixed(path, first.path))
    for read in (Cache(folder, ()).failures, lambda: read_calibration(folder)):
        try:
            read()
        except CacheError as error:
            faults.append(error)
    return good, faults
