"""The shard that is being filled: its header in memory, its rows in a file beside it, so that memory does not grow."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from prunesid_cli.durable import write_whole
from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.format import FORMAT, Item, Run, number_of
from prunesid_cli.tokencache.shard import Tensors, channels, read_header, read_rows, write_file
from prunesid_cli.tokencache.storage import BYTES, STORES, dtype_of
from prunesid_cli.types import Layout

PIECE = 1 << 20
"""Bytes copied at once."""


@dataclass
class GrowingShard:
    """Takes items and writes itself durably, as often as is wanted: each time with all that it was given so far.

    width: channels of a row, known with the first item; size: bytes of all rows, which lie in a spool file. That has no
    value after a crash.

    Raises:
        CacheError: it cannot be written. What was there before stays.
    """

    path: Path
    run: Run
    tool: str
    width: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    layouts: dict[Layout, int] = field(default_factory=dict)
    scales: list[bytes] = field(default_factory=list)
    rows: int = 0
    size: int = 0
    spool: BinaryIO | None = None

    @classmethod
    def go_on(cls, path: Path, run: Run, tool: str) -> GrowingShard:
        """Behind what a file of that name holds already, every byte of which is checked."""
        shard = read_header(path)
        growing = cls(path, run, tool)
        for item, (data, *scales) in read_rows(shard, shard.items):
            growing.add(item, channels(shard), data, b"".join(scales))
        return growing

    @property
    def number(self) -> int:
        number = number_of(self.path)
        assert number is not None
        return number

    @property
    def spool_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.rows.part")

    def add(self, item: Item, width: int, data: bytes, scales: bytes) -> None:
        """`item` tells all but its rows, which follow those that are here."""
        count = item.rows[1] - item.rows[0]
        try:
            if self.spool is None:
                self.spool = self.spool_path.open("w+b")
            self.spool.write(data)
        except OSError as error:
            raise unwritable(self.path, error) from error
        record = item.record(self.layouts.setdefault(item.layout, len(self.layouts)))
        self.records.append(record | {"rows": (self.rows, self.rows + count)})
        self.scales += [scales] if scales else []
        self.width = self.width or width
        self.rows += count
        self.size += len(data) + len(scales)

    def write(self) -> None:
        body = {
            "format": FORMAT,
            "number": self.number,
            "tool": self.tool,
            "run": asdict(self.run),
            "items": self.records,
            "layouts": [asdict(layout) for layout in self.layouts],
        }
        tensors: Tensors = {"tokens": (dtype_of(self.run.store, self.run.dtype), [self.rows, self.width], self._data())}
        groups = STORES[self.run.store].scales(self.width)
        if groups:
            tensors = {"scales": ("F32", [self.rows, groups], self.scales)} | tensors

        def write(beside: Path) -> None:
            with beside.open("wb") as file:
                write_file(file, body, tensors)

        try:
            write_whole(self.path, write)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _data(self) -> Iterator[bytes]:
        """What the spool holds of whole items. Raises OSError: that is not there, as on a full disk."""
        if self.spool is None:
            return
        left = self.rows * self.width * BYTES[dtype_of(self.run.store, self.run.dtype)]
        self.spool.seek(0)
        while left:
            piece = self.spool.read(min(left, PIECE))
            if not piece:
                raise OSError(errno.EIO, "what was written is not there")
            left -= len(piece)
            yield piece
        self.spool.seek(0, os.SEEK_END)

    def close(self) -> None:
        if self.spool is not None:
            self.spool.close()
            self.spool = None
        self.spool_path.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> CacheError:
    return CacheError(f"cannot write {path}: {error.strerror}", hint="free some space, then run the same command")
