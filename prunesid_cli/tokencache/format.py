"""The cache: kept visual tokens on disk, from which prompts are answered with neither pixels nor vision tower.

Format 2
--------
1. A cache is a folder with files `prunesid-NNNNN.safetensors` (shards, NNNNN counting from 00000, of five digits or
   more, no number given out twice) and `prunesid-index.json`; where inputs failed, `failures.jsonl`; where typical
   images were measured, `calibration.json`. Other files are not the cache's.
2. A shard holds one tensor, `tokens` [R, C]: the kept tokens of its items, one after the other.
3. A shard's metadata has one key, `prunesid`: JSON with sorted keys. (Several metadata keys would be written in
   random order; one makes equal caches equal in every byte.)
4. `format`: 2. `number`: that of the file's name. A shard under another number is refused: it is a copy, or was
   renamed, and their order matters. `tool`: version that wrote it. `run`: what one cache has in common: `model`,
   `revision`, `family`, `method`, `keep`, `dynamic`, `even`, `dtype`. `items`: a list of items. `layouts`: those of its
   items, each once. `tokens`: `dtype` and `shape` of the tensor. `check`: blake2b-128, in hex, of the JSON without it.
5. An item has `source` (as it was named), `digest` (sha256 of the input's bytes), `size` [width, height], `layout` (the
   number of its layout), `slots` (where the stock model reads each row, -1 for a CLS token that it does not read),
   `whole` (whether nothing was pruned: only then structural slots, which have no rows, are read), `rows` [start, end)
   in `tokens`, `phi` (information, 1 - rho), `notes`, and `check`: blake2b-128 of the bytes of its rows. One of a clip
   has two more: `sampling` (how its frames were chosen, as "8 frames", "1 fps" or "8 frames by pyav"), which all clips
   of a cache have in common, and `decoder` (what gave them, as "PyAV 18.1.0"). `size` is then that of a frame; their
   times are those of the layout's regions. What looks at no clip is the same with or without these options.
   A layout has the fields of `types.Layout`: `text`, `runs`, `regions` (the fields of `types.Region`), `advances`.
6. Of several items with one source, the last of the last shard counts. An item that follows one of the same source and
   the same digest is a fault: nothing is written twice (what changed and changed back is).
7. A shard is written under another name in the same folder, synced, renamed, and the folder synced: it is there whole
   or not at all. Readers accept formats up to their own and refuse newer ones.
8. `failures.jsonl`: one object a line with `source`, `error`, `hint`: inputs whose last try failed; what was kept of
   an earlier version of one may still be in a shard. Replaced as a whole at the end of a run.
9. Who writes holds a lock on `.prunesid.lock`. Readers need none: a shard never changes once it is there.
10. `prunesid-index.json`: an object with `shards` (the numbers below it were given out), `items` (how many are in those
   shards) and `given_up` (those of the numbers whose shards were lost: a later run was told so, did again what it
   was asked for, and went on). Replaced as a whole after each shard, so that what is missing in the middle or at the
   end is found: each number below `shards`, or below that of a shard that is there, has its shard or is given up.
   What shards hold their headers tell, not the index: a shard beyond it was written just before a crash, and
   counts; a cache without an index is one of which nobody knows how many shards it had.
11. `calibration.json`: an object with `model`, `revision`, `images` (how many), `phi` (their mean) and `values` (all of
    them in rising order, or their quantiles). Replaced as a whole.

Headers are read here without torch, so that listing a cache starts at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesid_cli.types import Layout, Region

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
KEY = "prunesid"
PATTERN = "prunesid-*.safetensors"
NAME = re.compile(r"prunesid-(\d{5,})\.safetensors")
FAILURES = "failures.jsonl"
CALIBRATION = "calibration.json"
INDEX = "prunesid-index.json"
DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}
LARGEST_HEADER = 100_000_000
"""safetensors' own limit, in bytes."""


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


@dataclass(frozen=True)
class Item:
    """One input in a cache, as its shard's header tells it; `rows` are those of the shard's tensor."""

    source: str
    digest: str
    size: tuple[int, int]
    layout: Layout
    slots: tuple[int, ...]
    whole: bool
    rows: tuple[int, int]
    phi: float
    notes: tuple[str, ...]
    check: str
    sampling: str = ""
    decoder: str = ""

    @classmethod
    def read(cls, record: dict[str, Any], layouts: Sequence[Layout]) -> Item:
        return cls(**_tuples(record | {"layout": layouts[record["layout"]]}))

    @property
    def total(self) -> int:
        """Tokens that the stock model reads."""
        return self.layout.total

    @property
    def kept(self) -> int:
        """Tokens that are read of it."""
        return self.layout.total if self.whole else len(self.slots)


def read_layout(record: dict[str, Any]) -> Layout:
    regions = tuple(Region(**_tuples(region)) for region in record["regions"])
    return Layout(**_tuples(record | {"regions": regions}))


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}


@dataclass(frozen=True)
class Shard:
    """A shard's header; `data` is where its tensors begin in the file."""

    path: Path
    number: int
    tool: str
    run: Run
    items: tuple[Item, ...]
    shape: tuple[int, int]
    dtype: str
    data: int


def shard_name(number: int) -> str:
    return f"prunesid-{number:05d}.safetensors"


def number_of(path: Path) -> int | None:
    """The number of a shard, None where the name is none of a shard."""
    match = NAME.fullmatch(path.name)
    number = int(match[1]) if match else -1
    return number if path.name == shard_name(number) else None


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def bytes_of(tokens: Tensor) -> bytes:
    import torch

    raw: bytes = tokens.contiguous().view(torch.uint8).numpy().tobytes()
    return raw
