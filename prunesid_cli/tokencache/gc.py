"""Letting go of what a cache need not hold: earlier versions of inputs that changed, and inputs that are gone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunesid_cli.errors import UsageError
from prunesid_cli.tokencache.format import Item, Run, Shard, shard_name
from prunesid_cli.tokencache.index import Index, index_with_shards
from prunesid_cli.tokencache.index_table import ShardPosition
from prunesid_cli.tokencache.journal import ShardJournal
from prunesid_cli.tokencache.shard import channels, read_header, read_rows
from prunesid_cli.tokencache.writer import CacheWriter

NO_RUN = Run(model="", revision="", family="", method="", keep="", dynamic=False, even=False, dtype="")
"""Of a cache without items: nothing is added to it here."""
MANY = 10
"""Inputs of a folder that are not deleted one by one, but all at once: or their drive is missing."""


@dataclass(frozen=True)
class Garbage:
    """What a cache need not hold: places of items that count no more, and of items whose input is gone; bytes of both;
    failures whose input is gone. `doubt`: why they may be where another folder or drive is, empty if there is none."""

    outdated: frozenset[ShardPosition] = frozenset()
    gone: frozenset[ShardPosition] = frozenset()
    bytes: int = 0
    failures: tuple[str, ...] = ()
    suspicion: str = ""

    @property
    def places(self) -> frozenset[ShardPosition]:
        return self.outdated | self.gone

    def refuse_if_suspicious(self) -> None:
        """Raises UsageError: too much is gone at once to be believed."""
        if self.suspicion:
            hint = "go to the folder where compress ran, or mount the drive; --force lets go of them all"
            raise UsageError(self.suspicion, hint)


def find_garbage(writer: CacheWriter) -> Garbage:
    """What `collect` would let go of. An input is gone where its path leads to nothing."""
    dead, gone, size, there, lost = writer.index.dead, set[ShardPosition](), 0, list[str](), list[str]()
    for shard, place, item in _all(writer.folder, writer.index):
        is_dead = (shard.number, place) in dead
        if not is_dead and os.path.exists(item.source):
            there.append(item.source)
            continue
        size += _bytes(shard, item)
        if not is_dead:
            gone.add((shard.number, place))
            lost.append(item.source)
    failures = tuple(source for source in writer.failed if not os.path.lexists(source))
    return Garbage(dead, frozenset(gone), size, failures, _doubt(there, lost, writer.folder))


def _doubt(there: Sequence[str], lost: Sequence[str], folder: Path) -> str:
    """More than half of all inputs are gone, or all of a top folder, one below the folder that all have in common."""
    if len(lost) > len(there):
        return f"{len(lost):,} of the {len(there) + len(lost):,} inputs of {folder} are not where they were"
    paths = [os.path.abspath(source).split(os.sep) for source in (*there, *lost)]
    depth = 1 + len(os.path.commonprefix(paths))  # type: ignore[type-var]
    tops = [os.sep.join(path[:depth]) for path in paths]
    left, counts = set(tops[: len(there)]), Counter(tops[len(there) :])
    top = next((top for top, count in counts.items() if count >= MANY and top not in left), "")
    return f"none of the {counts[top]:,} inputs of {folder} in {top} is where it was" if top else ""


def collect_garbage(writer: CacheWriter, waste: Garbage) -> None:
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
        writer.clear_failure(source)
    if paths or waste.failures:  # of which a cache may have had nothing else
        writer.replace_index(index_with_shards(writer.index, map(read_header, paths)))


def _rewrite(shard: Shard, without: frozenset[ShardPosition]) -> None:
    growing = ShardJournal(shard.path, shard.run, shard.tool, channels(shard))
    kept = [item for place, item in enumerate(shard.items) if (shard.number, place) not in without]
    try:
        for item, (data, *scales) in read_rows(shard, kept):
            growing.add(item, growing.width, data, b"".join(scales))
        growing.write()
    finally:
        growing.close()


def _all(folder: Path, index: Index) -> Iterator[tuple[Shard, int, Item]]:
    for number in sorted(index.shards):
        shard = read_header(folder / shard_name(number))
        for place, item in enumerate(shard.items):
            yield shard, place, item


def _bytes(shard: Shard, item: Item) -> int:
    return (item.rows[1] - item.rows[0]) * sum(part.row for part in shard.parts)
