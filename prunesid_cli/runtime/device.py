"""Between the host and a device, with as few waits as possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(data: Tensor | Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor or numbers of the host on the device, as soon as the device gets there.

    A plain copy, as `torch.tensor(..., device=device)` makes one, holds the host up until all that it asked of the
    device before is done. Only CUDA takes what is in ordinary memory right away.
    """
    return torch.as_tensor(data).to(device, dtype, non_blocking=device.type == "cuda")


def true_rows(mask: Tensor) -> list[int]:
    """mask [B] -> the rows of which it is set. One wait, where `nonzero` would make two."""
    return [row for row, is_set in enumerate(mask.tolist()) if is_set]
