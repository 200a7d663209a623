"""The index: how many shards there are, so that one that is lost is missed. What a shard holds, its header tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.output import plural
from prunesid_cli.tokencache.format import INDEX, shard_name

NAMED = 3
"""Missing shards that a message names; of more it tells how many."""


@dataclass(frozen=True)
class Index:
    """Numbers below `shards` were given out, to shards of `items` items together; `given_up` of them were lost, and a
    later run went on without them."""

    shards: int = 0
    items: int = 0
    given_up: tuple[int, ...] = ()


@dataclass(frozen=True)
class Missing:
    """Shards that a cache should have and does not; `items`: how many were in them, 0 where nothing tells."""

    folder: Path
    numbers: tuple[int, ...]
    items: int

    @property
    def error(self) -> CacheError:
        names = [shard_name(number) for number in self.numbers]
        more = len(names) - NAMED
        listed = ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
        are = "is" if len(names) == 1 else "are"
        held = f", and with {'it' if len(names) == 1 else 'them'} {plural(self.items, 'item')}" if self.items else ""
        return CacheError(f"{self.folder}: {listed} {are} missing{held}", "run the same compress: it does them again")


def read_index(folder: Path) -> Index:
    """The index of a cache, an empty one where there is none. Read it before the folder is listed: a run that writes
    meanwhile then seems to have too many shards, which is no fault.

    Raises:
        CacheError: it cannot be read.
    """
    path = folder / INDEX
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        index = Index(found["shards"], found["items"], tuple(found["given_up"]))
        if not all(isinstance(number, int) for number in (index.shards, index.items, *index.given_up)):
            raise ValueError("no numbers")
    except (FileNotFoundError, NotADirectoryError):
        return Index()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"cannot read {path}: {error}", f"delete {path} and run the same compress again") from error
    return index


def missing(folder: Path, index: Index, present: Mapping[int, int]) -> Missing:
    """What a cache should have besides the shards that are `present`: number -> how many items."""
    there = {*present, *index.given_up}
    wanted = range(max(index.shards, 1 + max(present, default=-1)))
    numbers = tuple(number for number in wanted if number not in there)
    known = sum(items for number, items in present.items() if number < index.shards)
    return Missing(folder, numbers, max(index.items - known, 0) if numbers else 0)
