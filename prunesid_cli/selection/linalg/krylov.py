"""Block Krylov spaces: bases, in fp32, that come near a matrix's leading eigenvectors after few products with it."""

from __future__ import annotations

from copy import copy
from functools import lru_cache

import torch
from torch import Tensor

from prunesid_cli.selection.linalg.per_image import room

BLOCK = 12
"""Vectors by which the space grows: small ones need fewer in all, large ones are multiplied faster."""
SPARE = 8
"""Vectors carried along beside the wanted ones: the last of those is hard to tell from its neighbours."""
NEW = 1e-3
"""Below this share of its length, what a vector adds to a space is rounding noise in fp32."""


class Krylov:
    """Orthonormal bases of the block Krylov spaces of matrices [..., N, N], from a start that is the same for all.

    `basis` [..., M, N] has its vectors as rows, which is the faster way round to multiply; `image` is basis @ matrix.
    Every block is made orthogonal to all before it, twice, since rounding leaves some of them the first time (Golub and
    Van Loan, Matrix Computations, 10.3). Vectors that add nothing give way to new ones.
    """

    def __init__(self, matrix: Tensor, most: int) -> None:
        self.matrix, self.width = matrix, 0
        self.basis = room(matrix, *matrix.shape[:-2], most, matrix.shape[-1])
        self.image = room(matrix, *matrix.shape[:-2], most, matrix.shape[-1])

    def of(self, row: int) -> Krylov:
        """That of one matrix, which goes on in the memory of all."""
        own = copy(self)
        own.matrix, own.basis, own.image = self.matrix[row], self.basis[row], self.image[row]
        return own

    def grow(self, width: int) -> None:
        """To `width` vectors, a multiple of BLOCK."""
        for at in range(self.width, width, BLOCK):
            block = self._next(at)
            self.basis[..., at : at + BLOCK, :] = block
            self.image[..., at : at + BLOCK, :] = block @ self.matrix
        self.width = width

    def _next(self, at: int) -> Tensor:
        """What the last images add to the first `at` vectors [..., BLOCK, N]; before all others, those of the start."""
        before, fresh = self.basis[..., :at, :], start(self.matrix.shape[-1], at).to(self.matrix)
        fresh = fresh.expand(*self.matrix.shape[:-2], *fresh.shape)
        block, nothing_new = orthonormal(self.image[..., at - BLOCK : at, :] if at else fresh @ self.matrix, before)
        while nothing_new.any():
            other = orthonormal(torch.where(nothing_new.unsqueeze(-1), fresh, block), before)
            open_ = nothing_new.any(-1, keepdim=True)  # what others lack changes nothing of a whole block
            block, nothing_new = torch.where(open_.unsqueeze(-1), other[0], block), open_ & other[1]
        return block

    def leading(self, k: int) -> tuple[Tensor, Tensor]:
        """Ritz vectors of the k + SPARE largest Ritz values, as rows [..., P, N]; mask [...] of those that are all.

        A space from BLOCK vectors holds no eigenvalue more than BLOCK times, so of one that it holds that often there
        might be more.
        """
        basis = self.basis[..., : self.width, :]
        values, weights = torch.linalg.eigh(self.image[..., : self.width, :] @ basis.mT)
        values = values.flip(-1)
        first, later = values[..., :k], values[..., BLOCK - 1 : BLOCK - 1 + k]
        return weights[..., -(k + SPARE) :].flip(-1).mT @ basis, ~(first - later < 0.01 * first).any(-1)


def orthonormal(rows: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """rows [..., B, N], orthonormal basis [..., M, N] -> rows orthonormal to it and to each other; mask [..., B] of
    those that add nothing to it and to those before them, in whose place stands noise."""
    vectors, triangle = torch.linalg.qr(without(without(rows, basis), basis).mT)
    return vectors.mT, triangle.diagonal(dim1=-2, dim2=-1).abs() <= NEW * rows.norm(dim=-1)


def without(rows: Tensor, basis: Tensor) -> Tensor:
    """rows [..., B, N], orthonormal basis [..., M, N] -> rows less their part in the basis."""
    return add_product(rows, rows @ basis.mT, basis, alpha=-1)


def add_product(matrix: Tensor, left: Tensor, right: Tensor, alpha: float = 1, out: Tensor | None = None) -> Tensor:
    """matrix + alpha * left @ right, of one matrix or a batch [B]."""
    return (torch.addmm if matrix.ndim == 2 else torch.baddbmm)(matrix, left, right, alpha=alpha, out=out)


@lru_cache(maxsize=256)
def start(n: int, seed: int) -> Tensor:
    """[BLOCK, N] fp32, drawn from a generator of its own."""
    return torch.randn(BLOCK, n, generator=torch.Generator().manual_seed(seed)) / n**0.5
