"""Merging caches, as several machines made them with --shard, into one. Rows are copied as they are stored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.text import command_line
from prunesid_cli.tokencache.format import Item, Shard
from prunesid_cli.tokencache.index_table import ShardPosition
from prunesid_cli.tokencache.reader import Cache, open_cache
from prunesid_cli.tokencache.run_mismatch import describe_mismatch
from prunesid_cli.tokencache.shard import read_rows
from prunesid_cli.tokencache.writer import CacheWriter, ShardLimits


@dataclass
class MergeResult:
    """How many items were copied, and how many were there already."""

    copied: int = 0
    held: int = 0


@dataclass
class _ShardByShard:
    """A cache whose items are read shard by shard: the last header stays in memory."""

    cache: Cache
    header: Shard | None = None

    def read_item(self, position: ShardPosition) -> tuple[Shard, Item]:
        if self.header is None or self.header.number != position.shard:
            self.header = self.cache.read_shard(position.shard)
        return self.header, self.header.items[position.item]


def merge(folders: Sequence[Path], out: Path, tool: str, limits: ShardLimits) -> MergeResult:
    """Copy all items that count to another cache, each source once: from the last cache that has it.

    Items are copied in the order of their paths, which is the order of a run over a folder. So caches of parts of a
    folder give the bytes of one run over all of it. The names of all items must fit into memory.

    Args:
        folders: The caches to read. They stay as they are.
        out: The cache to write.
        tool: Version of prunesid.
        limits: When a shard is full.

    Raises:
        CacheError: A folder is no cache, is damaged or incomplete, or has other settings; or `out` cannot be written.
    """
    caches = [_open_complete(folder, out) for folder in folders]
    run = next((cache.run for cache in caches if cache.run), None)
    if run is None:
        raise CacheError(f"{folders[0]} holds no tokens", command_line("cache", "info", folders[0]))
    for cache in caches:
        if cache.run and cache.run != run:
            problem = f"{cache.folder} holds a cache {describe_mismatch(cache.run, run)}"
            raise CacheError(problem, "merge caches that were made with the same options")
    sampling = next((cache.index.sampling for cache in caches if cache.index.sampling), "")
    readers, result = [_ShardByShard(cache) for cache in caches], MergeResult()
    writer = CacheWriter(out, run, tool, limits, sampling)
    try:
        locations = _locate_sources(caches)
        for source in sorted(locations, key=lambda path: path.split(os.sep)):  # folder by folder, as they are walked
            number, position = locations[source]
            _copy_item(readers[number], position, writer, result)
        writer.save()
        for number, cache in enumerate(caches):
            for record in cache.failures():
                source = record["source"]
                # It counts unless another cache or `out` has the item. What its own cache has is an earlier version.
                is_failed = locations[source][0] == number if source in locations else not writer.index.find(source)
                if is_failed:
                    writer.failed.setdefault(source, record)
    finally:
        writer.close()
    return result


def _open_complete(folder: Path, out: Path) -> Cache:
    cache = open_cache(folder, with_stamps=True)
    if cache.missing.numbers:
        raise cache.missing.error
    if out.exists() and os.path.samefile(folder, out):
        raise CacheError(f"{folder} cannot be merged into itself", "name another --out")
    return cache


def _locate_sources(caches: Sequence[Cache]) -> dict[str, tuple[int, ShardPosition]]:
    """Source -> number of the last cache that has it, and position there."""
    locations = dict[str, tuple[int, ShardPosition]]()
    for number, cache in enumerate(caches):
        for shard, item_number in cache.positions():
            locations[shard.items[item_number].source] = number, ShardPosition(shard.number, item_number)
        for error in cache.faults.values():
            raise error
    return locations


def _copy_item(reader: _ShardByShard, position: ShardPosition, writer: CacheWriter, result: MergeResult) -> None:
    shard, item = reader.read_item(position)
    entry = reader.cache.index.find(item.source)
    stamp = entry.stamp if entry and entry.stamp.bytes >= 0 else None
    if writer.find_by_digest(item.source, item.digest):
        if stamp:
            writer.update_stamp(item.source, stamp)
        result.held += 1
        return
    ((_, rows),) = read_rows(shard, [item])
    writer.add_packed(item, rows, stamp)
    result.copied += 1
