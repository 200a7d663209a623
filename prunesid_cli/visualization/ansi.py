"""Panels as terminal text: coloured half blocks, or one character per patch where there is no colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

from prunesid_cli.visualization.palette import DROPPED_BRIGHTNESS, Pixels, group_colour
from prunesid_cli.visualization.panels import Annotations, Panel, Slots

KEPT, DROPPED = "#", "."
GROUP_LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""Letters of dropped patches by group; kept patches have the same letters in upper case."""
UPPER_HALF_BLOCK = "\u2580"
GAP_COLUMNS, MARGIN_LINES = 2, 3
"""Columns between panels, and lines that stay free below a picture."""
MAX_CELLS_PER_PATCH = 3
"""Largest number of cells along a side of a patch."""
MAX_PANELS_PER_ROW = 3
"""Number of panels that a row is expected to hold when the size of their cells is chosen."""
MIN_KEPT_LEVEL = 110
"""Smallest value of the brightest channel of a kept cell, so that dark kept patches stand out."""


@dataclass(frozen=True)
class Canvas:
    """The terminal.

    Attributes:
        width: Columns of text.
        height: Lines of text.
        has_colour: Whether colours and block characters can be shown.
    """

    width: int
    height: int
    has_colour: bool


def render_text(panels: Sequence[Panel], annotations: Annotations, canvas: Canvas) -> list[Text]:
    """Draw panels as lines of text: a single one alone, several side by side with titles."""
    if len(panels) == 1:
        return _render_panel(panels[0], annotations, canvas, canvas.width)
    max_width = canvas.width // min(len(panels), MAX_PANELS_PER_ROW) - GAP_COLUMNS
    blocks = []
    for panel in panels:
        title = Text(panel.title(annotations.kept))
        blocks.append([title, *_render_panel(panel, annotations, canvas, max_width)])
    block_width = max(line.cell_len for block in blocks for line in block)
    blocks_per_row = max(1, (canvas.width + GAP_COLUMNS) // (block_width + GAP_COLUMNS))
    lines = list[Text]()
    for start in range(0, len(blocks), blocks_per_row):
        if lines:
            lines.append(Text())
        for cells in zip_longest(*blocks[start : start + blocks_per_row], fillvalue=Text()):
            padded = [cell + Text(" " * (block_width - cell.cell_len)) for cell in cells]
            lines.append(Text(" " * GAP_COLUMNS).join(padded))
    return lines


def _render_panel(panel: Panel, annotations: Annotations, canvas: Canvas, max_width: int) -> list[Text]:
    """`max_width` limits only how many cells a patch gets: each patch has at least one as far as the canvas allows."""
    slots = panel.slots
    if not canvas.has_colour:
        return _characters(slots, annotations, canvas.width)
    rows, columns = slots.shape
    detail = min(MAX_CELLS_PER_PATCH, max_width // columns, 2 * max(canvas.height - MARGIN_LINES, 1) // rows)
    cells = _cell_colours(panel, slots, annotations, max(detail, 1))
    if detail < 1:
        cells = np.asarray(Image.fromarray(cells).reduce(-(-columns // canvas.width)))
    return _half_blocks(cells)


def _characters(slots: Slots, annotations: Annotations, width: int) -> list[Text]:
    """One character per patch, or per square of patches where the panel is wider than the text.

    A square shows a kept patch if it has one: codes of kept patches are positive, and the largest code is shown.
    """
    group_codes = np.vectorize(lambda slot: annotations.groups.get(slot, -1) + 2, otypes=[int])(slots)
    codes = np.where(np.isin(slots, list(annotations.kept)), group_codes, -group_codes)
    side = -(-slots.shape[1] // width)
    for axis in (0, 1):
        codes = np.maximum.reduceat(codes, range(0, codes.shape[axis], side), axis)
    return [Text("".join(map(_character, row))) for row in codes.tolist()]


def _character(code: int) -> str:
    """Character of a code: group + 2, or 1 without groups; negative for dropped patches."""
    is_kept = code > 0
    if abs(code) == 1:
        return KEPT if is_kept else DROPPED
    letter = GROUP_LETTERS[(abs(code) - 2) % len(GROUP_LETTERS)]
    return letter.upper() if is_kept else letter


def _cell_colours(panel: Panel, slots: Slots, annotations: Annotations, detail: int) -> Pixels:
    """Colours [rows * detail, columns * detail, 3] of a panel's cells."""
    (width, height), boxes = panel.image.size, np.array([region.box for region in panel.regions])
    left, top, right, bottom = np.concatenate([boxes.min(0)[:2], boxes.max(0)[2:]]) * [width, height, width, height]
    visible = panel.image.crop((round(left), round(top), max(round(right), 1), max(round(bottom), 1)))
    rows, columns = (count * detail for count in slots.shape)
    cells = np.asarray(visible.resize((columns, rows), Image.Resampling.BOX)).astype(float)
    slots = slots.repeat(detail, 0).repeat(detail, 1)
    for slot, group in annotations.groups.items():
        cells[slots == slot] = group_colour(group)
    brightened = cells + np.maximum(MIN_KEPT_LEVEL - cells.max(-1, keepdims=True), 0)
    is_kept = np.isin(slots, list(annotations.kept))[..., None]
    return np.where(is_kept, brightened, cells * DROPPED_BRIGHTNESS).round().astype(np.uint8)


def _half_blocks(cells: Pixels) -> list[Text]:
    """Two rows of cells per line: the upper one as foreground, the lower one as background."""
    lines = []
    for top in range(0, len(cells), 2):
        upper_row = cells[top].tolist()
        lower_row = cells[top + 1].tolist() if top + 1 < len(cells) else [None] * len(upper_row)
        line = Text()
        for upper, lower in zip(upper_row, lower_row, strict=True):
            background = Color.from_rgb(*lower) if lower else None
            line.append(UPPER_HALF_BLOCK, Style(color=Color.from_rgb(*upper), bgcolor=background))
        lines.append(line)
    return lines
