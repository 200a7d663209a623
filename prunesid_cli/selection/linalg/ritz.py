"""Approximate eigenvectors from a subspace (Rayleigh-Ritz), with estimates of how far they may still be off.

A stopping criterion turns these estimates into a number per matrix: 0 once the eigenvectors are good enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device
from prunesid_cli.selection.linalg.per_image import map_images

NOISE = 1e-12
"""Below this share of the largest eigenvalue a direction is rounding noise."""
SAFETY_FACTOR = 3
"""An entry is taken to be within this many times its estimated error."""
MAX_ANGLE = 1e-6
"""Largest accepted angle between a computed direction and the true one, in radians, where the values matter."""


@dataclass(frozen=True)
class RitzVectors:
    """Approximate eigenvectors of matrices [..., N, N] from subspaces of P dimensions, by descending eigenvalue.

    Attributes:
        values: [..., P] approximate eigenvalues.
        vectors: [..., M, N] the first M <= P vectors, as rows.
        products: [..., M, N] vectors @ matrix: the vectors after one more step of subspace iteration, up to length.
        wanted: [..., K] mask, K <= M. The directions that are not wanted are returned as zeros.
    """

    values: Tensor
    vectors: Tensor
    products: Tensor
    wanted: Tensor

    def __getitem__(self, row: int) -> RitzVectors:
        """The vectors of one matrix of the batch."""
        return RitzVectors(self.values[row], self.vectors[row], self.products[row], self.wanted[row])

    def next_iterate(self) -> Tensor:
        """Return all P vectors [..., P, N] after one more step of subspace iteration; needs M = P."""
        return torch.where(self._above_noise(), self.products / self.values.unsqueeze(-1), self.vectors)

    def directions(self) -> Tensor:
        """Return the wanted directions [..., K, N]; those that are rounding noise are zero."""
        return self._wanted_only(self.products / self._row_values())

    def errors(self) -> Tensor:
        """Estimate how far each entry of `directions` may be off, to first order and without rounding [..., K, N].

        The error is the residual, seen through the rest of the matrix: it is no longer than the residual divided by the
        distance to the greatest eigenvalue of the rest, for which the last spare one stands (Parlett, The Symmetric
        Eigenvalue Problem, 11.7), but it is distributed differently over the entries.
        """
        residual = torch.addcmul(self.products, self.vectors, self._row_values(), value=-1)
        return self._wanted_only(residual / (self._row_values() - self.values[..., -1:].unsqueeze(-1)))

    def _row_values(self) -> Tensor:
        return self.values[..., : self.vectors.shape[-2]].unsqueeze(-1)  # [..., M, 1]

    def _above_noise(self) -> Tensor:
        return (self.values > NOISE * self.values[..., :1].clamp(min=0)).unsqueeze(-1)  # [..., P, 1]

    def _wanted_only(self, rows: Tensor) -> Tensor:
        k = self.wanted.shape[-1]
        return torch.where(self._above_noise()[..., :k, :] & self.wanted.unsqueeze(-1), rows[..., :k, :], 0)


StoppingCriterion = Callable[[RitzVectors], Tensor]
"""What remains to be done for each matrix [...]: 0 if nothing, and less the closer the vectors are."""


def angle_excess(ritz: RitzVectors) -> Tensor:
    """Stopping criterion: by what factor the worst direction may exceed MAX_ANGLE; 0 if none does."""
    worst = ritz.errors().norm(dim=-1).amax(-1) / MAX_ANGLE
    return torch.where(worst > 1, worst, 0)


def count_undecided(ritz: RitzVectors) -> Tensor:
    """Stopping criterion: the number of columns whose largest |entry| may belong to another direction."""
    return _count_undecided_columns(ritz.directions().float(), ritz.errors().float())  # groups are found in fp32, too


def count_undecided_through(matrix: Tensor, ritz: RitzVectors) -> Tensor:
    """Stopping criterion for the rows of `matrix` [..., N, C], where matrix.mT @ matrix is factorised."""
    through = matrix.double().mT
    length = ritz.values[..., : ritz.wanted.shape[-1], None].clamp(min=0).sqrt()
    entries, errors = (rows @ through / length for rows in (ritz.directions(), ritz.errors()))
    return _count_undecided_columns(entries.nan_to_num(0), errors.nan_to_num(0))


def _count_undecided_columns(entries: Tensor, errors: Tensor) -> Tensor:
    """entries, errors [..., K, N] -> number of columns whose largest |entry| may be in another row [...]."""
    entries, errors = entries.abs(), errors.abs()
    errors = SAFETY_FACTOR * torch.maximum(errors, errors.square().mean(-1, keepdim=True).sqrt())
    largest = entries.argmax(-2, keepdim=True)
    lower = (entries - errors).gather(-2, largest).squeeze(-2)
    upper_of_rest = (entries + errors).scatter(-2, largest, -1).amax(-2)
    return (~(lower >= upper_of_rest)).sum(-1)  # NaN is undecided, too


def rayleigh_ritz(matrix: Tensor, rows: Tensor, wanted: Tensor, max_vectors: int | None = None) -> RitzVectors:
    """Find the best approximate eigenvectors in the span of given rows, in fp64.

    Args:
        matrix: [..., N, N] fp64, symmetric.
        rows: [..., P, N]. They need not be quite orthonormal.
        wanted: [..., K] mask of the directions that are wanted.
        max_vectors: Number of vectors to return; all P if None.
    """
    rows = rows.double()
    products = rows @ matrix
    lower = torch.linalg.cholesky_ex(rows @ rows.mT).L
    identity = torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    values, weights = small_eigh(inverse @ (rows @ products.mT) @ inverse.mT)
    weights = weights.flip(-1)[..., :max_vectors].mT @ inverse
    return RitzVectors(values.flip(-1), weights @ rows, weights @ products, wanted)


def small_eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Compute eigenvalues and eigenvectors of small symmetric matrices [..., P, P], ascending.

    A batch on a GPU is solved on the host, by all cores: torch has cuSOLVER solve matrices of more than 32 rows one by
    one, which takes milliseconds for each (pytorch issue 174674, of 2026); LAPACK takes a fraction of one.
    """
    if matrices.device.type == "cpu":
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    parts = matrices.cpu().chunk(torch.get_num_threads())
    solved = map_images(lambda part: torch.linalg.eigh(parts[part]), len(parts), parts[0].device)
    values, vectors = (to_device(torch.cat(column), matrices.device) for column in zip(*solved, strict=True))
    return values, vectors
