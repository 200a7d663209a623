"""Principal semantic component analysis (PSCA, Sec. 3.2 of arXiv 2603.09480): groups of tokens of the same meaning.

Each token loads on the principal directions of its image, and belongs to the one on which it loads most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device
from prunesid_cli.selection.linalg.eigenvectors import leading_directions
from prunesid_cli.selection.linalg.per_image import scratch_tensor

LOW_RANK_ITERATIONS = 2
"""Power iterations of the randomised PCA, as in the published code."""


def centre_tokens(tokens: Tensor, out: Tensor | None = None) -> Tensor:
    """Apply a sigmoid to tokens [..., N, C] and subtract each token's mean over its channels -> fp32, in `out`."""
    tokens = tokens.float()
    activation = torch.sigmoid(tokens, out=scratch_tensor(tokens, *tokens.shape) if out is None else out)
    return activation.sub_(activation.mean(-1, keepdim=True))


def exact_directions(
    features: Tensor, ks: Sequence[int], need_values: bool = True, batched: bool | None = None
) -> Tensor:
    """Compute the principal directions of each image's tokens exactly.

    Args:
        features: [B, N, C].
        ks: Number of directions wanted of each image.
        need_values: Whether the values of V matter, or only which |entry| of each row is the largest.
        batched: Whether all images share every launch; None: on all devices but the CPU.

    Returns:
        V [B, N, max(ks)] fp32, by descending variance; zero beyond an image's k or rank.
    """
    return leading_directions(features, centre_tokens, ks, need_values, batched)


def low_rank_directions(features: Tensor, ks: Sequence[int], need_values: bool = True, seed: int = 0) -> Tensor:
    """Compute the principal directions as the published code does: torch.pca_lowrank(q=k, niter=2), from a fixed seed.

    Every image starts from the same draw, as in the published code (Halko et al. 2009, alg. 4.4 and 5.1).

    Args:
        features: [B, N, C].
        ks: Number of directions wanted of each image.
        need_values: Ignored; the arguments are those of `exact_directions`.
        seed: Seed of the draw.

    Returns:
        V [B, N, max(ks)] fp32, approximate; zero beyond an image's k.
    """
    directions = features.new_zeros(*features.shape[:2], max(ks), dtype=torch.float32)
    for row, k in enumerate(ks):
        vectors = _right_singular_vectors(centre_tokens(features[row]).T, k, seed)
        directions[row, :, : vectors.shape[-1]] = vectors
    return directions


def _right_singular_vectors(matrix: Tensor, k: int, seed: int) -> Tensor:
    """matrix [C, N] -> approximate right singular vectors [N, k], at most as many as there are."""
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    k = min(k, tall.shape[1])
    generator = torch.Generator().manual_seed(seed)
    basis = tall @ to_device(torch.randn(tall.shape[1], k, generator=generator), matrix.device)
    basis = torch.linalg.qr(basis).Q
    for _ in range(LOW_RANK_ITERATIONS):
        basis = torch.linalg.qr(tall.T @ basis).Q
        basis = torch.linalg.qr(tall @ basis).Q
    left: Tensor
    right: Tensor
    left, _, right = torch.linalg.svd(basis.T @ tall, full_matrices=False)
    return basis @ left if wide else right.T


def assign_groups(directions: Tensor) -> Tensor:
    """Return the group of each token [B, N] int64 from V [B, N, G]: argmax |V|, the first on ties.

    An all-zero row goes to group 0, and an all-zero column gets no other token.
    """
    magnitude = directions.abs()
    # argmax promises no order among equals; a maximum of a 0/1 mask weighted by falling columns does.
    falling = torch.arange(magnitude.shape[-1], 0, -1, device=directions.device)
    return ((magnitude == magnitude.amax(-1, keepdim=True)) * falling).argmax(-1)
