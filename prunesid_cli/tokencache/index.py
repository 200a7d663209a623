"""What a cache holds, by name: which shards there are, and where each source is. Its file: index_file.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.errors import CacheError
from prunesid_cli.text import join_names, plural
from prunesid_cli.tokencache.format import (
    Run,
    Shard,
    hash_source,
    shard_name,
)
from prunesid_cli.tokencache.index_table import (
    EMPTY,
    ShardPosition,
    Stamp,
    Table,
    heads,
    latest,
    with_stamps,
)
from prunesid_cli.tokencache.shard import mixed


class IndexEntry(NamedTuple):
    """What the index knows of a source."""

    place: ShardPosition
    digest: str
    stamp: tuple[int, int]
    total: int
    kept: int
    phi: float


class ShardInfo(NamedTuple):
    """A shard that the index knows: bytes of its file, and items that it had then."""

    bytes: int
    items: int


@dataclass(frozen=True)
class Index:
    """What a cache holds. `table`: items that count, in the order of their names; `dead`: places of those that do not;
    `again`: places of items that the cache had before with the very same bytes, and of the latter. `sampling`: of its
    clips."""

    run: Run | None = None
    sampling: str = ""
    shards: Mapping[int, ShardInfo] = field(default_factory=dict)
    given: int = 0
    given_up: tuple[int, ...] = ()
    table: Table = EMPTY
    dead: frozenset[ShardPosition] = frozenset()
    again: tuple[tuple[ShardPosition, ShardPosition], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(part.bytes for part in self.shards.values())

    @cached_property
    def heads(self) -> NDArray[np.uint64]:
        return heads(self.table)

    def row(self, source: str) -> int | None:
        name = hash_source(source)
        head = np.uint64(int.from_bytes(name[:8], "big"))
        for row in range(int(np.searchsorted(self.heads, head)), len(self.table)):
            if self.table.names[row].tobytes() == name:
                return row
            if self.heads[row] != head:
                break
        return None

    def find(self, source: str) -> IndexEntry | None:
        row = self.row(source)
        return None if row is None else self.known(row)

    def known(self, row: int) -> IndexEntry:
        table = self.table
        shard, place = table.places[row].tolist()
        total, kept = table.counts[row].tolist()
        stamp = tuple(table.stamps[row].tolist())
        return IndexEntry((shard, place), table.digests[row].tobytes().hex(), stamp, total, kept, float(table.phi[row]))

    def find_by_digest_prefix(self, prefix: str) -> list[ShardPosition]:
        """Where inputs are whose digest begins so."""
        wanted = np.frombuffer(bytes.fromhex(prefix[: len(prefix) // 2 * 2]), np.uint8)
        same = (self.table.digests[:, : len(wanted)] == wanted).all(1)
        found = [self.known(int(row)) for row in np.flatnonzero(same)]
        return sorted(one.place for one in found if one.digest.startswith(prefix.lower()))

    def stamped(self, stamps: Mapping[str, Stamp]) -> Index:
        """With later stamps of some sources."""
        rows = {row: stamp for source, stamp in stamps.items() if (row := self.row(source)) is not None}
        if not rows:
            return self
        column = self.table.stamps.copy()
        column[list(rows)] = list(rows.values())
        return replace(self, table=replace(self.table, stamps=column))

    def entries(self) -> Iterator[IndexEntry]:
        """All that counts, in the order in which it was written."""
        places = self.table.places
        return (self.known(int(row)) for row in np.lexsort((places[:, 1], places[:, 0])))


@dataclass(frozen=True)
class MissingShards:
    """Shards that a cache should have and does not; `items`: how many were in them, 0 where nothing tells."""

    folder: Path
    numbers: tuple[int, ...] = ()
    items: int = 0

    @property
    def error(self) -> CacheError:
        names = [shard_name(number) for number in self.numbers]
        are = "is" if len(names) == 1 else "are"
        held = f", and with {'it' if len(names) == 1 else 'them'} {plural(self.items, 'item')}" if self.items else ""
        return CacheError(
            f"{self.folder}: {join_names(names)} {are} missing{held}", "run the same compress: it does them again"
        )


def index_with_shards(
    index: Index, shards: Iterable[Shard], stamps: Mapping[ShardPosition, Stamp] | None = None
) -> Index:
    """An index with shards that it does not know yet, or that have grown; each is let go before the next one comes.

    stamps: of some items, by their places.

    Raises:
        CacheError: one is of another run.
    """
    tables, parts, run, sampling = list[Table](), dict(index.shards), index.run, index.sampling
    given = set[int]()
    for shard in shards:
        if run is not None and shard.run != run:
            raise mixed(shard.path, shard.path.with_name(shard_name(min(parts))))
        run = shard.run
        sampling = sampling or next((item.sampling for item in shard.items if item.sampling), "")
        parts[shard.number] = ShardInfo(shard.path.stat().st_size, len(shard.items))
        given.add(shard.number)
        tables.append(Table.of(shard, stamps or {}))
    if not tables:
        return index
    others = index.table.take(~np.isin(index.table.places[:, 0], sorted(given)))
    table, dead, again = latest(Table.joined([others, *tables]))
    return Index(
        run,
        sampling,
        parts,
        max(index.given, 1 + max(parts)),
        index.given_up,
        with_stamps(table, index.table),
        frozenset(place for place in index.dead if place[0] not in given) | dead,
        index.again + again,
    )


def missing_of(folder: Path, saved: Index, present: Iterable[int]) -> MissingShards:
    there = {*present, *saved.given_up}
    numbers = tuple(n for n in range(max(saved.given, 1 + max(there, default=-1))) if n not in there)
    return MissingShards(folder, numbers, sum(saved.shards[n].items for n in numbers if n in saved.shards))
