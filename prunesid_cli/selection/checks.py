"""What selection refuses to work on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunesid_cli.errors import NonFiniteError


def check_shapes(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], reserved: int) -> None:
    """A wrong call, not a wrong input: plain ValueError."""
    if features.ndim != 3:
        raise ValueError(f"features must be [B, N, C], not {list(features.shape)}")
    if saliency is not None and saliency.shape != features.shape[:2]:
        raise ValueError(f"saliency must be {list(features.shape[:2])}, not {list(saliency.shape)}")
    if len(budgets) != features.shape[0]:
        raise ValueError(f"{features.shape[0]} images need as many budgets, not {len(budgets)}")
    if any(budget < 0 for budget in budgets) or reserved not in (0, 1):
        raise ValueError(f"budgets must be >= 0 and reserved 0 or 1, not {list(budgets)} and {reserved}")


def check_finite(features: Tensor, *others: Tensor | None) -> None:
    """features, others [B, ...] or None. One host sync, for the whole batch."""
    finite = features.isfinite().flatten(1).all(1)
    for other in others:
        if other is not None:
            finite = finite & other.isfinite().flatten(1).all(1)
    rows = [row for row, good in enumerate(finite.tolist()) if not good]
    if rows:
        raise NonFiniteError(
            f"NaN or infinity in the visual tokens of batch row {', '.join(map(str, rows))}",
            hint="half precision may have overflowed in the vision tower; try --dtype fp32",
            rows=rows,
        )
