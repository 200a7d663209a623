"""The choices in which PruneSID variants differ, each a small function, and the recipes made of them.

variant            where it was published                      differs from PRUNESID in
PRUNESID           the paper, computed exactly                 -
OVER_TIME          ours, for frames joined in a window         copies, which are kept last
PUBLISHED_LLAVA    its code for LLaVA                          random PCA, model's precision, order
PUBLISHED_QWEN     its code for Qwen2-VL                       all of that, and groups, lambda, rho, saliency
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunesid_cli.selection.psca import exact_directions, low_rank_directions
from prunesid_cli.selection.similarity import pair_mean, rounded_pair_mean, triangle_mean

ALIKE = 0.9
"""A token more similar than this to one that precedes it in its group is a copy, in a window of frames. From a budget
of 32 / rho on the paper's threshold is above all similarities, and below it what is suppressed fills up small groups:
either way a still scene's copies would be kept. Of values from .8 to .999 this one and .95 answered most questions
about still clips, and this one lost fewer of the things in others (tests/benchmarks)."""


@dataclass(frozen=True)
class PruneSIDVariant:
    """`need` is the budget with what is reserved, N the number of tokens.

    groups      need -> number of groups
    strength    need, N -> lambda; the NMS threshold is lambda x redundancy
    redundancy  tokens [N, C] -> scalar
    saliency    the model's [B, N] or None, V [B, N, G] -> saliency [B, N] fp32
    directions  features [B, N, C], number of groups of each image, whether V itself matters or only where each row of
                it is greatest -> V [B, N, G]
    ascending   need -> whether indices come in raster order, or group by group
    alike       above this similarity a token is a copy: the NMS threshold is never above it, and copies are taken last
    precision   of these tokens and their similarities; None: that of the features
    together    whether all images of a batch share every launch, where launches cost more than their work; if not, each
                has a core of its own; None: on all devices but the CPU
    """

    groups: Callable[[int], int]
    strength: Callable[[int, int], float]
    redundancy: Callable[[Tensor], Tensor]
    saliency: Callable[[Tensor | None, Tensor], Tensor]
    directions: Callable[[Tensor, Sequence[int], bool], Tensor]
    ascending: Callable[[int], bool]
    precision: torch.dtype | None
    together: bool | None = None
    alike: float = math.inf


def quarter(budget_with_cls: int) -> int:
    """One group for four tokens; the published code fails below 4, here it is one group."""
    return max(budget_with_cls // 4, 1)


def quarter_from_four(budget_with_cls: int) -> int:
    return max(budget_with_cls // 4, 4)


def need_over_32(budget_with_cls: int, n: int) -> float:
    """Of a dynamic budget, too, by the image's own: .949 of answers right, by the average .939 (tests/benchmarks)."""
    return budget_with_cls / 32


def need_over_n_18(budget_with_cls: int, n: int) -> float:
    return max(budget_with_cls / (n / 18), 1)


def loading(saliency: Tensor | None, directions: Tensor) -> Tensor:
    """How strongly a token belongs to its group: max |V|."""
    return directions.abs().amax(-1).float()


def model_or_loading(saliency: Tensor | None, directions: Tensor) -> Tensor:
    return loading(None, directions) if saliency is None else saliency.float()


def always(budget_with_cls: int) -> bool:
    return True


def never(budget_with_cls: int) -> bool:
    return False


def above_150(budget_with_cls: int) -> bool:
    return budget_with_cls > 150


PRUNESID = PruneSIDVariant(
    groups=quarter,
    strength=need_over_32,
    redundancy=pair_mean,
    saliency=model_or_loading,
    directions=exact_directions,
    ascending=always,
    precision=torch.float32,
)
OVER_TIME = replace(PRUNESID, alike=ALIKE)
PUBLISHED_LLAVA = replace(
    PRUNESID, redundancy=rounded_pair_mean, directions=low_rank_directions, ascending=never, precision=None
)
PUBLISHED_QWEN = replace(
    PUBLISHED_LLAVA,
    groups=quarter_from_four,
    strength=need_over_n_18,
    redundancy=triangle_mean,
    saliency=loading,
    ascending=above_150,
)
