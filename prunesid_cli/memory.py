"""Work on batches that may not fit into a device's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def within_memory(work: Callable[[Sequence[T]], list[R]], batch: Sequence[T], alone: Callable[[T], R]) -> list[R]:
    """`work` on a batch, in halves when it does not fit into the device's memory; `alone`: on one that never does."""
    try:
        return work(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            return [alone(batch[0])]
    # Outside of the handler: its traceback holds on to all that the failed attempt had allocated.
    half = len(batch) // 2
    return within_memory(work, batch[:half], alone) + within_memory(work, batch[half:], alone)
