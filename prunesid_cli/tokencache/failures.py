"""The inputs of a cache whose last try failed: `failures.jsonl`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.tokencache.cache_errors import read_error, write_error
from prunesid_cli.tokencache.cache_file import PARSE_ERRORS, parse_json, read_file
from prunesid_cli.tokencache.format import FAILURES, canonical_json

MAX_FAILURES_BYTES = 1 << 28


def read_failures(folder: Path) -> list[dict[str, str]]:
    """Read the records of the failed inputs: `source`, `error` and `hint` of each.

    Raises:
        CacheError: The list cannot be read.
    """
    path = folder / FAILURES
    try:
        lines = (read_file(path, MAX_FAILURES_BYTES) or b"").split(b"\n")
        records = [parse_json(line) for line in lines if line]
        failures = [{name: record[name] for name in ("source", "error", "hint")} for record in records]
        os.fsencode("".join(text for record in failures for text in record.values()))  # else no file has such a name
        return failures
    except (OSError, *PARSE_ERRORS) as error:
        raise read_error(path, error, f"delete {path}: failed inputs are tried again") from error


def write_failures(folder: Path, records: Iterable[dict[str, str]]) -> None:
    """Replace the list, or delete it if nothing failed.

    Raises:
        CacheError: It cannot be written.
    """
    path, text = folder / FAILURES, "".join(canonical_json(record) + "\n" for record in records)
    if not text:
        path.unlink(missing_ok=True)
        return
    try:
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise write_error(path, error) from error
