"""The leading eigenvectors of a symmetric matrix, as far as anybody can tell them apart.

Of an image's tokens only the first K of N directions are wanted, and of them only where each token loads most. A
Krylov space of a third of N columns, in fp32, is within 1e-4 of them; a step of subspace iteration in fp64 is nearer,
and its residual says how far each loading may still be off. Once that can change nothing, we are done: at a fifth of
LAPACK's price. A space that is not enough grows; one that gets no nearer gives way to LAPACK.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from prunesid_cli.selection.parallel import room

BLOCK = 12
"""Vectors by which the space grows: small ones need fewer in all, large ones are multiplied faster."""
LOOK = 48
"""Vectors between two looks at whether the space is enough."""
SPARE = 8
"""Vectors carried along beside the wanted ones: the last of those is hard to tell from its neighbours."""
NOISE = 1e-12
"""Below this share of the largest eigenvalue a direction is rounding noise."""
STEPS, FEW = 6, 4
"""Most steps of subspace iteration, and doubt so small that it is worth them even where they make slow progress."""
SAFETY = 3
"""An entry is taken to be within so many times its estimated error."""
NEW = 1e-3
"""Below this share of its length, what a vector adds to a space is rounding noise in fp32."""
CLOSE = 1e-6
"""Greatest angle between a computed direction and the true one, in radians, where the numbers themselves matter."""


@dataclass(frozen=True)
class Found:
    """Approximate eigenvectors, best first: `values` [..., P], rows [..., P, N]. The first `k` are wanted.

    images  vectors @ matrix: one step of subspace iteration further, but for their length
    """

    values: Tensor
    vectors: Tensor
    images: Tensor
    k: int

    def real(self) -> Tensor:
        """Mask [..., P, 1]: not rounding noise."""
        return (self.values > NOISE * self.values[..., :1].clamp(min=0)).unsqueeze(-1)

    def improved(self) -> Tensor:
        """The rows after one step: images of length one."""
        return torch.where(self.real(), self.images / self.values.unsqueeze(-1), self.vectors)

    def directions(self) -> Tensor:
        """[..., k, N], rows of noise zero."""
        return torch.where(self.real(), self.improved(), 0)[..., : self.k, :]

    def errors(self) -> Tensor:
        """[..., k, N]: how far each direction may be off, to first order and noise aside.

        The error is the residual, seen through the rest of the matrix: no longer than the residual by the distance to
        the rest's greatest eigenvalue, for which the last spare one stands (Parlett, The Symmetric Eigenvalue Problem,
        11.7), but shared among entries otherwise.
        """
        top, wanted = self.values[..., : self.k, None], slice(self.k)
        off = (self.images[..., wanted, :] - top * self.vectors[..., wanted, :]) / (top - self.values[..., -1:, None])
        return torch.where(self.real()[..., wanted, :], off, 0)


Doubt = Callable[[Found], Tensor]
"""What remains to be done, of each matrix [...]: 0 if nothing, and less the nearer that is."""


def angle(found: Found) -> Tensor:
    """How many times CLOSE the worst direction may be off."""
    worst = found.errors().norm(dim=-1).amax(-1) / CLOSE
    return torch.where(worst > 1, worst, 0)


def undecided(found: Found) -> Tensor:
    """The number of entries of the space whose greatest loading may be that of another direction."""
    return overtakable(found.directions(), found.errors())


def undecided_through(matrix: Tensor) -> Doubt:
    """The same of the rows of `matrix` [N, C], where it is matrix.T @ matrix that is factorised."""

    def doubt(found: Found) -> Tensor:
        through = matrix.double().T
        length = found.values[: found.k, None].clamp(min=0).sqrt()
        loading, error = (rows @ through / length for rows in (found.directions(), found.errors()))
        return overtakable(loading.nan_to_num(0), error.nan_to_num(0))

    return doubt


def overtakable(loading: Tensor, error: Tensor) -> Tensor:
    """loading, error [..., K, N] -> of how many columns the greatest |entry| may be another, for all that we know."""
    loading, error = loading.abs(), error.abs()
    error = SAFETY * torch.maximum(error, error.square().mean(-1, keepdim=True).sqrt())
    own = loading.argmax(-2, keepdim=True)
    least = (loading - error).gather(-2, own).squeeze(-2)
    most = (loading + error).scatter(-2, own, -1).amax(-2)
    return (~(least >= most)).sum(-1)


def leading(matrix: Tensor, k: int, doubt: Doubt = angle) -> Tensor:
    """matrix [N, N] fp64, symmetric, positive semi-definite -> its first k eigenvectors as rows [k, N], descending.

    Directions that the matrix does not have (rank < k) are zero rows.
    """
    n = len(matrix)
    space, hope = Krylov(room(matrix, n, n, dtype=torch.float32).copy_(matrix), n // 2), float("inf")
    for width in range(_first_width(k), n // 2 + 1, LOOK):
        space.grow(width)
        rows = space.leading(k)
        if rows is None:
            break
        first, last, found = polish(matrix, rows, k, doubt)
        if not last:
            return found.directions()
        if first > hope / 2:
            break
        hope = first
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values[-k:].flip(0), vectors[:, -k:].flip(1)
    return (vectors * (values > NOISE * values[:1].clamp(min=0))).T


def _first_width(k: int) -> int:
    """Enough for most images at the first look, whose price is that of half a step to the next."""
    return BLOCK * -(-(5 * k // 2 + 60) // BLOCK)


def polish(matrix: Tensor, rows: Tensor, k: int, doubt: Doubt) -> tuple[float, float, Found]:
    """Subspace iteration from rows [P, N] while a step leaves a quarter, or few -> doubt at first and at last."""
    found = rayleigh_ritz(matrix, rows, k)
    first = last = float(doubt(found))
    for _ in range(STEPS):
        if not last:
            break
        better = rayleigh_ritz(matrix, found.improved(), k)
        before, last, found = last, float(doubt(better)), better
        if last > max(before / 4, FEW):
            break
    return first, last, found


def rayleigh_ritz(matrix: Tensor, rows: Tensor, k: int) -> Found:
    """The best approximations in the span of rows [..., P, N], which need not be quite orthonormal; in fp64."""
    rows = rows.double()
    images = rows @ matrix
    lower = torch.linalg.cholesky_ex(rows @ rows.mT).L
    identity = torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    values, weights = torch.linalg.eigh(inverse @ (rows @ images.mT) @ inverse.mT)
    weights = weights.flip(-1).mT @ inverse
    return Found(values.flip(-1), weights @ rows, weights @ images, k)


class Krylov:
    """An orthonormal basis of the block Krylov space of a matrix, from a start that is the same for all matrices.

    `basis` [M, N] has its vectors as rows, which is the faster way round to multiply; `image` is basis @ matrix. Every
    block is made orthogonal to all before it, twice, since rounding leaves some of them the first time (Golub and Van
    Loan, Matrix Computations, 10.3). Vectors that add nothing give way to new ones.
    """

    def __init__(self, matrix: Tensor, most: int) -> None:
        self.matrix, self.width = matrix, 0
        self.basis = room(matrix, most, len(matrix))
        self.image = room(matrix, most, len(matrix))

    def grow(self, width: int) -> None:
        """To `width` vectors, a multiple of BLOCK."""
        for at in range(self.width, width, BLOCK):
            block = self._next(at)
            self.basis[at : at + BLOCK] = block
            torch.mm(block, self.matrix, out=self.image[at : at + BLOCK])
        self.width = width

    def _next(self, at: int) -> Tensor:
        """What the last images add to the first `at` vectors [BLOCK, N]; before all others, those of the start do."""
        before, fresh = self.basis[:at], start(len(self.matrix), at).to(self.matrix)
        block = self.image[at - BLOCK : at] if at else fresh @ self.matrix
        while True:
            orthonormal, triangle = torch.linalg.qr(without(without(block, before), before).T)
            nothing_new = triangle.diagonal().abs() <= NEW * block.norm(dim=1)
            if not nothing_new.any():
                return orthonormal.T
            block = torch.where(nothing_new[:, None], fresh, orthonormal.T)

    def leading(self, k: int) -> Tensor | None:
        """Ritz vectors of the k + SPARE largest Ritz values, as rows; None where one might be missing.

        A space from BLOCK vectors holds no eigenvalue more than BLOCK times, so of one that it holds that often there
        might be more.
        """
        basis = self.basis[: self.width]
        values, weights = torch.linalg.eigh(self.image[: self.width] @ basis.T)
        values = values.flip(0)
        if bool((values[:k] - values[BLOCK - 1 : BLOCK - 1 + k] < 0.01 * values[:k]).any()):
            return None
        return weights[:, -(k + SPARE) :].flip(1).T @ basis


def without(rows: Tensor, basis: Tensor) -> Tensor:
    """rows [B, N], orthonormal basis [M, N] -> rows less their part in the basis."""
    return torch.addmm(rows, rows @ basis.T, basis, alpha=-1)


@lru_cache(maxsize=256)
def start(n: int, seed: int) -> Tensor:
    """[BLOCK, N] fp32, drawn from a generator of its own."""
    return torch.randn(BLOCK, n, generator=torch.Generator().manual_seed(seed)) / n**0.5
