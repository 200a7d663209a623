"""Verifying a cache: every byte is read and compared with its checksum. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prunesid_cli.errors import CacheError
from prunesid_cli.text import plural
from prunesid_cli.tokencache.cache_errors import damaged_item, mixed_runs, repair_hint
from prunesid_cli.tokencache.calibration import read_calibration
from prunesid_cli.tokencache.failures import read_failures
from prunesid_cli.tokencache.format import INDEX, Item, Shard, checksum, require_cache, shard_name, shard_paths
from prunesid_cli.tokencache.index import Index, find_missing_shards, index_with_shards
from prunesid_cli.tokencache.index_file import INDEX_TENSORS, load_index, read_index
from prunesid_cli.tokencache.index_table import ShardPosition
from prunesid_cli.tokencache.shard import read_header, read_rows_unchecked


def verify_shard(shard: Shard) -> list[Item]:
    """Return the items of a shard whose bytes do not match their checksums."""
    return [
        item for item, rows in read_rows_unchecked(shard, shard.items) if checksum(rows.data, rows.scales) != item.check
    ]


def verify_cache(folder: Path) -> tuple[int, list[CacheError]]:
    """Read every byte of a cache, and look for what is missing.

    Returns:
        The number of good items, and all faults.

    Raises:
        CacheError: The folder is no cache.
    """
    require_cache(folder)
    saved, paths, check = read_index(folder), shard_paths(folder), _ShardCheck()
    index = index_with_shards(Index(), check.sound_shards(paths))
    faults, are_all_read = check.faults, len(index.shards) == len(paths)
    missing = find_missing_shards(folder, saved or Index(), index.shards)
    if missing.numbers:  # how many items were in them is unknown while other shards cannot be read
        faults.append((missing if are_all_read else replace(missing, items=0)).error)
    faults += _find_duplicates(folder, index.duplicates)
    is_index_comparable = (folder / INDEX).exists() and are_all_read and not missing.numbers
    if is_index_comparable and not (saved and _is_index_right(folder, index)):
        faults.append(CacheError(f"{folder / INDEX} is damaged, or not of these shards", f"delete {folder / INDEX}"))
    for read in (read_failures, read_calibration):
        try:
            read(folder)
        except CacheError as error:
            faults.append(error)
    return check.num_good - len(index.duplicates), faults


class _ShardCheck:
    """Counts the good items of shards, and collects what is wrong with them."""

    def __init__(self) -> None:
        self.num_good, self.faults = 0, list[CacheError]()

    def sound_shards(self, paths: Sequence[Path]) -> Iterator[Shard]:
        """Yield the shards that can be read and have the settings of the first one."""
        first: Shard | None = None
        for path in paths:
            try:
                shard = read_header(path)
                bad_items = verify_shard(shard)
                first = first or shard
                if shard.run != first.run:
                    raise mixed_runs(path, first.path)
            except CacheError as error:
                self.faults.append(error)
                continue
            self.num_good += len(shard.items) - len(bad_items)
            self.faults += [damaged_item(path, item.source) for item in bad_items]
            yield shard


def _is_index_right(folder: Path, expected: Index) -> bool:
    """Whether the saved index agrees with the shards.

    After a crash, shards may have grown since it was saved. Readers read the headers of those, so this does too.
    """
    index = load_index(folder).index
    if (index.run, index.shards, index.superseded) != (expected.run, expected.shards, expected.superseded):
        return False
    return all(np.array_equal(getattr(index.table, name), getattr(expected.table, name)) for name in INDEX_TENSORS)


def _find_duplicates(folder: Path, duplicates: tuple[tuple[ShardPosition, ShardPosition], ...]) -> list[CacheError]:
    """Report each shard that holds items again which an earlier shard has."""
    faults = []
    for number in sorted({position.shard for position, _ in duplicates}):
        pairs = sorted(pair for pair in duplicates if pair[0].shard == number)
        position, earlier = pairs[0]
        path = folder / shard_name(number)
        source = read_header(path).items[position.item].source
        problem = f"{path} holds {plural(len(pairs), 'item')} again, first {source} of {shard_name(earlier.shard)}"
        faults.append(CacheError(problem, repair_hint(path)))
    return faults
