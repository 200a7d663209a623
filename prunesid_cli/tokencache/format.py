"""The format of a cache on disk: kept visual tokens, from which prompts are answered without pixels or a vision tower.

Format 3
--------
1. Files. A cache is a folder with shards, `prunesid-NNNNN.safetensors`, and an index, `prunesid-index.safetensors`. It
   may have `failures.jsonl` and `calibration.json`. NNNNN is the number of the shard: the first is 00000, smaller
   numbers are padded to five digits, larger ones than 999999 do not exist, and no number is used twice. Files whose
   names begin with a dot are working files (9). All other files are ignored. Links are not followed: a file of a cache
   is a regular file.
2. Tensors. A shard is a safetensors file with the tensor `tokens` [R, C]: the kept tokens of its items, one item after
   the other. The field `store` of the run (5) says how they are stored. "model": in the dtype of the run. "fp8": as
   F8_E4M3 with `scales` [R, 1] (F32); each row is multiplied by its scale. "int8": as I8 with `scales` [R, G] (F32),
   one for each of G groups of 128 channels. `scales` precede `tokens` in the file. There are no gaps between tensors.
3. Metadata. The metadata of a shard have one key, `prunesid`. Its value is JSON with sorted keys, without spaces, and
   with escapes for what is not ASCII. (The safetensors library writes several metadata keys in random order. With one
   key, equal caches are equal in every byte.) The safetensors header begins with the metadata, lists the tensors in the
   order of the file, and is padded with spaces to a multiple of 8 bytes.
4. Header. The JSON is an object with these keys. `format`: 3. `number`: the number in the file's name; a shard under
   another number is refused, because it was copied or renamed, and the order of shards matters. `tool`: the version of
   prunesid that wrote the shard. `run`: see 5. `items`: a list, see 6. `layouts`: the distinct layouts of the items, in
   order of first use, see 7. `tensors`: `dtype` and `shape` of each tensor. `check`: the BLAKE2b-128, in hex, of the
   same JSON without `check`.
5. Run. What all items of a cache have in common: `model`, `revision`, `family`, `method`, `keep`, `dynamic` (the budget
   is spread across items), `even` (it is not spread at all), `dtype`, `store`; and `fit`, "pad", only if images were
   padded to squares that the checkpoint's processor crops.
6. Item. `source`: the path as the user named it. `digest`: SHA-256 of the input's bytes, in hex. `size`: [width,
   height] in pixels, for a clip those of a frame. `notes`: a list of texts. `layout`: the number of its layout in
   `layouts`. `slots`: where the stock model reads each row; -1 for a CLS token that it does not read. `whole`: whether
   nothing was pruned; only then structural slots, which have no rows, are read too. `rows`: [start, end) in the
   tensors. `phi`: the information, 1 - rho. `check`: the BLAKE2b-128, in hex, of the bytes of its rows in `tokens`,
   then in `scales`. Some fields are left out where they are empty: `columns`, what a table of inputs says about this
   one, a list of [name, value]; and, as for images, `sampling`, how the frames of a clip were chosen, for example "8
   frames", "1 fps", "8 frames by pyav" or "8 frames in windows of 4" (all clips of a cache have the same); and
   `decoder`, for example "PyAV 18.1.0". Options for clips do not change the items of images. `shard` is left out where
   an item has rows of its own. Else the item is a copy: an input with the contents of another one. It has no rows, and
   `shard` is the number of the shard, not a later one, whose rows `rows` are about.
7. Layout. The fields of `types.Layout`: `text`, `runs`, `regions` (objects with the fields of `types.Region`), and
   `advances`. The times of a clip's frames are those of its regions.
8. Order. If several items have one source, the last item of the last shard counts. An item that follows one with the
   same source and the same digest, and has rows of its own, is a fault: nothing is stored twice. (A file that changed
   and changed back is stored again, and that is no fault.) A copy of rows in a shard that is lost does not count.
9. Writing. A shard is written under another name in the same folder and synced. Then it is renamed, and the folder is
   synced. Items are only appended, to the last shard alone, until it is full, and only by the version that wrote it. So
   an interrupted run that is resumed gives the bytes of an uninterrupted one. `cache gc` replaces shards by ones with
   fewer items. The working files of a writer begin with a dot. They hold items that are not in a shard yet
   (journal.py), measurements of images (measurement_log.py), stamps of the inputs (index_file.py), or the partition of
   the inputs (partition_marker.py). Deleting them costs work or warnings, but nothing that a shard holds.
10. Lock. A writer holds a lock on `.prunesid.lock`. Readers need none.
11. Versions. Readers refuse formats newer than their own, and fields of items that they do not know. This code also
    refuses formats older than 3.
12. `failures.jsonl`: one JSON object a line with `source`, `error` and `hint`: an input whose last try failed. A shard
    may still hold its earlier version. The file is replaced as a whole.
13. `prunesid-index.safetensors`: which shards exist, and where each source is (index_file.py). The headers are
    authoritative. The index makes lookups fast and shows which shards were lost. It is replaced as a whole. It is used
    only if its checksum is right, and only for shards whose sizes it has. The headers of other shards are read.
14. `calibration.json`: an object with `model`, `revision`, `images` (how many were measured), `phi` (their mean), and
    `values` (all of them in rising order; of more than 100, 100 quantiles). The file is replaced as a whole.

Names that differ between the files and this code: `whole` is `is_unpruned` of an item; `advances` is `mrope_deltas` of
a layout. In the index, `given` is `next_number`, `given_up` is `abandoned`, `dead` is `superseded`, and the tensor
`places` is `positions`.

Headers are read without torch, so that commands that list a cache start at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from prunesid_cli.errors import CacheError
from prunesid_cli.text import MODEL_OPTION, command_line
from prunesid_cli.tokencache.cache_file import build_record
from prunesid_cli.types import CLS_NOT_READ, Layout, Provenance, Region

FORMAT = 3
METADATA_KEY = "prunesid"
SHARD_GLOB = "prunesid-*.safetensors"
SHARD_NAME = re.compile(r"prunesid-(\d{5,6})\.safetensors")
MAX_SHARDS = 1_000_000
"""Shard numbers have at most six digits."""
MIN_PHI, MAX_PHI = -0.01, 2.01
"""The information is between 0 and 2; rounding may add a little."""
MAX_SLOTS = 1 << 22
"""Most slots of an item. An hour of video with 256 tokens a second has fewer than a quarter of them."""
MAX_SHARD_BYTES = 256 << 20
MAX_SHARD_ITEMS = 4096
"""A shard is full when it has reached one of the two limits."""
FAILURES = "failures.jsonl"
CALIBRATION = "calibration.json"
INDEX = "prunesid-index.safetensors"
MEASUREMENT_LOG = ".prunesid.measured"
LOG_GLOB = ".prunesid-*.log"
"""Logs of shards that are being filled (journal.py)."""


@dataclass(frozen=True)
class Run:
    """The settings that all items of a cache have in common. A cache is never continued with other settings."""

    model: str
    revision: str
    family: str
    method: str
    keep: str
    dynamic: bool
    even: bool
    dtype: str
    store: str = "model"
    fit: str = "crop"

    def to_record(self) -> dict[str, Any]:
        """Return the settings as files store them; `fit` is left out where it is the default."""
        record = asdict(self)
        return record if self.fit != Run.fit else {name: record[name] for name in record if name != "fit"}


class RowsPlace(NamedTuple):
    """Where rows are: the number of a shard, and their first row and end row in its tensors."""

    shard: int
    rows: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Item(Provenance):
    """One cached input, as the header of its shard describes it.

    Attributes:
        layout: Where the stock model reads its tokens.
        slots: Slot of each stored row.
        is_unpruned: Whether all tokens are kept; stored as `whole`.
        rows: First row and end row in the shard's tensors.
        phi: Information, 1 - rho (Eq. 7).
        check: Checksum of the bytes of its rows.
        shard: Of a copy, the number of the shard that has its rows; None if its own shard has them for it alone.
    """

    layout: Layout
    slots: tuple[int, ...]
    is_unpruned: bool
    rows: tuple[int, int]
    phi: float
    check: str
    shard: int | None = None

    @classmethod
    def from_record(cls, record: dict[str, Any], layouts: Mapping[int, Layout]) -> Item:
        """Read the item from a header.

        Args:
            record: The item as the header stores it.
            layouts: The layouts of its shard by their numbers.

        Raises:
            ValueError: The record is not that of an item, for example because a slot is not one of its layout.
            LookupError: A field is missing, or the layout.
            TypeError: A part has another type.
        """
        values = {name: value for name, value in record.items() if name != "whole"}
        values |= {"layout": layouts[record["layout"]], "is_unpruned": record["whole"]}
        item = build_record(values, cls)
        item.check_values()
        return item

    def check_values(self) -> None:
        """Raise ValueError if the values do not fit each other or the layout."""
        os.fsencode(self.source)  # a name that no file can have is a ValueError
        slots, num_cls = set(self.slots), self.slots.count(CLS_NOT_READ)  # each tile may have a CLS token
        is_right = {
            "digest": len(bytes.fromhex(self.digest)) == 32,
            "size": min(self.size) > 0,
            "phi": MIN_PHI <= self.phi <= MAX_PHI,
            "shard": self.shard is None or 0 <= self.shard < MAX_SHARDS,
            "rows": 0 <= self.rows[0] < self.rows[1] and self.rows[1] - self.rows[0] == len(self.slots),
            "whole": not self.is_unpruned or len(slots - {CLS_NOT_READ}) >= self.layout.num_visual,
            "slots": len(slots) == len(self.slots) - max(num_cls - 1, 0)
            and min(slots, default=0) >= CLS_NOT_READ
            and max(slots, default=-1) < self.layout.total,
        }
        wrong = [name for name, right in is_right.items() if not right]
        if wrong:
            raise ValueError(f"the {wrong[0]} of {self.source!r} cannot be right")

    def to_record(self, layout: int | dict[str, Any]) -> dict[str, Any]:
        """Return the item as a header stores it, with the number of its layout, without fields that are the default."""
        values = ((name, getattr(self, name), default) for name, default in ITEM_DEFAULTS.items())
        record = {name: value for name, value, default in values if value != default}
        return record | {"layout": layout, "whole": record.pop("is_unpruned")}

    @property
    def kept(self) -> int:
        """Number of tokens that the language model reads, structural ones included."""
        return self.layout.total if self.is_unpruned else len(self.slots)

    @property
    def num_own_rows(self) -> int:
        """Number of rows that its shard stores for it alone."""
        return len(self.slots) if self.shard is None else 0

    def rows_place(self, number: int) -> RowsPlace:
        """Return where its rows are; `number` is that of its shard."""
        return RowsPlace(number if self.shard is None else self.shard, self.rows)


ITEM_DEFAULTS = {field.name: field.default for field in fields(Item)}
"""Field of an item -> its default, which is not stored."""


def layout_from_record(record: dict[str, Any]) -> Layout:
    """Read a layout from a header.

    Raises:
        ValueError: The record is not that of a layout, for example because a region lies outside of its slots.
        LookupError: A field is missing.
        TypeError: A part has another type.
    """
    regions = tuple(build_record(region, Region) for region in record["regions"])
    values = {name: value for name, value in record.items() if name != "advances"}
    layout = build_record(values | {"regions": regions, "mrope_deltas": record["advances"]}, Layout)
    layout.text.encode()  # a lone surrogate is a ValueError
    has_bad_runs = min(layout.runs, default=0) < 0 or not 0 < layout.total <= MAX_SLOTS
    deltas = layout.mrope_deltas
    if has_bad_runs or len(deltas) not in (0, len(layout.runs)) or not all(0 <= delta <= MAX_SLOTS for delta in deltas):
        raise ValueError("the runs of a layout cannot be right")
    num_visual = 0
    for region in regions:
        num_visual += region.rows * region.columns
        end = region.first + (region.rows - 1) * region.stride + region.columns
        is_grid = min(region.rows, region.columns) > 0 and region.stride >= region.columns
        is_inside = region.first >= 0 and end <= layout.total and num_visual <= layout.total
        is_inside = is_inside and 0 <= region.tick <= MAX_SLOTS
        if not (is_grid and is_inside and all(map(math.isfinite, (*region.box, region.time or 0.0)))):
            raise ValueError("a region of a layout cannot be right")
    return layout


def layout_to_record(layout: Layout) -> dict[str, Any]:
    """Return a layout as a header stores it."""
    record = asdict(layout)
    return record | {"advances": record.pop("mrope_deltas")}


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor is in a file.

    Attributes:
        start: Offset of its first byte.
        row_bytes: Size of a row.
    """

    start: int
    row_bytes: int


@dataclass(frozen=True)
class Shard:
    """The header of a shard.

    Attributes:
        path: The file.
        number: The number in its name.
        tool: Version of prunesid that wrote it.
        run: Settings of the cache.
        items: Its items, in order.
        tokens: Location of the tokens.
        scales: Location of their scales, if there are any.
    """

    path: Path
    number: int
    tool: str
    run: Run
    items: tuple[Item, ...]
    tokens: TensorLocation
    scales: TensorLocation | None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of tokens with its scales."""
        return self.tokens.row_bytes + (self.scales.row_bytes if self.scales else 0)

    @property
    def num_rows(self) -> int:
        return sum(item.num_own_rows for item in self.items)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"prunesid-{number:05d}.safetensors"


def parse_shard_number(path: Path) -> int | None:
    """Return the number of a shard, or None if the path is not named like one."""
    match = SHARD_NAME.fullmatch(path.name)
    return int(match[1]) if match and path.name == shard_name(int(match[1])) else None


def shard_paths(folder: Path) -> list[Path]:
    """List the shards in a folder in the order of their numbers, without reading them."""
    numbered = [(number, path) for path in folder.glob(SHARD_GLOB) if (number := parse_shard_number(path)) is not None]
    return [path for _, path in sorted(numbered)]


def is_cache_folder(folder: Path) -> bool:
    """Whether a folder holds any file of a cache."""
    return bool(shard_paths(folder)) or any((folder / name).exists() for name in (INDEX, FAILURES, CALIBRATION))


def require_cache(folder: Path) -> None:
    """Raise CacheError if a folder holds no cache."""
    hint = f"make one with: {command_line('compress', 'IMAGES', '--out', folder)} {MODEL_OPTION}"
    if not folder.is_dir():
        raise CacheError(f"no such cache: {folder}", hint)
    if not is_cache_folder(folder) and any(folder.glob(LOG_GLOB)):
        problem = f"{folder} holds what an interrupted run left, or a run that has just begun"
        raise CacheError(problem, "run the same compress command again: it continues")
    if not is_cache_folder(folder):
        raise CacheError(f"not a prunesid cache: {folder}", hint)


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and without spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def checksum(*chunks: bytes) -> str:
    """Return the BLAKE2b-128 of the chunks one after the other, in hex."""
    digest = hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def hash_source(source: str) -> bytes:
    """Return the 16 bytes that stand for a source in the index, whatever bytes its name has."""
    return hashlib.blake2b(os.fsencode(source), digest_size=16).digest()
