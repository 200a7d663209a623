"""Reading every byte of a cache, to compare it with what was written. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from prunesid_cli.errors import CacheError
from prunesid_cli.text import plural
from prunesid_cli.tokencache.calibration import read_calibration
from prunesid_cli.tokencache.format import INDEX, Item, Shard, require_cache, checksum, shard_name, shard_paths
from prunesid_cli.tokencache.index import Index, index_with_shards, missing_of
from prunesid_cli.tokencache.index_file import load_index, read_index
from prunesid_cli.tokencache.index_table import KEPT, ShardPosition
from prunesid_cli.tokencache.reader import read_failures
from prunesid_cli.tokencache.shard import again, damaged, mixed, read_header, stored_rows


def verify_shard(shard: Shard) -> list[Item]:
    """The items of a shard whose bytes are not those that were written."""
    return [item for item, parts in stored_rows(shard, shard.items) if checksum(*parts) != item.check]


def verify_cache(folder: Path) -> tuple[int, list[CacheError]]:
    """Read every byte of a cache, and look for what is not there: how many items are good, and each fault."""
    require_cache(folder)
    saved, paths, faults, good = read_index(folder), shard_paths(folder), list[CacheError](), Counter[str]()
    found = index_with_shards(Index(), _sound(paths, good, faults))
    all_read = len(found.shards) == len(paths)
    lost = missing_of(folder, saved or Index(), found.shards)
    if lost.numbers:  # with how many items, nobody knows where there are shards that cannot be read
        faults.append((lost if all_read else replace(lost, items=0)).error)
    faults += _doubled(folder, found.again)
    if (folder / INDEX).exists() and all_read and not lost.numbers and not (saved and _fits(folder, found)):
        faults.append(CacheError(f"{folder / INDEX} is damaged, or not of these shards", f"delete {folder / INDEX}"))
    for read in (read_failures, read_calibration):
        try:
            read(folder)
        except CacheError as error:
            faults.append(error)
    return good["items"] - len(found.again), faults


def _sound(paths: Iterable[Path], good: Counter[str], faults: list[CacheError]) -> Iterator[Shard]:
    """The shards that can be read, of one run; counts their good items, and adds what is wrong."""
    first: Shard | None = None
    for path in paths:
        try:
            shard = read_header(path)
            bad = verify_shard(shard)
            first = first or shard
            if shard.run != first.run:
                raise mixed(path, first.path)
        except CacheError as error:
            faults.append(error)
            continue
        good["items"] += len(shard.items) - len(bad)
        faults += [damaged(item, shard) for item in bad]
        yield shard


def _fits(folder: Path, found: Index) -> bool:
    """Whether a saved index, with what readers make of it where shards have grown or shrunk since, as after a crash,
    tells what the shards tell themselves."""
    told = load_index(folder).index
    same = (told.run, told.shards, told.dead) == (found.run, found.shards, found.dead)
    return same and all(np.array_equal(getattr(told.table, one), getattr(found.table, one)) for one in KEPT)


def _doubled(folder: Path, places: tuple[tuple[ShardPosition, ShardPosition], ...]) -> list[CacheError]:
    """A fault for each shard that holds again what the cache had."""
    faults = []
    for number in sorted({shard for (shard, _), _ in places}):
        pairs = sorted(pair for pair in places if pair[0][0] == number)
        (_, place), (before, _) = pairs[0]
        path = folder / shard_name(number)
        source = read_header(path).items[place].source
        held = f"holds {plural(len(pairs), 'item')} again, first {source} of {shard_name(before)}"
        faults.append(CacheError(f"{path} {held}", again(path)))
    return faults
