"""Intra-group non-maximum suppression (Sec. 3.3), of all groups at once.

The greedy loop over tokens by falling saliency and the fixed point computed here are the same set: whether
a token survives depends only on tokens that precede it, so the fixed point is unique.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 128
"""Tokens whose similarities are computed together: whole groups, of no more tokens than this where they are small."""
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
    alive = candidate.clone()
    for part in order.split(_chunks(group.bincount().tolist())):
        near = unit[part]
        blocks = (near @ near.T > tau).mT & (group[part][:, None] == group[part])
        alive[part] = fixed_point(blocks.tril(-1), candidate[part])
    return alive


def _chunks(sizes: list[int]) -> list[int]:
    """Sizes of neighbouring groups -> sizes of chunks of whole groups."""
    chunks = [0]
    for size in sizes:
        if chunks[-1] and chunks[-1] + size > CHUNK:
            chunks.append(0)
        chunks[-1] += size
    return chunks


def fixed_point(blocks: Tensor, candidate: Tensor) -> Tensor:
    """blocks [N, N]: [j, i] if i suppresses j, which it precedes; candidate [N] -> mask [N] of the survivors.

    Takes as many rounds as the longest chain of suppression (3 or 4 on images), so ask, never cap.
    """
    keep = candidate
    while True:
        settled = candidate & ~(blocks & keep).any(-1)
        if torch.equal(settled, keep):
            return keep
        keep = settled
