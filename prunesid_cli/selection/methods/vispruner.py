"""VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818): half of the tokens salient, half of them diverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.batching import keep_counts, order_by_saliency, run_per_budget
from prunesid_cli.selection.similarity import cosine_similarity

DROPPED_PER_ROUND = 8
"""Largest number of tokens that are dropped in a round."""


def vispruner(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select the most salient tokens, and of the others those that are left when duplicates are dropped in rounds.

    A round takes the others by falling saliency (those matched before in the order that this left), compares every
    second one with those in between, and drops the DROPPED_PER_ROUND that resemble one of these most. As published,
    which takes half of the tokens by saliency (r = 0.5), but that it stops with an error where an odd number is to be
    matched: here the first half has one more.

    Args:
        features: [B, N, C].
        saliency: [B, N]; None, which the paper does not provide for: the norm of the features takes its place.
        budgets: Tokens to keep of each image, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        Kept indices B x [T], in raster order.
    """
    return run_per_budget(_select, keep_counts(features, budgets, num_cls), features, saliency)


def _select(features: Tensor, saliency: Tensor | None, count: int) -> Sequence[Tensor]:
    similarity, order = cosine_similarity(features), order_by_saliency(features, saliency)
    image = torch.arange(len(features), device=features.device)[:, None, None]
    salient, others = order[:, : count // 2], order[:, count // 2 :]
    num_diverse = count - count // 2
    while others.shape[1] > num_diverse > 0:
        even, odd = others[:, ::2], others[:, 1::2]
        num_dropped = min(DROPPED_PER_ROUND, others.shape[1] - num_diverse, even.shape[1])
        closest = similarity[image, even.unsqueeze(-1), odd.unsqueeze(1)].amax(-1)
        ranked = closest.argsort(dim=-1, descending=True, stable=True)
        others = torch.cat([even.gather(1, ranked[:, num_dropped:]), odd], 1)
    return list(torch.cat([salient, others[:, :num_diverse]], 1).sort(-1).values)
