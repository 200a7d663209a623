"""Non-maximum suppression within groups (Sec. 3.3 of arXiv 2603.09480), for all groups at once.

The greedy loop over tokens by falling saliency and the fixed point computed here give the same set: whether a token
survives depends only on tokens that precede it, so the fixed point is unique.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunesid_cli.selection.linalg.batched import MAX_MATRIX_ENTRIES
from prunesid_cli.selection.linalg.per_image import scratch_scope, scratch_tensor
from prunesid_cli.selection.similarity import normalize_tokens

SIZE_STEP = 16
"""Groups whose sizes round up to the same multiple of this are padded to it and computed together."""
ROUNDS_PER_CHECK = 6
"""Rounds between two checks for the fixed point of a batch, where a check makes the host wait for the device."""
MAX_COSINE = 1.02
"""No cosine is greater, not even in half precision; a threshold above it suppresses nothing."""


def saliency_rank(saliency: Tensor) -> Tensor:
    """Return the place of each token by falling saliency [..., N] int64, the first token first on ties."""
    return saliency.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def find_survivors(tokens: Tensor, tau: Tensor, group: Tensor, rank: Tensor, candidate: Tensor) -> Tensor:
    """Find the candidates that no preceding survivor of their group resembles by more than tau.

    Only similarities within groups are computed, never those of all tokens with all.

    Args:
        tokens: [N, C], in the precision in which similarities are wanted.
        tau: Scalar, the threshold; a similarity equal to it does not suppress.
        group: [N] int64, the group of each token.
        rank: [N] int64, the place of each token; a lower one precedes.
        candidate: [N] bool, the tokens that can survive.

    Returns:
        Mask [N] of the survivors.
    """
    if float(tau) > MAX_COSINE:
        return candidate
    order = (group * len(group) + rank).argsort()
    sizes = group.bincount()
    first = sizes.cumsum(0) - sizes
    alive = candidate.clone()
    padded = (sizes + SIZE_STEP - 1) // SIZE_STEP * SIZE_STEP
    for width in padded[padded > 0].unique().tolist():
        rows = (padded == width).nonzero()
        place = torch.arange(width, device=tokens.device)
        filled = place < sizes[rows]
        members = order[torch.where(filled, first[rows] + place, 0)]
        with scratch_scope():
            unit = scratch_tensor(tokens, members.numel(), tokens.shape[1])
            torch.index_select(tokens, 0, members.flatten(), out=unit)
            unit = normalize_tokens(unit, unit.dtype).view(*members.shape, tokens.shape[1])
            blocks = (unit @ unit.mT > tau).tril(-1)
        alive[members[filled]] = iterate_suppression(blocks, candidate[members] & filled)[filled]
    return alive


def find_survivors_batched(tokens: Tensor, tau: Tensor, group: Tensor, rank: Tensor, candidate: Tensor) -> Tensor:
    """Do `find_survivors` for a batch, in few launches and with few host syncs, from the similarities of all tokens.

    Args:
        tokens: [B, N, C].
        tau: [B].
        group: [B, N].
        rank: [B, N].
        candidate: [B, N].

    Returns:
        Mask [B, N] of the survivors.
    """
    survivors = []
    batch_size = max(1, MAX_MATRIX_ENTRIES // tokens.shape[1] ** 2)
    for start in range(0, len(tokens), batch_size):
        batch = slice(start, start + batch_size)
        unit = normalize_tokens(tokens[batch], tokens.dtype)
        is_similar = unit @ unit.mT > tau[batch, None, None]
        same_group = group[batch, :, None] == group[batch, None, :]
        is_later = rank[batch, :, None] > rank[batch, None, :]
        survivors.append(
            iterate_suppression(is_similar & same_group & is_later, candidate[batch], rounds=ROUNDS_PER_CHECK)
        )
    return torch.cat(survivors)


def find_suppressors(tokens: Tensor, tau: Tensor, group: Tensor, rank: Tensor, survivor: Tensor) -> Tensor:
    """Find the survivor that suppressed each token: the first of its group that precedes it and is too similar.

    Args:
        tokens: [N, C].
        tau: Scalar, the threshold.
        group: [N] int64, the group of each token.
        rank: [N] int64, the place of each token.
        survivor: [N] bool, the result of `find_survivors`.

    Returns:
        Token indices [N] int64; -1 for survivors and for tokens that were no candidates.
    """
    unit = normalize_tokens(tokens, tokens.dtype)
    blocks = (unit @ unit.mT > tau) & (group[:, None] == group) & (rank[:, None] > rank)
    blocks &= survivor & ~survivor[:, None]
    first = torch.where(blocks, rank, len(rank)).argmin(-1)
    return torch.where(blocks.any(-1), first, -1)


def iterate_suppression(blocks: Tensor, candidate: Tensor, rounds: int = 1) -> Tensor:
    """Iterate suppression to its fixed point.

    It takes as many rounds as the longest chain of suppression (3 or 4 on images), so there is no limit.

    Args:
        blocks: [..., N, N] bool: [j, i] if i precedes j and would suppress it.
        candidate: [..., N] bool, the tokens that can survive.
        rounds: Number of rounds between two checks for the fixed point.

    Returns:
        Mask [..., N] of the survivors.
    """
    keep, weights = candidate, blocks.float()  # a product is faster than `any`
    while True:
        for _ in range(rounds):
            before, keep = keep, candidate & ((weights @ keep.float().unsqueeze(-1)).squeeze(-1) == 0)
        if torch.equal(before, keep):
            return keep
