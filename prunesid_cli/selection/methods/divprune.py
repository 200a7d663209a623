"""DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): tokens that are as different from each other as possible."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.batching import gather_row, keep_counts, run_per_budget
from prunesid_cli.selection.similarity import cosine_similarity


def divprune(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select for max-min diversity, greedily, over cosine distances; in O(T N) once these are computed.

    The first token is the one furthest from its nearest neighbour. Each further token is the one furthest from the
    nearest selected token. Differs from the published code in that

    - a token is never selected twice, which the published code does where tokens repeat;
    - tokens are those at the cut, and not those that the projector makes of them.

    Args:
        features: [B, N, C].
        saliency: Ignored.
        budgets: Tokens to keep of each image, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        Kept indices B x [T], in raster order.
    """
    return run_per_budget(_select, keep_counts(features, budgets, num_cls), features)


def _select(features: Tensor, count: int) -> Sequence[Tensor]:
    similarity = cosine_similarity(features)
    similarity.diagonal(dim1=-2, dim2=-1).fill_(-math.inf)
    closest = similarity.amax(-1)
    selected = torch.empty(len(features), count, dtype=torch.int64, device=features.device)
    for step in range(count):
        furthest = closest.argmin(-1, keepdim=True)
        selected[:, step : step + 1] = furthest
        row = gather_row(similarity, furthest)
        closest = torch.maximum(closest, row) if step else row
        closest.scatter_(1, furthest, math.inf)
    return list(selected.sort(-1).values)
