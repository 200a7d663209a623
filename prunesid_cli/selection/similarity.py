"""Cosine similarity of tokens, and redundancy of an image (rho, Eq. 4 of arXiv 2603.09480; phi = 1 - rho, Eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prunesid_cli.runtime.device import to_fp64_device
from prunesid_cli.selection.linalg.per_image import map_images, scratch_tensor

MIN_LENGTH = 1e-12
"""A token that is shorter than this is not scaled up to length one."""


def normalize_tokens(tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale tokens [..., N, C] to length one, as a model that runs in `dtype` would round them."""
    tokens = tokens.to(dtype)
    unit: Tensor = normalize(tokens, dim=-1, eps=MIN_LENGTH, out=scratch_tensor(tokens, *tokens.shape))
    # A zero token is like no other; in half precision, where MIN_LENGTH is zero, its quotient is NaN.
    return unit if dtype == torch.float32 else unit.nan_to_num_(0.0, 0.0, 0.0)


def cosine_similarity(tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the similarity of all tokens [..., N, C] to all [..., N, N], as a model that runs in `dtype` rounds it."""
    unit = normalize_tokens(tokens, dtype)
    return unit @ unit.mT


def pair_mean(tokens: Tensor) -> Tensor:
    """Compute rho of Eq. 4: the mean cosine over the pairs i < j; without a pair 0.

    In O(NC), without an [N, N] matrix or tokens of length one: if n_i are these, the sum over i != j of n_i.n_j is
    |sum n_i|^2 - sum |n_i|^2.

    Args:
        tokens: [..., N, C].

    Returns:
        rho [...] fp32.
    """
    n, tokens = tokens.shape[-2], tokens.float()
    lengths = torch.linalg.vector_norm(tokens, dim=-1)
    weights = 1 / lengths.clamp(min=MIN_LENGTH)
    of_sum = (weights.unsqueeze(-2) @ tokens).squeeze(-2).double().square().sum(-1)
    return ((of_sum - (weights * lengths).double().square().sum(-1)) / max(n * (n - 1), 1)).float()


def rounded_pair_mean(tokens: Tensor) -> Tensor:
    """Compute rho of tokens [..., N, C] as the published code does, from cosines in the dtype of the tokens."""
    n, similarity = tokens.shape[-2], cosine_similarity(tokens, tokens.dtype)
    diagonal = similarity.diagonal(dim1=-2, dim2=-1).double().sum(-1)
    return ((_sum_entries(similarity) - diagonal) / max(n * (n - 1), 1)).float()


def triangle_mean(tokens: Tensor) -> Tensor:
    """Compute rho as the published Qwen2-VL code does: the sum over i <= j divided by N^2, about rho / 2.

    It is rounded to the dtype of the tokens [..., N, C].
    """
    n, similarity = tokens.shape[-2], cosine_similarity(tokens, tokens.dtype)
    return (_sum_entries(similarity.triu()) / n**2).to(similarity.dtype)


def _sum_entries(matrix: Tensor) -> Tensor:
    return matrix.sum(-1, dtype=torch.float64).sum(-1)


def compute_phi(features: Tensor) -> Tensor:
    """Compute the information of images from their features [B, N, C]: phi = 1 - rho [B] fp32."""
    features = to_fp64_device(features)
    if features.device.type != "cpu":
        return 1 - pair_mean(features)
    return torch.stack(map_images(lambda row: 1 - pair_mean(features[row]), len(features), features.device))
