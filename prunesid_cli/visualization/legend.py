"""What stands below a picture: its caption, and a legend of what is drawn in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prunesid_cli.visualization.palette import DROPPED_BRIGHTNESS, Colour, group_colour, group_pattern
from prunesid_cli.visualization.panels import Annotations, Panel

BACKGROUND, TEXT_COLOUR = (24, 24, 24), (235, 235, 235)
TEXT_PIXELS, MARGIN_PIXELS, SWATCH_PIXELS = 14, 8, 16
MAX_GROUPS = 12
"""Groups that the legend lists, the largest first."""
SAMPLE_LEVEL = 200
"""Grey level of a patch in the legend."""


@dataclass(frozen=True)
class LegendEntry:
    """A swatch and what it means; without a swatch, a text about those that follow."""

    swatch: Image.Image | None
    text: str


def add_legend(picture: Image.Image, caption: Sequence[str], entries: Sequence[LegendEntry]) -> Image.Image:
    """Put texts and a legend below a picture. They are wrapped to its width.

    Args:
        picture: The picture.
        caption: Texts, each on a line of its own.
        entries: The legend.
    """
    font = ImageFont.load_default(TEXT_PIXELS)
    width, line_height = picture.width - 2 * MARGIN_PIXELS, TEXT_PIXELS + MARGIN_PIXELS
    lines = [line for text in caption for line in _wrap(text, font, width)]
    places, x, row = list[tuple[int, int]](), 0, 0
    for entry in entries:
        needed = round(font.getlength(entry.text)) + 2 * MARGIN_PIXELS
        needed += SWATCH_PIXELS + MARGIN_PIXELS if entry.swatch else 0
        if x and x + needed > width:
            x, row = 0, row + 1
        places.append((x, row))
        x += needed
    legend_rows = row + 1 if entries else 0
    height = MARGIN_PIXELS + (len(lines) + legend_rows) * line_height
    result = Image.new("RGB", (picture.width, picture.height + height), BACKGROUND)
    result.paste(picture)
    pen, top = ImageDraw.Draw(result), picture.height + MARGIN_PIXELS
    for number, line in enumerate(lines):
        pen.text((MARGIN_PIXELS, top + number * line_height), line, TEXT_COLOUR, font)
    top += len(lines) * line_height
    for entry, (left, row) in zip(entries, places, strict=True):
        text_left = MARGIN_PIXELS + left
        if entry.swatch:
            result.paste(entry.swatch, (text_left, top + row * line_height))
            text_left += SWATCH_PIXELS + MARGIN_PIXELS
        pen.text((text_left, top + row * line_height), entry.text, TEXT_COLOUR, font)
    return result


def legend_entries(panels: Sequence[Panel], annotations: Annotations, has_unseen: bool) -> list[LegendEntry]:
    """The legend of some panels.

    Args:
        panels: What is drawn.
        annotations: What is drawn on it.
        has_unseen: Whether there are parts that the model does not see.
    """
    slots = {slot for panel in panels for slot in panel.slots.ravel().tolist()}
    entries = [LegendEntry(_patch(SAMPLE_LEVEL, (255, 255, 255)), "kept")] if annotations.kept & slots else []
    if not annotations.groups and slots - annotations.kept:
        entries.append(LegendEntry(_patch(round(SAMPLE_LEVEL * DROPPED_BRIGHTNESS)), "dropped"))
    if has_unseen:
        entries.append(LegendEntry(_bars(), "not seen by the model"))
    if annotations.groups:
        sizes = Counter(group for slot, group in annotations.groups.items() if slot in slots)
        kept = Counter(group for slot, group in annotations.groups.items() if slot in slots & annotations.kept)
        entries.append(LegendEntry(None, "kept of all patches of a group:"))
        for group, size in sizes.most_common(MAX_GROUPS):
            entries.append(LegendEntry(_group(group), f"{kept[group]} of {size}"))
        if len(sizes) > MAX_GROUPS:
            entries.append(LegendEntry(None, f"and {len(sizes) - MAX_GROUPS} smaller groups"))
    if annotations.links:
        entries.append(LegendEntry(_line(), "from patches to the one that suppressed them, and how many"))
    return entries


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of a text that are no wider than `width` pixels, if no single word is."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _patch(level: int, outline: Colour | None = None) -> Image.Image:
    swatch = Image.new("RGB", (SWATCH_PIXELS, SWATCH_PIXELS), (level, level, level))
    if outline:
        ImageDraw.Draw(swatch).rectangle((0, 0, SWATCH_PIXELS - 1, SWATCH_PIXELS - 1), None, outline, 2)
    return swatch


def _group(group: int) -> Image.Image:
    y, x = np.ogrid[:SWATCH_PIXELS, :SWATCH_PIXELS]
    mask = Image.fromarray((group_pattern(group)(y, x, SWATCH_PIXELS // 2) * 255).astype(np.uint8))
    colour = Image.new("RGB", mask.size, group_colour(group))
    return Image.composite(colour, Image.new("RGB", mask.size, BACKGROUND), mask)


def _bars() -> Image.Image:
    y, x = np.ogrid[:SWATCH_PIXELS, :SWATCH_PIXELS]
    return Image.fromarray((((y + x) % 6 < 2) * 110 + 40).astype(np.uint8)).convert("RGB")


def _line() -> Image.Image:
    swatch = Image.new("RGB", (SWATCH_PIXELS, SWATCH_PIXELS), BACKGROUND)
    ImageDraw.Draw(swatch).line((1, SWATCH_PIXELS - 2, SWATCH_PIXELS - 2, 1), (255, 236, 90), 3)
    return swatch
