"""Which contents a cache holds: a digest -> where an item with it is. It grows while a run adds items."""

from __future__ import annotations

from threading import Lock

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.tokencache.index_table import ShardPosition, Table

MIN_MERGED = 1 << 16
"""So many new digests, or an eighth of the others if that is more, are merged into the sorted ones."""


class RepeatedDigests:
    """Which digests several items have. 64 bits of them are compared: another digest may count as one of them."""

    def __init__(self, table: Table) -> None:
        folded = np.sort(np.bitwise_xor.reduce(_fold(table.digests), axis=1))
        self._repeated = np.unique(folded[1:][folded[1:] == folded[:-1]])

    def has(self, digest: str) -> bool:
        """Whether several items have a digest, which is given in hex."""
        high, low = _fold_hex(digest)
        folded = np.uint64(high ^ low)
        row = int(np.searchsorted(self._repeated, folded))
        return row < len(self._repeated) and bool(self._repeated[row] == folded)


class ContentIndex:
    """Finds items by 128 bits of the digest of their input. May be used by several threads.

    Most digests are in a sorted table, which takes 24 bytes for each.
    """

    def __init__(self, table: Table) -> None:
        """Begin with the items of an index."""
        self._lock, self._new = Lock(), dict[tuple[int, int], ShardPosition]()
        self._digests, self._positions = np.empty((0, 2), np.uint64), np.empty((0, 2), np.int32)
        self._merge(_fold(table.digests), table.positions)

    def find(self, digest: str) -> ShardPosition | None:
        """Return where an item with a digest is, which is given in hex."""
        high, low = _fold_hex(digest)
        with self._lock:
            if (high, low) in self._new:
                return self._new[high, low]
            row = int(self._digests[:, 0].searchsorted(np.uint64(high)))
            while row < len(self._digests) and self._digests[row, 0] == high:
                if self._digests[row, 1] == low:
                    return ShardPosition(*self._positions[row].tolist())
                row += 1
        return None

    def add(self, digest: str, position: ShardPosition) -> None:
        """Add an item. Of several with one digest, one is found."""
        with self._lock:
            self._new[_fold_hex(digest)] = position
            if len(self._new) >= max(MIN_MERGED, len(self._digests) // 8):
                self._merge(np.array(list(self._new), np.uint64), np.array(list(self._new.values()), np.int32))
                self._new = {}

    def _merge(self, digests: NDArray[np.uint64], positions: NDArray[np.int32]) -> None:
        """Add rows: [M, 2] each."""
        digests, positions = np.concatenate([self._digests, digests]), np.concatenate([self._positions, positions])
        order = np.argsort(digests[:, 0], kind="stable")
        self._digests, self._positions = digests[order], positions[order]


def _fold(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Fold digests, [M, 32], to 128 bits each, [M, 2]."""
    parts = np.ascontiguousarray(digests).view(">u8").astype(np.uint64).reshape(-1, 4)
    return parts[:, :2] ^ parts[:, 2:]


def _fold_hex(digest: str) -> tuple[int, int]:
    """Fold one digest, given in hex."""
    folded = int(digest[:32], 16) ^ int(digest[32:], 16)
    return folded >> 64, folded & (1 << 64) - 1
