"""Caches for tests: shards written one by one, and what a cache holds by its sources."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prunesid_cli.tokencache import Entry, Item, Run, open_cache
from prunesid_cli.tokencache.entry import pack_entry
from prunesid_cli.tokencache.journal import ShardJournal


def write_shard(path: Path, run: Run, tool: str, entries: Iterable[Entry]) -> None:
    shard = ShardJournal(path, run, tool)
    for entry in entries:
        item, rows = pack_entry(entry, run)
        shard.add(item, *rows)
    shard.write()
    shard.close()


def held(folder: Path) -> dict[str, Item]:
    cache = open_cache(folder)
    found = {item.source: item for _, item in cache.items()}
    assert not cache.faults
    return found
