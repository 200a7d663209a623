"""Contact sheet: all panels of an item in one image, each under its title, with a caption and a legend below."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from prunesid_cli.visualization.legend import BACKGROUND, TEXT_COLOUR, add_legend, legend_entries
from prunesid_cli.visualization.overlay import draw_overlay
from prunesid_cli.visualization.panels import Annotations, Panel

GAP_PIXELS, TITLE_PIXELS = 8, 14
"""Space between panels, and font size of titles."""
MAX_FRAME_SIDE, MAX_PANEL_SIDE = 480, 1600
"""Longest side, in pixels, of a clip's frame and of a picture that is drawn in several panels."""
SHEET_ASPECT = 1.5
"""Preferred ratio of a sheet's width to its height."""


def contact_sheet(
    panels: Sequence[Panel], annotations: Annotations, caption: Sequence[str] = (), has_unseen: bool = False
) -> Image.Image:
    """Draw panels with a caption and a legend.

    Args:
        panels: The panels.
        annotations: What is drawn on them.
        caption: Texts for below the picture.
        has_unseen: Whether there are parts that the model does not see.
    """
    return add_legend(_draw_panels(panels, annotations), caption, legend_entries(panels, annotations, has_unseen))


def _draw_panels(panels: Sequence[Panel], annotations: Annotations) -> Image.Image:
    """Draw panels side by side; the single panel of a picture is drawn alone, without title or border."""
    is_clip = any(region.time is not None for panel in panels for region in panel.regions)
    if len(panels) == 1 and not is_clip:
        return draw_overlay(panels[0], annotations)
    max_side = MAX_FRAME_SIDE if is_clip else MAX_PANEL_SIDE
    images = [draw_overlay(panel, annotations, max_side, min_side=0) for panel in panels]
    titles = [panel.title(annotations.kept) for panel in panels]
    font = ImageFont.load_default(TITLE_PIXELS)
    width = max(*(image.width for image in images), *(math.ceil(font.getlength(title)) for title in titles))
    height = max(image.height for image in images) + TITLE_PIXELS + GAP_PIXELS
    columns = _best_columns(len(images), (width + GAP_PIXELS) / (height + GAP_PIXELS))
    rows = -(-len(images) // columns)
    size = (GAP_PIXELS + columns * (width + GAP_PIXELS), GAP_PIXELS + rows * (height + GAP_PIXELS))
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(index, columns)
        left, top = GAP_PIXELS + column * (width + GAP_PIXELS), GAP_PIXELS + row * (height + GAP_PIXELS)
        pen.text((left, top), title, TEXT_COLOUR, font)
        sheet.paste(image, (left, top + TITLE_PIXELS + GAP_PIXELS))
    return sheet


def _best_columns(count: int, panel_aspect: float) -> int:
    """The number of columns that brings the sheet closest to its preferred aspect."""

    def distance(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * panel_aspect / rows / SHEET_ASPECT))

    return min(range(1, count + 1), key=distance)
