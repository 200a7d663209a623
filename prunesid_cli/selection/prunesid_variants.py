"""The choices in which the variants of PruneSID (arXiv 2603.09480) differ.

variant            source                                      differs from PRUNESID in
PRUNESID           the paper, computed exactly                 -
OVER_TIME          this project, for frames of a window        copies, which are kept last
PUBLISHED_LLAVA    the published code for LLaVA                random PCA, the model's precision, order
PUBLISHED_QWEN     the published code for Qwen2-VL             all of that, and groups, lambda, rho, saliency
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunesid_cli.selection.psca import exact_directions, low_rank_directions
from prunesid_cli.selection.similarity import pair_mean, rounded_pair_mean, triangle_mean

COPY_SIMILARITY = 0.9
"""A token of a window of frames is a copy if it is more similar than this to one that precedes it in its group. From a
budget of 32 / rho on the paper's threshold is above all similarities, and below it suppressed tokens fill up small
groups: either way a still scene's copies would be kept. Of values from .8 to .999 this one and .95 answered most
questions about still clips, and this one lost fewer of the things in others (tests/benchmarks)."""


@dataclass(frozen=True)
class PruneSIDVariant:
    """What the stages of PruneSID compute. A `budget_with_cls` counts the CLS token; N is the number of tokens.

    Attributes:
        strength: (budget_with_cls, N) -> lambda; the threshold of the suppression is lambda x redundancy.
        redundancy: tokens [..., N, C] -> rho [...].
        directions: (features [B, N, C], number of groups of each image, whether the values of V matter or only which
            |entry| of each row is the largest) -> V [B, N, G].
        min_groups: Smallest number of groups.
        uses_saliency: Whether the model's saliency is used where there is one. Otherwise the saliency of a token is
            how much it loads on its group's direction.
        min_raster_budget: Smallest `budget_with_cls` whose indices are in raster order; below they are group by group.
        precision: Precision of tokens and their similarities; None: that of the features.
        max_similarity: A token that is more similar than this to an earlier one is a copy: the threshold of the
            suppression is never above it, and copies are kept last.
        batched: Whether all images of a batch share every launch, for devices where a launch costs more than its work.
            If not, each image has a core of its own. None: on all devices but the CPU.
    """

    strength: Callable[[int, int], float]
    redundancy: Callable[[Tensor], Tensor]
    directions: Callable[[Tensor, Sequence[int], bool], Tensor]
    min_groups: int = 1
    uses_saliency: bool = True
    min_raster_budget: float = 0
    precision: torch.dtype | None = torch.float32
    max_similarity: float = math.inf
    batched: bool | None = None

    def num_groups(self, budget_with_cls: int) -> int:
        """Return the number of groups: one for four tokens. The published code fails below 4 tokens."""
        return max(budget_with_cls // 4, self.min_groups)


def paper_strength(budget_with_cls: int, n: int) -> float:
    """Return lambda of the paper. A dynamic budget uses the image's own: .949 right, by the average .939
    (tests/benchmarks)."""
    return budget_with_cls / 32


def qwen_strength(budget_with_cls: int, n: int) -> float:
    """Return lambda of the published Qwen2-VL code."""
    return max(budget_with_cls / (n / 18), 1)


def loading_or_saliency(saliency: Tensor | None, directions: Tensor) -> Tensor:
    """Return the model's saliency [..., N], or without one how much a token loads on its group: max |V|; fp32.

    Args:
        saliency: [..., N] or None.
        directions: V [..., N, G].
    """
    return (directions.abs().amax(-1) if saliency is None else saliency).float()


PRUNESID = PruneSIDVariant(strength=paper_strength, redundancy=pair_mean, directions=exact_directions)
OVER_TIME = replace(PRUNESID, max_similarity=COPY_SIMILARITY)
PUBLISHED_LLAVA = replace(
    PRUNESID,
    redundancy=rounded_pair_mean,
    directions=low_rank_directions,
    min_raster_budget=math.inf,
    precision=None,
)
PUBLISHED_QWEN = replace(
    PUBLISHED_LLAVA,
    strength=qwen_strength,
    redundancy=triangle_mean,
    min_groups=4,
    uses_saliency=False,
    min_raster_budget=151,
)
