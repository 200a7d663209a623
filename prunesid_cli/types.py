"""Frozen values that pass between the stages, and the shape letters used in every docstring.

B  batch                       T  kept visual tokens
S  segments of one item        G  groups
N  visual tokens of a segment  L  prompt length
C  width at the cut            D  width of the language model
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SUMMARY = -1
"""The index that stands for the CLS token, which has no place in the grid."""


@dataclass(frozen=True)
class Placement:
    """Where and how a half of a model runs."""

    device: torch.device
    dtype: torch.dtype
    attention: str


@dataclass(frozen=True)
class Encoded:
    """What the vision half makes of a batch of segments.

    features [B, N, C]  visual tokens at the cut, raster order, CLS apart
    summary  [B, C]     the CLS token at the cut; None where the tower has none
    saliency [B, N]     the model's own importance of a token; None where it offers none
    summary_is_stock    whether the stock model reads the CLS token too
    """

    features: Tensor
    summary: Tensor | None
    saliency: Tensor | None
    summary_is_stock: bool


@dataclass(frozen=True)
class TokenSet:
    """The kept visual tokens of one item: what a cache stores, and all that the language half needs.

    tokens  [T, C]  at the cut, in the order of `indices`
    indices         raster index of each row, SUMMARY for the CLS token (first, where it is kept)
    grid            rows and columns of the raster
    total           how many visual tokens the stock model reads
    """

    tokens: Tensor
    indices: tuple[int, ...]
    grid: tuple[int, int]
    total: int


@dataclass(frozen=True)
class Generation:
    """How to decode: greedy unless a temperature is given; `seed` is used by sampling alone; `stream` gets the text of
    an answer that is generated alone, as it comes."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    stream: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Answer:
    """text, without special tokens; how many tokens the prompt (visual ones included) and the answer had."""

    text: str
    prompt_tokens: int
    new_tokens: int
