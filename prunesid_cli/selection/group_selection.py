"""The stages of PruneSID (arXiv 2603.09480), from visual tokens to the indices of those to keep.

1. Directions and groups (PSCA, Sec. 3.2).
2. Saliency, and suppression within each group (Sec. 3.3).
3. A share of the budget for each group, and its tokens of the highest saliency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device
from prunesid_cli.selection.group_allocation import Allocation, allocate, count_per_group, order_by_allocation
from prunesid_cli.selection.linalg.per_image import map_images
from prunesid_cli.selection.nms import find_survivors, find_survivors_batched, saliency_rank
from prunesid_cli.selection.prunesid_variants import PruneSIDVariant, loading_or_saliency
from prunesid_cli.selection.psca import assign_groups


@dataclass(frozen=True)
class Suppression:
    """Stages 1 and 2 of a batch.

    Attributes:
        group: [B, N] int64, the group of each token.
        saliency: [B, N] fp32.
        rank: [B, N] int64, the place of each token by falling saliency, copies last.
        survivor: [B, N] bool, the survivors of the suppression within groups.
        redundancy: [B] fp32, rho.
        tau: [B] fp32, the similarity above which a token suppresses another.
    """

    group: Tensor
    saliency: Tensor
    rank: Tensor
    survivor: Tensor
    redundancy: Tensor
    tau: Tensor


@dataclass(frozen=True)
class GroupSelection:
    """All stages of a batch.

    Attributes:
        suppression: Stages 1 and 2.
        allocation: Tokens to keep of each group.
        indices: B x [T], the kept tokens.
    """

    suppression: Suppression
    allocation: Allocation
    indices: list[Tensor]


@torch.no_grad()
def select_by_group(
    features: Tensor, saliency: Tensor | None, budgets: Sequence[int], variant: PruneSIDVariant, num_cls: int
) -> GroupSelection:
    """Run all stages of a PruneSID variant on a batch.

    Args:
        features: [B, N, C], finite.
        saliency: [B, N], or None.
        budgets: Tokens to keep of each image, CLS included.
        variant: The choices of the variant.
        num_cls: Number of CLS tokens that a budget counts.
    """
    n, device = features.shape[1], features.device
    budgets_with_cls = [min(budget, n + num_cls) for budget in budgets]
    ks = [min(variant.num_groups(budget), n) for budget in budgets_with_cls]
    if not variant.uses_saliency:
        saliency = None
    with torch.autocast(device.type, enabled=False):
        directions = variant.directions(features, ks, saliency is None)
        stages = _suppress(features, saliency, directions, budgets_with_cls, variant)
    num_groups = directions.shape[-1]
    allocation = allocate(
        size=count_per_group(stages.group, torch.ones_like(stages.survivor), num_groups),
        survivors=count_per_group(stages.group, stages.survivor, num_groups),
        budget_with_cls=to_device(budgets_with_cls, device),
        num_cls=num_cls,
    )
    order = order_by_allocation(stages.group, stages.survivor, stages.rank, allocation)
    counts = [max(budget - num_cls, 0) for budget in budgets_with_cls]
    kept = torch.arange(n, device=device) < to_device(counts, device)[:, None]
    raster = torch.where(kept, order, order + n).sort(-1).values % n  # the kept ones first, in raster order
    in_raster_order = to_device([budget >= variant.min_raster_budget for budget in budgets_with_cls], device)
    order = torch.where(in_raster_order[:, None], raster, order)
    return GroupSelection(stages, allocation, [row[:count] for row, count in zip(order, counts, strict=True)])


def _suppress(
    features: Tensor,
    saliency: Tensor | None,
    directions: Tensor,
    budgets_with_cls: Sequence[int],
    variant: PruneSIDVariant,
) -> Suppression:
    """Groups and suppression of a batch, from features [B, N, C], saliency [B, N] and V [B, N, G]."""
    n, device = features.shape[1], features.device
    strengths = to_device([variant.strength(budget, n) for budget in budgets_with_cls], device)

    def stages(rows: int | slice, find: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """The fields of Suppression for one image, or for a batch."""
        group = assign_groups(directions[rows])
        score = loading_or_saliency(None if saliency is None else saliency[rows], directions[rows])
        rank = saliency_rank(score)
        tokens = features[rows].to(variant.precision or features.dtype)
        redundancy = variant.redundancy(tokens)
        tau = (strengths[rows] * redundancy.float()).to(redundancy.dtype).float().clamp(max=variant.max_similarity)
        if variant.max_similarity < math.inf:
            is_original = find(tokens, torch.full_like(tau, variant.max_similarity), group, rank, score >= 0)
            rank = saliency_rank(-(rank + n * ~is_original))  # copies last, else in the same order
        return group, score, rank, find(tokens, tau, group, rank, score > 0), redundancy.float(), tau

    if variant.batched or (variant.batched is None and device.type != "cpu"):
        return Suppression(*stages(slice(None), find_survivors_batched))
    images = map_images(lambda row: stages(row, find_survivors), len(budgets_with_cls), device)
    return Suppression(*(torch.stack(column) for column in zip(*images, strict=True)))
