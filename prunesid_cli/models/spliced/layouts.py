"""What the visual tokens of an image show: one function for each kind of pixels that processors make.

Each takes a processed image, and returns its grids of tokens in the order of their slots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import ceil, isqrt
from typing import Any

from prunesid_cli.models.shared.processor import ProcessedImage, visible_box
from prunesid_cli.models.shared.token_grid import tile_regions
from prunesid_cli.types import WHOLE_IMAGE, Box, Region


@dataclass(frozen=True)
class ImageParts:
    """One image, as a layout function sees it.

    Attributes:
        processed: What the processor returned for it.
        size: Width and height of the image in pixels.
        processor: The checkpoint's processor.
        config: The model's configuration.
    """

    processed: ProcessedImage
    size: tuple[int, int]
    processor: Any
    config: Any

    @property
    def total(self) -> int:
        """Number of visual tokens."""
        return sum(self.processed.runs)


def raster(rows: int, columns: int, box: Box = WHOLE_IMAGE) -> tuple[Region, ...]:
    """One grid of tokens that shows the whole image, or a part of it."""
    return (Region(0, rows, columns, columns, box),)


def of_patch_grid(parts: ImageParts) -> tuple[Region, ...]:
    """Images of any size, with their grid of patches in `image_grid_thw`. A token is a square of patches."""
    _, rows, columns = parts.processed.tensors["image_grid_thw"][0].tolist()
    merge = isqrt(rows * columns // parts.total)
    return raster(rows // merge, columns // merge)


def of_image_size(parts: ImageParts) -> tuple[Region, ...]:
    """Images of any size, padded in a batch: `image_sizes` in pixels."""
    height, width = (int(length) for length in parts.processed.tensors["image_sizes"][0])
    divisors = [rows for rows in range(1, parts.total + 1) if parts.total % rows == 0]
    rows = min(divisors, key=lambda rows: abs(rows * rows * width - parts.total * height))
    return raster(rows, parts.total // rows)


def of_square(parts: ImageParts) -> tuple[Region, ...]:
    """One square, whatever the image: cropped, padded or distorted."""
    side = isqrt(parts.total)
    return raster(side, side, visible_box(parts.processor.image_processor, parts.size))


def of_squares(parts: ImageParts) -> tuple[Region, ...]:
    """One square, or several. It is not known which part of the image each of several squares shows."""
    count = len(parts.processed.tensors["pixel_values"])
    if count == 1 or parts.total % count:
        return of_square(parts)
    side = isqrt(parts.total // count)
    return stack([(side, side)] * count, [WHOLE_IMAGE] * count)


def of_tiles(parts: ImageParts) -> tuple[Region, ...]:
    """Square tiles in raster order, then the whole image; only the whole image if it is small."""
    count, rows, columns = len(parts.processed.tensors["pixel_values"]), 1, 1
    if count > 1:
        images, (width, height) = parts.processor.image_processor, parts.size
        # The processor does not return the grid; the module of its class has the function that chose it.
        choose_grid = import_module(type(images).__module__).get_optimal_tiled_canvas
        tile = (images.size["height"], images.size["width"])
        columns, rows = (int(n) for n in choose_grid((height, width), tile, images.min_patches, images.max_patches))
    return tile_regions(parts.total // count, rows, columns)


def of_named_tiles(parts: ImageParts) -> tuple[Region, ...]:
    """Square tiles in raster order, then the whole image; the text before each tile says its place (Idefics3)."""
    places = [(int(row), int(column)) for row, column in re.findall(r"<row_(\d+)_col_(\d+)>", parts.processed.text)]
    return tile_regions(parts.processed.runs[0], *max(places, default=(1, 1)))


def of_crops(parts: ImageParts) -> tuple[Region, ...]:
    """The whole image, then the crops of pan-and-scan, side by side along its longer side (Gemma 3)."""
    runs, (width, height) = parts.processed.runs, parts.size
    num_crops, side, longer = len(runs) - 1, isqrt(runs[0]), max(parts.size)
    step, boxes = ceil(longer / max(num_crops, 1)), [WHOLE_IMAGE]
    for number in range(num_crops):
        start, end = step * number / longer, min(step * (number + 1), longer) / longer
        boxes.append((start, 0.0, end, 1.0) if width >= height else (0.0, start, 1.0, end))
    return stack([(side, side)] * len(runs), boxes)


def of_whole_and_tiles(parts: ImageParts) -> tuple[Region, ...]:
    """The whole image, then square tiles in raster order, with a mark after each row of tiles (Ovis2)."""
    count, rows = len(parts.processed.tensors["pixel_values"]), parts.processed.text.count("<IMG_ROW>") + 1
    side = isqrt(parts.total // count)
    return stack([(side, side)] * count, whole_and_tile_boxes(count, rows))


def of_positions(parts: ImageParts) -> tuple[Region, ...]:
    """Padded patches, with their positions in `image_position_ids`. A token is a square of patches."""
    columns, rows = (parts.processed.tensors["image_position_ids"][0].amax(0) + 1).tolist()
    pooled = isqrt(rows * columns // parts.total)
    return raster(rows // pooled, columns // pooled)


def of_spatial_shapes(parts: ImageParts) -> tuple[Region, ...]:
    """Tiles in raster order, then the whole image, each of any size: `spatial_shapes` in patches (LFM2-VL)."""
    factor, shapes = parts.config.downsample_factor, parts.processed.tensors["spatial_shapes"].tolist()
    places = [(int(row), int(column)) for row, column in re.findall(r"img_row_(\d+)_col_(\d+)", parts.processed.text)]
    # The whole image may be left out.
    boxes = [region.box for region in tile_regions(1, *max(places, default=(1, 1)))][: len(shapes)]
    return stack([(height // factor, width // factor) for height, width in shapes], boxes)


def of_slices(parts: ImageParts) -> tuple[Region, ...]:
    """The whole image, then slices in raster order, each of any size: `target_sizes` in patches (MiniCPM-V)."""
    shapes = parts.processed.tensors["target_sizes"].tolist()
    merge = isqrt(sum(height * width for height, width in shapes) // parts.total)
    # The processor writes a line for each row of slices.
    boxes = whole_and_tile_boxes(len(shapes), parts.processed.text.count("\n") + 1)
    return stack([(height // merge, width // merge) for height, width in shapes], boxes)


def of_any(parts: ImageParts) -> tuple[Region, ...]:
    """Pixels of a type that is in no table: as their names say, else squares, else a line of tokens."""
    for name, of_kind in (
        ("image_grid_thw", of_patch_grid),
        ("image_sizes", of_image_size),
        ("image_position_ids", of_positions),
        ("pixel_values", of_squares),
    ):
        if name in parts.processed.tensors:
            regions = of_kind(parts)
            if sum(region.rows * region.columns for region in regions) == parts.total:
                return regions
    return raster(1, parts.total)


def whole_and_tile_boxes(count: int, rows: int) -> list[Box]:
    """The box of the whole image, then those of its tiles in raster order.

    Args:
        count: Number of tiles, and one for the whole image.
        rows: Rows of tiles.
    """
    tiles = tile_regions(1, rows, max(count - 1, 1) // rows)
    return [WHOLE_IMAGE, *(tile.box for tile in tiles[: count - 1])]


def stack(shapes: Sequence[tuple[int, int]], boxes: Sequence[Box]) -> tuple[Region, ...]:
    """Grids one after the other, each with its rows and columns."""
    regions, first = [], 0
    for (rows, columns), box in zip(shapes, boxes, strict=True):
        regions.append(Region(first, rows, columns, columns, box))
        first += rows * columns
    return tuple(regions)


REGIONS: dict[str, Callable[[ImageParts], tuple[Region, ...]]] = {
    "patch_grid": of_patch_grid,
    "image_size": of_image_size,
    "square": of_square,
    "crops": of_crops,
    "named_tiles": of_named_tiles,
    "tiles": of_tiles,
    "whole_and_tiles": of_whole_and_tiles,
    "positions": of_positions,
    "spatial_shapes": of_spatial_shapes,
    "slices": of_slices,
    "any": of_any,
}
"""Kind of pixels -> what the tokens show."""
