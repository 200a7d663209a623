"""Tables of paths: JSONL, CSV and Parquet files whose rows name an image or clip, by a path or a URL.

Paths are relative to the table's folder, as in `metadata.jsonl` and `metadata.csv` of Hugging Face datasets. The other
columns of a row are copied to the answers about its image. Tables are read row by row.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prunesid_cli.errors import MediaError, UsageError
from prunesid_cli.inputs.columns import to_columns
from prunesid_cli.inputs.containers import Container, ContainerOptions, open_container
from prunesid_cli.inputs.files import FILES, Files
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.inputs.source import LOCAL, SourceError, to_media_error
from prunesid_cli.inputs.uri_files import MARK
from prunesid_cli.text import did_you_mean

LINE_SUFFIXES, TABLE_SUFFIXES = (".jsonl", ".ndjson"), (".csv", ".tsv")
PATH_COLUMNS = (
    "image", "file_name", "path", "file", "filename", "filepath", "file_path", "image_path", "img_path", "video",
    "video_path", "url", "image_url", "uri", "source",
)  # fmt: skip
"""Columns that are taken for paths, the best first, if none is named."""
MAX_LINE = 1 << 20


def expand_tables(paths: Iterable[str], options: ContainerOptions) -> Iterator[str | ListedFile]:
    """Replace tables among some paths by their rows. A row that cannot be used has an error.

    Raises:
        UsageError: A table has no column of paths.
    """
    for path in paths:
        suffix = os.path.splitext(path)[1].lower()
        if suffix in (*LINE_SUFFIXES, *TABLE_SUFFIXES) and (MARK in path or os.path.isfile(path)):
            yield from _list_rows(path, _read_lines(path, suffix), options)
        elif suffix == ".parquet" and os.path.isfile(path):
            _check_columns(path, options)
            if Files(options).containers.has_inputs(path):
                yield path
            else:
                yield from _list_rows(path, _read_parquet(path), options)
        else:
            yield path


def _check_columns(path: str, options: ContainerOptions) -> None:
    """Raise UsageError if a Parquet file that the user named lacks a column that the user named."""
    try:
        container: Any = _open_parquet(path)
        container.check_columns(options)
    except SourceError as error:
        if (options.image_column or options.id_column) and "no column" in str(error):
            raise UsageError(f"{path}: {error.strerror}", error.hint) from error


def _list_rows(path: str, rows: Iterator[tuple[int, Any]], options: ContainerOptions) -> Iterator[ListedFile]:
    """The rows of a table; they come with their numbers, and are mappings, or texts that say what is wrong."""
    column, folder, is_checked = options.image_column, os.path.dirname(path), False
    try:
        for number, row in rows:
            place = f"{path}, {'row' if path.endswith('.parquet') else 'line'} {number}"
            if not isinstance(row, Mapping):
                yield ListedFile(place, MediaError(f"{place}: {row}", "correct it, or remove it"))
                continue
            if not is_checked:
                column, is_checked = _find_path_column(path, row, column), True
            name = row.get(column)
            if not isinstance(name, str) or not name:
                error = MediaError(f"{place}: no path in '{column}'", "correct it, or choose another --image-column")
                yield ListedFile(place, error)
                continue
            source = name if MARK in name else os.path.join(folder, name)
            others = {other: value for other, value in row.items() if other != column}
            yield ListedFile(source, columns=to_columns(others))
    except (OSError, ValueError) as error:
        yield ListedFile(path, to_media_error(path, error))


def _find_path_column(path: str, row: Mapping[str, Any], named: str) -> str:
    """The column of paths: the one that was named, or one with a usual name. `row`: the first one."""
    if named:
        if named not in row:
            raise UsageError(
                f"{path} has no column {named!r}",
                did_you_mean(named, map(str, row), f"it has {', '.join(map(str, row))}"),
            )
        return named
    found = next((name for name in PATH_COLUMNS if isinstance(row.get(name), str)), None)
    if found is None:
        hint = "choose one of its columns with --image-column"
        raise UsageError(f"{path} has no column of paths, but {', '.join(map(str, row)) or 'none'}", hint)
    return found


def _read_lines(path: str, suffix: str) -> Iterator[tuple[int, Any]]:
    with FILES.open(path) as file:
        if suffix in LINE_SUFFIXES:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if line.strip():
                    yield number, _parse_line(line)
            return
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        reader = csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ",")
        try:
            for row in reader:
                is_whole = None not in row  # columns at the end may be missing
                found = {name: value for name, value in row.items() if value is not None}
                yield reader.line_num, found if is_whole else "more columns than the first line"
        except csv.Error as error:
            yield reader.line_num, f"not CSV: {error}"


def _parse_line(line: bytes) -> Any:
    if len(line) > MAX_LINE:
        return f"longer than {MAX_LINE:,} bytes"
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return "not JSON"
    return record if isinstance(record, dict) else "not a JSON object"


def _read_parquet(path: str) -> Iterator[tuple[int, Any]]:
    container: Any = _open_parquet(path)
    yield from enumerate(container.rows())


def _open_parquet(path: str) -> Container:
    status = FILES.stat(path)
    return open_container(LOCAL.real_path(path), ".parquet", status.size, status.mtime_ns)
