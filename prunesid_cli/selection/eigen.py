"""The leading eigenvectors of a symmetric matrix, exact to rounding.

Of an image's tokens only the first K of N directions are wanted. A Krylov space of a third of N columns has them to all
digits, at a third of the price of LAPACK. Nothing is taken on trust: residuals say how far the vectors are off, a bound
on the rest of the matrix says that none was missed; a space that is not enough grows, and one that would be half of
everything gives way to LAPACK.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BLOCK, LOOK = 24, 48
"""Vectors by which the space grows, and between two looks at whether it is enough."""
NOISE = 1e-12
"""Below this share of the largest eigenvalue a direction is rounding noise."""
CLOSE = 1e-6
"""Greatest angle between a computed direction and the true one, in radians; and share by which eigenvalues differ."""


def leading(matrix: Tensor, k: int) -> Tensor:
    """matrix [N, N] fp64, symmetric, positive semi-definite -> its first k eigenvectors [N, k], descending.

    Directions that the matrix does not have (rank < k) are zero columns.
    """
    space = Krylov(matrix, len(matrix) // 2)
    for width in range(LOOK * (2 + -(-k // 24)), len(matrix) // 2 + 1, LOOK):
        space.grow(width)
        found = space.ritz(k)
        if found.angle <= CLOSE and (found.others < found.values[-1] or nothing_above(matrix, found)):
            return real(found.values, found.vectors)
    values, vectors = torch.linalg.eigh(matrix)
    return real(values[-k:].flip(0), vectors[:, -k:].flip(1))


def real(values: Tensor, vectors: Tensor) -> Tensor:
    """Descending eigenvalues [k] and vectors [N, k] -> vectors, those of rounding noise zeroed."""
    return vectors * (values > NOISE * values[:1].clamp(min=0))


@dataclass(frozen=True)
class Ritz:
    """The k largest Ritz values [k], descending, and their vectors [N, k].

    angle   the greatest between one of the vectors and the true one, 0 within rounding noise
    others  a number that no eigenvalue of the rest of the matrix exceeds
    """

    values: Tensor
    vectors: Tensor
    angle: float
    others: float


def nothing_above(matrix: Tensor, found: Ritz) -> bool:
    """Whether all eigenvalues besides those found are smaller: an eigenvalue of many equal ones may hide from a space.

    What is left of the matrix, taken from a multiple of the identity, has a Cholesky factor if and only if it is so.
    """
    rest = (found.vectors * found.values) @ found.vectors.T - matrix
    rest.diagonal().add_(found.values[-1] * (1 + CLOSE) + NOISE * found.values[0])
    return int(torch.linalg.cholesky_ex(rest).info) == 0


class Krylov:
    """An orthonormal basis of the block Krylov space of a matrix, from a start that is the same for all matrices.

    `basis` [M, N] has its vectors as rows, which is the faster way round to multiply; `image` is basis @ matrix. Every
    block is made orthogonal to all before it, twice: the second time takes away what the first, and the scaling of a
    block that has nothing new, leave of them (Golub and Van Loan, Matrix Computations, 10.3).
    """

    def __init__(self, matrix: Tensor, most: int) -> None:
        self.matrix, self.width = matrix, 0
        self.basis = matrix.new_empty(most, len(matrix))
        self.image = matrix.new_empty(most, len(matrix))

    def grow(self, width: int) -> None:
        """To `width` vectors, a multiple of BLOCK."""
        for at in range(self.width, width, BLOCK):
            block = self._next(at) if at else start(len(self.matrix)).to(self.matrix)
            self.basis[at : at + BLOCK] = block
            self.image[at : at + BLOCK] = block @ self.matrix
        self.width = width

    def _next(self, at: int) -> Tensor:
        block, before = self.image[at - BLOCK : at], self.basis[:at]
        for _ in range(2):
            block = torch.linalg.qr((block - (block @ before.T) @ before).T).Q.T
        return block

    def ritz(self, k: int) -> Ritz:
        basis, image = self.basis[: self.width], self.image[: self.width]
        inside = image @ basis.T
        values, weights = torch.linalg.eigh(inside)
        values, weights = values.flip(0), weights[:, -k:].flip(1)
        vectors, top, following = basis.T @ weights, values[:k], values[k]
        residual = (image.T @ weights - vectors * top).norm(dim=0)
        below = top - values[1 : k + 1]
        gap = torch.minimum(below, torch.cat([below[:1], below[:-1]]))
        angle = torch.where(residual > NOISE * top[0], residual / gap, 0).amax()
        # The matrix on the rest of the space: [[what follows, coupling], [coupling, outside]].
        coupling = (image.square().sum() - inside.square().sum()).clamp(min=0)
        outside = (self.matrix.square().sum() - inside.square().sum() - 2 * coupling).clamp(min=0).sqrt()
        others = (following + outside) / 2 + (((following - outside) / 2).square() + coupling).sqrt()
        return Ritz(top, vectors, float(angle), float(others))


@lru_cache(maxsize=16)
def start(n: int) -> Tensor:
    """[BLOCK, N] fp64, orthonormal, drawn from a seed of its own."""
    drawn = torch.randn(n, BLOCK, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(drawn).Q.T
