"""Rewriting shards: without earlier versions of inputs, without inputs that are gone or named, or with other paths."""

from __future__ import annotations

import os
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.filesize import decimal

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.glob_paths import matches_path
from prunesid_cli.inputs.source import LOCAL
from prunesid_cli.tokencache.format import Item, RowsPlace, Run, Shard, shard_name
from prunesid_cli.tokencache.index import index_with_shards
from prunesid_cli.tokencache.index_table import ShardPosition
from prunesid_cli.tokencache.journal import ShardJournal
from prunesid_cli.tokencache.shard import read_header, row_channels
from prunesid_cli.tokencache.writer import CacheWriter

NO_RUN = Run(model="", revision="", family="", method="", keep="", dynamic=False, even=False, dtype="")
"""Settings to open a cache without items with: none are added here."""
MIN_SUSPICIOUS_INPUTS = 10
"""If this many inputs of a folder are gone and none is left, they were hardly deleted one by one: a drive may be
missing."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What a cache need not hold.

    Attributes:
        outdated: Positions of the items that do not count, because a later one has the same source.
        gone: Positions of the items whose input is gone.
        hidden: Positions of the outdated items whose input is gone.
        bytes: Bytes of the rows of both.
        failures: Sources of failures whose input is gone.
        unknown: Inputs that could not be looked up, with the reason. They are kept.
        suspicion: Why the inputs may not be gone, but in another folder or on a missing drive; empty if there is no
            reason to think so.
    """

    outdated: frozenset[ShardPosition]
    gone: frozenset[ShardPosition]
    hidden: frozenset[ShardPosition]
    bytes: int
    failures: tuple[str, ...]
    unknown: dict[str, str]
    suspicion: str

    def describe_bytes(self) -> str:
        """Return how much room is freed, and why none is."""
        is_shared = not self.bytes and (self.gone or self.outdated)
        return "0 bytes, because other inputs have the same tokens" if is_shared else decimal(self.bytes)

    def refuse_if_suspicious(self) -> None:
        """Raise UsageError if the inputs may not be gone."""
        if self.suspicion:
            hint = "go to the folder where compress ran, or mount the drive; --force removes them all"
            raise UsageError(self.suspicion, hint)


def find_garbage(writer: CacheWriter) -> Garbage:
    """Find what `collect_garbage` can remove. An input is gone if its path leads to nothing."""
    unknown = dict[str, str]()

    def is_gone(source: str, look: Callable[[str], object]) -> bool:
        try:
            look(source)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have that name
            return True
        except OSError as error:  # for example of a failing drive
            unknown[source] = error.strerror or str(error)
        return False

    outdated, gone, freed = dict[ShardPosition, str](), set[ShardPosition](), _FreedBytes()
    present_sources, gone_sources = list[str](), list[str]()
    for number in sorted(writer.index.shards):
        shard = read_header(writer.folder / shard_name(number))
        for item_number, item in enumerate(shard.items):
            position = ShardPosition(number, item_number)
            is_outdated = position in writer.index.superseded
            is_kept = not is_outdated and not is_gone(item.source, FILES.stat)
            freed.add(shard, item, is_kept)
            if is_outdated:
                outdated[position] = item.source
            elif is_kept:
                present_sources.append(item.source)
            else:
                gone.add(position)
                gone_sources.append(item.source)
    sources = set(gone_sources)
    return Garbage(
        outdated=frozenset(outdated),
        gone=frozenset(gone),
        hidden=frozenset(position for position, source in outdated.items() if source in sources),
        bytes=freed.total,
        failures=tuple(source for source in writer.failed if is_gone(source, _look_at)),
        unknown=unknown,
        suspicion=_find_suspicion(present_sources, gone_sources, writer.folder),
    )


class _FreedBytes:
    """Counts the bytes of rows that no item has once some items are removed."""

    def __init__(self) -> None:
        self._sizes, self._kept = dict[RowsPlace, int](), set[RowsPlace]()

    def add(self, shard: Shard, item: Item, is_kept: bool) -> None:
        place = item.rows_place(shard.number)
        if is_kept:
            self._kept.add(place)
        else:
            self._sizes[place] = len(item.slots) * shard.row_bytes

    @property
    def total(self) -> int:
        return sum(size for place, size in self._sizes.items() if place not in self._kept)


def _look_at(source: str) -> object:
    """Raises OSError if a path leads to nothing. A broken link is still there."""
    return os.lstat(source) if FILES.source_of(source) is LOCAL else FILES.stat(source)


def find_matching(writer: CacheWriter, patterns: Sequence[str]) -> Garbage:
    """Find all versions of the inputs whose path a glob matches, and their failures."""
    found, freed = set[ShardPosition](), _FreedBytes()
    for number in sorted(writer.index.shards):
        shard = read_header(writer.folder / shard_name(number))
        for item_number, item in enumerate(shard.items):
            is_match = any(matches_path(item.source, pattern) for pattern in patterns)
            freed.add(shard, item, is_kept=not is_match)
            if is_match:
                found.add(ShardPosition(number, item_number))
    outdated = frozenset(found & writer.index.superseded)
    return Garbage(
        outdated=outdated,
        gone=frozenset(found - outdated),
        hidden=outdated,
        bytes=freed.total,
        failures=tuple(s for s in writer.failed if any(matches_path(s, pattern) for pattern in patterns)),
        unknown={},
        suspicion="",
    )


def _find_suspicion(present: Sequence[str], gone: Sequence[str], folder: Path) -> str:
    """Report if more than half of all inputs are gone, or all inputs of a top folder.

    A top folder is one directly below the folder that all inputs have in common.
    """
    if len(gone) > len(present):
        return f"{len(gone):,} of the {len(present) + len(gone):,} inputs of {folder} are not where they were"
    paths = [os.path.abspath(source).split(os.sep) for source in (*present, *gone)]
    depth = 1 + len(os.path.commonprefix(paths))  # type: ignore[type-var]
    top_folders = [os.sep.join(path[:depth]) for path in paths]
    present_folders, gone_counts = set(top_folders[: len(present)]), Counter(top_folders[len(present) :])
    for top_folder, count in gone_counts.items():
        if count >= MIN_SUSPICIOUS_INPUTS and top_folder not in present_folders:
            return f"none of the {count:,} inputs of {folder} in {top_folder} is where it was"
    return ""


def collect_garbage(writer: CacheWriter, garbage: Garbage) -> None:
    """Write the shards that hold garbage anew, one after the other. The cache is valid at any moment.

    Hidden items are removed before the others. Otherwise a run that is interrupted could leave one of them as the item
    of an input that is gone.

    Raises:
        CacheError: A shard cannot be written, or is damaged.
    """
    if writer.unwritable:
        raise writer.unwritable
    _remove(writer, garbage.hidden)
    others = sorted((garbage.outdated | garbage.gone) - garbage.hidden)
    hidden_items = defaultdict[int, list[int]](list)
    for shard, item in sorted(garbage.hidden):
        hidden_items[shard].append(item)
    moved = [ShardPosition(shard, item - bisect(hidden_items[shard], item)) for shard, item in others]
    _remove(writer, frozenset(moved))
    for source in garbage.failures:
        writer.clear_failure(source)
    if garbage.failures:  # a cache that held nothing but these failures gets an index, and stays a cache
        writer.replace_index(writer.index)


def _remove(writer: CacheWriter, removed: frozenset[ShardPosition]) -> None:
    """Write shards anew without some items.

    Rows of these shards are moved, so copies of them in other shards get rows of their own. A copy is never of a later
    shard. So the shards are written from the last to the first: what copies are of is then still where it was.
    """
    changed = {position.shard for position in removed}
    if changed:
        for number in sorted(writer.index.shards):
            if any(item.shard in changed for item in read_header(writer.folder / shard_name(number)).items):
                changed.add(number)
    paths = [writer.folder / shard_name(number) for number in sorted(changed, reverse=True)]

    def is_kept(position: ShardPosition, item: Item) -> Item | None:
        return None if position in removed else item

    if paths:
        rewritten = (_rewrite_shard(read_header(path), is_kept, changed) for path in paths)
        writer.replace_index(index_with_shards(writer.index, rewritten))


def relocate(writer: CacheWriter, old: str, new: str, dry_run: bool = False) -> int:
    """Change the paths of inputs that were moved. The cache is valid at any moment, and a later call goes on.

    Args:
        writer: The cache.
        old: A path, or a folder of paths, as the cache has it.
        new: What stands in its place.
        dry_run: Whether nothing is changed.

    Returns:
        The number of items whose path changed. Failures below `old` are forgotten: the inputs are read again.

    Raises:
        UsageError: An input with a new path is in the cache already.
        CacheError: A shard cannot be written, or is damaged.
    """
    if writer.unwritable:
        raise writer.unwritable
    old, new = old.rstrip("/") or "/", new.rstrip("/") or "/"

    def moved(source: str) -> str | None:
        if source == old:
            return new
        rest = source.removeprefix(old.rstrip("/") + "/")
        return None if rest == source else f"{new.rstrip('/')}/{rest}"

    positions = set[ShardPosition]()
    for number in sorted(writer.index.shards):
        for item_number, item in enumerate(read_header(writer.folder / shard_name(number)).items):
            target = moved(item.source)
            if target is not None:
                positions.add(ShardPosition(number, item_number))
                if moved(target) is None and writer.index.find(target):
                    hint = "remove one of both first: prunesid cache rm"
                    raise UsageError(f"{target} is in the cache already, beside {item.source}", hint)

    if dry_run:
        return len(positions)

    def rename(position: ShardPosition, item: Item) -> Item:
        return replace(item, source=moved(item.source) or item.source) if position in positions else item

    paths = [writer.folder / shard_name(number) for number in sorted({position.shard for position in positions})]
    stamps = {entry.position: entry.stamp for entry in writer.index.entries()}
    index = index_with_shards(writer.index, (_rewrite_shard(read_header(path), rename) for path in paths), stamps)
    for source in [source for source in writer.failed if moved(source) is not None]:
        writer.clear_failure(source)
    if paths:
        writer.replace_index(index)
    return len(positions)


def _rewrite_shard(
    shard: Shard, change: Callable[[ShardPosition, Item], Item | None], moving: Container[int] = ()
) -> Shard:
    """Write a shard anew, with what `change` makes of each item; None leaves it out. See `ShardJournal.take`."""
    journal = ShardJournal(shard.path.parent, shard.number, shard.run, shard.tool, row_channels(shard))
    changed = (change(ShardPosition(shard.number, number), item) for number, item in enumerate(shard.items))
    try:
        journal.take(shard, [item for item in changed if item is not None], moving)
        return journal.write()
    finally:
        journal.close(delete_files=True)
