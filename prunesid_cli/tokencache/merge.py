"""Several caches -> one, as several machines made them with --shard: rows are copied as they are stored."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.format import Item, Shard, shard_name
from prunesid_cli.tokencache.index_table import ShardPosition, Stamp
from prunesid_cli.tokencache.reader import Cache, open_cache
from prunesid_cli.tokencache.run_mismatch import describe_mismatch
from prunesid_cli.tokencache.shard import channels, read_header, read_rows
from prunesid_cli.tokencache.writer import CacheWriter, ShardLimits

Where = tuple[int, ShardPosition]
"""Number of a cache, place in it."""


@dataclass
class MergeResult:
    """Items copied, and items that were there already."""

    copied: int = 0
    held: int = 0


@dataclass
class _Part:
    """A cache to read from, with the header that was read last: items come shard by shard."""

    cache: Cache
    header: Shard | None = None

    def item(self, place: ShardPosition) -> tuple[Shard, Item]:
        if self.header is None or self.header.number != place[0]:
            self.header = read_header(self.cache.folder / shard_name(place[0]))
        return self.header, self.header.items[place[1]]

    def stamp(self, source: str) -> Stamp | None:
        known = self.cache.index.find(source)
        return Stamp(*known.stamp) if known and known.stamp[0] >= 0 else None


def merge(folders: Sequence[Path], out: Path, tool: str, limits: ShardLimits) -> MergeResult:
    """Copy all that counts in some caches to `out`, each source once: of the last cache that has it.

    Items are put in the order of their paths, which is that of a run over a folder; so what several machines made of
    its parts gives the bytes of one run over all of it. Takes memory for the names of all items.

    Raises:
        CacheError: one is no cache, is damaged or incomplete, or of another run; or `out` cannot be written.
    """
    caches = [_sound(folder, out) for folder in folders]
    first = next((cache for cache in caches if cache.run), None)
    if first is None or first.run is None:
        raise CacheError(f"{folders[0]} holds no tokens", f"prunesid cache info {folders[0]}")
    for cache in caches:
        if cache.run and cache.run != first.run:
            problem = f"{cache.folder} holds a cache {describe_mismatch(cache.run, first.run)}"
            raise CacheError(problem, "merge what one and the same compress made")
    sampling = next((cache.index.sampling for cache in caches if cache.index.sampling), "")
    writer, merged, parts = CacheWriter(out, first.run, tool, limits, sampling), MergeResult(), [*map(_Part, caches)]
    try:
        where = _where(caches)
        for source in sorted(where, key=_by_parts):
            _copy(parts[where[source][0]], where[source][1], writer, merged)
        writer.save()
        for number, cache in enumerate(caches):
            for record in cache.failures():
                if _counts(record["source"], number, where, writer):
                    writer.failed.setdefault(record["source"], record)
    finally:
        writer.close()
    return merged


def _counts(failed: str, number: int, where: Mapping[str, Where], writer: CacheWriter) -> bool:
    """Whether no other cache than that where a source failed has it: its own has an earlier version."""
    return where[failed][0] == number if failed in where else writer.index.find(failed) is None


def _sound(folder: Path, out: Path) -> Cache:
    cache = open_cache(folder, stamped=True)
    if cache.missing.numbers:
        raise cache.missing.error
    if out.exists() and os.path.samefile(folder, out):
        raise CacheError(f"{folder} cannot be merged into itself", "name another --out")
    return cache


def _where(caches: Sequence[Cache]) -> dict[str, Where]:
    where = dict[str, Where]()
    for number, cache in enumerate(caches):
        for shard, place in cache.places():
            where[shard.items[place].source] = number, (shard.number, place)
        for error in cache.faults.values():
            raise error
    return where


def _by_parts(source: str) -> list[str]:
    """Folder by folder, as they are walked."""
    return source.split(os.sep)


def _copy(part: _Part, place: ShardPosition, writer: CacheWriter, merged: MergeResult) -> None:
    shard, item = part.item(place)
    stamp = part.stamp(item.source)
    if writer.find_by_digest(item.source, item.digest):
        if stamp:
            writer.update_stamp(item.source, stamp)
        merged.held += 1
        return
    ((_, (data, *scales)),) = read_rows(shard, [item])
    writer.add_packed(item, (channels(shard), data, b"".join(scales)), stamp)
    merged.copied += 1
