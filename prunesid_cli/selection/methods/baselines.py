"""Simple selections to compare with, each without one of PruneSID's ideas: random, at equal steps, by saliency."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device
from prunesid_cli.selection.batching import keep_counts, order_by_saliency

SEED = 0


def random(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select the first T tokens of one seeded permutation, the same for every image.

    Args:
        features: [B, N, C]. Only the shape matters.
        saliency: Ignored.
        budgets: Tokens to keep of each image, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        Kept indices B x [T], in raster order.
    """
    shuffled = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(SEED))
    kept = [shuffled[:count].sort().values for count in keep_counts(features, budgets, num_cls)]
    return [to_device(indices, features.device) for indices in kept]


def grid(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select T tokens at equal steps of the raster, each in the middle of its step; arguments as of `random`."""
    n = features.shape[1]
    return [
        (2 * torch.arange(count, device=features.device) + 1) * n // (2 * max(count, 1))
        for count in keep_counts(features, budgets, num_cls)
    ]


def most_salient(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select the T most salient tokens; without saliency [B, N] those of the longest features [B, N, C].

    The arguments are those of `random`.
    """
    order, counts = order_by_saliency(features, saliency), keep_counts(features, budgets, num_cls)
    return [row[:count].sort().values for row, count in zip(order, counts, strict=True)]
