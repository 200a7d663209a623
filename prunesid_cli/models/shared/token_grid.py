"""Tiles, frames and windows: how a picture or clip falls into rasters of tokens, and large rasters into segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt

from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from prunesid_cli.types import Encoded, Pixels, Region, Segment

Box = tuple[float, float, float, float]
"""A part of a picture: left, top, right, bottom, as shares of its width and height."""
WHOLE_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)


def centered_box(across: float, down: float) -> Box:
    """So much of a picture's width and height about its middle; more than 1 where it is padded."""
    return ((1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2)


def square_box(size: tuple[int, int], is_padded: bool) -> Box:
    """What a square shows of a picture: more than it where it is padded, else its middle."""
    side = max(size) if is_padded else min(size)
    return centered_box(side / size[0], side / size[1])


def unpadded_box(size: tuple[int, int], canvas: tuple[int, int], rows: int, columns: int) -> Box:
    """What a raster shows of a picture that was fitted into a canvas; of what fills the rest, whole rows or columns
    were cut off. Sizes are width and height."""
    aspect = columns * size[1] / (rows * size[0])
    return centered_box(1, 1 / aspect) if size[0] * canvas[1] > size[1] * canvas[0] else centered_box(aspect, 1)


def with_grid_box(
    regions: Sequence[Region], size: tuple[int, int], canvases: Sequence[Sequence[int]]
) -> tuple[Region, ...]:
    """A whole picture and, where there is one, the raster of its tiles, which learns what of the picture it shows.

    canvases: heights and widths, of which the stock processor fits a picture into the best.
    """
    whole, *tiled = regions
    height, width = select_best_resolution(size[::-1], canvases)
    return (whole, *(replace(one, box=unpadded_box(size, (width, height), one.rows, one.columns)) for one in tiled))


def tile_regions(size: int, rows: int, columns: int) -> tuple[Region, ...]:
    """The tiles of a picture in raster order and, if there are several, the whole of it last; `size` tokens each."""
    boxes = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    boxes += [WHOLE_IMAGE] if len(boxes) > 1 else []
    side = isqrt(size)
    return tuple(Region(number * size, side, side, side, box) for number, box in enumerate(boxes))


def frame_regions(size: int, times: Sequence[float], box: Box = WHOLE_IMAGE) -> tuple[Region, ...]:
    """The frames of a clip, `size` tokens each, that show `box` of it."""
    side = isqrt(size)
    return tuple(Region(number * size, side, side, side, box, time) for number, time in enumerate(times))


def split_by_item(features: Tensor, saliency: Tensor, items: Sequence[Pixels]) -> list[Encoded]:
    """Tiles and frames of a batch of items, [S, N, C] and [S, N] -> the items, a segment for each region."""
    rows = iter(zip(features, saliency, strict=True))
    return [
        Encoded(
            tuple(Segment(*next(rows), slots=tuple(region.slots)) for region in item.layout.regions),
            item.layout,
        )
        for item in items
    ]


def window_slices(rows: int, columns: int, side: int) -> list[tuple[slice, slice]]:
    """Parts of about one size that a raster is cut into for selection, whose work grows with the square of its tokens:
    of at most side x side tokens, longer where the raster is thin."""
    if rows > columns:
        return [(down, across) for across, down in window_slices(columns, rows, side)]
    high = -(-rows // -(-rows // side))
    return [
        (down, across)
        for down in split_evenly(rows, high)
        for across in split_evenly(columns, max(side * side // high, side))
    ]


def split_evenly(length: int, most: int) -> list[slice]:
    """As few parts of a length as can be, none longer than `most`."""
    count = -(-length // most)
    edges = [length * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
