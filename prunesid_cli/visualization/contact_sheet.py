"""Panels on one sheet, each under its title; a panel alone is just that."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from prunesid_cli.visualization.overlay import overlay
from prunesid_cli.visualization.panels import Marks, Panel

GAP, TITLE = 8, 14
"""Pixels between panels, and of the height of letters."""
PAPER, INK = (24, 24, 24), (235, 235, 235)
FRAME, HALF = 480, 1600
"""Longest side of a frame of a clip, and of a picture that is drawn twice."""
ASPECT = 1.5
"""Of a sheet, width to height, as nearly as can be."""


def sheet(panels: Sequence[Panel], marks: Marks) -> Image.Image:
    """Of one picture, the overlay and nothing else; of several panels, or a clip, all of them with their titles."""
    timed = any(region.time is not None for panel in panels for region in panel.regions)
    if len(panels) == 1 and not timed:
        return overlay(panels[0], marks)
    drawn = [overlay(panel, marks, FRAME if timed else HALF) for panel in panels]
    titles = [panel.title(marks.kept) for panel in panels]
    font = ImageFont.load_default(TITLE)
    width = max(*(one.width for one in drawn), *(math.ceil(font.getlength(title)) for title in titles))
    height = max(one.height for one in drawn) + TITLE + GAP
    columns = _columns(len(drawn), (width + GAP) / (height + GAP))
    rows = -(-len(drawn) // columns)
    paper = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + GAP)), PAPER)
    pen = ImageDraw.Draw(paper)
    for number, (picture, title) in enumerate(zip(drawn, titles, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + GAP)
        pen.text((left, top), title, INK, font)
        paper.paste(picture, (left, top + TITLE + GAP))
    return paper


def _columns(count: int, aspect: float) -> int:
    """How many panels of an aspect stand side by side."""
    return min(range(1, count + 1), key=lambda columns: abs(math.log(columns * aspect / -(-count // columns) / ASPECT)))
