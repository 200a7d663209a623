"""Panels as text: half blocks in colour, a patch each or several where there is room; or a character a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

from prunesid_cli.visualization.palette import DIM, LETTERS, LIFT, Pixels, colour
from prunesid_cli.visualization.panels import Marks, Panel, Slots

KEPT, DROPPED, HALF = "#", ".", "\u2580"
GAP, MARGIN = 2, 3
"""Columns between panels, and lines that are left free below a picture."""
FINEST, ACROSS = 3, 3
"""Cells across a patch at most; panels that stand side by side, if they are small."""


@dataclass(frozen=True)
class Canvas:
    """Columns and lines of text, and whether it has colours."""

    width: int
    height: int
    coloured: bool


def text(panels: Sequence[Panel], marks: Marks, canvas: Canvas) -> list[Text]:
    """Lines. A single panel has no title."""
    if len(panels) == 1:
        return _panel(panels[0], marks, canvas, canvas.width)
    room = canvas.width // min(len(panels), ACROSS) - GAP
    made = [[Text(panel.title(marks.kept)), *_panel(panel, marks, canvas, room)] for panel in panels]
    width = max(line.cell_len for lines in made for line in lines)
    columns = max(1, (canvas.width + GAP) // (width + GAP))
    return [
        line
        for start in range(0, len(made), columns)
        for line in [*_beside(made[start : start + columns], width), Text()]
    ][:-1]


def _beside(columns: Sequence[Sequence[Text]], width: int) -> list[Text]:
    filled = [[*lines, *[Text()] * (max(map(len, columns)) - len(lines))] for lines in columns]
    return [Text(" " * GAP).join([_padded(line, width) for line in lines]) for lines in zip(*filled, strict=True)]


def _padded(line: Text, width: int) -> Text:
    return line + Text(" " * (width - line.cell_len))


def _panel(panel: Panel, marks: Marks, canvas: Canvas, room: int) -> list[Text]:
    """room: columns that cells finer than patches may take."""
    slots = panel.slots
    if not canvas.coloured:
        return _characters(slots, marks, canvas.width)
    rows, columns = slots.shape
    detail = min(FINEST, room // columns, 2 * max(canvas.height - MARGIN, 1) // rows)
    cells = _cells(panel, slots, marks, max(detail, 1))
    return _blocks(np.asarray(Image.fromarray(cells).reduce(-(-columns // canvas.width))) if detail < 1 else cells)


def _characters(slots: Slots, marks: Marks, width: int) -> list[Text]:
    """Of what is wider than the text a character stands for a square of patches: for a kept one, if there is any."""
    number = np.vectorize(lambda slot: marks.groups.get(slot, -1) + 2, otypes=[int])(slots)
    codes = np.where(np.isin(slots, list(marks.kept)), number, -number)
    side = -(-slots.shape[1] // width)
    for axis in (0, 1):
        codes = np.maximum.reduceat(codes, range(0, codes.shape[axis], side), axis)
    return [Text("".join(map(_character, row))) for row in codes.tolist()]


def _character(code: int) -> str:
    """Codes as above: the group + 2, or 1 without one; negative where it is dropped."""
    if abs(code) == 1:
        return KEPT if code > 0 else DROPPED
    letter = LETTERS[(abs(code) - 2) % len(LETTERS)]
    return letter.upper() if code > 0 else letter


def _cells(panel: Panel, slots: Slots, marks: Marks, detail: int) -> Pixels:
    """Colours [rows * detail, columns * detail, 3] of patches."""
    (width, height), boxes = panel.image.size, np.array([region.box for region in panel.regions])
    left, top, right, bottom = np.concatenate([boxes.min(0)[:2], boxes.max(0)[2:]]) * [width, height, width, height]
    seen = panel.image.crop((round(left), round(top), max(round(right), 1), max(round(bottom), 1)))
    rows, columns = (count * detail for count in slots.shape)
    cells = np.asarray(seen.resize((columns, rows), Image.Resampling.BOX)).astype(float)
    slots = slots.repeat(detail, 0).repeat(detail, 1)
    for slot, group in marks.groups.items():
        cells[slots == slot] = colour(group)
    lifted = cells + np.maximum(LIFT - cells.max(-1, keepdims=True), 0)
    kept = np.isin(slots, list(marks.kept))[..., None]
    return np.where(kept, lifted, cells * DIM).round().astype(np.uint8)


def _blocks(cells: Pixels) -> list[Text]:
    lines = []
    for top in range(0, len(cells), 2):
        line, below = Text(), cells[top + 1].tolist() if top + 1 < len(cells) else [None] * cells.shape[1]
        for upper, lower in zip(cells[top].tolist(), below, strict=True):
            line.append(HALF, Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower) if lower else None))
        lines.append(line)
    return lines
