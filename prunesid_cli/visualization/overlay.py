"""Overlay: an image with its kept patches at full brightness and everything else dimmed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prunesid_cli.visualization.palette import DROPPED_BRIGHTNESS, Colour, group_colour, group_pattern, slot_colour
from prunesid_cli.visualization.panels import Annotations, Panel, Slots

PixelBox = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""
MIN_PATCH_SIDE, MIN_IMAGE_SIDE, MAX_IMAGE_SIDE = 8, 672, 4096
"""Pixels of the narrower side of a patch, and of the longer side of an image: images beyond them are resized."""
OUTLINE_COLOUR: Colour = (255, 255, 255)
LINK_COLOUR: Colour = (255, 236, 90)
TINT_OPACITY = 0.4
"""Opacity of the group colour on a dropped patch."""
LINK_OPACITY = 0.75
COUNT_SIDE = 12
"""Smallest side of a patch, in pixels, in which the number of its links is written."""
CROPPED_BRIGHTNESS, BAR_LEVEL = 0.12, 70
"""Brightness of the area that the model's preprocessing crops off, and grey level of the bars over it."""


def draw_overlay(
    panel: Panel, annotations: Annotations, max_side: int = MAX_IMAGE_SIDE, min_side: int = MIN_IMAGE_SIDE
) -> Image.Image:
    """Draw one panel.

    Args:
        panel: The image and its token grids.
        annotations: Kept tokens, with groups and links if those are to be drawn.
        max_side: Longest side of the result in pixels.
        min_side: Side that its longer side has at least.

    Returns:
        An image of the size of the panel's, or a multiple of it if that, or a patch, would be too small to see; but no
        larger than `max_side`.
    """
    image = _resize(panel, max_side, min_side)
    boxes = {slot: box for slot, box in _patch_boxes(panel, image.size).items() if box[0] < box[2] and box[1] < box[3]}
    dimmed = image.point(lambda value: round(value * DROPPED_BRIGHTNESS))
    canvas = _draw_cropped_area(image)
    for slot in boxes.keys() - annotations.kept:
        patch = dimmed.crop(boxes[slot])
        if slot in annotations.groups:
            patch = _tint(patch, boxes[slot], annotations.groups[slot])
        canvas.paste(patch, boxes[slot])
    # Links lie above the dropped patches and below the kept ones.
    counts = _draw_links(canvas, panel, boxes, annotations)
    for slot in boxes.keys() & annotations.kept:
        canvas.paste(image.crop(boxes[slot]), boxes[slot])
    _draw_outlines(canvas, boxes, annotations)
    _write_counts(ImageDraw.Draw(canvas), boxes, counts)
    return canvas


def _patch_boxes(panel: Panel, size: tuple[int, int]) -> Mapping[int, PixelBox]:
    """Slot -> box of its patch, clipped to the image."""
    boxes = dict[int, PixelBox]()
    for region in panel.regions:
        left, top, right, bottom = region.box
        x_edges = _edges(left, right, region.columns, size[0])
        y_edges = _edges(top, bottom, region.rows, size[1])
        for index, slot in enumerate(region.slots):
            row, column = divmod(index, region.columns)
            boxes[slot] = (x_edges[column], y_edges[row], x_edges[column + 1], y_edges[row + 1])
    return boxes


def _edges(start: float, end: float, count: int, length: int) -> list[int]:
    """Edges, in pixels, of `count` patches between two shares of a length."""
    return [min(max(round((start + (end - start) * i / count) * length), 0), length) for i in range(count + 1)]


def _resize(panel: Panel, max_side: int, min_side: int) -> Image.Image:
    """Enlarge the image if it, or its patches, are too small to see, then shrink it to `max_side`."""
    image = panel.image
    patch_sides = []
    for region in panel.regions:
        left, top, right, bottom = region.box
        patch_sides.append(image.width * (right - left) / region.columns)
        patch_sides.append(image.height * (bottom - top) / region.rows)
    wanted = max(MIN_PATCH_SIDE / min(patch_sides), min(min_side, max_side) / max(image.size))
    if wanted > 1:
        factor = math.ceil(wanted)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if max(image.size) > max_side:
        scale = max_side / max(image.size)
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def _draw_cropped_area(image: Image.Image) -> Image.Image:
    """The image in dark grey behind diagonal bars: how areas look that the model does not see."""
    grey = image.convert("L").point(lambda value: round(CROPPED_BRIGHTNESS * value))
    y, x = np.ogrid[: image.height, : image.width]
    period = max(8, max(image.size) // 60)
    bars = Image.fromarray((((y + x) % period < period / 6) * 255).astype(np.uint8))
    return Image.composite(Image.new("L", image.size, BAR_LEVEL), grey, bars).convert("RGB")


def _tint(patch: Image.Image, box: PixelBox, group: int) -> Image.Image:
    """Tint a patch in the colour and pattern of its group."""
    tinted = Image.blend(patch, Image.new("RGB", patch.size, group_colour(group)), TINT_OPACITY)
    return Image.composite(tinted, patch, _pattern_mask(box, group))


def _pattern_mask(box: PixelBox, group: int) -> Image.Image:
    """The pattern of a group in a patch. It continues across neighbouring patches."""
    left, top, right, bottom = box
    y, x = np.ogrid[top:bottom, left:right]
    mask = group_pattern(group)(y, x, max(4, min(right - left, bottom - top) // 2))
    return Image.fromarray((mask * 255).astype(np.uint8))


def _line_width(box: PixelBox, divisor: int) -> int:
    return max(1, min(box[2] - box[0], box[3] - box[1]) // divisor)


def _draw_outlines(canvas: Image.Image, boxes: Mapping[int, PixelBox], annotations: Annotations) -> None:
    """Outline the kept patches, in thick lines of the group's colour and pattern, on black, if groups are drawn."""
    for slot in sorted(annotations.kept & boxes.keys()):
        left, top, right, bottom = boxes[slot]
        group, size = annotations.groups.get(slot), (right - left, bottom - top)
        width = _line_width(boxes[slot], 24 if group is None else 7)
        outline, line = Image.new("RGB", size, OUTLINE_COLOUR), Image.new("L", size, 255)
        if group is not None:
            colour = Image.new("RGB", size, group_colour(group))
            outline = Image.composite(colour, Image.new("RGB", size), _pattern_mask(boxes[slot], group))
        if min(size) > 2 * width:
            line.paste(0, (width, width, size[0] - width, size[1] - width))
        canvas.paste(outline, boxes[slot], line)


def _draw_links(
    canvas: Image.Image, panel: Panel, boxes: Mapping[int, PixelBox], annotations: Annotations
) -> Mapping[int, int]:
    """Draw a translucent line from each cluster of neighbouring tokens to the token that suppressed all of them.

    The width of a line grows with the number of its tokens.

    Returns:
        Slot of a token -> how many it suppressed.
    """
    lines, counts = defaultdict[Colour, list[tuple[tuple[int, int, int, int], int]]](list), Counter[int]()
    for suppressor, cluster in _link_clusters(panel.slots, annotations.links):
        if suppressor not in boxes:
            continue
        counts[suppressor] += len(cluster)
        nearest = min(cluster, key=lambda slot: _distance(boxes[slot], boxes[suppressor]))
        start, end = _centre(boxes[nearest]), _centre(boxes[suppressor])
        colour = slot_colour(suppressor, annotations.groups, LINK_COLOUR)
        width = max(1, round(_line_width(boxes[suppressor], 12) * math.sqrt(len(cluster))))
        lines[colour].append(((*start, *end), width))
    for colour, segments in lines.items():
        mask = Image.new("L", (2 * canvas.width, 2 * canvas.height))  # at twice the size, for smooth lines
        pen = ImageDraw.Draw(mask)
        for segment, width in segments:
            pen.line(segment, round(255 * LINK_OPACITY), 2 * width)
        canvas.paste(colour, mask=mask.resize(canvas.size, Image.Resampling.BOX))
    return counts


def _link_clusters(slots: Slots, links: Mapping[int, int]) -> Iterator[tuple[int, list[int]]]:
    """Each suppressor in a grid of slots, with the tokens that it suppressed, in clusters of neighbours."""
    remaining = {(row, column) for row, column in np.ndindex(slots.shape) if int(slots[row, column]) in links}
    while remaining:
        first = min(remaining)
        suppressor, cluster, waiting = links[int(slots[first])], list[int](), [first]
        remaining.discard(first)
        while waiting:
            row, column = waiting.pop()
            cluster.append(int(slots[row, column]))
            for place in ((row + y, column + x) for y in (-1, 0, 1) for x in (-1, 0, 1)):
                if place in remaining and links[int(slots[place])] == suppressor:
                    remaining.discard(place)
                    waiting.append(place)
        yield suppressor, cluster


def _centre(box: PixelBox) -> tuple[int, int]:
    """The centre of a box in half pixels."""
    return box[0] + box[2], box[1] + box[3]


def _distance(first: PixelBox, second: PixelBox) -> int:
    (x, y), (other_x, other_y) = _centre(first), _centre(second)
    return (x - other_x) ** 2 + (y - other_y) ** 2


def _write_counts(pen: ImageDraw.ImageDraw, boxes: Mapping[int, PixelBox], counts: Mapping[int, int]) -> None:
    """Write how many tokens each one suppressed into its patch."""
    for slot, count in counts.items():
        left, top, right, bottom = boxes[slot]
        side = min(right - left, bottom - top)
        if count > 1 and side >= COUNT_SIDE:
            font = ImageFont.load_default(min(side * 0.62, side * 1.3 / len(str(count)), 20))
            place = ((left + right) / 2, (top + bottom) / 2)
            pen.text(place, str(count), (255, 255, 255), font, "mm", stroke_width=2, stroke_fill=(0, 0, 0))
