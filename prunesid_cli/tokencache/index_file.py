"""The files of the index. With them, a cache of a million items opens without reading its headers.

`prunesid-index.safetensors` is a safetensors file. Its metadata have one key, `prunesid`: JSON with sorted keys, an
object with

format    1, the format of this file
run       settings of the cache, or null
sampling  how the frames of its clips were chosen
shards    [number, bytes of the file, items] of each shard
given     the number of the next new shard
given_up  numbers of lost shards that are no longer reported: a later run reported them, compressed their items again as
          far as they were among its inputs, and finished
dead      [shard, item] of each item that does not count, because a later one has the same source
check     BLAKE2b-128, in hex, of the JSON without it and of the bytes of all tensors in the order below

Its tensors have a row for each item that counts, in the order of their names:

names     [M, 16] uint8   BLAKE2b-128 of the source
digests   [M, 32] uint8   SHA-256 of the input's bytes
places    [M, 2]  int32   number of the shard, number of the item in it
counts    [M, 2]  int32   tokens of the item, and kept tokens
phi       [M]     float64 information

`.prunesid-stamps` is a file of the same kind. It tells which inputs need not be read again. It has `format`, `check`,
and the tensors `names`, `digests` and

stamps    [M, 2]  int64   size and time of change (ns) of the input when it was read; -1 where unknown

The stamps are not part of the cache, so that equal caches have equal bytes. Without them, inputs are read to compare
their digests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.errors import CacheError
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.tokencache.cache_errors import write_error
from prunesid_cli.tokencache.format import (
    INDEX,
    METADATA_KEY,
    Run,
    canonical_json,
    checksum,
    parse_shard_number,
    shard_name,
    shard_paths,
)
from prunesid_cli.tokencache.index import Index, MissingShards, ShardInfo, find_missing_shards, index_with_shards
from prunesid_cli.tokencache.index_table import COLUMNS, ShardPosition, Table, copy_stamps
from prunesid_cli.tokencache.shard import read_header

INDEX_FORMAT = 1
STAMPS = ".prunesid-stamps"
INDEX_TENSORS = {"names": "names", "digests": "digests", "positions": "places", "counts": "counts", "phi": "phi"}
"""Column of the table -> tensor of the index file."""
STAMP_TENSORS = {"names": "names", "digests": "digests", "stamps": "stamps"}
"""Column of the table -> tensor of the stamps file."""


@dataclass(frozen=True)
class LoadedIndex:
    """The index of a cache as its shards have it.

    Attributes:
        index: The index.
        missing: Shards that were lost.
        is_saved: Whether the index file holds this index.
    """

    index: Index
    missing: MissingShards
    is_saved: bool


def load_index(folder: Path, with_stamps: bool = False) -> LoadedIndex:
    """Load the saved index of a cache, and read the headers of shards that it does not have as they are.

    Args:
        folder: The cache.
        with_stamps: Whether to load the stamps of the inputs too.

    Raises:
        CacheError: A shard that is not in the saved index is damaged, of a newer format, or of other settings.
    """
    saved = read_index(folder) or Index()
    sizes = {path: path.stat().st_size for path in shard_paths(folder)}
    changed = {number for number, info in saved.shards.items() if sizes.get(folder / shard_name(number)) != info.bytes}
    last = max(saved.shards, default=-1)
    # The last shard may have grown. If another one changed or is gone, items that it superseded count again, and only
    # the headers show which ones.
    is_valid = changed <= {last} & {parse_shard_number(path) for path in sizes}
    valid = saved if is_valid else Index(next_number=saved.next_number, abandoned=saved.abandoned)
    unread = [path for path in sizes if (number := parse_shard_number(path)) not in valid.shards or number in changed]
    index = index_with_shards(valid, map(read_header, unread))
    if with_stamps:
        index = replace(index, table=copy_stamps(index.table, read_stamps(folder)))
    missing = find_missing_shards(folder, saved, index.shards)
    return LoadedIndex(index, missing, is_saved=is_valid and not unread)


def read_index(folder: Path) -> Index | None:
    """Read the saved index, without stamps. Returns None if there is none, or if it is damaged."""
    saved = _read_table(folder / INDEX, INDEX_TENSORS)
    try:
        if saved is None or saved.body["format"] != INDEX_FORMAT:
            return None
        body = saved.body
        return Index(
            run=Run(**body["run"]) if body["run"] else None,
            sampling=body["sampling"],
            shards={int(number): ShardInfo(*info) for number, *info in body["shards"]},
            next_number=body["given"],
            abandoned=tuple(body["given_up"]),
            table=saved.table,
            superseded=frozenset(ShardPosition(shard, item) for shard, item in body["dead"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def read_stamps(folder: Path) -> Table:
    """Read the names, digests and stamps of the inputs. Returns an empty table if the file is missing or damaged."""
    saved = _read_table(folder / STAMPS, STAMP_TENSORS)
    return saved.table if saved else Table.blank(0)


class _SavedTable(NamedTuple):
    body: dict[str, Any]
    table: Table


def _read_table(path: Path, tensors: Mapping[str, str]) -> _SavedTable | None:
    """Read some columns of a table; the others are blank. Returns None if a byte of the file is wrong."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            body = json.loads(file.metadata()[METADATA_KEY])
            columns = {column: file.get_tensor(tensor) for column, tensor in tensors.items()}
        check = body.pop("check")
        blank = Table.blank(len(columns["names"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None
    table = replace(blank, **columns)
    for name in COLUMNS:
        column, expected = getattr(table, name), getattr(blank, name)
        if column.dtype != expected.dtype or column.shape != expected.shape:
            return None
    return _SavedTable(body, table) if check == _table_checksum(body, columns.values()) else None


def _table_checksum(body: dict[str, Any], columns: Iterable[NDArray[Any]]) -> str:
    data = (np.ascontiguousarray(column).view(np.uint8).data for column in columns)  # not copied
    return checksum(canonical_json(body).encode(), *data)  # type: ignore[arg-type]


def write_index(folder: Path, index: Index) -> None:
    """Replace the index file and the stamps file.

    Raises:
        CacheError: One cannot be written; the earlier one stays.
    """
    body: dict[str, Any] = {
        "format": INDEX_FORMAT,
        "run": index.run.to_record() if index.run else None,
        "sampling": index.sampling,
        "shards": [[number, *index.shards[number]] for number in sorted(index.shards)],
        "given": index.next_number,
        "given_up": index.abandoned,
        "dead": sorted(index.superseded),
    }
    _write_table(folder / INDEX, body, index.table, INDEX_TENSORS)
    _write_table(folder / STAMPS, {"format": INDEX_FORMAT}, index.table, STAMP_TENSORS)


def _write_table(path: Path, body: dict[str, Any], table: Table, tensors: Mapping[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    columns = {tensor: np.ascontiguousarray(getattr(table, column)) for column, tensor in tensors.items()}
    metadata = {METADATA_KEY: canonical_json(body | {"check": _table_checksum(body, columns.values())})}
    try:
        write_atomically(path, lambda temporary: save_file(columns, temporary, metadata))
    except OSError as error:
        raise write_error(path, error) from error
    except SafetensorError as error:
        raise CacheError(f"cannot write {path}: {error}", "free some space") from error
