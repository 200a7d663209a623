"""The index: which shards a cache has, and where each source is, so that neither is looked for in a million records.

A safetensors file. Its metadata has one key, `prunesid`: sorted JSON of `format`, `run`, `sampling` (of its clips),
`shards` (number, bytes of the file, items, of each), `given` (numbers below it were given out), `given_up` (those whose
shards were lost: a later run was told so, did again what it was asked for, and went on), `dead` (shard and place of
items that count no more) and `check`: blake2b-128 of the JSON without it and of all tensors. Its tensors have a row for
each item that counts, in the order of their names:

names    [M, 16] uint8   blake2b-128 of the source
digests  [M, 32] uint8   sha256 of the input's bytes
places   [M, 2]  int32   number of the shard, place in it
counts   [M, 2]  int32   tokens in all, and kept
phi      [M]     float64 information

Beside it, in `.prunesid-stamps`, there is what tells which inputs need not be read again: a file of the same kind with
`names`, `digests` and

stamps   [M, 2]  int64   bytes and time of change (ns) of the input when it was read, -1 where they are not known

It is no part of the cache: without it inputs are read to be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.tokencache.format import INDEX, KEY, Run, canonical, checksum, parse_shard_number, shard_name, shard_paths
from prunesid_cli.tokencache.index import Index, MissingShards, ShardInfo, index_with_shards, missing_of
from prunesid_cli.tokencache.index_table import COLUMNS, EMPTY, KEPT, STAMPED, Table, raw, with_stamps
from prunesid_cli.tokencache.shard import read_header

FORMAT = 1
STAMPS = ".prunesid-stamps"


@dataclass(frozen=True)
class Loaded:
    """An index, what of its cache is not there, and whether it was saved like that."""

    index: Index
    missing: MissingShards
    is_saved: bool


def load_index(folder: Path, stamped: bool = False) -> Loaded:
    """The index as the shards that are there have it; `stamped`: with the stamps of its inputs.

    Raises:
        CacheError: a shard that the index does not know is damaged, of a newer format, or of another run.
    """
    saved = read_index(folder) or Index()
    sizes = {path: path.stat().st_size for path in shard_paths(folder)}
    changed = {n for n, part in saved.shards.items() if sizes.get(folder / shard_name(n)) != part.bytes}
    # The last shard may have grown. What else a shard that is gone or was changed outweighed, only headers tell.
    kept = saved if changed <= {max(saved.shards, default=-1)} & {*map(parse_shard_number, sizes)} else _emptied(saved)
    unread = [path for path in sizes if (number := parse_shard_number(path)) not in kept.shards or number in changed]
    index = index_with_shards(kept, map(read_header, unread))
    if stamped:
        index = replace(index, table=with_stamps(index.table, read_stamps(folder)))
    return Loaded(index, missing_of(folder, saved, index.shards), kept is saved and not unread)


def _emptied(index: Index) -> Index:
    return Index(given=index.given, given_up=index.given_up)


def read_index(folder: Path) -> Index | None:
    """The index that was saved, without stamps; None where there is none, or not every byte is as it was written."""
    found = _read(folder / INDEX, KEPT)
    try:
        if found is None or found.said["format"] != FORMAT:
            return None
        said = found.said
        run = Run(**said["run"]) if said["run"] else None
        parts = {int(number): ShardInfo(*part) for number, *part in said["shards"]}
        dead = frozenset((shard, place) for shard, place in said["dead"])
        return Index(run, said["sampling"], parts, said["given"], tuple(said["given_up"]), found.table, dead)
    except (ValueError, KeyError, TypeError):
        return None


def read_stamps(folder: Path) -> Table:
    """Names, digests and stamps of inputs, as they were saved; nothing where they cannot be read."""
    found = _read(folder / STAMPS, STAMPED)
    return found.table if found else EMPTY


class _Found(NamedTuple):
    said: dict[str, Any]
    table: Table


def _read(path: Path, columns: Sequence[str]) -> _Found | None:
    """A table with some of its columns, the others zero; None where not every byte is as it was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            said = json.loads(file.metadata()[KEY])
            found = {name: file.get_tensor(name) for name in columns}
        check = said.pop("check")
        table = Table(**{name: found.get(name, _blank(name, len(found["names"]))) for name in COLUMNS})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None
    is_sound = _is_alike(table, EMPTY) and check == checksum(canonical(said).encode(), *map(raw, found.values()))
    return _Found(said, table) if is_sound else None


def _blank(name: str, count: int) -> NDArray[Any]:
    like = getattr(EMPTY, name)
    return np.full((count, *like.shape[1:]), -1 if name == "stamps" else 0, like.dtype)


def _is_alike(table: Table, other: Table) -> bool:
    """Whether the columns are of one kind, and of one length."""
    pairs = [(getattr(table, name), getattr(other, name)) for name in COLUMNS]
    return all(a.dtype == b.dtype and a.shape == (len(table), *b.shape[1:]) for a, b in pairs)


def write_index(folder: Path, index: Index) -> None:
    """The index, and the stamps. Raises OSError: it cannot be written; what was there stays."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "run": asdict(index.run) if index.run else None,
        "sampling": index.sampling,
        "shards": [[number, *index.shards[number]] for number in sorted(index.shards)],
        "given": index.given,
        "given_up": index.given_up,
        "dead": sorted(index.dead),
    }
    _write(folder / INDEX, body, index.table, KEPT)
    _write(folder / STAMPS, {"format": FORMAT}, index.table, STAMPED)


def _write(path: Path, body: dict[str, Any], table: Table, names: Sequence[str]) -> None:
    from safetensors.numpy import save_file

    columns = {name: np.ascontiguousarray(getattr(table, name)) for name in names}
    check = checksum(canonical(body).encode(), *map(raw, columns.values()))
    metadata = {KEY: canonical(body | {"check": check})}
    write_atomically(path, lambda beside: save_file(columns, beside, metadata))
