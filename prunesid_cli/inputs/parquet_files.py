"""Rows of Parquet files with images, such as those of Hugging Face datasets.

`train.parquet/row-000000123` is the image of a row. With `--id-column image_id` its name is
`train.parquet/image_id=123`, and with several image columns `train.parquet/right/row-000000123`. A row group is read
from front to back, a few rows at a time.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import accumulate
from threading import RLock
from typing import Any, BinaryIO
from urllib.parse import quote

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from prunesid_cli.inputs.columns import to_columns
from prunesid_cli.inputs.containers import COPY_AGAIN, Container, ContainerOptions
from prunesid_cli.inputs.source import LOCAL, FolderEntry, MissingMemberError, SourceError
from prunesid_cli.text import did_you_mean
from prunesid_cli.types import Columns

ROW = re.compile(r"row-(\d{1,18})")
READ_ERRORS = (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a damaged file may raise: the metadata may hold anything."""
BATCH_ROWS = 16
BUFFER_BYTES = 1 << 20
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "picture", "photo")
"""Names that a column of bytes with images has, if there are several of bytes."""


class ParquetContainer(Container):
    """A Parquet file; see `Container`."""

    def __init__(self, path: str, size: int) -> None:
        """Read the metadata.

        Raises:
            OSError: The file is damaged, or is no Parquet file.
        """
        self.path, self.lock = path, RLock()
        try:
            self.file = pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES)
            self.schema = self.file.schema_arrow
            num_groups = self.file.num_row_groups
            counts = [self.file.metadata.row_group(group).num_rows for group in range(num_groups)]
            self.image_columns = find_image_columns(self.schema)
        except READ_ERRORS as error:
            raise SourceError(f"a damaged Parquet file, or another file: {_first_line(error)}", COPY_AGAIN) from error
        self.group_starts = [0, *accumulate(counts)]
        self.num_rows = self.group_starts[-1]
        self.row_bytes = size // max(self.num_rows, 1)
        self.ids = dict[str, dict[str, int]]()
        self.reader: _RowReader | None = None
        self.side_group, self.side_rows = -1, list[dict[str, Any]]()

    def has_inputs(self, options: ContainerOptions) -> bool:
        return bool(self.image_columns)

    def list(self, folder: str, options: ContainerOptions) -> Iterator[FolderEntry]:
        column = folder or self._choose_column(options)
        if not folder and [column] != self.image_columns:
            yield FolderEntry(quote(column, safe=" "), is_folder=True, is_link=False)
            return
        if not options.id_column:
            for row in range(self.num_rows):
                yield FolderEntry(f"row-{row:09d}", is_folder=False, is_link=False)
            return
        for name in self._read_ids(options.id_column):
            yield FolderEntry(name, is_folder=False, is_link=False)
        num_lost = self.num_rows - len(self.ids[options.id_column])
        if num_lost:
            problem = f"{num_lost:,} rows have no {options.id_column!r} of their own, and are left out"
            raise SourceError(problem, "choose another --id-column, or leave it out to number the rows")

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, for a table of paths."""
        with _reading():
            for batch in self.file.iter_batches(BATCH_ROWS, use_threads=False):
                yield from batch.to_pylist()

    def check_columns(self, options: ContainerOptions) -> None:
        """Raise SourceError if it does not have the columns that the options name."""
        names = self.schema.names
        for name in (options.image_column, options.id_column):
            if name and name not in names:
                raise SourceError(f"no column {name!r}", did_you_mean(name, names, f"its columns: {', '.join(names)}"))

    def _choose_column(self, options: ContainerOptions) -> str:
        self.check_columns(options)
        if options.image_column:
            return options.image_column
        if not self.image_columns:
            columns = ", ".join(self.schema.names)
            raise SourceError("no column with images", f"choose one with --image-column: {columns}")
        if len(self.image_columns) > 1:
            found = ", ".join(self.image_columns)
            raise SourceError(f"several columns with images: {found}", f"--image-column {self.image_columns[0]}")
        return self.image_columns[0]

    def _read_ids(self, column: str) -> dict[str, int]:
        """Name -> row, of each row whose id no earlier one has."""
        with self.lock, _reading():
            if column not in self.ids:
                ids, prefix = dict[str, int](), quote(column, safe=" ")
                values = self.file.read(columns=[column], use_threads=False)[column].to_pylist()
                for row, value in enumerate(values):
                    if value is not None:
                        ids.setdefault(f"{prefix}={quote(str(value), safe=' ')}", row)
                self.ids[column] = ids
            return self.ids[column]

    def _find(self, name: str) -> tuple[str, int] | None:
        """Column and row of an image; None if there is no such row."""
        folder, _, last = name.rpartition("/")
        column = next((c for c in self.schema.names if quote(c, safe=" ") == folder), None) if folder else None
        if not folder and len(self.image_columns) == 1:
            column = self.image_columns[0]
        if column is None:
            return None
        match, row = ROW.fullmatch(last), None
        if match:
            row = int(match[1])
        else:
            id_column = next((c for c in self.schema.names if last.startswith(f"{quote(c, safe=' ')}=")), None)
            row = self._read_ids(id_column).get(last) if id_column else None
        return (column, row) if row is not None and row < self.num_rows else None

    def size(self, name: str) -> int | None:
        return self.row_bytes if self._find(name) else None

    def has_folder(self, name: str) -> bool:
        return not name or name in [quote(column, safe=" ") for column in self.schema.names]

    def open(self, name: str) -> BinaryIO:
        found = self._find(name)
        if found is None:
            raise MissingMemberError(f"the table has {self.num_rows:,} rows", "name one of them: row-000000000")
        column, row = found
        with self.lock, _reading():
            value = self._read_value(column, row)
        if isinstance(value, dict):  # as a Hugging Face dataset stores an image
            value = value.get("bytes") or value.get("path")
        if not value:
            raise SourceError(f"the row has no {column}", "it is of no use without one")
        if isinstance(value, str):
            path, folder = os.path.join(os.path.dirname(self.path), value), os.path.dirname(self.path)
            # A stranger's file does not choose what is read.
            if os.path.commonpath([os.path.realpath(path), os.path.realpath(folder)]) != os.path.realpath(folder):
                hint = "move the images there, or list their paths in a .jsonl or .csv file"
                raise SourceError(f"the row names {value}, which is not below the folder of the table", hint)
            try:
                return LOCAL.open(path)
            except FileNotFoundError as error:
                raise SourceError(f"the row names {path}, which is not there", "put it there") from error
        return BytesIO(value)

    def _read_value(self, column: str, row: int) -> Any:
        group = bisect_right(self.group_starts, row) - 1
        offset = row - self.group_starts[group]
        if self.reader is None or not self.reader.can_reach(column, group, offset):
            self.reader = _RowReader(self.file, column, group)
        return self.reader.read(offset)

    def columns(self, name: str) -> Columns:
        found = self._find(name)
        if found is None:
            return ()
        _, row = found
        group = bisect_right(self.group_starts, row) - 1
        with self.lock, _reading():
            if self.side_group != group:
                names = [
                    field.name
                    for field in self.schema
                    if field.name not in self.image_columns and not (_is_struct(field.type) or _is_binary(field.type))
                ]
                rows = self.file.read_row_group(group, columns=names, use_threads=False).to_pylist()
                self.side_group, self.side_rows = group, rows
            return to_columns(self.side_rows[row - self.group_starts[group]])


class _RowReader:
    """Reads the values of a column in a row group, in rising order."""

    def __init__(self, file: pyarrow.parquet.ParquetFile, column: str, group: int) -> None:
        self.column, self.group, self.start, self.batch = column, group, 0, None
        self.batches = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False)

    def can_reach(self, column: str, group: int, offset: int) -> bool:
        return (column, group) == (self.column, self.group) and offset >= self.start

    def read(self, offset: int) -> Any:
        while self.batch is None or offset >= self.start + len(self.batch):
            self.start += len(self.batch) if self.batch is not None else 0
            self.batch = next(self.batches, None)
            if self.batch is None:
                raise ValueError("a row group has fewer rows than the file says")
        return self.batch.column(0)[offset - self.start].as_py()


@contextmanager
def _reading() -> Iterator[None]:
    """Turns what pyarrow raises about damaged files into an error with a hint."""
    try:
        yield
    except SourceError:
        raise
    except READ_ERRORS as error:
        raise SourceError(f"the Parquet file is damaged: {_first_line(error)}", COPY_AGAIN) from error


def find_image_columns(schema: pyarrow.Schema) -> list[str]:
    """The columns with images: by the description of a Hugging Face dataset, or by type and name."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {})
    images = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    images = images or [field.name for field in schema if _is_struct(field.type)]
    binary = [field.name for field in schema if _is_binary(field.type)]
    return images or [name for name in binary if name.lower() in IMAGE_NAMES] or binary


def _is_struct(data_type: pyarrow.DataType) -> bool:
    return pyarrow.types.is_struct(data_type) and data_type.get_field_index("bytes") >= 0


def _is_binary(data_type: pyarrow.DataType) -> bool:
    return pyarrow.types.is_binary(data_type) or pyarrow.types.is_large_binary(data_type)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
