"""Checks of the input of a selection."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.errors import NonFiniteError
from prunesid_cli.selection.linalg.per_image import map_images


def check_shapes(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int) -> None:
    """Check that the arguments of a call fit together.

    Args:
        features: [B, N, C].
        saliency: [B, N] or None.
        budgets: Tokens to keep of each image.
        num_cls: 0 or 1.

    Raises:
        ValueError: They do not; this is an error of the caller, not of the input.
    """
    if features.ndim != 3:
        raise ValueError(f"features must be [B, N, C], not {list(features.shape)}")
    if saliency is not None and saliency.shape != features.shape[:2]:
        raise ValueError(f"saliency must be {list(features.shape[:2])}, not {list(saliency.shape)}")
    if len(budgets) != features.shape[0]:
        raise ValueError(f"{features.shape[0]} images need as many budgets, not {len(budgets)}")
    if any(budget < 0 for budget in budgets) or num_cls not in (0, 1):
        raise ValueError(f"budgets must be >= 0 and num_cls 0 or 1, not {list(budgets)} and {num_cls}")


def check_finite(features: Tensor, *others: Tensor | None) -> None:
    """Check that all values are finite, with one host sync for the whole batch.

    Args:
        features: [B, N, C].
        others: Further tensors [B, ...], or None.

    Raises:
        NonFiniteError: Some value is not; `rows` says in which images.
    """
    tensors = [features, *(tensor for tensor in others if tensor is not None)]
    # A sum costs a tenth of a look at each number. It may overflow although all numbers are finite, so look then.
    if features.device.type == "cpu" and len(features):
        # Image by image, as all that follows: threads that torch starts for one operation spin for a while after it,
        # and slow the core that works.
        def sum_image(row: int) -> Tensor:
            return torch.stack([tensor[row].sum(dtype=torch.float32) for tensor in tensors]).sum()

        sums = torch.stack(map_images(sum_image, len(features), features.device))
    else:
        sums = torch.stack([tensor.flatten(1).sum(1, dtype=torch.float32) for tensor in tensors]).sum(0)
    suspects = [row for row, total in enumerate(sums.tolist()) if not math.isfinite(total)]
    rows = [row for row in suspects if not all(bool(tensor[row].isfinite().all()) for tensor in tensors)]
    if rows:
        raise NonFiniteError(
            f"NaN or infinity in the visual tokens of batch row {', '.join(map(str, rows))}",
            hint="half precision may have overflowed in the vision tower; try --dtype fp32",
            rows=rows,
        )
