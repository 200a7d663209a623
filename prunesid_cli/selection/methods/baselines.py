"""Selections to compare with: each ignores what PruneSID is about. Indices in raster order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device
from prunesid_cli.selection.batching import by_saliency, keep_counts

SEED = 0


def random(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """The first T of one seeded permutation: the same for every image, so a batch changes nothing."""
    shuffled = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(SEED))
    kept = [shuffled[:target].sort().values for target in keep_counts(features, budgets, num_cls)]
    return [to_device(indices, features.device) for indices in kept]


def grid(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """T tokens at equal steps of the raster, each in the middle of its step."""
    n = features.shape[1]
    return [
        (2 * torch.arange(target, device=features.device) + 1) * n // (2 * max(target, 1))
        for target in keep_counts(features, budgets, num_cls)
    ]


def saliency(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """The T most salient tokens; by the norm of their features where the model offers no saliency."""
    order, wanted = by_saliency(features, saliency), keep_counts(features, budgets, num_cls)
    return [kept[:target].sort().values for kept, target in zip(order, wanted, strict=True)]
