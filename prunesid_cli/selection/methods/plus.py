"""prunesid-plus: PruneSID's groups led by their most salient tokens, and SCOPE's coverage for the rest of the budget.

A method of this project. The groups are those of PruneSID (arXiv 2603.09480, Sec. 3.2), computed exactly, and each
keeps its most salient token. Suppression and shares by group are replaced: their threshold is above all similarities
from a budget of 32 / rho on, and below it suppresses nearly everything, so that small budgets go to the most salient
tokens of the same thing. Here every further token is the one of the greatest gain in coverage times saliency, as in
SCOPE (Deng et al., NeurIPS 2025, arXiv 2510.24214). tests/benchmarks says what each of these is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.batching import keep_counts, mask_to_indices, run_per_budget
from prunesid_cli.selection.methods.scope import extend_by_coverage
from prunesid_cli.selection.prunesid_variants import PRUNESID, loading_or_saliency
from prunesid_cli.selection.psca import assign_groups, exact_directions
from prunesid_cli.selection.similarity import cosine_similarity


@torch.no_grad()
def plus(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select the most salient token of each group, then the tokens that add most to coverage times saliency.

    Args:
        features: [B, N, C].
        saliency: [B, N]; None: how much a token loads on the direction of its group takes its place.
        budgets: Tokens to keep of each image, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        Kept indices B x [T], in raster order.
    """
    with torch.autocast(features.device.type, enabled=False):
        group, score = group_tokens(features, saliency, budgets)
    return run_per_budget(_select, keep_counts(features, budgets, num_cls), features, score, group)


def group_tokens(features: Tensor, saliency: Tensor | None, budgets: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return PruneSID's group of each token [B, N] and its score [B, N]; arguments as of `plus`."""
    ks = [min(PRUNESID.num_groups(budget), features.shape[1]) for budget in budgets]
    directions = exact_directions(features, ks, need_values=saliency is None)
    return assign_groups(directions), loading_or_saliency(saliency, directions)


def find_leaders(group: Tensor, score: Tensor, max_leaders: int) -> Tensor:
    """Return the mask [B, N] of the highest scored token of each group, of the `max_leaders` highest scored groups.

    Args:
        group: [B, N] int64.
        score: [B, N].
        max_leaders: Largest number of leaders of an image.
    """
    order = score.argsort(dim=-1, descending=True, stable=True)
    ordered_group = group.gather(-1, order)
    first = ~(ordered_group.unsqueeze(-1) == ordered_group.unsqueeze(-2)).tril(-1).any(-1)
    return torch.zeros_like(first).scatter(-1, order, first & (first.cumsum(-1) <= max_leaders))


def _select(features: Tensor, score: Tensor, group: Tensor, count: int) -> Sequence[Tensor]:
    leaders = find_leaders(group, score, count)
    return list(mask_to_indices(extend_by_coverage(cosine_similarity(features), score, leaders, count), count))
