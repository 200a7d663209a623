"""The parts of a prompt: what a user says, where pictures and clips belong in it, and where each part stands."""

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
"""Where in a prompt a picture or clip belongs; without any, all come first. The same for every family."""


@dataclass(frozen=True)
class PromptPiece:
    """A part of a prompt: embeds [P, D], visual or not, and where it is [3, P] when the part begins at 0; `advance`:
    where the next part begins then."""

    embeds: Tensor
    visual: bool
    where: Tensor
    advance: int


def mrope_coordinates(layout: Layout) -> Tensor:
    """Time, row and column of each slot in its run, as M-RoPE counts them: [3, total]; 0 for structural slots."""
    where = torch.zeros(3, layout.total, dtype=torch.long)
    if layout.mrope_deltas:
        for region in layout.regions:
            place = torch.arange(region.rows * region.columns)
            row, column = place // region.columns, place % region.columns
            where[:, region.first + row * region.stride + column] = torch.stack(
                [torch.full_like(place, region.tick), row, column]
            )
    return where


def split_at_tags(prompt: str, items: int) -> list[str]:
    """The texts before, between and after the items: as the tags say, or all after them.

    Raises:
        UsageError: there are tags, but not as many as items.
    """
    texts = MEDIA_TAG.split(prompt)
    if len(texts) == 1:
        return [*[""] * items, prompt]
    if len(texts) - 1 != items:
        raise UsageError(
            f"the prompt has places for {len(texts) - 1} images, and there are {items}",
            hint="write <image> once for each, or leave it out",
        )
    return texts


def user_content(prompt: str, clips: Sequence[bool]) -> list[dict[str, str]]:
    """The parts of a user's turn."""
    media = [{"type": "video" if clip else "image"} for clip in clips]
    texts = [{"type": "text", "text": text} for text in split_at_tags(prompt, len(clips))]
    both = [part for pair in zip_longest(texts, media) for part in pair]
    return [part for part in both if part and part.get("text") != ""]
