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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.durable import write_whole
from prunesid_cli.errors import CacheError
from prunesid_cli.output import plural
from prunesid_cli.tokencache.format import (
    INDEX,
    KEY,
    Run,
    Shard,
    canonical,
    checksum,
    name_of,
    number_of,
    shard_name,
    shard_paths,
)
from prunesid_cli.tokencache.shard import mixed, read_header
from prunesid_cli.tokencache.table import (
    COLUMNS,
    EMPTY,
    KEPT,
    STAMPED,
    Place,
    Stamp,
    Table,
    heads,
    latest,
    raw,
    with_stamps,
)

FORMAT = 1
STAMPS = ".prunesid-stamps"
NAMED = 3
"""Missing shards that a message names; of more it tells how many."""


class Known(NamedTuple):
    """What the index knows of a source."""

    place: Place
    digest: str
    stamp: tuple[int, int]
    total: int
    kept: int
    phi: float


class Part(NamedTuple):
    """A shard that the index knows: bytes of its file, and items that it had then."""

    bytes: int
    items: int


@dataclass(frozen=True)
class Index:
    """What a cache holds. `table`: items that count, in the order of their names; `dead`: places of those that do not;
    `again`: places of items that the cache had before with the very same bytes, and of the latter. `sampling`: of its
    clips."""

    run: Run | None = None
    sampling: str = ""
    parts: Mapping[int, Part] = field(default_factory=dict)
    given: int = 0
    given_up: tuple[int, ...] = ()
    table: Table = EMPTY
    dead: frozenset[Place] = frozenset()
    again: tuple[tuple[Place, Place], ...] = ()

    @cached_property
    def heads(self) -> NDArray[np.uint64]:
        return heads(self.table)

    def row(self, source: str) -> int | None:
        name = name_of(source)
        head = np.uint64(int.from_bytes(name[:8], "big"))
        for row in range(int(np.searchsorted(self.heads, head)), len(self.table)):
            if self.table.names[row].tobytes() == name:
                return row
            if self.heads[row] != head:
                break
        return None

    def find(self, source: str) -> Known | None:
        row = self.row(source)
        return None if row is None else self.known(row)

    def known(self, row: int) -> Known:
        table = self.table
        shard, place = table.places[row].tolist()
        total, kept = table.counts[row].tolist()
        stamp = tuple(table.stamps[row].tolist())
        return Known((shard, place), table.digests[row].tobytes().hex(), stamp, total, kept, float(table.phi[row]))

    def with_digest(self, prefix: str) -> list[Place]:
        """Where inputs are whose digest begins so."""
        wanted = np.frombuffer(bytes.fromhex(prefix[: len(prefix) // 2 * 2]), np.uint8)
        same = (self.table.digests[:, : len(wanted)] == wanted).all(1)
        found = [self.known(int(row)) for row in np.flatnonzero(same)]
        return sorted(one.place for one in found if one.digest.startswith(prefix.lower()))

    def stamped(self, stamps: Mapping[str, Stamp]) -> Index:
        """With later stamps of some sources."""
        rows = {row: stamp for source, stamp in stamps.items() if (row := self.row(source)) is not None}
        if not rows:
            return self
        column = self.table.stamps.copy()
        column[list(rows)] = list(rows.values())
        return replace(self, table=replace(self.table, stamps=column))

    def in_order(self) -> Iterator[Known]:
        """All that counts, in the order in which it was written."""
        places = self.table.places
        return (self.known(int(row)) for row in np.lexsort((places[:, 1], places[:, 0])))


@dataclass(frozen=True)
class Missing:
    """Shards that a cache should have and does not; `items`: how many were in them, 0 where nothing tells."""

    folder: Path
    numbers: tuple[int, ...] = ()
    items: int = 0

    @property
    def error(self) -> CacheError:
        names = [shard_name(number) for number in self.numbers]
        more = len(names) - NAMED
        listed = ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
        are = "is" if len(names) == 1 else "are"
        held = f", and with {'it' if len(names) == 1 else 'them'} {plural(self.items, 'item')}" if self.items else ""
        return CacheError(f"{self.folder}: {listed} {are} missing{held}", "run the same compress: it does them again")


@dataclass(frozen=True)
class Loaded:
    """An index, what of its cache is not there, and whether it was saved like that."""

    index: Index
    missing: Missing
    is_saved: bool


def load_index(folder: Path, stamped: bool = False) -> Loaded:
    """The index as the shards that are there have it; `stamped`: with the stamps of its inputs.

    Raises:
        CacheError: a shard that the index does not know is damaged, of a newer format, or of another run.
    """
    saved = read_index(folder) or Index()
    sizes = {path: path.stat().st_size for path in shard_paths(folder)}
    changed = {n for n, part in saved.parts.items() if sizes.get(folder / shard_name(n)) != part.bytes}
    # The last shard may have grown. What else a shard that is gone or was changed outweighed, only headers tell.
    kept = saved if changed <= {max(saved.parts, default=-1)} & {*map(number_of, sizes)} else _emptied(saved)
    unread = [path for path in sizes if (number := number_of(path)) not in kept.parts or number in changed]
    index = extended(kept, map(read_header, unread))
    if stamped:
        index = replace(index, table=with_stamps(index.table, read_stamps(folder)))
    return Loaded(index, missing_of(folder, saved, index.parts), kept is saved and not unread)


def _emptied(index: Index) -> Index:
    return Index(given=index.given, given_up=index.given_up)


def extended(index: Index, shards: Iterable[Shard], stamps: Mapping[Place, Stamp] | None = None) -> Index:
    """An index with shards that it does not know yet, or that have grown; each is let go before the next one comes.

    stamps: of some items, by their places.

    Raises:
        CacheError: one is of another run.
    """
    tables, parts, run, sampling = list[Table](), dict(index.parts), index.run, index.sampling
    given = set[int]()
    for shard in shards:
        if run is not None and shard.run != run:
            raise mixed(shard.path, shard.path.with_name(shard_name(min(parts))))
        run = shard.run
        sampling = sampling or next((item.sampling for item in shard.items if item.sampling), "")
        parts[shard.number] = Part(shard.path.stat().st_size, len(shard.items))
        given.add(shard.number)
        tables.append(Table.of(shard, stamps or {}))
    if not tables:
        return index
    others = index.table.take(~np.isin(index.table.places[:, 0], sorted(given)))
    table, dead, again = latest(Table.joined([others, *tables]))
    return Index(
        run,
        sampling,
        parts,
        max(index.given, 1 + max(parts)),
        index.given_up,
        with_stamps(table, index.table),
        frozenset(place for place in index.dead if place[0] not in given) | dead,
        index.again + again,
    )


def missing_of(folder: Path, saved: Index, present: Iterable[int]) -> Missing:
    there = {*present, *saved.given_up}
    numbers = tuple(n for n in range(max(saved.given, 1 + max(there, default=-1))) if n not in there)
    return Missing(folder, numbers, sum(saved.parts[n].items for n in numbers if n in saved.parts))


def read_index(folder: Path) -> Index | None:
    """The index that was saved, without stamps; None where there is none, or not every byte is as it was written."""
    found = _read(folder / INDEX, KEPT)
    try:
        if found is None or found.said["format"] != FORMAT:
            return None
        said = found.said
        run = Run(**said["run"]) if said["run"] else None
        parts = {int(number): Part(*part) for number, *part in said["shards"]}
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
        "shards": [[number, *index.parts[number]] for number in sorted(index.parts)],
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
    write_whole(path, lambda beside: save_file(columns, beside, metadata))
