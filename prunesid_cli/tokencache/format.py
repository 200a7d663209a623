"""The cache: kept visual tokens on disk, from which prompts are answered with neither pixels nor vision tower.

Format 3
--------
1. A cache is a folder with files `prunesid-NNNNN.safetensors` (shards, NNNNN counting from 00000, of five digits or
   more, no number given out twice) and `prunesid-index.safetensors`; where inputs failed, `failures.jsonl`; where
   typical images were measured, `calibration.json`. Other files are not the cache's.
2. A shard holds the tensor `tokens` [R, C]: the kept tokens of its items, one after the other. They are stored as the
   run's `store` says: "model": in its dtype; "fp8": as e4m3, with `scales` [R, 1] (fp32), by which rows are multiplied;
   "int8": as whole numbers, with `scales` [R, G] (fp32) for G groups of 128 channels. `scales` come first in the file.
3. A shard's metadata has one key, `prunesid`: JSON with sorted keys. (Several metadata keys would be written in
   random order; one makes equal caches equal in every byte.)
4. `format`: 3. `number`: that of the file's name. A shard under another number is refused: it is a copy, or was
   renamed, and their order matters. `tool`: version that wrote it. `run`: what one cache has in common: `model`,
   `revision`, `family`, `method`, `keep`, `dynamic`, `even`, `dtype`, `store`. `items`: a list of items. `layouts`:
   those of its items, each once. `tensors`: dtype and shape of each. `check`: blake2b-128, in hex, of the JSON without
   it.
5. An item has `source` (as it was named), `digest` (sha256 of the input's bytes), `size` [width, height], `layout` (the
   number of its layout), `slots` (where the stock model reads each row, -1 for a CLS token that it does not read),
   `whole` (whether nothing was pruned: only then structural slots, which have no rows, are read), `rows` [start, end)
   in `tokens`, `phi` (information, 1 - rho), `notes`, and `check`: blake2b-128 of the bytes of its rows, tokens before
   scales. One of a clip has two more: `sampling` (how its frames were chosen, as "8 frames", "1 fps", "8 frames by
   pyav" or "8 frames in windows of 4"), which all clips of a cache have in common, and `decoder` (what gave them, as
   "PyAV 18.1.0"). `size` is then that of a frame; their times are those of the layout's regions. What looks at no clip
   is the same with or without these options. A layout has the fields of `types.Layout`: `text`, `runs`, `regions` (the
   fields of `types.Region`), `advances`.
6. Of several items with one source, the last of the last shard counts. An item that follows one of the same source and
   the same digest is a fault: nothing is written twice (what changed and changed back is).
7. A shard is written under another name in the same folder, synced, renamed, and the folder synced: it is there whole
   or not at all. Items are only ever added behind those that it holds, and only to the last one, until it is full: so
   an interrupted run that is resumed leaves the bytes of one that was not. Files whose names begin with a dot are those
   of a run that writes, or that was killed: what they hold of items (growing.py) the next run takes up first, and what
   they tell of images that are not written yet (measured.py) it need not measure again; or they spare work
   (index_file.py) or help to merge (portions.py). Readers accept formats up to their own and refuse newer ones.
8. `failures.jsonl`: one object a line with `source`, `error`, `hint`: inputs whose last try failed; what was kept of
   an earlier version of one may still be in a shard. Replaced as a whole.
9. Who writes holds a lock on `.prunesid.lock`. Readers need none.
10. `prunesid-index.safetensors` (index_file.py): which shards there are, and where each source is. Headers tell the
   truth; the index makes it quick to find, and tells of shards that were lost. It is replaced as a whole, believed only
   where its own checksum fits, and made anew from the headers where it does not, or where shards and index disagree.
11. `calibration.json`: an object with `model`, `revision`, `images` (how many), `phi` (their mean) and `values` (all of
    them in rising order, or their quantiles). Replaced as a whole.

Headers are read without torch, so that listing a cache starts at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prunesid_cli.errors import CacheError
from prunesid_cli.types import Layout, Provenance, Region

FORMAT = 3
KEY = "prunesid"
PATTERN = "prunesid-*.safetensors"
NAME = re.compile(r"prunesid-(\d{5,})\.safetensors")
MAX_SHARD_BYTES = 256 << 20
MAX_SHARD_ITEMS = 4096
"""A shard is full when it has either."""
FAILURES = "failures.jsonl"
CALIBRATION = "calibration.json"
INDEX = "prunesid-index.safetensors"
MEASUREMENT_LOG = ".prunesid.measured"


@dataclass(frozen=True)
class Run:
    """What all items of a cache have in common. A cache is never continued with another."""

    model: str
    revision: str
    family: str
    method: str
    keep: str
    dynamic: bool
    even: bool
    dtype: str
    store: str = "model"


@dataclass(frozen=True, kw_only=True)
class Item(Provenance):
    """One cached input, as its shard's header describes it.

    Attributes:
        layout: Where the stock model reads its tokens.
        slots: Slot of each stored row.
        is_unpruned: Whether all tokens are kept; stored as `whole`.
        rows: First row and end row in the shard's tensors.
        phi: Information, 1 - rho (Eq. 7).
        check: Checksum of the bytes of its rows.
    """

    layout: Layout
    slots: tuple[int, ...]
    is_unpruned: bool
    rows: tuple[int, int]
    phi: float
    check: str

    @classmethod
    def from_record(cls, record: dict[str, Any], layouts: Sequence[Layout]) -> Item:
        values = _tuples(record | {"layout": layouts[record["layout"]]})
        return cls(is_unpruned=values.pop("whole"), **values)

    def to_record(self, layout: int | dict[str, Any]) -> dict[str, Any]:
        """The item as a header stores it, with the number of its layout. Fields that have their default are left out."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return values | {"layout": layout, "whole": values.pop("is_unpruned")}

    @property
    def kept(self) -> int:
        """Tokens that are read of it."""
        return self.layout.total if self.is_unpruned else len(self.slots)


def layout_from_record(record: dict[str, Any]) -> Layout:
    values = _tuples(record | {"regions": tuple(Region(**_tuples(region)) for region in record["regions"])})
    return Layout(mrope_deltas=values.pop("advances"), **values)


def layout_to_record(layout: Layout) -> dict[str, Any]:
    """The layout as a header stores it."""
    record = asdict(layout)
    return record | {"advances": record.pop("mrope_deltas")}


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where its bytes begin, and how many a row has."""

    start: int
    row: int


@dataclass(frozen=True)
class Shard:
    """A shard's header."""

    path: Path
    number: int
    tool: str
    run: Run
    items: tuple[Item, ...]
    tokens: Stored
    scales: Stored | None

    @property
    def parts(self) -> tuple[Stored, ...]:
        """In the order in which an item's checksum reads them."""
        return (self.tokens, self.scales) if self.scales else (self.tokens,)


def shard_name(number: int) -> str:
    return f"prunesid-{number:05d}.safetensors"


def parse_shard_number(path: Path) -> int | None:
    """The number of a shard, None where the name is none of a shard."""
    match = NAME.fullmatch(path.name)
    number = int(match[1]) if match else -1
    return number if path.name == shard_name(number) else None


def shard_paths(folder: Path) -> list[Path]:
    """The shards in a folder, in order, unread."""
    numbered = [(number, path) for path in folder.glob(PATTERN) if (number := parse_shard_number(path)) is not None]
    return [path for _, path in sorted(numbered)]


def is_cache_folder(folder: Path) -> bool:
    """Whether there is anything of a cache in a folder."""
    return bool(shard_paths(folder)) or any((folder / name).exists() for name in (INDEX, FAILURES, CALIBRATION))


def require_cache(folder: Path) -> None:
    """Raises CacheError: it is no cache."""
    hint = "make one with: prunesid compress IMAGES --out CACHE"
    if not folder.is_dir():
        raise CacheError(f"no such cache: {folder}", hint)
    if not is_cache_folder(folder):
        raise CacheError(f"not a prunesid cache: {folder}", hint)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def checksum(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def hash_source(source: str) -> bytes:
    """16 bytes that stand for a source in the index, whatever bytes are in its name."""
    return hashlib.blake2b(os.fsencode(source), digest_size=16).digest()
