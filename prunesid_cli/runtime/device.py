"""Copies between host and device, with as few synchronisations as possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


def to_device(data: Tensor | Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor or numbers from the host to a device, without waiting for the device where that is safe.

    A plain copy, such as `torch.tensor(..., device=device)`, blocks the host until all earlier work on the device is
    done. Only CUDA reads ordinary (not pinned) memory of the host before the call returns, so only there is the copy
    not awaited.
    """
    return torch.as_tensor(data).to(device, dtype, non_blocking=device.type == "cuda")


def upload(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Join tensors along their first axis, on a device.

    From the host to CUDA, the copy goes from pinned memory and on a stream of its own: it runs beside earlier work.
    """
    if device.type != "cuda" or parts[0].device.type == "cuda":
        return torch.cat(list(parts)).to(device)
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    pinned = torch.cat(list(parts), out=empty_pinned(shape, parts[0].dtype))
    stream, current = copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        copied = pinned.to(device, non_blocking=True)
    current.wait_stream(stream)
    copied.record_stream(current)  # its memory is not used anew before the current stream has read it
    return copied


def record_event(device: torch.device) -> torch.Event | None:
    """An event that comes when the work which was given to a device so far is done; None on other devices than CUDA."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


@contextmanager
def run_beside(event: torch.Event | None, device: torch.device) -> Iterator[None]:
    """Run what is in the block on a stream of its own, after an event and beside what was given to the device later.

    Before the block ends, the host must have waited for all that was computed in it: the memory of its inputs may be
    used anew after that. Without an event, nothing changes.
    """
    if event is None:
        yield
        return
    stream = side_stream(device)
    stream.wait_event(event)
    with torch.cuda.stream(stream):
        yield


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of `run_beside`, whose small kernels do not wait for the large ones of the tower."""
    return torch.cuda.Stream(device, priority=-1)


def empty_pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in memory of the host from which CUDA copies without the host."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of copies to a device."""
    return torch.cuda.Stream(device)


def true_rows(mask: Tensor) -> list[int]:
    """Indices of the rows where a mask is set, with one host sync; `nonzero` would take two.

    Args:
        mask: [B], bool.
    """
    return [row for row, is_set in enumerate(mask.tolist()) if is_set]


def to_fp64_device(tensor: Tensor) -> Tensor:
    """Move a tensor to the CPU if its device has no fp64, as mps."""
    return tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()
