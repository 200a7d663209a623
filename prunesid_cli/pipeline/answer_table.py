"""A file of answers as a table (.csv), for spreadsheets.

A run does not append to the table. It appends to a file of answers beside it, whose name begins with a dot, and which a
later run continues. At its end the table is written anew from that file.
"""

from __future__ import annotations

import csv
import json
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from prunesid_cli.errors import PruneSIDError, UsageError
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.runtime.line_file import OTHER_FILE_HINT

SUFFIX = ".csv"
LEFT_OUT = ("sampling", "by", "fields", "columns")
"""Fields of a record that only a later run needs."""


def lines_path(table: Path) -> Path:
    """The file of answers that belongs to a table.

    Raises:
        UsageError: There is a table that belongs to none.
    """
    path = table.with_name(f".{table.name}.jsonl")
    if not path.exists() and table.exists() and (not table.is_file() or table.stat().st_size):
        raise UsageError(f"{table} is not a table of answers that can be continued", OTHER_FILE_HINT)
    return path


def write_table(table: Path) -> None:
    """Write a table from its file of answers.

    Raises:
        PruneSIDError: It could not be written; an earlier one is unchanged.
    """
    lines = lines_path(table)
    if not lines.exists():
        return

    def write(file: BinaryIO) -> None:
        columns = dict[str, None]()
        with lines.open("rb") as records:
            for line in records:
                columns |= dict.fromkeys(json.loads(line))
        text = TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        names = [name for name in columns if name not in LEFT_OUT]
        writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        with lines.open("rb") as records:
            for line in records:
                writer.writerow({name: _cell(value) for name, value in json.loads(line).items()})
        text.flush()
        text.detach()

    try:
        write_atomically(table, write)
    except OSError as error:
        raise PruneSIDError(
            f"cannot write to {table}: {error.strerror}", "free some space, and run it again"
        ) from error


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)
