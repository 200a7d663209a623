"""The index of a cache in memory: which shards it has, and where each source is. index_file.py stores it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prunesid_cli.errors import CacheError
from prunesid_cli.text import join_names, plural
from prunesid_cli.tokencache.cache_errors import mixed_runs
from prunesid_cli.tokencache.format import Run, Shard, hash_source, shard_name
from prunesid_cli.tokencache.index_table import COLUMNS, ShardPosition, Stamp, Table, copy_stamps, drop_superseded


class IndexEntry(NamedTuple):
    """A row of the index.

    Attributes:
        position: Where the item is.
        digest: SHA-256 of the input's bytes, in hex.
        stamp: Size and time of change of the input's file; -1 where unknown.
        total: Tokens that the stock model reads.
        kept: Tokens that are kept.
        phi: Information, 1 - rho.
    """

    position: ShardPosition
    digest: str
    stamp: Stamp
    total: int
    kept: int
    phi: float


class ShardInfo(NamedTuple):
    """A shard in the index: size of its file, and number of its items."""

    bytes: int
    items: int


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a cache holds.

    Attributes:
        run: Settings of the cache; None while it has no shards.
        sampling: How the frames of its clips were chosen; empty while it has no clips.
        shards: Its shards by number.
        next_number: The number of the next new shard: numbers are not used twice.
        abandoned: Numbers of lost shards that a later, complete run did without.
        table: The items that count, in the order of their names.
        superseded: Positions of the items that do not count, because a later one has the same source, or because the
            shard that has their rows is lost.
        duplicates: Pairs of positions: an item, and the earlier one with the same source and digest.
    """

    run: Run | None = None
    sampling: str = ""
    shards: Mapping[int, ShardInfo] = field(default_factory=dict)
    next_number: int = 0
    abandoned: tuple[int, ...] = ()
    table: Table = field(default_factory=lambda: Table.blank(0))
    superseded: frozenset[ShardPosition] = frozenset()
    duplicates: tuple[tuple[ShardPosition, ShardPosition], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards.values())

    @property
    def num_contents(self) -> int:
        """Number of different inputs by their contents."""
        return len(np.unique(self.table.digests, axis=0))

    def find_row(self, source: str) -> int | None:
        """Return the row of a source in the table."""
        if not len(self.table):
            return None
        name, prefixes = hash_source(source), self.table.name_prefixes
        prefix = np.uint64(int.from_bytes(name[:8], "big"))
        for row in range(int(np.searchsorted(prefixes, prefix)), len(self.table)):
            if self.table.names[row].tobytes() == name:
                return row
            if prefixes[row] != prefix:
                break
        return None

    def find(self, source: str) -> IndexEntry | None:
        """Return the entry of a source."""
        row = self.find_row(source)
        return None if row is None else self.entry(row)

    def entry(self, row: int) -> IndexEntry:
        """Return a row of the table."""
        table = self.table
        total, kept = table.counts[row].tolist()
        return IndexEntry(
            position=ShardPosition(*table.positions[row].tolist()),
            digest=table.digests[row].tobytes().hex(),
            stamp=Stamp(*table.stamps[row].tolist()),
            total=total,
            kept=kept,
            phi=float(table.phi[row]),
        )

    def entries(self) -> Iterator[IndexEntry]:
        """Return all entries in the order in which the items were written."""
        positions = self.table.positions
        return (self.entry(int(row)) for row in np.lexsort((positions[:, 1], positions[:, 0])))

    def find_by_digest_prefix(self, prefix: str) -> list[ShardPosition]:
        """Return the positions of the items whose digest, in hex, begins with `prefix`."""
        whole_bytes = np.frombuffer(bytes.fromhex(prefix[: len(prefix) // 2 * 2]), np.uint8)
        is_match = (self.table.digests[:, : len(whole_bytes)] == whole_bytes).all(1)
        entries = [self.entry(int(row)) for row in np.flatnonzero(is_match)]
        return sorted(entry.position for entry in entries if entry.digest.startswith(prefix.lower()))

    def with_stamps(self, stamps: Mapping[str, Stamp]) -> Index:
        """Return the index with new stamps of some sources that it holds."""
        rows = {row: stamp for source, stamp in stamps.items() if (row := self.find_row(source)) is not None}
        if not rows:
            return self
        column = self.table.stamps.copy()
        column[list(rows)] = list(rows.values())
        return replace(self, table=replace(self.table, stamps=column))


@dataclass(frozen=True)
class MissingShards:
    """Shards that a cache should have and does not.

    Attributes:
        folder: The cache.
        numbers: Their numbers.
        items: How many items they had; 0 if unknown.
    """

    folder: Path
    numbers: tuple[int, ...] = ()
    items: int = 0

    @property
    def error(self) -> CacheError:
        names = [shard_name(number) for number in self.numbers]
        verb, pronoun = ("is", "it") if len(names) == 1 else ("are", "them")
        lost = f", and with {pronoun} {plural(self.items, 'item')}" if self.items else ""
        problem = f"{self.folder}: {join_names(names)} {verb} missing{lost}"
        return CacheError(problem, "run the same compress command: it restores the items")


def index_with_shards(
    index: Index, shards: Iterable[Shard], stamps: Mapping[ShardPosition, Stamp] | None = None
) -> Index:
    """Add shards to an index that are new or have changed.

    Args:
        index: The index.
        shards: Headers; only one is held in memory at a time.
        stamps: Stamps of some of their items.

    Raises:
        CacheError: A shard was made with other settings.
    """
    tables, infos, run, sampling = list[Table](), dict(index.shards), index.run, index.sampling
    numbers, copies = set[int](), dict[ShardPosition, int]()
    for shard in shards:
        if run is not None and shard.run != run:
            raise mixed_runs(shard.path, shard.path.with_name(shard_name(min(infos))))
        run = shard.run
        sampling = sampling or next((item.sampling for item in shard.items if item.sampling), "")
        infos[shard.number] = ShardInfo(shard.path.stat().st_size, len(shard.items))
        numbers.add(shard.number)
        copies |= {
            ShardPosition(shard.number, item_number): item.shard
            for item_number, item in enumerate(shard.items)
            if item.shard is not None
        }
        tables.append(Table.from_shard(shard, stamps or {}))
    if not tables:
        return index
    tables.insert(0, index.table.take(~np.isin(index.table.positions[:, 0], sorted(numbers))))  # unchanged items
    all_items = Table(*(np.concatenate([getattr(table, name) for table in tables]) for name in COLUMNS))
    lost = [position for position, holder in copies.items() if holder not in infos]
    table, superseded, duplicates = drop_superseded(all_items.without(lost))
    return Index(
        run=run,
        sampling=sampling,
        shards=infos,
        next_number=max(index.next_number, 1 + max(infos)),
        abandoned=index.abandoned,
        table=copy_stamps(table, index.table),
        superseded=frozenset(position for position in index.superseded if position.shard not in numbers)
        | superseded.union(lost),
        duplicates=index.duplicates + tuple(pair for pair in duplicates if pair[0] not in copies),
    )


def find_missing_shards(folder: Path, saved: Index, present: Iterable[int]) -> MissingShards:
    """Compare the shards in a folder with those of its saved index.

    Args:
        folder: The cache.
        saved: The index as it was saved.
        present: Numbers of the shards in the folder.
    """
    accounted = {*present, *saved.abandoned}
    end = max(saved.next_number, 1 + max(accounted, default=-1))
    numbers = tuple(number for number in range(end) if number not in accounted)
    items = sum(saved.shards[number].items for number in numbers if number in saved.shards)
    return MissingShards(folder, numbers, items)
