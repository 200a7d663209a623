"""Reading a cache: found through its index, told by its headers, a shard at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.format import FAILURES, INDEX, Item, Run, Shard, require_cache, shard_name
from prunesid_cli.tokencache.shard import read_header

if TYPE_CHECKING:
    from prunesid_cli.tokencache.index import Index, MissingShards
    from prunesid_cli.tokencache.index_table import ShardPosition

HEADERS = 8
"""Shards whose headers are kept, for items that are looked up one by one."""


@dataclass(frozen=True)
class Cache:
    """A cache, however large: items are read when they are asked for.

    `faults`: of shards that were passed over since their headers are damaged, by what is said of them.
    """

    folder: Path
    index: Index
    missing: MissingShards
    faults: dict[str, CacheError] = field(default_factory=dict)

    @property
    def run(self) -> Run | None:
        return self.index.run

    def __len__(self) -> int:
        """Items, each source once."""
        return len(self.index.table)

    def places(self) -> Iterator[tuple[Shard, int]]:
        """Where everything is that counts, in the order in which it was written; what cannot be is among `faults`."""
        for number in sorted(self.index.shards):
            try:
                shard = read_header(self.folder / shard_name(number))
            except CacheError as error:
                self.faults[error.problem] = error
                continue
            for place in range(self.index.shards[number].items):
                if (number, place) not in self.index.dead:
                    yield shard, place

    def items(self) -> Iterator[tuple[Shard, Item]]:
        """See `places`."""
        return ((shard, shard.items[place]) for shard, place in self.places())

    def find(self, source: str) -> tuple[Shard, Item] | None:
        """Where a source is.

        Raises:
            CacheError: the header that should tell is damaged, or tells of another one.
        """
        known = self.index.find(source)
        found = self._at(known.place) if known else None
        if found and found[1].source != source:
            raise CacheError(f"{self.folder / INDEX} does not fit the shards", f"delete {self.folder / INDEX}")
        return found

    def find_by_digest_prefix(self, prefix: str) -> list[tuple[Shard, Item]]:
        """Items whose digest begins so, in hex."""
        return [self._at(place) for place in self.index.find_by_digest_prefix(prefix)]

    def _at(self, place: ShardPosition) -> tuple[Shard, Item]:
        shard = _header(self.folder / shard_name(place[0]))
        return shard, shard.items[place[1]]

    def failures(self) -> list[dict[str, str]]:
        return read_failures(self.folder)

    def stale_sources(self) -> set[str]:
        """Sources of which there is an earlier version, as the last try failed."""
        return {record["source"] for record in self.failures() if self.index.find(record["source"])}

    def size(self) -> int:
        """Bytes of all shards."""
        return self.index.size


@lru_cache(HEADERS)
def _header(path: Path) -> Shard:
    return read_header(path)


def open_cache(folder: str | Path, stamped: bool = False) -> Cache:
    """Look a cache up. Shards that are missing do not keep the others from being read.

    stamped: with what tells whether inputs are as they were when they were read.

    Raises:
        CacheError: it is no cache, is of a newer format, or a shard that is not in its index is damaged or of another
            run.
    """
    folder = Path(folder)
    require_cache(folder)
    from prunesid_cli.tokencache.index_file import load_index  # numpy, which --help does without

    loaded = load_index(folder, stamped)
    return Cache(folder, loaded.index, loaded.missing)


def read_failures(folder: Path) -> list[dict[str, str]]:
    """The inputs of a cache whose last try failed, and why.

    Raises:
        CacheError: the list cannot be read.
    """
    path = folder / FAILURES
    if not path.exists():
        return []
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [{name: str(record[name]) for name in ("source", "error", "hint")} for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"cannot read {path}: {error}", f"delete {path}: what failed is tried again") from error
