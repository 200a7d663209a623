"""The inputs of a cache whose last try failed: `failures.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.tokencache.cache_errors import write_error
from prunesid_cli.tokencache.format import FAILURES, canonical_json


def read_failures(folder: Path) -> list[dict[str, str]]:
    """Read the records of the failed inputs: `source`, `error` and `hint` of each.

    Raises:
        CacheError: The list cannot be read.
    """
    path = folder / FAILURES
    if not path.exists():
        return []
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [{name: str(record[name]) for name in ("source", "error", "hint")} for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"cannot read {path}: {error}", f"delete {path}: failed inputs are tried again") from error


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
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise write_error(path, error) from error
