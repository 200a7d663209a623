"""Columns: what a table says of an input beside its image, such as an id or a label. They are copied to its answers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from prunesid_cli.types import Columns

MAX_COLUMNS_BYTES = 8192
"""The columns of an input, as JSON. Larger ones are left out: the headers of a cache hold thousands of them."""


def to_columns(record: Mapping[str, Any]) -> Columns:
    """Columns from the values of a row.

    What JSON does not have becomes a text, such as a date; bytes, and what does not fit into `MAX_COLUMNS_BYTES`, are
    left out.
    """
    columns, num_bytes = list[tuple[str, Any]](), 0
    for name, value in record.items():
        try:
            plain = _to_plain(value)
            size = len(json.dumps([name, plain]).encode())
        except (TypeError, ValueError, RecursionError):
            continue
        if num_bytes + size <= MAX_COLUMNS_BYTES:
            columns.append((name, plain))
            num_bytes += size
    return tuple(columns)


def _to_plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError
    if isinstance(value, Mapping):
        return {str(name): _to_plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(part) for part in value]
    return str(value)


def columns_stamp(columns: Columns) -> int:
    """A number that changes with the columns."""
    digest = hashlib.blake2b(json.dumps(columns, sort_keys=True).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
