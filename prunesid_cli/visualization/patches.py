"""Which patches of an image or clip are kept, as a short record that files and pages hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from prunesid_cli.types import Layout, Region

PatchRecord = dict[str, Any]
"""`grids`: rows, columns, box and seconds of each token grid. `kept`: a bit for each patch, grid by grid, row by row,
in hex, the first patch first; left out if all are kept. `groups`: two hex digits for each patch, its group; ff: none.
"""
NO_GROUP = 0xFF


def to_patch_record(
    layout: Layout, kept: Collection[int] | None, groups: Mapping[int, int] | None = None
) -> PatchRecord:
    """Describe an item.

    Args:
        layout: Where its tokens are.
        kept: Slots of the kept tokens; None for all.
        groups: Slot -> group, if groups are known.
    """
    slots = [slot for region in layout.regions for slot in region.slots]
    grids = [
        [region.rows, region.columns, *(round(edge, 5) for edge in region.box), region.time]
        for region in layout.regions
    ]
    record: PatchRecord = {"grids": grids}
    if kept is not None:
        known = frozenset(kept)
        bits = np.packbits([slot in known for slot in slots])
        record["kept"] = bits.tobytes().hex()[: -(-len(slots) // 4)]
    if groups:
        record["groups"] = bytes(min(groups.get(slot, NO_GROUP), NO_GROUP) for slot in slots).hex()
    return record


def read_regions(record: PatchRecord) -> Iterator[Region]:
    """The token grids of a record. Slots are the numbers of patches in `kept` and `groups`."""
    first = 0
    for rows, columns, *box, time in record["grids"]:
        yield Region(first, rows, columns, columns, (box[0], box[1], box[2], box[3]), time)
        first += rows * columns
