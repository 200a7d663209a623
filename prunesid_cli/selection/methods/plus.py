"""prunesid-plus: coverage of what is salient by what is salient, a method of this project.

PruneSID (arXiv 2603.09480) suppresses tokens that resemble a more salient one of their group. Its threshold is above
all similarities from a budget of 32 / rho on, and below it suppresses nearly everything, so that small budgets go to
the most salient tokens of the same thing. Here, as in SCOPE (Deng et al., NeurIPS 2025, arXiv 2510.24214), tokens are
selected one by one, by what they add to the coverage times their saliency. SCOPE counts every token that is covered
alike, so that a large background outweighs a small thing; here each counts with the root of its saliency. There are
neither groups nor thresholds. tests/benchmarks says what each of these is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.batching import keep_counts, mask_to_indices, run_per_budget
from prunesid_cli.selection.methods.scope import extend_by_coverage
from prunesid_cli.selection.similarity import cosine_similarity


def plus(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select greedily the token that adds most to the coverage of salient tokens, times its saliency.

    A token is covered as much as the most similar selected token resembles it, from 0 on. The coverage is the sum over
    all tokens, each times the root of its saliency.

    Args:
        features: [B, N, C].
        saliency: [B, N]; None: the squared distance of a token from the mean token takes its place.
        budgets: Tokens to keep of each image, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        Kept indices B x [T], in raster order.
    """
    return run_per_budget(_select, keep_counts(features, budgets, num_cls), features, saliency)


def _select(features: Tensor, saliency: Tensor | None, count: int) -> Sequence[Tensor]:
    if saliency is None:
        saliency = (features.float() - features.float().mean(1, keepdim=True)).square().sum(-1)
    score = saliency.float().clamp(min=0)
    coverage = cosine_similarity(features) * score.sqrt().unsqueeze(1)
    nothing = torch.zeros_like(score, dtype=torch.bool)
    return list(mask_to_indices(extend_by_coverage(coverage, score, nothing, count), count))
