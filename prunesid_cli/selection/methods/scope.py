"""SCOPE (Deng et al., NeurIPS 2025, arXiv 2510.24214): tokens that are salient and stand for many others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.batching import cosines, keep_counts, places, row_of, run_per_budget


def scope(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Greedily the token of the highest SCOPE score: what it adds to the coverage, times its saliency.

    A token is covered as much as the most similar of those taken resembles it; coverage is the sum over all tokens. As
    published, in O(T N^2): the exponent alpha of the saliency is 1, as the published scripts set it, coverage begins at
    0, so that opposites do not count against a token, and without saliency the coverage alone decides.
    """
    return run_per_budget(_covering, keep_counts(features, budgets, num_cls), features, saliency)


def _covering(features: Tensor, saliency: Tensor | None, target: int) -> Sequence[Tensor]:
    near = cosines(features)
    weight = near.new_ones(near.shape[:2]) if saliency is None else saliency.float()
    return list(places(cover(near, weight, torch.zeros_like(weight, dtype=torch.bool), target), target))


def cover(near: Tensor, weight: Tensor, taken: Tensor, target: int) -> Tensor:
    """near [B, N, N], weight [B, N], mask [B, N] of the tokens taken so far -> the mask with `target` tokens of each
    image, one by one that which adds most to the coverage, times its weight. One host sync."""
    covered, gains = (near * taken.unsqueeze(-1)).amax(1), torch.empty_like(near)
    lacking = target - taken.sum(-1, keepdim=True)
    for step in range(int(lacking.max())):
        gain = torch.sub(near, covered.unsqueeze(1), out=gains).clamp_(min=0).sum(-1)
        best = (gain * weight).masked_fill(taken, -math.inf).argmax(-1, keepdim=True)
        taken = taken.scatter(1, best, taken.gather(1, best) | (step < lacking))
        covered = torch.maximum(covered, row_of(near, best))
    return taken
