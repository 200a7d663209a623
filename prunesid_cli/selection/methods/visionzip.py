"""VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): dominant tokens as they are, all others merged into a few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from prunesid_cli.selection.batching import by_saliency, keep_counts, places, run_per_budget
from prunesid_cli.selection.result import Selection
from prunesid_cli.selection.similarity import unit_tokens

CONTEXTUAL = (5, 32)
"""Share of the budget that is contextual: 10 of 64, 20 of 128, 30 of 192, as published for LLaVA-1.5."""


def visionzip(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Selection]:
    """The most salient tokens, and contextual ones, each an average.

    Contextual tokens begin at equal steps among those that are not dominant, and every other joins the one that it
    resembles most; the average stands where the first of it stood. Budgets below 7 have no contextual token, and drop
    all that is not dominant. Differs from the published code in that

    - similarity is that of the features: keys of the tower's attention, which it takes, do not reach the cut;
    - a contextual token is the average of all its parts. It adds the average of those that join to the first, which
      makes a token of about twice the length of any other;
    - tokens are in raster order, and so keep their positions: there contextual ones come last.

    Without saliency, by the norm of the features.
    """
    wanted = keep_counts(features, budgets, num_cls)
    return run_per_budget(partial(_merged, num_cls=num_cls), wanted, features, saliency)


def contextual(budget_with_cls: int) -> int:
    """How many tokens of a budget, with what is reserved, are merged ones."""
    share, of = CONTEXTUAL
    return budget_with_cls * share // of


def _merged(features: Tensor, saliency: Tensor | None, target: int, num_cls: int) -> list[Selection]:
    merged = contextual(target + num_cls)
    order = by_saliency(features, saliency)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, : target - merged], True)
    if not merged:
        return [Selection(indices) for indices in places(kept, target)]
    others = places(~kept, order.shape[1] - target + merged)
    first = others[:, :: others.shape[1] // merged][:, :merged]
    kept.scatter_(1, first, True)
    owner = first.gather(1, _nearest(features, first))
    itself = torch.arange(order.shape[1], device=order.device)
    into = (kept.cumsum(-1) - 1).gather(1, torch.where(kept, itself, owner))
    return [Selection(*one) for one in zip(places(kept, target), into, strict=True)]


def _nearest(features: Tensor, first: Tensor) -> Tensor:
    """features [B, N, C], first [B, M] -> which of the M tokens each resembles most [B, N], the earliest on ties."""
    unit = unit_tokens(features)
    return (unit @ unit.gather(1, first.unsqueeze(-1).expand(-1, -1, unit.shape[-1])).mT).argmax(-1)
