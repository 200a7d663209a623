"""PruneSID's groups led by their most salient tokens; the rest of the budget goes where it adds most.

The groups are those of PruneSID (arXiv 2603.09480, Sec. 3.2), computed exactly, and each keeps its most salient token.
Suppression and shares by group are replaced: their threshold is above all similarities from a budget of 32 / rho on,
and below it suppresses nearly everything, so that small budgets go to the most salient tokens of the same thing. Here
every further token is the one of the greatest gain in coverage times saliency, as in SCOPE (arXiv 2510.24214).
tests/benchmarks says what each of these is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.batching import cosines, keep_counts, places, run_per_budget
from prunesid_cli.selection.methods.scope import cover
from prunesid_cli.selection.methods.variants import model_or_loading, quarter
from prunesid_cli.selection.psca import exact_directions, groups


@torch.no_grad()
def plus(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """features [B, N, C], saliency [B, N] -> kept indices B x [T], in raster order."""
    with torch.autocast(features.device.type, enabled=False):
        group, score = grouped(features, saliency, budgets)
    return run_per_budget(_led, keep_counts(features, budgets, num_cls), features, score, group)


def _led(features: Tensor, score: Tensor, group: Tensor, target: int) -> Sequence[Tensor]:
    return covering(features, score, leaders(group, score, target), target)


def grouped(features: Tensor, saliency: Tensor | None, budgets: Sequence[int]) -> tuple[Tensor, Tensor]:
    """PruneSID's group and score of each token [B, N]: its saliency, or how strongly it belongs to its group."""
    most = features.shape[1]
    directions = exact_directions(features, [min(quarter(budget), most) for budget in budgets], saliency is None)
    return groups(directions), model_or_loading(saliency, directions)


def leaders(group: Tensor, score: Tensor, most: int) -> Tensor:
    """group, score [B, N] -> mask of the highest scored token of each group, of the highest so many."""
    order = score.argsort(dim=-1, descending=True, stable=True)
    own = group.gather(-1, order)
    first = ~(own.unsqueeze(-1) == own.unsqueeze(-2)).tril(-1).any(-1)
    return torch.zeros_like(first).scatter(-1, order, first & (first.cumsum(-1) <= most))


def covering(features: Tensor, score: Tensor, first: Tensor, target: int) -> Sequence[Tensor]:
    """features [B, N, C], score, mask [B, N] -> the tokens of the mask and what adds most to coverage, times its score;
    B x [T], in raster order."""
    return list(places(cover(cosines(features), score, first, target), target))
