"""What models do alike that read a picture as square tiles, or a clip as frames, of equally many tokens."""

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
