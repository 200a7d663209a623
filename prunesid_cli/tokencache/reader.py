"""Reading a cache: items are found through the index and read from the shards, one shard at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.failures import read_failures
from prunesid_cli.tokencache.format import INDEX, Item, Run, Shard, require_cache, shard_name
from prunesid_cli.tokencache.shard import read_header, read_header_cached

if TYPE_CHECKING:
    from prunesid_cli.tokencache.index import Index, MissingShards
    from prunesid_cli.tokencache.index_table import ShardPosition


@dataclass(frozen=True)
class Cache:
    """A cache that is open for reading. Items are read when they are asked for.

    Attributes:
        folder: The cache.
        index: What it holds.
        missing: Shards that were lost.
        is_saved: Whether the index file holds this index. It may be behind after a crash.
        faults: Errors of the shards that were skipped because their headers are damaged, by their texts.
    """

    folder: Path
    index: Index
    missing: MissingShards
    is_saved: bool = True
    faults: dict[str, CacheError] = field(default_factory=dict)

    @property
    def run(self) -> Run | None:
        return self.index.run

    def __len__(self) -> int:
        """The number of items, each source once."""
        return len(self.index.table)

    def positions(self) -> Iterator[tuple[Shard, int]]:
        """Yield each item that counts in the order of writing: its shard, and its number there.

        Shards that cannot be read are skipped and added to `faults`.
        """
        for shard_number in sorted(self.index.shards):
            try:
                shard = self.read_shard(shard_number)
            except CacheError as error:
                self.faults[error.problem] = error
                continue
            for item_number in range(len(shard.items)):
                if (shard_number, item_number) not in self.index.superseded:
                    yield shard, item_number

    def read_shard(self, number: int) -> Shard:
        """Read the header of a shard of the index.

        Raises:
            CacheError: It is damaged, or has not as many items as the index says.
        """
        return self._check(read_header(self.folder / shard_name(number)))

    def _check(self, shard: Shard) -> Shard:
        if len(shard.items) != self.index.shards[shard.number].items:
            raise self._index_error()
        return shard

    def _index_error(self) -> CacheError:
        return CacheError(f"{self.folder / INDEX} does not fit the shards", f"delete {self.folder / INDEX}")

    def items(self) -> Iterator[tuple[Shard, Item]]:
        """Yield each item that counts, like `positions`."""
        return ((shard, shard.items[item_number]) for shard, item_number in self.positions())

    def find(self, source: str) -> tuple[Shard, Item] | None:
        """Find a source.

        Raises:
            CacheError: The header of its shard is damaged, or does not have the source.
        """
        entry = self.index.find(source)
        if entry is None:
            return None
        shard, item = self._read_item(entry.position)
        if item.source != source:
            raise self._index_error()
        return shard, item

    def find_by_digest_prefix(self, prefix: str) -> list[tuple[Shard, Item]]:
        """Find the items whose digest, in hex, begins with `prefix`."""
        return [self._read_item(position) for position in self.index.find_by_digest_prefix(prefix)]

    def _read_item(self, position: ShardPosition) -> tuple[Shard, Item]:
        shard = self._check(read_header_cached(self.folder / shard_name(position.shard)))
        return shard, shard.items[position.item]

    def failures(self) -> list[dict[str, str]]:
        """Read the records of the failed inputs."""
        return read_failures(self.folder)

    def stale_sources(self) -> set[str]:
        """Return the sources that failed in their last try and are in the cache with an earlier version."""
        return {record["source"] for record in self.failures() if self.index.find(record["source"])}


def open_cache(folder: str | Path, with_stamps: bool = False) -> Cache:
    """Open a cache for reading. Missing shards do not keep the others from being read.

    Args:
        folder: The cache.
        with_stamps: Whether to load the stamps of the inputs too.

    Raises:
        CacheError: The folder is no cache, is of a newer format, or has a shard that is not in its index and is damaged
            or of other settings.
    """
    folder = Path(folder)
    require_cache(folder)
    from prunesid_cli.tokencache.index_file import load_index  # imports numpy, which --help does without

    loaded = load_index(folder, with_stamps)
    return Cache(folder, loaded.index, loaded.missing, loaded.is_saved)
