"""How many tokens each group keeps, and which: the loops of the published PruneSID code in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Allocation:
    """Numbers of tokens by group, all [B, G] int64.

    Attributes:
        size: Tokens of the group.
        survivors: Survivors of the suppression.
        lower: Smallest number to keep.
        upper: Largest number to keep.
        taken: Number to keep.
    """

    size: Tensor
    survivors: Tensor
    lower: Tensor
    upper: Tensor
    taken: Tensor


def count_per_group(group: Tensor, mask: Tensor, num_groups: int) -> Tensor:
    """Count the tokens of a mask [B, N] in each group -> [B, G] int64; group [B, N] gives the group of each token."""
    zeros = torch.zeros(group.shape[0], num_groups, dtype=torch.int64, device=group.device)
    return zeros.scatter_add(1, group, mask.long())


def allocate(size: Tensor, survivors: Tensor, budget_with_cls: Tensor, num_cls: int) -> Allocation:
    """Share the budget of each image among its groups.

    Groups beyond an image's own (size 0) change nothing, so images of different budgets can share a batch.

    Args:
        size: [B, G] tokens of each group.
        survivors: [B, G] survivors of each group.
        budget_with_cls: [B] budgets, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        The allocation; `taken` of an image adds up to budget_with_cls - num_cls.
    """
    lower = size.clamp(max=1)
    upper = torch.minimum(torch.minimum(size, survivors), 5 * torch.ceil(budget_with_cls / 64).long().unsqueeze(-1))
    # All upper bounds rise by the same number until the budget fits.
    rise = smallest_rise(size - upper, budget_with_cls - upper.sum(-1))
    upper = torch.minimum(upper + rise.unsqueeze(-1), size)
    # Tokens beyond the lower bounds are shared in proportion to the survivors. The published code rounds the running
    # share in fp32. The sum itself is taken in fp64, where it is exact for shares of fewer than 2^29 tokens, and so the
    # same on every device.
    beyond_lower = (budget_with_cls - lower.sum(-1) - num_cls).clamp(min=0)
    share = survivors.float() / survivors.sum(-1, keepdim=True).clamp(min=1).float()
    edges = (share.double().cumsum(-1).float() * beyond_lower.unsqueeze(-1).float()).round().long()
    quota = edges.diff(dim=-1, prepend=torch.zeros_like(edges[:, :1]))
    taken = torch.minimum(quota + lower, upper)
    # Raise towards the upper bounds, most survivors first, until the sum is right.
    order = survivors.argsort(dim=-1, descending=True, stable=True)
    space = (upper - taken).gather(-1, order)
    lack = (beyond_lower + lower.sum(-1) - taken.sum(-1)).unsqueeze(-1)
    extra = torch.minimum((lack - (space.cumsum(-1) - space)).clamp(min=0), space)
    taken = taken.scatter_add(-1, order, extra)
    return Allocation(size=size, survivors=survivors, lower=lower, upper=upper, taken=taken)


def smallest_rise(space: Tensor, lack: Tensor) -> Tensor:
    """Find the smallest t >= 0 with sum(min(t, space)) >= lack.

    With the spaces in rising order the sum is the least of P_j + (G - j) t, where P_j is the sum of the j smallest; it
    reaches `lack` when each of these does. A lack beyond sum(space) opens all of it.

    Args:
        space: [B, G] by how much each group can rise.
        lack: [B] by how much all groups must rise together.

    Returns:
        t [B] int64.
    """
    rising = space.sort(dim=-1).values
    before = rising.cumsum(-1) - rising
    sharers = torch.arange(space.shape[-1], 0, -1, device=space.device)
    return (-((before - lack.unsqueeze(-1)) // sharers)).amax(-1).clamp(min=0)


def order_by_allocation(group: Tensor, survivor: Tensor, rank: Tensor, allocation: Allocation) -> Tensor:
    """Order all tokens so that those to keep come first, group by group.

    Within a group survivors come first, then the suppressed tokens, each by rank.

    Args:
        group: [B, N] the group of each token.
        survivor: [B, N] mask.
        rank: [B, N] place of each token by falling saliency.
        allocation: Tokens to keep of each group.

    Returns:
        Token indices [B, N] int64.
    """
    n = group.shape[-1]
    order = ((2 * group + ~survivor) * n + rank).argsort(dim=-1)
    group = group.gather(-1, order)
    first = (allocation.size.cumsum(-1) - allocation.size).gather(-1, group)
    place = torch.arange(n, device=group.device) - first
    is_dropped = place >= allocation.taken.gather(-1, group)
    return order.gather(-1, is_dropped.to(torch.uint8).argsort(dim=-1, stable=True))
