"""Leading eigenvectors of a whole batch in every launch: the solver for accelerators.

There a launch costs more than its work. The solver takes a fixed number of steps of subspace iteration and checks the
result once, at the end. Images in which a token could still change its group, few if any, take further steps together.
What is open after that is left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prunesid_cli.runtime.device import to_device, true_rows
from prunesid_cli.selection.linalg.ritz import StoppingCriterion, rayleigh_ritz

FIRST_STEPS = 8
"""Steps for all images; spectra like those of photographs need no more."""
FURTHER_STEPS = 8
"""Steps for images that are not finished by then, mostly of flat spectra."""
SPARE = 48
"""Rows carried along beside the wanted ones. More of them make a longer eigenproblem."""
SHIFT, LARGE_SHIFT = 1e-6, 1e-4
"""What keeps Cholesky's method from failing in fp32 where rows are nearly dependent, or more so."""
TWICE_AFTER = (0, 1)
"""Steps after which rows are made orthonormal twice, as after the last: the first products of a spectrum that falls by
decades are all but copies of each other."""
MIN_DISTANCE = 0.1
"""Smallest distance of each row from the span of those before it, where rows are as nearly orthonormal as can be. It is
1 for sound rows. Nearly dependent rows give wrong eigenvalues, and no stopping criterion notices."""
MAX_MATRIX_ENTRIES = 2**26
"""Largest number of entries of all N x N matrices that are in memory at once, or of the tokens if these are more."""


def group_by_width(ks: Sequence[int], n: int, step: int, max_images: int) -> Iterator[tuple[int, list[int]]]:
    """Group images that are solved together, by the number of directions that each asks for.

    The number is rounded up to a multiple of `step`, but not above n. It is the same for an image in any batch, so the
    result of an image does not depend on what the others ask for.

    Args:
        ks: Number of directions wanted of each image.
        n: Size of the matrices.
        step: Multiple that numbers are rounded up to.
        max_images: Largest number of images in a group.

    Yields:
        The number of directions to find, and the rows of the images.
    """
    widths = [min(-(-k // step) * step, n) for k in ks]
    for width in sorted(set(widths)):
        rows = [row for row, row_width in enumerate(widths) if row_width == width]
        for start in range(0, len(rows), max_images):
            yield width, rows[start : start + max_images]


def batched_eigenvectors(
    matrices: Tensor,
    ks: Sequence[int],
    width: int,
    criterion_for: Callable[[slice | Tensor], StoppingCriterion],
    min_reliable: Tensor,
) -> tuple[Tensor, list[int]]:
    """Compute the leading eigenvectors of a batch of matrices by subspace iteration.

    Args:
        matrices: [B, N, N] fp64, symmetric, positive semi-definite.
        ks: Number of directions wanted of each matrix, at most `width`.
        width: Number of directions to find.
        criterion_for: Gives the stopping criterion for a subset of the batch.
        min_reliable: [B]. Smaller eigenvalues are doubtful in any case.

    Returns:
        Eigenvectors as rows [B, width, N], descending, zero beyond a matrix's own number or rank; and the rows of the
        matrices whose eigenvectors may be wrong.
    """
    n, device = matrices.shape[-1], matrices.device
    subspace_size, single = min(width + SPARE, n), matrices.float()
    if subspace_size < n:
        rows = _iterate(single, _random_rows(subspace_size, n, device), FIRST_STEPS, TWICE_AFTER)
    else:
        rows = torch.eye(n, device=device).expand_as(single)
    rows, broken = _replace_dependent(rows)
    wanted = torch.arange(width, device=device) < to_device(ks, device)[:, None]
    ritz = rayleigh_ritz(matrices, rows, wanted, width)
    directions = ritz.directions()
    drowned = (wanted & ~(ritz.values[:, :width] > min_reliable[:, None])).any(-1)
    hopeless = broken | drowned
    open_ = (criterion_for(slice(None))(ritz) != 0) & ~hopeless
    doubtful, unfinished = map(true_rows, torch.stack([hopeless, open_]).cpu())
    if unfinished:
        subset = to_device(unfinished, device)
        # The last step is in fp64: fp32 leaves a token or two open.
        rows = _iterate(single[subset], rows[subset], FURTHER_STEPS).double() @ matrices[subset]
        rows, broken = _replace_dependent(normalize(rows, dim=-1))
        ritz = rayleigh_ritz(matrices[subset], rows, wanted[subset], width)
        directions[subset] = ritz.directions()
        still_open = true_rows(broken | (criterion_for(subset)(ritz) != 0))
        doubtful = sorted(doubtful + [unfinished[index] for index in still_open])
    return directions, doubtful


def _iterate(matrices: Tensor, rows: Tensor, steps: int, twice_after: Sequence[int] = ()) -> Tensor:
    """matrices [B, N, N], rows [..., P, N] fp32 -> rows [B, P, N], nearly orthonormal, closer to the leading space."""
    for step in range(steps):
        rows = rows @ matrices
        if step in (*twice_after, steps - 1):
            rows = _orthonormalize(rows, LARGE_SHIFT)
        rows = _orthonormalize(rows, SHIFT)
    return rows


def _orthonormalize(rows: Tensor, shift: float) -> Tensor:
    """rows [B, P, N] -> nearly orthonormal (shifted Cholesky QR: Fukaya et al., SIAM J. Sci. Comput. 42, 2020)."""
    rows = normalize(rows, dim=-1, eps=1e-30)
    shifted = rows @ rows.mT
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift)
    return torch.linalg.solve_triangular(torch.linalg.cholesky_ex(shifted).L, rows, upper=False)


def _replace_dependent(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows [B, P, N] -> the same, or arbitrary ones if they are nearly dependent or not finite; mask [B] of these."""
    exact = rows.double()
    lower, failed = torch.linalg.cholesky_ex(exact @ exact.mT)
    independent = lower.diagonal(dim1=-2, dim2=-1).amin(-1) > MIN_DISTANCE  # false for NaN, too
    broken = (failed != 0) | ~independent | ~rows.isfinite().flatten(1).all(-1)
    arbitrary = torch.eye(rows.shape[-2], rows.shape[-1], device=rows.device)
    return torch.where(broken[:, None, None], arbitrary, rows), broken


@lru_cache(maxsize=16)
def _random_rows(size: int, n: int, device: torch.device) -> Tensor:
    """[size, N] fp32, from a generator of its own: the same for all images, on all devices."""
    return torch.randn(size, n, generator=torch.Generator().manual_seed(0)).to(device)
