"""Gram matrices X X^T that are accurate enough for their faint eigenvectors, mostly from products in fp32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prunesid_cli.runtime.device import true_rows
from prunesid_cli.selection.linalg.krylov import add_product, leading_eigenvectors
from prunesid_cli.selection.linalg.per_image import scratch_scope, scratch_tensor
from prunesid_cli.selection.linalg.ritz import StoppingCriterion

BLOCK_ROWS = 96
"""Rows of a Gram matrix that a CPU computes at once, up to the diagonal: of 576 tokens 7/12 of all products."""
MAX_FP64_PRODUCTS = 2**25
"""Largest number of multiplications for which a Gram matrix is cheap enough in fp64."""
FP32_ROUNDING = 1e-5
"""Share of all variation below which a direction cannot be had from products in fp32: of the embedded model's tokens
they get 1 in 500 wrong a decade below it, 1 in 80 two decades, 1 in 8,000 a decade above and none further up; and where
tokens repeat each other they show directions that are not there."""


@dataclass(frozen=True)
class Gram:
    """Gram matrices of a batch.

    Attributes:
        matrix: [B, M, M] fp64, symmetric.
        min_reliable: [B]. Larger eigenvalues are hardly changed by the rounding of the matrix.
    """

    matrix: Tensor
    min_reliable: Tensor


def gram(matrices: Tensor) -> Gram:
    """Compute X X^T of matrices X [B, M, D] fp32, in fp64 where that is cheap, else by products in fp32.

    On a CPU these take half the time. What all rows share is split off first: its rounding would drown the rest of
    nearly uniform images (eigenvalues below 1e-5 of the largest), where a plain product in fp32 gets 1 token in 10
    wrong.
    """
    num_images, m, length = matrices.shape
    product = scratch_tensor(matrices, num_images, m, m, dtype=torch.float64)
    # On a CPU one by one: some large operations round otherwise for another batch.
    batch_size = 1 if matrices.device.type == "cpu" else num_images
    if m * m * length <= MAX_FP64_PRODUCTS:
        for batch, out in zip(matrices.split(batch_size), product.split(batch_size), strict=True):
            exact = batch.double()
            torch.bmm(exact, exact.mT, out=out)
        return Gram(product, product.new_full((num_images,), -math.inf))
    if matrices.device.type == "cpu":
        least = [_gram_from_fp32(matrix, out) for matrix, out in zip(matrices, product, strict=True)]
        return Gram(product, torch.stack(least))
    return Gram(product, _gram_from_fp32(matrices, product))


def gram_eigenvectors(matrices: Tensor, wanted: Tensor, criterion: StoppingCriterion) -> Tensor:
    """Compute the leading eigenvectors of X X^T on a CPU, from a Gram matrix as exact as they need.

    Args:
        matrices: X [B, M, D] fp32.
        wanted: [B, K] mask of the directions that are wanted, the first ones of each matrix.
        criterion: When to stop.

    Returns:
        Eigenvectors as rows [B, K, M] fp64, descending.
    """
    quick = gram(matrices)
    vectors = leading_eigenvectors(quick.matrix, wanted, criterion)
    last = vectors[torch.arange(len(vectors), device=vectors.device), wanted.sum(-1) - 1].unsqueeze(1)
    is_faint = (last @ quick.matrix @ last.mT).flatten() <= quick.min_reliable
    for row in true_rows(is_faint):
        exact = matrices[row].double()
        vectors[row] = leading_eigenvectors((exact @ exact.T)[None], wanted[row : row + 1], criterion)[0]
    return vectors


def left_from_right(matrix: Tensor, right: Tensor) -> Tensor:
    """Map right singular vectors to left ones.

    Args:
        matrix: X [..., N, C] fp32.
        right: W [..., C, k] fp64, eigenvectors of X^T X.

    Returns:
        V = X W / |X W| [..., N, k] fp32.
    """
    common = normalize(matrix.mean(-2, keepdim=True), dim=-1)
    along = matrix @ common.mT
    rest = torch.addcmul(matrix, along, common, value=-1)  # as in `gram`: what all tokens share would drown the rest
    left = (rest @ right.float()).double() + along.double() @ (common.double() @ right)
    return normalize(left, dim=-2).float()


def _gram_from_fp32(matrix: Tensor, out: Tensor) -> Tensor:
    """matrix [..., M, D] fp32 -> fills `out` [..., M, M] fp64, returns the smallest reliable eigenvalue [...]."""
    with scratch_scope():
        common = normalize(matrix.mean(-2, keepdim=True), dim=-1)
        along = matrix @ common.mT
        rest = torch.addcmul(matrix, along, common, value=-1, out=scratch_tensor(matrix, *matrix.shape))
        across = (rest @ common.mT).double()  # nearly nothing, but no longer so once multiplied by `along`
        _square_in_fp32(rest, out)
    min_reliable = FP32_ROUNDING * out.diagonal(dim1=-2, dim2=-1).sum(-1)
    along = along.double()
    add_product(out, torch.cat([along, across], -1), torch.cat([along + across, along], -1).mT, out=out)
    return min_reliable


def _square_in_fp32(matrix: Tensor, out: Tensor) -> None:
    """matrix [..., M, D] fp32 -> fills `out` [..., M, M] fp64; on a CPU each pair of rows is multiplied once."""
    if matrix.device.type != "cpu":
        out.copy_(matrix @ matrix.mT)
        return
    m = len(matrix)
    product = scratch_tensor(matrix, m, m)
    for start in range(0, m, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, m)
        torch.mm(matrix[start:stop], matrix[:stop].T, out=product[start:stop, :stop])
        product[:start, start:stop] = product[start:stop, :start].T
    out.copy_(product)
