"""Principal directions of a whole batch in every launch, for devices where a launch costs more than its work.

A fixed number of steps of subspace iteration, with no look at what came of them but one at the end; images of which a
token could still change its group, few if any, go on together, and what is open then is done again, each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device, true_rows
from prunesid_cli.selection.linalg.eigenvectors import Doubt, rayleigh_ritz

FIRST, MORE, SPARE = 8, 8, 48
"""Steps, further ones for images that are not settled by then, and rows carried along beside the wanted ones. Spectra
like those of photographs are settled by the first, flat ones by the further; more rows make a longer eigenproblem."""
STEP = 16
"""Images whose numbers of directions round up to the same multiple of it are iterated together."""
SHIFT, LARGE = 1e-6, 1e-4
"""What keeps Cholesky's method from failing in fp32 where rows are nearly dependent, or more so."""
TWICE = (0, 1)
"""Steps after which rows are made orthonormal twice, as after the last: the first products of a spectrum that falls by
decades are all but copies of each other."""
APART = 0.1
"""Least distance of each row from the span of those before it, where rows are as nearly orthonormal as can be: of sound
ones it is 1; of nearly dependent ones eigenvalues come out wrong, and no doubt with them."""
LARGEST = 2**26
"""Entries of the Gram matrices that are there at once, or of the tokens where these are more."""

DoubtOf = Callable[[slice | Tensor], Doubt]
"""Which of the images of a batch -> what is in doubt of what was found of these."""


def portions(ks: Sequence[int], n: int, step: int, most: int) -> Iterator[tuple[int, list[int]]]:
    """(directions to find, rows): at most so many images that go together, by what they ask for alone.

    That are directions, rounded up to a multiple of `step`, but no more than n: what comes of an image does not depend
    on what the others ask for.
    """
    widths = [min(-(-k // step) * step, n) for k in ks]
    for width in sorted(set(widths)):
        rows = [row for row, own in enumerate(widths) if own == width]
        for start in range(0, len(rows), most):
            yield width, rows[start : start + most]


def leading_together(
    matrices: Tensor, ks: Sequence[int], k: int, doubt: DoubtOf, least: Tensor
) -> tuple[Tensor, list[int]]:
    """matrices [B, N, N] fp64, symmetric, positive semi-definite; of each its own of the `k` directions are wanted.

    least [B]: eigenvalue below which they are doubtful, whatever comes out.

    Returns:
        eigenvectors as rows [B, k, N], descending, zero beyond an image's own number or rank; the images of which these
        may be wrong (or, where `doubt` is of `angle`, further off than `eigen.CLOSE`).
    """
    n = matrices.shape[-1]
    width, single = min(k + SPARE, n), matrices.float()
    if width < n:
        rows = iterate(single, _start(width, n, single.device), FIRST, TWICE)
    else:
        rows = torch.eye(n, device=single.device).expand_as(single)
    rows, broken = independent(rows)
    own = torch.arange(k, device=matrices.device) < to_device(ks, matrices.device)[:, None]
    found = rayleigh_ritz(matrices, rows, own, k)
    directions = found.directions()
    drowned = (own & ~(found.values[:, :k] > least[:, None])).any(-1)
    hopeless = broken | drowned
    unsure = (doubt(slice(None))(found) != 0) & ~hopeless
    left, again = map(true_rows, torch.stack([hopeless, unsure]).cpu())
    if again:
        some = to_device(again, matrices.device)
        rows = iterate(single[some], rows[some], MORE).double() @ matrices[some]  # fp32 leaves a token or two open
        rows, broken = independent(torch.nn.functional.normalize(rows, dim=-1))
        found = rayleigh_ritz(matrices[some], rows, own[some], k)
        directions[some] = found.directions()
        left = sorted(left + [again[at] for at in true_rows(broken | (doubt(some)(found) != 0))])
    return directions, left


def iterate(matrices: Tensor, rows: Tensor, steps: int, twice: Sequence[int] = ()) -> Tensor:
    """matrices [B, N, N], rows [..., P, N] fp32 -> rows [B, P, N], nearly orthonormal and nearer to what leads."""
    for step in range(steps):
        rows = rows @ matrices
        rows = orthonormal(orthonormal(rows, LARGE) if step in (*twice, steps - 1) else rows, SHIFT)
    return rows


def orthonormal(rows: Tensor, shift: float) -> Tensor:
    """rows [B, P, N] -> nearly so (shifted Cholesky QR: Fukaya et al., SIAM J. Sci. Comput. 42, 2020)."""
    rows = torch.nn.functional.normalize(rows, dim=-1, eps=1e-30)
    shifted = rows @ rows.mT
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift)
    return torch.linalg.solve_triangular(torch.linalg.cholesky_ex(shifted).L, rows, upper=False)


def independent(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows [B, P, N] -> the same, but any others where they are nearly dependent or not finite; mask [B] of those."""
    exact = rows.double()
    lower, failed = torch.linalg.cholesky_ex(exact @ exact.mT)
    apart = lower.diagonal(dim1=-2, dim2=-1).amin(-1) > APART  # of NaN, too, it is not
    broken = (failed != 0) | ~apart | ~rows.isfinite().flatten(1).all(-1)
    others = torch.eye(rows.shape[-2], rows.shape[-1], device=rows.device)
    return torch.where(broken[:, None, None], others, rows), broken


@lru_cache(maxsize=16)
def _start(width: int, n: int, device: torch.device) -> Tensor:
    """[width, N] fp32, drawn from a generator of its own: the same for all images, on all devices."""
    return torch.randn(width, n, generator=torch.Generator().manual_seed(0)).to(device)
