"""A picture with its kept patches as they are, and all else dimmed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from prunesid_cli.visualization.palette import DIM, Colour, colour, colour_of, pattern
from prunesid_cli.visualization.panels import Marks, Panel

Box = tuple[int, int, int, int]
LEAST, MOST = 8, 4096
"""Pixels of the narrower side of a patch, and of the longer side of a picture; where there are fewer or more, it is
drawn larger or smaller."""
OUTLINE: Colour = (255, 255, 255)
LINK: Colour = (255, 236, 90)
TINT = 0.4
"""How much of a dropped patch is the colour of its group."""
SHINE = 0.6
"""How much of a line's pixel is the line."""
GHOST, BARS = 0.12, 70
"""How bright what was never shown is, and the grey of the bars before it."""


def overlay(panel: Panel, marks: Marks, most: int = MOST) -> Image.Image:
    """Of the size of the picture, unless patches would be smaller than `LEAST` or the picture larger than `most`."""
    picture = _sized(panel, most)
    places = {slot: box for slot, box in patches(panel, picture.size).items() if box[0] < box[2] and box[1] < box[3]}
    dimmed, drawn = picture.point(lambda value: round(value * DIM)), _unseen(picture)
    for slot in places.keys() - marks.kept:
        patch, box = dimmed.crop(places[slot]), places[slot]
        drawn.paste(_tinted(patch, box, marks.groups[slot]) if slot in marks.groups else patch, box)
    _link(drawn, places, marks)
    for slot in places.keys() & marks.kept:
        drawn.paste(picture.crop(places[slot]), places[slot])
    _outline(ImageDraw.Draw(drawn), places, marks)
    return drawn


def patches(panel: Panel, size: tuple[int, int]) -> Mapping[int, Box]:
    """Slot -> left, top, right, bottom of its patch in pixels, within the picture; the latter two exclusive."""
    found = dict[int, Box]()
    for region in panel.regions:
        left, top, right, bottom = region.box
        across, down = _edges(left, right, region.columns, size[0]), _edges(top, bottom, region.rows, size[1])
        for at, slot in enumerate(region.slots):
            row, column = divmod(at, region.columns)
            found[slot] = (across[column], down[row], across[column + 1], down[row + 1])
    return found


def _edges(start: float, end: float, count: int, length: int) -> list[int]:
    """The edges of patches from one share of a length to another, within it."""
    return [min(max(round((start + (end - start) * i / count) * length), 0), length) for i in range(count + 1)]


def _sized(panel: Panel, most: int) -> Image.Image:
    picture = panel.image
    sides = [
        length * (region.box[axis + 2] - region.box[axis]) / count
        for region in panel.regions
        for axis, (length, count) in enumerate(zip(picture.size, (region.columns, region.rows), strict=True))
    ]
    if min(sides) < LEAST:
        times = math.ceil(LEAST / min(sides))
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    if max(picture.size) > most:
        scale = most / max(picture.size)
        shrunk = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        picture = picture.resize(shrunk, Image.Resampling.LANCZOS)
    return picture


def _unseen(picture: Image.Image) -> Image.Image:
    """What the model was never shown: in grey, behind bars."""
    grey = picture.convert("L").point(lambda value: round(GHOST * value))
    y, x = np.ogrid[: picture.height, : picture.width]
    period = max(8, max(picture.size) // 60)
    bars = Image.fromarray((((y + x) % period < period / 6) * 255).astype(np.uint8))
    return Image.composite(Image.new("L", picture.size, BARS), grey, bars).convert("RGB")


def _tinted(patch: Image.Image, box: Box, group: int) -> Image.Image:
    """A patch with the colour of a group in its pattern, which goes on in the patches beside it."""
    left, top, right, bottom = box
    y, x = np.ogrid[top:bottom, left:right]
    where = pattern(group)(y, x, max(4, min(right - left, bottom - top) // 2))
    full = Image.blend(patch, Image.new("RGB", patch.size, colour(group)), TINT)
    return Image.composite(full, patch, Image.fromarray((where * 255).astype(np.uint8)))


def _width(box: Box, share: int) -> int:
    """Of a line of a patch."""
    return max(1, min(box[2] - box[0], box[3] - box[1]) // share)


def _outline(pen: ImageDraw.ImageDraw, places: Mapping[int, Box], marks: Marks) -> None:
    for slot in sorted(marks.kept & places.keys()):
        left, top, right, bottom = box = places[slot]
        width = _width(box, 7 if slot in marks.groups else 24)
        pen.rectangle((left, top, right - 1, bottom - 1), None, colour_of(slot, marks.groups, OUTLINE), width)


def _link(drawn: Image.Image, places: Mapping[int, Box], marks: Marks) -> None:
    """A line from each suppressed token to the one that suppressed it; they let what is below shine through."""
    lines = defaultdict[Colour, list[tuple[Box, Box]]](list)
    for slot, by in marks.links.items():
        if slot in places and by in places:
            lines[colour_of(slot, marks.groups, LINK)].append((places[slot], places[by]))
    for ink, ends in lines.items():
        mask = Image.new("L", (2 * drawn.width, 2 * drawn.height))  # twice as large, so that lines come out smooth
        pen = ImageDraw.Draw(mask)
        for start, end in ends:
            pen.line((*_centre(start), *_centre(end)), round(255 * SHINE), 2 * _width(end, 14))
        drawn.paste(ink, mask=mask.resize(drawn.size, Image.Resampling.BOX))


def _centre(box: Box) -> tuple[int, int]:
    """In halves of pixels."""
    return box[0] + box[2], box[1] + box[3]
