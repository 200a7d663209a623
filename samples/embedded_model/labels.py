"""What every patch of a drawn scene shows, and batches of labelled pictures: the tower's lessons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesid_cli.demo.scenes import COLOURS, GRID, NUMBER, PATCH, SHAPES, Scene

KINDS = (*SHAPES, NUMBER)
BACKGROUND, FOREIGN = len(KINDS), len(KINDS) + 1
BINS, BIN = 12, 28.0
"""The centre of a thing is told as one of 12 columns and one of 12 rows of 28 pixels, as much as things are apart."""


MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
"""CLIP's normalisation, as the image processor applies it."""


@dataclass(frozen=True)
class Labels:
    """What patches show: kind, colour, digit [B, T] int64 (-1 where none), place [B, T, 3]: way to the centre, size."""

    kind: Tensor
    colour: Tensor
    digit: Tensor
    place: Tensor
    centre: Tensor
    """[B, T, 2] int64: column and row of the thing's centre, -1 where there is none."""
    present: Tensor
    """[B, 6 * 8 + 10 + 4 + 1]: each coloured shape, each digit, how many shapes (one-hot), whether it is a scene."""


def patches_of(pixels: NDArray[np.uint8], seen: NDArray[np.int64] | None = None) -> Tensor:
    """A picture [336, 336, 3] -> its patches [T, 3 * 14 * 14], normalised, laid out as the patch filters are.

    Args:
        seen: the patches wanted [T]; all 576 by default.
    """
    blocks = pixels.reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(GRID * GRID, PATCH, PATCH, 3)
    values = torch.from_numpy(blocks if seen is None else blocks[seen]).float()
    return ((values / 255 - MEAN) / STD).permute(0, 3, 1, 2).flatten(1)


def labels_of(scene: Scene | None, things: NDArray[np.int8]) -> tuple[np.ndarray, np.ndarray]:
    """What a scene teaches; None: a picture that is no scene.

    Args:
        things: which thing each patch shows [576], -1 where none.

    Returns:
        For each patch [576, 8]: kind, colour, digit, way to the centre (x, y), size, column and row of the centre.
        For the whole picture [63]: see `Labels.present`.
    """
    rows = np.full((GRID * GRID, 8), -1.0)
    present = np.zeros(len(SHAPES) * len(COLOURS) + 15)
    if scene is None:
        rows[:, 0] = FOREIGN
        return rows, present
    rows[:, 0] = BACKGROUND
    y, x = np.divmod(np.arange(GRID * GRID), GRID)
    for i, thing in enumerate(scene.things):
        at = things == i
        rows[at, 0] = KINDS.index(thing.kind)
        if thing.kind == NUMBER:
            rows[at, 2] = thing.digit
            present[48 + thing.digit] = 1
        else:
            colour = tuple(COLOURS).index(thing.colour)
            rows[at, 1] = colour
            present[KINDS.index(thing.kind) * len(COLOURS) + colour] = 1
        centre = (thing.x - (x[at] + 0.5) * PATCH, thing.y - (y[at] + 0.5) * PATCH)
        rows[at, 6], rows[at, 7] = thing.x // BIN, thing.y // BIN
        rows[at, 3], rows[at, 4], rows[at, 5] = centre[0] / 42, centre[1] / 42, (thing.size - 69) / 15
    present[58 + len(scene.shapes)] = 1
    present[62] = 1
    return rows, present
