"""Leading eigenvectors from block Krylov spaces: the solver for a CPU.

Only the first K of N directions are wanted, and often only the position of each column's largest entry. A Krylov space
of a third of N columns, in fp32, is within 1e-4 of them; a step of subspace iteration in fp64 is closer, and its
residual says how far each entry may still be off. The solver stops once that can change nothing: at a fifth of LAPACK's
price. A space that is too small grows; if it gets no closer, LAPACK takes over.
"""

from __future__ import annotations

import math
from copy import copy
from functools import lru_cache

import torch
from torch import Tensor

from prunesid_cli.runtime.device import true_rows
from prunesid_cli.selection.linalg.per_image import scratch_tensor
from prunesid_cli.selection.linalg.ritz import NOISE, RitzVectors, StoppingCriterion, angle_excess, rayleigh_ritz

BLOCK = 12
"""Number of vectors by which a space grows. Small blocks need fewer vectors in all, large ones multiply faster."""
SPARE = 8
"""Vectors carried along beside the wanted ones: the last wanted one is hard to tell from its neighbours."""
NEW_SHARE = 1e-3
"""Below this share of its length, what a vector adds to a space is rounding noise in fp32."""
CHECK_INTERVAL = 48
"""Number of vectors that a space grows by before the stopping criterion is checked again."""
MAX_STEPS = 6
"""Largest number of steps of subspace iteration in a row."""
FEW = 4
"""Value of the stopping criterion that is small enough for further steps even where they make slow progress."""


class Krylov:
    """Orthonormal bases of the block Krylov spaces of matrices [..., N, N], from a start that is the same for all.

    Every block is made orthogonal to all before it, twice, since rounding leaves some of them the first time (Golub and
    Van Loan, Matrix Computations, 10.3). Vectors that add nothing are replaced by new ones.

    Attributes:
        matrix: [..., N, N] fp32.
        width: Number of vectors so far.
        basis: [..., max_width, N], the vectors as rows, which are faster to multiply than columns.
        product: [..., max_width, N], basis @ matrix.
    """

    def __init__(self, matrix: Tensor, max_width: int) -> None:
        self.matrix, self.width = matrix, 0
        self.basis = scratch_tensor(matrix, *matrix.shape[:-2], max_width, matrix.shape[-1])
        self.product = scratch_tensor(matrix, *matrix.shape[:-2], max_width, matrix.shape[-1])

    def __getitem__(self, row: int) -> Krylov:
        """The space of one matrix of the batch, which shares the memory of the batch."""
        space = copy(self)
        space.matrix, space.basis, space.product = self.matrix[row], self.basis[row], self.product[row]
        return space

    def grow(self, width: int) -> None:
        """Extend the space to `width` vectors, a multiple of BLOCK."""
        for start in range(self.width, width, BLOCK):
            block = self._next_block(start)
            self.basis[..., start : start + BLOCK, :] = block
            self.product[..., start : start + BLOCK, :] = block @ self.matrix
        self.width = width

    def _next_block(self, width: int) -> Tensor:
        """What the last products add to the first `width` vectors [..., BLOCK, N]; first, those of a random block."""
        basis, fresh = self.basis[..., :width, :], _random_block(self.matrix.shape[-1], width).to(self.matrix)
        fresh = fresh.expand(*self.matrix.shape[:-2], *fresh.shape)
        candidates = self.product[..., width - BLOCK : width, :] if width else fresh @ self.matrix
        block, adds_nothing = _orthonormalize(candidates, basis)
        while adds_nothing.any():
            retried, still_nothing = _orthonormalize(torch.where(adds_nothing.unsqueeze(-1), fresh, block), basis)
            is_open = adds_nothing.any(-1, keepdim=True)  # the matrices of complete blocks keep them unchanged
            block, adds_nothing = torch.where(is_open.unsqueeze(-1), retried, block), is_open & still_nothing
        return block

    def ritz_vectors(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the Ritz vectors of the k + SPARE largest Ritz values.

        A space from BLOCK vectors holds no eigenvalue more than BLOCK times. If it holds one that often, there might be
        more directions of this eigenvalue, and the vectors are not complete.

        Returns:
            Vectors as rows [..., P, N], and a mask [...] of the matrices whose vectors are complete.
        """
        basis = self.basis[..., : self.width, :]
        values, weights = torch.linalg.eigh(self.product[..., : self.width, :] @ basis.mT)
        values = values.flip(-1)
        first, later = values[..., :k], values[..., BLOCK - 1 : BLOCK - 1 + k]
        return weights[..., -(k + SPARE) :].flip(-1).mT @ basis, ~(first - later < 0.01 * first).any(-1)


def leading_eigenvectors(matrices: Tensor, wanted: Tensor, criterion: StoppingCriterion = angle_excess) -> Tensor:
    """Compute the leading eigenvectors of matrices on a CPU.

    Most matrices need the same few steps, which are taken for the whole batch: threads wait for each other at every
    operation, and a batch pays for that once. The result of a matrix does not depend on the other matrices.

    Args:
        matrices: [B, N, N] fp64, symmetric, positive semi-definite.
        wanted: [B, K] mask of the directions that are wanted.
        criterion: When to stop.

    Returns:
        The first K eigenvectors as rows [B, K, N], descending. Rows that are not wanted, and directions that a matrix
        does not have (rank < K), are zero.
    """
    n, k = matrices.shape[-1], wanted.shape[-1]
    # Enough for most images at the first check, which costs as much as growing by half of CHECK_INTERVAL.
    width = BLOCK * -(-(7 * k // 4 + 104) // BLOCK)
    if width > n // 2:
        return torch.stack([_lapack(matrix, row) for matrix, row in zip(matrices, wanted, strict=True)])
    space = Krylov(scratch_tensor(matrices, *matrices.shape, dtype=torch.float32).copy_(matrices), n // 2)
    space.grow(width)
    rows, complete = space.ritz_vectors(k)
    ritz = rayleigh_ritz(matrices, rows, wanted)
    finished = complete & (criterion(ritz) == 0)
    directions = ritz.directions()
    for row in true_rows(~finished):
        refined = _refine(matrices[row], space[row], ritz[row], criterion) if complete[row] else None
        directions[row] = _lapack(matrices[row], wanted[row]) if refined is None else refined
    return directions


def _refine(matrix: Tensor, space: Krylov, ritz: RitzVectors, criterion: StoppingCriterion) -> Tensor | None:
    """Iterate one matrix [N, N], and grow its space, until finished -> [K, N]; None if it gets no closer."""
    previous = math.inf
    while True:
        first, last, ritz = _iterate_subspace(matrix, ritz, criterion)
        if not last:
            return ritz.directions()
        if first > previous / 2 or space.width + CHECK_INTERVAL > len(matrix) // 2:
            return None
        previous = first
        space.grow(space.width + CHECK_INTERVAL)
        rows, complete = space.ritz_vectors(ritz.wanted.shape[-1])
        if not complete:
            return None
        ritz = rayleigh_ritz(matrix, rows, ritz.wanted)


def _iterate_subspace(
    matrix: Tensor, ritz: RitzVectors, criterion: StoppingCriterion
) -> tuple[float, float, RitzVectors]:
    """Iterate one matrix while a step leaves at most a quarter, or FEW -> criterion at first and at last, vectors."""
    first = last = float(criterion(ritz))
    for _ in range(MAX_STEPS):
        if not last:
            break
        ritz = rayleigh_ritz(matrix, ritz.next_iterate(), ritz.wanted)
        before, last = last, float(criterion(ritz))
        if last > max(before / 4, FEW):
            break
    return first, last, ritz


def _lapack(matrix: Tensor, wanted: Tensor) -> Tensor:
    """matrix [N, N], wanted [K] -> eigenvectors as rows [K, N], from the whole decomposition."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[: len(wanted)], vectors.flip(1)[:, : len(wanted)]
    return (vectors * (wanted & (values > NOISE * values[:1].clamp(min=0)))).T


def _orthonormalize(rows: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """rows [..., B, N], orthonormal basis [..., M, N] -> rows orthonormal to it and to each other; mask [..., B].

    The mask tells the rows that add nothing to the basis and to the rows before them; these are replaced by noise.
    """
    remainder = rows
    for _ in range(2):
        remainder = add_product(remainder, remainder @ basis.mT, basis, alpha=-1)
    vectors, triangle = torch.linalg.qr(remainder.mT)
    return vectors.mT, triangle.diagonal(dim1=-2, dim2=-1).abs() <= NEW_SHARE * rows.norm(dim=-1)


def add_product(matrix: Tensor, left: Tensor, right: Tensor, alpha: float = 1, out: Tensor | None = None) -> Tensor:
    """Return matrix + alpha * left @ right, of one matrix or a batch [B]."""
    return (torch.addmm if matrix.ndim == 2 else torch.baddbmm)(matrix, left, right, alpha=alpha, out=out)


@lru_cache(maxsize=256)
def _random_block(n: int, seed: int) -> Tensor:
    """[BLOCK, N] fp32, from a generator of its own: the same for all images."""
    return torch.randn(BLOCK, n, generator=torch.Generator().manual_seed(seed)) / n**0.5
