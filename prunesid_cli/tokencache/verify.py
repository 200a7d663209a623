"""Verifying a cache: every byte is read and compared with its checksum. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prunesid_cli.errors import CacheError
from prunesid_cli.text import plural
from prunesid_cli.tokencache.cache_errors import damaged_item, mixed_runs, repair_hint
from prunesid_cli.tokencache.calibration import read_calibration
from prunesid_cli.tokencache.failures import read_failures
from prunesid_cli.tokencache.format import (
    INDEX,
    Item,
    Shard,
    checksum,
    parse_shard_number,
    require_cache,
    shard_name,
    shard_paths,
)
from prunesid_cli.tokencache.index import Index, find_missing_shards, index_with_shards
from prunesid_cli.tokencache.index_file import INDEX_TENSORS, load_index, read_index
from prunesid_cli.tokencache.index_table import ShardPosition, Table
from prunesid_cli.tokencache.quantization import DTYPE_BYTES, stored_dtype
from prunesid_cli.tokencache.shard import read_header, read_rows_unchecked

NON_FINITE_BITS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E4M3": 0x7F}
"""safetensors' name of a dtype -> the bits that are all set in NaN and infinity, and in no other number."""


def verify_shard(shard: Shard) -> list[Item]:
    """Return the items of a shard whose bytes do not match their checksums, or whose tokens have NaN or infinity.

    Copies whose rows are in a shard that is lost are left out, as they are of an index: the lost shard is reported.
    """
    return [item for item in shard.items if not (_is_lost(shard, item) or _is_good(shard, item))]


def _is_lost(shard: Shard, item: Item) -> bool:
    """Whether an item is a copy whose rows are in a shard that is lost."""
    return item.shard is not None and not os.path.lexists(shard.path.with_name(shard_name(item.shard)))


def _is_good(shard: Shard, item: Item) -> bool:
    try:
        ((_, rows),) = read_rows_unchecked(shard, [item])
    except CacheError:
        if item.shard in (None, shard.number):
            raise
        return False
    dtype = stored_dtype(shard.run.store, shard.run.dtype)
    is_finite = not (_has_non_finite(rows.data, dtype) or _has_non_finite(rows.scales, "F32"))
    return is_finite and checksum(rows.data, rows.scales) == item.check


def _has_non_finite(data: bytes, dtype: str) -> bool:
    if dtype not in NON_FINITE_BITS:
        return False
    bits, mask = np.frombuffer(data, f"<u{DTYPE_BYTES[dtype]}"), NON_FINITE_BITS[dtype]
    return bool(((bits & mask) == mask).any())


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
    present = [number for path in paths if (number := parse_shard_number(path)) is not None]
    missing = find_missing_shards(folder, saved or Index(), present)
    if missing.numbers:  # how many items were in them is unknown while other shards cannot be read
        faults.append((missing if are_all_read else replace(missing, items=0)).error)
    faults += _find_duplicates(folder, index.duplicates)
    is_index_comparable = os.path.lexists(folder / INDEX) and are_all_read and not missing.numbers
    if is_index_comparable and not (saved and _is_index_right(folder, saved, index)):
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
            self.num_good += sum(not _is_lost(shard, item) for item in shard.items) - len(bad_items)
            self.faults += [damaged_item(path, item.source) for item in bad_items]
            yield shard


def _is_index_right(folder: Path, saved: Index, expected: Index) -> bool:
    """Whether the saved index agrees with the shards.

    After a crash, a shard may have grown since the index was saved, or `cache gc` may have removed items of it. Readers
    read the headers of such shards, so this does too. The index must still know the items that were there before.
    """
    for number in saved.shards.keys() & expected.shards.keys():
        if saved.shards[number] == expected.shards[number]:
            continue
        items = Table.from_shard(read_header(folder / shard_name(number)), {})
        known = saved.table.take(saved.table.positions[:, 0] == number)
        if len(items) < saved.shards[number].items:  # after `cache gc`: what is left was known, or superseded
            known_keys, keys = (set(map(bytes, np.hstack([rows.names, rows.digests]))) for rows in (known, items))
            num_superseded = sum(position.shard == number for position in saved.superseded)
            is_right = len(keys - known_keys) <= num_superseded
        else:
            items = items.take(known.positions[:, 1].astype(np.intp))
            is_right = np.array_equal(items.names, known.names) and np.array_equal(items.digests, known.digests)
        if not is_right:
            return False
    try:
        index = load_index(folder).index
    except CacheError:  # it is of another run
        return False
    if (index.run, index.sampling, index.shards, index.superseded) != (
        expected.run,
        expected.sampling,
        expected.shards,
        expected.superseded,
    ):
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
