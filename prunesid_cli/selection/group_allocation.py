"""How many tokens each group may keep, and which. The loops of the published code in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Allocation:
    """By group, all [B, G] int64: tokens, survivors of the NMS, bounds, and tokens to take."""

    size: Tensor
    survivors: Tensor
    lower: Tensor
    upper: Tensor
    taken: Tensor


def count(group: Tensor, mask: Tensor, num_groups: int) -> Tensor:
    """group [B, N], mask [B, N] -> how many tokens of the mask are in each group [B, G]."""
    zeros = torch.zeros(group.shape[0], num_groups, dtype=torch.int64, device=group.device)
    return zeros.scatter_add(1, group, mask.long())


def allocate(size: Tensor, survivors: Tensor, budget_with_cls: Tensor, num_cls: int) -> Allocation:
    """size [B, G], survivors [B, G], need [B], which counts `reserved` -> sum(taken) = need - reserved.

    Groups beyond an image's own (size 0) change nothing, so images of different budgets can share a batch.
    """
    lower = size.clamp(max=1)
    upper = upper_bounds(size, survivors, budget_with_cls)
    rest = (budget_with_cls - lower.sum(-1) - num_cls).clamp(min=0)
    quota = torch.minimum(proportional(survivors, rest) + lower, upper)
    taken = fill(quota, upper, survivors, rest + lower.sum(-1))
    return Allocation(size, survivors, lower, upper, taken)


def upper_bounds(size: Tensor, survivors: Tensor, budget_with_cls: Tensor) -> Tensor:
    """size [B, G], survivors [B, G], need [B] -> upper bounds [B, G], raised alike until `need` fits."""
    cap = 5 * torch.ceil(budget_with_cls / 64).long()
    bound = torch.minimum(torch.minimum(size, survivors), cap.unsqueeze(-1))
    return torch.minimum(bound + growth(size - bound, budget_with_cls - bound.sum(-1)).unsqueeze(-1), size)


def growth(room: Tensor, lack: Tensor) -> Tensor:
    """Smallest t >= 0 with sum(min(t, room)) >= lack: room [B, G], lack [B] -> t [B].

    Over the rooms in rising order the sum is the least of P_j + (G - j) t, P_j the sum of the j smallest;
    it reaches `lack` when each of these does. A lack beyond sum(room) opens all of it.
    """
    rising = room.sort(dim=-1).values
    before = rising.cumsum(-1) - rising
    sharers = torch.arange(room.shape[-1], 0, -1, device=room.device)
    return (-((before - lack.unsqueeze(-1)) // sharers)).amax(-1).clamp(min=0)


def proportional(survivors: Tensor, rest: Tensor) -> Tensor:
    """survivors [B, G], rest [B] -> tokens beyond the lower bound [B, G], by share of the survivors.

    The published code rounds the running share in fp32. The sum itself is taken in fp64, where it is exact
    for shares of fewer than 2^29 tokens, and so the same on every device.
    """
    share = survivors.float() / survivors.sum(-1, keepdim=True).clamp(min=1).float()
    edges = (share.double().cumsum(-1).float() * rest.unsqueeze(-1).float()).round().long()
    return edges.diff(dim=-1, prepend=torch.zeros_like(edges[:, :1]))


def fill(taken: Tensor, upper: Tensor, survivors: Tensor, total: Tensor) -> Tensor:
    """Raise taken [B, G] towards upper [B, G], most survivors first, until its sum is total [B]."""
    order = survivors.argsort(dim=-1, descending=True, stable=True)
    room = (upper - taken).gather(-1, order)
    lack = (total - taken.sum(-1)).unsqueeze(-1)
    extra = torch.minimum((lack - (room.cumsum(-1) - room)).clamp(min=0), room)
    return taken.scatter_add(-1, order, extra)


def grouped_choice(group: Tensor, survivor: Tensor, rank: Tensor, allocation: Allocation) -> Tensor:
    """group, survivor, rank [B, N] -> all token indices [B, N], those to take first, group by group.

    Within a group survivors come first, then the suppressed, each by precedence.
    """
    n = group.shape[-1]
    order = ((2 * group + ~survivor) * n + rank).argsort(dim=-1)
    group = group.gather(-1, order)
    first = (allocation.size.cumsum(-1) - allocation.size).gather(-1, group)
    place = torch.arange(n, device=group.device) - first
    left_out = place >= allocation.taken.gather(-1, group)
    return order.gather(-1, left_out.to(torch.uint8).argsort(dim=-1, stable=True))
