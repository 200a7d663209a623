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

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.tokencache.cache_errors import write_error
from prunesid_cli.tokencache.cache_file import read_file, split_check
from prunesid_cli.tokencache.format import (
    INDEX,
    MAX_PHI,
    MAX_SHARDS,
    MAX_SLOTS,
    METADATA_KEY,
    MIN_PHI,
    Run,
    canonical_json,
    checksum,
    parse_shard_number,
    shard_name,
    shard_paths,
)
from prunesid_cli.tokencache.index import Index, MissingShards, ShardInfo, find_missing_shards, index_with_shards
from prunesid_cli.tokencache.index_table import COLUMNS, ShardPosition, Table, copy_stamps
from prunesid_cli.tokencache.quantization import SAFETENSORS_DTYPES, STORES
from prunesid_cli.tokencache.shard import MAX_HEADER_BYTES, read_header

INDEX_FORMAT = 1
MAX_INDEX_BYTES = 1 << 30
"""An index of ten million items has 0.7 GiB. A larger file is ignored: then the headers of all shards are read."""
STAMPS = ".prunesid-stamps"
INDEX_TENSORS = {"names": "names", "digests": "digests", "positions": "places", "counts": "counts", "phi": "phi"}
"""Column of the table -> tensor of the index file."""
STAMP_TENSORS = {"names": "names", "digests": "digests", "stamps": "stamps"}
"""Column of the table -> tensor of the stamps file."""


@dataclass(frozen=True)
class IndexBody:
    """The JSON of the index file."""

    format: int
    run: Run | None
    sampling: str
    shards: tuple[tuple[int, int, int], ...]
    given: int
    given_up: tuple[int, ...]
    dead: tuple[tuple[int, int], ...]


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
    sizes = {path: path.lstat().st_size for path in shard_paths(folder)}
    changed = {number for number, info in saved.shards.items() if sizes.get(folder / shard_name(number)) != info.bytes}
    last = max(saved.shards, default=-1)
    # The last shard may have grown. If it has lost items, or another one changed or is gone, items that were superseded
    # count again, and only the headers show which ones.
    is_valid = changed <= {last} & {parse_shard_number(path) for path in sizes}
    if is_valid and changed:
        is_valid = len(read_header(folder / shard_name(last)).items) >= saved.shards[last].items
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
    if saved is None:
        return None
    try:
        # Decoded by the types of the fields: JSON of other types is refused before it takes much memory.
        body = msgspec.json.decode(saved.text, type=IndexBody)
        if body.format != INDEX_FORMAT or not _is_consistent(body, saved.table):
            return None
    except (ValueError, RecursionError, OverflowError):
        return None
    return Index(
        run=body.run,
        sampling=body.sampling,
        shards={number: ShardInfo(num_bytes, items) for number, num_bytes, items in body.shards},
        next_number=body.given,
        abandoned=body.given_up,
        table=saved.table,
        superseded=frozenset(ShardPosition(shard, item) for shard, item in body.dead),
    )


def _is_consistent(body: IndexBody, table: Table) -> bool:
    """Whether the shards have exactly the items that the table and the superseded items are, each once."""
    num_items = {number: items for number, _, items in body.shards}
    numbers = [*num_items, *body.given_up]
    if not (0 <= body.given <= MAX_SHARDS and all(0 <= number < body.given for number in numbers)):
        return False
    run = body.run
    if run and not (run.store in STORES and run.dtype in SAFETENSORS_DTYPES) or (body.shards and not run):
        return False
    positions = np.concatenate([table.positions, np.array(body.dead, np.int64).reshape(-1, 2)])
    is_counted = len(num_items) == len(body.shards) and all(items >= 0 for items in num_items.values())
    if not is_counted or sum(num_items.values()) != len(positions):
        return False
    ends = np.zeros(body.given, np.int64)
    ends[list(num_items)] = list(num_items.values())
    if (positions < 0).any() or (positions[:, 0] >= body.given).any():
        return False
    if (positions[:, 1] >= ends[positions[:, 0]]).any():
        return False
    places = np.cumsum(ends)[positions[:, 0]] - 1 - positions[:, 1]
    is_each_once = len(places) == 0 or np.bincount(places).max() == 1
    high, low = np.ascontiguousarray(table.names).view(">u8").T
    is_sorted = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    is_plausible = (table.counts >= 0) & (table.counts <= MAX_SLOTS)
    has_phi = (table.phi >= MIN_PHI) & (table.phi <= MAX_PHI)
    return bool(is_each_once and is_sorted.all() and is_plausible.all() and has_phi.all())


def read_stamps(folder: Path) -> Table:
    """Read the names, digests and stamps of the inputs. Returns an empty table if the file is missing or damaged."""
    saved = _read_table(folder / STAMPS, STAMP_TENSORS)
    return saved.table if saved else Table.blank(0)


class _SavedTable(NamedTuple):
    """A table and the JSON beside it, whose checksum is right."""

    text: str
    table: Table


def _read_table(path: Path, tensors: Mapping[str, str]) -> _SavedTable | None:
    """Read some columns of a table; the others are blank. Returns None if a byte of the file is wrong."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = read_file(path, MAX_INDEX_BYTES) or b""
        (header_bytes,) = struct.unpack_from("<Q", data)
        if header_bytes > MAX_HEADER_BYTES:
            return None
        header = msgspec.json.decode(data[8 : 8 + header_bytes], type=dict[str, dict[str, str | list[int]]])
        text = str(header["__metadata__"][METADATA_KEY])
        check, checked = split_check(text)
        loaded = load(data)
        columns = {column: loaded[tensor] for column, tensor in tensors.items()}
        blank = Table.blank(len(columns["names"]))
    except (OSError, SafetensorError, struct.error, ValueError, LookupError, TypeError, RecursionError):
        return None
    table = replace(blank, **columns)
    for name in COLUMNS:
        column, expected = getattr(table, name), getattr(blank, name)
        if column.dtype != expected.dtype or column.shape != expected.shape:
            return None
    return _SavedTable(text, table) if check == _table_checksum(checked, columns.values()) else None


def _table_checksum(text: bytes, columns: Iterable[NDArray[Any]]) -> str:
    data = (np.ascontiguousarray(column).view(np.uint8).data for column in columns)  # not copied
    return checksum(text, *data)  # type: ignore[arg-type]


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
    from safetensors.numpy import save

    columns = {tensor: np.ascontiguousarray(getattr(table, column)) for column, tensor in tensors.items()}
    check = _table_checksum(canonical_json(body).encode(), columns.values())
    metadata = {METADATA_KEY: canonical_json(body | {"check": check})}
    try:
        write_atomically(path, lambda file: file.write(save(columns, metadata)))
    except OSError as error:
        raise write_error(path, error) from error
