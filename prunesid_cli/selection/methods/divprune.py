"""DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): tokens of which no two are alike. Knows no saliency."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.batching import cosines, keep_counts, row_of, run_per_budget


def divprune(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Max-min diversity, greedily, over cosine distances; in O(T N) once these are there.

    First the token furthest from its nearest, then again and again the one furthest from the nearest of those taken.
    As published, but that a token is never taken twice, which the published code does where tokens repeat; and that
    tokens are those at the cut, and not those that the projector makes of them.
    """
    return run_per_budget(_furthest, keep_counts(features, budgets, num_cls), features)


def _furthest(features: Tensor, target: int) -> Sequence[Tensor]:
    near = cosines(features)
    near.diagonal(dim1=-2, dim2=-1).fill_(-math.inf)
    closest = near.amax(-1)
    taken = torch.empty(len(features), target, dtype=torch.int64, device=features.device)
    for step in range(target):
        furthest = closest.argmin(-1, keepdim=True)
        taken[:, step : step + 1] = furthest
        row = row_of(near, furthest)
        closest = torch.maximum(closest, row) if step else row
        closest.scatter_(1, furthest, math.inf)
    return list(taken.sort(-1).values)
