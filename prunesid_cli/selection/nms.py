"""Intra-group non-maximum suppression (Sec. 3.3), of all groups at once.

The greedy loop over tokens by falling saliency and the fixed point computed here are the same set: whether
a token survives depends only on tokens that precede it, so the fixed point is unique.
"""

from __future__ import annotations

import torch
from torch import Tensor

PRODUCT, SPAN = 32, 128
"""Tokens, as whole groups, whose similarities are computed together, and among whom suppression is settled together:
small products waste little on pairs of two groups, wide spans need few rounds."""
BEYOND = 1.02
"""No cosine is greater, in half precision or not; a threshold above it suppresses nothing."""


def precedence(saliency: Tensor) -> Tensor:
    """saliency [N] -> place of each by falling saliency [N] int64, the first on ties first."""
    return saliency.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def survivors(unit: Tensor, tau: Tensor, group: Tensor, rank: Tensor, candidate: Tensor) -> Tensor:
    """Which candidates no survivor of their group, preceding them, is more similar to than tau.

    Only similarities within groups are computed, never [N, N].

    Args:
        unit: tokens of length one [N, C].
        tau: the threshold, strict; scalar.
        group, rank, candidate: [N].

    Returns:
        mask [N].
    """
    if float(tau) > BEYOND:
        return candidate
    order = (group * len(group) + rank).argsort()
    sizes = group.bincount().tolist()
    alive = candidate.clone()
    for span in order.split(whole_groups(sizes, SPAN)):
        own = group[span]
        blocks = torch.zeros(len(span), len(span), dtype=torch.bool, device=unit.device)
        at = 0
        for near in unit[span].split(whole_groups(own.bincount().tolist(), PRODUCT)):
            to = at + len(near)
            blocks[at:to, at:to] = near @ near.T > tau
            at = to
        alive[span] = fixed_point((blocks & (own[:, None] == own)).tril(-1), candidate[span])
    return alive


def whole_groups(sizes: list[int], most: int) -> list[int]:
    """Sizes of neighbouring groups -> sizes of runs of them, of at most `most` tokens where there is more than one."""
    runs = [0]
    for size in sizes:
        if runs[-1] and runs[-1] + size > most:
            runs.append(0)
        runs[-1] += size
    return runs


def fixed_point(blocks: Tensor, candidate: Tensor) -> Tensor:
    """blocks [N, N]: [j, i] if i suppresses j, which it precedes; candidate [N] -> mask [N] of the survivors.

    Takes as many rounds as the longest chain of suppression (3 or 4 on images), so ask, never cap.
    """
    keep, weights = candidate, blocks.float()  # a product is faster than `any`
    while True:
        settled = candidate & (weights @ keep.float() == 0)
        if torch.equal(settled, keep):
            return keep
        keep = settled
