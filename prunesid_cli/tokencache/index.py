"""The index: which shards a cache has, and where each source is, so that neither is looked for in a million records.

A safetensors file. Its metadata has one key, `prunesid`: sorted JSON of `format`, `run`, `sampling` (of
its clips), `shards` (number, bytes of the
file, items, of each), `given` (numbers below it were given out), `given_up` (those whose shards were lost: a later run
was told so, did again what it was asked for, and went on), `dead` (shard and place of items that count no more) and
`check`: blake2b-128 of the JSON without it and of all tensors. Its tensors have a row for each item that counts, in the
order of their names:

names    [M, 16] uint8   blake2b-128 of the source
digests  [M, 32] uint8   sha256 of the input's bytes
places   [M, 2]  int32   number of the shard, place in it
stamps   [M, 2]  int64   bytes and time of change (ns) of the input when it was read, -1 where they are not known: what
                         has the same still need not be read again
counts   [M, 2]  int32   tokens in all, and kept
phi      [M]     float64 information
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
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

FORMAT = 1
NAMED = 3
"""Missing shards that a message names; of more it tells how many."""
UNKNOWN = (-1, -1)
Place = tuple[int, int]
"""Number of a shard, place in it."""


class Stamp(NamedTuple):
    """What a file's folder tells of it: bytes, and time of change in ns."""

    bytes: int
    changed: int


class Known(NamedTuple):
    """What the index knows of a source."""

    place: Place
    digest: str
    stamp: tuple[int, int]
    total: int
    kept: int
    phi: float


@dataclass(frozen=True)
class Table:
    """Rows as the module's docstring has them."""

    names: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    places: NDArray[np.int32]
    stamps: NDArray[np.int64]
    counts: NDArray[np.int32]
    phi: NDArray[np.float64]

    @classmethod
    def of(cls, shard: Shard, stamps: Mapping[Place, Stamp]) -> Table:
        """All items of a shard; `stamps`: of some, by their places."""
        items, places = shard.items, [(shard.number, place) for place in range(len(shard.items))]
        return cls(
            np.frombuffer(b"".join(name_of(item.source) for item in items), np.uint8).reshape(-1, 16),
            np.frombuffer(b"".join(bytes.fromhex(item.digest) for item in items), np.uint8).reshape(-1, 32),
            np.array(places, np.int32).reshape(-1, 2),
            np.array([stamps.get(place, UNKNOWN) for place in places], np.int64).reshape(-1, 2),
            np.array([(item.total, item.kept) for item in items], np.int32).reshape(-1, 2),
            np.array([item.phi for item in items], np.float64),
        )

    @classmethod
    def joined(cls, tables: Sequence[Table]) -> Table:
        parts = tables or [EMPTY]
        return cls(*(np.concatenate([getattr(one, name) for one in parts]) for name in COLUMNS))

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Table:
        return Table(*(getattr(self, name)[rows] for name in COLUMNS))

    def __len__(self) -> int:
        return len(self.phi)


COLUMNS = tuple(one.name for one in fields(Table))
EMPTY = Table(
    np.zeros((0, 16), np.uint8), np.zeros((0, 32), np.uint8), np.zeros((0, 2), np.int32),
    np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int32), np.zeros(0, np.float64),
)  # fmt: skip


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
        return _heads(self.table)

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


def load_index(folder: Path) -> Loaded:
    """The index as the shards that are there have it.

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
    index = replace(index, table=_with_stamps(index.table, saved.table))
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
    table, dead, again = _latest(Table.joined([others, *tables]))
    return Index(
        run,
        sampling,
        parts,
        max(index.given, 1 + max(parts)),
        index.given_up,
        _with_stamps(table, index.table),
        frozenset(place for place in index.dead if place[0] not in given) | dead,
        index.again + again,
    )


def _latest(table: Table) -> tuple[Table, frozenset[Place], tuple[tuple[Place, Place], ...]]:
    """The last row of each name, in their order; places of the others; and of rows that follow one of the same digest,
    with that one."""
    if not len(table):
        return table, frozenset(), ()
    heads = np.ascontiguousarray(table.names).view(">u8")
    order = np.lexsort((table.places[:, 1], table.places[:, 0], heads[:, 1], heads[:, 0]))
    table = table.take(order)
    follows = (table.names[1:] == table.names[:-1]).all(1)
    same = follows & (table.digests[1:] == table.digests[:-1]).all(1)
    is_last = np.append(~follows, True)
    places = [(int(shard), int(place)) for shard, place in table.places] if follows.any() else []
    again = tuple((places[row + 1], places[row]) for row in np.flatnonzero(same))
    dead = frozenset(places[row] for row in np.flatnonzero(~is_last))
    return (table.take(is_last) if follows.any() else table), dead, again


def _with_stamps(table: Table, known: Table) -> Table:
    """With the stamps of the same inputs in another table, where they are not known here."""
    if not len(known):
        return table
    rows = np.searchsorted(_heads(known), _heads(table)).clip(max=len(known) - 1)
    same = (known.names[rows] == table.names).all(1) & (known.digests[rows] == table.digests).all(1)
    wanted = same & (table.stamps[:, 0] < 0)
    return replace(table, stamps=np.where(wanted[:, None], known.stamps[rows], table.stamps))


def _heads(table: Table) -> NDArray[np.uint64]:
    """The first eight bytes of each name, as numbers, which have their order."""
    return np.ascontiguousarray(table.names[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def missing_of(folder: Path, saved: Index, present: Iterable[int]) -> Missing:
    there = {*present, *saved.given_up}
    numbers = tuple(n for n in range(max(saved.given, 1 + max(there, default=-1))) if n not in there)
    return Missing(folder, numbers, sum(saved.parts[n].items for n in numbers if n in saved.parts))


def read_index(folder: Path) -> Index | None:
    """The index that was saved; None where there is none, or not every byte of it is as it was written."""
    from safetensors import SafetensorError, safe_open

    path = folder / INDEX
    try:
        with safe_open(path, framework="numpy") as file:
            said = json.loads(file.metadata()[KEY])
            columns = [file.get_tensor(name) for name in COLUMNS]
        check = said.pop("check")
        if said["format"] != FORMAT or check != checksum(canonical(said).encode(), *map(_raw, columns)):
            return None
        run = Run(**said["run"]) if said["run"] else None
        parts = {int(number): Part(*part) for number, *part in said["shards"]}
        dead = frozenset((shard, place) for shard, place in said["dead"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None
    given_up = tuple(said["given_up"])
    return Index(run, said["sampling"], parts, said["given"], given_up, Table(*columns), dead)


def write_index(folder: Path, index: Index) -> None:
    """Raises OSError: it cannot be written; what was there stays."""
    from safetensors.numpy import save_file

    columns = {name: np.ascontiguousarray(getattr(index.table, name)) for name in COLUMNS}
    body: dict[str, Any] = {
        "format": FORMAT,
        "run": asdict(index.run) if index.run else None,
        "sampling": index.sampling,
        "shards": [[number, *index.parts[number]] for number in sorted(index.parts)],
        "given": index.given,
        "given_up": index.given_up,
        "dead": sorted(index.dead),
    }
    check = checksum(canonical(body).encode(), *map(_raw, columns.values()))
    metadata = {KEY: canonical(body | {"check": check})}
    write_whole(folder / INDEX, lambda beside: save_file(columns, beside, metadata))


def _raw(column: NDArray[Any]) -> Any:
    return np.ascontiguousarray(column).view(np.uint8).data
