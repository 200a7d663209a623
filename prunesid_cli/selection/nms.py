"""Intra-group non-maximum suppression (Sec. 3.3), all groups of all images at once.

The greedy loop over tokens by falling saliency and the fixed point computed here are the same set: whether
a token survives depends only on tokens that precede it, so the fixed point is unique.
"""

from __future__ import annotations

import torch
from torch import Tensor


def precedence(saliency: Tensor) -> Tensor:
    """saliency [B, N] -> place of each by falling saliency [B, N] int64, the first on ties first."""
    return saliency.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def suppressors(similarity: Tensor, tau: Tensor, group: Tensor, rank: Tensor) -> Tensor:
    """similarity [B, N, N], tau [B], group, rank [B, N] -> mask [B, N, N]: [j, i] if i can suppress j."""
    mask = similarity.mT > tau[:, None, None]
    mask &= group[:, :, None] == group[:, None, :]
    mask &= rank[:, :, None] > rank[:, None, :]
    return mask


def survivors(suppressors: Tensor, candidate: Tensor) -> Tensor:
    """suppressors [B, N, N], candidate [B, N] -> mask [B, N] of the candidates that no survivor suppresses.

    Takes as many rounds as the longest chain of suppression (3 or 4 on images), so ask, never cap.
    """
    keep = candidate
    while True:
        settled = candidate & ~(suppressors & keep.unsqueeze(1)).any(-1)
        if torch.equal(settled, keep):
            return keep
        keep = settled
