"""Copies between host and device, with as few synchronisations as possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(data: Tensor | Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor or numbers from the host to a device, without waiting for the device where that is safe.

    A plain copy, such as `torch.tensor(..., device=device)`, blocks the host until all earlier work on the device is
    done. Only CUDA reads ordinary (not pinned) memory of the host before the call returns, so only there is the copy
    not awaited.
    """
    return torch.as_tensor(data).to(device, dtype, non_blocking=device.type == "cuda")


def true_rows(mask: Tensor) -> list[int]:
    """Indices of the rows where a mask is set, with one host sync; `nonzero` would take two.

    Args:
        mask: [B], bool.
    """
    return [row for row, is_set in enumerate(mask.tolist()) if is_set]


def to_fp64_device(tensor: Tensor) -> Tensor:
    """Move a tensor to the CPU if its device has no fp64, as mps."""
    return tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()
