"""Intra-group non-maximum suppression (Sec. 3.3), of all groups at once.

The greedy loop over tokens by falling saliency and the fixed point computed here are the same set: whether
a token survives depends only on tokens that precede it, so the fixed point is unique.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunesid_cli.selection.linalg.batched import LARGEST
from prunesid_cli.selection.linalg.per_image import room, scratch
from prunesid_cli.selection.similarity import unit_tokens

STEP = 16
"""Groups whose sizes round up to the same multiple of it are settled together, padded to that."""
ROUNDS = 6
"""Rounds between two looks at whether a batch has settled, where a look holds the device up."""
BEYOND = 1.02
"""No cosine is greater, in half precision or not; a threshold above it suppresses nothing."""


def precedence(saliency: Tensor) -> Tensor:
    """saliency [N] -> place of each by falling saliency [N] int64, the first on ties first."""
    return saliency.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def survivors(tokens: Tensor, tau: Tensor, group: Tensor, rank: Tensor, candidate: Tensor) -> Tensor:
    """Which candidates no survivor of their group, preceding them, is more similar to than tau.

    Only similarities within groups are computed, never of all tokens with all.

    Args:
        tokens: [N, C], in the precision of which similarities are wanted.
        tau: the threshold, strict; scalar.
        group, rank, candidate: [N].

    Returns:
        mask [N].
    """
    if float(tau) > BEYOND:
        return candidate
    order = (group * len(group) + rank).argsort()
    sizes = group.bincount()
    first = sizes.cumsum(0) - sizes
    alive = candidate.clone()
    padded = (sizes + STEP - 1) // STEP * STEP
    for width in padded[padded > 0].unique().tolist():
        rows = (padded == width).nonzero()
        place = torch.arange(width, device=tokens.device)
        filled = place < sizes[rows]
        which = order[torch.where(filled, first[rows] + place, 0)]
        with scratch():
            near = room(tokens, which.numel(), tokens.shape[1])
            torch.index_select(tokens, 0, which.flatten(), out=near)
            near = unit_tokens(near, near.dtype).view(*which.shape, tokens.shape[1])
            blocks = (near @ near.mT > tau).tril(-1)
        alive[which[filled]] = fixed_point(blocks, candidate[which] & filled)[filled]
    return alive


def suppressors(tokens: Tensor, tau: Tensor, group: Tensor, rank: Tensor, survivor: Tensor) -> Tensor:
    """Which survivor did away with each token: of those of its group that precede it and are too similar, the first.

    Arguments as of `survivors`, and what that returns.

    Returns:
        indices [N] int64; -1 for survivors, and for what was no candidate.
    """
    unit = unit_tokens(tokens, tokens.dtype)
    near = (unit @ unit.mT > tau) & (group[:, None] == group) & (rank[:, None] > rank)
    near &= survivor & ~survivor[:, None]
    first = torch.where(near, rank, len(rank)).argmin(-1)
    return torch.where(near.any(-1), first, -1)


def survivors_together(tokens: Tensor, tau: Tensor, group: Tensor, rank: Tensor, candidate: Tensor) -> Tensor:
    """The same of a batch, [B, N, C], [B], [B, N], with all similarities: few launches, and a look for many rounds."""
    kept = []
    for row in range(0, len(tokens), portion := max(1, LARGEST // tokens.shape[1] ** 2)):
        some = slice(row, row + portion)
        unit = unit_tokens(tokens[some], tokens.dtype)
        near = unit @ unit.mT > tau[some, None, None]
        own, place = group[some], rank[some]
        blocks = near & (own[:, :, None] == own[:, None, :]) & (place[:, :, None] > place[:, None, :])
        kept.append(fixed_point(blocks, candidate[some], ROUNDS))
    return torch.cat(kept)


def fixed_point(blocks: Tensor, candidate: Tensor, rounds: int = 1) -> Tensor:
    """blocks [..., N, N]: [j, i] if i suppresses j, which it precedes; candidate [..., N] -> mask of the survivors.

    Takes as many rounds as the longest chain of suppression (3 or 4 on images), so ask, every so many, and never cap.
    """
    keep, weights = candidate, blocks.float()  # a product is faster than `any`
    while True:
        for _ in range(rounds):
            before, keep = keep, candidate & ((weights @ keep.float().unsqueeze(-1)).squeeze(-1) == 0)
        if torch.equal(before, keep):
            return keep
