"""Colours of groups that people with any colour vision tell apart; where there are more groups, patterns besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Colour = tuple[int, int, int]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
"""Of Okabe and Ito (2008), without black."""

Pattern = Callable[[Pixels, Pixels, int], Any]
PATTERNS: tuple[Pattern, ...] = (
    lambda y, x, step: (y + x) >= 0,
    lambda y, x, step: (y + x) % step < step / 2,
    lambda y, x, step: (y - x) % step < step / 2,
    lambda y, x, step: (y % step < step / 2) & (x % step >= 0),
    lambda y, x, step: (x % step < step / 2) & (y % step >= 0),
)
"""Which pixels of a patch are tinted: all; then stripes four ways. Rows [H, 1], columns [1, W], period -> [H, W]."""

DIM, LIFT = 0.3, 110
"""How bright dropped patches are; least brightness of kept cells of text."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def colour(group: int) -> Colour:
    return COLOURS[group % len(COLOURS)]


def pattern(group: int) -> Pattern:
    return PATTERNS[group // len(COLOURS) % len(PATTERNS)]


def colour_of(slot: int, groups: Mapping[int, int], otherwise: Colour) -> Colour:
    """Of a slot's group, where it has one."""
    return colour(groups[slot]) if slot in groups else otherwise
