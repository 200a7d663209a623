"""Reading every byte of a cache, to compare it with what was written. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from prunesid_cli.errors import CacheError
from prunesid_cli.output import plural
from prunesid_cli.tokencache.calibration import read_calibration
from prunesid_cli.tokencache.format import Item, Shard, checksum, number_of
from prunesid_cli.tokencache.index import Index, missing, read_index
from prunesid_cli.tokencache.reader import Cache, again, damaged, mixed, read_header, shard_paths

T = TypeVar("T")


def verify(shard: Shard) -> list[Item]:
    """The items of a shard whose bytes are not those that were written."""
    bad = []
    try:
        with shard.path.open("rb") as file:
            width = (os.fstat(file.fileno()).st_size - shard.data) // max(shard.shape[0], 1)
            for item in shard.items:
                file.seek(shard.data + item.rows[0] * width)
                if checksum(file.read((item.rows[1] - item.rows[0]) * width)) != item.check:
                    bad.append(item)
    except OSError as error:
        raise CacheError(f"cannot read {shard.path}: {error.strerror}", "check it with: ls -l") from error
    return bad


def verify_all(folder: Path) -> tuple[int, list[CacheError]]:
    """Read every byte of a cache, and look for what is not there: how many items are good, and each fault."""
    good, faults, sound = 0, list[CacheError](), list[Shard]()
    index = _tried(lambda: read_index(folder), faults) or Index()
    paths = shard_paths(folder)
    for path in paths:
        try:
            shard = read_header(path)
            bad = verify(shard)
        except CacheError as error:
            faults.append(error)
            continue
        good += len(shard.items) - len(bad)
        faults += [damaged(item, shard) for item in bad]
        sound.append(shard)
        if shard.run != sound[0].run:
            faults.append(mixed(path, sound[0].path))
    there = {number: 0 for path in paths if (number := number_of(path)) is not None}
    lost = missing(folder, index, there | {shard.number: len(shard.items) for shard in sound})
    if lost.numbers:  # with how many items, nobody knows where there are shards that cannot be read
        faults.append((lost if len(sound) == len(paths) else replace(lost, items=0)).error)
    twice = doubled(sound)
    for other in (Cache(folder, ()).failures, lambda: read_calibration(folder)):
        _tried(other, faults)
    return good - sum(count for _, count in twice), faults + [fault for fault, _ in twice]


def doubled(shards: Iterable[Shard]) -> list[tuple[CacheError, int]]:
    """A fault for each shard that holds again what the cache had, and how much it is. What changed, and changed back
    later, is not had."""
    last, faults = dict[str, tuple[str, Shard]](), list[tuple[CacheError, int]]()
    for shard in shards:
        held = list[tuple[str, Shard]]()
        for item in shard.items:
            digest, where = last.get(item.source, ("", shard))
            held += [(item.source, where)] * (digest == item.digest)
            last[item.source] = item.digest, shard
        if held:
            source, where = held[0]
            problem = f"{shard.path} holds {plural(len(held), 'item')} again, first {source} of {where.path.name}"
            faults.append((CacheError(problem, again(shard.path)), len(held)))
    return faults


def _tried(read: Callable[[], T], faults: list[CacheError]) -> T | None:
    """What it gives, or one fault more."""
    try:
        return read()
    except CacheError as error:
        faults.append(error)
        return None
