"""SCOPE (Deng et al., NeurIPS 2025, arXiv 2510.24214): tokens that are salient and stand for many others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.batching import gather_row, keep_counts, mask_to_indices, run_per_budget
from prunesid_cli.selection.similarity import cosine_similarity


def scope(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select greedily the token of the highest SCOPE score: what it adds to the coverage, times its saliency.

    A token is covered as much as the most similar selected token resembles it; coverage is the sum over all tokens. As
    published, in O(T N^2): the exponent alpha of the saliency is 1, as the published scripts set it, and coverage
    begins at 0, so that opposites do not count against a token.

    Args:
        features: [B, N, C].
        saliency: [B, N]; None: the coverage alone decides.
        budgets: Tokens to keep of each image, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        Kept indices B x [T], in raster order.
    """
    return run_per_budget(_select, keep_counts(features, budgets, num_cls), features, saliency)


def _select(features: Tensor, saliency: Tensor | None, count: int) -> Sequence[Tensor]:
    similarity = cosine_similarity(features)
    weight = similarity.new_ones(similarity.shape[:2]) if saliency is None else saliency.float()
    nothing = torch.zeros_like(weight, dtype=torch.bool)
    return list(mask_to_indices(extend_by_coverage(similarity, weight, nothing, count), count))


def extend_by_coverage(similarity: Tensor, weight: Tensor, selected: Tensor, count: int) -> Tensor:
    """Extend a selection, one by one, by the token that adds most to the coverage, times its weight. One host sync.

    Args:
        similarity: [B, N, N].
        weight: [B, N].
        selected: [B, N] bool, the tokens selected so far.
        count: Number of tokens to select of each image in all.

    Returns:
        Mask [B, N] of `count` tokens of each image.
    """
    covered, gains = (similarity * selected.unsqueeze(-1)).amax(1), torch.empty_like(similarity)
    lacking = count - selected.sum(-1, keepdim=True)
    for step in range(int(lacking.max())):
        gain = torch.sub(similarity, covered.unsqueeze(1), out=gains).clamp_(min=0).sum(-1)
        best = (gain * weight).masked_fill(selected, -math.inf).argmax(-1, keepdim=True)
        selected = selected.scatter(1, best, selected.gather(1, best) | (step < lacking))
        covered = torch.maximum(covered, gather_row(similarity, best))
    return selected
