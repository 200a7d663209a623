"""Cosine similarity of tokens, and how redundant an image is by it (rho, Eq. 4; phi = 1 - rho, Eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prunesid_cli.selection.psca import per_image, where_exact


def similarity(tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """tokens [N, C] -> cosine of every pair [N, N], as a model running in `dtype` would round it."""
    # A zero token is like no other; in half precision its quotient would be NaN.
    unit = normalize(tokens.to(dtype), dim=-1).nan_to_num(0.0, 0.0, 0.0)
    return unit @ unit.T


def pair_mean(similarity: Tensor) -> Tensor:
    """rho of Eq. 4: similarity [N, N] -> mean over the pairs i < j, fp32 scalar. No pair, no redundancy."""
    n = similarity.shape[0]
    off_diagonal = _total(similarity) - similarity.diagonal().double().sum()
    return (off_diagonal / max(n * (n - 1), 1)).float()


def triangle_mean(similarity: Tensor) -> Tensor:
    """The published Qwen2-VL slip: sum over i <= j divided by N^2, about rho / 2. Rounded as the input is."""
    return (_total(similarity.triu()) / similarity.numel()).to(similarity.dtype)


def _total(matrix: Tensor) -> Tensor:
    # Rows first: a row's sum, and the sum of so few, are taken in one order whatever the number of threads.
    return matrix.sum(-1, dtype=torch.float64).sum()


def phi(features: Tensor) -> Tensor:
    """Information of an image: features [B, N, C] -> 1 - rho [B] fp32, in O(NC), with no [N, N] matrix.

    With unit tokens n_i: sum over i != j of n_i.n_j = |sum n_i|^2 - sum |n_i|^2.
    """
    n, features = features.shape[1], where_exact(features)

    def information(tokens: Tensor) -> Tensor:
        unit = normalize(tokens.float(), dim=-1).double()
        pairs = unit.sum(0).square().sum() - unit.square().sum()
        return (1 - pairs / max(n * (n - 1), 1)).float()

    return per_image(information, features)
