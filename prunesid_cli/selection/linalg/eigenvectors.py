"""The leading eigenvectors of a symmetric matrix, as far as anybody can tell them apart.

Of an image's tokens only the first K of N directions are wanted, and of them only where each token loads most. A
Krylov space of a third of N columns, in fp32, is within 1e-4 of them; a step of subspace iteration in fp64 is nearer,
and its residual says how far each loading may still be off. Once that can change nothing, we are done: at a fifth of
LAPACK's price. A space that is not enough grows; one that gets no nearer gives way to LAPACK.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device, true_rows
from prunesid_cli.selection.linalg.krylov import BLOCK, Krylov
from prunesid_cli.selection.linalg.per_image import each_image, room

LOOK = 48
"""Vectors between two looks at whether the space is enough."""
NOISE = 1e-12
"""Below this share of the largest eigenvalue a direction is rounding noise."""
STEPS, FEW = 6, 4
"""Most steps of subspace iteration, and doubt so small that it is worth them even where they make slow progress."""
SAFETY = 3
"""An entry is taken to be within so many times its estimated error."""
CLOSE = 1e-6
"""Greatest angle between a computed direction and the true one, in radians, where the numbers themselves matter."""


@dataclass(frozen=True)
class Found:
    """Approximate eigenvectors, best first: `values` [..., P], rows [..., M, N] of the first M <= P. Of K <= M some are
    wanted.

    images  vectors @ matrix: one step of subspace iteration further, but for their length
    wanted  mask [..., K]; all others are taken to be zero
    """

    values: Tensor
    vectors: Tensor
    images: Tensor
    wanted: Tensor

    def real(self) -> Tensor:
        """Mask [..., P, 1]: not rounding noise."""
        return (self.values > NOISE * self.values[..., :1].clamp(min=0)).unsqueeze(-1)

    def improved(self) -> Tensor:
        """The rows, all P of them, after one step: images of length one."""
        return torch.where(self.real(), self.images / self.values.unsqueeze(-1), self.vectors)

    def directions(self) -> Tensor:
        """[..., K, N], rows of noise zero."""
        return self._where_wanted(self.images / self._values)

    def errors(self) -> Tensor:
        """[..., K, N]: how far each direction may be off, to first order and noise aside.

        The error is the residual, seen through the rest of the matrix: no longer than the residual by the distance to
        the rest's greatest eigenvalue, for which the last spare one stands (Parlett, The Symmetric Eigenvalue Problem,
        11.7), but shared among entries otherwise.
        """
        residual = torch.addcmul(self.images, self.vectors, self._values, value=-1)
        return self._where_wanted(residual / (self._values - self.values[..., -1:].unsqueeze(-1)))

    @property
    def _values(self) -> Tensor:
        """[..., M, 1]: those of the rows."""
        return self.values[..., : self.vectors.shape[-2]].unsqueeze(-1)

    def _where_wanted(self, rows: Tensor) -> Tensor:
        """[..., P, N] -> [..., K, N]."""
        k = self.wanted.shape[-1]
        return torch.where(self.real()[..., :k, :] & self.wanted.unsqueeze(-1), rows[..., :k, :], 0)

    def of(self, row: int) -> Found:
        """That of one matrix."""
        return Found(self.values[row], self.vectors[row], self.images[row], self.wanted[row])


Doubt = Callable[[Found], Tensor]
"""What remains to be done, of each matrix [...]: 0 if nothing, and less the nearer that is."""


def angle(found: Found) -> Tensor:
    """How many times CLOSE the worst direction may be off."""
    worst = found.errors().norm(dim=-1).amax(-1) / CLOSE
    return torch.where(worst > 1, worst, 0)


def undecided(found: Found) -> Tensor:
    """The number of entries of the space whose greatest loading may be that of another direction."""
    return overtakable(found.directions().float(), found.errors().float())  # as groups are looked for, too


def undecided_through(matrix: Tensor) -> Doubt:
    """The same of the rows of `matrix` [..., N, C], where it is matrix.mT @ matrix that is factorised."""

    def doubt(found: Found) -> Tensor:
        through = matrix.double().mT
        length = found.values[..., : found.wanted.shape[-1], None].clamp(min=0).sqrt()
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


def leading(matrices: Tensor, wanted: Tensor, doubt: Doubt = angle) -> Tensor:
    """matrices [B, N, N] fp64, symmetric, positive semi-definite -> first K eigenvectors as rows [B, K, N], descending.

    Rows that are not wanted (mask [B, K]) and directions that a matrix does not have (rank < K) are zero. Most matrices
    want the same few steps, which are taken together: threads wait for each other at every operation, and one on all of
    them costs that once. What comes of a matrix does not depend on the others.
    """
    n, k = matrices.shape[-1], wanted.shape[-1]
    if (width := _first_width(k)) > n // 2:
        return torch.stack([_whole(matrix, own) for matrix, own in zip(matrices, wanted, strict=True)])
    space = Krylov(room(matrices, *matrices.shape, dtype=torch.float32).copy_(matrices), n // 2)
    space.grow(width)
    rows, complete = space.leading(k)
    found = rayleigh_ritz(matrices, rows, wanted)
    decided = complete & (doubt(found) == 0)
    directions = found.directions()
    for row in true_rows(~decided):
        more = _alone(matrices[row], space.of(row), found.of(row), doubt) if complete[row] else None
        directions[row] = _whole(matrices[row], wanted[row]) if more is None else more
    return directions


def _first_width(k: int) -> int:
    """Enough for most images at the first look, whose price is that of half a step to the next."""
    return BLOCK * -(-(7 * k // 4 + 104) // BLOCK)


def _alone(matrix: Tensor, space: Krylov, found: Found, doubt: Doubt) -> Tensor | None:
    """One matrix [N, N] further, from what its space gave so far -> [K, N]; None where it gets no nearer."""
    hope = float("inf")
    while True:
        first, last, found = polish(matrix, found, doubt)
        if not last:
            return found.directions()
        if first > hope / 2 or space.width + LOOK > len(matrix) // 2:
            return None
        hope = first
        space.grow(space.width + LOOK)
        rows, complete = space.leading(found.wanted.shape[-1])
        if not complete:
            return None
        found = rayleigh_ritz(matrix, rows, found.wanted)


def _whole(matrix: Tensor, wanted: Tensor) -> Tensor:
    """LAPACK's, of one matrix [N, N], wanted [K] -> [K, N]."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[: len(wanted)], vectors.flip(1)[:, : len(wanted)]
    return (vectors * (wanted & (values > NOISE * values[:1].clamp(min=0)))).T


def polish(matrix: Tensor, found: Found, doubt: Doubt) -> tuple[float, float, Found]:
    """Subspace iteration of one matrix while a step leaves a quarter, or few -> doubt at first and at last."""
    first = last = float(doubt(found))
    for _ in range(STEPS):
        if not last:
            break
        better = rayleigh_ritz(matrix, found.improved(), found.wanted)
        before, last, found = last, float(doubt(better)), better
        if last > max(before / 4, FEW):
            break
    return first, last, found


def rayleigh_ritz(matrix: Tensor, rows: Tensor, wanted: Tensor, most: int | None = None) -> Found:
    """The best approximations in the span of rows [..., P, N], which need not be quite orthonormal, or the first `most`
    of them; in fp64."""
    rows = rows.double()
    images = rows @ matrix
    lower = torch.linalg.cholesky_ex(rows @ rows.mT).L
    identity = torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    values, weights = small_eigh(inverse @ (rows @ images.mT) @ inverse.mT)
    weights = weights.flip(-1)[..., :most].mT @ inverse
    return Found(values.flip(-1), weights @ rows, weights @ images, wanted)


def small_eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of small symmetric matrices [..., P, P], ascending.

    Those of a batch on a GPU are solved on the host, some by each core: torch asks cuSOLVER for those of more than 32
    rows one by one, and it takes milliseconds for each (pytorch issue 174674, of 2026), LAPACK a fraction of one.
    """
    if matrices.device.type == "cpu":
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    parts = matrices.cpu().chunk(torch.get_num_threads())
    found = each_image(lambda part: torch.linalg.eigh(parts[part]), len(parts), parts[0].device)
    values, vectors = (to_device(torch.cat(column), matrices.device) for column in zip(*found, strict=True))
    return values, vectors
