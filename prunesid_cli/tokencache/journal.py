"""The shard that is being filled: durable item by item, so that a crash costs next to nothing, and never in memory.

Rows are appended to a file beside the shard, and what the header will tell of them to another, the log: a line for the
shard, for each new layout and for each item, each with its checksum. Both are synced every now and then, which costs no
more than what was added. From them the shard is written when it is full or the run ends; and if the run was killed, by
the next one (`recover`), as where the disk had no room for both.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from prunesid_cli.errors import CacheError
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.tokencache.format import (
    FORMAT,
    Item,
    Run,
    canonical,
    checksum,
    layout_to_record,
    parse_shard_number,
    layout_from_record,
    shard_name,
)
from prunesid_cli.tokencache.quantization import BYTES, STORES, dtype_of
from prunesid_cli.tokencache.shard import Tensors, channels, read_header, read_rows, write_file
from prunesid_cli.types import Layout

LOGS = ".prunesid-*.log"


@dataclass
class ShardJournal:
    """Takes items and writes itself, as often as is wanted: each time with all that it was given so far.

    width: channels of a row, known with the first item; size: bytes of all rows.

    Raises:
        CacheError: it cannot be written. What was there before stays.
    """

    path: Path
    run: Run
    tool: str
    width: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    layouts: dict[Layout, int] = field(default_factory=dict)
    rows: int = 0
    size: int = 0
    spool: BinaryIO | None = None
    log: BinaryIO | None = None

    @classmethod
    def go_on(cls, path: Path, run: Run, tool: str) -> ShardJournal:
        """Behind what a file of that name holds already, every byte of which is checked."""
        shard = read_header(path)
        growing = cls(path, run, tool)
        for item, (data, *scales) in read_rows(shard, shard.items):
            growing.add(item, channels(shard), data, b"".join(scales))
        return growing

    @property
    def number(self) -> int:
        number = parse_shard_number(self.path)
        assert number is not None
        return number

    def beside(self, what: str) -> Path:
        return self.path.with_name(f".{self.path.stem}.{what}")

    def add(self, item: Item, width: int, data: bytes, scales: bytes) -> None:
        """`item` tells all but its rows, which follow those that are here."""
        count = item.rows[1] - item.rows[0]
        self.width = self.width or width
        is_new = item.layout not in self.layouts
        record = item.to_record(self.layouts.setdefault(item.layout, len(self.layouts)))
        record |= {"rows": (self.rows, self.rows + count)}
        try:
            spool, log = self._files()
            spool.write(data + scales)
            if is_new:
                log.write(_line("layout", layout_to_record(item.layout)))
            log.write(_line("item", record))
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.records.append(record)
        self.rows += count
        self.size += len(data) + len(scales)

    def _files(self) -> tuple[BinaryIO, BinaryIO]:
        if self.spool is None or self.log is None:
            self.spool, self.log = self.beside("rows").open("w+b"), self.beside("log").open("wb")
            told = {"run": asdict(self.run), "tool": self.tool, "number": self.number, "width": self.width}
            self.log.write(_line("shard", told))
        return self.spool, self.log

    def sync(self) -> None:
        """From here on a crash does not lose what was added."""
        try:
            for file in (self.spool, self.log):
                if file is not None:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def write(self) -> None:
        body = {
            "format": FORMAT,
            "number": self.number,
            "tool": self.tool,
            "run": asdict(self.run),
            "items": self.records,
            "layouts": [layout_to_record(layout) for layout in self.layouts],
        }
        groups = STORES[self.run.store].scales(self.width)
        row = self.width * BYTES[dtype_of(self.run.store, self.run.dtype)]
        tensors: Tensors = {"scales": ("F32", [self.rows, groups], self._parts(row, 4 * groups))} if groups else {}
        tensors["tokens"] = (dtype_of(self.run.store, self.run.dtype), [self.rows, self.width], self._parts(0, row))

        def write(beside: Path) -> None:
            with beside.open("wb") as file:
                write_file(file, body, tensors)

        try:
            write_atomically(self.path, write)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _parts(self, skipped: int, row: int) -> Iterator[bytes]:
        """Of each item, the bytes that follow `skipped` for each of its rows: `row` for each.

        Raises:
            OSError: they are not there, as on a full disk.
        """
        at, stride = 0, self.size // max(self.rows, 1)
        for record in self.records:
            count = record["rows"][1] - record["rows"][0]
            yield _read(self.spool, at + skipped * count, row * count)
            at += stride * count
        if self.spool is not None:
            self.spool.seek(0, os.SEEK_END)

    def leave(self) -> None:
        """Let go of the files, from which `recover` writes the shard."""
        for file in (self.spool, self.log):
            if file is not None:
                with suppress(OSError):  # what is still buffered has no room on a full disk
                    file.close()
        self.spool = self.log = None

    def close(self) -> None:
        """Forget what is not in the shard."""
        self.leave()
        for what in ("log", "rows"):
            self.beside(what).unlink(missing_ok=True)


def _read(file: BinaryIO | None, at: int, count: int) -> bytes:
    if file is None:
        raise OSError(errno.EIO, "what was written is not there")
    file.seek(at)
    data = file.read(count)
    if len(data) < count:
        raise OSError(errno.EIO, "what was written is not there")
    return data


def recover(folder: Path) -> None:
    """Write what a run that was killed had synced, and did not come to write.

    Raises:
        CacheError: it cannot be written.
    """
    for log in folder.glob(LOGS):
        growing = _read_log(folder, log)
        if growing is not None:
            held = len(read_header(growing.path).items) if growing.path.exists() else 0
            if len(growing.records) > held:
                growing.write()
            growing.close()
    for left in (*folder.glob(LOGS), *folder.glob(".prunesid-*.rows")):
        left.unlink()


def _read_log(folder: Path, log: Path) -> ShardJournal | None:
    """The shard that a log tells of, up to where the log, or the rows that it tells of, are not whole."""
    lines = _whole_lines(log)
    kind, head = next(lines, ("", {}))
    if kind != "shard" or log.name != f".{Path(shard_name(head['number'])).stem}.log":
        return None
    growing = ShardJournal(
        folder / shard_name(head["number"]),
        Run(**head["run"]),
        head["tool"],
        head["width"],
    )
    rows = growing.width * BYTES[dtype_of(growing.run.store, growing.run.dtype)]
    scales = 4 * STORES[growing.run.store].scales(growing.width)
    try:
        growing.spool = growing.beside("rows").open("rb")
    except FileNotFoundError:
        return None
    for kind, record in lines:
        if kind == "layout":
            growing.layouts[layout_from_record(record)] = len(growing.layouts)
            continue
        count = record["rows"][1] - record["rows"][0]
        growing.spool.seek(growing.size)
        if checksum(growing.spool.read((rows + scales) * count)) != record["check"]:
            break
        growing.records.append(record)
        growing.rows, growing.size = growing.rows + count, growing.size + (rows + scales) * count
    return growing


def _line(kind: str, record: dict[str, Any]) -> bytes:
    text = canonical([kind, record]).encode()
    return checksum(text).encode() + b" " + text + b"\n"


def _whole_lines(log: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in log.read_bytes().split(b"\n"):
        check, _, text = line.partition(b" ")
        if check != checksum(text).encode():
            return
        kind, record = json.loads(text)
        yield kind, record


def unwritable(path: Path, error: OSError) -> CacheError:
    return CacheError(f"cannot write {path}: {error.strerror}", hint="free some space, then run the same command")
