"""The columns of the index, with a row for each item. index_file.py says how they are stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.tokencache.format import Shard, hash_source


class ShardPosition(NamedTuple):
    """Where an item is: the number of its shard, and the item's number in it."""

    shard: int
    item: int


class Stamp(NamedTuple):
    """Size and time of change of a file, by which an unchanged input is recognised without reading it.

    Attributes:
        bytes: Size of the file.
        mtime_ns: Time of its last change, in nanoseconds.
    """

    bytes: int
    mtime_ns: int


NO_STAMP = Stamp(-1, -1)


@dataclass(frozen=True)
class Table:
    """Items in columns, M rows each.

    Attributes:
        names: [M, 16] uint8, BLAKE2b-128 of the source.
        digests: [M, 32] uint8, SHA-256 of the input's bytes.
        positions: [M, 2] int32, `ShardPosition`.
        stamps: [M, 2] int64, `Stamp` of the input; -1 where unknown.
        counts: [M, 2] int32, tokens of the item and kept tokens.
        phi: [M] float64, information.
    """

    names: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    positions: NDArray[np.int32]
    stamps: NDArray[np.int64]
    counts: NDArray[np.int32]
    phi: NDArray[np.float64]

    @classmethod
    def blank(cls, count: int) -> Table:
        """Return `count` rows of zeros without stamps."""
        return cls(
            names=np.zeros((count, 16), np.uint8),
            digests=np.zeros((count, 32), np.uint8),
            positions=np.zeros((count, 2), np.int32),
            stamps=np.full((count, 2), NO_STAMP, np.int64),
            counts=np.zeros((count, 2), np.int32),
            phi=np.zeros(count, np.float64),
        )

    @classmethod
    def from_shard(cls, shard: Shard, stamps: Mapping[ShardPosition, Stamp]) -> Table:
        """Return the items of a shard. `stamps`: those that are known."""
        items, positions = shard.items, [ShardPosition(shard.number, item) for item in range(len(shard.items))]
        return cls(
            names=np.frombuffer(b"".join(hash_source(item.source) for item in items), np.uint8).reshape(-1, 16),
            digests=np.frombuffer(b"".join(bytes.fromhex(item.digest) for item in items), np.uint8).reshape(-1, 32),
            positions=np.array(positions, np.int32).reshape(-1, 2),
            stamps=np.array([stamps.get(position, NO_STAMP) for position in positions], np.int64).reshape(-1, 2),
            counts=np.array([(item.layout.total, item.kept) for item in items], np.int32).reshape(-1, 2),
            phi=np.array([item.phi for item in items], np.float64),
        )

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Table:
        """Select rows by numbers or by a mask."""
        return Table(*(getattr(self, name)[rows] for name in COLUMNS))

    def without(self, positions: Collection[ShardPosition]) -> Table:
        """Leave out the items at some positions."""
        if not positions:
            return self
        keys = self.positions[:, 0].astype(np.int64) << 32 | self.positions[:, 1]
        return self.take(~np.isin(keys, [position.shard << 32 | position.item for position in positions]))

    @cached_property
    def name_prefixes(self) -> NDArray[np.uint64]:
        """The first eight bytes of each name, as big-endian numbers: they sort like the names."""
        return np.ascontiguousarray(self.names[:, :8]).view(">u8")[:, 0].astype(np.uint64)

    def __len__(self) -> int:
        return len(self.phi)


COLUMNS = tuple(column.name for column in fields(Table))


def drop_superseded(
    table: Table,
) -> tuple[Table, frozenset[ShardPosition], tuple[tuple[ShardPosition, ShardPosition], ...]]:
    """Keep the last row of each name.

    Returns:
        The table, in the order of its names; the positions of the dropped rows; and, for each row that follows one with
        the same name and the same digest, its position and the position of that one.
    """
    if not len(table):
        return table, frozenset(), ()
    halves = np.ascontiguousarray(table.names).view(">u8")
    table = table.take(np.lexsort((table.positions[:, 1], table.positions[:, 0], halves[:, 1], halves[:, 0])))
    is_newer = (table.names[1:] == table.names[:-1]).all(1)
    if not is_newer.any():
        return table, frozenset(), ()
    is_duplicate = is_newer & (table.digests[1:] == table.digests[:-1]).all(1)
    positions = [ShardPosition(*position) for position in table.positions.tolist()]
    superseded = frozenset(positions[row] for row in np.flatnonzero(is_newer))
    duplicates = tuple((positions[row + 1], positions[row]) for row in np.flatnonzero(is_duplicate))
    return table.take(np.append(~is_newer, True)), superseded, duplicates


def copy_stamps(table: Table, source: Table) -> Table:
    """Fill in unknown stamps of `table` from the rows of `source` that have the same name and digest.

    Args:
        table: The table to fill in.
        source: A table in the order of its names.
    """
    if not len(source):
        return table
    rows = np.searchsorted(source.name_prefixes, table.name_prefixes).clip(max=len(source) - 1)
    is_same = (source.names[rows] == table.names).all(1) & (source.digests[rows] == table.digests).all(1)
    is_wanted = is_same & (table.stamps[:, 0] < 0)
    return replace(table, stamps=np.where(is_wanted[:, None], source.stamps[rows], table.stamps))
