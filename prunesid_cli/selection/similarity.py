"""Cosine similarity of tokens, and how redundant an image is by it (rho, Eq. 4; phi = 1 - rho, Eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prunesid_cli.selection.linalg.per_image import each_image, room
from prunesid_cli.selection.psca import to_fp64_device

SHORTEST = 1e-12
"""A token that is shorter is not scaled up to length one."""


def unit_tokens(tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """tokens [..., N, C] -> of length one, as a model running in `dtype` would round them."""
    tokens = tokens.to(dtype)
    unit: Tensor = normalize(tokens, dim=-1, eps=SHORTEST, out=room(tokens, *tokens.shape))
    # A zero token is like no other; in half precision, where SHORTEST is zero, its quotient is NaN.
    return unit if dtype == torch.float32 else unit.nan_to_num_(0.0, 0.0, 0.0)


def pair_mean(tokens: Tensor) -> Tensor:
    """rho of Eq. 4: tokens [..., N, C] -> mean cosine over the pairs i < j, fp32 [...]. No pair, no redundancy.

    In O(NC), with no [N, N] matrix nor tokens of length one: of those, n_i, the sum over i != j of n_i.n_j is
    |sum n_i|^2 - sum |n_i|^2.
    """
    n, tokens = tokens.shape[-2], tokens.float()
    lengths = torch.linalg.vector_norm(tokens, dim=-1)
    weights = 1 / lengths.clamp(min=SHORTEST)
    together = (weights.unsqueeze(-2) @ tokens).squeeze(-2).double().square().sum(-1)
    return ((together - (weights * lengths).double().square().sum(-1)) / max(n * (n - 1), 1)).float()


def triangle_mean(tokens: Tensor) -> Tensor:
    """The published Qwen2-VL slip: sum over i <= j divided by N^2, about rho / 2. Rounded as the input is."""
    n, similarity = tokens.shape[-2], _cosines(tokens)
    return (_total(similarity.triu()) / n**2).to(similarity.dtype)


def rounded_pair_mean(tokens: Tensor) -> Tensor:
    """rho as the published code has it: of cosines that are rounded as the input is."""
    n, similarity = tokens.shape[-2], _cosines(tokens)
    of_itself = similarity.diagonal(dim1=-2, dim2=-1).double().sum(-1)
    return ((_total(similarity) - of_itself) / max(n * (n - 1), 1)).float()


def _cosines(tokens: Tensor) -> Tensor:
    unit = unit_tokens(tokens, tokens.dtype)
    return unit @ unit.mT


def _total(matrix: Tensor) -> Tensor:
    return matrix.sum(-1, dtype=torch.float64).sum(-1)


def phi(features: Tensor) -> Tensor:
    """Information of an image: features [B, N, C] -> 1 - rho [B] fp32."""
    features = to_fp64_device(features)
    if features.device.type != "cpu":
        return 1 - pair_mean(features)
    return torch.stack(each_image(lambda row: 1 - pair_mean(features[row]), len(features), features.device))
