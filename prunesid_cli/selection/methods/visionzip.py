"""VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): dominant tokens as they are, all others merged into a few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from prunesid_cli.selection.batching import keep_counts, mask_to_indices, order_by_saliency, run_per_budget
from prunesid_cli.selection.result import Selection
from prunesid_cli.selection.similarity import normalize_tokens

CONTEXTUAL_SHARE = (5, 32)
"""Share of the budget that is contextual: 10 of 64, 20 of 128, 30 of 192, as published for LLaVA-1.5."""


def visionzip(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Selection]:
    """Select the most salient (dominant) tokens, and contextual tokens that are each the average of several others.

    Contextual tokens begin at equal steps among those that are not dominant, and every other one joins the contextual
    token that it resembles most. Budgets below 7 have no contextual token, and drop all that is not dominant. Differs
    from the published code in that

    - similarity is that of the features: the keys of the tower's attention, which it takes, do not reach the cut;
    - a contextual token is the average of all its parts. The published code adds the average of the joined tokens to
      the first token, which makes a token of about twice the usual length;
    - tokens are in raster order, and so keep their positions: in the published code contextual ones come last.

    Args:
        features: [B, N, C].
        saliency: [B, N]; None: the norm of the features takes its place.
        budgets: Tokens to keep of each image, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        B selections, in raster order; a contextual token is at the position of its first part.
    """
    counts = keep_counts(features, budgets, num_cls)
    return run_per_budget(partial(_select, num_cls=num_cls), counts, features, saliency)


def contextual_count(budget_with_cls: int) -> int:
    """Return how many tokens of a budget, CLS included, are contextual."""
    tokens, budget = CONTEXTUAL_SHARE
    return budget_with_cls * tokens // budget


def _select(features: Tensor, saliency: Tensor | None, count: int, num_cls: int) -> list[Selection]:
    num_contextual = contextual_count(count + num_cls)
    order = order_by_saliency(features, saliency)
    n = order.shape[1]
    kept = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, : count - num_contextual], True)
    if not num_contextual:
        return [Selection(indices) for indices in mask_to_indices(kept, count)]
    others = mask_to_indices(~kept, n - count + num_contextual)
    first = others[:, :: others.shape[1] // num_contextual][:, :num_contextual]
    kept.scatter_(1, first, True)
    owner = first.gather(1, _most_similar(features, first))
    into = (kept.cumsum(-1) - 1).gather(1, torch.where(kept, torch.arange(n, device=order.device), owner))
    return [Selection(*pair) for pair in zip(mask_to_indices(kept, count), into, strict=True)]


def _most_similar(features: Tensor, first: Tensor) -> Tensor:
    """features [B, N, C], first [B, M] -> which of the M tokens each resembles most [B, N], the earliest on ties."""
    unit = normalize_tokens(features)
    return (unit @ unit.gather(1, first.unsqueeze(-1).expand(-1, -1, unit.shape[-1])).mT).argmax(-1)
