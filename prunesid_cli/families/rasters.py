"""Tiles, frames and windows: how a picture or clip falls into rasters of tokens, and large rasters into segments."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

from torch import Tensor

from prunesid_cli.types import Encoded, Pixels, Region, Segment

WHOLE = (0.0, 0.0, 1.0, 1.0)


def tiles(size: int, rows: int, columns: int) -> tuple[Region, ...]:
    """The tiles of a picture in raster order and, if there are several, the whole of it last; `size` tokens each."""
    boxes = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    boxes += [WHOLE] if len(boxes) > 1 else []
    side = isqrt(size)
    return tuple(Region(number * size, side, side, side, box) for number, box in enumerate(boxes))


def frames(size: int, times: Sequence[float]) -> tuple[Region, ...]:
    """The frames of a clip, `size` tokens each."""
    side = isqrt(size)
    return tuple(Region(number * size, side, side, side, time=time) for number, time in enumerate(times))


def by_item(features: Tensor, saliency: Tensor, items: Sequence[Pixels]) -> list[Encoded]:
    """Tiles and frames of a batch of items, [S, N, C] and [S, N] -> the items, a segment for each region."""
    rows = iter(zip(features, saliency, strict=True))
    return [
        Encoded(
            tuple(Segment(*next(rows), slots=tuple(region.slots)) for region in item.layout.regions),
            item.layout,
        )
        for item in items
    ]


def windows(rows: int, columns: int, side: int) -> list[tuple[slice, slice]]:
    """Parts of about one size that a raster is cut into for selection, whose work grows with the square of its tokens:
    of at most side x side tokens, longer where the raster is thin."""
    if rows > columns:
        return [(down, across) for across, down in windows(columns, rows, side)]
    high = -(-rows // -(-rows // side))
    return [(down, across) for down in evenly(rows, high) for across in evenly(columns, max(side * side // high, side))]


def evenly(length: int, most: int) -> list[slice]:
    """As few parts of a length as can be, none longer than `most`."""
    count = -(-length // most)
    edges = [length * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
