"""Which contents a cache holds: a digest -> where an item with it is. It grows while a run adds items."""

from __future__ import annotations

from threading import Lock

import numpy as np

from prunesid_cli.tokencache.index_table import ShardPosition, Table

DIGEST_BYTES = 16
"""How much of a digest is compared. Contents of which this much is equal do not exist by chance."""
MIN_MERGED = 1 << 16
"""So many new digests, or an eighth of the others if that is more, are merged into the sorted ones."""


class RepeatedDigests:
    """Which digests several items have."""

    def __init__(self, table: Table) -> None:
        prefixes = np.sort(np.ascontiguousarray(table.digests[:, :8]).view(">u8")[:, 0].astype(np.uint64))
        self._prefixes = np.unique(prefixes[1:][prefixes[1:] == prefixes[:-1]])

    def has(self, digest: str) -> bool:
        """Whether several items have a digest, which is given in hex. By its beginning: one in 10^12 has it by chance."""
        prefix = np.uint64(int(digest[:16], 16))
        row = int(np.searchsorted(self._prefixes, prefix))
        return row < len(self._prefixes) and bool(self._prefixes[row] == prefix)


class ContentIndex:
    """Finds items by the digest of their input. May be used by several threads.

    Most digests are in a sorted table, which takes 24 bytes for each: a set of Python objects would take six times as
    much.
    """

    def __init__(self, table: Table) -> None:
        """Begin with the items of an index."""
        self._lock, self._new = Lock(), dict[bytes, ShardPosition]()
        self._digests, self._positions = np.empty((0, 2), np.uint64), np.empty((0, 2), np.int32)
        self._merge(np.ascontiguousarray(table.digests[:, :DIGEST_BYTES]), table.positions)

    def find(self, digest: str) -> ShardPosition | None:
        """Return where an item with a digest is, which is given in hex."""
        key = bytes.fromhex(digest)[:DIGEST_BYTES]
        with self._lock:
            if key in self._new:
                return self._new[key]
            high, low = np.frombuffer(key, ">u8").astype(np.uint64)
            start, end = (int(np.searchsorted(self._digests[:, 0], high, side)) for side in ("left", "right"))
            for row in range(start, end):
                if self._digests[row, 1] == low:
                    return ShardPosition(*self._positions[row].tolist())
        return None

    def add(self, digest: str, position: ShardPosition) -> None:
        """Add an item. Of several with one digest, one is found."""
        with self._lock:
            self._new[bytes.fromhex(digest)[:DIGEST_BYTES]] = position
            if len(self._new) >= max(MIN_MERGED, len(self._digests) // 8):
                keys = np.frombuffer(b"".join(self._new), np.uint8).reshape(-1, DIGEST_BYTES)
                self._merge(keys, np.array(list(self._new.values()), np.int32))
                self._new = {}

    def _merge(self, keys: np.ndarray, positions: np.ndarray) -> None:
        """Add rows: [M, 16] uint8 and [M, 2] int32."""
        digests = np.concatenate([self._digests, keys.view(">u8").astype(np.uint64)])
        all_positions = np.concatenate([self._positions, positions])
        order = np.argsort(digests[:, 0], kind="stable")
        self._digests, self._positions = digests[order], all_positions[order]
