"""Labels of the patches of a drawn scene: what the tower learns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesid_cli.demo.scenes import COLOURS, GRID, NUMBER, PATCH, SHAPES, Scene

KINDS = (*SHAPES, NUMBER)
BACKGROUND, NON_SCENE = len(KINDS), len(KINDS) + 1
NUM_BINS, BIN_PIXELS = 12, 28.0
"""The centre of a thing is labelled as one of 12 columns and 12 rows of 28 pixels, the least distance of two things."""
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
"""CLIP's normalisation of pixels, as the image processor applies it."""
NUM_COUNTS = 7
"""A scene has zero to six shapes."""
FIRST_DIGIT = len(SHAPES) * len(COLOURS)
FIRST_COUNT = FIRST_DIGIT + 10
IS_SCENE = FIRST_COUNT + NUM_COUNTS
NUM_PICTURE_LABELS = IS_SCENE + 1
"""Columns of `Labels.present`."""


@dataclass(frozen=True)
class Labels:
    """Labels of a batch of pictures. Integers are -1 where a label does not apply.

    Attributes:
        kind: Index of the kind of thing that a patch shows [B, T], int64.
        colour: Index of its colour [B, T], int64.
        digit: The digit that a patch shows [B, T], int64.
        place: Offset to the thing's centre (x, y), and its size [B, T, 3].
        centre: Column and row of the centre of the thing, or of the digit [B, T, 2], int64.
        present: What the picture contains [B, 66]: each coloured shape, each digit, the number of shapes (one-hot), and
            whether it is a scene.
    """

    kind: Tensor
    colour: Tensor
    digit: Tensor
    place: Tensor
    centre: Tensor
    present: Tensor


def extract_patches(pixels: NDArray[np.uint8], indices: NDArray[np.int64] | None = None) -> Tensor:
    """Cut a picture into normalised patches.

    Args:
        pixels: The picture [336, 336, 3].
        indices: The patches to return [T]; None: all 576.

    Returns:
        [T, 3 * 14 * 14], in the layout of the tower's patch filters.
    """
    blocks = pixels.reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(GRID * GRID, PATCH, PATCH, 3)
    values = torch.from_numpy(blocks if indices is None else blocks[indices]).float()
    return ((values / 255 - MEAN) / STD).permute(0, 3, 1, 2).flatten(1)


def label_patches(scene: Scene | None, parts: NDArray[np.int8]) -> tuple[np.ndarray, np.ndarray]:
    """Label the patches of a picture.

    Args:
        scene: The scene; None: the picture is not a scene.
        parts: Index of the part that each patch shows [576]; -1 for none.

    Returns:
        Labels of each patch [576, 8]: kind, colour, digit, offset to the centre (x, y), size, column and row of the
        centre; and of the picture [66]: see `Labels.present`.
    """
    rows = np.full((GRID * GRID, 8), -1.0)
    present = np.zeros(NUM_PICTURE_LABELS)
    if scene is None:
        rows[:, 0] = NON_SCENE
        return rows, present
    rows[:, 0] = BACKGROUND
    y, x = np.divmod(np.arange(GRID * GRID), GRID)
    for index, thing in enumerate(scene.parts):
        at = parts == index
        rows[at, 0] = KINDS.index(thing.kind)
        if thing.kind == NUMBER:
            rows[at, 2] = thing.value
            present[FIRST_DIGIT + thing.value] = 1
        else:
            colour = tuple(COLOURS).index(thing.colour)
            rows[at, 1] = colour
            present[KINDS.index(thing.kind) * len(COLOURS) + colour] = 1
        offset_x, offset_y = thing.x - (x[at] + 0.5) * PATCH, thing.y - (y[at] + 0.5) * PATCH
        rows[at, 6], rows[at, 7] = thing.x // BIN_PIXELS, thing.y // BIN_PIXELS
        rows[at, 3], rows[at, 4], rows[at, 5] = offset_x / 42, offset_y / 42, (thing.size - 69) / 15
    present[FIRST_COUNT + len(scene.shapes)] = 1
    present[IS_SCENE] = 1
    return rows, present
