"""Leading directions of token matrices: the entry point of this package.

A CPU solves few images at a time, each thread on one core (`krylov`). Other devices solve the whole batch in every
launch (`batched`). If there are more tokens than channels, the smaller channel matrix is factorised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunesid_cli.selection.linalg.batched import MAX_MATRIX_ENTRIES, batched_eigenvectors, group_by_width
from prunesid_cli.selection.linalg.gram import gram, gram_eigenvectors, left_from_right
from prunesid_cli.selection.linalg.per_image import map_images, scratch_tensor
from prunesid_cli.selection.linalg.ritz import StoppingCriterion, angle_excess, count_undecided, count_undecided_through

CPU_MAX_ENTRIES = 4 * 576**2
"""Largest number of entries of the Gram matrices that a core works on at once."""
CPU_WIDTH_STEP = 8
"""A CPU solves images together if their numbers of directions round up to the same multiple of this."""
BATCHED_WIDTH_STEP = 16
"""The same for other devices."""

Transform = Callable[..., Tensor]
"""Makes matrices X [..., N, C] fp32 from features [..., N, C], in the tensor of the keyword `out` if it is given."""


def leading_directions(
    features: Tensor, transform: Transform, ks: Sequence[int], need_values: bool = True, batched: bool | None = None
) -> Tensor:
    """Compute the leading left singular vectors of X = transform(features) for each image.

    Directions that the input does not have (rank < k) are zero columns, so that no token can be assigned to a group of
    rounding noise.

    Args:
        features: [B, N, C].
        transform: Makes X [..., N, C] of the features of one image or several.
        ks: Number of directions wanted of each image.
        need_values: Whether the values of V matter, or only which |entry| of each row is the largest.
        batched: Whether all images share every launch; None: on all devices but the CPU.

    Returns:
        V [B, N, max(ks)] fp32: the exact top-k eigenvectors of X X^T as columns, by descending eigenvalue; zero beyond
        an image's k.
    """
    if batched is None:
        batched = features.device.type != "cpu"
    if batched:
        directions, doubtful = batched_directions(features, transform, ks, need_values)
        if doubtful:  # few, if any
            few_ks = [ks[row] for row in doubtful]
            exact = leading_directions(features[doubtful].cpu(), transform, few_ks, need_values, batched=False)
            directions[doubtful] = pad(exact, (0, max(ks) - exact.shape[-1])).to(features.device)
        return directions
    num_images, n, channels = features.shape
    if n > channels:
        groups = [(min(k, channels), [row]) for row, k in enumerate(ks)]
    else:
        max_images = max(1, min(CPU_MAX_ENTRIES // n**2, -(-num_images // torch.get_num_threads())))
        groups = list(group_by_width(ks, n, CPU_WIDTH_STEP, max_images))
    solved = map_images(
        lambda index: _cpu_directions(features, transform, ks, *groups[index], need_values),
        len(groups),
        features.device,
    )
    directions = torch.zeros(num_images, n, max(ks))
    for (width, rows), vectors in zip(groups, solved, strict=True):
        directions[rows, :, :width] = vectors[..., : max(ks)]
    return directions


def _cpu_directions(
    features: Tensor, transform: Transform, ks: Sequence[int], width: int, rows: list[int], need_values: bool
) -> Tensor:
    """V [b, N, width] of some rows of the batch. A single row may have more tokens than channels."""
    n, channels = features.shape[1:]
    matrices = scratch_tensor(features, len(rows), n, channels, dtype=torch.float32)
    for row, out in zip(rows, matrices, strict=True):  # one by one, as in `gram`
        transform(features[row], out=out)
    wanted = torch.arange(width) < torch.tensor([ks[row] for row in rows])[:, None]
    if n <= channels:
        return gram_eigenvectors(matrices, wanted, angle_excess if need_values else count_undecided).float().mT
    (matrix,) = matrices
    criterion = angle_excess if need_values else partial(count_undecided_through, matrix)
    (right,) = gram_eigenvectors(matrix.T[None], wanted, criterion).mT
    return left_from_right(matrix, right)[None]


def batched_directions(
    features: Tensor, transform: Transform, ks: Sequence[int], need_values: bool
) -> tuple[Tensor, list[int]]:
    """Compute `leading_directions` in as few launches as possible.

    Returns:
        V [B, N, max(ks)], and the rows of the images whose directions may be wrong.
    """
    (n, channels), doubtful = features.shape[1:], list[int]()
    side = min(n, channels)
    directions = torch.zeros(len(ks), n, -(-max(ks) // BATCHED_WIDTH_STEP) * BATCHED_WIDTH_STEP, device=features.device)
    max_images = max(1, MAX_MATRIX_ENTRIES // (n * side))
    for width, rows in group_by_width(ks, side, BATCHED_WIDTH_STEP, max_images):
        # A list as index would be sent to the device, and its images copied.
        subset = slice(None) if len(rows) == len(ks) else rows
        matrix = transform(features[subset])

        def criterion_for(images: slice | Tensor, matrix: Tensor = matrix) -> StoppingCriterion:
            if need_values:
                return angle_excess
            return count_undecided if n <= channels else partial(count_undecided_through, matrix[images])

        quick = gram(matrix if n <= channels else matrix.mT)
        vectors, unfinished = batched_eigenvectors(
            quick.matrix, [ks[row] for row in rows], width, criterion_for, quick.min_reliable
        )
        directions[subset, :, :width] = vectors.mT.float() if n <= channels else left_from_right(matrix, vectors.mT)
        doubtful += [rows[index] for index in unfinished]
    return directions[..., : max(ks)], doubtful
