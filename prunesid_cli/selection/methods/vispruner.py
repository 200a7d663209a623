"""VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818): half of the tokens salient, half of them diverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.batching import by_saliency, cosines, keep_counts, run_per_budget

AT_ONCE = 8
"""Tokens dropped a round."""


def vispruner(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """The most salient tokens, and of the others what is left when duplicates are dropped, round by round.

    A round lays the others out by falling saliency, those that it matched before in the order that this left, compares
    every second with those in between, and drops the AT_ONCE that resemble one of these most. As published, which takes
    half of the tokens by saliency (r = 0.5), but that it stops with an error where an odd number is to be matched: here
    the first half has one more. Without saliency, which the method does not provide for, by the norm of the features.
    """
    return run_per_budget(_distinct, keep_counts(features, budgets, num_cls), features, saliency)


def _distinct(features: Tensor, saliency: Tensor | None, target: int) -> Sequence[Tensor]:
    near, order = cosines(features), by_saliency(features, saliency)
    image = torch.arange(len(features), device=features.device)[:, None, None]
    salient, others = order[:, : target // 2], order[:, target // 2 :]
    diverse = target - target // 2
    while others.shape[1] > diverse > 0:
        even, odd = others[:, ::2], others[:, 1::2]
        drop = min(AT_ONCE, others.shape[1] - diverse, even.shape[1])
        alike = near[image, even.unsqueeze(-1), odd.unsqueeze(1)].amax(-1)
        ranked = alike.argsort(dim=-1, descending=True, stable=True)
        others = torch.cat([even.gather(1, ranked[:, drop:]), odd], 1)
    return list(torch.cat([salient, others[:, :diverse]], 1).sort(-1).values)
