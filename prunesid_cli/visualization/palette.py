"""Colours and fill patterns of token groups, chosen so that people with any colour vision can tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Colour = tuple[int, int, int]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Pattern = Callable[[Pixels, Pixels, int], Any]
"""(rows [H, 1], columns [1, W], period in pixels) -> mask [H, W] of the pixels to tint."""

COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
"""The palette of Okabe and Ito (2008) without black."""
PATTERNS: tuple[Pattern, ...] = (
    lambda y, x, period: (y + x) >= 0,
    lambda y, x, period: (y + x) % period < period / 2,
    lambda y, x, period: (y - x) % period < period / 2,
    lambda y, x, period: (y % period < period / 2) & (x % period >= 0),
    lambda y, x, period: (x % period < period / 2) & (y % period >= 0),
)
"""Solid, then stripes in four directions: used in turn where there are more groups than colours."""
DROPPED_BRIGHTNESS = 0.3
"""Brightness of dropped patches, as a share of the original."""


def group_colour(group: int) -> Colour:
    """Return the colour of a group."""
    return COLOURS[group % len(COLOURS)]


def group_pattern(group: int) -> Pattern:
    """Return the fill pattern of a group."""
    return PATTERNS[group // len(COLOURS) % len(PATTERNS)]


def slot_colour(slot: int, groups: Mapping[int, int], default: Colour) -> Colour:
    """Return the colour of the slot's group, or `default` if the slot has no group."""
    return group_colour(groups[slot]) if slot in groups else default
