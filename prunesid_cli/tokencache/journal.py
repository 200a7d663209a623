"""The shard that is being filled. Its items are durable one by one, so that a crash costs next to nothing.

Items are appended to two working files beside the shard; nothing is kept in memory but their records. The rows file,
`.prunesid-NNNNN.rows`, has the bytes of their rows: for each item, its tokens and then its scales. The log,
`.prunesid-NNNNN.log`, has a line for the shard, for each new layout and for each item. A line is the BLAKE2b-128 of its
JSON in hex, a space, and the JSON: [kind, record]. Both files are synced from time to time, which costs no more than
what was added. The shard is written from them when it is full or the run ends. If the run was killed, or the disk had
no room for the shard beside them, the next run writes it (`recover`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from prunesid_cli.errors import CacheError
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.tokencache.cache_errors import read_error, repair_hint, write_error
from prunesid_cli.tokencache.cache_file import PARSE_ERRORS, build_record, create_file, open_file, parse_json
from prunesid_cli.tokencache.format import (
    FORMAT,
    LOG_GLOB,
    MAX_SHARDS,
    Item,
    RowsPlace,
    Run,
    Shard,
    TensorLocation,
    canonical_json,
    checksum,
    layout_from_record,
    layout_to_record,
    shard_name,
)
from prunesid_cli.tokencache.quantization import DTYPE_BYTES, STORES, stored_dtype
from prunesid_cli.tokencache.run_mismatch import describe_mismatch, mismatch_hint
from prunesid_cli.tokencache.shard import (
    MAX_HEADER_BYTES,
    PackedRows,
    TensorData,
    read_header,
    read_rows,
    row_channels,
    write_shard_file,
)
from prunesid_cli.types import Layout

ROWS_GLOB = ".prunesid-*.rows"


class ShardJournal:
    """Appends items to a shard, and writes the shard as often as wanted, each time with all items so far.

    Attributes:
        path: The shard.
        number: Its number.
        run: Settings of the cache.
        tool: Version of prunesid that writes the shard.
        channels: Channels of a row; 0 until the first item is added.
        items: The items, with the rows that the shard assigns to them.
        layouts: Their layouts -> the numbers of these.
        num_rows: Rows of all items that have some of their own.
        num_bytes: Bytes of all rows, scales included.
    """

    def __init__(self, folder: Path, number: int, run: Run, tool: str, channels: int = 0) -> None:
        self.path = folder / shard_name(number)
        self.number, self.run, self.tool, self.channels = number, run, tool, channels
        self.items, self.layouts = list[Item](), dict[Layout, int]()
        self.num_rows = self.num_bytes = 0
        self.rows_path = self.path.with_name(f".{self.path.stem}.rows")
        self.log_path = self.path.with_name(f".{self.path.stem}.log")
        self.rows_file: BinaryIO | None = None
        self.log_file: BinaryIO | None = None

    def add(self, item: Item, rows: PackedRows) -> None:
        """Append an item. Its rows follow those of the earlier items, whatever `item.rows` begins with.

        Args:
            item: The item. `shard` and `rows` of a copy stay as they are.
            rows: Its rows; of a copy, none.

        Raises:
            CacheError: It cannot be written.
        """
        if item.shard is None:
            item = replace(item, rows=(self.num_rows, self.num_rows + len(item.slots)))
        self.channels = self.channels or rows.channels
        if rows.channels != self.channels:
            problem = f"{self.path} has tokens of {self.channels} channels, and {item.source} of {rows.channels}"
            raise CacheError(problem, repair_hint(self.path))
        is_new_layout = item.layout not in self.layouts
        layout_number = self.layouts.setdefault(item.layout, len(self.layouts))
        try:
            if self.rows_file is None or self.log_file is None:
                self.rows_file, self.log_file = create_file(self.rows_path), create_file(self.log_path)
                head = {"run": self.run.to_record(), "tool": self.tool, "number": self.number, "width": self.channels}
                self.log_file.write(_log_line("shard", head))
            self.rows_file.write(rows.data + rows.scales)
            if is_new_layout:
                self.log_file.write(_log_line("layout", layout_to_record(item.layout)))
            self.log_file.write(_log_line("item", item.to_record(layout_number)))
        except OSError as error:
            raise write_error(self.path, error) from error
        self.items.append(item)
        self.num_rows += item.num_own_rows
        self.num_bytes += len(rows.data) + len(rows.scales)

    def take(self, shard: Shard, items: Iterable[Item], moving: Container[int] = ()) -> None:
        """Append items of a version of this shard. Every byte of their rows is checked.

        Args:
            shard: The other version, whose header was read before.
            items: Some of its items, in their order.
            moving: Numbers of shards whose rows will be at other places. Copies of them get rows of their own; of
                several with the same rows, the first one.

        Raises:
            CacheError: They are damaged, or cannot be written.
        """
        no_rows, new_rows = PackedRows(row_channels(shard), b"", b""), dict[RowsPlace, tuple[int, int]]()
        for item in items:
            place = item.rows_place(shard.number)
            if place in new_rows:
                self.add(replace(item, rows=new_rows[place], shard=self.number), no_rows)
            elif place.shard == shard.number or place.shard in moving:
                ((_, rows),) = read_rows(shard, [item])
                self.add(replace(item, shard=None), rows)
                new_rows[place] = self.items[-1].rows
            else:
                self.add(item, no_rows)

    def sync(self) -> None:
        """Make the items so far durable.

        Raises:
            CacheError: They cannot be written.
        """
        try:
            for file in (self.rows_file, self.log_file):
                if file is not None:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    def write(self) -> Shard:
        """Write the shard with all items so far. More can be added after it.

        Raises:
            CacheError: It cannot be written; an earlier version of the shard stays.
        """
        body = {
            "format": FORMAT,
            "number": self.number,
            "tool": self.tool,
            "run": self.run.to_record(),
            "items": [item.to_record(self.layouts[item.layout]) for item in self.items],
            "layouts": [layout_to_record(layout) for layout in self.layouts],
        }
        dtype = stored_dtype(self.run.store, self.run.dtype)
        groups = STORES[self.run.store].scales_per_row(self.channels)
        token_bytes, scale_bytes = self.channels * DTYPE_BYTES[dtype], groups * DTYPE_BYTES["F32"]
        tensors, locations = dict[str, TensorData](), dict[str, TensorLocation]()
        if groups:
            tensors["scales"] = TensorData("F32", [self.num_rows, groups], self._read_rows(token_bytes, scale_bytes))
        tensors["tokens"] = TensorData(dtype, [self.num_rows, self.channels], self._read_rows(0, token_bytes))
        try:
            write_atomically(self.path, lambda file: locations.update(write_shard_file(file, body, tensors)))
        except OSError as error:
            raise write_error(self.path, error) from error
        return Shard(
            path=self.path,
            number=self.number,
            tool=self.tool,
            run=self.run,
            items=tuple(self.items),
            tokens=locations["tokens"],
            scales=locations.get("scales"),
        )

    def _read_rows(self, skipped_bytes: int, row_bytes: int) -> Iterator[bytes]:
        """Read back one tensor, item by item. In the rows file, `skipped_bytes` for each row of the item precede it.

        Raises:
            OSError: The bytes are not there, as on a full disk.
        """
        start, stride = 0, self.num_bytes // max(self.num_rows, 1)
        for item in self.items:
            if item.shard is not None:
                continue
            count, data = item.num_own_rows, b""
            if self.rows_file is not None:
                self.rows_file.seek(start + skipped_bytes * count)
                data = self.rows_file.read(row_bytes * count)
            if self.rows_file is None or len(data) < row_bytes * count:
                raise OSError(errno.EIO, "the rows that were written cannot be read back")
            yield data
            start += stride * count
        if self.rows_file is not None:
            self.rows_file.seek(0, os.SEEK_END)

    def close(self, delete_files: bool) -> None:
        """Close the working files. Unless they are deleted, `recover` writes the shard from them."""
        for file in (self.rows_file, self.log_file):
            if file is not None:
                with suppress(OSError):  # on a full disk there is no room for what is still buffered
                    file.close()
        self.rows_file = self.log_file = None
        if delete_files:
            self.log_path.unlink(missing_ok=True)
            self.rows_path.unlink(missing_ok=True)


def resume_shard(shard: Shard) -> ShardJournal:
    """Return a journal that holds the items of a shard, to add more.

    Raises:
        CacheError: The shard is damaged, or the items cannot be written.
    """
    journal = ShardJournal(shard.path.parent, shard.number, shard.run, shard.tool, row_channels(shard))
    journal.take(shard, shard.items)
    return journal


def recover(folder: Path, run: Run) -> None:
    """Write the shard of a run that was killed, from what it had synced.

    Args:
        folder: The cache.
        run: Settings of the cache.

    Raises:
        CacheError: It cannot be written, or is not of this cache.
    """
    for log_path in folder.glob(LOG_GLOB):
        try:
            journal = _read_log(folder, log_path)
        except OSError as error:
            raise read_error(log_path, error) from error
        if journal is not None and journal.run != run:
            mismatch = describe_mismatch(journal.run, run)
            raise CacheError(f"{log_path} was left by a run {mismatch}", mismatch_hint(journal.run, run))
        if journal is not None:
            num_written = len(read_header(journal.path).items) if journal.path.exists() else 0
            if len(journal.items) > num_written:
                journal.write()
            journal.close(delete_files=True)
    for path in (*folder.glob(LOG_GLOB), *folder.glob(ROWS_GLOB)):
        try:
            path.unlink()
        except OSError as error:
            raise write_error(path, error) from error


def count_unfinished(folder: Path) -> int:
    """Return how many items of a run that goes on, or was killed, are not in a shard yet."""
    count = 0
    for log_path in folder.glob(LOG_GLOB):
        try:
            num_items = sum(kind == "item" for kind, _ in _read_lines(log_path))
            path = folder / f"{log_path.stem.removeprefix('.')}.safetensors"
            count += max(0, num_items - (len(read_header(path).items) if path.exists() else 0))
        except (OSError, CacheError, *PARSE_ERRORS):  # the run has just ended, or the next one reports the error
            continue
    return count


def _read_log(folder: Path, log_path: Path) -> ShardJournal | None:
    """Read a journal up to the first damaged line, or the first item whose rows are incomplete.

    Returns:
        The journal; None if it is not one, or its rows are not there.

    Raises:
        OSError: A file cannot be read.
    """
    try:
        lines = _read_lines(log_path)
        kind, head = next(lines, ("", {}))
        if kind != "shard":
            return None
        run, channels = build_record(head["run"], Run), int(head["width"])
        journal = ShardJournal(folder, int(head["number"]), run, str(head["tool"]), channels)
        row_bytes = channels * DTYPE_BYTES[stored_dtype(run.store, run.dtype)]
        row_bytes += STORES[run.store].scales_per_row(channels) * DTYPE_BYTES["F32"]
        is_number = 0 <= journal.number < MAX_SHARDS
        if not is_number or journal.log_path.name != log_path.name or row_bytes <= 0:
            return None
        journal.rows_file = open_file(journal.rows_path)
        rows_end = os.fstat(journal.rows_file.fileno()).st_size
    except (FileNotFoundError, *PARSE_ERRORS):
        return None
    layouts = dict[int, Layout]()
    with suppress(*PARSE_ERRORS):  # of a line that cannot be right: what follows it is not read
        for kind, record in lines:
            if kind == "layout":
                layout = layout_from_record(record)
                layouts[len(layouts)], journal.layouts[layout] = layout, len(layouts)
                continue
            item = Item.from_record(record, layouts)
            if item.shard is not None:
                journal.items.append(item)
                continue
            end = journal.num_bytes + row_bytes * len(item.slots)
            if item.rows[0] != journal.num_rows or end > rows_end:
                break
            journal.rows_file.seek(journal.num_bytes)
            if checksum(journal.rows_file.read(end - journal.num_bytes)) != item.check:
                break
            journal.items.append(item)
            journal.num_rows, journal.num_bytes = item.rows[1], end
    return journal


def _log_line(kind: str, record: dict[str, Any]) -> bytes:
    text = canonical_json([kind, record]).encode()
    return checksum(text).encode() + b" " + text + b"\n"


def _read_lines(log_path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_file(log_path) as file:
        while line := file.readline(MAX_HEADER_BYTES).removesuffix(b"\n"):
            check, _, text = line.partition(b" ")
            if check != checksum(text).encode():
                return
            kind, record = parse_json(text)
            yield kind, record
