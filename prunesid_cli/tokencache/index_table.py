"""The columns of the index, a row for each item: see index_file.py, which says what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.tokencache.format import Shard, hash_source

UNKNOWN = (-1, -1)
ShardPosition = tuple[int, int]
"""Number of a shard, place in it."""


class Stamp(NamedTuple):
    """What a file's folder tells of it: bytes, and time of change in ns."""

    bytes: int
    changed: int


@dataclass(frozen=True)
class Table:
    """Rows as the module's docstring has them."""

    names: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    places: NDArray[np.int32]
    stamps: NDArray[np.int64]
    counts: NDArray[np.int32]
    phi: NDArray[np.float64]

    @classmethod
    def of(cls, shard: Shard, stamps: Mapping[ShardPosition, Stamp]) -> Table:
        """All items of a shard; `stamps`: of some, by their places."""
        items, places = shard.items, [(shard.number, place) for place in range(len(shard.items))]
        return cls(
            np.frombuffer(b"".join(hash_source(item.source) for item in items), np.uint8).reshape(-1, 16),
            np.frombuffer(b"".join(bytes.fromhex(item.digest) for item in items), np.uint8).reshape(-1, 32),
            np.array(places, np.int32).reshape(-1, 2),
            np.array([stamps.get(place, UNKNOWN) for place in places], np.int64).reshape(-1, 2),
            np.array([(item.layout.total, item.kept) for item in items], np.int32).reshape(-1, 2),
            np.array([item.phi for item in items], np.float64),
        )

    @classmethod
    def joined(cls, tables: Sequence[Table]) -> Table:
        parts = tables or [EMPTY]
        return cls(*(np.concatenate([getattr(one, name) for one in parts]) for name in COLUMNS))

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Table:
        return Table(*(getattr(self, name)[rows] for name in COLUMNS))

    def __len__(self) -> int:
        return len(self.phi)


COLUMNS = tuple(one.name for one in fields(Table))
KEPT = tuple(name for name in COLUMNS if name != "stamps")
"""What the index's file has. Stamps are in a file of their own, so that equal caches have equal bytes."""
STAMPED = ("names", "digests", "stamps")
EMPTY = Table(
    np.zeros((0, 16), np.uint8), np.zeros((0, 32), np.uint8), np.zeros((0, 2), np.int32),
    np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int32), np.zeros(0, np.float64),
)  # fmt: skip


def latest(table: Table) -> tuple[Table, frozenset[ShardPosition], tuple[tuple[ShardPosition, ShardPosition], ...]]:
    """The last row of each name, in their order; places of the others; and of rows that follow one of the same digest,
    with that one."""
    if not len(table):
        return table, frozenset(), ()
    heads = np.ascontiguousarray(table.names).view(">u8")
    order = np.lexsort((table.places[:, 1], table.places[:, 0], heads[:, 1], heads[:, 0]))
    table = table.take(order)
    follows = (table.names[1:] == table.names[:-1]).all(1)
    same = follows & (table.digests[1:] == table.digests[:-1]).all(1)
    is_last = np.append(~follows, True)
    places = [(int(shard), int(place)) for shard, place in table.places] if follows.any() else []
    again = tuple((places[row + 1], places[row]) for row in np.flatnonzero(same))
    dead = frozenset(places[row] for row in np.flatnonzero(~is_last))
    return (table.take(is_last) if follows.any() else table), dead, again


def with_stamps(table: Table, known: Table) -> Table:
    """With the stamps of the same inputs in another table, where they are not known here."""
    if not len(known):
        return table
    rows = np.searchsorted(heads(known), heads(table)).clip(max=len(known) - 1)
    same = (known.names[rows] == table.names).all(1) & (known.digests[rows] == table.digests).all(1)
    wanted = same & (table.stamps[:, 0] < 0)
    return replace(table, stamps=np.where(wanted[:, None], known.stamps[rows], table.stamps))


def heads(table: Table) -> NDArray[np.uint64]:
    """The first eight bytes of each name, as numbers, which have their order."""
    return np.ascontiguousarray(table.names[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def raw(column: NDArray[Any]) -> Any:
    return np.ascontiguousarray(column).view(np.uint8).data
