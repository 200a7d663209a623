"""The parts of a prompt: the user's text, the places of images and clips in it, and the runs of visual tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from prunesid_cli.errors import UsageError
from prunesid_cli.types import Layout

MEDIA_TAG = re.compile("<image>|<video>")
"""Marks the place of an image or clip in a user's prompt, for every family. Without tags, all items come first."""


@dataclass(frozen=True)
class VisualRun:
    """The kept tokens of one run of an item.

    Attributes:
        features: Embeddings [T, D]; [T, D * (1 + K)] with deepstack.
        coordinates: M-RoPE positions [3, T], counted from the start of the run.
        advance: Where what follows it starts, counted from the start of the run.
    """

    features: Tensor
    coordinates: Tensor
    advance: int


def mrope_coordinates(layout: Layout) -> Tensor:
    """Time, row and column of each slot in its run, as M-RoPE counts them [3, total]; 0 for structural slots."""
    coordinates = torch.zeros(3, layout.total, dtype=torch.long)
    if layout.mrope_deltas:
        for region in layout.regions:
            index = torch.arange(region.rows * region.columns)
            row, column = index // region.columns, index % region.columns
            slots = region.first + row * region.stride + column
            coordinates[:, slots] = torch.stack([torch.full_like(index, region.tick), row, column])
    return coordinates


def split_at_tags(prompt: str, num_items: int) -> list[str]:
    """Split a prompt into the texts before, between and after its items.

    Args:
        prompt: The user's prompt, with a tag for each item, or without tags.
        num_items: Number of items.

    Returns:
        One text more than there are items. Without tags, all but the last are empty.

    Raises:
        UsageError: There are tags, but not as many as items.
    """
    texts = MEDIA_TAG.split(prompt)
    if len(texts) == 1:
        return [*[""] * num_items, prompt]
    if len(texts) - 1 != num_items:
        raise UsageError(
            f"the prompt has places for {len(texts) - 1} images, and there are {num_items}",
            hint="write <image> once for each, or leave it out",
        )
    return texts


def user_content(prompt: str, are_clips: Sequence[bool]) -> list[dict[str, str]]:
    """The content of a user's turn, as chat templates take it: texts, images and clips in their order.

    Args:
        prompt: The user's prompt.
        are_clips: For each item, whether it is a clip.
    """
    content = []
    for text, is_clip in zip_longest(split_at_tags(prompt, len(are_clips)), are_clips):
        if text:
            content.append({"type": "text", "text": text})
        if is_clip is not None:
            content.append({"type": "video" if is_clip else "image"})
    return content
