"""Letting go of what a cache need not hold: earlier versions of inputs that changed, and inputs that are gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.output import plural
from prunesid_cli.tokencache.format import Item, Shard, shard_name
from prunesid_cli.tokencache.growing import GrowingShard
from prunesid_cli.tokencache.index import Index, extended
from prunesid_cli.tokencache.shard import channels, read_header, read_rows
from prunesid_cli.tokencache.table import Place
from prunesid_cli.tokencache.writer import CacheWriter


@dataclass(frozen=True)
class Waste:
    """What a cache need not hold: places of items that count no more, and of items whose input is gone; bytes of both;
    failures whose input is gone."""

    outdated: frozenset[Place] = frozenset()
    gone: frozenset[Place] = frozenset()
    bytes: int = 0
    failures: tuple[str, ...] = ()

    @property
    def places(self) -> frozenset[Place]:
        return self.outdated | self.gone


def find_waste(writer: CacheWriter, force: bool = False) -> Waste:
    """What `collect` would let go of. An input is gone where its path leads to nothing.

    Raises:
        CacheError: not a single input is where it was: then rather the drive is missing, or this is another folder than
            that in which they were named. With `force` they are gone.
    """
    dead, gone, size = writer.index.dead, set[Place](), 0
    for shard, place, item in _all(writer.folder, writer.index):
        if (shard.number, place) not in dead and not os.path.exists(item.source):
            gone.add((shard.number, place))
        size += _bytes(shard, item) * ((shard.number, place) in dead | gone)
    if gone and len(gone) == len(writer.index.table) and not force:
        problem = f"none of the {plural(len(gone), 'input')} of {writer.folder} is where it was"
        hint = "go to the folder where compress ran, or mount the drive; --force lets go of them all"
        raise CacheError(problem, hint)
    failures = tuple(source for source in writer.failed if not os.path.lexists(source))
    return Waste(dead, frozenset(gone), size, failures)


def collect(writer: CacheWriter, waste: Waste) -> None:
    """Write the shards that hold some of it anew, one after the other: at any moment the cache is whole.

    Raises:
        CacheError: one cannot be written, or is damaged.
    """
    if writer.unwritable:
        raise writer.unwritable
    paths = [writer.folder / shard_name(number) for number in sorted({shard for shard, _ in waste.places})]
    for path in paths:
        _rewrite(read_header(path), waste.places)
    for source in waste.failures:
        writer.settle(source)
    if paths:
        writer.take(extended(writer.index, map(read_header, paths)))


def _rewrite(shard: Shard, without: frozenset[Place]) -> None:
    growing = GrowingShard(shard.path, shard.run, shard.tool, channels(shard))
    kept = [item for place, item in enumerate(shard.items) if (shard.number, place) not in without]
    try:
        for item, (data, *scales) in read_rows(shard, kept):
            growing.add(item, growing.width, data, b"".join(scales))
        growing.write()
    finally:
        growing.close()


def _all(folder: Path, index: Index) -> Iterator[tuple[Shard, int, Item]]:
    for number in sorted(index.parts):
        shard = read_header(folder / shard_name(number))
        for place, item in enumerate(shard.items):
            yield shard, place, item


def _bytes(shard: Shard, item: Item) -> int:
    return (item.rows[1] - item.rows[0]) * sum(part.row for part in shard.parts)
