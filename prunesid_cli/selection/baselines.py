"""Selections to compare with: each ignores what PruneSID is about. Indices in raster order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SEED = 0


def _targets(features: Tensor, budgets: Sequence[int], reserved: int) -> list[int]:
    return [min(max(budget - reserved, 0), features.shape[1]) for budget in budgets]


def random(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], reserved: int = 0) -> list[Tensor]:
    """The first T of one seeded permutation: the same for every image, so a batch changes nothing."""
    shuffled = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(SEED))
    kept = [shuffled[:target].sort().values for target in _targets(features, budgets, reserved)]
    return [indices.to(features.device) for indices in kept]


def grid(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], reserved: int = 0) -> list[Tensor]:
    """T tokens at equal steps of the raster, each in the middle of its step."""
    n = features.shape[1]
    return [
        (2 * torch.arange(target, device=features.device) + 1) * n // (2 * max(target, 1))
        for target in _targets(features, budgets, reserved)
    ]


def saliency(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], reserved: int = 0) -> list[Tensor]:
    """The T most salient tokens; by the norm of their features where the model offers no saliency."""
    if saliency is None:
        saliency = torch.stack([tokens.float().norm(dim=-1) for tokens in features])
    order = saliency.argsort(dim=-1, descending=True, stable=True)
    targets = _targets(features, budgets, reserved)
    return [kept[:target].sort().values for kept, target in zip(order, targets, strict=True)]
