"""The cache: kept visual tokens on disk, from which prompts are answered with neither pixels nor vision tower.

Format 1
--------
1. A cache is a folder with files `prunesid-NNNNN.safetensors` (shards, NNNNN counting from 00000); where inputs failed,
   `failures.jsonl`; where typical images were measured, `calibration.json`. Other files are not the cache's.
2. A shard holds one tensor, `tokens` [R, C]: the kept tokens of its items, one after the other.
3. A shard's metadata has one key, `prunesid`: JSON with sorted keys. (Several metadata keys would be written in
   random order; one makes equal caches equal in every byte.)
4. `format`: 1. `tool`: version that wrote it. `run`: what one cache has in common: `model`, `revision`, `family`,
   `method`, `keep`, `dynamic`, `dtype`. `items`: a list of items. `tokens`: `dtype` and `shape` of the tensor.
   `check`: blake2b-128, in hex, of the JSON without it.
5. An item has `source` (as it was named), `digest` (sha256 of the input's bytes), `size` [width, height], `grid` [rows,
   columns], `total` (visual tokens that the stock model reads), `kept` (indices in raster order of the rows, -1 for the
   CLS token), `rows` [start, end) in `tokens`, `phi` (information, 1 - rho), `notes`, and `check`: blake2b-128 of the
   bytes of its rows.
6. Of several items with one source, the last of the last shard counts.
7. A shard is written under another name in the same folder, synced, renamed, and the folder synced: it is there whole
   or not at all. Readers accept formats up to their own and refuse newer ones.
8. `failures.jsonl`: one object a line with `source`, `error`, `hint`: inputs whose last try failed; what was kept of
   an earlier version of one may still be in a shard. Replaced as a whole at the end of a run.
9. Who writes holds a lock on `.prunesid.lock`. Readers need none: a shard never changes once it is there.
10. `calibration.json`: an object with `model`, `revision`, `images` (how many), `phi` (their mean) and `values` (all of
    them in rising order, or their quantiles). Replaced as a whole.

Headers are read here without torch, so that listing a cache starts at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
KEY = "prunesid"
PATTERN = "prunesid-*.safetensors"
NAME = re.compile(r"prunesid-(\d{5,})\.safetensors")
FAILURES = "failures.jsonl"
CALIBRATION = "calibration.json"
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
    dtype: str


@dataclass(frozen=True)
class Item:
    """One input in a cache, as its shard's header tells it; `rows` are those of the shard's tensor."""

    source: str
    digest: str
    size: tuple[int, int]
    grid: tuple[int, int]
    total: int
    kept: tuple[int, ...]
    rows: tuple[int, int]
    phi: float
    notes: tuple[str, ...]
    check: str

    @classmethod
    def read(cls, record: dict[str, Any]) -> Item:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**fields)


@dataclass(frozen=True)
class Shard:
    """A shard's header; `data` is where its tensors begin in the file."""

    path: Path
    tool: str
    run: Run
    items: tuple[Item, ...]
    shape: tuple[int, int]
    dtype: str
    data: int


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def bytes_of(tokens: Tensor) -> bytes:
    import torch

    raw: bytes = tokens.contiguous().view(torch.uint8).numpy().tobytes()
    return raw
