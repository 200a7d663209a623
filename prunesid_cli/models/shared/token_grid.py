"""The grids of visual tokens of an image or clip: tiles, frames and windows, and what each one shows of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt

from transformers.image_processing_utils import select_best_resolution

from prunesid_cli.types import WHOLE_IMAGE, Box, Region


def centered_box(width: float, height: float) -> Box:
    """A box in the center of an image.

    Args:
        width: Fraction of the image's width; more than 1 if the image is padded.
        height: Fraction of the image's height; more than 1 if the image is padded.
    """
    return ((1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2)


def square_box(size: tuple[int, int], is_padded: bool) -> Box:
    """What a square shows of an image: the whole image and its padding, or else the central square of the image.

    Args:
        size: Width and height of the image in pixels.
        is_padded: Whether the image was padded to a square.
    """
    side = max(size) if is_padded else min(size)
    return centered_box(side / size[0], side / size[1])


def unpadded_box(size: tuple[int, int], canvas: tuple[int, int], rows: int, columns: int) -> Box:
    """What a token grid shows of an image that was fitted into a canvas, after the padding was cut off.

    Padding is cut off in whole rows or columns of tokens, so the box may differ slightly from the image.

    Args:
        size: Width and height of the image in pixels.
        canvas: Width and height of the canvas in pixels.
        rows: Rows of tokens that are left.
        columns: Columns of tokens that are left.
    """
    aspect = columns * size[1] / (rows * size[0])
    if size[0] * canvas[1] > size[1] * canvas[0]:
        return centered_box(1, 1 / aspect)
    return centered_box(aspect, 1)


def with_grid_box(
    regions: Sequence[Region], size: tuple[int, int], canvases: Sequence[Sequence[int]]
) -> tuple[Region, ...]:
    """Set the box of the tile grid of an image.

    Args:
        regions: The region of the whole image, then, unless nothing of it is left, the region of the tile grid.
        size: Width and height of the image in pixels.
        canvases: Heights and widths of canvases; the stock processor fits an image into the best of them.
    """
    base, *grids = regions
    height, width = select_best_resolution(size[::-1], canvases)
    boxed = [replace(grid, box=unpadded_box(size, (width, height), grid.rows, grid.columns)) for grid in grids]
    return (base, *boxed)


def tile_regions(tokens: int, rows: int, columns: int) -> tuple[Region, ...]:
    """The tiles of an image in raster order and, if there are several, the whole image as the last one.

    Args:
        tokens: Number of tokens of each tile, a square.
        rows: Rows of tiles.
        columns: Columns of tiles.
    """
    boxes = []
    for row in range(rows):
        for column in range(columns):
            boxes.append((column / columns, row / rows, (column + 1) / columns, (row + 1) / rows))
    if len(boxes) > 1:
        boxes.append(WHOLE_IMAGE)
    side = isqrt(tokens)
    return tuple(Region(number * tokens, side, side, side, box) for number, box in enumerate(boxes))


def frame_regions(tokens: int, times: Sequence[float], box: Box = WHOLE_IMAGE) -> tuple[Region, ...]:
    """The frames of a clip.

    Args:
        tokens: Number of tokens of each frame, a square.
        times: Time of each frame in seconds.
        box: What the tokens show of each frame.
    """
    side = isqrt(tokens)
    return tuple(Region(number * tokens, side, side, side, box, time) for number, time in enumerate(times))


def window_slices(rows: int, columns: int, side: int) -> list[tuple[slice, slice]]:
    """Cut a grid of tokens into windows of similar size.

    The selection runs over each window, since its work grows with the square of the number of tokens.

    Args:
        rows: Rows of the grid.
        columns: Columns of the grid.
        side: A window has at most side x side tokens; in a thin grid it may be longer than `side`.

    Returns:
        The rows and columns of each window.
    """
    if rows > columns:
        return [(row_slice, column_slice) for column_slice, row_slice in window_slices(columns, rows, side)]
    height = -(-rows // -(-rows // side))
    max_width = max(side * side // height, side)
    return [
        (row_slice, column_slice)
        for row_slice in split_evenly(rows, height)
        for column_slice in split_evenly(columns, max_width)
    ]


def split_evenly(length: int, max_length: int) -> list[slice]:
    """Split a range into as few parts of similar length as possible, none longer than `max_length`."""
    count = -(-length // max_length)
    edges = [length * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in zip(edges, edges[1:], strict=False)]
